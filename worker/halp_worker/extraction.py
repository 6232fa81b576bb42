"""`Extraction`: what one batch became."""

from __future__ import annotations

from dataclasses import dataclass

from halp_store.features import FeatureBatch, RowKey
from halp_worker.fates import Fate


@dataclass(frozen=True)
class Extraction:
    """features: rows for the store, None if there are none. fates: of the other jobs."""

    features: FeatureBatch | None
    fates: tuple[tuple[RowKey, Fate], ...] = ()
