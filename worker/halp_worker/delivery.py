"""`Delivery`: a job as it came from the stream, and the identity of the row it becomes."""

from __future__ import annotations

from dataclasses import dataclass

from halp_producer.job import Job
from halp_store.features import RowKey


@dataclass(frozen=True)
class Delivery:
    """entry_id: the stream's, `<ms>-<n>`. The same job may be delivered more than once."""

    entry_id: str
    job: Job

    @property
    def key(self) -> RowKey:
        return row_key(self.job)


def row_key(job: Job) -> RowKey:
    """The identity of the row that this job becomes."""
    return RowKey(job.question_id, job.content_hash)
