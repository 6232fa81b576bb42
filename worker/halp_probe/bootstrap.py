"""`Draws`: images drawn with replacement, and the intervals of figures over them.

Rows of one image go together: answers on one picture are right and wrong together, and an interval
that took rows for independent would be too narrow. The same draws serve every entry of a table.
N rows, G images, S seeds, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from halp_probe.metrics import Bools, Doubles, Figures, Floats, Ranked, Weights
from halp_probe.results import Interval

# Rows times draws at a time: some arrays of so many float32 stay in a core's cache.
_BLOCK_NUMBERS: Final = 160_000
_FEWEST_DRAWS: Final = 8
_SIDES: Final = (2.5, 97.5)
NOTHING: Final = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class Draws:
    """counts: (G, B) uint16: how often each image was drawn. groups: int64 (N,): of each row."""

    counts: npt.NDArray[np.uint16]
    groups: npt.NDArray[np.int64]

    def weights(self, rows: npt.NDArray[np.int64] | None = None) -> Iterator[Weights]:
        """Of the rows (all without `rows`): as they are, (N, 1) float64, then block by block."""
        groups = self.groups if rows is None else self.groups[rows]
        yield np.ones((len(groups), 1))
        block = max(_FEWEST_DRAWS, _BLOCK_NUMBERS // len(groups))
        for start in range(0, self.counts.shape[1], block):
            yield self.counts[:, start : start + block].astype(np.float32)[groups]


@dataclass(frozen=True)
class Intervals:
    """Of `Figures`."""

    auroc: Interval
    auprc: Interval
    ece: Interval
    aurc: Interval


def draw_images(groups: npt.NDArray[np.int64], samples: int, seed: int) -> Draws:
    """groups: (N,), the image of each row, 0 to G-1. Each draw has G images."""
    count = int(groups.max()) + 1
    draws = np.random.default_rng(seed)
    counts = np.empty((count, samples), np.uint16)
    for number in range(samples):
        counts[:, number] = np.bincount(draws.integers(0, count, count), minlength=count)
    return Draws(counts, groups)


def intervals_of(
    ranks: Floats, wrong: Bools, draws: Draws, *, risk: Floats | None = None
) -> Intervals:
    """ranks: (S, N), what puts rows in order. risk: likewise, in [0, 1], for the calibration; ECE
    is NaN without it. Each figure is a mean over the seeds, in each draw."""
    figures: list[list[Figures]] = []
    for seed, one in enumerate(_different(ranks)):
        ranked = Ranked(one, wrong, None if risk is None else risk[seed])
        figures.append([ranked.figures(weights) for weights in draws.weights()])

    def interval(of: Callable[[Figures], Doubles]) -> Interval:
        return _interval(np.stack([np.concatenate([of(one) for one in seed]) for seed in figures]))

    return Intervals(
        interval(lambda one: one.auroc),
        interval(lambda one: one.auprc),
        interval(lambda one: one.ece),
        interval(lambda one: one.aurc),
    )


def auroc_interval(
    ranks: Floats, wrong: Bools, draws: Draws, rows: npt.NDArray[np.int64] | None = None
) -> Interval:
    """Of chosen rows. ranks: (S, N), wrong: (N,), of all rows that the draws are of."""
    rows = np.arange(len(wrong)) if rows is None else rows
    if not wrong[rows].any() or wrong[rows].all():
        return NOTHING
    found = [
        np.concatenate([ranked.auroc(one) for one in draws.weights(rows)])
        for ranked in [Ranked(one[rows], wrong[rows]) for one in _different(ranks)]
    ]
    return _interval(np.stack(found))


def _different(ranks: Floats) -> Floats:
    """Seeds; one of them where they are all the same, as of a number taken as it is."""
    return ranks[:1] if (ranks == ranks[:1]).all() else ranks


def _interval(values: Doubles) -> Interval:
    """values: (S, 1 + B): as the rows are, then each draw."""
    means = values.mean(0)
    drawn = means[1:][np.isfinite(means[1:])]
    if not np.isfinite(means[0]) or not len(drawn):
        return Interval(float(means[0]), math.nan, math.nan)
    low, high = np.percentile(drawn, _SIDES)
    return Interval(float(means[0]), float(low), float(high))
