"""Figures of risks, against scikit-learn and against counting by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from halp_probe.bootstrap import auroc_interval, draw_images, intervals_of
from halp_probe.metrics import BINS, Ranked, auroc_of, bins_of, figures_of, risk_coverage
from tolerance import apart, assert_within, rounding

ROWS = 300


def drawn(seed, ties):
    """Risks of some rows, many of them equal where wanted, and whether each is wrong."""
    draws = np.random.default_rng(seed)
    wrong = draws.random(ROWS) < 0.3
    risk = np.clip(draws.normal(0.4 + 0.2 * wrong, 0.2), 0, 1).astype(np.float32)
    return (np.round(risk, 1) if ties else risk), wrong


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_and_auprc_are_those_of_scikit_learn(ties):
    """With and without ties, weighted by whole numbers or not."""
    risk, wrong = drawn(0, ties)
    weights = np.random.default_rng(1).integers(0, 4, (ROWS, 7)).astype(np.float64)
    found = Ranked(risk, wrong, risk).figures(weights)
    for at, one in enumerate(weights.T):
        auroc = roc_auc_score(wrong, risk, sample_weight=one)
        auprc = average_precision_score(wrong, risk, sample_weight=one)
        assert_within(apart(found.auroc[at], auroc), rounding(2, ROWS))
        assert_within(apart(found.auprc[at], auprc), rounding(2, ROWS))
    np.testing.assert_allclose(auroc_of(risk, wrong), roc_auc_score(wrong, risk))


@pytest.mark.parametrize("ties", [False, True])
def test_the_calibration_error_is_the_mean_gap_of_bins(ties):
    """Counted bin by bin; of risks that are the truth's probability it is small."""
    risk, wrong = drawn(0, ties)
    bins = bins_of(risk)
    gaps = [
        abs(wrong[bins == one].mean() - risk[bins == one].mean()) * (bins == one).mean()
        for one in np.unique(bins)
    ]
    assert_within(apart(figures_of(risk, wrong).ece, sum(gaps)), rounding(2, ROWS))
    draws = np.random.default_rng(2)
    honest = draws.random(50_000).astype(np.float32)
    truth = draws.random(50_000) < honest
    assert figures_of(honest, truth).ece < 0.01
    assert figures_of(honest**3, truth).ece > 0.1


def test_bins_have_as_many_rows_each_and_keep_equal_risks_together():
    """Of different risks all bins are as large; of two values there are two bins."""
    risk = np.random.default_rng(0).random(BINS * 20).astype(np.float32)
    assert np.bincount(bins_of(risk)).tolist() == [20] * BINS
    assert len(set(bins_of(np.array([0.2] * 50 + [0.7] * 10, np.float32)).tolist())) == 2


def test_the_risk_coverage_curve_is_what_one_would_count():
    """Answering the least risky rows first; its mean over rows is the area."""
    wrong = drawn(3, ties=False)[1]
    risk = np.random.default_rng(3).random(ROWS).astype(np.float32)
    coverage, selective = risk_coverage(risk, wrong)
    order = np.argsort(risk, kind="stable")
    by_hand = [wrong[order[: n + 1]].mean() for n in range(ROWS)]
    np.testing.assert_allclose(selective, by_hand)
    np.testing.assert_allclose(coverage, np.arange(1, ROWS + 1) / ROWS)
    assert_within(apart(figures_of(risk, wrong).aurc, np.mean(by_hand)), rounding(2, ROWS))


def test_equal_risks_are_answered_together():
    """A risk that says nothing has one point: all rows, and their share of wrong ones."""
    wrong = np.arange(10) < 3
    coverage, selective = risk_coverage(np.full(10, 0.5, np.float32), wrong)
    assert (coverage.tolist(), selective.tolist()) == ([1.0], [0.3])
    found = figures_of(np.full(10, 0.5, np.float32), wrong)
    assert (found.auroc[0], found.auprc[0]) == (0.5, pytest.approx(0.3))
    assert found.aurc[0] == pytest.approx(0.3)


