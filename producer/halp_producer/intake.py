"""`enqueue_dataset`: a whole file into a run, in two passes: check every line, then enqueue.

Knows the order of things and what is counted; reading, remembering and sending are other modules'.
Memory does not depend on the length of the file. May be stopped at any point and repeated.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, Protocol

import redis
from pydantic import BaseModel, ConfigDict

from halp_producer.dataset import Dataset, Record
from halp_producer.enqueue import CHUNK_BYTES, Enqueuer, Outcome
from halp_producer.job import Job
from halp_producer.keys import RunKeys
from halp_producer.ledger import Ledger
from halp_producer.lines import Fingerprint, fingerprint
from halp_producer.problem import DatasetError, LineProblem

_REPORT_RECORDS: Final = 250
"""Records between two calls of `Listener.progress` while checking."""


class OnInvalid(StrEnum):
    """stop: a file with a bad line is not enqueued at all. skip: the rest of it is."""

    STOP = "stop"
    SKIP = "skip"


class Listener(Protocol):
    """Is told what happens while it happens."""

    def phase(self, name: str, total_bytes: int) -> None:
        """A pass over the file begins."""

    def progress(self, bytes_read: int, records: int) -> None:
        """How far this pass is; called often."""

    def problem(self, problem: LineProblem) -> None:
        """A bad line, or a conflict."""

    def note(self, text: str) -> None:
        """Something a person wants to know now, such as what is being waited for."""


class Silence:
    """A listener that keeps it to itself."""

    def phase(self, name: str, total_bytes: int) -> None: ...
    def progress(self, bytes_read: int, records: int) -> None: ...
    def problem(self, problem: LineProblem) -> None: ...
    def note(self, text: str) -> None: ...


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
    max_backlog: int | None = None,
    listener: Listener | None = None,
) -> EnqueueReport:
    """Checks and enqueues a file; without a client only checks it.

    Raises DatasetError (unusable, or changed meanwhile), LedgerError (no room for the temporary
    file) and what redis-py raises once waiting has no more sense.
    """
    started = time.monotonic()
    listener = listener or Silence()
    before = fingerprint(dataset.path)
    with Ledger() as ledger:
        check = _Check(dataset, ledger, listener, before)
        check.run()
        stopped = check.bad > 0 and on_invalid is OnInvalid.STOP
        counts: Counter[Outcome] = Counter()
        if client is not None and not stopped:
            enqueuer = Enqueuer(client, keys, max_backlog=max_backlog, note=listener.note)
            listener.phase("enqueueing", before.size)
            records = _remaining(dataset, ledger.skipped(), check.last_line)
            counts = _send(dataset, enqueuer, records, listener)
            _require_unchanged(dataset, before)
    return EnqueueReport(
        run=keys.run,
        dataset=str(dataset.path),
        dry_run=client is None,
        stopped=stopped,
        questions=check.records - check.bad - check.repeated,
        added=counts[Outcome.ADDED],
        known=counts[Outcome.KNOWN],
        repeated=check.repeated,
        bad=check.bad,
        conflicts=counts[Outcome.CONFLICT],
        seconds=round(time.monotonic() - started, 3),
    )


class _Check:
    """The first pass: every line into the ledger, every problem to the listener."""

    def __init__(
        self, dataset: Dataset, ledger: Ledger, listener: Listener, before: Fingerprint
    ) -> None:
        self._dataset, self._ledger, self._listener = dataset, ledger, listener
        self._before = before
        self.records = self.bad = self.repeated = self.last_line = 0

    def run(self) -> None:
        self._listener.phase("checking", self._before.size)
        for record in self._dataset.read():
            self.records += 1
            self.last_line = record.line
            if record.job is None:
                self._refuse(record)
            else:
                self._ledger.good(record.line, record.job.question_id, record.job.content_hash)
            if self.records % _REPORT_RECORDS == 0:
                self._listener.progress(self._dataset.bytes_read, self.records)
        self._listener.progress(self._before.size, self.records)
        self._compare_ids()
        _require_unchanged(self._dataset, self._before)

    def _refuse(self, record: Record) -> None:
        self.bad += 1
        self._ledger.bad(record.line)
        for problem in record.problems:
            self._listener.problem(problem)

    def _compare_ids(self) -> None:
        for one in self._ledger.duplicates():
            if one.same:
                self.repeated += 1
                continue
            self.bad += 1
            reason = (
                f"{one.question_id!r} is already used on line {one.first_line}, with other content"
            )
            self._listener.problem(LineProblem(self._dataset.path, one.line, "question_id", reason))


def _remaining(dataset: Dataset, skipped: Iterator[int], last_line: int) -> Iterator[Record]:
    """The second pass: the good records that are not repeats. `skipped` is ascending."""
    skip = next(skipped, None)
    for record in dataset.read(check_images=False):
        if record.line == skip:
            skip = next(skipped, None)
        elif record.job is None or record.line > last_line:
            raise _changed(dataset)
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
    dataset: Dataset, enqueuer: Enqueuer, records: Iterator[Record], listener: Listener
) -> Counter[Outcome]:
    enqueuer.prepare()
    counts: Counter[Outcome] = Counter()
    for chunk in _chunks(records, enqueuer.chunk_jobs):
        results = enqueuer.send([record.job for record in chunk if record.job is not None])
        for record, result in zip(chunk, results, strict=True):
            counts[result.outcome] += 1
            if result.outcome is Outcome.CONFLICT and record.job is not None:
                listener.problem(_conflict(dataset, record.line, record.job, result.entry_id))
        listener.progress(dataset.bytes_read, counts.total())
    return counts


def _conflict(dataset: Dataset, line: int, job: Job, entry_id: str) -> LineProblem:
    reason = (
        f"{job.question_id!r} is already in this run with other content (entry {entry_id}); "
        "that stays: use another id or another --run"
    )
    return LineProblem(dataset.path, line, "question_id", reason)


def _require_unchanged(dataset: Dataset, before: Fingerprint) -> None:
    if fingerprint(dataset.path) != before:
        raise _changed(dataset)


def _changed(dataset: Dataset) -> DatasetError:
    return DatasetError(
        f"{dataset.path}: changed while it was being read; run the same command again when "
        "nobody writes to it (what is already enqueued will not be added twice)"
    )
