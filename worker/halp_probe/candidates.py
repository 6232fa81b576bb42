"""`Candidates`: which representations an evaluation reads. Chosen by their names alone, before any
label is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from halp_probe.representation import (
    Representation,
    Representations,
    name_of,
    parse_representations,
    representations_of,
    sizes_of,
)
from halp_store.layout import Layout

# Of one combination: above, a laptop would swap. All layers of a large model come near it.
_MOST_BYTES: Final = 1 << 30
_FLOAT32: Final = 4


@dataclass(frozen=True)
class Candidates:
    """singles: each representation by itself. combinations: several side by side.

    late_query: of the query token after the last layer but one, where states are near the answer.
    late_vision: of the vision token likewise; empty in a store without one.
    image: of the picture alone, before any word is read; None in a store without one.
    left_out: names of combinations that are too large for these rows.
    """

    singles: tuple[Representations, ...]
    combinations: tuple[Representations, ...]
    late_query: Representations
    late_vision: Representations
    image: Representations | None
    left_out: tuple[str, ...]

    @property
    def all(self) -> tuple[Representations, ...]:
        return (*self.singles, *self.combinations)

    @property
    def fixed(self) -> tuple[Representations, ...]:
        """For leaks and transfers: the picture, in both places, and the question, at layers fixed
        beforehand."""
        pooled = (Representation("vision_only"),)
        some = (pooled, self.late_vision, self.late_query)
        return tuple(one for one in dict.fromkeys(some) if one in self.singles)


def candidates_of(layout: Layout, rows: int, combine: Sequence[str] = ()) -> Candidates:
    """combine: asked for, such as `vision_only+query_token@21`. rows: how many there are, for how
    large a combination may be. Raises UnknownRepresentation."""
    there = representations_of(layout)
    wanted = [parse_representations(layout, one) for one in combine]
    usual: list[Representations] = []
    left_out: list[Representations] = []
    for parts in _usual(layout, there):
        fits = rows * sum(sizes_of(layout, parts)) * _FLOAT32 <= _MOST_BYTES
        (usual if fits else left_out).append(parts)
    singles = tuple((one,) for one in there)
    several = tuple(one for one in dict.fromkeys([*usual, *wanted]) if one not in singles)
    images = [(Representation(name),) for name in ("vision_encoder", "vision_only")]
    return Candidates(
        singles=singles,
        combinations=several,
        late_query=_late(layout, _position(layout, "query_token")) or singles[-1],
        late_vision=_late(layout, _vision(layout)),
        image=next((one for one in images if one in singles), None),
        left_out=tuple(map(name_of, left_out)),
    )


def _usual(layout: Layout, there: Representations) -> list[Representations]:
    query = _position(layout, "query_token")
    late = _late(layout, query)
    pooled = tuple(one for one in there if one.column == "vision_only")
    vision = _late(layout, _vision(layout))
    layers = tuple(one for one in there if one.column == query)
    several = (pooled + late, vision + late, pooled + vision + late, layers)
    return list(dict.fromkeys(one for one in several if len(one) > 1))


def _vision(layout: Layout) -> str | None:
    """An imported store has the token that the published scripts took."""
    there = (one for one in ("vision_token", "halp_reference") if one in layout.positions)
    return next(there, None)


def _position(layout: Layout, name: str) -> str | None:
    return name if name in layout.positions else (layout.positions or (None,))[-1]


def _late(layout: Layout, position: str | None) -> Representations:
    """After the last layer but one: the last one's is turned towards the next token already."""
    if position is None or position not in layout.vector_columns():
        return ()
    return (Representation(position, layout.layers[-2:][0]),)
