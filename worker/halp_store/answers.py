"""`read_answers`: the answers of rows that were stored before, for the receipts of a writer.

A courtesy to who waits for an answer: one that cannot be read is None, and `halp-store verify` says
what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from halp_store.errors import DamagedSegment
from halp_store.index import Place, SegmentIndex
from halp_store.published import PublishedGroup
from halp_store.storage import Storage


def read_answers(
    storage: Storage, index: SegmentIndex, places: Sequence[Place]
) -> list[str | None]:
    """One for each place, in order; one read for each segment, of the answers alone."""
    answers: list[str | None] = [None] * len(places)
    for number in sorted({one.number for one in places}):
        at = [i for i, one in enumerate(places) if one.number == number]
        rows = np.array([places[i].row for i in at], np.int64)
        try:
            group = PublishedGroup(storage, places[at[0]].segment)
            found = group.read("answer", (index.rows_in(number),), rows).tolist()
        except (DamagedSegment, OSError):
            continue
        for i, answer in zip(at, found, strict=True):
            answers[i] = answer
    return answers
