"""`DeadLetter`: a job that can never succeed, as a worker left it on the failed stream.

Knows the fields of a dead letter; takes whatever it finds, since what is broken ends up here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, cast

import redis
from pydantic import BaseModel, ConfigDict

from halp_producer.keys import RunKeys

_PAGE: Final = 256
"""Letters a request; each may be some MiB."""


class DeadLetter(BaseModel):
    """One rejected job. reason: a short code. error: a sentence. Bytes that are not UTF-8 show as
    U+FFFD; a field that is not there is empty, and `failed_ms` (Unix milliseconds) None."""

    model_config = ConfigDict(frozen=True)

    entry_id: str
    question_id: str
    image: str
    question: str
    ground_truth: str
    metadata: str
    reason: str
    error: str
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


def dead_letters(
    client: redis.Redis, keys: RunKeys, limit: int | None = None
) -> Iterator[DeadLetter]:
    """The letters of a run, oldest first, at most `limit`. Raises what redis-py raises."""
    left = limit
    after = "-"
    while left is None or left > 0:
        count = _PAGE if left is None else min(_PAGE, left)
        page = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]",
            client.xrange(keys.failed, min=after, count=count),
        )
        for entry_id, fields in page:
            yield _letter(entry_id.decode("ascii"), fields)
        if len(page) < count:
            return
        after = "(" + page[-1][0].decode("ascii")
        left = None if left is None else left - len(page)


def _letter(entry_id: str, fields: Mapping[bytes, bytes]) -> DeadLetter:
    def text(name: str) -> str:
        return fields.get(name.encode("ascii"), b"").decode("utf-8", "replace")

    failed_ms = text("failed_ms")
    return DeadLetter(
        entry_id=entry_id,
        question_id=text("question_id"),
        image=text("image"),
        question=text("question"),
        ground_truth=text("ground_truth"),
        metadata=text("metadata"),
        reason=text("reason"),
        error=text("error"),
        worker=text("worker"),
        failed_ms=int(failed_ms) if failed_ms.isdecimal() and len(failed_ms) < 20 else None,
    )
