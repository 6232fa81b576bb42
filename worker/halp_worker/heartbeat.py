"""`Heartbeat`: a thread that renews leases and tells the run what this worker does.

A thread does not beat while native code holds the interpreter lock: the lease must be well above
the longest such stretch, and 60 s is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import redis

from halp_producer.activity import WorkerActivity
from halp_producer.keys import DELAYED, GROUP, RunKeys
from halp_worker import scripts

log = logging.getLogger(__name__)

LONGEST_BEAT_SECONDS: Final = 5.0
"""`halp-producer status` calls a worker gone after a few of these."""

LAST_BEAT_SECONDS: Final = 2.0
"""How long the end waits for a beat under way: a server that is silent hears no last one."""

FORGET_AFTER_SECONDS: Final = 600
"""A worker that was not seen for so long, and holds nothing, is taken off the run's list."""


Describe = Callable[[int], WorkerActivity]
"""What to tell the run, given the Unix time in ms; the server moves its times to its own clock."""


class Heartbeat:
    """Context manager around the worker's loop.

    renewals: what to renew at each beat, each on its own.
    Beats four times per lease, and at least every five seconds.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: RunKeys,
        *,
        renewals: Sequence[Callable[[], object]],
        describe: Describe,
        lease_seconds: float,
        forget_after_seconds: float = FORGET_AFTER_SECONDS,
    ) -> None:
        self._script = client.register_script(scripts.BEAT)
        self._keys = keys
        self._duties = (*renewals, self._tell)
        self._describe = describe
        self._every_seconds = min(lease_seconds / 4, LONGEST_BEAT_SECONDS)
        self._forget_after_ms = int(forget_after_seconds * 1000)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LAST_BEAT_SECONDS)
        if not self._thread.is_alive():
            self._beat()

    def _run(self) -> None:
        while not self._stop.wait(self._every_seconds):
            self._beat()

    def _beat(self) -> None:
        for duty in self._duties:
            try:
                duty()
            except redis.RedisError as error:
                # The loop sees the same server and heals; a beat missed costs a lease at most.
                log.warning("heartbeat missed: %s", error)

    def _tell(self) -> None:
        activity = self._describe(int(time.time() * 1000))
        self._script(
            keys=[self._keys.jobs, self._keys.workers],
            args=[
                *(GROUP, activity.worker, activity.model_dump_json()),
                *(DELAYED, self._forget_after_ms),
            ],
        )
