"""`Result`: how one job ended, as a message that other programs may wait for.

Knows the run's results stream. A message is written in the step that ends its job, so it is as true
as the counts: one for each job that ended, none for one that was lost to another worker. It is a
courtesy all the same: the stream is trimmed, and who was away for long reads the store.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, NamedTuple

import redis
from pydantic import BaseModel, ConfigDict

from halp_producer.keys import RunKeys
from halp_producer.pages import last_entry_id, of_one_stream, text

RESULTS_KEPT: Final = 10_000
"""Messages a run keeps, about: the server trims whole nodes of the stream. Some minutes of a fast
fleet, and about 50 MB at the longest answers."""

MAX_ANSWER_BYTES: Final = 4000
"""Of an answer or an error in a message, as UTF-8. The store and the letter have all of it."""

MAX_WORD_BYTES: Final = 64
"""Of a finish reason or a number in a message; workers write a tenth of it."""

ABSTAINED: Final = "abstained"
"""Finish reason of a row whose answer was not generated: its risk was above the worker's
threshold."""

BEFORE_ALL: Final = "0-0"
"""What to read after for every message that is still there."""

_PAGE: Final = 1000
"""Messages a read; some MB at the longest answers."""


class Fate(StrEnum):
    """stored: its row is in the store. failed: it is among the failed, cancelled ones too."""

    STORED = "stored"
    FAILED = "failed"


class Result(BaseModel):
    """How one job ended.

    question_id: of a job that could not be read, what stood there, perhaps nothing.
    answer: of a stored one, cut at 4,000 bytes; empty where the worker gives no answers; None where
        the row was stored before and its answer could not be read again.
    finish_reason: of a stored one, as in the store: `stop`, `length`, `skipped` or `abstained`.
    risk: of a stored one, how likely its answer is wrong, in [0, 1], as a probe saw it before the
        first token; None where the worker has no probe.
    segment, row: where a stored row was when it ended; compaction moves it later.
    reason, error: of a failed one, as in its dead letter; the error cut at 4,000 bytes.
    """

    model_config = ConfigDict(frozen=True)

    question_id: str
    fate: Fate
    answer: str | None = None
    finish_reason: str | None = None
    risk: float | None = None
    segment: str | None = None
    row: int | None = None
    reason: str | None = None
    error: str | None = None


class ResultPage(NamedTuple):
    """What a read found, oldest first, and what to read after next."""

    results: list[Result]
    last: str


def last_result(client: redis.Redis, keys: RunKeys) -> str:
    """What to read after for messages from now on. Raises what redis-py raises."""
    return last_entry_id(client, keys.results) or BEFORE_ALL


def read_results(
    client: redis.Redis, keys: RunKeys, after: str = BEFORE_ALL, block_ms: int = 0
) -> ResultPage:
    """The next messages above `after`, at most 1000.

    block_ms: how long to wait for one if there is none (0: not at all); below the client's socket
        timeout. An entry that is not such a message is passed over.
    Raises what redis-py raises.
    """
    answer: Any = client.xread({keys.results: after}, count=_PAGE, block=block_ms or None)
    entries = of_one_stream(answer)
    found = [one for _, fields in entries if (one := _result(fields)) is not None]
    return ResultPage(found, entries[-1][0].decode("ascii") if entries else after)


def stored_message(
    question_id: str,
    answer: str | None,
    segment: str,
    row: int,
    *,
    finish_reason: str | None = None,
    risk: float | None = None,
) -> list[bytes | str | int]:
    """Names and values of a stored job's message."""
    known: list[bytes | str | int] = []
    if answer is not None:
        known += ["answer", bounded(answer)]
    if finish_reason is not None:
        known += ["finish_reason", bounded(finish_reason, MAX_WORD_BYTES)]
    if risk is not None:
        known += ["risk", f"{risk:.9g}"]  # as many digits as give the same float32 again
    fields: list[bytes | str | int] = ["question_id", question_id, "fate", Fate.STORED]
    return [*fields, *known, "segment", segment, "row", row]


def bounded(words: str, most: int = MAX_ANSWER_BYTES) -> bytes:
    """As much of it as a message holds, as UTF-8: at most so many bytes."""
    whole = words.encode("utf-8", "backslashreplace")
    if len(whole) <= most:
        return whole
    return whole[: most - 3].decode("utf-8", "ignore").encode("utf-8") + b"..."


def _result(fields: dict[bytes, bytes]) -> Result | None:
    try:
        fate = Fate(text(fields, "fate"))
    except ValueError:
        return None
    row = text(fields, "row")
    return Result(
        question_id=text(fields, "question_id"),
        fate=fate,
        row=int(row) if row.isdecimal() and len(row) < 20 else None,
        risk=_risk(text(fields, "risk")),
        **{
            name: text(fields, name)
            for name in ("answer", "finish_reason", "segment", "reason", "error")
            if name.encode("ascii") in fields
        },
    )


def _risk(words: str) -> float | None:
    """None for what is no number between 0 and 1."""
    try:
        found = float(words[:MAX_WORD_BYTES])
    except ValueError:
        return None
    return found if 0 <= found <= 1 else None
