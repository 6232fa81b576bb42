"""`Hand`: the entries that this worker holds, from the read to the end of its hold.

Knows no server. Several threads use it: one reads and finishes, the heartbeat renews.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from halp_store.features import RowKey
from halp_worker.delivery import Delivery


@dataclass
class Held:
    """attempts: starts of work before. is_begun: one more, by us. since: seconds of the clock."""

    key: RowKey
    attempts: int
    since: float
    is_begun: bool = False

    @property
    def started(self) -> int:
        """How often work was started, by us too."""
        return self.attempts + self.is_begun


class Hand:
    """Entry id -> `Held`."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._finishing: set[str] = set()  # of these, not being ours any more is no loss
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def knows(self, entry_id: str, attempts: int) -> bool:
        """Whether it is held, and nobody else worked on it since: with another number of attempts
        our lease was lost for a while, and this is a new delivery."""
        with self._lock:
            held = self._held.get(entry_id)
        return held is not None and held.started == attempts

    def take(self, delivery: Delivery, now: float) -> None:
        with self._lock:
            self._held[delivery.entry_id] = Held(delivery.key, delivery.attempts, now)

    def begin(self, entry_ids: Iterable[str]) -> None:
        """Work on these was started."""
        with self._lock:
            for entry_id in entry_ids:
                if entry_id in self._held:
                    self._held[entry_id].is_begun = True

    def entries(self, rows: Collection[RowKey] | None = None) -> dict[str, Held]:
        """Those of these rows, or all; a copy. One row may have several."""
        with self._lock:
            return {
                entry_id: held
                for entry_id, held in self._held.items()
                if rows is None or held.key in rows
            }

    def forget(self, entry_ids: Iterable[str]) -> list[str]:
        """Our hold on them has ended. Returns those that were held."""
        with self._lock:
            return [one for one in entry_ids if self._held.pop(one, None) is not None]

    def lose(self, entry_ids: Iterable[str]) -> dict[str, Held]:
        """They are somebody else's, or nobody's. Returns those whose loss is news: held, and not
        being finished at this moment."""
        with self._lock:
            return {
                one: held
                for one in entry_ids
                if one not in self._finishing and (held := self._held.pop(one, None)) is not None
            }

    @contextmanager
    def finishing(self, entry_ids: Collection[str]) -> Iterator[None]:
        """While a script ends our hold on these, another thread may find them gone already."""
        with self._lock:
            self._finishing.update(entry_ids)
        try:
            yield
        finally:
            with self._lock:
                self._finishing.difference_update(entry_ids)
