"""`draw`: the picture of a `Geometry`: norms, cosines and a projection, side by side.

Knows matplotlib, which is loaded when something is drawn; refuses to know a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from halp_store.geometry import BAND, SEED, Colours, Geometry, Profile, Projection
from halp_store.layout import ANSWER_SCORES
from halp_store.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's: told apart by the colour-blind, and in print.
_POSITIONS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P")
_GROUPS: Final = (*_POSITIONS, "#8C564B", "#6A3D9A", "#B5A800", "#202020")
_OTHER: Final = "#B8B8B8"
_GREY: Final = "#555555"

_STYLE: Final[Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    # Letters stay letters, for whoever edits the figure; and the same numbers give the same file.
    "pdf.fonttype": 42,
    "svg.hashsalt": "halp-store",
    # A label comes from a data set: a dollar in it is a dollar.
    "text.parse_math": False,
}
_NO_DATE: Final = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}

# A range wider than this is told by powers of ten.
_MANY_ROWS: Final = 50
_LOG_FROM: Final = 20.0
# And from here on by powers alone.
_MANY_POWERS: Final = 1000.0
_MOST_TICKS: Final = 8
_LABEL_CHARACTERS: Final = 22
_TITLE_CHARACTERS: Final = 60


def draw(geometry: Geometry, path: Path, form: str, *, model: str, dtype: str) -> None:
    """Write a picture to `path`. form: png, svg or pdf. model, dtype: for the title."""
    import warnings

    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(_STYLE), warnings.catch_warnings():
        # A script that the font lacks shows as boxes; the rest of the picture is as good.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(13.2, 4.1), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
        norms, cosines, points = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
        _draw_norms(norms, geometry)
        _draw_cosines(cosines, geometry)
        _draw_projection(figure, points, geometry.projection)
        _say_positions(norms, geometry)
        figure.suptitle(_title(geometry, model, dtype), fontsize=10.5, x=0.01, ha="left")
        figure.savefig(path, format=form, metadata=_NO_DATE[form])


def _title(geometry: Geometry, model: str, dtype: str) -> str:
    shown, total = len(geometry.ids), geometry.total
    rows = f"{total:,} question{'' if total == 1 else 's'}"
    if shown < total:
        rows = f"{shown:,} of {rows}, drawn at random (seed {SEED})"
    return f"{_short(_name(model), _TITLE_CHARACTERS)} ({dtype}), N = {rows}"


def _name(model: str) -> str:
    """As on the hub; of a folder, its name."""
    is_folder = model.startswith(("/", ".", "~")) or model.count("/") > 1
    return model.rstrip("/").rpartition("/")[2] if is_folder else model


def _draw_norms(axes: Axes, geometry: Geometry) -> None:
    axes.set_title("a   Norm of the hidden state")
    axes.set_xlabel("decoder layer (output of)")
    axes.set_ylabel("Euclidean norm")
    lows, highs = [], []
    for number, one in enumerate(geometry.profiles):
        _draw_band(axes, np.array(geometry.layers, float), one.norm, number, len(geometry.profiles))
        lows.append(np.nanmin(one.norm.low))
        highs.append(np.nanmax(one.norm.high))
    if min(lows) > 0 and max(highs) / min(lows) > _LOG_FROM:
        axes.set_yscale("log")
        _plain_powers(axes)
    else:
        axes.set_ylim(bottom=0)
    _layer_ticks(axes, [float(one) for one in geometry.layers], list(map(str, geometry.layers)))


def _draw_cosines(axes: Axes, geometry: Geometry) -> None:
    axes.set_title("b   Cosine between layers")
    pairs = list(zip(geometry.layers, geometry.layers[1:], strict=False))
    if not pairs:
        _say_why(axes, "only one layer is stored:\nit has no neighbour to compare with")
        return
    axes.set_xlabel("pair of neighbouring stored layers")
    axes.set_ylabel("cosine similarity")
    places = [(first + second) / 2 for first, second in pairs]
    for number, one in enumerate(geometry.profiles):
        _draw_band(axes, np.array(places), one.cosine, number, len(geometry.profiles))
    low = min((np.nanmin(one.cosine.low) for one in geometry.profiles if _any(one)), default=0.0)
    axes.set_ylim(min(0.0, low - 0.05), 1.03)
    _layer_ticks(axes, places, [f"{first}–{second}" for first, second in pairs])


def _any(profile: Profile) -> bool:
    return bool(np.isfinite(profile.cosine.low).any())


def _draw_band(axes: Axes, x: Any, band: Any, number: int, of: int) -> None:
    """A band around a line; bars where a single layer makes no band."""
    colour, marker = _POSITIONS[number % len(_POSITIONS)], _MARKERS[number % len(_MARKERS)]
    if len(x) == 1:
        # Side by side, where they would lie on each other.
        x = x + 0.25 * (number - (of - 1) / 2)
        axes.vlines(x, band.low, band.high, color=colour, alpha=0.35, linewidth=5)
    else:
        axes.fill_between(x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    dot = 4.5 if len(x) <= _MOST_TICKS else 2.5
    axes.plot(x, band.mean, color=colour, marker=marker, markersize=dot, linewidth=1.6)


def _say_positions(axes: Axes, geometry: Geometry) -> None:
    """Once, where the eye begins."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D(
            [],
            [],
            color=_POSITIONS[number % len(_POSITIONS)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4.5,
            linewidth=1.6,
            label=one.position,
        )
        for number, one in enumerate(geometry.profiles)
    ]
    low, high = (round(100 * one) for one in BAND)
    handles.append(
        Patch(color=_GREY, alpha=0.25, linewidth=0, label=f"{low}th–{high}th percentile")
    )
    axes.legend(
        handles=handles if len(geometry.ids) > 1 else handles[:-1],
        title="mean over questions" if len(geometry.ids) > 1 else None,
        loc="upper left" if _is_rising(geometry.profiles) else "best",
        alignment="left",
    )


