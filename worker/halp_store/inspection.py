"""A published segment or generation, read whole and compared with what the store says.

Holds one array of a segment at a time, of a generation a few chunks for each thread. Goes on after
damage: what cannot be read is a problem, and so is all that is wrong with the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from halp_store.deletions import Deletions
from halp_store.errors import DamagedSegment, ForeignSegment, LinkInStore, StoreUnavailable
from halp_store.features import RowKey
from halp_store.generation import (
    CHUNK_ROWS,
    ORIGIN_COLUMN,
    SHARD_ROWS,
    Generation,
    attributes_of,
    parse_generation,
)
from halp_store.index import SegmentIndex
from halp_store.layout import GRID_COLUMN, TEXT_COLUMNS
from halp_store.names import group_prefix
from halp_store.published import PublishedGroup
from halp_store.root import Root
from halp_store.segment import Header, group_document, parse_header, parse_json
from halp_store.storage import METADATA, SEGMENTS, Storage
from halp_store.verification import Problem, ProblemKind

# Integer column -> its lowest value, and how far the highest is from `prompt_tokens` of its row.
_BOUNDS: Final[Mapping[str, tuple[int, int | None]]] = {
    "prompt_tokens": (1, None),
    "image_tokens": (1, 0),
    "answer_tokens": (0, None),
    GRID_COLUMN: (1, None),
}
# All others are indices into the prompt.
_POSITION: Final = (0, -1)
# Of imported rows, in the columns that nobody knows.
_UNKNOWN: Final = -1

# numpy's, for what zarr's versions make of a text column.
_TEXT_KINDS: Final = "OTU"


def inspect_segment(storage: Storage, root: Root, name: str, header: Header) -> Iterator[Problem]:
    """All that is wrong with the published segment `name`, whose zarr.json says `header`."""
    try:
        segment = PublishedGroup(storage, name, None)
    except (DamagedSegment, LinkInStore, OSError) as error:
        yield unreadable(storage.where, name, None, error)
        return
    inspection = _SegmentInspection(storage, root, name, segment, header)
    layout = root.layout
    attributes = {**root.stamp, "coordinates": "question_id"}
    yield from inspection.form(attributes)
    for column in inspection.columns:
        yield from inspection.own_metadata(column)
    whole = range(len(header.question_ids))
    for column in TEXT_COLUMNS:
        yield from inspection.texts(column, whole)
    yield from inspection.layers()
    yield from inspection.integers(whole)
    for column in layout.scores:
        yield from inspection.scores(column, whole)
    for column in layout.vector_columns():
        yield from inspection.vectors(column, whole)


def inspect_generation(
    storage: Storage,
    root: Root,
    generation: Generation,
    progress: Callable[[int, int], None] | None = None,
    deletions: Deletions | None = None,
) -> Iterator[Problem]:
    """All that is wrong with a published generation, and each row that it should have taken over
    from a segment that is still there and has not.

    deletions: read after the generation: rows that may be left out.
    progress: is told (parts read, parts there).
    Memory: a few chunks for each of the storage's threads, and about 150 bytes a row.
    """
    try:
        root.check_stamp(storage.where, generation.name, generation.stamp)
        group = PublishedGroup(storage, generation.name, None)
        # Before anything is counted along its rows: they are only a number in a zarr.json.
        next(group.stored_keys("question_id", (generation.rows,)), None)
    except (DamagedSegment, LinkInStore, OSError) as error:
        yield unreadable(storage.where, generation.name, None, error)
        return
    inspection = _GenerationInspection(storage, root, group, generation)
    layout = root.layout
    parts = [
        range(start, min(start + SHARD_ROWS, generation.rows))
        for start in range(0, generation.rows, SHARD_ROWS)
    ]
    checks: list[Callable[[], Iterator[Problem]]] = [
        partial(inspection.form, attributes_of(generation, inspection.created, root.stamp)),
        *(partial(inspection.own_metadata, column) for column in inspection.columns),
        inspection.layers,
        *(partial(inspection.texts, column, part) for column in TEXT_COLUMNS for part in parts),
        *(partial(inspection.integers, part) for part in parts),
        *(partial(inspection.scores, column, part) for column in layout.scores for part in parts),
        *(
            partial(inspection.vectors, column, part)
            for column in layout.vector_columns()
            for part in parts
        ),
        partial(inspection.left_out, deletions or Deletions()),
    ]
    seen: set[str] = set()  # what is wrong with a whole column is found in each of its parts
    with ThreadPoolExecutor(storage.concurrency) as threads:
        results = threads.map(lambda check: list(check()), checks)
        for done, problems in enumerate(results, 1):
            new = [one for one in problems if one.sentence not in seen]
            seen.update(one.sentence for one in new)
            yield from new
            if progress:
                progress(done, len(checks))


def stray_keys(storage: Storage, root: Root, generation: Generation) -> list[str]:
    """What lies in a generation and is no part of it. Raises DamagedSegment."""
    group = PublishedGroup(storage, generation.name, None)
    inspection = _GenerationInspection(storage, root, group, generation)
    ours = {f"{generation.name}/{METADATA}"}
    for column, shape in inspection.columns.items():
        ours.add(f"{generation.name}/{column}/{METADATA}")
        ours.update(f"{generation.name}/{key}" for key in group.stored_keys(column, shape))
    return sorted(set(storage.list_keys(generation.name)) - ours)


def is_given_up(storage: Storage, generation: str) -> bool:
    """Whether a tombstone is in place of its zarr.json. Something else, damaged or not, is none."""
    document = storage.read(f"{generation}/{METADATA}")
    try:
        return bool(document) and parse_generation(document or b"") is None
    except ValueError:
        return False


def damage(error: DamagedSegment) -> Problem:
    kind = ProblemKind.FOREIGN if isinstance(error, ForeignSegment) else ProblemKind.DAMAGED
    return Problem(kind, str(error), None, error.segment, error.array)


def unreadable(where: str, name: str, array: str | None, error: Exception) -> Problem:
    """Of what a segment or generation, or the disk below it, answers to a read."""
    if isinstance(error, DamagedSegment):
        return damage(error)
    if isinstance(error, LinkInStore):
        return Problem(ProblemKind.LINK, str(error))
    if isinstance(error, StoreUnavailable):
        # It may be whole: nothing of it is to be deleted for that.
        return Problem(ProblemKind.UNREADABLE, str(error), None, name, array)
    what = f"cannot be read ({error})" if isinstance(error, OSError) else str(error)
    return damage(DamagedSegment(where, name, array, what))


class _Unreadable(Exception):  # noqa: N818 - carries a problem to the loop over the arrays
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class _Inspection:
    """Of a group of N = `count` rows. May be used from several threads."""

    block_rows: int
    """Rows of a vector column that are held at once."""

    def __init__(
        self, storage: Storage, root: Root, name: str, group: PublishedGroup, count: int
    ) -> None:
        self._storage, self._root, self._name = storage, root, name
        self._layout = root.layout
        self._group, self._count = group, count

    @property
    def columns(self) -> dict[str, tuple[int, ...]]:
        """All arrays that there must be -> their shapes."""
        return {
            "layer": (len(self._layout.layers),),
            **dict.fromkeys(TEXT_COLUMNS, (self._count,)),
            **{
                column: (self._count, *shape)
                for column, (_, shape) in self._layout.number_columns().items()
            },
        }

    def question_id(self, row: int) -> str | None:
        """None where it cannot be read."""
        raise NotImplementedError

    def identity(self, column: str, rows: range, values: Sequence[str]) -> Iterator[Problem]:
        """What is wrong with these rows of a text column, as names of rows and contents."""
        raise NotImplementedError

    def form(self, attributes: Mapping[str, Any]) -> Iterator[Problem]:
        """Of the group's zarr.json, which other Zarr readers take at its word.

        attributes: that it must have; it may have more.
        """
        try:
            document = parse_json(self._read_document())
            expected = parse_json(group_document(attributes, {}))
            got = {
                **document,
                "attributes": {
                    name: value
                    for name, value in document["attributes"].items()
                    if name in attributes
                },
                "consolidated_metadata": {**document["consolidated_metadata"], "metadata": {}},
            }
            arrays = set(document["consolidated_metadata"]["metadata"])
        except (ValueError, KeyError, TypeError, AttributeError, LinkInStore, OSError) as error:
            yield unreadable(self._storage.where, self._name, None, error)
            return
        if got != expected:
            named = [name for name in {**expected, **got} if got.get(name) != expected.get(name)]
            yield self._damage(None, f"is not as it was written: {', '.join(sorted(named))}")
        if arrays != set(self.columns):
            differ = sorted(map(str, arrays ^ set(self.columns)))
            yield self._damage(None, f"has other arrays than expected: {', '.join(differ)}")

    def own_metadata(self, column: str) -> Iterator[Problem]:
        """Of an array's own zarr.json."""
        try:
            self._group.check_own_metadata(column)
        except (DamagedSegment, LinkInStore, OSError) as error:
            yield unreadable(self._storage.where, self._name, column, error)

    def texts(self, column: str, rows: range) -> Iterator[Problem]:
        try:
            values = self._read(column, rows, None).tolist()
        except _Unreadable as error:
            yield error.problem
            return
        yield from self.identity(column, rows, values)
        if column == "metadata":
            for row, value in zip(rows, values, strict=True):
                if not _is_object(value):
                    what = f"expected a JSON object, got {value!r:.80}"
                    yield self._problem(ProblemKind.METADATA, column, row, what)

    def layers(self) -> Iterator[Problem]:
        expected = list(self._layout.layers)
        try:
            layers = self._read("layer", range(len(expected)), np.int64).tolist()
        except _Unreadable as error:
            yield error.problem
            return
        if layers != expected:
            what = f"expected {expected} as in the store's zarr.json, got {layers}"
            yield self._problem(ProblemKind.LAYERS, "layer", None, what)

    def integers(self, rows: range) -> Iterator[Problem]:
        read: dict[str, npt.NDArray[np.int64]] = {}
        for column in self._layout.integer_columns():
            try:
                read[column] = self._read(column, rows, np.int64)
            except _Unreadable as error:
                yield error.problem
        prompts = read.get("prompt_tokens")
        for column, values in read.items():
            lowest, distance = _BOUNDS.get(column, _POSITION)
            lengths = None if distance is None else prompts
            for place, row in enumerate(rows):
                if self._is_unknown(column, values[place]):
                    continue
                highest: float = math.inf
                if lengths is not None and not self._is_unknown("prompt_tokens", lengths[place]):
                    highest = int(lengths[place]) + (distance or 0)
                if values[place].min() < lowest or values[place].max() > highest:
                    is_open = highest == math.inf
                    bounds = f"{lowest} or more" if is_open else f"{lowest} to {highest}"
                    what = f"expected {bounds}, got {values[place].tolist()}"
                    yield self._problem(ProblemKind.NUMBERS, column, row, what)

    def _is_unknown(self, column: str, value: npt.NDArray[np.int64]) -> bool:
        return column in self._layout.unknown and bool((value == _UNKNOWN).all())

    def scores(self, column: str, rows: range) -> Iterator[Problem]:
        """NaN stands for what there is not."""
        try:
            values = self._read(column, rows, np.float32)
        except _Unreadable as error:
            yield error.problem
            return
        for place in np.flatnonzero(np.isinf(values)).tolist():
            what = f"expected a number or NaN, got {values[place]}"
            yield self._problem(ProblemKind.NOT_FINITE, column, rows[place], what)

    def vectors(self, column: str, rows: range) -> Iterator[Problem]:
        """Up to the first chunk of these rows that cannot be read."""
        for start in range(rows.start, rows.stop, self.block_rows):
            block = range(start, min(start + self.block_rows, rows.stop))
            try:
                values = self._read(column, block, np.float32)
            except _Unreadable as error:
                yield error.problem
                return
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            for place in np.flatnonzero(~finite).tolist():
                what = "expected finite values, got a NaN or an infinity"
                yield self._problem(ProblemKind.NOT_FINITE, column, block[place], what)

    def _read_document(self) -> bytes:
        return self._storage.read(f"{group_prefix(self._name)}/{METADATA}") or b""

    def _read(self, column: str, rows: range, dtype: type | None) -> npt.NDArray[Any]:
        """dtype: None for texts."""
        try:
            values = self._group.read(column, self.columns[column], np.asarray(rows, np.int64))
            if values.dtype.kind not in _TEXT_KINDS if dtype is None else values.dtype != dtype:
                expected = "texts" if dtype is None else np.dtype(dtype)
                what = f"expected {expected}, got {values.dtype}"
                raise DamagedSegment(self._storage.where, self._name, column, what)
        except (DamagedSegment, LinkInStore, OSError) as error:
            raise _Unreadable(unreadable(self._storage.where, self._name, column, error)) from error
        return values

    def _damage(self, array: str | None, what: str) -> Problem:
        return damage(DamagedSegment(self._storage.where, self._name, array, what))

    def _problem(self, kind: ProblemKind, column: str, row: int | None, what: str) -> Problem:
        question_id = None if row is None else self.question_id(row)
        place = "" if row is None else f"row {row} (question {question_id!r}): "
        error = DamagedSegment(self._storage.where, self._name, column, f"{place}{what}")
        return Problem(kind, str(error), question_id, self._name, column)


