"""`Representation`: one vector of a row by name, such as `query_token@21` or `vision_only`.

A probe reads one or several of them side by side: `vision_only+query_token@21`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from halp_probe.errors import ProbeError
from halp_store.layout import Layout


class UnknownRepresentation(ProbeError):  # noqa: N818 - named for what it says
    """A name that the store has no vectors of; the message says which there are."""


@dataclass(frozen=True, order=True)
class Representation:
    """column: of vectors. layer: decoder layer index; None for a column without layers."""

    column: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.column if self.layer is None else f"{self.column}@{self.layer}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of `COLUMN` or `COLUMN@LAYER`. Raises UnknownRepresentation."""
        column, at, layer = text.partition("@")
        if not column or (at and not layer.isdecimal()):
            raise UnknownRepresentation(f"{text!r}: expected a name like query_token@21")
        return cls(column, int(layer) if at else None)


Representations = tuple[Representation, ...]
"""Side by side, in this order."""


def name_of(parts: Iterable[Representation]) -> str:
    """`a+b@1`."""
    return "+".join(map(str, parts))


def parse_representations(layout: Layout, text: str) -> Representations:
    """Of `A+B@1`, each of which the layout has. Raises UnknownRepresentation naming what is."""
    there = representations_of(layout)
    found = tuple(Representation.parse(one.strip()) for one in text.split("+"))
    for one in found:
        if one not in there:
            names = ", ".join(map(str, there))
            raise UnknownRepresentation(f"no representation {str(one)!r}; there are {names}")
    return found


def representations_of(layout: Layout) -> Representations:
    """All that a store of this layout has: columns without layers, then each position's layers."""
    found: list[Representation] = []
    for column, (dims, _) in layout.vector_columns().items():
        layers: tuple[int | None, ...] = layout.layers if "layer" in dims else (None,)
        found += [Representation(column, layer) for layer in layers]
    return tuple(found)


def sizes_of(layout: Layout, parts: Representations) -> tuple[int, ...]:
    """Length of each part's vector."""
    columns = layout.vector_columns()
    return tuple(columns[one.column][1][-1] for one in parts)
