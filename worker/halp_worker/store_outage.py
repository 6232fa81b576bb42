"""`PatientWriter`: a `StoreWriter` that waits while its disk or bucket is not available.

Knows that `StoreUnavailable` passes and that every other error of a store does not. A call that
raised left the writer as it was, so that it is simply made again. Does not guarantee an end: a call
that never returns is waited for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from halp_store.errors import StoreUnavailable
from halp_store.features import FeatureBatch, Receipt, RowKey
from halp_store.writer import Flush, MayCommit, RowState, StoreWriter

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 5.0
"""Between two tries."""

REPORT_SECONDS: Final = 60.0
"""An outage is reported when it begins, this often, and when it is over."""

OPEN_SECONDS: Final = 60.0
"""How long a worker that starts waits for its store: a mount on its way is there by then."""

STOP_SECONDS: Final = 3.0
"""How long a worker that is to stop goes on trying: it gives back what it cannot store."""

T = TypeVar("T")


def open_patiently(
    open_store: Callable[[], T],
    *,
    seconds: float = OPEN_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """The store, as soon as it can be opened. Raises StoreUnavailable if it cannot for so long."""
    outage, until = Outage(clock), clock() + seconds
    while True:
        try:
            opened = open_store()
        except StoreUnavailable as error:
            pause = outage.note(error)
            if clock() + pause > until:
                raise
            sleep(pause)
        else:
            outage.end()
            return opened


class Outage:
    """What is said of one after the other, and how long to wait in between."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: float | None = None
        self._reported = 0.0
        self._pause = FIRST_PAUSE_SECONDS

    @property
    def is_on(self) -> bool:
        return self._began is not None

    def note(self, error: StoreUnavailable) -> float:
        """A try failed. Returns the seconds until the next one."""
        now, pause = self._clock(), self._pause
        if self._began is None or now - self._reported >= REPORT_SECONDS:
            log.warning("the store is not available, trying again and again: %s", error)
            self._reported = now
        self._began = now if self._began is None else self._began
        self._pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        return pause

    def end(self) -> None:
        """A try succeeded."""
        if self._began is not None:
            log.warning("the store is available again, after %.1f s", self._clock() - self._began)
        self._began, self._pause = None, FIRST_PAUSE_SECONDS


class PatientWriter:
    """The calls of a `StoreWriter` that the loop makes.

    wait: sleeps, and returns early once the worker is to stop. is_stopping: whether it is; from
    then on the store is waited for no longer than `STOP_SECONDS`. on_away: called after each try
    that failed. on_back: called when a try succeeded after one that failed.
    """

    def __init__(
        self,
        writer: StoreWriter,
        *,
        wait: Callable[[float], object],
        is_stopping: Callable[[], bool],
        on_away: Callable[[], None],
        on_back: Callable[[], None],
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer = writer
        self._wait, self._is_stopping = wait, is_stopping
        self._on_away, self._on_back = on_away, on_back
        self._sleep, self._clock = sleep, clock
        self._outage = Outage(clock)
        self._stop_at: float | None = None

    @property
    def rows_buffered(self) -> int:
        return self._writer.rows_buffered

    def seconds_until_due(self) -> float | None:
        return self._writer.seconds_until_due()

    def append(self, features: FeatureBatch) -> None:
        self._writer.append(features)

    def lookup(self, key: RowKey) -> RowState:
        return self._writer.lookup(key)

    def refresh(self) -> None:
        self._persist(self._writer.refresh)

    def refresh_deletions(self) -> None:
        self._persist(self._writer.refresh_deletions)

    def receipt_for(self, keys: Iterable[RowKey]) -> Receipt:
        rows = tuple(keys)
        return self._persist(lambda: self._writer.receipt_for(rows))

    def fence(self, workers: Iterable[str]) -> int:
        names = tuple(workers)
        return self._persist(lambda: self._writer.fence(names))

    def flush(self, may_commit: MayCommit | None = None) -> Flush:
        return self._persist(lambda: self._writer.flush(may_commit))

    def _persist(self, request: Callable[[], T]) -> T:
        while True:
            try:
                answer = request()
            except StoreUnavailable as error:
                pause = self._outage.note(error)
                self._on_away()
                if not self._may_wait(pause):
                    raise
            else:
                if self._outage.is_on:
                    self._outage.end()
                    self._on_back()
                return answer

    def _may_wait(self, pause: float) -> bool:
        """Waits, if there is time for it."""
        if not self._is_stopping():
            self._wait(pause)
            return True
        if self._stop_at is None:
            self._stop_at = self._clock() + STOP_SECONDS
        if self._clock() + pause > self._stop_at:
            return False
        self._sleep(pause)
        return True
