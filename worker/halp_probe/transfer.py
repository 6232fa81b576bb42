"""`transfers`: trained on one source, tested on another, with no image in both.

Nothing of the test source chooses anything: regularisation is chosen inside the training source.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np

from halp_probe.bootstrap import Draws, auroc_interval
from halp_probe.classifiers import train
from halp_probe.network import Floats
from halp_probe.results import Transfer
from halp_probe.rows import Rows
from halp_probe.splits import Indices, check_apart, most_folds

ENOUGH: Final = 20
"""Right answers, and wrong ones, that a source needs: with fewer the interval says nothing."""
# The largest: their pairs grow with the square.
_MOST_SOURCES: Final = 6


def source_pairs(rows: Rows, inner_folds: int) -> list[tuple[str, str, Indices, Indices]]:
    """(trained on, tested on, training rows, test rows) for each pair that has enough rows.

    An image that both sources have is left out of the training rows.
    """
    sources = np.array(rows.sources, dtype=object)
    largest = [name for name, _ in Counter(rows.sources).most_common(_MOST_SOURCES)]
    found = []
    for one, other in itertools.permutations(sorted(largest), 2):
        held = np.flatnonzero(sources == other)
        seen = np.isin(rows.groups, rows.groups[held])
        taught = np.flatnonzero((sources == one) & ~seen)
        if (
            _fewest(rows, taught) >= ENOUGH
            and _fewest(rows, held) >= ENOUGH
            and most_folds(rows.groups[taught], rows.wrong[taught]) >= inner_folds
        ):
            found.append((one, other, taught, held))
    return found


def transfers(
    rows: Rows,
    draws: Draws,
    name: str,
    x: Floats,
    *,
    classifier: str,
    inner_folds: int,
) -> Iterator[Transfer]:
    """name, x: of a representation and its (N, F) float32."""
    for one, other, taught, held in source_pairs(rows, inner_folds):
        check_apart(rows.groups[taught], rows.groups[held])
        trained = train(
            classifier,
            x[taught],
            rows.wrong[taught],
            rows.groups[taught],
            inner_folds=inner_folds,
            seed=0,
        )
        risk = np.zeros((1, len(rows)), np.float32)
        risk[0, held] = trained.network.risk(x[held])
        interval = auroc_interval(risk, rows.wrong, draws, held)
        yield Transfer(name, classifier, one, other, len(held), interval)


def _fewest(rows: Rows, which: Indices) -> int:
    wrong = int(rows.wrong[which].sum())
    return min(wrong, len(which) - wrong)
