"""`Batcher`: jobs in, prepared batches out, first come first served.

Jobs are prepared on threads while the model works on the batch before. Knows nothing of torch or
the server: what `prepare` returns is passed on as it is. Padding is no concern here: the model's
passes have none, whatever lies side by side in a batch.
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
    """Context manager: its threads end with it. `drain` may be called from another thread.

    batch_size: most jobs in a batch. budget: most tokens, counted as jobs times the tokens of the
    largest, for they all get as much room; None, no bound. A single job always is a batch.
    tokens_of: of a sample.
    """

    def __init__(
        self,
        prepare: Callable[[Job], S],
        batch_size: int,
        *,
        budget: int | None = None,
        tokens_of: Callable[[S], int] = lambda _: 1,
    ) -> None:
        self._prepare = prepare
        self._batch_size = batch_size
        self._tokens_of = tokens_of
        self.budget = budget
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
    def free_slots(self) -> int:
        """How many jobs may be submitted now."""
        return max(0, PREPARED_BATCHES * self._batch_size - len(self._queue))

    def lower(self, batch: Batch[S]) -> None:
        """This one did not fit the device: none has more than half of its tokens from now on."""
        half = len(batch) * max(map(self._tokens_of, batch.samples)) // 2
        self.budget = half if self.budget is None else min(self.budget, half)

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
        tokens = 0  # of the largest sample so far
        while len(samples) < self._batch_size and (first := self._first()) is not None:
            key, future = first
            try:
                sample = future.result()
            except Rejected as rejected:
                fates.append((key, rejected.rejection))
                continue
            except Retryable as failed:
                fates.append((key, failed.setback))
                continue
            except FatalError:
                raise
            except Exception as error:  # noqa: BLE001 - of one job, whatever it is: it is tried again
                fates.append((key, Setback.of(Reason.PREPARATION_FAILED, error)))
                continue
            tokens = max(tokens, self._tokens_of(sample))
            budget = self.budget
            if samples and budget is not None and (len(samples) + 1) * tokens > budget:
                self._put_back(first)
                break
            samples.append(sample)
            keys.append(key)
        batch = Batch(tuple(keys), tuple(samples)) if samples else None
        return Taken(batch, tuple(fates))

    def _first(self) -> tuple[RowKey, Future[S]] | None:
        with self._lock:
            return self._queue.popleft() if self._queue else None

    def _put_back(self, first: tuple[RowKey, Future[S]]) -> None:
        with self._lock:
            self._queue.appendleft(first)
