"""`RetryPolicy`: how often a job is tried, and how long it waits in between. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LONGEST_DELAY_MS: Final = 300_000
"""A network that was away for an hour is noticed within five minutes of its return."""


@dataclass(frozen=True)
class RetryPolicy:
    """max_attempts: starts of work before a job is failed. first_delay_ms: after the first."""

    max_attempts: int = 3
    first_delay_ms: int = 2_000
    growth: int = 4

    def is_last(self, attempts: int) -> bool:
        """Whether a job that was started this often is not started again."""
        return attempts >= self.max_attempts

    def delay_ms(self, attempts: int) -> int:
        """Before the next start, after so many (at least one)."""
        return min(LONGEST_DELAY_MS, self.first_delay_ms * int(self.growth ** (attempts - 1)))
