"""`Pace`: how fast a count grows, over the last minute. Time is an argument."""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 60.0
"""Long enough that commits, which come every few seconds, look like a flow; short enough that a
worker more or less shows within a minute."""

_APART_S: Final = 1.0
"""Three counts take at least this long: a minute is some 120 of them, however often it is told."""


class Pace:
    """Is told a count now and then; one caller at a time. A count that falls starts it anew."""

    def __init__(self) -> None:
        self._told: deque[tuple[float, int]] = deque()

    def tell(self, now_s: float, count: int) -> None:
        """`now_s`: seconds of any clock that does not go back."""
        told = self._told
        if told and count < told[-1][1]:
            told.clear()
        if len(told) > 1 and now_s - told[-2][0] < _APART_S:
            told.pop()
        told.append((now_s, count))
        while len(told) > 2 and told[1][0] <= now_s - WINDOW_S:
            told.popleft()

    @property
    def span_s(self) -> float:
        """How long a time it speaks of, in seconds: at least the window, once that has passed."""
        return self._told[-1][0] - self._told[0][0] if self._told else 0.0

    @property
    def per_second(self) -> float:
        """0 until two counts were told."""
        span_s = self.span_s
        return (self._told[-1][1] - self._told[0][1]) / span_s if span_s > 0 else 0.0
