"""`GenerationWriter`: brings the columns of a generation into order and writes their keys.

Large columns go over a scratch disk, a shard at a time into memory. Writes only keys that are not
there: what an earlier run has written is as this one would write it, because the plan is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from halp_store.arrays import add_array
from halp_store.errors import NoRoom
from halp_store.generation import (
    CHUNK_ROWS,
    ORIGIN_COLUMN,
    SHARD_ROWS,
    TEXT_ROWS,
    attributes_of,
)
from halp_store.layout import TEXT_COLUMNS
from halp_store.names import is_generation
from halp_store.places import Part
from halp_store.published import PublishedGroup
from halp_store.root import Root, confirm_root
from halp_store.row_order import RowOrder
from halp_store.scratch import ScratchColumn, free_bytes
from halp_store.segment import group_document
from halp_store.storage import GENERATIONS, METADATA, Storage

# Shards on their way to the disk while the next one is encoded; each is held in memory.
_WRITES: Final = 2
# Small keys that are written at once: syncs that run together share a commit of the disk's journal.
_UPLOADS: Final = 8
# Texts and integers that are gathered in one pass over the segments: some 300 MB of them.
_SMALL_CELLS: Final = 2_000_000


class GenerationWriter:
    """Writes the keys of one generation that are not there yet."""

    def __init__(
        self,
        storage: Storage,
        root: Root,
        order: RowOrder,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._storage, self._root, self._order = storage, root, order
        self._layout = layout = root.layout
        self._prefix = order.generation.name
        self._rows = len(order.ids)
        self._there = set(storage.list_keys(self._prefix))
        self._values: dict[str, Buffer] = {}
        self._group = zarr.create_group(MemoryStore(self._values), zarr_format=3)
        self._documents: dict[str, bytes] = {}
        self._opened: dict[str, PublishedGroup] = {}
        self._opening = Lock()
        self._progress, self._done = progress, 0
        vectors = layout.vector_columns().values()
        self._total = sum(2 * 4 * self._rows * math.prod(shape) for _, shape in vectors)

    def write(self, scratch: Path) -> bool:
        """All of it; False if what an earlier version began has another form."""
        storage = self._storage
        self._report(0)
        with ThreadPoolExecutor(max(_UPLOADS, storage.concurrency)) as uploads:
            for name, (dims, values) in self._small_columns():
                confirm_root(storage, self._root)
                if not self._small(uploads, name, dims, values):
                    return False
            for name, (dims, shape) in self._layout.vector_columns().items():
                confirm_root(storage, self._root)
                if not self._large(uploads, scratch, name, dims, shape):
                    return False
        generation = self._order.generation
        folders = [self._prefix, *(f"{self._prefix}/{name}" for name in self._documents)]
        storage.sync([*folders, GENERATIONS, ""])
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        attributes = attributes_of(generation, created, self._root.stamp)
        staged = {f"{name}/{METADATA}": value for name, value in self._documents.items()}
        confirm_root(storage, self._root)
        storage.publish(f"{self._prefix}/{METADATA}", group_document(attributes, staged))
        return True

    def _small_columns(self) -> Iterator[tuple[str, tuple[tuple[str, ...], npt.NDArray[Any]]]]:
        """name -> (dims, values), of texts, integers, scores and the coordinate `layer`."""
        order = self._order
        yield "layer", (("layer",), np.asarray(self._layout.layers, np.int64))
        yield ORIGIN_COLUMN, (("question",), order.origins)
        yield "question_id", (("question",), np.array(order.ids, dtype=object))
        integers, scores = self._layout.integer_columns(), self._layout.score_columns()
        names = [*(name for name in TEXT_COLUMNS if name != "question_id"), *integers, *scores]
        dtypes = {**dict.fromkeys(integers, np.int64), **dict.fromkeys(scores, np.float32)}
        together = max(1, _SMALL_CELLS // self._rows)
        for start in range(0, len(names), together):
            some = {name: integers.get(name, ((), ())) for name in names[start : start + together]}
            columns = {
                name: np.empty((self._rows, *shape), dtypes.get(name, object))
                for name, (_, shape) in some.items()
            }

            def take(source: Part, columns: dict[str, npt.NDArray[Any]] = columns) -> None:
                group = self._open(source.name)
                for name, column in columns.items():
                    shape = (source.length, *column.shape[1:])
                    group.fill(column, source.targets, name, shape, source.rows)

            with ThreadPoolExecutor(self._storage.concurrency) as threads:
                for _ in threads.map(take, order.sources):
                    pass
            for name, (dims, _) in some.items():
                yield name, (("question", *dims), columns[name])

    def _small(
        self,
        uploads: ThreadPoolExecutor,
        name: str,
        dims: tuple[str, ...],
        values: npt.NDArray[Any],
    ) -> bool:
        chunks = (min(TEXT_ROWS, len(values)), *values.shape[1:])
        array = add_array(self._group, name, dims, values.shape, values.dtype, chunks)
        if not self._same_form(name):
            return False
        array[...] = values
        _settle([uploads.submit(self._publish, key) for key in self._keys_of(name)])
        return True

    def _gathered(
        self, name: str, shape: tuple[int, ...], sources: Sequence[Part], column: ScratchColumn
    ) -> Iterator[Part]:
        """Brings the rows of the sources into `column`; yields each that is done."""

        def take(source: Part) -> Part:
            group = self._open(source.name)
            column.put(source.targets, group.read(name, (source.length, *shape), source.rows))
            return source

        with ThreadPoolExecutor(self._storage.concurrency) as threads:
            yield from threads.map(take, sources)

    def _open(self, name: str) -> PublishedGroup:
        """A generation once, since it has many parts; segments are too many to keep."""
        if not is_generation(name):
            return PublishedGroup(self._storage, name, self._root)
        with self._opening:
            if name not in self._opened:
                self._opened[name] = PublishedGroup(self._storage, name, self._root)
        return self._opened[name]

    def _large(
        self,
        uploads: ThreadPoolExecutor,
        scratch: Path,
        name: str,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
    ) -> bool:
        chunk_rows = min(CHUNK_ROWS, self._rows)
        shard_rows = min(SHARD_ROWS, -(-self._rows // chunk_rows) * chunk_rows)
        array = add_array(
            self._group,
            name,
            ("question", *dims),
            (self._rows, *shape),
            np.dtype(np.float32),
            (
                chunk_rows,
                *(1 if dim == "layer" else size for dim, size in zip(dims, shape, strict=True)),
            ),
            (shard_rows, *shape),
        )
        if not self._same_form(name):
            return False
        zeros = ".".join("0" * len(shape))
        missing = [
            start
            for start in range(0, self._rows, shard_rows)
            if f"{self._prefix}/{name}/c.{start // shard_rows}.{zeros}" not in self._there
        ]
        width = math.prod(shape)
        if not missing:
            self._report(2 * 4 * self._rows * width)
            return True
        self._check_room(scratch, width)
        with ScratchColumn(scratch, self._rows, width) as column:
            shards = {start // shard_rows for start in missing}
            parts = (one.within(shards, shard_rows) for one in self._order.sources)
            wanted = [one for one in parts if len(one.rows)]
            for source in self._gathered(name, shape, wanted, column):
                self._report(4 * len(source.rows) * width)
            waiting: list[Future[None]] = []
            for start in range(0, self._rows, shard_rows):
                stop = min(start + shard_rows, self._rows)
                if start in missing:
                    array[start:stop] = column.take(start, stop).reshape(stop - start, *shape)
                    (key,) = self._keys_of(name)
                    waiting.append(uploads.submit(self._write_key, key, self._take(key)))
                    _settle(waiting[: -_WRITES + 1])
                    del waiting[: -_WRITES + 1]
                self._report(4 * (stop - start) * width)
            _settle(waiting)
        return True

    def _check_room(self, scratch: Path, width: int) -> None:
        halves = 1 if self._layout.source_dtype == "bfloat16" else 2
        needed, free = 2 * halves * self._rows * width, free_bytes(scratch)
        if needed > free:
            raise NoRoom(self._storage.where, scratch, needed, free)

    def _same_form(self, name: str) -> bool:
        """Publish the array's own zarr.json; False if there is another one."""
        key = f"{name}/{METADATA}"
        document = self._values[key].to_bytes()
        self._documents[name] = document
        path = f"{self._prefix}/{key}"
        return self._storage.publish(path, document) or self._storage.read(path) == document

    def _keys_of(self, name: str) -> list[str]:
        """Of the chunks that were encoded and are still in memory."""
        return [
            key
            for key in self._values
            if key.startswith(f"{name}/") and not key.endswith(f"/{METADATA}")
        ]

    def _take(self, key: str) -> bytes:
        return self._values.pop(key).to_bytes()

    def _publish(self, key: str) -> None:
        self._write_key(key, self._take(key))

    def _write_key(self, key: str, value: bytes) -> None:
        path = f"{self._prefix}/{key}"
        if path not in self._there:
            self._storage.publish(path, value)

    def _report(self, size: int) -> None:
        self._done += size
        if self._progress:
            self._progress(self._done, self._total)


def _settle(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result()
