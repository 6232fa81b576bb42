"""`evaluate`: how well each representation tells wrong answers from right ones, with its controls.

Everything that is chosen is chosen inside training parts; risks are out-of-fold. Knows which
classifier reads what, and in which folds; figures are `metrics`', folds `splits`'.
N rows, S seeds, K folds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from halp_probe.baselines import IMAGE, SHUFFLED, baselines, numbers
from halp_probe.bootstrap import Draws, auroc_interval, draw_images
from halp_probe.candidates import Candidates, candidates_of
from halp_probe.classifiers import CLASSIFIERS, LOGISTIC
from halp_probe.crossfit import Crossfit, Plan, crossfit, plan
from halp_probe.errors import ProbeError
from halp_probe.features import Matrix, read_features
from halp_probe.judging.verdict import Verdict
from halp_probe.logistic import GRID, WORDS_GRID
from halp_probe.measuring import NO_CLASSIFIER, Scored, entries_of
from halp_probe.metrics import BINS
from halp_probe.network import Floats
from halp_probe.representation import Representations, name_of
from halp_probe.results import Entry, Evaluation, Group, Leak, Transfer
from halp_probe.rows import Rows, load_rows
from halp_probe.transfer import transfers

if TYPE_CHECKING:
    from halp_store.view import View

Told = Callable[[int, int], None]
"""Is told (steps done, of how many)."""

PERMUTATIONS: Final = 5
"""Of the labels, for the control: the interval of their mean is some hundredths at most."""
CHOSEN: Final = "chosen"
_PACKAGES: Final = ("halp-stream", "numpy", "scikit-learn", "scipy")
# Of a commit or a digest: enough to tell it from all others.
_REVISION: Final = 12
# About: baselines, the control, leaks, transfers.
_OTHER_STEPS: Final = 16


@dataclass(frozen=True)
class Settings:
    """combine: more combinations, as `A+B@1`. kind_field, source_field: keys of the metadata.

    bootstrap: samples. jobs: processes; None for one a core.
    """

    classifiers: tuple[str, ...] = CLASSIFIERS
    seeds: int = 3
    folds: int = 5
    inner_folds: int = 3
    bootstrap: int = 1000
    jobs: int | None = None
    combine: tuple[str, ...] = ()
    kind_field: str | None = None
    source_field: str | None = None


def evaluate(
    store: View,
    verdicts: Mapping[str, Verdict],
    judge: str,
    settings: Settings | None = None,
    told: Told | None = None,
) -> Evaluation:
    """verdicts: of a label table, question id -> verdict. judge: its name and version.

    The same rows, labels and settings give the same figures on the same machine.
    Raises NoRows, CannotSplit, UnknownRepresentation, another ProbeError, or DamagedSegment.
    """
    settings = settings or Settings()
    check_classifiers(settings.classifiers)
    started = time.monotonic()
    rows = load_rows(
        store, verdicts, kind_field=settings.kind_field, source_field=settings.source_field
    )
    candidates = candidates_of(store.layout, len(rows), settings.combine)
    draws = draw_images(rows.groups, settings.bootstrap, seed=0)
    jobs = settings.jobs or joblib.cpu_count()
    # Each process has a core: threads that wait for each other cost more than they give.
    with threadpool_limits(1), joblib.Parallel(n_jobs=jobs) as pool:
        run = _Run(store, rows, settings, candidates, pool, told)
        fits = run.fits()
        chosen, picks = run.chosen(fits)
        scored = [*run.lines(fits), *chosen, *run.baselines(fits), run.control()]
        leaks = run.leaks(fits, picks, draws)
        moved = run.transfers(draws)
    entries = entries_of(scored, rows, draws, jobs, run.step)
    return Evaluation(
        store=store.path,
        model=_model(store),
        judge=judge,
        counts=rows.counts,
        entries=entries,
        picks=picks,
        picked_on_test=_best_on_test(entries),
        transfers=moved,
        leaks=leaks,
        settings=_described(settings, rows, candidates, time.monotonic() - started),
        ids=rows.ids,
        wrong=rows.wrong,
    )


def check_classifiers(names: Sequence[str]) -> None:
    """Raises ProbeError."""
    unknown = [name for name in names if name not in CLASSIFIERS]
    if unknown or not names:
        raise ProbeError(
            f"classifiers: expected some of {', '.join(CLASSIFIERS)}, "
            f"got {', '.join(unknown) or 'none'}"
        )


_Fits = dict[tuple[str, str], Crossfit]
"""(representation, classifier) -> what came of it, in the order of the table."""


class _Run:
    """One evaluation under way: what its steps share."""

    def __init__(
        self,
        store: View,
        rows: Rows,
        settings: Settings,
        candidates: Candidates,
        pool: joblib.Parallel,
        told: Told | None,
    ) -> None:
        self._store, self._rows, self._settings = store, rows, settings
        self._candidates, self._pool, self._told = candidates, pool, told
        self._plan = self._planned(rows.groups, rows.wrong, settings.seeds)
        self._first = LOGISTIC if LOGISTIC in settings.classifiers else settings.classifiers[0]
        self._done = 0

    def step(self) -> None:
        self._done += 1
        if self._told is not None:
            count = len(self._candidates.all) * (1 + len(self._settings.classifiers))
            self._told(self._done, max(self._done, count + _OTHER_STEPS))

    def fits(self) -> _Fits:
        """Each representation and combination is read once, and let go."""
        found: _Fits = {}
        for parts in self._candidates.all:
            x = Matrix(self._read(parts))
            done = crossfit(self._pool, x, self._settings.classifiers, self._plan)
            found |= {(name_of(parts), name): one for name, one in done.items()}
            self.step()
        return found

    def lines(self, fits: _Fits) -> list[Scored]:
        singles = set(map(name_of, self._candidates.singles))
        return [
            Scored(
                name,
                Group.REPRESENTATION if name in singles else Group.COMBINATION,
                classifier,
                one.risk,
                one.ranks,
                one.note,
            )
            for (name, classifier), one in fits.items()
        ]

    def chosen(self, fits: _Fits) -> tuple[list[Scored], dict[str, dict[str, int]]]:
        """In each training part the representation that its own inner folds found the best."""
        names = list(map(name_of, self._candidates.singles))
        lines: list[Scored] = []
        picks: dict[str, dict[str, int]] = {}
        for classifier in self._settings.classifiers:
            among = [fits[name, classifier] for name in names]
            inner = np.stack([one.inner_auroc for one in among])
            best = np.nan_to_num(inner, nan=-1).argmax(0)
            risk, ranks = np.empty_like(among[0].risk), np.empty_like(among[0].ranks)
            for seed, splits in enumerate(self._plan.splits):
                for at, (_, held) in enumerate(splits):
                    picked = among[best[seed, at]]
                    risk[seed, held] = picked.risk[seed, held]
                    ranks[seed, held] = picked.ranks[seed, held]
            counts = Counter(names[one] for one in best.ravel().tolist())
            picks[classifier] = dict(counts.most_common())
            note = "by inner folds"
            lines.append(Scored(CHOSEN, Group.CHOSEN, classifier, risk, ranks, note))
        return lines, picks

    def baselines(self, fits: _Fits) -> list[Scored]:
        found = []
        for one in baselines(self._rows):
            done = crossfit(self._pool, one.inputs, (LOGISTIC,), self._plan, one.settings)[LOGISTIC]
            line = Scored(one.name, Group.BASELINE, LOGISTIC, done.risk, done.ranks, one.note)
            found.append(line)
            self.step()
        for number in numbers(self._rows):
            risk = np.repeat(number.risk[None], self._settings.seeds, axis=0)
            line = Scored(number.name, Group.BASELINE, NO_CLASSIFIER, risk, risk, number.note)
            found.append(line)
        if self._candidates.image is not None:
            name = name_of(self._candidates.image)
            of = fits[name, self._first]
            found.append(Scored(IMAGE, Group.BASELINE, self._first, of.risk, of.ranks, name))
        return found

    def control(self) -> Scored:
        """Each permutation with folds of its own. The risks go back with their labels to the rows
        that those are from: they are read against the evaluation's labels like all others."""
        parts, rows = self._candidates.late_query, self._rows
        draws = np.random.default_rng(0)
        orders = np.stack([draws.permutation(len(rows)) for _ in range(PERMUTATIONS)])
        shuffled = self._planned(rows.groups, rows.wrong[orders], PERMUTATIONS)
        x = Matrix(self._read(parts))
        found = crossfit(self._pool, x, (self._first,), shuffled)[self._first]
        risk, ranks = np.empty_like(found.risk), np.empty_like(found.ranks)
        np.put_along_axis(risk, orders, found.risk, axis=1)
        np.put_along_axis(ranks, orders, found.ranks, axis=1)
        self.step()
        note = f"{name_of(parts)}, {PERMUTATIONS} permutations"
        return Scored(SHUFFLED, Group.CONTROL, self._first, risk, ranks, note)

    def leaks(
        self, fits: _Fits, picks: Mapping[str, Mapping[str, int]], draws: Draws
    ) -> tuple[Leak, ...]:
        """Of the fixed representations and the one picked most often."""
        rows, names = self._rows, list(map(name_of, self._candidates.fixed))
        picked = next(iter(picks[self._first]))
        by_question = self._planned(np.arange(len(rows)), rows.wrong, self._settings.seeds)
        found = []
        for parts in self._candidates.singles:
            name = name_of(parts)
            if name not in {*names, picked}:
                continue
            x = Matrix(self._read(parts))
            leaking = crossfit(self._pool, x, (self._first,), by_question)[self._first]
            honest = fits[name, self._first]
            both = [auroc_interval(one.ranks, rows.wrong, draws) for one in (honest, leaking)]
            found.append(Leak(name, self._first, *both))
            self.step()
        return tuple(found)

    def transfers(self, draws: Draws) -> tuple[Transfer, ...]:
        if len(set(self._rows.sources)) == 1:
            return ()
        found: list[Transfer] = []
        for parts in self._candidates.fixed:
            found += transfers(
                self._rows,
                draws,
                name_of(parts),
                self._read(parts),
                classifier=self._first,
                inner_folds=self._settings.inner_folds,
            )
            self.step()
        return tuple(found)

    def _read(self, parts: Representations) -> Floats:
        return read_features(self._store, parts, self._rows.ids)

    def _planned(self, groups: Any, wrong: Any, seeds: int) -> Plan:
        return plan(
            groups,
            wrong,
            seeds=seeds,
            count=self._settings.folds,
            inner_folds=self._settings.inner_folds,
        )


