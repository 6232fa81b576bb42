"""`heatmaps`: the AUROC by representation and layer, a picture for each classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from halp_probe.report.grid import NO_LAYER, Grid
from halp_probe.report.looks import short
from halp_probe.report.wording import classifier

_DARK: Final = 0.8
"""Of an AUROC: viridis is dark below it, and letters on it are white."""
_MANY_LAYERS: Final = 10


def heatmaps(grids: Sequence[Grid]) -> Figure:
    wide, high = len(grids[0].layers), sum(len(grid.columns) for grid in grids)
    cell = 0.62 if wide <= _MANY_LAYERS else 0.38
    size = (max(7.6, 2.6 + cell * wide), 0.8 * len(grids) + 0.36 * high + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(
        len(grids), 1, squeeze=False, height_ratios=[len(one.columns) for one in grids]
    )[:, 0]
    image = None
    for axes, grid in zip(all_axes, grids, strict=True):
        image = _heatmap(axes, grid)
    if image is not None:
        bar = figure.colorbar(image, ax=list(all_axes), extend="min", pad=0.02, aspect=24)
        bar.set_label("AUROC")
        bar.ax.spines["outline"].set_visible(False)
    return figure


def _heatmap(axes: Axes, grid: Grid) -> Any:
    colours = colormaps["viridis"].with_extremes(under="#2a0033", bad="#EDEFF2")
    image = axes.imshow(grid.values, cmap=colours, vmin=0.5, vmax=1.0, aspect="auto")
    axes.set_title(classifier(grid.classifier))
    names = ["no layer" if one is NO_LAYER else str(one) for one in grid.layers]
    axes.set_xticks(range(len(grid.layers)), names)
    axes.set_yticks(range(len(grid.columns)), [short(one) for one in grid.columns])
    axes.set_xlabel("decoder layer (output of)")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(visible=False)
    axes.set_xticks(np.arange(len(grid.layers) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(grid.columns) + 1) - 0.5, minor=True)
    axes.grid(visible=True, which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    size = 10 if len(grid.layers) <= _MANY_LAYERS else 8
    for (row, column), value in np.ndenumerate(grid.values):
        if math.isfinite(value):
            ink = "white" if value < _DARK else "black"
            axes.text(
                column,
                row,
                f"{value:.3f}".lstrip("0"),
                ha="center",
                va="center",
                color=ink,
                fontsize=size,
            )
    return image
