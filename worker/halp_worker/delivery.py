"""`Delivery`: a job as it came from the stream, and the identity of the row it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from halp_producer.job import Job
from halp_store.features import RowKey


@dataclass(frozen=True)
class Delivery:
    """entry_id: the stream's, `<ms>-<n>`. The same job may be delivered more than once.

    attempts: how often work on it was started before.
    taken_from: whose lease was over (DELAYED: it was given back); empty for a new job, and for
        one whose last attempt ended in order.
    """

    entry_id: str
    job: Job
    attempts: int = 0
    taken_from: str = ""

    @property
    def is_suspect(self) -> bool:
        """Whether work on it was started by a worker that did not live to tell the end."""
        return self.attempts > 0 and self.taken_from != ""

    @cached_property
    def key(self) -> RowKey:
        """Made once: of a job with its image inside, all of it is hashed."""
        return row_key(self.job)


def row_key(job: Job) -> RowKey:
    """The identity of the row that this job becomes."""
    return RowKey(job.question_id, job.content_hash)
