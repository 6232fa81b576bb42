"""`Metrics`: what a worker counts and times, for Prometheus to fetch.

Knows prometheus_client; does not know torch, the server or the store. Each `Metrics` has a registry
of its own, so two workers in one process do not add up. All methods may be called from any thread.
Counts start at zero with each process: what a run has done in all is in `halp-producer status`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from halp_worker.fates import FatalError, Reason

FATES: Final = ("done", "already_stored", "failed", "retried", "released")
"""What becomes of a job in this worker's hands."""

STAGES: Final = ("read", "prepare_wait", "extract_wait", "extract", "flush", "acknowledge")
"""`extract` is the device's time, on its own thread; the others are the loop's. `prepare_wait`: it
waited for inputs. `extract_wait`: it had the next batch and waited for the device, as it should
most of the time."""

_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""An acknowledgement takes about a millisecond, a large batch of long answers some minutes."""

_BATCH_JOBS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """One worker's counters. All fates, reasons and stages are there from the start, with zeros."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        jobs = Counter("halp_jobs", "Jobs by what became of them.", ["fate"], registry=registry)
        self._fates = {fate: jobs.labels(fate) for fate in FATES}
        self._failures = Counter(
            "halp_failures", "Failed jobs by reason.", ["reason"], registry=registry
        )
        for reason in Reason:
            self._failures.labels(str(reason))
        self._lease_losses = Counter(
            "halp_lease_losses", "Jobs that another worker took over.", registry=registry
        )
        self._out_of_memory = Counter(
            "halp_out_of_memory", "Batches the device had no room for.", registry=registry
        )
        stages = Histogram(
            "halp_stage_seconds",
            "Time in one step of the loop.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._batch_jobs = Histogram(
            "halp_batch_jobs", "Jobs in one call.", buckets=_BATCH_JOBS, registry=registry
        )
        self._prompt_tokens = Counter(
            "halp_prompt_tokens", "Tokens of prompts, image tokens among them.", registry=registry
        )
        self._abstained = Counter(
            "halp_abstained", "Rows without an answer, for their risk.", registry=registry
        )
        self._answer_tokens = Counter("halp_answer_tokens", "Tokens generated.", registry=registry)
        self._backlog = Gauge("halp_backlog_jobs", "Jobs left in the run.", registry=registry)
        self._in_hand = Gauge(
            "halp_in_hand_jobs", "Jobs in this worker's hands.", registry=registry
        )
        self._memory = Gauge(
            "halp_memory_bytes",
            "The most memory in use: the CUDA device's, else the process's.",
            registry=registry,
        )
        self._last_poll = Gauge(
            "halp_last_poll_timestamp_seconds", "Unix time of the last read.", registry=registry
        )
        self._info = Gauge(
            "halp_worker_info",
            "Who this is; always 1.",
            ["worker", "run", "model", "device"],
            registry=registry,
        )

        self.backlog_jobs: int | None = None
        """As it was told last; None before."""

    def describe(self, *, worker: str, run: str, model: str, device: str) -> None:
        """Who this is; a second call replaces the first."""
        self._info.clear()
        self._info.labels(worker, run, model, device).set(1)

    def count(self, fate: str, n: int = 1) -> None:
        """`n` jobs came to one of FATES. Raises KeyError for another word."""
        self._fates[fate].inc(n)

    def failed(self, reason: str) -> None:
        """One job failed for this `Reason`; its fate is counted with `count`."""
        self._failures.labels(str(reason)).inc()

    def abstained(self, n: int) -> None:
        """`n` rows were committed whose answers were not generated, for their risk."""
        self._abstained.inc(n)

    def lease_lost(self, n: int = 1) -> None:
        """`n` jobs in hand turned out to be another worker's."""
        self._lease_losses.inc(n)

    def out_of_memory(self) -> None:
        """A batch did not fit the device."""
        self._out_of_memory.inc()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what is inside, also when it raises. Raises KeyError for a word not in STAGES."""
        timed, started = self._stages[name], time.perf_counter()
        try:
            yield
        finally:
            timed.observe(time.perf_counter() - started)

    def batch(self, jobs: int) -> None:
        """A batch of so many jobs goes through the model."""
        self._batch_jobs.observe(jobs)

    def tokens(self, prompt: int, answer: int) -> None:
        """A batch's tokens, summed over its jobs."""
        self._prompt_tokens.inc(prompt)
        self._answer_tokens.inc(answer)

    def backlog(self, n: int) -> None:
        """Jobs left in the run, for all workers together."""
        self.backlog_jobs = n
        self._backlog.set(n)

    def in_hand(self, n: int) -> None:
        self._in_hand.set(n)

    def memory(self, n_bytes: int) -> None:
        """The most that was in use so far."""
        self._memory.set(n_bytes)

    def polled(self) -> None:
        """The server answered a read just now."""
        self._last_poll.set_to_current_time()

    @contextmanager
    def serve(self, host: str, port: int) -> Iterator[int]:
        """Answers `GET /metrics` on a thread of its own until the end of the `with` block.

        Gives the port, which the system chooses for `port` 0. Raises FatalError where nothing can
        listen there. No password, no TLS: anyone who reaches the port can read it.
        """
        try:
            server, thread = start_http_server(port, host, self.registry)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise FatalError(
                f"metrics cannot be served at {host}:{port}: {reason[:1].lower()}{reason[1:]}; "
                "each worker of a host needs a port of its own"
            ) from None
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
