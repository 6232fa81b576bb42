"""`Look`: what a viewer of a run knows at one moment; `Lookout`, which remembers enough for a rate.

Knows numbers; refuses to know servers, terminals and clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from halp_producer.pace import Pace
from halp_producer.status import RunStatus

TRUSTED_AFTER_S: Final = 15.0
"""Rows are done in commits of a few seconds each; over less time than this the workers know their
rates better."""


@dataclass(frozen=True)
class Look:
    """found: the last reading. problem: why there is no newer one; empty where there is.
    rows_per_second: by the run's own count over the last minute, at first what the workers say."""

    found: RunStatus
    rows_per_second: float
    problem: str = ""

    @property
    def left(self) -> int:
        """Questions that are neither done nor failed."""
        return self.found.waiting + self.found.delayed + self.found.in_flight

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None where nothing moves, or nothing is left."""
        return self.left / self.rows_per_second if self.left and self.rows_per_second else None

    @property
    def has_worker(self) -> bool:
        """Whether any worker is alive."""
        return any(one.alive for one in self.found.workers)


class Lookout:
    """Is shown each reading of one run, and makes looks of them."""

    def __init__(self) -> None:
        self._pace = Pace()

    def look(self, found: RunStatus, now_s: float) -> Look:
        """`now_s`: see `Pace.tell`."""
        self._pace.tell(now_s, found.done)
        is_known = self._pace.span_s >= TRUSTED_AFTER_S
        return Look(found, self._pace.per_second if is_known else found.rows_per_second)
