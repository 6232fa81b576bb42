"""`entries_of`: risks to lines of the table: figures, intervals, part by part.

Knows risks and labels; refuses to know where a risk comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from halp_probe.bootstrap import Draws, auroc_interval, intervals_of
from halp_probe.metrics import Bools
from halp_probe.network import Floats
from halp_probe.results import Entry, Group, Interval, Part
from halp_probe.rows import Rows

NO_CLASSIFIER: Final = "none"


@dataclass(frozen=True, eq=False)
class Scored:
    """A line before it is measured. risk: (S, N) float32. ranks: likewise, what puts its rows in
    order: see `crossfit.ranks_of`; the risk itself where nothing was learned."""

    name: str
    group: Group
    classifier: str
    risk: Floats
    ranks: Floats
    note: str = ""


def entries_of(
    scored: Sequence[Scored], rows: Rows, draws: Draws, threads: int, step: Callable[[], None]
) -> tuple[Entry, ...]:
    """In the same order, several at once: numpy lets go of the interpreter."""
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for entry in pool.map(lambda one: measured(one, rows, draws), scored):
            step()
            found.append(entry)
    return tuple(found)


def measured(scored: Scored, rows: Rows, draws: Draws) -> Entry:
    """The figures of one line; each a mean over its seeds."""
    ranks, wrong = scored.ranks, rows.wrong
    is_probability = scored.classifier != NO_CLASSIFIER
    whole = intervals_of(ranks, wrong, draws, risk=scored.risk if is_probability else None)
    return Entry(
        name=scored.name,
        group=scored.group,
        classifier=scored.classifier,
        auroc=whole.auroc,
        auprc=whole.auprc,
        ece=whole.ece,
        aurc=whole.aurc,
        by_kind=_parts(ranks, wrong, rows.kinds, draws, whole.auroc),
        by_source=_parts(ranks, wrong, rows.sources, draws, whole.auroc),
        risk=scored.risk,
        ranks=scored.ranks,
        note=scored.note,
    )


def _parts(
    ranks: Floats, wrong: Bools, names: Sequence[str], draws: Draws, whole: Interval
) -> Mapping[str, Part]:
    different = sorted(set(names))
    if len(different) == 1:
        return {different[0]: Part(len(wrong), int(wrong.sum()), whole)}
    of = np.array(names, dtype=object)
    found = {}
    for name in different:
        which = np.flatnonzero(of == name)
        auroc = auroc_interval(ranks, wrong, draws, which)
        found[name] = Part(len(which), int(wrong[which].sum()), auroc)
    return found
