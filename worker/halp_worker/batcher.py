"""`Batcher`: jobs in, prepared batches out, first come first served.

Jobs are prepared on threads while the model works on the batch before. Knows nothing of torch or
the server: what `prepare` returns is passed on as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from halp_producer.job import Job
from halp_store.features import RowKey
from halp_worker.delivery import row_key
from halp_worker.fates import Rejected, Rejection

PREPARED_BATCHES: Final = 2
"""One in the model's hands next, one being prepared: more only holds jobs from other workers."""

PREPARE_THREADS: Final = 4
"""Decoding and resizing release the interpreter; four keep ahead of a fast device."""

S = TypeVar("S")


@dataclass(frozen=True)
class Batch(Generic[S]):
    """Prepared samples that go through the model in one call. Never empty."""

    samples: tuple[S, ...]


@dataclass(frozen=True)
class Taken(Generic[S]):
    """batch: the next one, None if no job is left. rejections: jobs that cannot be prepared."""

    batch: Batch[S] | None
    rejections: tuple[tuple[RowKey, Rejection], ...]


class Batcher(Generic[S]):
    """Context manager: its threads end with it."""

    def __init__(self, prepare: Callable[[Job], S], batch_size: int) -> None:
        self._prepare = prepare
        self._batch_size = batch_size
        self._queue: deque[tuple[Job, Future[S]]] = deque()
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

    def submit(self, jobs: Iterable[Job]) -> None:
        """Starts to prepare the jobs."""
        for job in jobs:
            self._queue.append((job, self._threads.submit(self._prepare, job)))

    def take(self) -> Taken[S]:
        """Waits until the next batch is prepared. Rejected jobs do not count towards its size.

        Whatever `prepare` raises besides Rejected comes out here: it is no fault of one job.
        """
        samples: list[S] = []
        rejections: list[tuple[RowKey, Rejection]] = []
        while self._queue and len(samples) < self._batch_size:
            job, future = self._queue.popleft()
            try:
                samples.append(future.result())
            except Rejected as rejected:
                rejections.append((row_key(job), rejected.rejection))
        return Taken(Batch(tuple(samples)) if samples else None, tuple(rejections))
