"""Figures and texts as a page shows them: rounding, intervals, and texts that cannot do harm."""

from __future__ import annotations

import math
from typing import Final

from halp_probe.results import Interval
from halp_store.terminal import printable_lines

NONE: Final = "–"
"""For a figure that there is none of."""
CLASSIFIERS: Final = {
    "logistic": "logistic",
    "mlp": "MLP",
    "none": NONE,
}


def number(value: float | None) -> str:
    """Three digits after the point: finer than any interval here."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.3f}"


def signed(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else NONE


def bounds(interval: Interval) -> str:
    """`[0.812, 0.874]`; nothing where there is no interval."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    return f"[{interval.low:.3f}, {interval.high:.3f}]"


def with_bounds(interval: Interval) -> str:
    return f"{number(interval.value)} {bounds(interval)}".strip()


def percent(part: float, whole: float) -> str:
    return NONE if whole == 0 else f"{100 * part / whole:.1f} %"


def classifier(name: str) -> str:
    return CLASSIFIERS.get(name, name)


def counted(count: int, noun: str) -> str:
    """`1 answer`, `1,200 answers`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shown(text: str, longest: int) -> str:
    """At most `longest` characters, with the control and direction characters escaped."""
    cut = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return printable_lines(cut)
