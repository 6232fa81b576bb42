"""`Check`: the first pass over a dataset: every line into the books, every problem told.

Knows what is counted and what is remembered; refuses to know the server.
"""

from __future__ import annotations

from typing import Final

from halp_producer.dataset import Dataset, Record
from halp_producer.ledger import Ledger
from halp_producer.lines import Fingerprint, require_unchanged
from halp_producer.listener import Listener
from halp_producer.order import Order
from halp_producer.problem import LineProblem

_REPORT_RECORDS: Final = 250
"""Records between two calls of `Listener.progress`."""


class Check:
    """Fills a ledger and an order; then `bad`, `repeated` and `questions` are known."""

    def __init__(self, dataset: Dataset, ledger: Ledger, order: Order, listener: Listener) -> None:
        self._dataset, self._ledger, self._order = dataset, ledger, order
        self._listener = listener
        self.records = self.bad = self.repeated = 0

    @property
    def questions(self) -> int:
        """Different good questions in the file."""
        return self.records - self.bad - self.repeated

    def run(self, before: Fingerprint) -> None:
        """Raises DatasetError (unusable, or no longer as `before`) and ScratchError."""
        self._listener.phase("checking", before.size)
        for record in self._dataset.read():
            self.records += 1
            if record.job is None:
                self._refuse(record)
            else:
                self._ledger.good(record.line, record.job.question_id, record.job.content_hash)
                self._order.good(record.line, record.offset, record.job.image)
            if self.records % _REPORT_RECORDS == 0:
                self._listener.progress(self._dataset.bytes_read, self.records)
        self._listener.progress(before.size, self.records)
        self._compare_ids()
        require_unchanged(self._dataset.path, before)

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
