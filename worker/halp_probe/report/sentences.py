"""What the figures say, in plain sentences. Pure; each sentence has its figures beside it."""

from __future__ import annotations

import math
from typing import Final

from halp_probe.judging.verdict import Label
from halp_probe.report.highlights import Highlights
from halp_probe.report.wording import (
    classifier,
    counted,
    number,
    percent,
    signed,
    with_bounds,
)
from halp_probe.results import Entry, Evaluation, Interval, Leak

_CHANCE: Final = 0.5
_FEW: Final = 100
"""Wrong (or right) answers: below, an interval of an AUROC is wider than a tenth."""


def data(evaluation: Evaluation) -> str:
    counts = evaluation.counts
    left_out = [
        f"{rows:,} {name}"
        for name, rows in counts.labels.items()
        if rows and name not in {Label.RIGHT, Label.WRONG}
    ]
    end = f" Left out: {', '.join(left_out)}." if left_out else ""
    return (
        f"Of {counted(counts.stored, 'stored answer')}, {counts.rows:,} are labelled right or "
        f"wrong; {counts.wrong:,} of these are wrong ({percent(counts.wrong, counts.rows)}), on "
        f"{counted(counts.images, 'image')}.{end}"
    )


def finding(highlights: Highlights) -> str:
    """The figure of the report, and how it came to be."""
    best = highlights.best
    figure = f"AUROC {with_bounds(best.auroc)}"
    if not highlights.nested:
        return (
            f"{best.name} ({_in_words(best.classifier)}) has the highest {figure}. Nothing was "
            "chosen by folds inside the training part: among several, this one was picked on the "
            "test, and is too high for that."
        )
    sentence = (
        "A probe on hidden states from before the first token tells wrong answers from right ones "
        f"with {figure} ({_in_words(best.classifier)}; representation and layer chosen inside the "
        "training parts, by folds of images)."
    )
    for one in highlights.others:
        sentence += f" The {_in_words(one.classifier)}, chosen alike: {with_bounds(one.auroc)}."
    return sentence


def meaning(value: float) -> str:
    """Of an AUROC."""
    if math.isnan(value):
        return "There is no AUROC: it needs right and wrong answers."
    return (
        "That is: of a wrong and a right answer drawn at random, the wrong one had the higher risk "
        f"in {100 * value:.0f} of 100 draws; 50 would be guessing."
    )


def against_baseline(highlights: Highlights) -> str:
    baseline, best = highlights.baseline, highlights.best
    if baseline is None:
        return "No baseline was measured: this figure has nothing to be held against."
    named = f"The best baseline, {baseline.name}, has {with_bounds(baseline.auroc)}"
    ours, theirs = best.auroc, baseline.auroc
    if not all(map(math.isfinite, (ours.value, theirs.value))):
        return f"{named}; they cannot be compared."
    if ours.value <= theirs.value:
        return (
            f"{named}: the probe does not beat it. These states were not shown to know more than "
            "that."
        )
    if ours.low > theirs.high:
        return f"{named}: the two intervals do not meet, and the probe is the better of both."
    return (
        f"{named}: lower, but the two intervals overlap. By these intervals alone it is not shown "
        "that the states know more than that."
    )


def control(entry: Entry) -> str:
    value = entry.auroc
    said = f"With {entry.name}, the same procedure gives {with_bounds(value)}"
    if _holds(value, _CHANCE):
        return f"{said}: 0.5, as it has to be."
    return (
        f"{said}: 0.5 is outside. That happens by chance in one of twenty; if it is far off, "
        "something leaks, and no figure is to be trusted."
    )


def control_is_bad(entry: Entry) -> bool:
    return not _holds(entry.auroc, _CHANCE)


def leak(one: Leak) -> str:
    change = one.by_question.value - one.by_image.value
    if math.isnan(change):
        return "Folds by question cannot be compared."
    how = (
        f"higher by {change:.3f}{_beyond(one)}"
        if change > 0
        else f"no higher ({signed(change)}): here nothing is gained by it"
    )
    return (
        f"{one.name} ({_in_words(one.classifier)}): folds by question would have said "
        f"{number(one.by_question.value)} where folds by image say {number(one.by_image.value)}; "
        f"{how}."
    )


def _beyond(one: Leak) -> str:
    if one.by_question.low > one.by_image.high:
        return ", which is the leak: the intervals do not meet"
    return ", though the intervals overlap"


def picked(evaluation: Evaluation, highlights: Highlights) -> list[str]:
    """Nested choice beside choice on the test, a sentence for each classifier."""
    found = []
    chosen = (highlights.best, *highlights.others) if highlights.nested else ()
    for one in chosen:
        if one.classifier not in evaluation.picked_on_test:
            continue
        name, value = evaluation.picked_on_test[one.classifier]
        change = value - one.auroc.value
        found.append(
            f"{_in_words(one.classifier)}: nested choice gives {number(one.auroc.value)}; the "
            f"best on the test folds, {name}, has {number(value)} ({signed(change)})."
        )
    return found


def caution(evaluation: Evaluation) -> str:
    """Where the rows are few; empty where they are not."""
    counts = evaluation.counts
    fewer = min(counts.wrong, counts.rows - counts.wrong)
    if fewer >= _FEW:
        return ""
    what = "wrong" if counts.wrong == fewer else "right"
    return (
        f"There are only {counted(fewer, f'{what} answer')}: the intervals are wide, and small "
        "differences in the table mean nothing."
    )


def in_short(evaluation: Evaluation, highlights: Highlights | None) -> tuple[str, ...]:
    """The three most important figures, for a terminal."""
    if highlights is None:
        return (data(evaluation),)
    return (data(evaluation), finding(highlights), against_baseline(highlights))


def _in_words(name: str) -> str:
    return "logistic regression" if name == "logistic" else classifier(name)


def _holds(interval: Interval, value: float) -> bool:
    if math.isnan(interval.low) or math.isnan(interval.high):
        return math.isnan(interval.value) or abs(interval.value - value) < 0.05
    return interval.low <= value <= interval.high
