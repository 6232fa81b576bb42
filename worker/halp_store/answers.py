"""`Said`: what is told of a stored row beside its key; of rows at hand, or stored before.

A courtesy to who waits for an answer: what cannot be read is None, and `halp-store verify` says
what is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from halp_store.errors import DamagedSegment, ForeignSegment, GoneSegment
from halp_store.features import FeatureBatch
from halp_store.index import Place, SegmentIndex
from halp_store.published import PublishedGroup
from halp_store.root import Root
from halp_store.storage import Storage

RISK_COLUMN: Final = "risk"


class Said(NamedTuple):
    """The fields of a `StoredRow` of these names."""

    answer: str | None
    finish_reason: str | None
    risk: float | None


_NOTHING: Final = Said(None, None, None)


def said_of(features: FeatureBatch) -> list[Said]:
    """One for each row."""
    risks = features.scores.get(RISK_COLUMN)
    return _said(
        features.text["answer"],
        features.text["finish_reason"],
        [None] * len(features) if risks is None else risks.tolist(),
    )


def read_said(
    storage: Storage, root: Root, index: SegmentIndex, places: Sequence[Place]
) -> list[Said]:
    """One for each place, in order; of each segment these columns alone are read. Nothing is told
    of a row whose columns are damaged.

    Raises GoneSegment or StoreUnavailable: then nobody can say that the rows are there.
    """
    found = [_NOTHING] * len(places)
    for number in sorted({one.number for one in places}):
        at = [i for i, one in enumerate(places) if one.number == number]
        rows = np.array([places[i].row for i in at], np.int64)
        shape = (index.rows_in(number),)
        try:
            group = PublishedGroup(storage, places[at[0]].segment, root)
            texts = [group.read(name, shape, rows) for name in ("answer", "finish_reason")]
            risks: list[float | None] = [None] * len(at)
            if RISK_COLUMN in root.layout.scores:
                risks = group.read(RISK_COLUMN, shape, rows).tolist()
        except (GoneSegment, ForeignSegment):
            raise
        except DamagedSegment:
            continue
        for i, said in zip(at, _said(texts[0], texts[1], risks), strict=True):
            found[i] = said
    return found


def _said(
    answers: Iterable[str], reasons: Iterable[str], risks: Iterable[float | None]
) -> list[Said]:
    return [
        Said(answer, reason, None if risk is None or math.isnan(risk) else risk)
        for answer, reason, risk in zip(answers, reasons, risks, strict=True)
    ]
