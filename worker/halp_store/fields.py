"""`Field`: a column of texts or numbers, or one field of the metadata, by the name a user gives.

Knows which names a store has. Refuses vector columns: those are neither listed nor compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from halp_store.layout import GRID_COLUMN, SCORE_COLUMNS, TEXT_COLUMNS, Layout

METADATA_COLUMN: Final = "metadata"
_INSIDE: Final = f"{METADATA_COLUMN}."


class UnknownField(ValueError):  # noqa: N818 - as in `halp_store.errors`
    """A name that the store does not have; the message says which there are."""


@dataclass(frozen=True)
class Field:
    """name: as the user says it. column: where it is stored. key: within the metadata; None for a
    whole column."""

    name: str
    column: str
    key: str | None = None

    @property
    def is_score(self) -> bool:
        return self.key is None and self.column in SCORE_COLUMNS

    @property
    def is_integer(self) -> bool:
        return self.key is None and self.column not in (*TEXT_COLUMNS, *SCORE_COLUMNS)

    def values(self, columns: Mapping[str, Any]) -> list[Any]:
        """One value a row of what `View.read` gave: str, int, list of int, float, or any JSON value
        for metadata. None stands for what is not there: also for null, and for a score of NaN."""
        column = columns[self.column]
        if self.is_score:
            return [None if math.isnan(one) else one for one in column.tolist()]
        if self.column != METADATA_COLUMN:
            values: list[Any] = column.tolist()
            return values
        found = [json.loads(text) for text in column]
        return found if self.key is None else [_inside(one, self.key) for one in found]


def field_of(layout: Layout, name: str) -> Field:
    """Of a name such as `answer` or `metadata.dataset`; dots go into nested objects.

    Raises UnknownField.
    """
    if name.startswith(_INSIDE) and len(name) > len(_INSIDE):
        return Field(name, METADATA_COLUMN, name.removeprefix(_INSIDE))
    known = (*TEXT_COLUMNS, *layout.integer_columns(), *layout.scores)
    if name in known:
        return Field(name, name)
    there = f"there are {', '.join(known)} and {_INSIDE}NAME"
    if name in layout.vector_columns():
        raise UnknownField(f"{name!r} is a column of vectors, which have no one value; {there}")
    raise UnknownField(f"no column {name!r}; {there}")


def fields_of(layout: Layout, names: Iterable[str]) -> tuple[Field, ...]:
    """Each once, in order. Raises UnknownField naming all that are not there."""
    found: dict[str, Field] = {}
    wrong: list[str] = []
    for name in names:
        try:
            found[name] = field_of(layout, name)
        except UnknownField as error:
            wrong.append(str(error))
    if wrong:
        raise UnknownField("\n".join(wrong))
    return tuple(found.values())


def scalar_of(layout: Layout, name: str) -> Field:
    """As `field_of`, but only what has one value a row. Raises UnknownField."""
    field = field_of(layout, name)
    if field.column == GRID_COLUMN:
        raise UnknownField(
            f"{name!r} has three numbers a row; image_tokens is a quarter of their product"
        )
    return field


def columns_of(fields: Sequence[Field]) -> tuple[str, ...]:
    """What has to be read, each column once."""
    return tuple(dict.fromkeys(field.column for field in fields))


def _inside(document: Any, key: str) -> Any:
    """A name that holds a dot itself comes before the way through nested objects."""
    if not isinstance(document, dict):
        return None
    if key in document:
        return document[key]
    first, dot, rest = key.partition(".")
    return _inside(document.get(first), rest) if dot else None
