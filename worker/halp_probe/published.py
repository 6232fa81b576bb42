"""`compare`: the published pipeline, step by step as its scripts do it, and the corrected one.

What the scripts do, and what is wrong with it, is in `docs/published.md`; here it is repeated on
purpose. Knows two label tables of one store; refuses to know who judged.

Not guaranteed: the published digits. The scripts set no seed for their weights; the split is theirs
where the rows are in the order of their files, which an imported store remembers.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import joblib
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from halp_probe.errors import ProbeError
from halp_probe.features import read_features
from halp_probe.fit import How, Tried, interval_of, nested, plan_of, try_out
from halp_probe.judging.verdict import Kind, Verdict
from halp_probe.metrics import auroc_of
from halp_probe.mlp import PUBLISHED, train_mlp
from halp_probe.network import Floats
from halp_probe.published_table import Comparison, Labelled, Line
from halp_probe.representation import name_of
from halp_probe.results import Interval
from halp_probe.rows import Rows, load_rows

if TYPE_CHECKING:
    from halp_probe.crossfit import Plan
    from halp_probe.splits import Split
    from halp_store.view import View

TEST_SHARE: Final = 0.2
RANDOM_STATE: Final = 42
"""Of the published split."""
ONE_CLASS: Final = 0.5
"""What the scripts report where the test set has one class."""
CHOSEN: Final = "chosen inside, for each fold"
YES_NO: Final = "is it a yes/no question, alone"

Bools = npt.NDArray[np.bool_]
Told = Callable[[int, int], None]
"""Is told (representations done, of how many)."""


@dataclass(frozen=True)
class Judged:
    """A label table: verdicts by question id."""

    judge: str
    version: int
    verdicts: Mapping[str, Verdict]


@dataclass(frozen=True, eq=False)
class _Side:
    """Rows under one judge, their folds by image, and whether each asks for yes or no."""

    rows: Rows
    plan: Plan
    is_yes_no: Bools


def compare(
    store: View,
    published: Judged,
    corrected: Judged,
    how: How,
    *,
    told: Told | None = None,
) -> Comparison:
    """how: of the corrected side, and the representations of both. Same judge twice: once is done.

    Raises NoRows, CannotSplit, CannotTrain, ProbeError or DamagedSegment.
    """
    left = _side(store, published, how)
    same = (published.judge, published.version) == (corrected.judge, corrected.version)
    right = left if same else _side(store, corrected, how)
    order = published_order(store, left.rows.ids)
    split = published_split(left.rows.wrong, order, published.judge)
    figures: list[float] = []
    tried: tuple[list[Tried], list[Tried]] = ([], [])
    with threadpool_limits(1), joblib.Parallel(n_jobs=how.jobs or joblib.cpu_count()) as pool:
        for number, parts in enumerate(how.representations):
            name = name_of(parts)
            x = read_features(store, parts, left.rows.ids)
            figures.append(published_auroc(x, left.rows.wrong, split, how.seed))
            tried[0].append(try_out(pool, name, x, left.plan, how))
            if not same:
                x = read_features(store, parts, right.rows.ids)
                tried[1].append(try_out(pool, name, x, right.plan, how))
            if told is not None:
                told(number + 1, len(how.representations))
    lines = _lines(figures, tried[0], left, tried[1] or tried[0], right)
    train, test = split
    trained_on = np.isin(left.rows.groups[test], left.rows.groups[train])
    return Comparison(
        store=store.path,
        model=_model(store),
        published=_labelled(published, left.rows),
        corrected=_labelled(corrected, right.rows),
        changed=_changed(store, published, corrected),
        tested=len(test),
        leaked=int(trained_on.sum()),
        lines=lines,
        picked=max(lines, key=lambda one: one.published),
        chosen=_chosen(left, tried[0], right, tried[1] or tried[0]),
        yes_no=_yes_no(left, right, split),
        settings={
            "published": {
                **asdict(PUBLISHED),
                "test_share": TEST_SHARE,
                "random_state": RANDOM_STATE,
            },
            "corrected": {
                "classifier": how.classifier,
                "folds": how.folds,
                "inner_folds": how.inner_folds,
            },
            "seed": how.seed,
        },
    )


def published_order(store: View, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """(N,): rows in the order in which the scripts read them: file by file, then by id.

    On it depends which rows are drawn for the test set. A store that was not imported is one file.
    """
    texts = store[list(ids)].text("metadata")
    files = [str((json.loads(one) if one else {}).get("imported_from", "")) for one in texts]
    keys = list(zip(files, ids, strict=True))
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def published_split(wrong: Bools, order: npt.NDArray[np.int64], judge: str) -> Split:
    """(train, test) rows: a fifth of the questions, drawn without a look at their images."""
    from sklearn.model_selection import train_test_split

    try:
        train, test = train_test_split(
            order, test_size=TEST_SHARE, random_state=RANDOM_STATE, stratify=wrong[order]
        )
    except ValueError as error:
        raise ProbeError(
            f"judge {judge}: the published split wants at least 2 rows of each label and 5 rows: "
            f"got {int(wrong.sum()):,} wrong of {len(wrong):,} ({error}); label more rows"
        ) from error
    return train, test


def published_auroc(x: Floats, wrong: Bools, split: Split, seed: int) -> float:
    """On the test rows, after all epochs on the others; nothing is standardised."""
    train, test = split
    if _is_one_class(wrong[test]):
        return ONE_CLASS
    network, _ = train_mlp(x[train], wrong[train], PUBLISHED, seed=seed)
    return auroc_of(network.risk(x[test]), wrong[test])


def _side(store: View, judged: Judged, how: How) -> _Side:
    rows = load_rows(store, judged.verdicts)
    is_yes_no = np.array([judged.verdicts[one].kind is Kind.YES_NO for one in rows.ids])
    return _Side(rows, plan_of(rows, how), is_yes_no)


def _lines(
    figures: Sequence[float],
    tried_left: Sequence[Tried],
    left: _Side,
    tried_right: Sequence[Tried],
    right: _Side,
) -> tuple[Line, ...]:
    return tuple(
        Line(
            one.name,
            figure,
            interval_of(one.risk, left.rows, left.plan),
            interval_of(two.risk, right.rows, right.plan),
        )
        for figure, one, two in zip(figures, tried_left, tried_right, strict=True)
    )


def _chosen(
    left: _Side, tried_left: Sequence[Tried], right: _Side, tried_right: Sequence[Tried]
) -> Line:
    """There is none on the published side: it chose on its test set."""
    one, two = (
        interval_of(nested(tried, side.plan)[0], side.rows, side.plan)
        for tried, side in ((tried_left, left), (tried_right, right))
    )
    return Line(CHOSEN, math.nan, one, two)


def _yes_no(left: _Side, right: _Side, split: Split) -> Line:
    train, test = split
    alone = math.nan
    if not _is_one_class(left.rows.wrong[test]):
        risk = _share_of_wrong(left.is_yes_no, left.rows.wrong, train)
        alone = auroc_of(risk[test], left.rows.wrong[test])
    return Line(YES_NO, alone, _yes_no_by_image(left), _yes_no_by_image(right))


def _yes_no_by_image(side: _Side) -> Interval:
    """In the folds of everything else."""
    risk = np.empty(len(side.rows), np.float32)
    for train, test in side.plan.splits[0]:
        risk[test] = _share_of_wrong(side.is_yes_no, side.rows.wrong, train)[test]
    return interval_of(risk, side.rows, side.plan)


def _share_of_wrong(is_yes_no: Bools, wrong: Bools, train: npt.NDArray[np.int64]) -> Floats:
    """(N,): how many of the training rows of a row's kind are wrong."""
    shares = np.full(len(wrong), wrong[train].mean(), np.float32)
    for kind in (False, True):
        learned = train[is_yes_no[train] == kind]
        if len(learned):
            shares[is_yes_no == kind] = wrong[learned].mean()
    return shares


def _is_one_class(wrong: Bools) -> bool:
    return bool(wrong.all() or not wrong.any())


def _changed(store: View, published: Judged, corrected: Judged) -> dict[str, int]:
    """Of rows that are in both tables, whatever their label."""
    found: Counter[str] = Counter()
    for one in store.ids:
        before, after = published.verdicts.get(one), corrected.verdicts.get(one)
        if before is not None and after is not None and before.label != after.label:
            found[f"{before.label} -> {after.label}"] += 1
    return dict(found)


def _labelled(judged: Judged, rows: Rows) -> Labelled:
    return Labelled(
        judged.judge, judged.version, len(rows), int(rows.wrong.sum()), rows.counts.images
    )


def _model(store: View) -> str:
    said: Any = store.layout.fingerprint.get("model", "unknown")
    return said if isinstance(said, str) else json.dumps(said, sort_keys=True)
