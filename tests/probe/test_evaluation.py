"""What an evaluation finds of what was planted, and what it does not find where nothing was."""

from __future__ import annotations

import json
import math

import joblib
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from halp_probe.candidates import candidates_of
from halp_probe.crossfit import crossfit, plan, ranks_of
from halp_probe.errors import ProbeError
from halp_probe.evaluation import Settings, evaluate
from halp_probe.features import Matrix
from halp_probe.representation import name_of
from halp_probe.results import Group
from halp_probe.rows import load_rows
from halp_probe.splits import CannotSplit
from halp_probe.transfer import source_pairs

from .planted import LAYOUT, SIGNAL, planted_store

QUICK = Settings(("logistic",), seeds=2, bootstrap=200, jobs=1)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One evaluation of 400 rows, of a signal in `query_token@1`, and their store."""
    path = tmp_path_factory.mktemp("evaluation") / "run1.zarr"
    store, verdicts = planted_store(path, seed=1)
    return evaluate(store, verdicts, "planted 1", QUICK), store


@pytest.fixture(scope="module")
def found(both):
    return both[0]


def entry(found, name, classifier="logistic"):
    (one,) = [e for e in found.entries if (e.name, e.classifier) == (name, classifier)]
    return one


@pytest.mark.slow
def test_what_was_planted_is_found_and_nothing_else(both):
    """The AUROC is that of the planted direction itself, and that of theory is within the
    interval; of noise, 0.5 is, but for chance."""
    found, store = both
    theory = 0.5 * (1 + math.erf(SIGNAL / 2))
    direction = store.read(["query_token"], layers=[1])["query_token"][:, 0, 0]
    planted = entry(found, "query_token@1").auroc
    assert planted.value == pytest.approx(roc_auc_score(found.wrong, direction), abs=0.02)
    assert planted.low < theory < planted.high
    noise = [
        one.auroc
        for one in found.entries
        if one.group is Group.REPRESENTATION and one.name != "query_token@1"
    ]
    assert sum(one.low <= 0.5 <= one.high for one in noise) >= len(noise) - 1


@pytest.mark.slow
def test_every_entry_that_is_promised_is_there(found):
    """Each representation, the combinations, the chosen one, baselines, the control."""
    names = [(one.group, one.name) for one in found.entries]
    candidates = candidates_of(LAYOUT, 400)
    expected = [(Group.REPRESENTATION, name_of(one)) for one in candidates.singles]
    expected += [(Group.COMBINATION, name_of(one)) for one in candidates.combinations]
    expected += [(Group.CHOSEN, "chosen")]
    expected += [
        (Group.BASELINE, name)
        for name in (
            *("question kind only", "source only", "answer length"),
            *("bag of words of the question", "image only"),
        )
    ]
    assert names == [*expected, (Group.CONTROL, "shuffled labels")]
    assert all(one.risk.shape[1] == len(found.ids) == 400 for one in found.entries)
    assert all(np.isfinite(one.risk).all() for one in found.entries)
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.slow
def test_shuffled_labels_sit_at_a_half(found):
    """The same classifier on the same states: 0.5 is in its interval, which is narrow."""
    control = entry(found, "shuffled labels").auroc
    assert control.low <= 0.5 <= control.high
    assert control.high - control.low < 0.12


@pytest.mark.slow
def test_what_is_chosen_is_chosen_without_the_test_folds(found):
    """Not better than picking on the test; the planted one is picked nearly always."""
    picks = found.picks["logistic"]
    assert sum(picks.values()) == QUICK.seeds * QUICK.folds
    assert picks["query_token@1"] >= 9
    name, best = found.picked_on_test["logistic"]
    assert name == "query_token@1"
    assert entry(found, "chosen").auroc.value <= best + 1e-9


@pytest.mark.slow
def test_parts_are_of_the_rows_of_one_kind_or_source(found):
    """Their rows and wrong ones add up, and their AUROC is in the middle of the ranks'."""
    for of in ("by_kind", "by_source"):
        parts = getattr(entry(found, "query_token@1"), of)
        assert len(parts) == 2
        assert sum(one.rows for one in parts.values()) == 400
        assert sum(one.wrong for one in parts.values()) == found.counts.wrong
        assert all(0.6 < one.auroc.value < 0.9 for one in parts.values())


@pytest.mark.slow
def test_transfer_is_from_one_source_to_another(found):
    """Both ways; the planted direction is the same in both."""
    pairs = {(one.trained_on, one.tested_on) for one in found.transfers}
    assert pairs == {("amber", "pope"), ("pope", "amber")}
    moved = [one for one in found.transfers if one.name == "query_token@1"]
    assert all(one.auroc.value > 0.65 and one.rows == 200 for one in moved)


