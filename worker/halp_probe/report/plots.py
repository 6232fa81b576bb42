"""`draw_all`: the plots of an `Evaluation`, as PNG bytes by name.

Figures of their own on Agg: no pyplot, no window, nothing left open, the same bytes for the same
figures. Colours are Okabe and Ito's and viridis: told apart by the colour-blind, and in print.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from halp_probe.report.curves import coverage, reliability, roc
from halp_probe.report.dots import forest, lines_of, part_dots, parts_of
from halp_probe.report.grid import grid_of
from halp_probe.report.heatmap import heatmaps
from halp_probe.report.highlights import Highlights
from halp_probe.report.looks import BLUE, GREY, LIGHT_BLUE, ORANGE, STYLE, label
from halp_probe.report.wording import number
from halp_probe.results import Entry, Evaluation, Group

_LINES: Final = (BLUE, LIGHT_BLUE)
_BASELINES: Final = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#7F7F7F", "#8C564B", "#6A3D9A")
_DASHES: Final = ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)))
_MOST_LINES: Final = 6
"""Of baselines in one plot: more are not told apart."""
_PIXELS: Final = 94
"""CSS pixels an inch: 10 points are 13 of them."""


@dataclass(frozen=True)
class Plot:
    """png: bytes. width: at which its letters are as large as a page's, in CSS pixels.

    wide: a narrow screen scrolls through it. alt: what it shows, for whoever cannot see it.
    """

    name: str
    png: bytes
    alt: str
    width: int
    wide: bool = False


def draw_all(evaluation: Evaluation, highlights: Highlights | None) -> tuple[Plot, ...]:
    """Those there is something to draw of."""
    made: list[Plot] = []
    if lines := lines_of(evaluation):
        made.append(
            _plot(
                "auroc",
                lambda: forest(lines),
                "AUROC with intervals: what was chosen, baselines, controls; the table has them",
                wide=True,
            )
        )
    if grids := [grid for name in ("logistic", "mlp") if (grid := grid_of(evaluation, name))]:
        alt = "Heat map of the AUROC by representation and layer; the table has its figures"
        made.append(_plot("heatmap", lambda: heatmaps(grids), alt, wide=True))
    if highlights is None or not len(evaluation.wrong):
        return tuple(made)
    curves = (
        ("roc", _roc, "ROC curves of what was chosen, and of the baselines"),
        ("reliability", _reliability, "Share of wrong answers by predicted risk, with counts"),
        ("risk_coverage", _coverage, "Share of wrong answers among those given, by coverage"),
    )
    for name, draw, alt in curves:

        def drawn(draw: Callable[..., Figure] = draw) -> Figure:
            return draw(evaluation, highlights)

        made.append(_plot(name, drawn, alt))
    if parts := parts_of(evaluation, highlights):
        alt = "AUROC among the answers of one kind or source"
        made.append(_plot("parts", lambda: part_dots(parts, highlights), alt))
    return tuple(made)


def _plot(name: str, draw: Callable[[], Figure], alt: str, *, wide: bool = False) -> Plot:
    with _styled():
        out = io.BytesIO()
        figure = draw()
        FigureCanvasAgg(figure)
        figure.savefig(out, format="png", metadata={"Software": None})
        return Plot(name, out.getvalue(), alt, round(figure.get_figwidth() * _PIXELS), wide)


@contextmanager
def _styled() -> Iterator[None]:
    with rc_context(STYLE), warnings.catch_warnings():
        # A script that the font lacks shows as boxes; the rest of the picture is as good.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def _roc(evaluation: Evaluation, highlights: Highlights) -> Figure:
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for one, look in _drawn(evaluation, highlights):
        axes.plot(*roc(one.order, evaluation.wrong), **look, label=_legend(one, one.auroc.value))
    axes.set_xlabel("right answers that are flagged")
    axes.set_ylabel("wrong answers that are flagged")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    _legend_below(axes, "AUROC")
    return figure


def _coverage(evaluation: Evaluation, highlights: Highlights) -> Figure:
    figure, axes = _square()
    base = float(np.mean(evaluation.wrong))
    axes.axhline(base, color=GREY, linewidth=1, linestyle=":")
    axes.annotate("all answers", (0.01, base), xytext=(0, 4), textcoords="offset points",
                  fontsize=8.5, color=GREY)  # fmt: skip
    for one, look in _drawn(evaluation, highlights):
        axes.plot(
            *coverage(one.order, evaluation.wrong), **look, label=_legend(one, one.aurc.value)
        )
    axes.set_xlabel("coverage: share of questions answered, least risky first")
    axes.set_ylabel("share of wrong answers among them")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _legend_below(axes, "area under the curve, lower is better")
    return figure


def _reliability(evaluation: Evaluation, highlights: Highlights) -> Figure:
    figure = Figure(figsize=(5.4, 5.6), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    best = highlights.best
    points = reliability(best.risk, evaluation.wrong)
    axes.vlines(points.risk, points.low, points.high, color=BLUE, alpha=0.45, linewidth=2)
    axes.plot(points.risk, points.share, "o-", color=BLUE, markersize=5, linewidth=1.2)
    axes.set_title(f"{label(best)}   ECE {number(best.ece.value)}")
    axes.set_ylabel("share of wrong answers")
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlim(-0.01, 1.01)
    there = np.isfinite(best.risk)
    seeds = max(len(best.risk), 1)
    wrong = np.broadcast_to(evaluation.wrong, best.risk.shape)
    sides = [best.risk[there & ~wrong], best.risk[there & wrong]]
    counts.hist(
        sides,
        bins=np.linspace(0, 1, 21).tolist(),
        weights=[np.full(len(one), 1 / seeds) for one in sides],
        stacked=True,
        color=["#9DB7CC", ORANGE],
        label=["right", "wrong"],
    )
    counts.legend(ncols=2, loc="upper right")
    counts.set_ylabel("answers")
    counts.set_xlabel("predicted risk (mean of a bin; bars: 95 % interval of the share)")
    return figure


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 5.6), layout="constrained")
    return figure, figure.subplots()


def _drawn(
    evaluation: Evaluation, highlights: Highlights
) -> Iterator[tuple[Entry, dict[str, Any]]]:
    """What is compared in a plot, with its looks: chosen first, baselines by their AUROC."""
    for one, colour in zip((highlights.best, *highlights.others), _LINES, strict=False):
        yield one, {"color": colour, "linewidth": 2.2}
    found = [
        one
        for one in evaluation.entries
        if one.group is Group.BASELINE and math.isfinite(one.auroc.value)
    ]
    found.sort(key=lambda one: -one.auroc.value)
    for one, colour, dash in zip(found[:_MOST_LINES], _BASELINES, _DASHES, strict=False):
        yield one, {"color": colour, "linewidth": 1.4, "linestyle": dash}


def _legend(entry: Entry, value: float) -> str:
    return f"{number(value)}  {label(entry)}"


def _legend_below(axes: Axes, title: str) -> None:
    axes.legend(
        title=title, loc="upper left", bbox_to_anchor=(0, -0.14), alignment="left",
        title_fontsize=8.5, borderaxespad=0,
    )  # fmt: skip
