"""`LastWait`: bounds how long a worker that was told to stop waits for the server.

Nothing that is in the store is lost by that: what is not acknowledged is another worker's after the
lease, and found stored by it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

import redis

from halp_producer.server import silent_seconds
from halp_worker.consumer import Consumer

log = logging.getLogger(__name__)

LAST_WAIT_SECONDS: Final = 15.0
"""Supervisors kill after 20 to 30 s; a server that restarts is mostly back by then."""

_LOOK_SECONDS: Final = 0.1


class LastWait:
    """Ends the process once it was told to stop and the server has not answered for `seconds`."""

    def __init__(
        self,
        client: redis.Redis,
        consumer: Consumer,
        *,
        seconds: float = LAST_WAIT_SECONDS,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._client, self._consumer = client, consumer
        self._seconds, self._leave = seconds, leave

    def begin(self) -> None:
        """Watches from now on, on a thread of its own: a request may hang for longer."""
        threading.Thread(target=self._watch, name="last-wait", daemon=True).start()

    def _watch(self) -> None:
        stopped_s = time.monotonic()
        while True:
            silent_s = max(silent_seconds(self._client), self._consumer.waiting_seconds)
            if min(silent_s, time.monotonic() - stopped_s) >= self._seconds:
                self._leave(self._say())
                return
            time.sleep(_LOOK_SECONDS)

    def _say(self) -> int:
        """The exit code: 1 where rows are stored and not acknowledged."""
        held, stored = self._consumer.in_hand, self._consumer.unacknowledged
        log.warning(
            "the server has not answered for %g s since the stop: ending without it; %d jobs in "
            "hand are another worker's after the lease, %d of them are stored and will be found",
            self._seconds,
            held,
            stored,
        )
        return 1 if stored else 0
