"""The tables of a page as plain rows of text and numbers; the template only lays them out. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from halp_probe.judging.verdict import Label
from halp_probe.report.wording import NONE, bounds, classifier, number, percent, shown
from halp_probe.results import Counts, Entry, Evaluation, Group, Interval, Part, Transfer

GROUPS: Final = {
    Group.CHOSEN: "Chosen by folds inside the training part",
    Group.REPRESENTATION: "Each representation and layer",
    Group.COMBINATION: "Side by side",
    Group.BASELINE: "Baselines",
    Group.CONTROL: "Controls",
}
"""In the order of the table."""
_SCALE: Final = (0.4, 1.0)
"""Of the bars in the table, in AUROC: what falls below 0.4 stands at the edge."""
_SHADES: Final = 8
"""Of a transfer's cell, from 0.5 to 1."""
_NAME: Final = 80
_VALUE: Final = 2000


@dataclass(frozen=True)
class Figure:
    """value, bounds: as text. dot, low, high: on the scale of the bars, 0 to 100; None without."""

    value: str
    bounds: str
    dot: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """One line of the table. figures: AUROC, AUPRC, ECE, AURC."""

    name: str
    classifier: str
    note: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Section:
    """Lines of one group."""

    group: str
    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Cell:
    """Of a table of parts or of transfers. shade: 0 to `_SHADES`, None for none."""

    figure: Figure
    rows: str
    shade: int | None = None


@dataclass(frozen=True)
class PartLine:
    name: str
    classifier: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class PartSection:
    group: str
    title: str
    lines: tuple[PartLine, ...]


@dataclass(frozen=True)
class Parts:
    """names: of the columns; counts: rows and wrong ones of each, as text."""

    names: tuple[str, ...]
    counts: tuple[str, ...]
    sections: tuple[PartSection, ...]


@dataclass(frozen=True)
class Matrix:
    """Of one classifier: rows: (trained on, a cell for each source tested on)."""

    title: str
    tested_on: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


@dataclass(frozen=True)
class Count:
    """width: of its bar, 0 to 100; wrong_width: of the wrong part of it."""

    name: str
    rows: str
    share: str
    wrong: str
    width: float
    wrong_width: float


def entry_table(evaluation: Evaluation) -> tuple[Section, ...]:
    found = []
    for group, title in GROUPS.items():
        lines = tuple(
            Line(
                shown(one.name, _NAME),
                classifier(one.classifier),
                shown(one.note, _VALUE),
                (
                    _figure(one.auroc, bar=True),
                    _figure(one.auprc),
                    _figure(one.ece),
                    _figure(one.aurc),
                ),
            )
            for one in evaluation.entries
            if one.group is group
        )
        if lines:
            found.append(Section(group.value, title, lines))
    return tuple(found)


def chance_mark() -> float:
    """Of an AUROC of 0.5, on the scale of the bars."""
    return _on_scale(0.5)


def parts_table(
    entries: Sequence[Entry], field: str, counted: Mapping[str, tuple[int, int]]
) -> Parts | None:
    """field: `by_kind` or `by_source`. None where there is one part: the table has its figures."""
    names = tuple(
        dict.fromkeys([*counted, *(name for one in entries for name in getattr(one, field))])
    )
    if len(names) < 2:
        return None
    sections = []
    for group, title in GROUPS.items():
        lines = tuple(
            PartLine(
                shown(one.name, _NAME),
                classifier(one.classifier),
                tuple(_part(getattr(one, field).get(name)) for name in names),
            )
            for one in entries
            if one.group is group and getattr(one, field)
        )
        if lines:
            sections.append(PartSection(group.value, title, lines))
    counts = tuple(
        f"{counted[name][0]:,} answers, {counted[name][1]:,} wrong" if name in counted else ""
        for name in names
    )
    return Parts(tuple(shown(name, _NAME) for name in names), counts, tuple(sections))


def transfer_matrices(transfers: Sequence[Transfer]) -> tuple[Matrix, ...]:
    found = []
    for name, how in dict.fromkeys((one.name, one.classifier) for one in transfers):
        some = [one for one in transfers if (one.name, one.classifier) == (name, how)]
        cells = {(one.trained_on, one.tested_on): _transfer(one) for one in some}
        taught = dict.fromkeys(one.trained_on for one in some)
        tested = tuple(dict.fromkeys([*taught, *(one.tested_on for one in some)]))
        tested = tuple(name for name in tested if any(name == one.tested_on for one in some))
        rows = tuple(
            (shown(one, _NAME), tuple(cells.get((one, other)) for other in tested))
            for one in taught
        )
        title = f"{shown(name, _NAME)}, {classifier(how)}"
        found.append(Matrix(title, tuple(shown(one, _NAME) for one in tested), rows))
    return tuple(found)


def label_counts(counts: Counts) -> tuple[Count, ...]:
    """Of all stored rows; wrong and right ones first."""
    names = sorted(counts.labels, key=lambda name: (name != Label.WRONG, name != Label.RIGHT))
    most = max([*counts.labels.values(), 1])
    return tuple(
        Count(
            shown(name, _NAME),
            f"{counts.labels[name]:,}",
            percent(counts.labels[name], counts.stored),
            "",
            100 * counts.labels[name] / most,
            100 * counts.labels[name] / most if name == "wrong" else 0.0,
        )
        for name in names
    )


def part_counts(parts: Mapping[str, tuple[int, int]]) -> tuple[Count, ...]:
    most = max([*(rows for rows, _ in parts.values()), 1])
    return tuple(
        Count(
            shown(name, _NAME),
            f"{rows:,}",
            percent(wrong, rows),
            f"{wrong:,}",
            100 * rows / most,
            100 * wrong / most,
        )
        for name, (rows, wrong) in parts.items()
    )


def flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) of a JSON object, the inner ones by dotted names."""
    for name, value in settings.items():
        key = f"{before}{name}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{key}.")
        else:
            yield shown(key, _NAME), shown(_setting(value), _VALUE)


def _setting(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and not any(isinstance(one, dict | list) for one in value):
        return ", ".join(map(_setting, value)) or NONE
    return json.dumps(value, ensure_ascii=False, default=str)


def _part(part: Part | None) -> Cell:
    if part is None:
        return Cell(Figure(NONE, ""), "")
    return Cell(_figure(part.auroc), "")


def _transfer(one: Transfer) -> Cell:
    value = one.auroc.value
    shade = None
    if math.isfinite(value):
        shade = round(min(max((value - 0.5) / 0.5, 0.0), 1.0) * _SHADES)
    return Cell(_figure(one.auroc), f"{one.rows:,} rows", shade)


def _figure(interval: Interval, *, bar: bool = False) -> Figure:
    text, range_ = number(interval.value), bounds(interval)
    if not bar or not math.isfinite(interval.value):
        return Figure(text, range_)
    ends = (interval.low, interval.high) if range_ else (interval.value, interval.value)
    low, high = map(_on_scale, ends)
    return Figure(text, range_, _on_scale(interval.value), low, high)


def _on_scale(value: float) -> float:
    low, high = _SCALE
    return round(100 * (min(max(value, low), high) - low) / (high - low), 2)