def test_one_class_has_no_figure():
    """NaN, and no warning."""
    found = figures_of(np.arange(5, dtype=np.float32) / 5, np.zeros(5, bool))
    assert np.isnan([found.auroc, found.auprc, found.ece, found.aurc]).all()
    interval = auroc_interval(
        np.ones((1, 5), np.float32), np.ones(5, bool), draw_images(np.arange(5), 10, 0)
    )
    assert np.isnan([interval.value, interval.low, interval.high]).all()


def test_a_number_that_is_no_probability_has_no_calibration_error():
    """Its other figures are had."""
    risk, wrong = drawn(0, ties=False)
    found = figures_of(10 * risk, wrong, is_probability=False)
    assert np.isnan(found.ece).all()
    np.testing.assert_allclose(found.auroc, roc_auc_score(wrong, risk))


def test_an_interval_is_of_the_mean_over_seeds():
    """Its middle is the mean of the AUROCs of each seed; a lone seed is wider than five."""
    wrong = np.random.default_rng(0).random(ROWS) < 0.4
    noise = np.random.default_rng(1).normal(0, 1, (5, ROWS))
    risk = (0.5 * wrong + noise).astype(np.float32)
    draws = draw_images(np.arange(ROWS), 500, 0)
    found = intervals_of(risk, wrong, draws).auroc
    assert found.value == pytest.approx(np.mean([roc_auc_score(wrong, one) for one in risk]))
    lone = auroc_interval(risk[:1], wrong, draws)
    assert found.high - found.low < 0.7 * (lone.high - lone.low)


def test_part_of_the_rows_has_the_interval_of_its_rows():
    """As if the others were not there, in the same draws."""
    risk, wrong = drawn(0, ties=False)
    groups = np.arange(ROWS) // 3
    rows = np.arange(30, 120)
    draws = draw_images(groups, 200, 0)
    found = auroc_interval(risk[None], wrong, draws, rows)
    assert found.value == pytest.approx(roc_auc_score(wrong[rows], risk[rows]))
    counts = draws.counts[groups[rows]].T
    by_hand = [roc_auc_score(wrong[rows], risk[rows], sample_weight=one) for one in counts]
    assert [found.low, found.high] == pytest.approx(np.percentile(by_hand, [2.5, 97.5]).tolist())


@pytest.mark.slow
def test_an_interval_over_images_holds_the_truth_and_one_over_rows_does_not():
    """95 of 100 hold it, within chance, where eight rows of an image share their errors and risk;
    rows taken for independent give far fewer."""
    covered = {"images": 0, "rows": 0}
    trials, images, each = 200, 60, 8
    truth = 0.5  # risk and errors are drawn apart
    for trial in range(trials):
        draws = np.random.default_rng(trial)
        group = np.repeat(np.arange(images), each)
        wrong = draws.random(images * each) < draws.beta(0.5, 0.5, images)[group]
        risk = (draws.normal(0, 1, images)[group] + 0.3 * draws.normal(0, 1, len(group)))[None]
        for name, of in (("images", group), ("rows", np.arange(len(group)))):
            one = auroc_interval(risk.astype(np.float32), wrong, draw_images(of, 300, trial))
            covered[name] += one.low <= truth <= one.high
    assert 0.88 <= covered["images"] / trials <= 0.99
    assert covered["rows"] / trials < 0.75


@pytest.mark.slow
def test_intervals_of_ten_thousand_rows_are_had_in_seconds():
    """Three seeds, a thousand draws: 40 lines of a table in well under a minute."""
    draws = np.random.default_rng(0)
    wrong = draws.random(10_000) < 0.3
    risk = draws.random((3, 10_000)).astype(np.float32)
    images = draw_images(np.arange(10_000) // 4, 1000, 0)
    started = time.process_time()
    intervals_of(risk, wrong, images, risk=risk)
    assert time.process_time() - started < 4
