"""`enqueue_dataset`: a whole file into a run, in two passes: check every line, then enqueue.

Knows what is done when; reading, checking, remembering and sending are other modules'.
Memory does not depend on the length of the file. May be stopped at any point and repeated.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum

import redis
from pydantic import BaseModel, ConfigDict

from halp_producer.check import Check
from halp_producer.dataset import Dataset, Record
from halp_producer.enqueue import CHUNK_BYTES, Enqueuer, Outcome
from halp_producer.job import Job
from halp_producer.keys import RunKeys
from halp_producer.ledger import Ledger
from halp_producer.lines import changed, fingerprint, require_unchanged
from halp_producer.listener import Listener, Silence
from halp_producer.order import GroupBy, Order, Stretch
from halp_producer.problem import LineProblem
from halp_producer.scratch import scratch_database


class OnInvalid(StrEnum):
    """stop: a file with a bad line is not enqueued at all. skip: the rest of it is."""

    STOP = "stop"
    SKIP = "skip"


class EnqueueReport(BaseModel):
    """What became of a dataset.

    questions: different good questions in the file; with all sent = added + known + conflicts.
    repeated: lines that say again what an earlier line said; harmless.
    bad: lines with problems. conflicts: questions the run knows with other content; left alone.
    known: after a lost reply also counts what this very call had added.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    dataset: str
    dry_run: bool
    stopped: bool
    questions: int
    added: int
    known: int
    repeated: int
    bad: int
    conflicts: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every line of the file is, or could be, in the run."""
        return self.bad == 0 and self.conflicts == 0


def enqueue_dataset(
    dataset: Dataset,
    keys: RunKeys,
    client: redis.Redis | None,
    *,
    on_invalid: OnInvalid = OnInvalid.STOP,
    group_by: GroupBy = GroupBy.IMAGE,
    max_backlog: int | None = None,
    listener: Listener | None = None,
) -> EnqueueReport:
    """Checks and enqueues a file; without a client only checks it.

    Raises DatasetError (unusable, or changed meanwhile), ScratchError (no room for temporary
    files) and what redis-py raises once waiting has no more sense.
    """
    started = time.monotonic()
    listener = listener or Silence()
    before = fingerprint(dataset.path)
    with scratch_database() as database:
        ledger, order = Ledger(database), Order(database, group_by)
        check = Check(dataset, ledger, order, listener)
        check.run(before)
        stopped = check.bad > 0 and on_invalid is OnInvalid.STOP
        counts: Counter[Outcome] = Counter()
        if client is not None and not stopped:
            enqueuer = Enqueuer(client, keys, max_backlog=max_backlog, note=listener.note)
            listener.phase("enqueueing", before.size)
            enqueuer.prepare()
            records = _remaining(dataset, ledger, order.stretches())
            for chunk in _chunks(records, enqueuer.chunk_jobs):
                counts += _send(dataset, enqueuer, chunk, listener)
                sent = counts.total()
                # By the share of questions, since lines may be read in any order.
                listener.progress(before.size * sent // max(check.questions, sent), sent)
            require_unchanged(dataset.path, before)
            if counts.total() != check.questions:
                raise changed(dataset.path)
    return EnqueueReport(
        run=keys.run,
        dataset=str(dataset.path),
        dry_run=client is None,
        stopped=stopped,
        questions=check.questions,
        added=counts[Outcome.ADDED],
        known=counts[Outcome.KNOWN],
        repeated=check.repeated,
        bad=check.bad,
        conflicts=counts[Outcome.CONFLICT],
        seconds=round(time.monotonic() - started, 3),
    )


def _remaining(dataset: Dataset, ledger: Ledger, stretches: Iterable[Stretch]) -> Iterator[Record]:
    """The second pass: the good records that are not repeats."""
    for stretch, records in dataset.read_again(stretches):
        skipped = ledger.skipped(stretch.first, stretch.last)
        skip = next(skipped, None)
        for record in records:
            if record.line == skip:
                skip = next(skipped, None)
            elif record.job is None or record.line > stretch.last:
                # Of a line, or of an image that travels inside: then it says which.
                raise changed(dataset.path, *record.problems[:1])
            else:
                yield record


def _chunks(records: Iterator[Record], chunk_jobs: int) -> Iterator[list[Record]]:
    """As many records as one call should carry, by count and by bytes."""
    chunk: list[Record] = []
    size = 0
    for record in records:
        if chunk and (len(chunk) == chunk_jobs or size + record.size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(record)
        size += record.size
    if chunk:
        yield chunk


def _send(
    dataset: Dataset, enqueuer: Enqueuer, chunk: list[Record], listener: Listener
) -> Counter[Outcome]:
    results = enqueuer.send([record.job for record in chunk if record.job is not None])
    for record, result in zip(chunk, results, strict=True):
        if result.outcome is Outcome.CONFLICT and record.job is not None:
            listener.problem(_conflict(dataset, record.line, record.job, result.entry_id))
    return Counter(result.outcome for result in results)


def _conflict(dataset: Dataset, line: int, job: Job, entry_id: str) -> LineProblem:
    reason = (
        f"{job.question_id!r} is already in this run with other content (entry {entry_id}); "
        "that stays: use another id or another --run"
    )
    return LineProblem(dataset.path, line, "question_id", reason)
