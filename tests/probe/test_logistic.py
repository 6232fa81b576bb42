"""Logistic regression and its calibration, against scikit-learn's own."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from halp_probe import logistic
from halp_probe.calibration import calibrated, scaling_of
from halp_probe.classifiers import train
from halp_probe.errors import ProbeError
from halp_probe.logistic import GRID, LogisticSettings, standard, train_logistic
from halp_probe.metrics import figures_of
from halp_probe.network import Network
from halp_probe.splits import folds
from tolerance import apart, assert_within, rounding


def planted(rows=400, features=12, seed=0, signal=1.0):
    """x with a constant and a large column, wrong, groups."""
    draws = np.random.default_rng(seed)
    wrong = draws.random(rows) < 0.25
    x = draws.standard_normal((rows, features)).astype(np.float32)
    x[:, 0] += signal * wrong
    x[:, 1] = 7.3
    x[:, 2] = 1000 + 50 * x[:, 2]
    return x, wrong, np.arange(rows) // 2


@pytest.mark.parametrize("c", GRID)
def test_it_is_scikit_learns_pipeline(c):
    """The same order of rows, and its logits but for the slope and offset of the calibration."""
    x, wrong, groups = planted()
    found = train_logistic(x, wrong, groups, LogisticSettings((c,)), inner_folds=3, seed=0)
    model = LogisticRegression(C=c, class_weight="balanced", tol=1e-8, max_iter=10_000)
    oracle = make_pipeline(StandardScaler(), model).fit(x.astype(np.float64), wrong)
    expected = oracle.decision_function(x.astype(np.float64))
    risk = found.network.risk(x).astype(np.float64)
    logits = np.log(risk / (1 - risk))
    slope, offset = np.polyfit(expected, logits, 1)
    assert slope > 0
    np.testing.assert_allclose(logits, slope * expected + offset, atol=2e-2 * logits.std())
    assert found.converged
    assert found.c == c


def test_the_penalty_is_the_one_with_the_best_inner_folds():
    """As a grid search over the same folds would have it."""
    x, wrong, groups = planted(signal=0.8)
    found = train_logistic(x, wrong, groups, inner_folds=3, seed=5)
    means = []
    for c in GRID:
        # By two thirds of the rows, with the same penalty for each.
        model = LogisticRegression(C=1.5 * c, class_weight="balanced", tol=1e-6, max_iter=10_000)
        oracle = make_pipeline(StandardScaler(), model)
        means.append(
            np.mean(
                [
                    roc_auc_score(
                        wrong[test],
                        oracle.fit(x[rows].astype(float), wrong[rows]).decision_function(x[test]),
                    )
                    for rows, test in folds(groups, wrong, 3, 5)
                ]
            )
        )
    assert found.inner_auroc == pytest.approx(max(means), abs=4e-3)
    assert means[GRID.index(found.c)] == pytest.approx(max(means), abs=4e-3)


def test_a_constant_feature_changes_nothing():
    """Its deviation is 1: no division by zero, and none by rounding."""
    x = np.full((30, 2), 1234.567, np.float32)
    x[:, 1] = np.arange(30)
    mean, scale = standard(x)
    assert scale[0] == 1
    assert_within(apart(scale[1] / x[:, 1].std(), 1), rounding(3, len(x)))
    assert_within(apart(mean[1] / 14.5, 1), rounding(1, len(x)))


def test_risks_are_probabilities_of_rows_that_are_new():
    """With a quarter of wrong answers and equal class weights, the risks' mean is a quarter."""
    x, wrong, groups = planted(4000)
    found = train_logistic(x, wrong, groups, inner_folds=3, seed=0)
    new, truth, _ = planted(4000, seed=1)
    risk = found.network.risk(new)
    assert risk.mean() == pytest.approx(0.25, abs=0.02)
    assert figures_of(risk, truth).ece[0] < 0.04
    theory = 1 / (1 + np.exp(-(new[:, 0] - 0.5 + np.log(0.25 / 0.75))))
    assert np.abs(risk - theory).mean() < 0.03


def test_calibration_finds_the_slope_that_was_planted():
    """And keeps the order of rows, even of logits that say the contrary."""
    draws = np.random.default_rng(0)
    logits = draws.normal(0, 40, 20_000)
    wrong = draws.random(20_000) < 1 / (1 + np.exp(-(0.05 * logits - 1)))
    slope, offset = scaling_of(logits, wrong)
    assert (slope, offset) == pytest.approx((0.05, -1), abs=0.06)
    contrary, _ = scaling_of(-logits, wrong)
    assert 0 < contrary < 1e-3
    network = Network(
        np.zeros(1, np.float32),
        np.ones(1, np.float32),
        (np.ones((1, 1), np.float32),),
        (np.zeros(1, np.float32),),
    )
    risk = calibrated(network, logits, wrong).risk(np.array([[-20.0], [0], [20]], np.float32))
    expected = 1 / (1 + np.exp(-(np.array([-1, 0, 1]) - 1)))
    np.testing.assert_allclose(risk, expected, atol=0.03)


def test_a_fit_that_did_not_converge_says_so(monkeypatch):
    """No warning, and no silence: the flag goes into the table's note."""
    monkeypatch.setattr(logistic, "_MOST_ITERATIONS", 2)
    x, wrong, groups = planted()
    found = train("logistic", x, wrong, groups, inner_folds=3, seed=0)
    assert found.chosen["converged"] is False


@pytest.mark.slow
def test_the_same_seed_gives_the_same_network():
    """Bit for bit, of both classifiers."""
    x, wrong, groups = planted(200)
    for name in ("logistic", "mlp"):
        one, again = (train(name, x, wrong, groups, inner_folds=3, seed=3) for _ in range(2))
        np.testing.assert_array_equal(one.network.risk(x), again.network.risk(x))
        assert one.chosen == again.chosen


def test_features_that_are_not_finite_are_refused():
    """Before anything is learned from them."""
    x, wrong, groups = planted(100)
    x[3, 3] = np.nan
    with pytest.raises(ProbeError, match="finite"):
        train_logistic(x, wrong, groups, inner_folds=3, seed=0)
    with pytest.raises(ProbeError, match="no classifier 'tree'; there are logistic, mlp"):
        train("tree", x, wrong, groups, inner_folds=3, seed=0)