class _SegmentInspection(_Inspection):
    """Rows are named by the ids of the header."""

    def __init__(
        self, storage: Storage, root: Root, name: str, group: PublishedGroup, header: Header
    ) -> None:
        super().__init__(storage, root, name, group, len(header.question_ids))
        self._header = header
        self.block_rows = max(1, self._count)  # its arrays have one chunk each

    def question_id(self, row: int) -> str:
        return self._header.question_ids[row]

    def identity(self, column: str, rows: range, values: Sequence[str]) -> Iterator[Problem]:
        named = {
            "question_id": self._header.question_ids,
            "content_hash": self._header.content_hashes,
        }
        for row, expected, got in zip(rows, named.get(column, ()), values, strict=False):
            if expected != got:
                what = f"expected {expected!r} as in zarr.json, got {got!r}"
                yield self._problem(ProblemKind.IDENTITY, column, row, what)


class _GenerationInspection(_Inspection):
    """Rows are named by the column `question_id`, which is sorted."""

    block_rows = CHUNK_ROWS

    def __init__(
        self, storage: Storage, root: Root, group: PublishedGroup, generation: Generation
    ) -> None:
        super().__init__(storage, root, generation.name, group, generation.rows)
        self._generation = generation

    @property
    def columns(self) -> dict[str, tuple[int, ...]]:
        return {**super().columns, ORIGIN_COLUMN: (self._count,)}

    @property
    def created(self) -> str:
        """An ISO 8601 time; empty where it cannot be read."""
        with suppress(ValueError, KeyError, TypeError, OSError):
            return str(parse_json(self._read_document())["attributes"]["created"])
        return ""

    def question_id(self, row: int) -> str | None:
        with suppress(_Unreadable):
            return str(self._read("question_id", range(row, row + 1), None)[0])
        return None

    def identity(self, column: str, rows: range, values: Sequence[str]) -> Iterator[Problem]:
        if column != "question_id":
            return
        before = self.question_id(rows.start - 1) if rows.start else None
        for row, value in zip(rows, values, strict=True):
            if before is not None and value <= before:
                what = f"row {row}: expected an id after {before!r}, got {value!r}: not sorted"
                yield self._damage(column, what)
            before = value

    def integers(self, rows: range) -> Iterator[Problem]:
        yield from super().integers(rows)
        try:
            values = self._read(ORIGIN_COLUMN, rows, np.int64)
        except _Unreadable as error:
            yield error.problem
            return
        count = len(self._generation.segments)
        for place in np.flatnonzero((values < 0) | (values >= count)).tolist():
            what = f"expected 0 to {count - 1}, got {values[place]}"
            yield self._problem(ProblemKind.NUMBERS, ORIGIN_COLUMN, rows[place], what)

    def left_out(self, deletions: Deletions) -> Iterator[Problem]:
        """Rows of covered segments that are still there: what would be lost if they went."""
        listed = set(self._storage.list_names(SEGMENTS))
        numbers = {
            one.name: number
            for number, one in enumerate(self._generation.segments)
            if one.name in listed
        }
        if not numbers:
            return
        index = SegmentIndex(self._storage, self._root)
        try:
            index.add_generation(self._generation)
            origins = self._read(ORIGIN_COLUMN, range(self._count), np.int64)
        except (_Unreadable, DamagedSegment, LinkInStore):
            return  # which is a problem of its own
        except OSError as error:
            yield unreadable(self._storage.where, self._name, None, error)
            return
        with ThreadPoolExecutor(self._storage.concurrency) as threads:
            for name, keys in zip(numbers, threads.map(self._rows_of, numbers), strict=True):
                if isinstance(keys, Problem):
                    yield keys
                    continue
                for key in keys:
                    if deletions.covers(key.question_id, name):
                        continue
                    place = index.find(key.question_id)
                    # Committed with another segment? Then that row stands for this one.
                    if place and (
                        origins[place.row] != numbers[name] or index.state(key) == "stored"
                    ):
                        continue
                    what = "is in it with other content" if place else "is not in it"
                    found = self._damage(
                        "content_hash" if place else "question_id",
                        f"question {key.question_id!r} of segment {name} {what}, although it "
                        "covers that: do not prune",
                    )
                    yield replace(found, question_id=key.question_id)

    def _rows_of(self, segment: str) -> Collection[RowKey] | Problem:
        """None of a segment that is damaged or being pruned: nothing is taken from it. A problem
        where the disk does not say."""
        with suppress(ValueError):
            try:
                document = self._storage.read(f"{SEGMENTS}/{segment}/{METADATA}")
            except OSError as error:
                return unreadable(self._storage.where, segment, None, error)
            if header := parse_header(document) if document else None:
                return list(map(RowKey, header.question_ids, header.content_hashes))
        return ()


def _is_object(value: str) -> bool:
    try:
        return isinstance(parse_json(value.encode()), dict)
    except ValueError:
        return False
