"""How a line of the log names jobs: `named` for people, `jobs` for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

NAMED: Final = 10
"""Of a batch or a segment of hundreds a line names so many; their number is always there."""


def named(question_ids: Sequence[str]) -> str:
    """`q1, q2 and 62 more`."""
    shown, more = question_ids[:NAMED], len(question_ids) - NAMED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def jobs(question_ids: Sequence[str]) -> dict[str, object]:
    """For `extra=` of a log call: `jobs`, their number, and the first `question_ids`; of a single
    one `question_id`."""
    if len(question_ids) == 1:
        return {"question_id": question_ids[0]}
    return {"jobs": len(question_ids), "question_ids": list(question_ids[:NAMED])}
