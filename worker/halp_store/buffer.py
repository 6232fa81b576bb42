"""`RowBuffer`: rows that wait for a flush. Pure values; time is an argument."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from halp_store.features import FeatureBatch, RowKey


class RowBuffer:
    """Keeps references to the batches it is given, and each row once."""

    def __init__(self) -> None:
        self._batches: list[FeatureBatch] = []
        self._rows: dict[RowKey, int] = {}  # -> row in the batches put together
        self._first_hash: dict[str, str] = {}  # question id -> content hash that came first
        self.since: float | None = None
        """When the first row came, in seconds of the caller's clock."""

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[RowKey, int]]:
        """(key, row in `features`), in order of arrival."""
        return iter(self._rows.items())

    def append(self, features: FeatureBatch, now: float) -> None:
        """A row that is here with the same content is dropped: it is the same."""
        first: dict[RowKey, int] = {}
        for row, key in enumerate(features.keys):
            if key not in self._rows:
                first.setdefault(key, row)
        if not first:
            return
        whole = len(first) == len(features)
        self._batches.append(features if whole else features.take(list(first.values())))
        for key in first:
            self._rows[key] = len(self._rows)
            self._first_hash.setdefault(key.question_id, key.content_hash)
        if self.since is None:
            self.since = now

    def state(self, key: RowKey) -> Literal["new", "buffered", "conflict"]:
        """Whether the id is here, and came first with this content or with another."""
        found = self._first_hash.get(key.question_id)
        if found is None:
            return "new"
        return "buffered" if found == key.content_hash else "conflict"

    def features(self, rows: list[int]) -> FeatureBatch:
        """The given rows (at least one), put together; may be a view of what was appended."""
        batches = self._batches
        whole = batches[0] if len(batches) == 1 else FeatureBatch.concatenate(batches)
        return whole if len(rows) == len(whole) else whole.take(rows)
