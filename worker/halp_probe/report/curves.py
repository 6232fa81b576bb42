"""The curves behind the plots: ROC, reliability and risk-coverage, as means over seeds. Pure.

S seeds, N rows; *wrong* is the positive class. Rows without a risk (NaN) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from halp_probe.metrics import BINS, bins_of, risk_coverage

Doubles = npt.NDArray[np.float64]
Risks = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

POINTS: Final = 201
"""Of a mean curve: finer than a line is wide."""
_LEAST: Final = 0.05
"""Of a coverage: of fewer answers a share is noise."""
_Z: Final = 1.959964
"""Of a 95 % interval."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """A point for each bin of as many rows, those of the table's ECE.

    risk, share: mean risk, and share of wrong answers. low, high: 95 % Wilson interval of the
    share, of the rows of one seed. rows: of one seed.
    """

    risk: Doubles
    share: Doubles
    low: Doubles
    high: Doubles
    rows: Doubles


def roc(risk: Risks, wrong: Bools) -> tuple[Doubles, Doubles]:
    """(false positive rate, true positive rate), (POINTS + 1,) each: at each false positive rate
    the mean over seeds. Empty where there is one class only."""
    grid = np.linspace(0, 1, POINTS)
    found = [np.interp(grid, *_roc(one, bad)) for one, bad in _seeds(risk, wrong)]
    if not found:
        return np.zeros(0), np.zeros(0)
    return np.append(0.0, grid), np.append(0.0, np.mean(found, axis=0))


def coverage(risk: Risks, wrong: Bools) -> tuple[Doubles, Doubles]:
    """(coverage, share of wrong answers among those given), means over seeds. Empty as of `roc`."""
    curves = [risk_coverage(one, bad) for one, bad in _seeds(risk, wrong)]
    if not curves:
        return np.zeros(0), np.zeros(0)
    # From where every seed has a point: a risk that many rows share is all or none of them.
    grid = np.linspace(max(_LEAST, *(taken[0] for taken, _ in curves)), 1, POINTS)
    return grid, np.mean([np.interp(grid, *one) for one in curves], axis=0)


def reliability(risk: Risks, wrong: Bools) -> Reliability:
    """Of the rows of all seeds, bin by bin. Empty as of `roc`."""
    risks, shares, rows = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS)
    seeds = 0
    for one, bad in _seeds(risk, wrong):
        bins = bins_of(one)
        risks += np.bincount(bins, one, BINS)
        shares += np.bincount(bins, bad, BINS)
        rows += np.bincount(bins, minlength=BINS)
        seeds += 1
    there = rows > 0
    total = rows[there]
    share, count = shares[there] / total, total / max(seeds, 1)
    low, high = _wilson(share, count)
    return Reliability(risks[there] / total, share, low, high, count)


def _seeds(risk: Risks, wrong: Bools) -> Iterator[tuple[Risks, Bools]]:
    """The rows of each seed that has both classes."""
    for one in risk:
        there = np.isfinite(one)
        bad = wrong[there]
        if bad.any() and not bad.all():
            yield one[there], bad


def _roc(risk: Risks, wrong: Bools) -> tuple[Doubles, Doubles]:
    """A point for each different risk, from the highest down."""
    order = np.argsort(-risk, kind="stable")
    ranked = risk[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(wrong[order])[last]
    alarms = last + 1 - hits
    return (
        np.append(0.0, alarms / max(alarms[-1], 1)),
        np.append(0.0, hits / max(hits[-1], 1)),
    )


def _wilson(share: Doubles, rows: Doubles) -> tuple[Doubles, Doubles]:
    square = _Z**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    half = np.sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    half *= _Z / (1 + square / rows)
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)


def mean_risk(risk: Risks) -> Doubles:
    """(N,): over the seeds that have one; NaN where none has."""
    there = np.isfinite(risk)
    total = np.where(there, risk, 0).sum(axis=0, dtype=np.float64)
    count = there.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)
