"""`Outcomes`: what becomes of the jobs in hand, told to the queue and counted.

Knows the fates and the order in which a job is tried: by another host, once more, failed. Does not
know how a job comes to its fate.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from halp_producer.results import ABSTAINED
from halp_store.features import Receipt, RowKey
from halp_worker.consumer import Consumer
from halp_worker.delivery import Delivery
from halp_worker.fates import Fate, Reason, Rejection, Setback
from halp_worker.mention import jobs
from halp_worker.metrics import Metrics
from halp_worker.retry import RetryPolicy

log = logging.getLogger(__name__)


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


class Outcomes:
    """One thread settles; `release` may be called from others."""

    def __init__(self, consumer: Consumer, retries: RetryPolicy, metrics: Metrics) -> None:
        self._consumer, self._retries, self._metrics = consumer, retries, metrics
        self.tally = Tally()

    def settle_all(self, fates: Iterable[tuple[RowKey, Fate]]) -> None:
        for key, fate in fates:
            self.settle(key, fate)

    def settle(self, key: RowKey, fate: Fate) -> None:
        """Leaves the job to another host, if this one may be the cause and there is one; else
        tries it again later, if that may help; else fails it."""
        if fate.host_part is not None and (offered := self._consumer.offer(key)):
            log.warning(
                "left %s to another host: %s",
                key.question_id,
                fate.error,
                extra={**jobs([key.question_id]), "reason": fate.reason},
            )
            self._count_released(offered)
        elif isinstance(fate, Setback) and not self._is_last(key):
            self._retry(key, fate)
        else:
            rejection = Rejection(fate.reason, fate.error, fate.traceback)
            failed = self._consumer.fail(key, rejection)
            self.tally.failed += failed
            self._metrics.count("failed", failed)
            self._metrics.failed(fate.reason)

    def _is_last(self, key: RowKey) -> bool:
        return self._retries.is_last(self._consumer.attempts(key))

    def _retry(self, key: RowKey, fate: Fate) -> None:
        attempts = self._consumer.attempts(key)
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

    def was_stored(self, receipt: Receipt) -> None:
        """Acknowledges what was in the store before it was computed."""
        acknowledged = self._consumer.ack(receipt)
        self.tally.already_stored += acknowledged
        self._metrics.count("already_stored", acknowledged)

    def store(self, receipt: Receipt) -> None:
        """Acknowledges what was computed here."""
        with self._metrics.stage("acknowledge"):
            acknowledged = self._consumer.ack(receipt)
        self.tally.done += acknowledged
        self._metrics.count("done", acknowledged)
        abstained = sum(row.finish_reason == ABSTAINED for row in receipt.stored)
        self.tally.abstained += abstained
        self._metrics.abstained(abstained)

    def release(self, rows: Collection[RowKey]) -> None:
        """Gives jobs back, no attempt counted."""
        if rows:
            self._count_released(self._consumer.release(rows))

    def _count_released(self, released: int) -> None:
        self.tally.released += released
        self._metrics.count("released", released)


def conflict(key: RowKey) -> Rejection:
    """The fate of a job whose id is stored with other content."""
    return Rejection(
        Reason.CONFLICT,
        f"question id {key.question_id!r} is already stored with other content: "
        "what is there stays. Give the new question another id, or use another store",
    )


def worker_died(delivery: Delivery) -> Rejection:
    return Rejection(
        Reason.WORKER_DIED,
        f"its worker was gone before it ended, {delivery.attempts} times; the last was "
        f"{delivery.taken_from}: it may be what ends them (memory, a damaged image). Look at it "
        "alone with `halp-worker extract`",
    )
