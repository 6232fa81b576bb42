"""`Comparison`: the published pipeline's figures and the corrected ones, side by side, as values.

No figure is computed here. *wrong* is the positive class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from halp_probe.results import Interval, plain


@dataclass(frozen=True)
class Labelled:
    """Of one judge: rows labelled right or wrong, those wrong, and their images."""

    judge: str
    version: int
    rows: int
    wrong: int
    images: int


@dataclass(frozen=True)
class Line:
    """published: AUROC on the one test set, 0.5 where a class is missing there.
    same_labels: out-of-fold, no image on both sides, the published labels. corrected: with the
    corrected labels too. None where it was not asked for.
    """

    name: str
    published: float
    same_labels: Interval | None
    corrected: Interval | None


@dataclass(frozen=True)
class Comparison:
    """picked: the line that is best on the test set, which is what was published. chosen: instead
    of it, by rows that are left out. yes_no: by whether a yes/no question was asked, alone.

    changed: `right -> wrong` and the like -> how many rows, of those that both judges looked at.
    leaked: rows of the published test set whose image is in its training set too; tested: all.
    settings: JSON object.
    """

    store: str
    model: str
    published: Labelled
    corrected: Labelled
    changed: Mapping[str, int]
    tested: int
    leaked: int
    lines: tuple[Line, ...]
    picked: Line
    chosen: Line
    yes_no: Line
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """NaN is null."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def shown(found: Comparison) -> Iterator[list[str]]:
    """Rows of a table for people: its header first."""
    by = f"judge {found.published.judge}"
    yield ["", f"published ({by})", f"by image ({by})", f"by image (judge {found.corrected.judge})"]
    for line in found.lines:
        yield _cells(line)
    yield _cells(found.picked, "best of the above on the test set: ")
    yield _cells(found.chosen)
    yield _cells(found.yes_no)


def said(found: Comparison) -> Iterator[str]:
    """What the table does not show, a sentence each."""
    for one in (found.published, found.corrected):
        yield (
            f"judge {one.judge} (version {one.version}): {one.wrong:,} wrong of {one.rows:,} rows "
            f"on {one.images:,} images"
        )
    differing = sum(found.changed.values())
    which = ", ".join(f"{name}: {count:,}" for name, count in sorted(found.changed.items()))
    yield f"labels that differ: {differing:,}" + (f" ({which})" if which else "")
    yield (
        f"leak: of {found.tested:,} rows of the published test set, {found.leaked:,} are on images "
        "of its training set"
    )


def _cells(line: Line, before: str = "") -> list[str]:
    return [
        f"{before}{line.name}",
        _figure(line.published),
        _interval(line.same_labels),
        _interval(line.corrected),
    ]


def _interval(one: Interval | None) -> str:
    if one is None or math.isnan(one.value):
        return "-"
    return f"{one.value:.3f} [{_figure(one.low)}, {_figure(one.high)}]"


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
