"""`Service`: the worker's loop. read -> batch -> extract -> write -> acknowledge.

Knows the order of things and nothing of how they are done. The loop has a thread beside the
device's: while a batch runs, it writes and acknowledges the one before and lets prepare the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import redis

from halp_producer.activity import RUNNING, STOPPED, STOPPING, STORE_AWAY
from halp_producer.keys import DELAYED
from halp_store.writer import StoreWriter
from halp_worker.batcher import Batch, Batcher
from halp_worker.bisection import extract_each
from halp_worker.consumer import Consumer
from halp_worker.delivery import Delivery
from halp_worker.device_thread import DeviceThread
from halp_worker.extraction import Extraction
from halp_worker.fates import DeviceBroken
from halp_worker.host_health import HostHealth
from halp_worker.mention import jobs, named
from halp_worker.metrics import Metrics
from halp_worker.outcomes import Outcomes, conflict, worker_died
from halp_worker.outcomes import Tally as Tally
from halp_worker.retry import RetryPolicy
from halp_worker.store_outage import PatientWriter

log = logging.getLogger(__name__)

IDLE_BLOCK_MS: Final = 500
"""How long one read waits for work: also how soon an idle worker notices a stop, and released or
delayed jobs."""

BUSY_BLOCK_MS: Final = 50
"""How long one read waits for more work while the device runs: also how late its end is noticed
where the stream has nothing."""


STOP_SECONDS: Final = 6.0
"""How long a worker that is to stop goes on asking a server that is away, in all."""

LAST_BATCH_SECONDS: Final = 4.0
"""How long a worker that is to stop and cannot store anything waits for the batch on its device."""


class Extracts(Protocol):
    """What the loop needs of an extractor; tests put a fast one here."""

    def extract(self, batch: Batch[Any]) -> Extraction: ...


class Service:
    """One worker. `run` returns when told to stop, or with `until_empty` when no job is left."""

    def __init__(
        self,
        consumer: Consumer,
        batcher: Batcher[Any],
        extractor: Extracts,
        writer: StoreWriter,
        *,
        until_empty: bool,
        retries: RetryPolicy | None = None,
        metrics: Metrics | None = None,
        host: HostHealth | None = None,
        abandon: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self._consumer = consumer
        self._batcher = batcher
        self._extractor = extractor
        self._stopping = threading.Event()
        self._writer = PatientWriter(
            writer,
            wait=self._stopping.wait,
            is_stopping=self._stopping.is_set,
            on_away=self._store_is_away,
            on_back=self._store_is_back,
        )
        self._until_empty = until_empty
        self._retries = retries or RetryPolicy()
        self._metrics = metrics or Metrics()
        self._outcomes = Outcomes(consumer, self._retries, self._metrics)
        self.tally = self._outcomes.tally
        self._host = host or HostHealth(batcher.prepare)
        self._abandon = abandon
        self._device = DeviceThread(self._run_model)
        self._suspects: deque[Delivery] = deque()
        self._releasing = threading.Lock()
        self._epoch: str | None = None
        self._tried_s: float | None = None
        self.state = "starting"
        self.batch_jobs = 0
        """How many were in the last batch."""

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def moved_s(self) -> float | None:
        """When the server last answered a read, or a store that is away was last tried, on the
        monotonic clock; while a batch runs, not later than its start, for the loop goes on though a
        device hangs. None before the first."""
        times = [at for at in (self._consumer.polled_s, self._tried_s) if at is not None]
        since = self._device.busy_since_s
        moved = max(times, default=None)
        return moved if since is None or moved is None else min(moved, since)

    def stop(self) -> None:
        """Finish the batch in hand, commit it, return from `run`. May be called from a signal."""
        self._consumer.hurry(STOP_SECONDS)
        self._stopping.set()

    def run(self) -> Tally:
        """Batches run on the calling thread. Raises FatalError or StoreError, with every job given
        back and no attempt counted, but those of a batch that broke the device; nothing that is
        not in the store is acknowledged."""
        return self._device.serve(self._loop_or_give_back)

    def _loop_or_give_back(self) -> Tally:
        try:
            return self._loop()
        except Exception as error:
            self._give_all_back(error)
            raise

    def _loop(self) -> Tally:
        self.state = RUNNING
        while not self.stopping:
            fetched = self._fetch()
            self._admit(fetched)
            may_grow = self._batcher.free_slots and not self._suspects
            if not (self._device.is_busy and may_grow):
                self._extract_next()
            if self._suspects and not len(self._batcher):
                self._extract_alone()
            has_something = fetched or self._suspects or len(self._batcher)
            is_idle = not has_something and self._device.is_empty
            if is_idle and not self.stopping:
                self._outcomes.settle_all(self._host.judge_held())
            if self._writer.seconds_until_due() == 0 or (is_idle and self._until_empty):
                self._commit()
            if is_idle and self._until_empty and self._consumer.remaining() == 0:
                break
        return self._leave()

    def _leave(self) -> Tally:
        """Commits what the device has, gives the rest back. Raises HostBroken if that is why."""
        self.state = STOPPING
        self.release()
        self._collect(self._device.finish())
        self._commit()
        self._consumer.leave()
        self.state = STOPPED
        if self._host.broken is not None:
            raise self._host.broken
        return self.tally

    # -- read ------------------------------------------------------------------------------

    def _fetch(self) -> list[Delivery]:
        if self._suspects:
            return []
        with self._metrics.stage("read"):
            return self._consumer.read(self._batcher.free_slots, self._block_ms())

    def _block_ms(self) -> int:
        """Wait only with empty hands, and never past the moment the buffer is due."""
        has_something = len(self._batcher) or len(self._host) or not self._device.is_empty
        if self._device.is_busy:
            longest = BUSY_BLOCK_MS
        elif has_something or (self._until_empty and self._writer.rows_buffered):
            return 0
        else:
            longest = IDLE_BLOCK_MS
        due = self._writer.seconds_until_due()
        return longest if due is None else max(1, min(longest, int(due * 1000)))

    def _admit(self, fetched: Sequence[Delivery]) -> None:
        """New jobs are started. Suspects, whose worker was gone before they ended, wait until these
        are done; nothing is read while there are any."""
        others = {one.taken_from for one in fetched} - {"", DELAYED, self._consumer.name}
        if others:
            self._writer.fence(others)
            fetched = [one for one in fetched if self._consumer.holds(one)]
        self._suspects += [one for one in fetched if one.is_suspect]
        self._start([one for one in fetched if not one.is_suspect])

    def _start(self, deliveries: Sequence[Delivery]) -> None:
        """Counts an attempt, then lets prepare what the store does not have yet."""
        if not deliveries:
            return
        exhausted = [one for one in deliveries if self._is_exhausted(one)]
        begun = self._consumer.begin([one for one in deliveries if one not in exhausted])
        if begun.epoch != self._epoch:
            # The server forgot the run, so what it calls new may be stored by anybody.
            self._writer.refresh()
            self._epoch = begun.epoch
        for one in exhausted:
            self._outcomes.settle(one.key, worker_died(one))
        new = self._not_stored(begun.started)
        # What was given back while the store was away is not ours any more.
        self._batcher.submit([one for one in new if self._consumer.holds(one)])

    def _is_exhausted(self, delivery: Delivery) -> bool:
        is_stored = self._writer.lookup(delivery.key) == "stored"
        return not is_stored and self._retries.is_last(delivery.attempts)

    def _not_stored(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The jobs to compute. What is stored already is acknowledged, what conflicts failed."""
        new, stored = [], []
        if any(self._writer.lookup(one.key) in {"stored", "conflict"} for one in deliveries):
            # Rows that were deleted since, so that this may be computed again?
            self._writer.refresh_deletions()
        for delivery in deliveries:
            match self._writer.lookup(delivery.key):
                case "new":
                    new.append(delivery)
                case "stored":
                    stored.append(delivery.key)
                case "buffered":
                    pass  # a second delivery of a row that the next commit proves
                case "conflict":
                    self._outcomes.settle(delivery.key, conflict(delivery.key))
        if stored:
            self._outcomes.was_stored(self._writer.receipt_for(stored))
        return new

    # -- batch, extract --------------------------------------------------------------------

    def _extract_next(self) -> None:
        """Once the device has finished its batch the next one starts; then that one is collected.

        Until then what is prepared stays in the batcher, where a stop finds it.
        """
        with self._metrics.stage("extract_wait"):
            finished = self._device.finish()
        with self._metrics.stage("prepare_wait"):
            taken = self._batcher.take()
        if taken.batch is not None and self.stopping:
            self._outcomes.release(taken.batch.keys)
        elif taken.batch is not None and (ours := self._still_ours(taken.batch)):
            self._device.start(ours)
        self._collect(finished)
        self._outcomes.settle_all(self._host.judge(taken))
        if self._host.broken is not None:
            self.stop()

    def _extract_alone(self) -> None:
        """The next suspect, with everything before it committed: it takes no other along."""
        self._collect(self._device.finish())
        self._commit()
        with suppress(IndexError):  # all of them were released meanwhile
            self._start([self._suspects.popleft()])
        self._extract_next()
        self._collect(self._device.finish())

    def _still_ours(self, batch: Batch[Any]) -> Batch[Any] | None:
        ours = self._consumer.still_ours(batch.keys)
        rows = [row for row, key in enumerate(batch.keys) if key in ours]
        return batch.take(rows) if rows else None

    def _run_model(self, batch: Batch[Any]) -> list[Extraction]:
        """On the device's thread."""
        self.batch_jobs = len(batch)
        self._metrics.batch(len(batch))
        with self._metrics.stage("extract"):
            return extract_each(self._extractor.extract, batch, self._out_of_memory)

    def _out_of_memory(self, batch: Batch[Any]) -> None:
        self._batcher.lower(batch)
        self._metrics.out_of_memory()
        ids = [key.question_id for key in batch.keys]
        log.warning(
            "%d jobs did not fit the device's memory, at most half as much from now on: %s",
            len(ids),
            named(ids),
            extra=jobs(ids),
        )

    def _collect(self, extractions: Iterable[Extraction]) -> None:
        for extraction in extractions:
            self._outcomes.settle_all(extraction.fates)
            if extraction.features is not None:
                self._writer.append(extraction.features)
                counts = extraction.features.integers
                self._metrics.tokens(
                    int(counts["prompt_tokens"].sum()), int(counts["answer_tokens"].sum())
                )

    # -- write, acknowledge ----------------------------------------------------------------

    def _commit(self) -> None:
        if not self._writer.rows_buffered:
            return
        with self._metrics.stage("flush"):
            flush = self._writer.flush(self._consumer.renew)
        if flush.receipt is not None:
            self._outcomes.store(flush.receipt)
            ids = [key.question_id for key in flush.receipt.rows]
            log.info(
                "stored %d rows in %s: %s",
                len(ids),
                flush.segment or "(was there)",
                named(ids),
                extra={"segment": flush.segment, **jobs(ids)},
            )
        self._outcomes.settle_all((key, conflict(key)) for key in flush.conflicts)

    def release(self) -> None:
        """Gives back what was only fetched. May be called from a thread, while a batch runs; the
        loop does not leave before that thread is done."""
        with self._releasing:
            suspects = [delivery.key for delivery in self._suspects]
            self._suspects.clear()
            held = self._host.drain()
            self._outcomes.release([*self._batcher.drain(), *held, *suspects])

    # -- what goes wrong around the jobs -----------------------------------------------------

    def _store_is_away(self) -> None:
        """Keeps the rows that are computed and those on the device; others get all the rest."""
        self._tried_s = time.monotonic()
        self._consumer.keeps_all = True
        self.state = STORE_AWAY
        self.release()
        kept = set(self._device.keys)
        rows = self._consumer.rows() - kept
        self._outcomes.release([key for key in rows if self._writer.lookup(key) != "buffered"])

    def _store_is_back(self) -> None:
        self._consumer.keeps_all = False
        self.state = STOPPING if self.stopping else RUNNING

    def _give_all_back(self, error: Exception) -> None:
        """The jobs are not to blame for what ends the worker, but those on a device that broke."""
        self.state = STOPPED
        self._consumer.hurry(STOP_SECONDS)
        blamed = set(self._device.keys) if isinstance(error, DeviceBroken) else set()
        try:
            if not isinstance(error, redis.RedisError):
                self.release()
                self._outcomes.release(self._consumer.rows() - blamed)
                self._consumer.leave()
        except redis.RedisError as unreachable:
            log.warning("could not give back what was in hand: %s", unreachable)
        if self.stopping and not self._device.wait(LAST_BATCH_SECONDS):
            self._abandon(error)
