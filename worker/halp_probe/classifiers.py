"""`train`: a classifier by name, with everything that it chooses chosen inside the given rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from halp_probe.calibration import calibrated
from halp_probe.errors import ProbeError
from halp_probe.logistic import LogisticSettings, train_logistic
from halp_probe.metrics import auroc_of
from halp_probe.network import Floats, Network
from halp_probe.splits import folds, most_folds

LOGISTIC: Final = "logistic"
MLP: Final = "mlp"
CLASSIFIERS: Final = (LOGISTIC, MLP)
# A fifth of the rows for early stopping: a third, as of the inner folds, would cost too many.
_VALIDATION_FOLDS: Final = 5
_LEAST_RISK: Final = 1e-7


@dataclass(frozen=True, eq=False)
class Trained:
    """inner_auroc: of rows inside the training part that the network, or the one with its settings,
    did not learn from; NaN where they were of one class.
    chosen: JSON object: what the inner folds chose, and whether training converged."""

    network: Network
    inner_auroc: float
    chosen: Mapping[str, Any]


def train(
    classifier: str,
    x: Floats,
    wrong: npt.NDArray[np.bool_],
    groups: npt.NDArray[np.int64],
    *,
    inner_folds: int,
    seed: int,
    logistic: LogisticSettings | None = None,
) -> Trained:
    """x: (N, F) float32, finite. wrong: (N,). groups: (N,), the image of each row.

    The MLP learns from four fifths of the images; the rest says when to stop, and what
    probability a logit stands for.
    Raises CannotSplit, or ProbeError for a classifier that there is not.
    """
    if classifier == LOGISTIC:
        found = train_logistic(x, wrong, groups, logistic, inner_folds=inner_folds, seed=seed)
        chosen = {"C": found.c, "converged": found.converged}
        return Trained(found.network, found.inner_auroc, chosen)
    if classifier == MLP:
        return _train_mlp(x, wrong, groups, seed)
    raise ProbeError(f"no classifier {classifier!r}; there are {', '.join(CLASSIFIERS)}")


def _train_mlp(
    x: Floats, wrong: npt.NDArray[np.bool_], groups: npt.NDArray[np.int64], seed: int
) -> Trained:
    from halp_probe.mlp import CORRECTED, train_mlp

    count = min(_VALIDATION_FOLDS, max(2, most_folds(groups, wrong)))
    rows, held = folds(groups, wrong, count, seed)[0]
    network, epochs = train_mlp(
        x[rows], wrong[rows], CORRECTED, seed=seed, validation=(x[held], wrong[held])
    )
    # From float32, whose risks end a ten-millionth from 0 and 1.
    risk = np.clip(network.risk(x[held]).astype(np.float64), _LEAST_RISK, 1 - _LEAST_RISK)
    logits = np.log(risk / (1 - risk))
    inner = auroc_of(logits, wrong[held])
    return Trained(calibrated(network, logits, wrong[held]), inner, {"epochs": epochs})
