"""The curves against scikit-learn and the table's own figures, and the plots as files."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import auc, roc_curve

from halp_probe.metrics import figures_of
from halp_probe.report.curves import coverage, mean_risk, reliability, roc
from halp_probe.report.grid import grid_of
from halp_probe.report.highlights import highlights_of
from halp_probe.report.plots import draw_all
from halp_probe.results import Group, Interval
from tolerance import assert_within, rounding

from .report_evaluation import LAYERS, NOTHING, make_evaluation


@pytest.fixture(scope="module")
def evaluation():
    return make_evaluation()


@pytest.fixture(scope="module")
def plots(evaluation):
    return draw_all(evaluation, highlights_of(evaluation))


def chosen(evaluation):
    return next(one for one in evaluation.entries if one.group is Group.CHOSEN)


def test_the_roc_is_that_of_scikit_learn(evaluation):
    """Of one seed, point by point between the corners."""
    risk = np.round(chosen(evaluation).risk[:1], 2)
    false, true = roc(risk, evaluation.wrong)
    expected = np.interp(false[1:], *roc_curve(evaluation.wrong, risk[0])[:2])
    steps = np.abs(true[1:] - expected)
    # At a vertical step either end is right.
    assert np.quantile(steps, 0.9) < 1e-9
    assert steps.max() < 0.06


def test_the_area_under_the_mean_roc_is_the_tables_auroc(evaluation):
    """The mean of curves has the mean of their areas, up to the steps between points."""
    entry = chosen(evaluation)
    assert auc(*roc(entry.risk, evaluation.wrong)) == pytest.approx(entry.auroc.value, abs=0.004)


def test_the_reliability_diagram_has_the_tables_ece(evaluation):
    """The distances of its points from the diagonal, weighted with their rows."""
    risk = chosen(evaluation).risk[:1]
    points = reliability(risk, evaluation.wrong)
    found = (points.rows * np.abs(points.risk - points.share)).sum() / points.rows.sum()
    expected = float(figures_of(risk[0], evaluation.wrong).ece[0])
    assert_within(abs(found - expected), rounding(2, risk.shape[1]))
    assert points.rows.sum() == len(evaluation.wrong)
    assert (points.low <= points.share).all()
    assert (points.share <= points.high).all()


def test_at_full_coverage_the_share_of_wrong_answers_is_that_of_the_data(evaluation):
    """Whatever the risk; and below it a good risk is lower."""
    taken, share = coverage(chosen(evaluation).risk, evaluation.wrong)
    assert taken[-1] == 1
    assert share[-1] == pytest.approx(evaluation.wrong.mean())
    assert share[0] < 0.5 * share[-1]


def test_rows_without_a_risk_are_left_out_of_the_curves(evaluation):
    """As if they were not there."""
    risk = chosen(evaluation).risk.copy()
    risk[:, ::3] = math.nan
    kept = np.arange(len(evaluation.wrong)) % 3 != 0
    for curve in (roc, coverage):
        whole = curve(risk, evaluation.wrong)
        without = curve(risk[:, kept], evaluation.wrong[kept])
        np.testing.assert_allclose(whole, without)
    assert np.isnan(mean_risk(risk)[::3]).all()


def test_one_class_has_no_curve(evaluation):
    """Nothing is drawn where nothing is known."""
    wrong = np.zeros_like(evaluation.wrong)
    assert len(roc(chosen(evaluation).risk, wrong)[0]) == 0
    assert len(coverage(chosen(evaluation).risk, wrong)[0]) == 0
    assert len(reliability(chosen(evaluation).risk, wrong).risk) == 0


def test_each_cell_of_the_heat_map_is_the_auroc_of_its_entry(evaluation):
    """Columns without layers stand first; what was not measured is empty."""
    grid = grid_of(evaluation, "mlp")
    assert grid.columns == ("vision_only", "vision_encoder", "vision_token", "query_token")
    assert grid.layers == (None, *LAYERS)
    values = {
        one.name: one.auroc.value
        for one in evaluation.entries
        if one.group is Group.REPRESENTATION and one.classifier == "mlp"
    }
    for row, column in enumerate(grid.columns):
        for at, layer in enumerate(grid.layers):
            name = column if layer is None else f"{column}@{layer}"
            found = grid.values[row, at]
            assert found == values[name] if name in values else math.isnan(found)


def test_the_plots_are_png_of_a_size_for_a_page(plots):
    """All six of them, readable on paper and not too heavy for a page."""
    names = {"auroc", "heatmap", "roc", "reliability", "risk_coverage", "parts"}
    assert {one.name for one in plots} == names
    for one in plots:
        picture = Image.open(io.BytesIO(one.png))
        assert picture.format == "PNG"
        assert picture.width > 900
        assert len(one.png) < 300_000
        assert one.alt


def test_the_same_evaluation_gives_the_same_bytes(evaluation, plots):
    """No date, no random place."""
    again = draw_all(evaluation, highlights_of(evaluation))
    assert [one.png for one in again] == [one.png for one in plots]


def test_the_heat_map_does_not_show_a_control_or_a_baseline(evaluation, plots):
    """Only representations by themselves change it."""
    fewer = replace(
        evaluation,
        entries=tuple(one for one in evaluation.entries if one.group is Group.REPRESENTATION),
    )
    found = {one.name: one.png for one in draw_all(fewer, highlights_of(fewer))}
    assert found["heatmap"] == next(one.png for one in plots if one.name == "heatmap")


def test_odd_names_are_drawn_without_a_warning():
    """Warnings are errors here; a dollar is a dollar, an unknown script is boxes."""
    small = make_evaluation(rows=60, seeds=1)
    (one, *_) = (one for one in small.entries if one.group is Group.BASELINE)
    names = ("$x_1$", "中文的問題", "עברית", "a" * 500, "\x00\u202e\n")
    odd = replace(small, entries=(*small.entries, *(replace(one, name=name) for name in names)))
    assert len(draw_all(odd, highlights_of(odd))) == 6


def test_many_layers_have_room_in_the_heat_map():
    """All 28 of a model: letters keep their size, and the picture gets wider."""
    small = make_evaluation(rows=60, seeds=1)
    (one, *_) = small.entries
    many = (replace(one, name=f"query_token@{layer}") for layer in range(28))
    wide = replace(small, entries=tuple(many))
    found = {each.name: each for each in draw_all(wide, highlights_of(wide))}
    assert found["heatmap"].width > 1000


def test_figures_that_do_not_exist_leave_plots_out_and_break_none():
    """All NaN, and nothing at all."""
    small = make_evaluation(rows=60, seeds=1)
    entries = tuple(
        replace(
            one,
            auroc=NOTHING,
            by_kind={key: replace(part, auroc=NOTHING) for key, part in one.by_kind.items()},
            by_source={},
            risk=np.full_like(one.risk, math.nan),
        )
        for one in small.entries
    )
    nothing = replace(small, entries=entries)
    assert "auroc" not in {one.name for one in draw_all(nothing, highlights_of(nothing))}
    assert draw_all(replace(small, entries=()), None) == ()


def test_an_auroc_below_chance_is_drawn():
    """Under the scale of the heat map, and left of the usual axis of the intervals."""
    small = make_evaluation(rows=60, seeds=1)
    entries = tuple(replace(one, auroc=Interval(0.2, 0.1, 0.3)) for one in small.entries)
    low = replace(small, entries=entries)
    assert len(draw_all(low, highlights_of(low))) == 6


def test_plots_need_no_pyplot():
    """Which would keep figures and open windows."""
    code = (
        "import sys, halp_probe.report.writing;"
        "sys.exit('matplotlib.pyplot' in sys.modules or 'tkinter' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_curves_follow_the_order_of_the_tables_figures(evaluation):
    """Ranks where there are any: the area under the ROC stays that of the table."""
    entry = chosen(evaluation)
    ranked = replace(entry, risk=np.full_like(entry.risk, 0.5), ranks=entry.risk)
    assert ranked.order is entry.risk
    assert entry.order is entry.risk
    plots = []
    for one in (ranked, entry):
        alone = replace(evaluation, entries=(one,))
        plots.append({each.name: each.png for each in draw_all(alone, highlights_of(alone))})
    assert plots[0]["roc"] == plots[1]["roc"]
    assert plots[0]["risk_coverage"] == plots[1]["risk_coverage"]
    assert plots[0]["reliability"] != plots[1]["reliability"]
