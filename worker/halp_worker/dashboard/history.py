"""`History`: the counts of a run during the last hour, and how fast they grew.

Pure: time is an argument. Bounded: a sample every two seconds for the last minutes, one every
twenty seconds before that; about 330 in all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import takewhile
from typing import Final, NamedTuple

SAMPLE_S: Final = 2.0
"""Finer than a worker commits (5 s, or 64 rows)."""

_FINE_S: Final = 300.0
_COARSE_S: Final = 20.0
_HOUR_S: Final = 3600.0

_SMOOTH_S: Final = 10.0
"""Rows come commit by commit: over less than two commits a rate is a comb."""

_SILENCE_S: Final = 60.0
"""After this long without a sample nobody knows what went on: the process was asleep."""


class Sample(NamedTuple):
    """at_s: Unix time. done, failed, left: jobs, as of the server's counts. workers: alive.

    begins: nothing is known of the time just before it.
    """

    at_s: float
    done: int
    failed: int
    left: int
    workers: int
    begins: bool = False


class Point(NamedTuple):
    """Rates: jobs a second, over the ten seconds before; None where nothing is known of those."""

    at_s: float
    done_per_second: float | None
    failed_per_second: float | None
    left: int
    workers: int


class History:
    """Not for several threads at once."""

    def __init__(self) -> None:
        self._fine: deque[Sample] = deque()
        self._coarse: deque[Sample] = deque()
        self._interrupted = True

    def interrupt(self) -> None:
        """The server did not answer: what comes next does not join what was before."""
        self._interrupted = True

    def add(self, sample: Sample) -> None:
        """What is too early to show a step is left out; a clock that went back begins anew."""
        if self._fine and sample.at_s < self._fine[-1].at_s:
            self._fine.clear()
            self._coarse.clear()
        last = self._fine[-1] if self._fine else None
        if last and not self._interrupted and sample.at_s - last.at_s < SAMPLE_S:
            return
        sample = sample._replace(begins=self._interrupted or last is None or _breaks(last, sample))
        self._interrupted = False
        self._fine.append(sample)
        coarse = self._coarse
        if not coarse or sample.begins or sample.at_s - coarse[-1].at_s >= _COARSE_S:
            coarse.append(sample)
        while sample.at_s - self._fine[0].at_s > _FINE_S:
            self._fine.popleft()
        while sample.at_s - coarse[0].at_s > _HOUR_S:
            coarse.popleft()

    def points(self) -> list[Point]:
        """Oldest first."""
        if not self._fine:
            return []
        first = self._fine[0].at_s
        samples = [*takewhile(lambda one: one.at_s < first, self._coarse), *self._fine]
        return [_point(samples, number) for number in range(len(samples))]


def _breaks(last: Sample, sample: Sample) -> bool:
    """Silence, or a run that the server forgot."""
    return sample.at_s - last.at_s > _SILENCE_S or sample.done < last.done


def _since(samples: Sequence[Sample], number: int, seconds: float) -> Sample | None:
    """The oldest sample that joins this one and is at most so much older, or the one before it."""
    now, found = samples[number], None
    while number and not samples[number].begins:
        number -= 1
        if found is not None and now.at_s - samples[number].at_s > seconds:
            break
        found = samples[number]
    return found


def _point(samples: Sequence[Sample], number: int) -> Point:
    now, before = samples[number], _since(samples, number, _SMOOTH_S)
    if before is None:
        return Point(now.at_s, None, None, now.left, now.workers)
    seconds = now.at_s - before.at_s
    # Failed jobs that are tried again are taken off the count.
    failed = max(0, now.failed - before.failed)
    return Point(
        now.at_s, (now.done - before.done) / seconds, failed / seconds, now.left, now.workers
    )
