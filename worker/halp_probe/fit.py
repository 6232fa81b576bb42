"""`fit`: a probe for use, trained on all labelled rows, and what is known of how good it is.

How good: the same procedure, choice of representation and all, repeated on the training part of
each outer fold, and its risks of the rows left out. The probe itself has seen all rows: no figure
is of its own risks on them. Knows rows and features; refuses to know how labels came to be.

K outer folds, N labelled rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import joblib
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from halp_probe.bootstrap import auroc_interval, draw_images
from halp_probe.classifiers import Trained, train
from halp_probe.crossfit import Plan, crossfit, ranks_of
from halp_probe.features import Matrix, read_features
from halp_probe.network import Floats
from halp_probe.probe import Probe, identity_of
from halp_probe.representation import Representations, name_of, representations_of
from halp_probe.results import Interval, plain
from halp_probe.splits import folds

if TYPE_CHECKING:
    from halp_probe.rows import Rows
    from halp_store.view import View

FOLDS: Final = 5
INNER_FOLDS: Final = 3
THRESHOLDS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of risk, which is a probability: where few answers are wrong, few are above one half."""
_QUANTILES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_SAMPLES: Final = 1000
"""Of the bootstrap."""
_PACKAGES: Final = ("halp-stream", "numpy", "scikit-learn", "safetensors")

Told = Callable[[int, int], None]
"""Is told (representations done, of how many)."""


@dataclass(frozen=True)
class Threshold:
    """What `--abstain-above` this risk does, on rows that the probe did not learn from.

    share: of answers above it. precision: of those, how many are wrong; NaN if there are none.
    caught: of the wrong answers, how many are above. wrong_below: of those that are still given,
        how many are wrong; NaN if there are none.
    """

    above: float
    share: float
    precision: float
    caught: float
    wrong_below: float


@dataclass(frozen=True, eq=False)
class Tried:
    """One representation on the outer folds. risk: (N,) float32, each row's by the fold that did
    not learn from it. inner: (K,) AUROC inside each training part."""

    name: str
    risk: Floats
    inner: npt.NDArray[np.float64]


@dataclass(frozen=True)
class How:
    """How to train. representations: those to choose among, by rows that are left out; one is no
    choice. jobs: processes; None for one a core."""

    representations: tuple[Representations, ...]
    classifier: str
    seed: int
    folds: int = FOLDS
    inner_folds: int = INNER_FOLDS
    jobs: int | None = None


@dataclass(frozen=True)
class Origin:
    """Of the labels: judge, version and where the store is; for people."""

    store: str
    judge: str
    label_version: int


def fit(store: View, rows: Rows, how: How, origin: Origin, *, told: Told | None = None) -> Probe:
    """Raises CannotSplit, CannotTrain or DamagedSegment."""
    plan = plan_of(rows, how)
    tried: list[Tried] = []
    best: tuple[Representations, Trained] | None = None
    inner: dict[str, float] = {}
    with threadpool_limits(1), joblib.Parallel(n_jobs=how.jobs or joblib.cpu_count()) as pool:
        for number, parts in enumerate(how.representations):
            x = read_features(store, parts, rows.ids)
            tried.append(try_out(pool, name_of(parts), x, plan, how))
            found = train(
                how.classifier,
                x,
                rows.wrong,
                rows.groups,
                inner_folds=how.inner_folds,
                seed=how.seed,
            )
            inner[name_of(parts)] = found.inner_auroc
            if best is None or _order(found.inner_auroc) > _order(best[1].inner_auroc):
                best = parts, found
            if told is not None:
                told(number + 1, len(how.representations))
    if best is None:
        raise ValueError("expected at least one representation to choose from")
    risk, picks = nested(tried, plan)
    about = {
        **_of_rows(rows, origin, store),
        "representation": name_of(best[0]),
        "classifier": how.classifier,
        "chosen": dict(best[1].chosen),
        "chosen_among": plain(inner),
        "picks": picks,
        "seed": how.seed,
        "folds": how.folds,
        "inner_folds": how.inner_folds,
        **_figures(risk, rows, plan),
        "versions": {name: version(name) for name in _PACKAGES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Probe(best[0], best[1].network, identity_of(store.layout), about)


def all_of(store: View) -> tuple[Representations, ...]:
    """Each representation of the store by itself, to choose among."""
    return tuple((one,) for one in representations_of(store.layout))


def plan_of(rows: Rows, how: How) -> Plan:
    """The outer folds, of one seed. Raises CannotSplit."""
    splits = folds(rows.groups, rows.wrong, how.folds, how.seed)
    return Plan(rows.groups, rows.wrong[None], [splits], how.inner_folds)


def try_out(pool: joblib.Parallel, name: str, x: Floats, plan: Plan, how: How) -> Tried:
    """x: (N, F). Each training part chooses its own settings."""
    found = crossfit(pool, Matrix(x), [how.classifier], plan)[how.classifier]
    return Tried(name, found.risk[0], found.inner_auroc[0])


def nested(tried: Sequence[Tried], plan: Plan) -> tuple[Floats, dict[str, int]]:
    """(N,) risks where each training part chose its representation too, and which how often."""
    risk = np.empty_like(tried[0].risk)
    picks: dict[str, int] = {}
    for number, (_, left_out) in enumerate(plan.splits[0]):
        best = tried[int(np.argmax([_order(float(one.inner[number])) for one in tried]))]
        risk[left_out] = best.risk[left_out]
        picks[best.name] = picks.get(best.name, 0) + 1
    return risk, picks


def thresholds_of(
    risk: Floats, wrong: npt.NDArray[np.bool_], above: Sequence[float] = THRESHOLDS
) -> tuple[Threshold, ...]:
    """One for each risk in `above`."""
    found = []
    for one in above:
        skipped = risk > one
        found.append(
            Threshold(
                above=one,
                share=float(skipped.mean()),
                precision=_share(wrong[skipped]),
                caught=float((wrong & skipped).sum() / wrong.sum()),
                wrong_below=_share(wrong[~skipped]),
            )
        )
    return tuple(found)


def interval_of(risk: Floats, rows: Rows, plan: Plan) -> Interval:
    """AUROC of (N,) risks, each among those of its fold, and its interval over images."""
    ranks = ranks_of(risk[None], plan.splits)
    return auroc_interval(ranks, rows.wrong, draw_images(rows.groups, _SAMPLES, 0))


def _of_rows(rows: Rows, origin: Origin, store: View) -> dict[str, Any]:
    return {
        "store": origin.store,
        "model": store.layout.fingerprint.get("model"),
        "judge": origin.judge,
        "label_version": origin.label_version,
        "rows": len(rows),
        "wrong": int(rows.wrong.sum()),
        "images": rows.counts.images,
        "online": not store.layout.unknown,
    }


def _figures(risk: Floats, rows: Rows, plan: Plan) -> dict[str, Any]:
    interval = interval_of(risk, rows, plan)
    return {
        "auroc": plain(asdict(interval)),
        "risk_quantiles": {
            str(at): float(value)
            for at, value in zip(_QUANTILES, np.quantile(risk, _QUANTILES), strict=True)
        },
        "thresholds": plain([asdict(one) for one in thresholds_of(risk, rows.wrong)]),
    }


def _share(wrong: npt.NDArray[np.bool_]) -> float:
    return float(wrong.mean()) if len(wrong) else math.nan


def _order(auroc: float) -> float:
    """NaN, of rows of one class, is never better."""
    return -math.inf if math.isnan(auroc) else auroc
