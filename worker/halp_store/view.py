"""`View`: chosen rows of a store, in a chosen order; nothing is read until it is asked for.

Knows no commit protocol: it sees what is published. It does not change, whatever is committed,
compacted or pruned meanwhile, and may be used from several threads and be pickled. Refuses to read
past damage: a missing or torn chunk is an error, never a fill value.

Not guaranteed: which of both is shown of an id with two contents (`Store.contradictions`), once the
segment that the view read from is pruned. A row that was deleted after the view was taken is read
as long as its bytes are there; then it is DeletedQuestion, or the row that was stored in its place.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import numpy as np
import numpy.typing as npt

from halp_store.errors import DamagedSegment, DeletedQuestion, GoneSegment, UnknownQuestion
from halp_store.features import RowKey
from halp_store.generation import ORIGIN_COLUMN, SHARD_ROWS
from halp_store.groups import Groups
from halp_store.layout import COUNT_COLUMNS, GRID_COLUMN, TEXT_COLUMNS, Layout
from halp_store.names import is_generation
from halp_store.places import Part, Places, Rows
from halp_store.record import Record

if TYPE_CHECKING:
    import pandas
    import torch.utils.data
    import xarray

# An error message wants a hint, not a scan of a million ids.
_HINT_IDS: Final = 20_000
# For each thread; with fewer, the columns of one part are read by several threads.
_MIN_PARTS: Final = 4

_T = TypeVar("_T")
_Several = slice | list[str] | tuple[str, ...] | npt.NDArray[Any]


class View:
    """N rows, L layers, D hidden size. Made by `open_store` and by indexing, not by hand.

    view["q1"] is the Record of a question id, view[0] and view[-1] of a row; view[10:20] and
    view[["q1", "q7"]] are views.
    """

    def __init__(self, groups: Groups, ids: tuple[str, ...], places: Places) -> None:
        self._groups = groups
        self._show(ids, places)

    def _show(self, ids: tuple[str, ...], places: Places) -> None:
        self._ids, self._places = ids, places
        self._rows: dict[str, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}

    @property
    def layout(self) -> Layout:
        return self._groups.layout

    @property
    def path(self) -> str:
        """Of the store: a path or a URL."""
        return self._groups.storage.where

    @property
    def ids(self) -> tuple[str, ...]:
        """The question ids: the order of every column."""
        return self._ids

    @property
    def layers(self) -> tuple[int, ...]:
        return self.layout.layers

    @property
    def positions(self) -> tuple[str, ...]:
        return self.layout.positions

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns: texts, integers, scores, vectors."""
        return (*TEXT_COLUMNS, *self.layout.number_columns())

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __contains__(self, question_id: object) -> bool:
        return question_id in self._row_of

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}: {len(self)} rows, layers {self.layers}>"

    @overload
    def __getitem__(self, key: str | int | np.integer[Any]) -> Record: ...
    @overload
    def __getitem__(self, key: _Several) -> View: ...
    def __getitem__(self, key: str | int | np.integer[Any] | _Several) -> Record | View:
        """Raises UnknownQuestion (a KeyError), IndexError, TypeError or DamagedSegment."""
        if isinstance(key, slice):
            return View(self._groups, self._ids[key], self._places.of(key))
        if isinstance(key, str):
            (row,) = self._rows_of([key])
            return self._record(int(row))
        if isinstance(key, int | np.integer):
            if not -len(self) <= key < len(self):
                raise IndexError(f"row {key} of {len(self)}")
            return self._record(int(key) % len(self))
        rows = self._rows_of(list(key))
        ids = tuple(self._ids[row] for row in rows)
        return View(self._groups, ids, self._places.of(rows))

    def array(
        self, name: str, layer: int | None = None
    ) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
        """(ids, matrix) of a vector column: (N, D), or (N, L, D) of a position without `layer`.

        layer: a decoder layer index, one of `layers`; only its chunks are read.
        Raises ValueError listing what there is, or DamagedSegment.
        """
        columns = self.layout.vector_columns()
        self._check_name("vector", name, tuple(columns))
        if layer is None:
            return self._ids, self.read([name])[name]
        if "layer" not in columns[name][0]:
            raise ValueError(f"{name} has no layers; those of {self.positions} have")
        return self._ids, self.read([name], layers=[layer])[name][:, 0]

    def text(self, name: str) -> tuple[str, ...]:
        """A text column, N strings in order of `ids`. Raises ValueError or DamagedSegment."""
        self._check_name("text", name, TEXT_COLUMNS)
        return tuple(self.read([name])[name].tolist())

    def integers(self, name: str) -> npt.NDArray[np.int64]:
        """An integer column, (N, ...) in order of `ids`. Raises ValueError or DamagedSegment."""
        self._check_name("integer", name, tuple(self.layout.integer_columns()))
        return self.read([name])[name]

    def scores(self, name: str) -> npt.NDArray[np.float32]:
        """A score column, (N,) float32 in order of `ids`, NaN where there is none.

        Raises ValueError, also in a store without it, or DamagedSegment.
        """
        self._check_name("score", name, self.layout.scores)
        return self.read([name])[name]

    def read(
        self, columns: Sequence[str] | None = None, *, layers: Sequence[int] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Columns in memory, N rows in order of `ids`: strings (object), int64 or float32.

        columns: all without it. layers: decoder layer indices that the positions are wanted of, in
            this order; all without it.
        Raises ValueError listing what there is, or DamagedSegment.
        """
        return self._read(self._names(columns), None, self._layer_indices(layers))

    def origins(self) -> list[str]:
        """The segments that the rows were committed with, in order of `ids`."""
        return self._with_places(self._origins_at)

    def records(self) -> Iterator[Record]:
        """All rows, in order of `ids`, about 64 MiB of them read at once and the next ahead.

        Raises DamagedSegment, after the records that come before the damage by 64 MiB.
        """
        from halp_store.batches import iter_records

        return iter_records(self._now())

    def iter_batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        layers: Sequence[int] | None = None,
        batch_rows: int = 256,
        shuffle_seed: int | None = None,
    ) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """What `read` gives, B = `batch_rows` at a time, and `question_id`; the last may be fewer.

        In order of `ids` without a seed. About 64 MiB are read at once, and the next 64 MiB on a
        thread while the caller works: memory is twice that and a batch, which is the caller's own.
        Before compaction that reads a segment again for each window with a row of it.

        shuffle_seed: all rows, each once, in an order that follows from the seed, the columns and
            how the rows are stored; give each epoch its own. Each stored chunk is read once. It is
            no uniform permutation: rows stored together (a segment; 256 rows of a generation, which
            are neighbours by question id) come in one window, mixed only with the others in it.
            A store of fewer than 64 MiB is one window. Where more is needed, `read` and permute.
        Raises ValueError at once; DamagedSegment in place of the batches with damaged rows.
        """
        from halp_store.batches import iter_batches

        if batch_rows < 1:
            raise ValueError(f"batch_rows: expected at least 1, got {batch_rows}")
        names, picked = self._names(columns), self._layer_indices(layers)
        return iter_batches(self._now(), names, picked, batch_rows, shuffle_seed)

    def to_xarray(self, columns: Sequence[str] | None = None) -> xarray.Dataset:
        """A Dataset that reads when values are asked for, and only the rows and layers asked for.

        Dims question, layer, hidden, vision_hidden, thw; coordinates question_id, layer. Values are
        not kept: `.load()` keeps them. `.chunk(question=2048, layer=1)` makes dask arrays.
        Raises ValueError, ImportError without xarray; DamagedSegment when it is read.
        """
        from halp_store.lazy import to_xarray

        return to_xarray(self._now(), self._names(columns))

    def to_dataframe(self, columns: Sequence[str] | None = None) -> pandas.DataFrame:
        """Texts, integers and scores as a table, index `question_id`.

        `metadata` stays a JSON string; `image_grid_thw` is three columns: grid_t, grid_h, grid_w.
        columns: all of these without it but `content_hash`, which means something to the queue
            alone.
        Raises ValueError, ImportError without pandas, DamagedSegment.
        """
        try:
            import pandas
        except ImportError as error:
            hint = "to_dataframe needs pandas: pip install 'halp-stream[store]'"
            raise ImportError(hint) from error
        vectors = self.layout.vector_columns()
        if columns is None:
            columns = [name for name in self.columns if name not in {"content_hash", *vectors}]
        for name in columns:
            if name in vectors:
                raise ValueError(f"{name} holds vectors, not values: array() or to_xarray() has it")
        names = tuple(name for name in self._names(columns) if name != "question_id")
        view = self._now()
        data: dict[str, npt.NDArray[Any]] = {}
        for name, column in view._read(names, None, None).items():
            if name == GRID_COLUMN:
                data.update({f"grid_{one}": column[:, axis] for axis, one in enumerate("thw")})
            else:
                data[name] = column
        return pandas.DataFrame(data, pandas.Index(list(view.ids), name="question_id"))

    def as_torch_dataset(
        self,
        columns: Sequence[str],
        *,
        layers: Sequence[int] | None = None,
        in_memory: bool = True,
    ) -> torch.utils.data.Dataset[dict[str, Any]]:
        """Row -> {column: tensor (float32 or int64, on the CPU), or str}; for a DataLoader.

        in_memory: read the columns now, once. False reads the rows of each batch when they are
            asked for, for what does not fit into memory: shuffled, that decodes a chunk for each
            row, and `iter_batches(shuffle_seed=)` is the faster way.
        Raises ValueError, ImportError without torch, DamagedSegment.
        """
        from halp_store.training import as_torch_dataset

        names, picked = self._names(columns), self._layer_indices(layers)
        return as_torch_dataset(self._now(), names, picked, in_memory)

    def _now(self) -> View:
        """These rows, for good: a Store's change with `refresh()`."""
        return View(self._groups, self._ids, self._places)

    def _names(self, columns: Sequence[str] | None) -> tuple[str, ...]:
        names = self.columns if columns is None else tuple(dict.fromkeys(columns))
        for name in names:
            self._check_name("stored", name, self.columns)
        return names

    def _layer_indices(self, layers: Sequence[int] | None) -> tuple[int, ...] | None:
        """Along the layer axis."""
        if layers is None:
            return None
        for layer in layers:
            if layer not in self.layers:
                raise ValueError(f"layer {layer} is not stored; the layers are {self.layers}")
        return tuple(self.layers.index(layer) for layer in layers)

    @property
    def _row_of(self) -> dict[str, int]:
        if (rows := self._rows) is None:
            rows = self._rows = {question_id: row for row, question_id in enumerate(self._ids)}
        return rows

    def _rows_of(self, ids: Sequence[object]) -> Rows:
        known, rows = self._row_of, []
        for one in ids:
            if not isinstance(one, str):
                what = f"question ids expected, got {one!r}"
                raise TypeError(f"{what}; view[...] takes one, several, a row or a slice of rows")
            if one not in known and one in self._groups.index.deletions:
                raise DeletedQuestion(self.path, one)
            if one not in known:
                some = list(itertools.islice(self._ids, _HINT_IDS))
                near = difflib.get_close_matches(one, some, n=3)
                raise UnknownQuestion(self.path, one, len(self), near)
            rows.append(known[one])
        return np.array(rows, np.int64)

    def _check_name(self, kind: str, name: str, known: tuple[str, ...]) -> None:
        if name not in known:
            raise ValueError(f"no {kind} column {name!r}; there are {', '.join(known) or 'none'}")

    def _record(self, row: int) -> Record:
        return self._records(np.array([row], np.int64))[0]

    def _records(self, rows: Rows) -> list[Record]:
        """Their arrays are their own."""
        return self._with_places(lambda places: self._records_at(rows, places.of(rows)))

    def _records_at(self, rows: Rows, places: Places) -> list[Record]:
        columns = self._columns_at(self.columns, places, None)
        records = []
        for number, (row, origin) in enumerate(zip(rows, self._origins_at(places), strict=True)):
            values = {name: column[number] for name, column in columns.items()}
            self._check_key(self._ids[row], values, places.name(number))
            text = {name: str(values[name]) for name in TEXT_COLUMNS}
            counts = {name: int(values[name]) for name in COUNT_COLUMNS}
            fields: dict[str, Any] = {**text, **counts, "metadata": json.loads(text["metadata"])}
            record = Record(
                **fields,
                image_grid_thw=tuple(values[GRID_COLUMN].tolist()),
                positions={name: int(values[f"{name}_position"]) for name in self.positions},
                layers=self.layers,
                scores={name: float(values[name]) for name in self.layout.scores},
                arrays={name: values[name].copy() for name in self.layout.vector_columns()},
                segment=origin,
            )
            records.append(record)
        return records

    def _check_key(self, question_id: str, values: dict[str, Any], name: str) -> None:
        """zarr.json, which the index is made of, has no checksum; these columns have."""
        key = RowKey(str(values["question_id"]), str(values["content_hash"]))
        index = self._groups.index
        is_right = key.question_id == question_id and (
            index.state(key) == "stored"
            or question_id in index.contradictions
            or question_id in index.deletions  # by an older view
        )
        if not is_right:
            what = f"expected {question_id!r} as in zarr.json, got {key}"
            raise DamagedSegment(self.path, name, "question_id", what)

    def _origins_at(self, places: Places) -> list[str]:
        """The segments that rows were committed with."""
        origins = [places.name(row) for row in range(len(places.rows))]
        for some in places.blocks(SHARD_ROWS):
            name = origins[some[0]]
            if is_generation(name):
                segments = self._groups.generation(name).segments
                length = places.lengths[places.numbers[some[0]]]
                column = self._groups.open(name).read(ORIGIN_COLUMN, (length,), places.rows[some])
                for row, number in zip(some.tolist(), column.tolist(), strict=True):
                    origins[row] = segments[number].name
        return origins

    def _kind(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """dtype in memory, and the shape of one row."""
        numbers = self.layout.number_columns()
        if name not in numbers:
            return np.dtype(object), ()
        is_integer = name in self.layout.integer_columns()
        return np.dtype(np.int64 if is_integer else np.float32), numbers[name][1]

    def _read(
        self, names: Sequence[str], rows: Rows | None, layers: Sequence[int] | None
    ) -> dict[str, npt.NDArray[Any]]:
        """rows: of this view; all without it. layers: indices along the layer axis."""
        return self._with_places(
            lambda places: self._columns_at(
                names, places if rows is None else places.of(rows), layers
            )
        )

    def _with_places(self, read: Callable[[Places], _T]) -> _T:
        """Once more where the rows have been moved to a generation, and their segments pruned."""
        self._groups.enter()
        ids, places = self._ids, self._places
        while True:
            try:
                return read(places)
            except GoneSegment as gone:
                self._groups.close(gone.segment)
                found = self._groups.find(ids)
                if found.same(places):
                    self._groups.refresh()
                    found = self._groups.find(ids)
                if found.same(places):
                    raise
                places = found
                if ids is self._ids:
                    self._places = places

    def _columns_at(
        self, names: Sequence[str], places: Places, layers: Sequence[int] | None
    ) -> dict[str, npt.NDArray[Any]]:
        columns: dict[str, npt.NDArray[Any]] = {}
        picked: dict[str, Sequence[int] | None] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            dtype, shape = self._kind(name)
            picked[name] = layers if name in self.positions else None
            shapes[name] = shape
            tail = shape if picked[name] is None else (len(picked[name] or ()), *shape[1:])
            columns[name] = np.empty((len(places.rows), *tail), dtype)

        def fill(task: tuple[Part, Sequence[str], int | None]) -> None:
            part, some, number = task
            group = self._groups.open(part.name)
            for name in some:
                shape, wanted, out = (part.length, *shapes[name]), picked[name], columns[name]
                if number is not None:
                    wanted = [number if wanted is None else wanted[number]]
                    out = out[:, number : number + 1]
                group.fill(out, part.targets, name, shape, part.rows, wanted)

        parts = places.parts(SHARD_ROWS)
        concurrency = self._groups.storage.concurrency
        tasks: Iterator[tuple[Part, Sequence[str], int | None]]
        if len(parts) >= _MIN_PARTS * concurrency:
            tasks = ((part, names, None) for part in parts)
        else:
            # Few parts, such as one row: their columns and layers are read side by side.
            tasks = (
                (part, [name], number)
                for part in parts
                for name in names
                for number in (range(columns[name].shape[1]) if name in self.positions else [None])
            )
        with ThreadPoolExecutor(concurrency) as threads:
            for _ in threads.map(fill, tasks):
                pass
        return columns