@pytest.mark.slow
def test_the_same_settings_give_the_same_figures(tmp_path):
    """Bit for bit, in one process or in two."""
    store, verdicts = planted_store(tmp_path / "run1.zarr", 120)
    settings = [Settings(("logistic",), 1, 3, 2, 100, jobs) for jobs in (1, 1, 2)]
    one, again, side_by_side = (evaluate(store, verdicts, "p", each) for each in settings)
    for other in (again, side_by_side):
        for a, b in zip(one.entries, other.entries, strict=True):
            np.testing.assert_array_equal(a.risk, b.risk)
            assert (a.auroc, a.by_kind) == (b.auroc, b.by_kind)


@pytest.mark.slow
def test_folds_by_question_inflate_what_only_knows_the_image(tmp_path):
    """States that say which image it is, and nothing of the question, seem to know errors where
    the other questions of the image were learned from."""
    store, verdicts = planted_store(tmp_path / "run1.zarr", 480, by_image=True)
    rows = load_rows(store, verdicts)
    x = Matrix(np.eye(rows.counts.images, dtype=np.float32)[rows.groups])
    by_image = plan(rows.groups, rows.wrong, seeds=1, count=5, inner_folds=3)
    by_question = plan(np.arange(len(rows)), rows.wrong, seeds=1, count=5, inner_folds=3)
    with joblib.Parallel(n_jobs=1) as pool:
        honest, leaking = (
            crossfit(pool, x, ("logistic",), one)["logistic"] for one in (by_image, by_question)
        )
    assert roc_auc_score(rows.wrong, leaking.ranks[0]) > 0.75
    assert roc_auc_score(rows.wrong, honest.ranks[0]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_the_mlp_is_evaluated_in_the_same_folds(tmp_path):
    """Its entries are there beside those of logistic regression, and find the signal too."""
    store, verdicts = planted_store(tmp_path / "run1.zarr", 240)
    settings = Settings(("mlp",), 1, 3, 2, 100, 1)
    found = evaluate(store, verdicts, "planted 1", settings)
    assert entry(found, "query_token@1", "mlp").auroc.value > 0.6
    assert sum(found.picks["mlp"].values()) == 3
    assert "epochs" in entry(found, "query_token@1", "mlp").note
    assert {one.classifier for one in found.leaks} == {"mlp"}


def test_ranks_do_not_know_which_fold_a_row_is_in():
    """Each fold's are the same numbers, whatever its risks; equal risks have equal ranks."""
    splits = [[(np.array([3, 4, 5]), np.array([0, 1, 2])), (np.arange(3), np.array([3, 4, 5]))]]
    risk = np.array([[0.2, 0.1, 0.1, 0.9, 0.8, 0.85]], np.float32)
    expected = np.array([1, 0.5, 0.5, 1, 1 / 3, 2 / 3], np.float32)
    np.testing.assert_allclose(ranks_of(risk, splits)[0], expected)


def test_an_image_of_both_sources_is_not_learned_from(tmp_path):
    """It is tested only."""
    store, verdicts = planted_store(tmp_path / "run1.zarr", 400)
    rows = load_rows(store, verdicts)
    shared = rows.groups.copy()
    shared[:4] = shared[4]
    mixed = type(rows)(**{**vars(rows), "groups": shared})
    for _, _, taught, held in source_pairs(mixed, 3):
        assert not set(shared[taught]) & set(shared[held])
        assert not set(range(4)) & set(taught)
    assert len(source_pairs(mixed, 3)) == 2


def test_combinations_are_chosen_by_name_and_size():
    """No label is asked; what is too large for the rows is left out and named."""
    usual = candidates_of(LAYOUT, 400)
    assert [name_of(one) for one in usual.combinations] == [
        "vision_only+query_token@1",
        "vision_token@1+query_token@1",
        "vision_only+vision_token@1+query_token@1",
        "query_token@0+query_token@1+query_token@2",
    ]
    fixed = ["vision_only", "vision_token@1", "query_token@1"]
    assert [name_of(one) for one in usual.fixed] == fixed
    asked = candidates_of(LAYOUT, 400, ["vision_encoder+vision_only"])
    assert name_of(asked.combinations[-1]) == "vision_encoder+vision_only"
    large = candidates_of(LAYOUT, 20_000_000)
    assert "query_token@0+query_token@1+query_token@2" in large.left_out


def test_what_cannot_be_measured_has_no_figure(tmp_path):
    """One class, too few images, a classifier that there is not: a sentence each."""
    store, verdicts = planted_store(tmp_path / "run1.zarr", 40)
    right = {one: v for one, v in verdicts.items() if v.label == "right"}
    with pytest.raises(CannotSplit, match="0 wrong of"):
        evaluate(store, right, "p", QUICK)
    few = dict(list(verdicts.items())[:8])
    with pytest.raises(CannotSplit, match="5 folds by image need"):
        evaluate(store, few, "p", QUICK)
    with pytest.raises(ProbeError, match="expected some of logistic, mlp, got tree"):
        evaluate(store, verdicts, "p", Settings(("tree",)))
