"""`Store`: the committed rows, by id, by column, as one xarray Dataset.

Knows no commit protocol: it sees what is published. A view does not change until `refresh()`, and
is in order of question id whatever the order of writing. Refuses to read past damage: a missing
or torn chunk is an error, never a fill value.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from halp_store.address import storage_at
from halp_store.errors import DamagedSegment, UnknownQuestion
from halp_store.features import RowKey
from halp_store.index import SegmentIndex
from halp_store.layout import COUNT_COLUMNS, GRID_COLUMN, TEXT_COLUMNS, Layout
from halp_store.published import PublishedSegment
from halp_store.record import Record
from halp_store.root import read_root
from halp_store.storage import Storage

if TYPE_CHECKING:
    import xarray

# Hides the latency of many small files, also on few cores.
_READING_THREADS: Final = 4
# An error message wants a hint, not a scan of a million ids.
_HINT_IDS: Final = 20_000


class _Part(NamedTuple):
    """Rows of one segment and where they go in a column of the view."""

    segment: str
    length: int
    rows: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]


def open_store(path_or_url: str | os.PathLike[str], *, storage: Storage | None = None) -> Store:
    """The store at `path_or_url`, for reading, as of now.

    storage: instead of what `path_or_url` names. Raises NotAStore or LayoutVersionError.
    """
    return Store(storage or storage_at(path_or_url))


class Store:
    """A view of a store: N rows in order of question id, L layers, D hidden size."""

    def __init__(self, storage: Storage) -> None:
        self.layout: Layout = read_root(storage)
        self._storage = storage
        self._index = SegmentIndex(storage)
        self.refresh()

    def refresh(self) -> None:
        """Show what was committed since. Raises DamagedSegment."""
        self._index.refresh()
        self._ids = tuple(sorted(self._index))
        self._parts: list[_Part] | None = None

    @property
    def path(self) -> str:
        return self._storage.where

    @property
    def ids(self) -> tuple[str, ...]:
        """The question ids, sorted; the order of every column."""
        return self._ids

    @property
    def layers(self) -> tuple[int, ...]:
        return self.layout.layers

    @property
    def positions(self) -> tuple[str, ...]:
        return self.layout.positions

    @property
    def segments(self) -> list[str]:
        """Names of the published segments."""
        return sorted(self._index.segments)

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Ids that two writers stored with different content; one of both is shown."""
        return self._index.contradictions

    def bytes_on_disk(self) -> int:
        return self._storage.size()

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __contains__(self, question_id: object) -> bool:
        return question_id in self._index

    def __repr__(self) -> str:
        return f"<Store {self.path}: {len(self)} rows, layers {self.layers}>"

    def __getitem__(self, question_id: str) -> Record:
        """Raises UnknownQuestion (a KeyError) or DamagedSegment."""
        place = self._index.find(question_id)
        if place is None:
            some = list(itertools.islice(self._ids, _HINT_IDS))
            near = difflib.get_close_matches(str(question_id), some, n=3)
            raise UnknownQuestion(self.path, question_id, len(self), near)
        segment = PublishedSegment(self._storage, place.segment)
        rows = self._index.rows_in(place.number)

        def value(name: str) -> Any:
            return segment.read(name, (rows, *self._kind(name)[1]))[place.row]

        text = {name: str(value(name)) for name in TEXT_COLUMNS}
        key = RowKey(text["question_id"], text["content_hash"])
        if key.question_id != question_id or self._index.state(key) != "stored":
            what = f"row {place.row}: expected {question_id!r} as in zarr.json, got {key}"
            raise DamagedSegment(self.path, place.segment, "question_id", what)
        counts = {name: int(value(name)) for name in COUNT_COLUMNS}
        columns: dict[str, Any] = {**text, **counts, "metadata": json.loads(text["metadata"])}
        return Record(
            **columns,
            image_grid_thw=tuple(value(GRID_COLUMN).tolist()),
            positions={name: int(value(f"{name}_position")) for name in self.positions},
            layers=self.layers,
            arrays={name: value(name).copy() for name in self.layout.vector_columns()},
            segment=place.segment,
        )

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
            return self._ids, self._columns([name])[0]
        if "layer" not in columns[name][0]:
            raise ValueError(f"{name} has no layers; those of {self.positions} have")
        if layer not in self.layers:
            raise ValueError(f"layer {layer} is not stored; the layers are {self.layers}")
        return self._ids, self._columns([name], self.layers.index(layer))[0]

    def text(self, name: str) -> tuple[str, ...]:
        """A text column, N strings in order of `ids`. Raises ValueError or DamagedSegment."""
        self._check_name("text", name, TEXT_COLUMNS)
        return tuple(self._columns([name])[0].tolist())

    def integers(self, name: str) -> npt.NDArray[np.int64]:
        """An integer column, (N, ...) in order of `ids`. Raises ValueError or DamagedSegment."""
        self._check_name("integer", name, tuple(self.layout.integer_columns()))
        return self._columns([name])[0]

    def to_xarray(self, variables: Sequence[str] | None = None) -> xarray.Dataset:
        """One Dataset, in memory: dims question, layer, hidden; coordinates question_id, layer.

        variables: the columns wanted; all without it. Raises ValueError for others, ImportError
        where xarray is not installed, DamagedSegment.
        """
        try:
            import xarray
        except ImportError as error:
            hint = "to_xarray needs xarray: pip install 'halp-stream[store]'"
            raise ImportError(hint) from error
        vectors, integers = self.layout.vector_columns(), self.layout.integer_columns()
        dims = {name: found for name, (found, _) in {**integers, **vectors}.items()}
        known = (*TEXT_COLUMNS, *dims)
        names = known if variables is None else tuple(dict.fromkeys(variables))
        for name in names:
            self._check_name("stored", name, known)
        wanted = tuple(name for name in names if name != "question_id")
        data = {
            name: (("question", *dims.get(name, ())), column)
            for name, column in zip(wanted, self._columns(wanted), strict=True)
        }
        coordinates = {
            "question_id": (("question",), np.array(self._ids, dtype=object)),
            "layer": (("layer",), np.array(self.layers, dtype=np.int64)),
        }
        attributes = {
            "source_dtype": self.layout.source_dtype,
            "fingerprint": json.dumps(self.layout.fingerprint, ensure_ascii=False),
        }
        return xarray.Dataset(data, coordinates, attributes)

    def _check_name(self, kind: str, name: str, known: tuple[str, ...]) -> None:
        if name not in known:
            raise ValueError(f"no {kind} column {name!r}; there are {', '.join(known)}")

    def _kind(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """dtype in memory, and the shape of one row."""
        vectors, integers = self.layout.vector_columns(), self.layout.integer_columns()
        if name in vectors:
            return np.dtype(np.float32), vectors[name][1]
        if name in integers:
            return np.dtype(np.int64), integers[name][1]
        return np.dtype(object), ()

    def _columns(self, names: Sequence[str], layer: int | None = None) -> list[npt.NDArray[Any]]:
        """(N, ...) each. The layer axis falls away if `layer` (an index along it) is given."""
        kinds = [self._kind(name) for name in names]
        start = 0 if layer is None else 1
        columns = [np.empty((len(self), *shape[start:]), dtype) for dtype, shape in kinds]

        def fill(part: _Part) -> None:
            segment = PublishedSegment(self._storage, part.segment)
            for name, (_, shape), column in zip(names, kinds, columns, strict=True):
                values = segment.read(name, (part.length, *shape), layer)
                column[part.targets] = values[part.rows]

        with ThreadPoolExecutor(_READING_THREADS) as threads:
            for _ in threads.map(fill, self._view_parts()):
                pass
        return columns

    def _view_parts(self) -> list[_Part]:
        if self._parts is None:
            self._parts = self._split()
        return self._parts

    def _split(self) -> list[_Part]:
        """The rows of the view, segment by segment."""
        places = [place for one in self._ids if (place := self._index.find(one))]
        numbers = np.array([place.number for place in places], np.int64)
        rows = np.array([place.row for place in places], np.int64)
        order = np.argsort(numbers, kind="stable")
        borders = np.flatnonzero(np.diff(numbers[order])) + 1
        names = self._index.segments
        return [
            _Part(names[number], self._index.rows_in(number), rows[targets], targets)
            for targets in np.split(order, borders)
            if len(targets)
            for number in (int(numbers[targets[0]]),)
        ]
