"""`Selection`: which rows, columns and layers are wanted; `Chosen`: what of it a store has.

Decides before anything is read: all that a store does not have is said at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from halp_store.errors import StoreError
from halp_store.layout import TEXT_COLUMNS
from halp_store.view import View

BATCH_BYTES: Final = 128 * 2**20
"""Of decoded values in memory at once: large reads, and little beside what numpy itself needs."""

# What a text takes, about: a question, an answer, a path. Only the size of a batch rests on it.
_TEXT_BYTES: Final = 1024
# A view reads ahead in windows of its own; these are only handed out.
_ANY_ORDER_ROWS: Final = 256
# Of a million unknown ids the first few show what is wrong.
_NAMED: Final = 5


class SelectionError(StoreError):
    """Something is asked for that the store does not have; the message says what there is."""


@dataclass(frozen=True)
class Selection:
    """ids: None for all rows. columns: names as stored, positions among them; None for what is
    usual where it goes. layers: decoder layer indices that the positions are wanted of, in this
    order; None for all. What is named twice counts once.
    """

    ids: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None

    def of(self, store: View, usual: Sequence[str]) -> Chosen:
        """usual: the columns to take where none are named.

        Raises SelectionError naming all that is not there.
        """
        ids = _once(self.ids)
        columns = _once(self.columns) or tuple(usual)
        layers = _once(self.layers) or store.layers
        wrong = [*_unknown_columns(store, columns), *_unknown_layers(store, layers)]
        if ids is not None:
            wrong += _unknown_ids(store, ids)
        if not (len(store) if ids is None else ids):
            wrong.append("there are no rows to take")
        if wrong:
            raise SelectionError("\n".join(f"{store.path}: {one}" for one in wrong))
        return Chosen(store if ids is None else store[list(ids)], columns, layers)


@dataclass(frozen=True)
class Chosen:
    """Rows of a store in order, columns of it, and the layers of the positions among those.

    N rows, L = len(layers).
    """

    view: View
    columns: tuple[str, ...]
    layers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.view)

    @property
    def text(self) -> tuple[str, ...]:
        return tuple(name for name in self.columns if name in TEXT_COLUMNS)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns of integers, scores and vectors."""
        return tuple(name for name in self.columns if name not in TEXT_COLUMNS)

    @property
    def has_layers(self) -> bool:
        return any(name in self.view.positions for name in self.columns)

    def dtype(self, column: str) -> np.dtype[Any]:
        """float32, int64, or object for strings."""
        if column in TEXT_COLUMNS:
            return np.dtype(object)
        is_integer = column in self.view.layout.integer_columns()
        return np.dtype(np.int64 if is_integer else np.float32)

    def dims(self, column: str) -> tuple[str, ...]:
        """The names of the axes after `question`."""
        return self._described(column)[0]

    def shape(self, column: str) -> tuple[int, ...]:
        """Of one row."""
        dims, lengths = self._described(column)
        return (len(self.layers), *lengths[1:]) if "layer" in dims else lengths

    def row_bytes(self, columns: Sequence[str]) -> int:
        """Of one row in memory; of a text, a guess."""
        return sum(
            _TEXT_BYTES
            if name in TEXT_COLUMNS
            else math.prod(self.shape(name)) * self.dtype(name).itemsize
            for name in columns
        )

    def batches(
        self, columns: Sequence[str], rows: int | None = None
    ) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
        """(first row, columns of the rows from there on), all rows in order.

        rows: in each, so many; as `BATCH_BYTES` allows without it. Raises DamagedSegment.
        """
        step = rows or max(1, BATCH_BYTES // max(1, self.row_bytes(columns)))
        for start in range(0, len(self), step):
            yield start, self.view[start : start + step].read(columns, layers=self.layers)

    def in_any_order(self, columns: Sequence[str]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """As `batches`, with `question_id`, in an order in which each stored chunk is read once.

        For what does not depend on order: before compaction `batches` reads a segment again for
        each batch that has a row of it.
        """
        return self.view.iter_batches(
            columns, layers=self.layers, batch_rows=_ANY_ORDER_ROWS, shuffle_seed=0
        )

    def _described(self, column: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
        layout = self.view.layout
        return layout.number_columns().get(column, ((), ()))


def _once(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(dict.fromkeys(values))


def _unknown_columns(store: View, columns: Sequence[str]) -> Iterator[str]:
    if unknown := [name for name in columns if name not in store.columns]:
        yield f"no column {_listed(unknown)}; there are {', '.join(store.columns)}"


def _unknown_layers(store: View, layers: Sequence[int]) -> Iterator[str]:
    if unknown := [layer for layer in layers if layer not in store.layers]:
        there = ", ".join(map(str, store.layers))
        yield f"no layer {_listed(unknown)}; there are {there}"


def _unknown_ids(store: View, ids: Sequence[str]) -> Iterator[str]:
    unknown = [one for one in ids if one not in store]
    if unknown:
        yield f"no row for {len(unknown):,} of {len(ids):,} ids: {_listed(unknown)}"


def _listed(values: Sequence[object]) -> str:
    more = f" and {len(values) - _NAMED:,} more" if len(values) > _NAMED else ""
    return ", ".join(map(repr, values[:_NAMED])) + more
