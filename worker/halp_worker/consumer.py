"""`Consumer`: one member of the run's consumer group: fetches, renews, finishes, gives back.

Knows the stream; does not know what a job means. From the read to the acknowledgement a job is
leased: renewed, or lost to another worker and then never touched again. Delivery is at least
once: the same job may come twice, to one worker or to two, and the store decides.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import redis

from halp_producer.enqueue import create_group
from halp_producer.job import MAX_ID_BYTES, JobFormatError, decode
from halp_producer.keys import DELAYED, DONE, EPOCH, FAILED, FAILED_FOR, GROUP, RunKeys
from halp_producer.outages import is_forgotten, is_outage
from halp_producer.results import RESULTS_KEPT, bounded, stored_message
from halp_store.features import Receipt, RowKey
from halp_worker import scripts
from halp_worker.delivery import Delivery
from halp_worker.fates import Reason, Rejection
from halp_worker.fetched import Fetched, fetched_new, fetched_taken
from halp_worker.hand import Hand
from halp_worker.mention import jobs, named
from halp_worker.retry import LONGEST_DELAY_MS

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 5.0
"""Between tries while the server is away."""

ALIVE_MS: Final = 30_000
"""A worker that was seen within this time may take what another place refused. Some heartbeats."""

OFFERS_LOOKED_AT: Final = 1000
"""How many refused jobs one read looks at. A script must stay short; more wait for their turn."""


@dataclass(frozen=True)
class Begun:
    """started: the deliveries that are still ours. epoch: another one, another life of the run."""

    started: list[Delivery]
    epoch: str


class Consumer:
    """One thread reads and finishes; `renew_all` and `release` may be called from others.

    client: repeats nothing by itself, so that no reply is lost unnoticed.
    name: this worker's, unique. lease_ms: after this long without renewal another may take a job.
    place: see `place_of`; without one, no job is offered to workers of other places.
    max_job_seconds: after this long in hand a job is not renewed any more.
    on_lost: is told how many leases were lost. on_poll: is called when a read was answered.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: RunKeys,
        *,
        name: str,
        lease_ms: int,
        place: str = "",
        max_job_seconds: float = float("inf"),
        on_lost: Callable[[int], None] = lambda _: None,
        on_poll: Callable[[], None] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._keys = keys
        self.name = name
        self._lease_ms = lease_ms
        self._place = place
        self._max_job_seconds = max_job_seconds
        self._on_lost = on_lost
        self._on_poll = on_poll
        self._sleep = sleep
        self._clock = clock
        self._own = client.register_script(scripts.OWN)
        self._take = client.register_script(scripts.TAKE)
        self._begin = client.register_script(scripts.BEGIN)
        self._renew = client.register_script(scripts.RENEW)
        self._ack = client.register_script(scripts.ACK)
        self._fail = client.register_script(scripts.FAIL)
        self._delay = client.register_script(scripts.DELAY)
        self._open = client.register_script(scripts.OPEN)
        self._leave = client.register_script(scripts.LEAVE)
        self._hand = Hand()
        # Entries that a lost reply left on our own list come before anything else.
        self._own_page: str | None = "-"
        self._pause = FIRST_PAUSE_SECONDS
        self._waits_since: float | None = None
        self._has_group = False
        self._patience_seconds = float("inf")
        self._waited_seconds = 0.0  # since `hurry`
        self.keeps_all = False
        """Set while nothing in hand can be finished: then it is renewed however long it is held."""
        self.polled_s: float | None = None
        """When the server last answered a read, on the monotonic clock; None before the first."""

        self.unacknowledged = 0
        """Entries whose rows a receipt proves, while the server is told."""

    @property
    def in_hand(self) -> int:
        """Entries read and neither finished, given back nor lost."""
        return len(self._hand)

    def attempts(self, key: RowKey) -> int:
        """How often work on this row was started, this time included."""
        return max((held.started for held in self._hand.entries([key]).values()), default=0)

    def rows(self) -> set[RowKey]:
        """Of everything in hand."""
        return {held.key for held in self._hand.entries().values()}

    def holds(self, delivery: Delivery) -> bool:
        return delivery.entry_id in self._hand.entries([delivery.key])

    def hurry(self, seconds: float) -> None:
        """From now on, wait no longer than this in all for a server that is away; then what
        redis-py raised comes out. May be called from a signal."""
        self._patience_seconds = seconds

    # -- reading ---------------------------------------------------------------------------

    def read(self, slots: int, block_ms: int) -> list[Delivery]:
        """At most `slots` jobs: own pending ones, then delayed ones that are due and those of
        workers whose lease is over, then new ones.

        Blocks at most `block_ms` (0: not at all). An unreachable server gives an empty list after
        a growing pause; entries that are not jobs are failed here.
        """
        if slots <= 0:
            return []
        try:
            self._join_group()
            entries = self._read_own(slots) or self._take_next(slots)
            if not entries and block_ms:
                entries = self._wait_for_new(slots, block_ms)
        except redis.RedisError as error:
            if is_forgotten(error):
                log.warning("the stream or its group is gone (%s): starting it again", error)
                self._has_group = False
                self._recover()
            elif is_outage(error):
                self._wait_for_server(error)
            else:
                raise
            return []
        self._answered()
        self.polled_s = time.monotonic()
        self._on_poll()
        return self._decode(entries)

    def _wait_for_server(self, error: Exception) -> None:
        log.warning("server not available (%s): trying again in %.1f s", error, self._pause)
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        self._recover()

    def _answered(self) -> None:
        self._pause, self._waits_since = FIRST_PAUSE_SECONDS, None

    @property
    def waiting_seconds(self) -> float:
        """For how long it has tried the same in vain."""
        since = self._waits_since
        return 0.0 if since is None else time.monotonic() - since

    def _recover(self) -> None:
        self._own_page = "-"
        self._sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def _join_group(self) -> None:
        if self._has_group:
            return
        # Asked first, because a full server refuses to create even what is there.
        if not self._group_exists():
            create_group(self._client, self._keys)
        self._has_group = True

    def _group_exists(self) -> bool:
        if not self._client.exists(self._keys.jobs):
            return False
        groups: Any = self._client.xinfo_groups(self._keys.jobs)
        return any(group["name"] == GROUP.encode() for group in groups)

    def _read_own(self, slots: int) -> list[Fetched]:
        while self._own_page is not None:
            entries = fetched_taken(
                self._own(
                    keys=[self._keys.jobs, self._keys.attempts],
                    args=[GROUP, self.name, self._own_page, slots],
                )
            )
            # Page by page, for what is in hand fills pages too.
            self._own_page = f"({entries[-1].entry_id}" if entries else None
            fresh = self._not_in_hand(entries)
            if fresh:
                ids = [one.question_id for one in fresh]
                log.info(
                    "found %d jobs on our own list that never arrived: %s",
                    len(ids),
                    named(ids),
                    extra=jobs(ids),
                )
                return fresh
        return []

    def _take_next(self, slots: int) -> list[Fetched]:
        taken = fetched_taken(
            self._take(
                keys=[
                    *(self._keys.jobs, self._keys.delayed),
                    *(self._keys.attempts, self._keys.workers),
                ],
                args=[
                    *(GROUP, self.name, DELAYED, slots, self._lease_ms),
                    *(LONGEST_DELAY_MS + self._lease_ms, self._place, ALIVE_MS, OFFERS_LOOKED_AT),
                ],
            )
        )
        fresh = self._not_in_hand(taken)
        if left := [entry for entry in fresh if entry.attempts or entry.taken_from]:
            ids, reasons = [one.question_id for one in left], sorted({one.why for one in left})
            log.info(
                "took over %d jobs (%s): %s",
                len(ids),
                ", ".join(reasons),
                named(ids),
                extra=jobs(ids),
            )
        return fresh

    def _wait_for_new(self, slots: int, block_ms: int) -> list[Fetched]:
        answer: Any = self._client.xreadgroup(
            GROUP, self.name, {self._keys.jobs: ">"}, count=slots, block=block_ms
        )
        return fetched_new(answer)

    def _not_in_hand(self, entries: Sequence[Fetched]) -> list[Fetched]:
        return [one for one in entries if not self._hand.knows(one.entry_id, one.attempts)]

    def _decode(self, entries: Iterable[Fetched]) -> list[Delivery]:
        deliveries = []
        for entry in entries:
            try:
                job = decode(entry.fields or {})
            except JobFormatError as error:
                question_id = entry.question_id
                log.warning(
                    "failed %s (entry %s): malformed: %s",
                    question_id,
                    entry.entry_id,
                    error,
                    extra={
                        **jobs([question_id]),
                        "entry_id": entry.entry_id,
                        "reason": Reason.MALFORMED,
                    },
                )
                self._fail_entries([entry.entry_id], Rejection(Reason.MALFORMED, str(error)))
                continue
            delivery = Delivery(entry.entry_id, job, entry.attempts, entry.taken_from)
            self._hand.take(delivery, self._clock())
            deliveries.append(delivery)
        return deliveries

    # -- holding ---------------------------------------------------------------------------

    def begin(self, deliveries: Sequence[Delivery]) -> Begun:
        """Counts an attempt of each that is still in hand, and renews its lease."""
        ours = self._hand.entries()
        held = {
            one.entry_id: ours[one.entry_id].attempts + 1
            for one in deliveries
            if one.entry_id in ours
        }
        arguments = [part for pair in held.items() for part in pair]
        (epoch, *lost), _ = self._persist(
            lambda: self._begin(
                keys=[self._keys.jobs, self._keys.attempts, self._keys.counts],
                args=[GROUP, self.name, EPOCH, *arguments],
            )
        )
        gone = set(self._lose(lost))
        started = [one for one in deliveries if one.entry_id in held.keys() - gone]
        self._hand.begin(one.entry_id for one in started)
        return Begun(started, epoch.decode())

    def still_ours(self, rows: Iterable[RowKey]) -> set[RowKey]:
        """As `renew`, at batch entry: what is lost by now would be computed in vain. What came less
        than an eighth of a lease ago was leased by that. Before a commit, `renew` asks always."""
        wanted = set(rows)
        long_ago = self._clock() - self._lease_ms / 8000
        held = self._hand.entries(wanted).values()
        if any(one.since < long_ago for one in held):
            return self.renew(wanted)
        return {one.key for one in held}

    def renew(self, rows: Iterable[RowKey]) -> set[RowKey]:
        """Renews these leases; returns the rows that are still ours."""
        wanted = set(rows)
        if entry_ids := list(self._hand.entries(wanted)):
            lost, _ = self._persist(lambda: self._refetched_new(entry_ids))
            self._lose(lost)
        return {held.key for held in self._hand.entries(wanted).values()}

    def renew_all(self) -> None:
        """Renews the lease of everything in hand, but for what was held too long. Raises
        what redis-py raises."""
        oldest = self._clock() - self._max_job_seconds
        ours = self._hand.entries()
        too_long = self._hand.forget(
            one for one, held in ours.items() if held.since < oldest and not self.keeps_all
        )
        for entry_id in too_long:
            question_id = ours[entry_id].key.question_id
            log.warning(
                "%s (entry %s): in hand for over --max-job-seconds: no longer renewed",
                question_id,
                entry_id,
                extra={**jobs([question_id]), "entry_id": entry_id},
            )
        if too_long:
            self._on_lost(len(too_long))
        if entry_ids := list(ours.keys() - set(too_long)):
            self._lose(self._refetched_new(entry_ids))

    def _refetched_new(self, entry_ids: Sequence[str]) -> Any:
        return self._renew(keys=[self._keys.jobs], args=[GROUP, self.name, *entry_ids])

    # -- finishing -------------------------------------------------------------------------

    def ack(self, receipt: Receipt) -> int:
        """Acknowledges every entry in hand whose row the receipt proves, and says so on the results
        stream; returns how many.

        An entry that is another worker's by now stays that worker's, and nothing is said of it.
        """
        stored = {one.key: one for one in receipt.stored}
        arguments: list[bytes | str | int] = []
        held = self._hand.entries(stored)
        for entry_id, one in held.items():
            row = stored[one.key]
            message = stored_message(
                row.key.question_id,
                row.answer,
                row.segment,
                row.row,
                finish_reason=row.finish_reason,
                risk=row.risk,
            )
            arguments += [entry_id, len(message), *message]
        self.unacknowledged += len(held)
        acknowledged = self._finish(
            list(held),
            lambda _: self._ack(
                keys=[
                    *(self._keys.jobs, self._keys.counts),
                    *(self._keys.attempts, self._keys.results),
                ],
                args=[GROUP, self.name, DONE, RESULTS_KEPT, *arguments],
            ),
        )
        self.unacknowledged -= len(held)
        return acknowledged

    def fail(self, row: RowKey, rejection: Rejection) -> int:
        """Moves every entry in hand of this row to the failed stream; returns how many."""
        log.warning(
            "failed %s: %s: %s",
            row.question_id,
            rejection.reason,
            rejection.error,
            extra={**jobs([row.question_id]), "reason": rejection.reason},
        )
        return self._fail_entries(list(self._hand.entries([row])), rejection)

    def _fail_entries(self, entry_ids: Sequence[str], rejection: Rejection) -> int:
        failed = 0
        for entry_id in entry_ids:
            failed += self._finish(
                [entry_id],
                lambda entry_ids: self._fail(
                    keys=[
                        *(self._keys.jobs, self._keys.counts),
                        *(self._keys.failed, self._keys.attempts, self._keys.results),
                    ],
                    args=[
                        *(GROUP, self.name, FAILED, *entry_ids),
                        *(rejection.reason, _utf8(rejection.error), _utf8(rejection.traceback)),
                        *(FAILED_FOR, RESULTS_KEPT, bounded(rejection.error), MAX_ID_BYTES),
                    ],
                ),
            )
        return failed

    def retry(self, row: RowKey, delay_ms: int) -> int:
        """Gives every entry in hand of this row back, for whoever is free after the delay."""
        held = self._hand.entries([row])
        return self._give_back({one: what.started for one, what in held.items()}, delay_ms)

    def release(self, rows: Iterable[RowKey]) -> int:
        """Gives back what was not worked on: another worker gets it at once, no attempt counted."""
        held = self._hand.entries(set(rows))
        return self._give_back({one: what.attempts for one, what in held.items()}, 0)

    def offer(self, row: RowKey) -> int:
        """Gives back the entries in hand of this row that a worker of another place has not refused
        yet: only those take them, no attempt counted. Returns how many."""
        held = self._hand.entries([row])
        if not held or not self._place:
            return 0
        asked, _ = self._persist(
            lambda: self._open(
                keys=[self._keys.attempts, self._keys.workers],
                args=[self._place, ALIVE_MS, *held],
            )
        )
        still_open = [one.decode() for one in asked]
        return self._give_back({one: held[one].attempts for one in still_open}, 0, self._place)

    def _give_back(self, attempts: Mapping[str, int], delay_ms: int, refusing: str = "") -> int:
        arguments = [part for pair in attempts.items() for part in pair]
        return self._finish(
            list(attempts),
            lambda _: self._delay(
                keys=[self._keys.jobs, self._keys.delayed, self._keys.attempts],
                args=[GROUP, self.name, DELAYED, delay_ms, refusing, *arguments],
            ),
        )

    def _finish(self, entry_ids: Sequence[str], script: Callable[[Sequence[str]], Any]) -> int:
        """Runs a script that ends our hold on the entries; returns how many were ours."""
        if not entry_ids:
            return 0
        with self._hand.finishing(entry_ids):
            lost, was_repeated = self._persist(lambda: script(entry_ids))
            # Of a first run whose reply was lost, the second finds nothing left to do.
            unfinished = set() if was_repeated else {one.decode() for one in lost}
            self._hand.forget(set(entry_ids) - unfinished)
        self._lose(lost)
        return len(entry_ids) - len(unfinished)

    def leave(self) -> None:
        """Leaves the group if nothing is held. What a server that is away misses, another worker
        of the run mends later."""
        try:
            self._leave(keys=[self._keys.jobs], args=[GROUP, self.name])
        except redis.RedisError as error:
            log.warning("could not leave the group: %s", error)

    def remaining(self) -> int:
        """Jobs of the run that are waiting, delayed or in anyone's hands."""
        length, _ = self._persist(lambda: self._client.xlen(self._keys.jobs))
        return int(length)

    def persist(self, request: Callable[[], T]) -> T:
        """What the server answers, waited for as long as it is away."""
        reply: T = self._persist(request)[0]
        return reply

    def _persist(self, request: Callable[[], Any]) -> tuple[Any, bool]:
        """The reply, and whether an earlier try may have taken effect without one."""
        was_repeated = False
        while True:
            started = self._clock()
            try:
                reply = request()
            except redis.RedisError as error:
                if not is_outage(error) or self._waited_seconds >= self._patience_seconds:
                    raise
                was_repeated = True
                self._wait_for_server(error)
                if self._patience_seconds < float("inf"):
                    self._waited_seconds += self._clock() - started
            else:
                self._answered()
                return reply, was_repeated

    def _lose(self, raw_ids: Iterable[bytes]) -> list[str]:
        """Entries that are another's, or nobody's, by now. Counted and logged once."""
        lost = [one.decode() for one in raw_ids]
        noticed = self._hand.lose(lost)
        for entry_id, held in noticed.items():
            question_id = held.key.question_id
            log.warning(
                "lease of %s (entry %s) was lost: its result is discarded",
                question_id,
                entry_id,
                extra={**jobs([question_id]), "entry_id": entry_id},
            )
        if noticed:
            self._on_lost(len(noticed))
        return lost


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