def _best_on_test(entries: Sequence[Entry]) -> dict[str, tuple[str, float]]:
    found: dict[str, tuple[str, float]] = {}
    for one in entries:
        best = found.get(one.classifier)
        if one.group is Group.REPRESENTATION and (best is None or one.auroc.value > best[1]):
            found[one.classifier] = (one.name, one.auroc.value)
    return found


def _model(store: View) -> str:
    model = store.layout.fingerprint.get("model", "unknown")
    if isinstance(model, Mapping):
        return "@".join(str(model[key]) for key in ("id", "revision") if model.get(key))
    revision = store.layout.fingerprint.get("revision")
    if not isinstance(revision, str):
        return str(model)
    return f"{model}@{revision.removeprefix('sha256:')[:_REVISION]}"


def _described(
    settings: Settings, rows: Rows, candidates: Candidates, seconds: float
) -> dict[str, Any]:
    return {
        **asdict(settings),
        "jobs": settings.jobs or joblib.cpu_count(),
        "kind_field": rows.kind_field,
        "source_field": rows.source_field,
        "length_unit": rows.length_unit,
        "C": list(GRID),
        "C_of_words": list(WORDS_GRID),
        "ece_bins": BINS,
        "permutations": PERMUTATIONS,
        "left_out": list(candidates.left_out),
        "seconds": round(seconds, 1),
        "versions": {name: version(name) for name in _PACKAGES},
    }