def _is_rising(profiles: Sequence[Profile]) -> bool:
    return all(one.norm.mean[0] < 0.5 * one.norm.mean[-1] for one in profiles)


def _draw_projection(figure: Figure, axes: Axes, projection: Projection) -> None:
    at = "" if projection.layer is None else f", layer {projection.layer}"
    axes.set_title(f"c   PCA of {projection.column}{at}")
    if projection.points is None:
        _say_why(axes, projection.why or "")
        return
    first, second = (f"{100 * share:.1f} %" for share in projection.explained)
    axes.set_xlabel(f"principal component 1 ({first} of variance)")
    axes.set_ylabel(f"principal component 2 ({second})")
    axes.margins(0.06)
    axes.locator_params(nbins=6)
    colours, points = projection.colours, projection.points
    # Ids stand in order, and so may what they mean: no group lies on top of all others.
    order = np.random.default_rng(SEED).permutation(len(points))
    area = float(np.clip(9000 / len(points), 7, 40))
    look: dict[str, Any] = {"s": area, "linewidths": 0.25, "edgecolors": "white", "alpha": 0.85}
    look["rasterized"] = len(points) > 1000
    if colours.numbers is None:
        _scatter_groups(axes, points, colours, order, look)
    else:
        _scatter_numbers(figure, axes, points[order], colours.numbers[order], colours.name, look)


def _scatter_groups(
    axes: Axes, points: Any, colours: Colours, order: Any, look: dict[str, Any]
) -> None:
    from matplotlib.lines import Line2D

    groups = colours.groups
    if groups is None:
        return
    palette = np.array([_colour_of(colours, number) for number in range(len(colours.legend))])
    axes.scatter(points[order, 0], points[order, 1], c=palette[groups[order]], **look)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=5,
            color=colour,
            label=f"{_short(label, _LABEL_CHARACTERS)} ({count:,})",
        )
        for colour, (label, count) in zip(palette, colours.legend, strict=True)
    ]
    axes.legend(
        handles=handles,
        title=_short(colours.name, _LABEL_CHARACTERS),
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        alignment="left",
        handletextpad=0.2,
        borderaxespad=0.2,
    )


def _colour_of(colours: Colours, number: int) -> str:
    is_last = number == len(colours.legend) - 1
    return _OTHER if colours.others and is_last else _GROUPS[number]


def _scatter_numbers(
    figure: Figure, axes: Axes, points: Any, numbers: Any, name: str, look: dict[str, Any]
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    there = np.isfinite(numbers)
    if not there.all():
        axes.scatter(points[~there, 0], points[~there, 1], c=_OTHER, **look)
    # A few far ones would take most of the colours; where there are few rows, none is far.
    edges = (0.02, 0.98) if there.sum() >= _MANY_ROWS else (0.0, 1.0)
    low, high = np.quantile(numbers[there], edges)
    inside = (numbers[there].min() >= low, numbers[there].max() <= high)
    extend = {(True, True): "neither", (False, True): "min", (True, False): "max"}
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1), "viridis")
    colours = scale.to_rgba(numbers[there])
    axes.scatter(points[there, 0], points[there, 1], c=colours, **look)
    bar = figure.colorbar(scale, ax=axes, extend=extend.get(inside, "both"), pad=0.02, aspect=30)
    absent = "" if there.all() else "; grey: none"
    bar.set_label(_short(name, _LABEL_CHARACTERS) + _unit(name) + absent)
    bar.ax.spines["outline"].set_visible(False)


def _unit(name: str) -> str:
    if name.endswith("_tokens"):
        return " (tokens)"
    if name in ANSWER_SCORES:
        return " (nats)"
    return " (token index)" if name.endswith("_position") else ""


def _say_why(axes: Axes, sentence: str) -> None:
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#CCCCCC")
    axes.text(0.5, 0.5, sentence, transform=axes.transAxes, ha="center", va="center", color=_GREY)


def _layer_ticks(axes: Axes, places: list[float], labels: list[str]) -> None:
    """All of a few; of many, evenly some, with the last."""
    step = -(-len(places) // _MOST_TICKS)
    chosen = list(range(len(places) - 1, -1, -step))[::-1]
    axes.set_xticks([places[one] for one in chosen], [labels[one] for one in chosen])
    room = 0.06 * (places[-1] - places[0]) or 1.0
    axes.set_xlim(places[0] - room, places[-1] + room)


def _plain_powers(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    few = high / low < _MANY_POWERS
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _short(text: str, longest: int) -> str:
    shown = printable(text[: 4 * longest])
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
