"""`DeadLetter`: a job that failed or was cancelled, as it stands on the failed stream.

Knows the fields of a dead letter; takes whatever it finds, since what is broken ends up here.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import redis
from pydantic import BaseModel, ConfigDict

from halp_producer.keys import RunKeys
from halp_producer.pages import Entry, entries, newest_entries, text


class DeadLetter(BaseModel):
    """One failed job. reason: a short code. error: a sentence. traceback: of the last attempt, may
    be empty. attempts: how often work on it was started. Bytes that are not UTF-8 show as U+FFFD;
    a field that is not there is empty, `attempts` and `failed_ms` (Unix milliseconds) then None.
    image_bytes: size of the image inside the job, which the letter keeps and nobody prints; None
    where there is none."""

    model_config = ConfigDict(frozen=True)

    entry_id: str
    question_id: str
    image: str
    image_bytes: int | None
    question: str
    ground_truth: str
    metadata: str
    reason: str
    error: str
    traceback: str
    attempts: int | None
    worker: str
    failed_ms: int | None

    @property
    def failed_at(self) -> datetime | None:
        """When, in UTC."""
        try:
            return (
                datetime.fromtimestamp((self.failed_ms or 0) / 1000, UTC)
                if self.failed_ms
                else None
            )
        except (OverflowError, ValueError, OSError):
            return None

    def named(self, name: str) -> bool:
        """Whether `name` is its question's id or its own."""
        return name in (self.question_id, self.entry_id)


def dead_letters(
    client: redis.Redis, keys: RunKeys, limit: int | None = None, *, last: str | None = None
) -> Iterator[DeadLetter]:
    """The letters of a run, oldest first, at most `limit`, up to the letter `last`. Paged; those
    that were read may be moved meanwhile. Raises what redis-py raises."""
    for entry in entries(client, keys.failed, limit, last=last):
        yield _letter(entry)


def newest_letters(client: redis.Redis, keys: RunKeys, limit: int) -> Iterator[DeadLetter]:
    """The last letters of a run, newest first, at most `limit`. Raises what redis-py raises."""
    for entry in newest_entries(client, keys.failed, limit):
        yield _letter(entry)


def _letter(entry: Entry) -> DeadLetter:
    fields = entry.fields
    return DeadLetter(
        entry_id=entry.entry_id,
        question_id=text(fields, "question_id"),
        image=text(fields, "image"),
        image_bytes=entry.image_bytes,
        question=text(fields, "question"),
        ground_truth=text(fields, "ground_truth"),
        metadata=text(fields, "metadata"),
        reason=text(fields, "reason"),
        error=text(fields, "error"),
        traceback=text(fields, "traceback"),
        attempts=_number(text(fields, "attempts")),
        worker=text(fields, "worker"),
        failed_ms=_number(text(fields, "failed_ms")),
    )


def _number(value: str) -> int | None:
    return int(value) if value.isdecimal() and len(value) < 20 else None
