"""`calibrated`: a network's risk made a probability, by rows that it did not learn from.

Platt's scaling: the logit times a slope plus an offset, which stays a network of the same form. It
does not change which of two rows is riskier. Training with class weights, and each penalty, has a
scale of its own; without this the folds of one table could not be pooled.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from halp_probe.metrics import Bools
from halp_probe.network import Network

# Of logits that say nothing, or the contrary: they keep their order, with risks near the base rate.
_FLATTEST: Final = 1e-2
_STEEPEST: Final = 1e3


def calibrated(network: Network, logits: npt.NDArray[np.floating], wrong: Bools) -> Network:
    """logits: (N,), of rows out of training, by this network or ones with its settings.

    The targets are Platt's, a little away from 0 and 1, so that few rows give no certainty.
    """
    slope, offset = scaling_of(logits, wrong)
    *weights, last = network.weights
    *biases, bias = network.biases
    return dataclasses.replace(
        network,
        weights=(*weights, (last * slope).astype(np.float32)),
        biases=(*biases, (bias * slope + offset).astype(np.float32)),
    )


def scaling_of(logits: npt.NDArray[np.floating], wrong: Bools) -> tuple[float, float]:
    """(slope, offset) of the smallest cross-entropy; the slope is never below `_FLATTEST`."""
    values = logits.astype(np.float64)
    spread = float(values.std()) or 1.0
    unit, middle = values / spread, float(values.mean()) / spread
    unit = unit - middle
    bad = int(wrong.sum())
    targets = np.where(wrong, (bad + 1) / (bad + 2), 1 / (len(wrong) - bad + 2))

    def loss(at: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        scaled = at[0] * unit + at[1]
        value = np.logaddexp(0, scaled) - targets * scaled
        error = 1 / (1 + np.exp(-np.clip(scaled, -700, 700))) - targets
        return float(value.mean()), np.array([(error * unit).mean(), error.mean()])

    share = targets.mean()
    start = np.array([1.0, np.log(share / (1 - share))])
    bounds = [(_FLATTEST, _STEEPEST), (None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    slope, offset = found.x
    return float(slope / spread), float(offset - slope * middle)
