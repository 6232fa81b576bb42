"""`Consumer`: one member of the run's consumer group. Fetches, acknowledges, rejects, renews.

Knows the stream; does not know what a job means. What is in a worker's hands is in the `in hand`
table here, from the read to the acknowledgement. Delivery is at least once: the same job may come
twice, to one worker or to two, and the store decides.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import redis

from halp_producer.enqueue import create_group
from halp_producer.job import JobFormatError, decode
from halp_producer.keys import DONE, FAILED, GROUP, RunKeys
from halp_store.features import Receipt, RowKey
from halp_worker import scripts
from halp_worker.delivery import Delivery
from halp_worker.fates import Reason, Rejection

log = logging.getLogger(__name__)

RECLAIM_EVERY_SECONDS: Final = 1.0
"""How often to look for jobs of workers that are gone. Each look scans 10 x COUNT entries."""

FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 5.0
"""Between tries while the server is away."""

_PASSING: Final = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.OutOfMemoryError)
"""What the server says of itself for a while: away, loading, full."""

_HEALED_BY_NEW_GROUP: Final = ("NOGROUP", "UNBLOCKED")
"""What the server answers after FLUSHALL or a failover (7.0 says UNBLOCKED, later ones NOGROUP)."""


class Consumer:
    """Not thread-safe but for `renew`, which the heartbeat thread calls.

    blocking: a connection without retries, whose timeout is above `block_ms`: a retried read
        after a lost reply would leave the first reply's jobs stranded.
    control: a connection for scripts. name: this worker's, unique.
    lease_ms: after this long without renewal another worker may take a job.
    """

    def __init__(
        self,
        blocking: redis.Redis,
        control: redis.Redis,
        keys: RunKeys,
        *,
        name: str,
        lease_ms: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._blocking = blocking
        self._control = control
        self._keys = keys
        self.name = name
        self._lease_ms = lease_ms
        self._sleep = sleep
        self._ack = control.register_script(scripts.ACK)
        self._reject = control.register_script(scripts.REJECT)
        self._renew = control.register_script(scripts.RENEW)
        self._in_hand: dict[str, RowKey] = {}
        self._lock = threading.Lock()
        # Entries that a lost reply left on our own list come before anything else.
        self._own_cursor: str | None = "0"
        self._reclaim_cursor = "0-0"
        self._next_reclaim = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._has_group = False

    @property
    def in_hand(self) -> int:
        """Entries read and neither acknowledged, rejected nor lost."""
        with self._lock:
            return len(self._in_hand)

    # -- reading ---------------------------------------------------------------------------

    def read(self, slots: int, block_ms: int) -> list[Delivery]:
        """At most `slots` jobs: own pending ones, then those of workers that are gone, then new.

        Blocks at most `block_ms` (0: not at all). An unreachable server gives an empty list after
        a growing pause; entries that are not jobs are rejected here.
        """
        if slots <= 0:
            return []
        try:
            self._join_group()
            entries = (
                self._read_own(slots) or self._reclaim(slots) or self._read_new(slots, block_ms)
            )
            deliveries = self._decode(entries)
        except _PASSING as error:
            self._wait_for_server(error)
            return []
        except redis.ResponseError as error:
            if not str(error).startswith(_HEALED_BY_NEW_GROUP):
                raise
            log.warning("the stream or its group is gone (%s): starting it again", error)
            self._has_group = False
            self._recover()
            return []
        self._pause = FIRST_PAUSE_SECONDS
        return deliveries

    def _wait_for_server(self, error: Exception) -> None:
        log.warning("server not available (%s): trying again in %.1f s", error, self._pause)
        self._recover()

    def _recover(self) -> None:
        self._own_cursor = "0"
        self._sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def _join_group(self) -> None:
        if self._has_group:
            return
        # Asked first, because a full server refuses to create even what is there.
        if not self._group_exists():
            create_group(self._control, self._keys)
        self._has_group = True

    def _group_exists(self) -> bool:
        if not self._control.exists(self._keys.jobs):
            return False
        groups: Any = self._control.xinfo_groups(self._keys.jobs)
        return any(group["name"] == GROUP.encode() for group in groups)

    def _read_own(self, slots: int) -> list[Any]:
        while self._own_cursor is not None:
            entries = self._xreadgroup(slots, self._own_cursor)
            if not entries:
                self._own_cursor = None
                break
            self._own_cursor = entries[-1][0].decode()
            fresh = self._not_in_hand(entries)
            if fresh:
                return fresh
        return []

    def _reclaim(self, slots: int) -> list[Any]:
        if time.monotonic() < self._next_reclaim:
            return []
        # The cursor is kept: starting at 0-0 each time would never get past a long list.
        cursor, entries, *_ = self._blocking.xautoclaim(
            self._keys.jobs,
            GROUP,
            self.name,
            self._lease_ms,
            start_id=self._reclaim_cursor,
            count=slots,
        )
        self._reclaim_cursor = cursor.decode()
        if not entries and self._reclaim_cursor == "0-0":
            self._next_reclaim = time.monotonic() + RECLAIM_EVERY_SECONDS
        fresh = self._not_in_hand(entries)
        if fresh:
            log.info("reclaimed %d jobs of workers that are gone", len(fresh))
        return fresh

    def _read_new(self, slots: int, block_ms: int) -> list[Any]:
        return self._xreadgroup(slots, ">", block_ms or None)

    def _xreadgroup(self, slots: int, after: str, block_ms: int | None = None) -> list[Any]:
        answer: Any = self._blocking.xreadgroup(
            GROUP, self.name, {self._keys.jobs: after}, count=slots, block=block_ms
        )
        if not answer:
            return []
        # A mapping with RESP3 (lists of entries inside one more list), pairs with RESP2.
        if isinstance(answer, dict):
            return [entry for lists in answer.values() for part in lists for entry in part]
        return [entry for _, entries in answer for entry in entries]

    def _not_in_hand(self, entries: list[Any]) -> list[Any]:
        with self._lock:
            return [entry for entry in entries if entry[0].decode() not in self._in_hand]

    def _decode(self, entries: list[Any]) -> list[Delivery]:
        deliveries = []
        for raw_id, fields in entries:
            entry_id = raw_id.decode()
            try:
                # None: deleted while it was pending; there is nothing left to do but to say so.
                delivery = Delivery(entry_id, decode(fields or {}))
            except JobFormatError as error:
                self._reject_entry(entry_id, Rejection(Reason.MALFORMED, str(error)))
                continue
            with self._lock:
                self._in_hand[entry_id] = delivery.key
            deliveries.append(delivery)
        return deliveries

    # -- finishing -------------------------------------------------------------------------

    def ack(self, receipt: Receipt) -> int:
        """Acknowledges every entry in hand whose row the receipt proves; returns how many.

        An entry that is another worker's by now stays that worker's.
        """
        entry_ids = self._entries_of(receipt.rows)
        if not entry_ids:
            return 0
        lost = self._persist(
            lambda: self._ack(
                keys=[self._keys.jobs, self._keys.counts],
                args=[GROUP, self.name, DONE, *entry_ids],
            )
        )
        self._forget(entry_ids)
        self._report_lost(lost)
        return len(entry_ids) - len(lost)

    def reject(self, key: RowKey, rejection: Rejection) -> int:
        """Moves every entry in hand of this row to the failed stream; returns how many."""
        entry_ids = self._entries_of([key])
        return sum(self._reject_entry(entry_id, rejection) for entry_id in entry_ids)

    def _reject_entry(self, entry_id: str, rejection: Rejection) -> int:
        log.warning("rejected %s: %s: %s", entry_id, rejection.reason, rejection.error)
        done = self._persist(
            lambda: self._reject(
                keys=[self._keys.jobs, self._keys.counts, self._keys.failed],
                args=[GROUP, self.name, FAILED, entry_id, rejection.reason, rejection.error],
            )
        )
        self._forget([entry_id])
        return int(done)

    def renew(self) -> None:
        """Renews the lease of everything in hand; what was lost leaves the hand."""
        with self._lock:
            entry_ids = list(self._in_hand)
        if entry_ids:
            lost = self._renew(keys=[self._keys.jobs], args=[GROUP, self.name, *entry_ids])
            still_ours = set(self._forget(one.decode() for one in lost))
            self._report_lost([one for one in lost if one.decode() in still_ours])

    def remaining(self) -> int:
        """Jobs of the run that are waiting or in anyone's hands."""
        return int(self._persist(lambda: self._control.xlen(self._keys.jobs)))

    def _persist(self, request: Callable[[], Any]) -> Any:
        """The scripts may run twice: the second time finds nothing of ours, and changes nothing."""
        while True:
            try:
                return request()
            except _PASSING as error:
                self._wait_for_server(error)

    def _entries_of(self, rows: Iterable[RowKey]) -> list[str]:
        wanted = set(rows)
        with self._lock:
            return [entry_id for entry_id, key in self._in_hand.items() if key in wanted]

    def _forget(self, entry_ids: Iterable[str]) -> list[str]:
        """Returns those that were in hand."""
        with self._lock:
            return [one for one in entry_ids if self._in_hand.pop(one, None) is not None]

    def _report_lost(self, lost: list[bytes]) -> None:
        for entry_id in lost:
            log.warning("lease of %s was lost: it is another worker's now", entry_id.decode())
