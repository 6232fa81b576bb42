"""`Evaluation`: everything that was measured, as plain values. No figure is computed here.

N labelled rows (right or wrong), S seeds. *wrong* is the positive class: high risk, wrong answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt


class Group(StrEnum):
    """What an entry of the table is there for."""

    REPRESENTATION = "representation"
    COMBINATION = "combination"
    CHOSEN = "chosen"
    BASELINE = "baseline"
    CONTROL = "control"


@dataclass(frozen=True)
class Interval:
    """value: mean over the seeds. low, high: 95 % percentile bootstrap over images. NaN where there
    is none, as for an AUROC of one class."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Part:
    """Of the rows of one kind or one source: how many, how many of them wrong, and the AUROC."""

    rows: int
    wrong: int
    auroc: Interval


@dataclass(frozen=True, eq=False)
class Entry:
    """One line of the table: what a classifier read, and how well it told wrong from right.

    name: a representation, several with `+`, or a baseline in words.
    classifier: `logistic` or `mlp`; `none` where a number is taken as it is.
    auroc, auprc: higher is better; auprc by chance is the share of wrong rows. ece: expected
        calibration error of the risk, lower is better; NaN for a number that is no probability.
        aurc: area under the risk-coverage curve, lower is better.
    by_kind, by_source: the same predictions, part by part.
    risk: (S, N) float32, out-of-fold, in the order of the evaluation's ids. Not in the JSON.
    ranks: likewise: what put rows in order for auroc, auprc and aurc; None where the risk did.
    """

    name: str
    group: Group
    classifier: str
    auroc: Interval
    auprc: Interval
    ece: Interval
    aurc: Interval
    by_kind: Mapping[str, Part]
    by_source: Mapping[str, Part]
    risk: npt.NDArray[np.float32]
    note: str = ""
    ranks: npt.NDArray[np.float32] | None = None

    @property
    def order(self) -> npt.NDArray[np.float32]:
        """(S, N): the ranks, or else the risk."""
        return self.risk if self.ranks is None else self.ranks


@dataclass(frozen=True)
class Transfer:
    """Trained on one source, tested on another, no image in both. Nothing of the test source chose
    anything."""

    name: str
    classifier: str
    trained_on: str
    tested_on: str
    rows: int
    auroc: Interval


@dataclass(frozen=True)
class Leak:
    """The same classifier with folds by image, and with folds by question, which leak."""

    name: str
    classifier: str
    by_image: Interval
    by_question: Interval


@dataclass(frozen=True)
class Counts:
    """labels: label -> rows of the store. kinds, sources: name -> (labelled rows, wrong ones).
    images: of the labelled rows."""

    stored: int
    labels: Mapping[str, int]
    rows: int
    wrong: int
    images: int
    kinds: Mapping[str, tuple[int, int]]
    sources: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """store: path. model: of its fingerprint. judge: name and version of the label table.

    entries: the table; the `chosen` one is what nested choice gives, one for each classifier.
    picks: of the chosen entries, representation -> in how many (seed, fold) it was picked.
    picked_on_test: classifier -> the highest AUROC of all representations with its name: what
        choosing on the test folds would have reported.
    settings: JSON object: folds, seeds, grids, bootstrap samples, package versions, seconds.
    ids, wrong: of the N rows, in the order of `Entry.risk`.
    """

    store: str
    model: str
    judge: str
    counts: Counts
    entries: tuple[Entry, ...]
    picks: Mapping[str, Mapping[str, int]]
    picked_on_test: Mapping[str, tuple[str, float]]
    transfers: tuple[Transfer, ...]
    leaks: tuple[Leak, ...]
    settings: Mapping[str, Any]
    ids: tuple[str, ...] = ()
    wrong: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    def to_json(self) -> dict[str, Any]:
        """Without the rows; NaN is null."""
        whole = {name: value for name, value in vars(self).items() if name not in {"ids", "wrong"}}
        whole |= {
            "counts": asdict(self.counts),
            "entries": [_entry(one) for one in self.entries],
            "transfers": [asdict(one) for one in self.transfers],
            "leaks": [asdict(one) for one in self.leaks],
        }
        found: dict[str, Any] = plain(whole)
        return found


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        name: {key: asdict(part) for key, part in value.items()}
        if name in {"by_kind", "by_source"}
        else asdict(value)
        if isinstance(value, Interval)
        else value
        for name, value in vars(entry).items()
        if name not in {"risk", "ranks"}
    }


def plain(value: Any) -> Any:
    """As JSON has it, which knows no NaN and no tuples."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
