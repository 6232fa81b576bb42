"""Windows over a View: bounded in bytes, the next one read ahead on a thread.

Which rows come when is decided here, from places alone; `View` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from halp_store.generation import SHARD_ROWS

if TYPE_CHECKING:
    from halp_store.places import Places
    from halp_store.record import Record
    from halp_store.view import View

# Enough that opening files does not count, little enough that two of them fit anywhere.
WINDOW_BYTES: Final = 64 * 2**20
# An estimate, of a cell of a text column: an object and some words.
_TEXT_BYTES: Final = 256
# Rows that all but vectors are read of at once: vectors of these rows come in many windows.
_SHELF_ROWS: Final = 8 * SHARD_ROWS
# A multiple of the rows of every vector chunk that `compact` writes.
_BLOCK_ROWS: Final = 256

_W = TypeVar("_W")
_T = TypeVar("_T")
_Rows = npt.NDArray[np.int64]
_Columns = dict[str, npt.NDArray[Any]]


class _Window(NamedTuple):
    """shelf: rows that are read together but for vectors. inside: those of this window."""

    shelf: _Rows
    inside: _Rows


def iter_batches(
    view: View,
    names: Sequence[str],
    layers: Sequence[int] | None,
    batch_rows: int,
    shuffle_seed: int | None,
) -> Iterator[_Columns]:
    """See `View.iter_batches`. view: one that does not change. layers: along the layer axis."""
    names = [name for name in names if name != "question_id"]
    vectors = view.layout.vector_columns()
    large = [name for name in names if name in vectors]
    small = [name for name in names if name not in vectors]
    # Whole batches, at least one.
    window_rows = -(-_window_rows(view, names, layers) // batch_rows) * batch_rows
    shelf_rows = max(_SHELF_ROWS, window_rows) if small else len(view)
    kept: list[tuple[_Rows, _Columns]] = []

    def read(window: _Window) -> _Columns:
        shelf, inside = window
        rows = shelf[inside]
        columns = {"question_id": np.array([view.ids[row] for row in rows], dtype=object)}
        read = view._read(large, rows, layers)
        if small:
            if not kept or kept[0][0] is not shelf:
                kept[:] = [(shelf, view._read(small, shelf, None))]
            read.update({name: column[inside] for name, column in kept[0][1].items()})
        return {**columns, **{name: read[name] for name in names}}

    if shuffle_seed is None:
        windows = _in_order(len(view), shelf_rows, window_rows)
    else:
        windows = _shuffled(view._places, shelf_rows, window_rows, shuffle_seed)
    return _cut(_ahead(read, windows), batch_rows)


def iter_records(view: View) -> Iterator[Record]:
    """See `View.records`. view: one that does not change."""
    rows = _window_rows(view, view.columns, None)
    windows = (one.inside for one in _in_order(len(view), len(view), rows))
    for records in _ahead(view._records, windows):
        # Let go of each as it goes out: the next window is being read.
        records.reverse()
        while records:
            yield records.pop()


def _window_rows(view: View, names: Sequence[str], layers: Sequence[int] | None) -> int:
    row_bytes = _TEXT_BYTES
    for name in names:
        dtype, shape = view._kind(name)
        if layers is not None and name in view.positions:
            shape = (len(layers), *shape[1:])
        row_bytes += _TEXT_BYTES if dtype.kind == "O" else dtype.itemsize * math.prod(shape)
    return max(1, WINDOW_BYTES // row_bytes)


def _in_order(count: int, shelf_rows: int, window_rows: int) -> Iterator[_Window]:
    """shelf_rows, window_rows: at most."""
    for start in range(0, count, max(1, shelf_rows)):
        shelf = np.arange(start, min(count, start + shelf_rows))
        for first in range(0, len(shelf), window_rows):
            yield _Window(shelf, np.arange(first, min(len(shelf), first + window_rows)))


def _shuffled(places: Places, shelf_rows: int, window_rows: int, seed: int) -> Iterator[_Window]:
    """Each stored chunk within one window, of vectors, or one shelf, of all others.

    Segments and shards are dealt to shelves, chunks of a shelf to windows, rows of a window mixed.
    """
    draw = np.random.default_rng(seed)
    for parts in _packed(_mixed(places.blocks(SHARD_ROWS), draw), shelf_rows):
        shelf = np.concatenate(parts)
        blocks = _mixed(places.of(shelf).blocks(_BLOCK_ROWS), draw)
        for some in _packed(blocks, window_rows):
            yield _Window(shelf, draw.permutation(np.concatenate(some)))


def _mixed(parts: Sequence[_Rows], draw: np.random.Generator) -> list[_Rows]:
    return [parts[number] for number in draw.permutation(len(parts))]


def _packed(parts: Iterable[_Rows], most_rows: int) -> Iterator[list[_Rows]]:
    """At least one part in each, and at most so many rows if there are more."""
    packed: list[_Rows] = []
    for part in parts:
        if packed and sum(map(len, packed)) + len(part) > most_rows:
            yield packed
            packed = []
        packed.append(part)
    if packed:
        yield packed


def _ahead(read: Callable[[_W], _T], windows: Iterable[_W]) -> Iterator[_T]:
    """Each window, read on a thread while the caller uses the one before. Closing waits for it."""
    with ThreadPoolExecutor(1, thread_name_prefix="halp-store-ahead") as thread:
        waiting: Future[_T] | None = None
        for window in windows:
            following = thread.submit(read, window)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _cut(windows: Iterator[_Columns], batch_rows: int) -> Iterator[_Columns]:
    """Into batches that are copies, or a caller who keeps one would keep its window."""
    rest: _Columns = {}
    for window in windows:
        count, start = len(window["question_id"]), 0
        if rest:
            start = min(batch_rows - len(rest["question_id"]), count)
            rest = {
                name: np.concatenate([column, window[name][:start]])
                for name, column in rest.items()
            }
            if len(rest["question_id"]) == batch_rows:
                yield rest
                rest = {}
        while count - start >= batch_rows:
            yield _rows_of(window, start, start + batch_rows)
            start += batch_rows
        if start < count:
            rest = _rows_of(window, start, count)
        del window
    if rest:
        yield rest


def _rows_of(columns: _Columns, start: int, stop: int) -> _Columns:
    return {name: column[start:stop].copy() for name, column in columns.items()}
