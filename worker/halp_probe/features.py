"""`read_features`: the vectors of chosen rows, side by side; `Inputs`: what a classifier reads.

The one place of the evaluation that reads vectors of a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt

from halp_probe.network import Floats
from halp_probe.representation import Representations, sizes_of

if TYPE_CHECKING:
    from halp_probe.splits import Indices
    from halp_store.view import View

# Of a bag of words: more are names of single questions.
_MOST_WORDS: Final = 2000


def read_features(store: View, parts: Representations, ids: Sequence[str]) -> Floats:
    """(N, F) float32, rows in order of `ids`, parts side by side; one part is read at a time.

    Raises UnknownQuestion or DamagedSegment.
    """
    view = store if tuple(ids) == store.ids else store[list(ids)]
    sizes = sizes_of(store.layout, parts)
    if len(parts) == 1:
        return _read(view, parts[0].column, parts[0].layer)
    found = np.empty((len(ids), sum(sizes)), np.float32)
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        found[:, start : start + size] = _read(view, part.column, part.layer)
        start += size
    return found


def _read(view: View, column: str, layer: int | None) -> Floats:
    return np.ascontiguousarray(view.array(column, layer)[1])


class Inputs(Protocol):
    """What a classifier reads of rows, given which of them it may learn from."""

    def split(self, train: Indices, test: Indices) -> tuple[Floats, Floats]:
        """float32 (N, F) of the rows to train on, and of those to test on."""
        ...


@dataclass(frozen=True, eq=False)
class Matrix:
    """x: (N, F) float32: numbers that do not depend on what is trained on."""

    x: Floats

    def split(self, train: Indices, test: Indices) -> tuple[Floats, Floats]:
        return self.x[train], self.x[test]


@dataclass(frozen=True, eq=False)
class Words:
    """Bag of words: the vocabulary and its weights are those of the training rows."""

    texts: tuple[str, ...]

    def split(self, train: Indices, test: Indices) -> tuple[Floats, Floats]:
        """Rows of length 1 or 0, of at most `_MOST_WORDS` words and pairs of words."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2),
            token_pattern=r"(?u)\b\w+\b",  # noqa: S106 - a pattern, no password
            max_features=_MOST_WORDS,
            dtype=np.float32,
        )
        # With an end to each, texts without any word have a vocabulary too.
        texts = [f"{one} end" for one in self.texts]
        known: Floats = vectorizer.fit_transform([texts[row] for row in train]).toarray()
        seen: Floats = vectorizer.transform([texts[row] for row in test]).toarray()
        return known, seen


def one_hot(names: Sequence[str]) -> npt.NDArray[np.float32]:
    """(N, K) float32, a column for each of the K names."""
    kinds, which = np.unique(np.array(names, dtype=object), return_inverse=True)
    return np.eye(len(kinds), dtype=np.float32)[which]
