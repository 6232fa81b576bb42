"""`Fleet`: a run as the server tells it, asked once a second however many browsers look.

The only file of the dashboard that talks to the server, and only to read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import redis

from halp_producer.keys import RunKeys
from halp_producer.letters import DeadLetter, newest_letters
from halp_producer.look import Look, Lookout
from halp_producer.server import ServerError, connect, explained, redact
from halp_producer.status import RunStatus, UnknownRunError, run_status
from halp_worker.dashboard.history import History, Point, Sample

_EVERY_S: Final = 1.0
_AWAY_EVERY_S: Final = 3.0
"""Of a server that does not answer."""

SHOWN_LETTERS: Final = 20
"""The list is for a first look; `halp-producer failed list` has all."""

_LETTERS_EVERY_S: Final = 3.0
"""In a storm of failures their number changes all the time."""


@dataclass(frozen=True)
class FleetReading:
    """look: as of `read_s` (Unix time), None where there was never one or the run is unknown.

    problem: why there is no newer one, in a sentence. letters: the newest failed jobs first.
    """

    look: Look | None = None
    read_s: float | None = None
    problem: str | None = "the server has not been asked yet"
    letters: tuple[DeadLetter, ...] = ()


class Fleet:
    """One run. Everything may be called from any thread."""

    def __init__(self, run: str, redis_url: str) -> None:
        self.run, self.server = run, redact(redis_url)
        self._keys, self._url = RunKeys(run), redis_url
        self._client: redis.Redis | None = None
        self._lock = threading.Lock()
        self._history = History()
        self._lookout = Lookout()
        self._reading = FleetReading()
        self._letters_of: tuple[int, float] = (0, 0.0)
        self._stop = threading.Event()

    @property
    def reading(self) -> FleetReading:
        """The latest."""
        return self._reading

    def throughput(self) -> list[Point]:
        """Of the last hour, oldest first."""
        with self._lock:
            return self._history.points()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Asks the server on a thread of its own until the end of the `with` block."""
        threading.Thread(target=self._watch, name="halp-fleet", daemon=True).start()
        try:
            yield
        finally:
            # Not waited for: a server that hangs would hold up the end.
            self._stop.set()

    def _watch(self) -> None:
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            pause_s = self._look()

    def _look(self) -> float:
        """How long to wait for the next look, in seconds."""
        try:
            if self._client is None:
                self._client = connect(self._url)
            status = run_status(self._client, self._keys)
            self._take(status, self._letters(self._client, status))
        except UnknownRunError as error:
            self._miss(FleetReading(problem=str(error)))
        except (ServerError, redis.RedisError) as error:
            said = error if isinstance(error, ServerError) else explained(error, self._url)
            self._client = None
            self._miss(replace(self._reading, problem=str(said)))
            return _AWAY_EVERY_S
        return _EVERY_S

    def _take(self, status: RunStatus, letters: tuple[DeadLetter, ...]) -> None:
        now_s = time.time()
        look = self._lookout.look(status, time.monotonic())
        alive = sum(one.alive for one in status.workers)
        with self._lock:
            self._history.add(Sample(now_s, status.done, status.failed, look.left, alive))
        self._reading = FleetReading(look, now_s, None, letters)

    def _miss(self, reading: FleetReading) -> None:
        with self._lock:
            self._history.interrupt()
        self._reading = reading

    def _letters(self, client: redis.Redis, status: RunStatus) -> tuple[DeadLetter, ...]:
        """Read anew only when their number has changed, and not each time."""
        count, read_s = self._letters_of
        now_s = time.monotonic()
        if status.failed == count or now_s - read_s < _LETTERS_EVERY_S:
            return self._reading.letters
        self._letters_of = status.failed, now_s
        return tuple(newest_letters(client, self._keys, SHOWN_LETTERS))
