"""`Service`: the worker's loop. read -> batch -> extract -> write -> acknowledge.

Knows the order of things and nothing of how they are done.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from halp_producer.activity import STOPPED
from halp_producer.job import Job
from halp_store.features import RowKey
from halp_store.writer import StoreWriter
from halp_worker.batcher import Batch, Batcher
from halp_worker.consumer import Consumer
from halp_worker.delivery import Delivery
from halp_worker.extraction import Extraction
from halp_worker.fates import Reason, Rejection

log = logging.getLogger(__name__)

IDLE_BLOCK_MS: Final = 500
"""How long one read waits for work: also how soon an idle worker notices a stop."""


class Extracts(Protocol):
    """What the loop needs of an extractor; tests put a fast one here."""

    def extract(self, batch: Batch[Any]) -> Extraction: ...


@dataclass
class Tally:
    """Jobs by what became of them here, since this worker started."""

    done: int = 0
    failed: int = 0
    already_stored: int = 0


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
    ) -> None:
        self._consumer = consumer
        self._batcher = batcher
        self._extractor = extractor
        self._writer = writer
        self._until_empty = until_empty
        self._stopping = threading.Event()
        self.tally = Tally()
        self.state = "starting"

    def stop(self) -> None:
        """Finish the batch in hand, commit it, return from `run`. May be called from a signal."""
        self._stopping.set()

    def run(self) -> Tally:
        """Raises FatalError or StoreError; nothing that is not in the store is acknowledged."""
        self.state = "running"
        while not self._stopping.is_set():
            deliveries = self._consumer.read(self._batcher.free_slots, self._block_ms())
            self._batcher.submit(self._admit(deliveries))
            taken = self._batcher.take()
            self._reject(taken.rejections)
            if taken.batch is not None:
                extraction = self._extractor.extract(taken.batch)
                self._reject(extraction.rejections)
                if extraction.features is not None:
                    self._writer.append(extraction.features)
            is_idle = not deliveries and taken.batch is None
            if self._writer.seconds_until_due() == 0 or (is_idle and self._until_empty):
                self._commit()
            if is_idle and self._until_empty and self._consumer.remaining() == 0:
                break
        self._commit()
        self.state = STOPPED
        return self.tally

    def _block_ms(self) -> int:
        """Wait only with empty hands, and never past the moment the buffer is due."""
        if len(self._batcher) > 0 or (self._until_empty and self._writer.rows_buffered):
            return 0
        due = self._writer.seconds_until_due()
        return IDLE_BLOCK_MS if due is None else max(1, min(IDLE_BLOCK_MS, int(due * 1000)))

    def _admit(self, deliveries: Iterable[Delivery]) -> list[Job]:
        """The jobs to compute. What is stored already is acknowledged, what conflicts rejected."""
        new, stored = [], []
        for delivery in deliveries:
            match self._writer.lookup(delivery.key):
                case "new":
                    new.append(delivery.job)
                case "stored":
                    stored.append(delivery.key)
                case "buffered":
                    pass  # a second delivery of a row that the next commit proves
                case "conflict":
                    self._reject([(delivery.key, conflict(delivery.key))])
        if stored:
            self.tally.already_stored += self._consumer.ack(self._writer.receipt_for(stored))
        return new

    def _reject(self, rejections: Iterable[tuple[RowKey, Rejection]]) -> None:
        for key, rejection in rejections:
            self.tally.failed += self._consumer.reject(key, rejection)

    def _commit(self) -> None:
        if not self._writer.rows_buffered:
            return
        flush = self._writer.flush()
        if flush.receipt is not None:
            self.tally.done += self._consumer.ack(flush.receipt)
            log.info(
                "stored %d rows in %s", len(flush.receipt.rows), flush.segment or "(was there)"
            )
        self._reject((key, conflict(key)) for key in flush.conflicts)


def conflict(key: RowKey) -> Rejection:
    """The fate of a job whose id is stored with other content."""
    return Rejection(
        Reason.CONFLICT,
        f"question id {key.question_id!r} is already stored with other content: "
        "what is there stays. Give the new question another id, or use another store",
    )
