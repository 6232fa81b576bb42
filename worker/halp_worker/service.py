"""`Service`: the worker's loop. read -> batch -> extract -> write -> acknowledge.

Knows the order of things and nothing of how they are done. The loop has a thread beside the
device's: while a batch runs, it writes and acknowledges the one before and lets prepare the next.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from halp_producer.activity import RUNNING, STOPPED
from halp_producer.keys import DELAYED
from halp_producer.results import ABSTAINED
from halp_store.features import RowKey
from halp_store.writer import StoreWriter
from halp_worker.batcher import Batch, Batcher
from halp_worker.bisection import extract_each
from halp_worker.consumer import Consumer
from halp_worker.delivery import Delivery
from halp_worker.device_thread import DeviceThread
from halp_worker.extraction import Extraction
from halp_worker.fates import Fate, Reason, Rejection, Setback
from halp_worker.mention import jobs, named
from halp_worker.metrics import Metrics
from halp_worker.retry import RetryPolicy

log = logging.getLogger(__name__)

IDLE_BLOCK_MS: Final = 500
"""How long one read waits for work: also how soon an idle worker notices a stop, and released or
delayed jobs."""

BUSY_BLOCK_MS: Final = 50
"""How long one read waits for more work while the device runs: also how late its end is noticed
where the stream has nothing."""


class Extracts(Protocol):
    """What the loop needs of an extractor; tests put a fast one here."""

    def extract(self, batch: Batch[Any]) -> Extraction: ...


@dataclass
class Tally:
    """Jobs by what became of them here, since this worker started. abstained: rows that were
    committed without an answer, for their risk; they are among the done."""

    done: int = 0
    failed: int = 0
    already_stored: int = 0
    retried: int = 0
    released: int = 0
    abstained: int = 0


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
    ) -> None:
        self._consumer = consumer
        self._batcher = batcher
        self._extractor = extractor
        self._writer = writer
        self._until_empty = until_empty
        self._retries = retries or RetryPolicy()
        self._metrics = metrics or Metrics()
        self._device = DeviceThread(self._run_model)
        self._suspects: deque[Delivery] = deque()
        self._epoch: str | None = None
        self._stopping = threading.Event()
        self.tally = Tally()
        self.state = "starting"
        self.batch_jobs = 0
        """How many were in the last batch."""

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def moved_ms(self) -> int:
        """Unix time of the last read that the server answered; while a batch runs, not later than
        its start, for the loop goes on though a device hangs."""
        polled, since = self._consumer.polled_ms, self._device.busy_since_ms
        return polled if since is None else min(polled, since)

    def stop(self) -> None:
        """Finish the batch in hand, commit it, return from `run`. May be called from a signal."""
        self._stopping.set()

    def run(self) -> Tally:
        """Batches run on the calling thread. Raises FatalError or StoreError; nothing that is not
        in the store is acknowledged."""
        return self._device.serve(self._loop)

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
            if self._writer.seconds_until_due() == 0 or (is_idle and self._until_empty):
                self._commit()
            if is_idle and self._until_empty and self._consumer.remaining() == 0:
                break
        self.state = "stopping"
        self.release()
        self._collect(self._device.finish())
        self._commit()
        self._consumer.leave()
        self.state = STOPPED
        return self.tally

    # -- read ------------------------------------------------------------------------------

    def _fetch(self) -> list[Delivery]:
        if self._suspects:
            return []
        with self._metrics.stage("read"):
            return self._consumer.read(self._batcher.free_slots, self._block_ms())

    def _block_ms(self) -> int:
        """Wait only with empty hands, and never past the moment the buffer is due."""
        has_something = len(self._batcher) or not self._device.is_empty
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
            self._settle(one.key, _worker_died(one))
        self._batcher.submit(self._not_stored(begun.started))

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
                    self._settle(delivery.key, conflict(delivery.key))
        if stored:
            acknowledged = self._consumer.ack(self._writer.receipt_for(stored))
            self.tally.already_stored += acknowledged
            self._metrics.count("already_stored", acknowledged)
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
            self._release(taken.batch.keys)
        elif taken.batch is not None and (ours := self._still_ours(taken.batch)):
            self._device.start(ours)
        self._settle_all(taken.fates)
        self._collect(finished)

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
            self._settle_all(extraction.fates)
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
            with self._metrics.stage("acknowledge"):
                acknowledged = self._consumer.ack(flush.receipt)
            self.tally.done += acknowledged
            self._metrics.count("done", acknowledged)
            abstained = sum(one.finish_reason == ABSTAINED for one in flush.receipt.stored)
            self.tally.abstained += abstained
            self._metrics.abstained(abstained)
            ids = [key.question_id for key in flush.receipt.rows]
            log.info(
                "stored %d rows in %s: %s",
                len(ids),
                flush.segment or "(was there)",
                named(ids),
                extra={"segment": flush.segment, **jobs(ids)},
            )
        self._settle_all((key, conflict(key)) for key in flush.conflicts)

    def _settle_all(self, fates: Iterable[tuple[RowKey, Fate]]) -> None:
        for key, fate in fates:
            self._settle(key, fate)

    def _settle(self, key: RowKey, fate: Fate) -> None:
        attempts = self._consumer.attempts(key)
        if isinstance(fate, Setback) and not self._retries.is_last(attempts):
            log.warning(
                "attempt %d of %s: %s",
                attempts,
                key.question_id,
                fate.error,
                extra={**jobs([key.question_id]), "reason": fate.reason, "attempt": attempts},
            )
            retried = self._consumer.retry(key, self._retries.delay_ms(attempts))
            self.tally.retried += retried
            self._metrics.count("retried", retried)
            return
        failed = self._consumer.fail(key, Rejection(fate.reason, fate.error, fate.traceback))
        self.tally.failed += failed
        self._metrics.count("failed", failed)
        self._metrics.failed(fate.reason)

    def release(self) -> None:
        """Gives back what was only fetched. May be called from a thread, while a batch runs."""
        suspects = list(self._suspects)
        self._suspects.clear()
        self._release([*self._batcher.drain(), *(one.key for one in suspects)])

    def _release(self, rows: Sequence[RowKey]) -> None:
        if rows:
            released = self._consumer.release(rows)
            self.tally.released += released
            self._metrics.count("released", released)


def conflict(key: RowKey) -> Rejection:
    """The fate of a job whose id is stored with other content."""
    return Rejection(
        Reason.CONFLICT,
        f"question id {key.question_id!r} is already stored with other content: "
        "what is there stays. Give the new question another id, or use another store",
    )


def _worker_died(delivery: Delivery) -> Rejection:
    return Rejection(
        Reason.WORKER_DIED,
        f"its worker was gone before it ended, {delivery.attempts} times; the last was "
        f"{delivery.taken_from}: it may be what ends them (memory, a damaged image). Look at it "
        "alone with `halp-worker extract`",
    )
