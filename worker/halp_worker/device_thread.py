"""`DeviceThread`: one batch at a time for the device, beside a loop that does all the rest.

The device gets the calling thread, the loop one of its own: a second thread that computes on the
CPU would have a second team of threads, and the two wait for each other's cores. Knows no torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from halp_store.features import RowKey
from halp_worker.batcher import Batch
from halp_worker.extraction import Extraction

SIGNAL_SECONDS: Final = 0.1
"""How long a signal may wait: its handler runs on the main thread, which the system does not wake
up for a signal that another thread got."""

T = TypeVar("T")


class DeviceThread:
    """`serve` is called by the device's thread; everything else by the loop."""

    def __init__(self, extract: Callable[[Batch[Any]], list[Extraction]]) -> None:
        self._extract = extract
        self._batches: SimpleQueue[tuple[Batch[Any], Future[list[Extraction]]] | None]
        self._batches = SimpleQueue()
        self._running: Future[list[Extraction]] | None = None
        self._batch: Batch[Any] | None = None
        self._started_s = 0.0

    def serve(self, loop: Callable[[], T]) -> T:
        """Runs the loop on a thread, and here what it starts. Ends with the loop, with what that
        returns or raises."""
        outcome: Future[T] = Future()

        def run() -> None:
            try:
                outcome.set_result(loop())
            except BaseException as error:  # noqa: BLE001 - raised again below
                outcome.set_exception(error)
            self._batches.put(None)

        threading.Thread(target=run, name="loop", daemon=True).start()
        while (started := self._next()) is not None:
            batch, running = started
            try:
                running.set_result(self._extract(batch))
            except BaseException as error:  # noqa: BLE001 - raised again by `finish`
                running.set_exception(error)
        return outcome.result()

    def _next(self) -> tuple[Batch[Any], Future[list[Extraction]]] | None:
        while True:
            with suppress(Empty):
                return self._batches.get(timeout=SIGNAL_SECONDS)

    @property
    def is_busy(self) -> bool:
        return self._running is not None and not self._running.done()

    @property
    def is_empty(self) -> bool:
        """Whether nothing runs, and nothing that ran waits for `finish`."""
        return self._running is None

    @property
    def keys(self) -> tuple[RowKey, ...]:
        """Of the batch that runs, waits for `finish`, or raised in it."""
        return () if self._batch is None else self._batch.keys

    def wait(self, seconds: float) -> bool:
        """Whether nothing runs, at the latest after so long."""
        return self._running is None or not wait([self._running], seconds).not_done

    @property
    def busy_since_s(self) -> float | None:
        """When what runs was started, on the monotonic clock; None if nothing does."""
        return self._started_s if self.is_busy else None

    def start(self, batch: Batch[Any]) -> None:
        """The batch before must have been finished."""
        self._running, self._batch = Future(), batch
        self._started_s = time.monotonic()
        self._batches.put((batch, self._running))

    def finish(self) -> list[Extraction]:
        """Waits for what runs, and gives it; nothing if nothing does. Raises what it raised."""
        running, self._running = self._running, None
        extractions = [] if running is None else running.result()
        self._batch = None
        return extractions
