"""`DeviceThread`: one batch at a time on a thread of its own, so that the loop goes on meanwhile.

Knows no torch: a device computes while the thread that started it waits, and so does the thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from halp_worker.batcher import Batch
from halp_worker.extraction import Extraction


class DeviceThread:
    """Context manager: on the way out, what runs is waited for."""

    def __init__(self, extract: Callable[[Batch[Any]], list[Extraction]]) -> None:
        self._extract = extract
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._running: Future[list[Extraction]] | None = None
        self._started_ms = 0

    def __enter__(self) -> DeviceThread:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)

    @property
    def is_busy(self) -> bool:
        return self._running is not None and not self._running.done()

    @property
    def is_empty(self) -> bool:
        """Whether nothing runs, and nothing that ran waits for `finish`."""
        return self._running is None

    @property
    def busy_since_ms(self) -> int | None:
        """Unix time of the start of what runs; None if nothing does."""
        return self._started_ms if self.is_busy else None

    def start(self, batch: Batch[Any]) -> None:
        """The batch before must have been finished."""
        self._started_ms = int(time.time() * 1000)
        self._running = self._thread.submit(self._extract, batch)

    def finish(self) -> list[Extraction]:
        """Waits for what runs, and gives it; nothing if nothing does. Raises what it raised."""
        running, self._running = self._running, None
        return [] if running is None else running.result()
