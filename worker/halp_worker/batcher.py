"""`Batcher`: jobs in, prepared batches out, first come first served.

Jobs are prepared on threads while the model works on the batch before. Knows nothing of torch or
the server: what `prepare` returns is passed on as it is.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from halp_producer.job import Job
from halp_store.features import RowKey
from halp_worker.delivery import Delivery
from halp_worker.fates import FatalError, Fate, Reason, Rejected, Retryable, Setback

PREPARED_BATCHES: Final = 2
"""One in the model's hands next, one being prepared: more only holds jobs from other workers."""

PREPARE_THREADS: Final = 4
"""Decoding and resizing release the interpreter; four keep ahead of a fast device."""

S = TypeVar("S")


@dataclass(frozen=True)
class Batch(Generic[S]):
    """Prepared samples that go through the model in one call, and whose they are. Never empty."""

    keys: tuple[RowKey, ...]
    samples: tuple[S, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, rows: Iterable[int]) -> Batch[S]:
        """The given samples, in the given order."""
        chosen = tuple(rows)
        return Batch(
            tuple(self.keys[row] for row in chosen), tuple(self.samples[row] for row in chosen)
        )


@dataclass(frozen=True)
class Taken(Generic[S]):
    """batch: the next one, None if no job is left. fates: of jobs that could not be prepared."""

    batch: Batch[S] | None
    fates: tuple[tuple[RowKey, Fate], ...]


class Batcher(Generic[S]):
    """Context manager: its threads end with it. `drain` may be called from another thread."""

    def __init__(self, prepare: Callable[[Job], S], batch_size: int) -> None:
        self._prepare = prepare
        self._batch_size = batch_size
        self._queue: deque[tuple[RowKey, Future[S]]] = deque()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="prepare")

    def __enter__(self) -> Batcher[S]:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __len__(self) -> int:
        """Jobs submitted and not yet taken."""
        return len(self._queue)

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def free_slots(self) -> int:
        """How many jobs may be submitted now."""
        return max(0, PREPARED_BATCHES * self._batch_size - len(self._queue))

    def lower(self, too_many: int) -> None:
        """A batch of `too_many` did not fit the device: no batch is that large from now on."""
        self._batch_size = max(1, min(self._batch_size, too_many // 2))

    def submit(self, deliveries: Iterable[Delivery]) -> None:
        """Starts to prepare the jobs."""
        for delivery in deliveries:
            self._queue.append((delivery.key, self._threads.submit(self._prepare, delivery.job)))

    def drain(self) -> list[RowKey]:
        """Gives up all that was submitted and not taken; returns whose it is."""
        with self._lock:
            given_up = list(self._queue)
            self._queue.clear()
        for _, future in given_up:
            future.cancel()
        return [key for key, _ in given_up]

    def take(self) -> Taken[S]:
        """Waits until the next batch is prepared. Jobs that failed do not count towards its size.

        Raises FatalError where `prepare` does; whatever else it raises is that job's own fate.
        """
        keys: list[RowKey] = []
        samples: list[S] = []
        fates: list[tuple[RowKey, Fate]] = []
        while len(samples) < self._batch_size and (first := self._first()) is not None:
            key, future = first
            try:
                samples.append(future.result())
                keys.append(key)
            except Rejected as rejected:
                fates.append((key, rejected.rejection))
            except Retryable as failed:
                fates.append((key, failed.setback))
            except FatalError:
                raise
            except Exception as error:  # noqa: BLE001 - of one job, whatever it is: it is tried again
                fates.append((key, Setback.of(Reason.PREPARATION_FAILED, error)))
        batch = Batch(tuple(keys), tuple(samples)) if samples else None
        return Taken(batch, tuple(fates))

    def _first(self) -> tuple[RowKey, Future[S]] | None:
        with self._lock:
            return self._queue.popleft() if self._queue else None
