"""`Crossfit`: the risk of each row by a classifier that has not seen its image, for each seed.

Knows splits and processes; refuses to know what the inputs are and what is made of the risks.
N rows, S seeds, K folds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import joblib
import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from halp_probe.classifiers import MLP, train
from halp_probe.features import Inputs
from halp_probe.logistic import LogisticSettings
from halp_probe.metrics import Bools
from halp_probe.network import Floats
from halp_probe.splits import Split, check_apart, folds

# Apart from each other: seeds of inner folds are not those of the outer ones.
_SEED_STEP: Final = 1000


@dataclass(frozen=True, eq=False)
class Plan:
    """groups: int64 (N,). splits: for each seed its K splits. wrong: bool (S, N): labels of each
    seed, which are the same but for the shuffled ones. inner_folds: inside each training part."""

    groups: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.bool_]
    splits: Sequence[Sequence[Split]]
    inner_folds: int


@dataclass(frozen=True, eq=False)
class Crossfit:
    """risk: (S, N) float32. ranks: likewise, see `ranks_of`. inner_auroc: (S, K): of each training
    part, by its inner folds. chosen: what was chosen in each of the S * K, see `Trained`."""

    risk: Floats
    ranks: Floats
    inner_auroc: npt.NDArray[np.float64]
    chosen: tuple[Mapping[str, Any], ...]

    @property
    def note(self) -> str:
        """What was chosen, how often; and what did not converge."""
        parts = []
        if "C" in self.chosen[0]:
            counts = Counter(f"{one['C']:g}" for one in self.chosen)
            parts.append("C " + ", ".join(f"{c} ({n}x)" for c, n in counts.most_common(3)))
            late = sum(not one["converged"] for one in self.chosen)
            parts += [f"{late} of {len(self.chosen)} fits did not converge"] if late else []
        if "epochs" in self.chosen[0]:
            epochs = sorted(one["epochs"] for one in self.chosen)
            parts.append(f"epochs {epochs[0]} to {epochs[-1]}")
        return "; ".join(parts)


def plan(
    groups: npt.NDArray[np.int64], wrong: Bools, *, seeds: int, count: int, inner_folds: int
) -> Plan:
    """wrong: (N,), or (S, N) for other labels each seed. Raises CannotSplit."""
    labels = np.broadcast_to(wrong, (seeds, len(groups)))
    splits = [folds(groups, labels[seed], count, seed) for seed in range(seeds)]
    return Plan(groups, labels, splits, inner_folds)


def crossfit(
    pool: joblib.Parallel,
    inputs: Inputs,
    classifiers: Sequence[str],
    plan: Plan,
    logistic: LogisticSettings | None = None,
) -> dict[str, Crossfit]:
    """For each classifier, all seeds and folds side by side. Raises what `train` raises."""
    seeds, count = len(plan.splits), len(plan.splits[0])
    # The longest first, or one process ends alone.
    names = sorted(classifiers, key=lambda name: name != MLP)
    tasks = [(name, seed, at) for name in names for seed in range(seeds) for at in range(count)]
    done = pool(
        joblib.delayed(_one)(
            name,
            inputs,
            plan.wrong[seed],
            plan.groups,
            plan.splits[seed][at],
            plan.inner_folds,
            seed * _SEED_STEP + at + 1,
            logistic,
        )
        for name, seed, at in tasks
    )
    found: dict[str, Crossfit] = {}
    for name in classifiers:
        risk = np.full(plan.wrong.shape, np.nan, np.float32)
        inner = np.full((seeds, count), np.nan)
        chosen = []
        for (of, seed, at), (held, auroc, settings) in zip(tasks, done, strict=True):
            if of == name:
                risk[seed, plan.splits[seed][at][1]] = held
                inner[seed, at] = auroc
                chosen.append(settings)
        found[name] = Crossfit(risk, ranks_of(risk, plan.splits), inner, tuple(chosen))
    return found


def ranks_of(risk: Floats, splits: Sequence[Sequence[Split]]) -> Floats:
    """(S, N) float32 in (0, 1]: each row's rank among the rows of its fold, ties together.

    What sets rows of different folds against each other: a training part with fewer wrong answers
    has a test fold with more of them and lower risks, so that risks as they are would put what
    knows nothing below an AUROC of 0.5.
    """
    found = np.empty_like(risk)
    for seed, of in enumerate(splits):
        for _, held in of:
            found[seed, held] = rankdata(risk[seed, held]) / len(held)
    return found


def _one(
    classifier: str,
    inputs: Inputs,
    wrong: Bools,
    groups: npt.NDArray[np.int64],
    split: Split,
    inner_folds: int,
    seed: int,
    logistic: LogisticSettings | None,
) -> tuple[Floats, float, Mapping[str, Any]]:
    """In a process of its own: risks of the test rows, and what the training part chose."""
    rows, held = split
    check_apart(groups[rows], groups[held])
    known, seen = inputs.split(rows, held)
    trained = train(
        classifier,
        known,
        wrong[rows],
        groups[rows],
        inner_folds=inner_folds,
        seed=seed,
        logistic=logistic,
    )
    return trained.network.risk(seen), trained.inner_auroc, trained.chosen
