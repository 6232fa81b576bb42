"""`forest`, `part_dots`: AUROCs as dots with their intervals, one line below the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from halp_probe.report.highlights import Highlights
from halp_probe.report.looks import BLUE, GREY, LIGHT_BLUE, ORANGE, label, short
from halp_probe.report.wording import with_bounds
from halp_probe.results import Entry, Evaluation, Group, Interval

_GROUPS: Final = {
    Group.CHOSEN: BLUE,
    Group.COMBINATION: LIGHT_BLUE,
    Group.REPRESENTATION: LIGHT_BLUE,
    Group.BASELINE: ORANGE,
    Group.CONTROL: GREY,
}
_MOST_PARTS: Final = 12
"""Of kinds, and of sources: the largest. The table has all."""


def lines_of(evaluation: Evaluation) -> list[Entry]:
    """All but the single representations, which the heat map has."""
    order = (Group.CHOSEN, Group.COMBINATION, Group.BASELINE, Group.CONTROL)
    return [
        one
        for group in order
        for one in evaluation.entries
        if one.group is group and math.isfinite(one.auroc.value)
    ]


def forest(entries: Sequence[Entry]) -> Figure:
    figure = Figure(figsize=(8.2, 0.9 + 0.31 * len(entries)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle="--")
    for place, one in enumerate(entries):
        colour = _GROUPS[one.group]
        value = one.auroc
        if math.isfinite(value.low) and math.isfinite(value.high):
            axes.hlines(place, value.low, value.high, color=colour, linewidth=2.4, alpha=0.55)
        axes.plot(value.value, place, "o", color=colour, markersize=6)
        axes.text(
            1.02, place, with_bounds(value), transform=axes.get_yaxis_transform(), va="center"
        )
    axes.set_yticks(range(len(entries)), [label(one) for one in entries])
    axes.set_ylim(len(entries) - 0.4, -0.6)
    lowest = [one.auroc.low for one in entries if math.isfinite(one.auroc.low)]
    lowest += [one.auroc.value for one in entries]
    axes.set_xlim(max(0.0, min(0.44, *lowest, 0.44) - 0.01), 1.0)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("AUROC, 95 % interval over images; dashed: knows nothing")
    return figure


def parts_of(evaluation: Evaluation, highlights: Highlights) -> list[tuple[str, list[Interval]]]:
    """(part, its AUROC by the best and by the baseline), of kinds and sources if several."""
    entries = [one for one in (highlights.best, highlights.baseline) if one is not None]
    counts = evaluation.counts
    fields = ("kind", counts.kinds), ("source", counts.sources)
    none = Interval(math.nan, math.nan, math.nan)
    found = []
    for field, counted in fields:
        names = list(getattr(highlights.best, f"by_{field}"))
        names.sort(key=lambda name: -counted.get(name, (0, 0))[0])
        for name in names[:_MOST_PARTS] if len(names) > 1 else ():
            parts = [getattr(one, f"by_{field}").get(name) for one in entries]
            found.append(
                (f"{field}: {name}", [none if one is None else one.auroc for one in parts])
            )
    return found


def part_dots(parts: Sequence[tuple[str, list[Interval]]], highlights: Highlights) -> Figure:
    figure = Figure(figsize=(5.4, max(2.6, 1.3 + 0.36 * len(parts))), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle="--")
    entries = [one for one in (highlights.best, highlights.baseline) if one is not None]
    for at, (one, colour) in enumerate(zip(entries, (BLUE, ORANGE), strict=False)):
        values = [intervals[at] for _, intervals in parts]
        places = np.arange(len(parts)) + 0.3 * at - 0.15
        axes.hlines(
            places, [v.low for v in values], [v.high for v in values],
            color=colour, linewidth=2.4, alpha=0.5,
        )  # fmt: skip
        marker = "os"[at]
        axes.plot(
            [v.value for v in values], places, marker, color=colour, markersize=5.5,
            label=label(one),
        )  # fmt: skip
    axes.set_yticks(range(len(parts)), [short(name) for name, _ in parts])
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set_xlim(right=1.0)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("AUROC; dashed: knows nothing")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    return figure
