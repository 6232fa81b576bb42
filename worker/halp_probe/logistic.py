"""`train_logistic`: logistic regression on standardised features, as a `Network` of one layer.

scikit-learn's, L2, lbfgs, each class with the same weight in all. How strong the penalty is, and
what probability a logit stands for, folds by group inside the given rows say. Refuses to know what
the features are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from halp_probe.calibration import calibrated
from halp_probe.errors import ProbeError
from halp_probe.metrics import auroc_of
from halp_probe.network import Floats, Network
from halp_probe.splits import folds

Doubles = npt.NDArray[np.float64]

GRID: Final = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths C, strongest penalty first, so that each starts from the one before. Of
standardised features: below the first nothing is learned, above the last nothing is held back."""
WORDS_GRID: Final = (1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Of rows of length 1, which are small numbers."""
_TOLERANCE: Final = 1e-4
_MOST_ITERATIONS: Final = 1000


@dataclass(frozen=True)
class LogisticSettings:
    """grid: inverse penalties C to choose from, ascending.
    standardise: features to mean 0 and deviation 1, of the training rows."""

    grid: tuple[float, ...] = GRID
    standardise: bool = True


@dataclass(frozen=True, eq=False)
class Logistic:
    """c: the chosen inverse penalty. inner_auroc: of the inner folds at it, NaN where they have one
    class only. converged: whether the last fit ended before `_MOST_ITERATIONS`."""

    network: Network
    c: float
    inner_auroc: float
    converged: bool


def train_logistic(
    x: Floats,
    wrong: npt.NDArray[np.bool_],
    groups: npt.NDArray[np.int64],
    settings: LogisticSettings | None = None,
    *,
    inner_folds: int,
    seed: int,
) -> Logistic:
    """x: (N, F) float32. wrong: (N,). groups: (N,), the image of each row.

    The last fit is on all rows. Its logits are scaled to probabilities by those of the inner folds.
    Raises CannotSplit, and ProbeError for features that are not finite.
    """
    settings = settings or LogisticSettings()
    if not np.isfinite(x).all():
        raise ProbeError("logistic regression: expected finite features, got NaN or infinity")
    scores = np.full((inner_folds, len(settings.grid)), np.nan)
    logits = np.empty((len(settings.grid), len(x)), np.float32)
    for number, (train, test) in enumerate(folds(groups, wrong, inner_folds, seed)):
        mean, scale = standard(x[train], wanted=settings.standardise)
        inputs, held = (x[train] - mean) / scale, (x[test] - mean) / scale
        # A penalty is set against the losses of all rows: of fewer, for the same one, C is larger.
        grid = [c * len(x) / len(train) for c in settings.grid]
        for at, (weight, bias, _) in enumerate(_path(inputs, wrong[train], grid)):
            logits[at, test] = held @ weight + bias
            scores[number, at] = auroc_of(logits[at, test], wrong[test])
    at, inner = _best(scores)
    mean, scale = standard(x, wanted=settings.standardise)
    # From the first step on again: a good start for the last one.
    *_, (weight, bias, converged) = _path((x - mean) / scale, wrong, settings.grid[: at + 1])
    network = Network(mean, scale, (weight[:, None],), (np.array([bias], np.float32),))
    network = calibrated(network, logits[at], wrong)
    return Logistic(network, settings.grid[at], inner, converged)


def standard(x: Floats, *, wanted: bool = True) -> tuple[Floats, Floats]:
    """Mean and deviation of each feature, (F,) float32; a constant feature has deviation 1."""
    if not wanted:
        return np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)
    mean = x.mean(0, dtype=np.float64).astype(np.float32)
    scale = x.std(0, dtype=np.float64).astype(np.float32)
    # Rounding of a mean leaves a deviation to what is constant.
    scale[scale <= 1e-6 * np.abs(mean)] = 1
    scale[scale == 0] = 1
    return mean, scale


def _path(
    x: Floats, wrong: npt.NDArray[np.bool_], grid: Sequence[float]
) -> Iterator[tuple[Floats, float, bool]]:
    """(weights (F,) float32, bias, converged) for each C, each from where the one before ended."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        class_weight="balanced",
        solver="lbfgs",
        tol=_TOLERANCE,
        max_iter=_MOST_ITERATIONS,
        warm_start=True,
    )
    for c in grid:
        model.set_params(C=c)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model.fit(x, wrong)
        for one in said:
            if not issubclass(one.category, ConvergenceWarning):
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        converged = not any(issubclass(one.category, ConvergenceWarning) for one in said)
        yield model.coef_[0].astype(np.float32), float(model.intercept_[0]), converged


def _best(scores: Doubles) -> tuple[int, float]:
    """Of (folds, C): the first C with the highest mean; folds of one class say nothing."""
    there = ~np.isnan(scores[:, 0])
    if not there.any():
        return len(scores[0]) // 2, math.nan
    means = scores[there].mean(0)
    at = int(np.argmax(means))
    return at, float(means[at])
