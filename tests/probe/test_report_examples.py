"""Which rows a report shows, and what it says of figures: decided by figures alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from halp_probe.report import sentences
from halp_probe.report.examples import Outcome, pick, read_examples
from halp_probe.report.highlights import highlights_of
from halp_probe.report.pictures import Pictures
from halp_probe.results import Group, Interval
from halp_store.reader import open_store
from tolerance import assert_within, rounding

from .report_evaluation import NOTHING, make_evaluation, make_verdicts, write_store

RISK = np.array([0.9, 0.1, 0.8, 0.3, 0.7, 0.2, math.nan, 0.5])
WRONG = np.array([True, True, True, True, False, False, True, False])


@pytest.fixture
def evaluation():
    return make_evaluation(rows=80, seeds=2)


def test_examples_are_the_extremes_of_the_risk():
    """Of wrong and of right answers, the clearest first; rows without a risk are none."""
    assert pick(RISK, WRONG, each=2) == {
        Outcome.CAUGHT: [0, 2],
        Outcome.MISSED: [1, 3],
        Outcome.FALSE_ALARM: [4, 7],
        Outcome.QUIET: [5],
    }


def test_no_answer_is_both_caught_and_missed():
    """Of few, the riskier half is one and the other half the other."""
    found = pick(RISK[:4], WRONG[:4], each=6)
    assert found[Outcome.CAUGHT] == [0, 2]
    assert found[Outcome.MISSED] == [1, 3]
    assert found[Outcome.FALSE_ALARM] == found[Outcome.QUIET] == []


def test_an_example_has_the_texts_of_its_row_and_the_rule_of_its_label(evaluation, tmp_path):
    """From the store and the label table, by id; the picture from below the root."""
    write_store(tmp_path / "s.zarr", evaluation)
    entry = highlights_of(evaluation).best
    store = open_store(tmp_path / "s.zarr")
    verdicts = make_verdicts(evaluation)
    found = read_examples(store, evaluation, entry, verdicts, Pictures(tmp_path / "images"))
    mean = entry.risk.mean(axis=0)
    for outcome, some in found.items():
        assert len(some) == 6
        for one in some:
            row = evaluation.ids.index(one.question_id)
            assert evaluation.wrong[row] == (outcome in {Outcome.CAUGHT, Outcome.MISSED})
            assert one.question == store[one.question_id].question_text
            assert one.truth == store[one.question_id].ground_truth
            assert one.rule == verdicts[one.question_id].rule
            assert_within(abs(one.risk - mean[row]), rounding(1, len(entry.risk)))
            assert one.above == pytest.approx((mean < mean[row]).mean())
            assert one.picture.jpeg


def test_the_report_is_about_the_best_chosen_entry_and_the_hardest_baseline(evaluation):
    """Not about the highest line of the table."""
    found = highlights_of(evaluation)
    assert found.nested
    assert found.best.group is Group.CHOSEN
    baselines = [one for one in evaluation.entries if one.group is Group.BASELINE]
    assert found.baseline.auroc.value == max(one.auroc.value for one in baselines)


def test_without_nested_choice_the_report_says_that_the_figure_is_too_high(evaluation):
    """What was picked on the test is called that."""
    entries = tuple(one for one in evaluation.entries if one.group is not Group.CHOSEN)
    found = highlights_of(replace(evaluation, entries=entries))
    assert not found.nested
    assert "picked on the test" in sentences.finding(found)


@pytest.mark.parametrize(
    ("best", "baseline", "said"),
    [
        (Interval(0.9, 0.85, 0.95), Interval(0.7, 0.6, 0.8), "do not meet"),
        (Interval(0.8, 0.7, 0.9), Interval(0.7, 0.6, 0.8), "overlap"),
        (Interval(0.7, 0.6, 0.8), Interval(0.75, 0.7, 0.8), "does not beat it"),
        (NOTHING, Interval(0.75, 0.7, 0.8), "cannot be compared"),
    ],
)
def test_a_probe_is_said_to_beat_a_baseline_only_where_its_interval_does(
    evaluation, best, baseline, said
):
    """Higher is not enough."""
    found = highlights_of(evaluation)
    found = replace(
        found,
        best=replace(found.best, auroc=best),
        baseline=replace(found.baseline, auroc=baseline),
    )
    assert said in sentences.against_baseline(found)


def test_a_control_away_from_chance_is_a_warning(evaluation):
    """It may be chance, or a leak: the page says both."""
    (control,) = highlights_of(evaluation).controls
    assert not sentences.control_is_bad(control)
    leaking = replace(control, auroc=Interval(0.61, 0.57, 0.65))
    assert sentences.control_is_bad(leaking)
    assert "something leaks" in sentences.control(leaking)


def test_few_wrong_answers_are_said_to_be_few(evaluation):
    """And many are not."""
    assert "only" in sentences.caution(evaluation)
    assert sentences.caution(make_evaluation(rows=2000, seeds=1)) == ""


def test_the_shortest_summary_has_the_three_figures(evaluation):
    """How many are wrong, the probe, the baseline."""
    found = highlights_of(evaluation)
    data, finding, against = sentences.in_short(evaluation, found)
    assert f"{evaluation.counts.wrong:,} of these are wrong" in data
    assert f"{found.best.auroc.value:.3f}" in finding
    assert found.baseline.name in against
    assert len(sentences.in_short(evaluation, None)) == 1


def test_a_leak_is_called_one_only_where_the_intervals_do_not_meet(evaluation):
    """Otherwise the page says that they overlap, or that nothing is gained."""
    (leak,) = evaluation.leaks
    far = replace(leak, by_question=Interval(0.95, 0.9, 0.99))
    assert "which is the leak" in sentences.leak(far)
    near = replace(leak, by_question=Interval(0.83, 0.8, 0.86))
    assert "overlap" in sentences.leak(near)
    lower = replace(leak, by_question=Interval(0.79, 0.75, 0.83))
    assert "nothing is gained" in sentences.leak(lower)
