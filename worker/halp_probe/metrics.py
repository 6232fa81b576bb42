"""AUROC, AUPRC, ECE and the risk-coverage curve of weighted rows. *wrong* is the positive class.

Pure numbers. Every figure is had for many weightings of the same rows at once, which is what a
bootstrap is: one sort, then sums. N rows, B weightings.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Weights = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]

BINS: Final = 15
"""Of the calibration error, as most papers have it."""


@dataclass(frozen=True, eq=False)
class Figures:
    """(B,) float64 each; NaN for a weighting that has one class only (or no rows).

    auroc: chance that a wrong answer has the higher risk; ties count half.
    auprc: average precision, as scikit-learn defines it.
    ece: mean distance of risk and share of wrong answers, over `BINS` bins of as many rows each,
        whose edges are those of the unweighted rows; equal risks are in one bin.
    aurc: area under the risk-coverage curve, see `risk_coverage`.
    """

    auroc: Doubles
    auprc: Doubles
    ece: Doubles
    aurc: Doubles


class Ranked:
    """Rows in order of a risk: sorted once, then weighted as often as wanted.

    Sums are in the weights' dtype: float64 for a figure, float32 for a thousand draws of it, which
    is twice as fast and right to some 1e-5.
    """

    def __init__(
        self,
        ranks: npt.NDArray[np.floating],
        wrong: Bools,
        risk: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """ranks: (N,), without NaN: what puts rows in order, the risks themselves mostly.
        wrong: (N,). risk: (N,), probabilities, for the calibration; it is NaN without them."""
        self._order = np.argsort(ranks, kind="stable")
        ranked = ranks[self._order]
        first = np.ones(len(ranks), bool)
        first[1:] = ranked[1:] != ranked[:-1]
        self._starts = np.flatnonzero(first)
        self._risk, self._wrong = risk, wrong

    def figures(self, weights: Weights) -> Figures:
        """weights: (N, B), whole numbers, in the order of the rows."""
        pos, every = self._grouped(weights)
        pos_so_far, so_far = np.cumsum(pos, 0), np.cumsum(every, 0)
        auroc = _auroc(pos, every, so_far)
        pos_all, all_ = pos_so_far[-1].copy(), so_far[-1].copy()
        with np.errstate(divide="ignore", invalid="ignore"):
            # Where nothing is below or above, the weight that it is multiplied with is 0.
            selective = pos_so_far / np.maximum(so_far, 1)
            aurc = np.einsum("gb,gb->b", every, selective) / all_
            precision = np.subtract(pos_all, pos_so_far, out=pos_so_far)
            precision += pos
            above = np.subtract(all_, so_far, out=so_far)
            above += every
            precision /= np.maximum(above, 1, out=above)
            auprc = np.einsum("gb,gb->b", pos, precision) / pos_all
            ece = self._ece(weights) / all_
        for one in (auprc, ece, aurc):
            one[np.isnan(auroc)] = np.nan
        doubles = (one.astype(np.float64) for one in (auprc, ece, aurc))
        return Figures(auroc, *doubles)

    def auroc(self, weights: Weights) -> Doubles:
        """(B,), as of `figures`, and cheaper."""
        pos, every = self._grouped(weights)
        return _auroc(pos, every, np.cumsum(every, 0))

    def _grouped(self, weights: Weights) -> tuple[Weights, Weights]:
        """Weight of wrong rows, and of all, for each different risk, ascending: (G, B)."""
        every = weights[self._order]
        pos = every * self._wrong[self._order, None].astype(weights.dtype)
        if len(self._starts) < len(self._order):
            return (
                np.add.reduceat(pos, self._starts, axis=0),
                np.add.reduceat(every, self._starts, axis=0),
            )
        return pos, every

    def _ece(self, weights: Weights) -> Weights:
        """(B,): not yet divided by the weight of all."""
        if self._gaps is None:
            return np.full(weights.shape[1], np.nan, weights.dtype)
        found: Weights = np.abs(self._gaps.astype(weights.dtype) @ weights).sum(0)
        return found

    @functools.cached_property
    def _gaps(self) -> Weights | None:
        """(BINS, N): of each row, in its bin, by how much its risk was too low."""
        if self._risk is None:
            return None
        bins = bins_of(self._risk)
        gaps = np.zeros((BINS, len(bins)))
        gaps[bins, np.arange(len(bins))] = self._wrong - self._risk.astype(np.float64)
        return gaps


def bins_of(risk: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """(N,): of each row, its bin among `BINS` of about as many rows each; equal risks share one."""
    edges = np.quantile(risk, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, risk, side="right").astype(np.int64)


def figures_of(
    risk: npt.NDArray[np.floating], wrong: Bools, *, is_probability: bool = True
) -> Figures:
    """Of rows as they are: (1,) each."""
    ranked = Ranked(risk, wrong, risk if is_probability else None)
    return ranked.figures(np.ones((len(wrong), 1)))


def auroc_of(risk: npt.NDArray[np.floating], wrong: Bools) -> float:
    """NaN where there is one class only."""
    if not len(wrong):
        return math.nan
    return float(Ranked(risk, wrong).auroc(np.ones((len(wrong), 1)))[0])


def risk_coverage(risk: npt.NDArray[np.floating], wrong: Bools) -> tuple[Doubles, Doubles]:
    """(coverage, selective risk), a point for each different risk, ascending.

    Answering the rows with the lowest risks, that share of all: that share of the answers is wrong.
    The area under it is the mean of the selective risk over rows, as they are taken in.
    """
    order = np.argsort(risk, kind="stable")
    ranked = risk[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    taken = (last + 1).astype(np.float64)
    return taken / len(risk), np.cumsum(wrong[order])[last] / taken


def _auroc(pos: Weights, every: Weights, so_far: Weights) -> Doubles:
    """Of all pairs those in order: each wrong row with the right ones below it, and with half of
    those beside it. Of the rows so far the wrong ones are taken off in one go, as they are the
    squares of all, and so on."""
    all_pos = pos.sum(0).astype(np.float64)
    all_neg = so_far[-1].astype(np.float64) - all_pos
    below = np.einsum("gb,gb->b", pos, so_far).astype(np.float64)
    beside = np.einsum("gb,gb->b", pos, every).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Doubles = (below - all_pos**2 / 2 - beside / 2) / (all_pos * all_neg)
    found[(all_pos == 0) | (all_neg == 0)] = np.nan
    return found
