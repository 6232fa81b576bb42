"""What a probe has to beat: classifiers that never see a hidden state before the answer.

Each says what it reads, in words; `evaluation` runs them in the folds of everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from halp_probe.features import Inputs, Matrix, Words, one_hot
from halp_probe.logistic import WORDS_GRID, LogisticSettings
from halp_probe.network import Floats
from halp_probe.rows import Rows

KIND: Final = "question kind only"
SOURCE: Final = "source only"
LENGTH: Final = "answer length"
WORDS: Final = "bag of words of the question"
ENTROPY: Final = "first-token entropy"
LOGPROB: Final = "mean log-probability"
IMAGE: Final = "image only"
SHUFFLED: Final = "shuffled labels"

# Column of a score, its name in the table, and the sign that makes it higher where an answer is
# likelier wrong.
_SCORES: Final = (("first_token_entropy", ENTROPY, 1.0), ("mean_logprob", LOGPROB, -1.0))


@dataclass(frozen=True, eq=False)
class Baseline:
    """Learned by logistic regression, in the same folds."""

    name: str
    inputs: Inputs
    settings: LogisticSettings
    note: str = ""


@dataclass(frozen=True, eq=False)
class Number:
    """A number taken as it is: nothing is learned. risk: (N,) float32, no probability."""

    name: str
    risk: Floats
    note: str


def baselines(rows: Rows) -> Iterator[Baseline]:
    """Those that the rows allow, but for the image only, which is a representation."""
    usual = LogisticSettings()
    if len(set(rows.kinds)) > 1:
        yield Baseline(KIND, Matrix(one_hot(rows.kinds)), usual, _of(rows.kind_field, "the judge"))
    if len(set(rows.sources)) > 1:
        yield Baseline(SOURCE, Matrix(one_hot(rows.sources)), usual, _of(rows.source_field, ""))
    lengths = rows.answer_lengths
    both = np.stack([lengths, np.log1p(lengths)], axis=1)
    yield Baseline(LENGTH, Matrix(both), usual, f"{rows.length_unit} and their logarithm")
    words = LogisticSettings(grid=WORDS_GRID, standardise=False)
    yield Baseline(WORDS, Words(rows.questions), words, "tf-idf of words and pairs")


def numbers(rows: Rows) -> Iterator[Number]:
    """Of the scores that the store has; rows without one get the median."""
    for column, name, sign in _SCORES:
        values = rows.scores.get(column)
        if values is None or np.isnan(values).all():
            continue
        lacking = np.isnan(values)
        risk = np.where(lacking, np.nanmedian(values), values).astype(np.float32)
        note = "as it is" if sign > 0 else "as it is, low is risky"
        if lacking.any():
            note += f"; {int(lacking.sum()):,} rows without it have the median"
        yield Number(name, np.float32(sign) * risk, note)


def _of(field: str | None, otherwise: str) -> str:
    return f"by metadata {field}" if field else f"by {otherwise}"
