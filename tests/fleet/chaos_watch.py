"""What watches a run of chaos: an event log, threads that report their errors, and the sampler."""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import redis
from chaos_server import client_of

from halp_producer import RunKeys
from halp_producer.balance import imbalances
from halp_producer.status import UnknownRunError, read_run


class Broken(Exception):  # noqa: N818 - a promise was
    """What ends the run at once."""


class Story:
    """The event log; a line has the time of day (as the workers' logs) and seconds since start."""

    def __init__(self, path: Path) -> None:
        self._file, self._start = path.open("a", buffering=1), time.monotonic()
        self._lock = threading.Lock()

    def tell(self, text: str) -> None:
        now = time.time()
        clock = time.strftime("%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}"
        with self._lock:
            self._file.write(f"{clock} {time.monotonic() - self._start:8.3f} {text}\n")

    def close(self) -> None:
        with self._lock:
            self._file.close()


class Repeating:
    """A thread that does one thing again and again until told to stop; its errors are problems."""

    def __init__(self, action: Callable[[], None], pause_s: float, problems: list[str]) -> None:
        self._action, self._pause_s, self._problems = action, pause_s, problems
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            try:
                self._action()
            except Exception:  # noqa: BLE001 - a person reads it, and the run fails
                self._problems.append(traceback.format_exc())
                return

    def tell(self) -> None:
        """To stop, without waiting for it."""
        self._stop.set()

    def stop(self) -> None:
        self.tell()
        self._thread.join(60)
        if self._thread.is_alive():
            self._problems.append("a thread of the driver did not end")


class Sampler:
    """Reads the whole run in one step, all the time: the books must balance at every instant.

    The canary is a counter of ours: less than what was answered means that a killed server forgot
    its last writes, as it may with an fsync a second when the disk is behind.
    """

    def __init__(self, url: str, keys: RunKeys, counts: Counter[str], story: Story) -> None:
        self._client, self._keys = client_of(url), keys
        self._counts, self._story = counts, story
        self._canary = 0

    def sample(self) -> None:
        try:
            status, books = read_run(self._client, self._keys)
            alive = int(self._client.get("canary") or 0)
            if alive < self._canary:
                self._counts["forgotten"] += self._canary - alive
                self._story.tell(f"the server forgot {self._canary - alive} of our writes")
            self._canary = alive
            self._canary = int(self._client.incr("canary"))
        except UnknownRunError:
            return
        except redis.RedisError:
            self._client.connection_pool.disconnect()
            return
        self._counts["samples"] += 1
        parts = (status.waiting, status.delayed, status.in_flight, status.done, status.failed)
        if books.enqueued != sum(parts) or min(parts) < 0 or books.pending > books.stream:
            raise Broken(f"the sum does not hold: {status!r} {books!r}")
        if found := imbalances(books):
            raise Broken(f"the books do not balance: {found} {books!r}")
