"""`read_failed`: the questions of a run that failed, which are on the server and in no store.

Asks the producer's room, and like `halp_store.expectation` only when somebody asks for it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from halp_store.expectation import NotAvailable


@dataclass(frozen=True)
class FailedQuestion:
    """reason: a short code, see docs/what-is-stored.md. error: a sentence. attempts: None where
    the server does not say. failed_at: ISO 8601, UTC; None as well."""

    question_id: str
    reason: str
    error: str
    image: str
    question: str
    attempts: int | None
    failed_at: str | None


def read_failed(
    run: str, redis_url: str | None, offset: int, limit: int | None
) -> tuple[int, list[FailedQuestion]]:
    """How many there are, and `limit` of them from `offset`, oldest first. Raises NotAvailable."""
    import redis

    from halp_producer.keys import RunKeys
    from halp_producer.letters import dead_letters
    from halp_producer.server import DEFAULT_URL, ServerError, connect, explained
    from halp_producer.status import UnknownRunError, run_status

    url = redis_url or DEFAULT_URL
    try:
        keys = RunKeys(run)
        with closing(connect(url)) as client:
            run_status(client, keys)  # a run that nobody knows is an error
            total = client.xlen(keys.failed)
            end = None if limit is None else offset + limit
            letters = list(islice(dead_letters(client, keys, end), offset, None))
    except (ServerError, UnknownRunError) as error:
        raise NotAvailable(str(error)) from error
    except redis.RedisError as error:
        raise NotAvailable(str(explained(error, url))) from error
    return total, [
        FailedQuestion(
            question_id=one.question_id or one.entry_id,
            reason=one.reason,
            error=one.error,
            image=one.image,
            question=one.question,
            attempts=one.attempts,
            failed_at=one.failed_at.isoformat(timespec="seconds") if one.failed_at else None,
        )
        for one in letters
    ]
