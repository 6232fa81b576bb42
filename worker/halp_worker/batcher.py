"""`Batcher`: jobs in, prepared batches out, those of about one size together.

Jobs are prepared on threads while the model works on the batch before. Knows nothing of torch or
the server: what `prepare` returns is passed on as it is. A batch is chosen from what is prepared,
never waited for; the oldest job is in each, and none is passed over more than `PATIENCE` times.
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

PREPARED_TOKENS: Final = 131_072
"""What is at hand in host memory, about: a token of an image is 19 kB of pixels. Photographs as
large as the published checkpoints allow are 16,384 tokens each."""

UNKNOWN_TOKENS: Final = 4096
"""What a job is taken for before the first batch."""

PATIENCE: Final = 2
"""How many batches may go before a job that came earlier."""

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
    """batch: the next one, None if no job is left. fates: of jobs that could not be prepared.
    prepared: jobs that could be, each with the number of fates before it."""

    batch: Batch[S] | None
    fates: tuple[tuple[RowKey, Fate], ...]
    prepared: tuple[tuple[Job, int], ...] = ()


@dataclass
class _Ready(Generic[S]):
    """passed: how many batches were chosen without it."""

    key: RowKey
    sample: S
    passed: int = 0


class Batcher(Generic[S]):
    """Context manager: its threads end with it. `drain` may be called from another thread.

    batch_size: most jobs in a batch. budget: most tokens, counted as jobs times the tokens of the
    largest, for they all get as much room; None, no bound. A single job always is a batch.
    tokens_of: of a sample. size_of: what should be about the same within a batch; equal for samples
    that have work in common.
    """

    def __init__(
        self,
        prepare: Callable[[Job], S],
        batch_size: int,
        *,
        budget: int | None = None,
        tokens_of: Callable[[S], int] = lambda _: 1,
        size_of: Callable[[S], int] = lambda _: 0,
    ) -> None:
        self.prepare = prepare
        self._batch_size = batch_size
        self._tokens_of, self._size_of = tokens_of, size_of
        self.budget = budget
        self._queue: deque[tuple[Delivery, Future[S]]] = deque()
        self._ready: list[_Ready[S]] = []
        self._largest = UNKNOWN_TOKENS
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="prepare")

    def __enter__(self) -> Batcher[S]:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __len__(self) -> int:
        """Jobs submitted and not yet taken."""
        return len(self._queue) + len(self._ready)

    @property
    def free_slots(self) -> int:
        """How many jobs may be submitted now: fewer where the last ones were large."""
        slots = min(PREPARED_BATCHES * self._batch_size, PREPARED_TOKENS // self._largest)
        return max(0, max(1, slots) - len(self))

    def lower(self, batch: Batch[S]) -> None:
        """This one did not fit the device: none has more than half of its tokens from now on."""
        half = len(batch) * max(map(self._tokens_of, batch.samples)) // 2
        self.budget = half if self.budget is None else min(self.budget, half)

    def submit(self, deliveries: Iterable[Delivery]) -> None:
        """Starts to prepare the jobs."""
        for delivery in deliveries:
            self._queue.append((delivery, self._threads.submit(self.prepare, delivery.job)))

    def drain(self) -> list[RowKey]:
        """Gives up all that was submitted and not taken; returns whose it is."""
        with self._lock:
            given_up, ready = list(self._queue), self._ready
            self._queue.clear()
            self._ready = []
        for _, future in given_up:
            future.cancel()
        return [*(one.key for one in ready), *(delivery.key for delivery, _ in given_up)]

    def take(self) -> Taken[S]:
        """Waits until as many as a batch has are prepared. Jobs that failed do not count.

        Raises FatalError where `prepare` does; whatever else it raises is that job's own fate.
        """
        fates: list[tuple[RowKey, Fate]] = []
        prepared: list[tuple[Job, int]] = []
        while (first := self._first()) is not None:
            delivery, future = first
            key = delivery.key
            try:
                ready = _Ready(key, future.result())
            except Rejected as rejected:
                fates.append((key, rejected.rejection))
            except Retryable as failed:
                fates.append((key, failed.setback))
            except FatalError:
                raise
            except Exception as error:  # noqa: BLE001 - of one job, whatever it is: it is tried again
                fates.append((key, Setback.of(Reason.PREPARATION_FAILED, error)))
            else:
                prepared.append((delivery.job, len(fates)))
                with self._lock:
                    self._ready.append(ready)
        with self._lock:
            chosen = self._choose()
        keys, samples = tuple(one.key for one in chosen), tuple(one.sample for one in chosen)
        batch = Batch(keys, samples) if chosen else None
        return Taken(batch, tuple(fates), tuple(prepared))

    def _first(self) -> tuple[Delivery, Future[S]] | None:
        """The next to be made ready: what a batch still lacks, and what is prepared anyway."""
        with self._lock:
            if not self._queue:
                return None
            is_needed = len(self._ready) < self._batch_size
            return self._queue.popleft() if is_needed or self._queue[0][1].done() else None

    def _choose(self) -> list[_Ready[S]]:
        """Takes a batch out of what is ready; in the order of arrival."""
        if not self._ready:
            return []
        self._largest = max(self._tokens_of(one.sample) for one in self._ready)
        size = self._size_of(self._ready[0].sample)
        nearest = sorted(
            self._ready,
            key=lambda one: (one.passed < PATIENCE, abs(self._size_of(one.sample) - size)),
        )
        chosen: list[_Ready[S]] = []
        longest = 0
        for one in nearest:
            tokens = max(longest, self._tokens_of(one.sample))
            has_room = self.budget is None or (len(chosen) + 1) * tokens <= self.budget
            if len(chosen) < self._batch_size and (has_room or not chosen):
                chosen.append(one)
                longest = tokens
        taken = {id(one) for one in chosen}
        batch = [one for one in self._ready if id(one) in taken]
        self._ready = [one for one in self._ready if id(one) not in taken]
        for one in self._ready:
            one.passed += 1
        return batch
