"""`Highlights`: which entries a report speaks of first. Pure: it picks, and computes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from halp_probe.results import Entry, Evaluation, Group

_NOT_NESTED = (Group.REPRESENTATION, Group.COMBINATION)


@dataclass(frozen=True, eq=False)
class Highlights:
    """best: what the report is about: the chosen entry with the highest AUROC.

    nested: False where nothing was chosen by folds, and `best` is the highest of the
        representations: picked on the test. others: the other chosen entries.
    baseline: the one with the highest AUROC, which is the hardest to beat; None without any.
    """

    best: Entry
    nested: bool
    others: tuple[Entry, ...]
    baseline: Entry | None
    controls: tuple[Entry, ...]


def highlights_of(evaluation: Evaluation) -> Highlights | None:
    """None where there is no classifier at all."""
    chosen = _ranked(evaluation, (Group.CHOSEN,))
    best = chosen or _ranked(evaluation, _NOT_NESTED)
    if not best:
        return None
    baselines = _ranked(evaluation, (Group.BASELINE,))
    return Highlights(
        best=best[0],
        nested=bool(chosen),
        others=tuple(chosen[1:]),
        baseline=baselines[0] if baselines else None,
        controls=tuple(one for one in evaluation.entries if one.group is Group.CONTROL),
    )


def _ranked(evaluation: Evaluation, groups: Iterable[Group]) -> list[Entry]:
    wanted = set(groups)
    found = [one for one in evaluation.entries if one.group in wanted]
    return sorted(found, key=lambda one: _or_least(one.auroc.value), reverse=True)


def _or_least(value: float) -> float:
    return -1.0 if math.isnan(value) else value
