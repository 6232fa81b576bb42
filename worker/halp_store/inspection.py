"""One published segment, read whole and compared with its header and the store's layout.

Holds one array at a time, and the few integers that positions are compared with. Goes on after
damage: what cannot be read is a problem, and so is all that is wrong with the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from halp_store.errors import DamagedSegment
from halp_store.layout import GRID_COLUMN, TEXT_COLUMNS, Layout
from halp_store.published import PublishedSegment
from halp_store.segment import Header, parse_json
from halp_store.storage import Storage
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

# numpy's, for what zarr's versions make of a text column.
_TEXT_KINDS: Final = "OTU"


def inspect_segment(
    storage: Storage, layout: Layout, name: str, header: Header
) -> Iterator[Problem]:
    """All that is wrong with the published segment `name`, whose zarr.json says `header`."""
    try:
        segment = PublishedSegment(storage, name)
    except DamagedSegment as error:
        yield damage(error)
    except OSError as error:
        yield damage(DamagedSegment(storage.where, name, None, f"cannot be read ({error})"))
    else:
        inspection = _Inspection(storage.where, layout, name, header, segment)
        yield from inspection.texts()
        yield from inspection.integers()
        yield from inspection.vectors()


def damage(error: DamagedSegment) -> Problem:
    return Problem(ProblemKind.DAMAGED, str(error), None, error.segment, error.array)


class _Unreadable(Exception):  # noqa: N818 - carries a problem to the loop over the arrays
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class _Inspection:
    """Rows are named by the ids of the header."""

    def __init__(
        self, where: str, layout: Layout, name: str, header: Header, segment: PublishedSegment
    ) -> None:
        self._where, self._layout, self._name = where, layout, name
        self._header, self._segment = header, segment

    def texts(self) -> Iterator[Problem]:
        named = {
            "question_id": self._header.question_ids,
            "content_hash": self._header.content_hashes,
        }
        for column in TEXT_COLUMNS:
            try:
                values = self._read(column, (), None).tolist()
            except _Unreadable as error:
                yield error.problem
                continue
            for row, (expected, got) in enumerate(zip(named.get(column, ()), values, strict=False)):
                if expected != got:
                    what = f"expected {expected!r} as in zarr.json, got {got!r}"
                    yield self._problem(ProblemKind.IDENTITY, column, row, what)
            if column == "metadata":
                for row, value in enumerate(values):
                    if not _is_object(value):
                        what = f"expected a JSON object, got {value!r:.80}"
                        yield self._problem(ProblemKind.METADATA, column, row, what)

    def integers(self) -> Iterator[Problem]:
        yield from self._layers()
        read: dict[str, npt.NDArray[np.int64]] = {}
        for column, (_, shape) in self._layout.integer_columns().items():
            try:
                read[column] = self._read(column, shape, np.int64)
            except _Unreadable as error:
                yield error.problem
        for column, values in read.items():
            lowest, distance = _BOUNDS.get(column, _POSITION)
            lengths = None if distance is None else read.get("prompt_tokens")
            for row, value in enumerate(values):
                highest = math.inf if lengths is None else int(lengths[row]) + (distance or 0)
                if value.min() < lowest or value.max() > highest:
                    bounds = f"{lowest} or more" if lengths is None else f"{lowest} to {highest}"
                    what = f"expected {bounds}, got {value.tolist()}"
                    yield self._problem(ProblemKind.NUMBERS, column, row, what)

    def _layers(self) -> Iterator[Problem]:
        expected = list(self._layout.layers)
        try:
            layers = self._read("layer", (), np.int64, len(expected)).tolist()
        except _Unreadable as error:
            yield error.problem
            return
        if layers != expected:
            what = f"expected {expected} as in the store's zarr.json, got {layers}"
            yield self._problem(ProblemKind.LAYERS, "layer", None, what)

    def vectors(self) -> Iterator[Problem]:
        for column, (_, shape) in self._layout.vector_columns().items():
            try:
                values = self._read(column, shape, np.float32)
            except _Unreadable as error:
                yield error.problem
                continue
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            for row in np.flatnonzero(~finite).tolist():
                what = "expected finite values, got a NaN or an infinity"
                yield self._problem(ProblemKind.NOT_FINITE, column, row, what)

    def _read(
        self, column: str, shape: tuple[int, ...], dtype: type | None, rows: int | None = None
    ) -> npt.NDArray[Any]:
        """rows: those of the header without it. dtype: None for texts."""
        rows = len(self._header.question_ids) if rows is None else rows
        try:
            self._segment.check_own_metadata(column)
            values = self._segment.read(column, (rows, *shape))
            if values.dtype.kind not in _TEXT_KINDS if dtype is None else values.dtype != dtype:
                expected = "texts" if dtype is None else np.dtype(dtype)
                what = f"expected {expected}, got {values.dtype}"
                raise DamagedSegment(self._where, self._name, column, what)
        except DamagedSegment as error:
            raise _Unreadable(damage(error)) from error
        except OSError as error:
            failed = DamagedSegment(self._where, self._name, column, f"cannot be read ({error})")
            raise _Unreadable(damage(failed)) from error
        return values

    def _problem(self, kind: ProblemKind, column: str, row: int | None, what: str) -> Problem:
        question_id = None if row is None else self._header.question_ids[row]
        place = "" if row is None else f"row {row} (question {question_id!r}): "
        error = DamagedSegment(self._where, self._name, column, f"{place}{what}")
        return Problem(kind, str(error), question_id, self._name, column)


def _is_object(value: str) -> bool:
    try:
        return isinstance(parse_json(value.encode()), dict)
    except ValueError:
        return False
