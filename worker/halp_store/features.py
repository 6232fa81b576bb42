"""The values that cross the wall of the store: `FeatureBatch` in, `Receipt` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from halp_store.layout import TEXT_COLUMNS, Layout


class RowKey(NamedTuple):
    """Identity of a row: the question id, and the hash of the job's content behind it."""

    question_id: str
    content_hash: str


@dataclass(frozen=True)
class FeatureBatch:
    """N finished rows, column by column, on the host.

    text: column -> N strings, exactly the columns of `TEXT_COLUMNS`.
    integers: column -> int64 (N, ...), exactly those of `layout.integer_columns()`.
    vectors: column -> float32 (N, ...), exactly those of `layout.vector_columns()`.
    scores: column -> float32 (N,), exactly those of `layout.score_columns()`; NaN where there is
        none.

    Raises ValueError, naming the column with expected and got, where that does not hold, where a
    vector is not finite, or a score is infinite.
    """

    layout: Layout
    text: Mapping[str, tuple[str, ...]]
    integers: Mapping[str, npt.NDArray[np.int64]]
    vectors: Mapping[str, npt.NDArray[np.float32]]
    scores: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _same_names("text", self.text, TEXT_COLUMNS)
        _same_names("integer", self.integers, self.layout.integer_columns())
        _same_names("vector", self.vectors, self.layout.vector_columns())
        _same_names("score", self.scores, self.layout.score_columns())
        rows = len(self)
        for name, values in self.text.items():
            if len(values) != rows:
                raise ValueError(f"column {name}: expected {rows} rows, got {len(values)}")
        for name, (_, shape) in self.layout.integer_columns().items():
            _check_array(name, self.integers[name], (rows, *shape), np.int64)
        for name, (_, shape) in self.layout.vector_columns().items():
            _check_array(name, self.vectors[name], (rows, *shape), np.float32)
            if not np.isfinite(self.vectors[name]).all():
                raise ValueError(f"column {name}: has values that are not finite")
        for name in self.layout.scores:
            _check_array(name, self.scores[name], (rows,), np.float32)
            if np.isinf(self.scores[name]).any():
                raise ValueError(f"column {name}: has values that are infinite")

    @property
    def numbers(self) -> dict[str, npt.NDArray[Any]]:
        """Integers, scores and vectors by name."""
        return {**self.integers, **self.scores, **self.vectors}

    def __len__(self) -> int:
        return len(self.text["question_id"])

    @property
    def keys(self) -> tuple[RowKey, ...]:
        return tuple(
            RowKey(*pair)
            for pair in zip(self.text["question_id"], self.text["content_hash"], strict=True)
        )

    def take(self, rows: list[int]) -> FeatureBatch:
        """The given rows, in the given order (a copy)."""
        return FeatureBatch(
            self.layout,
            {name: tuple(values[row] for row in rows) for name, values in self.text.items()},
            {name: values[rows] for name, values in self.integers.items()},
            {name: values[rows] for name, values in self.vectors.items()},
            {name: values[rows] for name, values in self.scores.items()},
        )

    @staticmethod
    def concatenate(batches: list[FeatureBatch]) -> FeatureBatch:
        """All rows in order (a copy). `batches` must not be empty and share one layout."""
        first = batches[0]
        return FeatureBatch(
            first.layout,
            {n: tuple(chain.from_iterable(one.text[n] for one in batches)) for n in first.text},
            {n: np.concatenate([one.integers[n] for one in batches]) for n in first.integers},
            {n: np.concatenate([one.vectors[n] for one in batches]) for n in first.vectors},
            {n: np.concatenate([one.scores[n] for one in batches]) for n in first.scores},
        )


_SEAL: Final = object()


@dataclass(frozen=True)
class StoredRow:
    """A committed row. segment: or the generation's name. row: in it.

    answer, finish_reason: None where it was committed before and cannot be read. risk: likewise,
        and None in a store without risks.
    """

    key: RowKey
    segment: str
    row: int
    answer: str | None
    finish_reason: str | None = None
    risk: float | None = None


@dataclass(frozen=True)
class Receipt:
    """Proof that rows are committed. Only `halp_store.writer` can make one.

    stored: what a reader of the store finds from now on, with this content.
    """

    stored: tuple[StoredRow, ...]
    _seal: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._seal is not _SEAL:
            raise TypeError("a Receipt comes from a committed write, it is never made by hand")

    @property
    def rows(self) -> tuple[RowKey, ...]:
        """The keys of `stored`."""
        return tuple(one.key for one in self.stored)


def _seal_receipt(stored: tuple[StoredRow, ...]) -> Receipt:
    """For `halp_store.writer` alone, after a commit was read back."""
    return Receipt(stored, _SEAL)


def _same_names(
    kind: str, got: Mapping[str, Any], expected: Mapping[str, Any] | tuple[str, ...]
) -> None:
    if set(got) != set(expected):
        raise ValueError(f"{kind} columns: expected {sorted(expected)}, got {sorted(got)}")


def _check_array(name: str, values: npt.NDArray[Any], shape: tuple[int, ...], dtype: type) -> None:
    if values.shape != shape or values.dtype != dtype:
        raise ValueError(
            f"column {name}: expected {np.dtype(dtype)} {shape}, got {values.dtype} {values.shape}"
        )
