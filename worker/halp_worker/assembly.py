"""`serve`: puts one worker together around an engine, and runs it.

The engine is a model (`launch.py`) or a stand-in (tests, benchmarks): nothing here knows torch.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import redis

from halp_producer.activity import WorkerActivity
from halp_producer.job import Job
from halp_producer.keys import RunKeys
from halp_producer.pace import Pace
from halp_store.address import storage_at
from halp_store.layout import Layout
from halp_store.writer import StoreWriter
from halp_worker.batcher import Batcher
from halp_worker.consumer import Consumer
from halp_worker.footprint import peak_resident_bytes
from halp_worker.heartbeat import Describe, Heartbeat
from halp_worker.host_health import place_of
from halp_worker.last_wait import LastWait
from halp_worker.live_line import live_line
from halp_worker.logs import belong_to
from halp_worker.metrics import Metrics
from halp_worker.retry import RetryPolicy
from halp_worker.run_store import check_store_of_run, record_store_of_run, store_of_run
from halp_worker.service import Extracts, Service, Tally
from halp_worker.settings import WorkerSettings
from halp_worker.store_outage import open_patiently

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """What turns jobs into rows.

    prepare: a job's inputs, called on threads; raises Rejected or Retryable.
    device: for people. memory_bytes: the most that was in use; called on any thread.
    budget, tokens_of, size_of: see `Batcher`.
    """

    layout: Layout
    provenance: Mapping[str, Any]
    prepare: Callable[[Job], Any]
    extractor: Extracts
    device: str
    budget: int | None = None
    tokens_of: Callable[[Any], int] = lambda _: 1
    size_of: Callable[[Any], int] = lambda _: 0
    memory_bytes: Callable[[], int] = peak_resident_bytes


def worker_name() -> str:
    """Unique: a worker that starts again is another one."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def serve(
    settings: WorkerSettings,
    engine: Engine,
    client: redis.Redis,
    name: str,
    *,
    retries: RetryPolicy | None = None,
) -> Tally:
    """Runs until told to stop. client: repeats nothing (`server.connect_exact`).
    retries: None, the usual delays.

    Raises FatalError or StoreError with a message, or what redis-py raises.
    """
    belong_to(worker=name, run=settings.run)
    keys = RunKeys(settings.run)
    metrics = Metrics()
    metrics.describe(
        worker=name, run=settings.run, model=settings.model.model, device=engine.device
    )
    place = place_of(settings.image_root, allow_urls=settings.allow_urls)
    consumer = Consumer(
        client,
        keys,
        name=name,
        lease_ms=int(settings.lease_seconds * 1000),
        place=place,
        max_job_seconds=settings.max_job_seconds,
        on_lost=metrics.lease_lost,
        on_poll=metrics.polled,
    )
    storage = storage_at(settings.store)
    stored_in = consumer.persist(lambda: store_of_run(client, keys, settings.store))
    open_patiently(lambda: check_store_of_run(settings.run, stored_in, storage))
    writer = open_patiently(
        lambda: StoreWriter.open(
            settings.store,
            engine.layout,
            worker=name,
            provenance=engine.provenance,
            flush_rows=settings.flush_rows,
            # Workers that start together should not flush together: up to a quarter sooner.
            flush_seconds=settings.flush_seconds * random.uniform(0.75, 1),  # noqa: S311
        )
    )
    consumer.persist(lambda: record_store_of_run(client, keys, settings.store, writer.store_id))
    port = settings.metrics_port
    endpoint = nullcontext() if port is None else metrics.serve(settings.metrics_host, port)
    batcher = Batcher(
        engine.prepare,
        settings.batch_size,
        budget=engine.budget,
        tokens_of=engine.tokens_of,
        size_of=engine.size_of,
    )
    with batcher, endpoint:
        service = Service(
            consumer,
            batcher,
            engine.extractor,
            writer,
            until_empty=settings.until_empty,
            retries=retries or RetryPolicy(settings.max_attempts),
            metrics=metrics,
            abandon=_abandon,
        )
        describe = _describer(settings, engine, place, consumer, service, metrics)
        heartbeat = Heartbeat(
            client,
            keys,
            renewals=[
                consumer.renew_all,
                lambda: metrics.backlog(client.xlen(keys.jobs)),
            ],
            describe=describe,
            lease_seconds=settings.lease_seconds,
        )
        log.info("worker %s: run %s -> %s", name, settings.run, settings.store)
        _stop_by_signals(service, LastWait(client, consumer))
        with heartbeat, _line_of(settings, describe, metrics):
            return service.run()


def _line_of(
    settings: WorkerSettings, describe: Describe, metrics: Metrics
) -> AbstractContextManager[None]:
    """The live line, where it is wanted."""
    if settings.log_format != "auto":
        return nullcontext()
    return live_line(lambda: describe(_now_ms()), lambda: metrics.backlog_jobs)


def _stop_by_signals(service: Service, last_wait: LastWait) -> None:
    """From now on SIGTERM or SIGINT ends the work in order; the second one ends the process.

    The second loses nothing: what is not acknowledged is another worker's after the lease. It
    stays so to the end of the process, which a signal in its last moments should not spoil.
    """

    def on_signal(number: int, frame: object) -> None:
        if service.stopping:
            log.warning("second signal: stopping at once; other workers take over after the lease")
            os._exit(128 + number)
        log.info("%s: finishing the batch in hand", signal.Signals(number).name)
        service.stop()
        last_wait.begin()
        # On a thread: this frame may have interrupted the very code whose locks a release needs.
        threading.Thread(target=_release, args=[service], name="release", daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def _abandon(error: Exception) -> None:
    """The worker cannot stop in order: a batch does not end, or a request has no answer."""
    log.critical("stopped at once, for it could not stop in time: %s", error)
    os._exit(1)


def _release(service: Service) -> None:
    try:
        service.release()
    except redis.RedisError as error:
        log.warning("could not give back what was only fetched: %s", error)


def _describer(
    settings: WorkerSettings,
    engine: Engine,
    place: str,
    consumer: Consumer,
    service: Service,
    metrics: Metrics,
) -> Describe:
    started_ms = _now_ms()
    pace = Pace()
    pace.tell(time.monotonic(), 0)
    lock = threading.Lock()  # the heartbeat's thread asks, and the live line's

    def rows_per_second() -> float:
        with lock:
            pace.tell(time.monotonic(), service.tally.done)
            return round(pace.per_second, 3)

    def describe(now_ms: int) -> WorkerActivity:
        metrics.in_hand(consumer.in_hand)
        memory_bytes, moved_s = engine.memory_bytes(), service.moved_s
        silent_s = None if moved_s is None else time.monotonic() - moved_s
        metrics.memory(memory_bytes)
        return WorkerActivity(
            worker=consumer.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=engine.device,
            model=settings.model.model,
            state=service.state,
            started_ms=started_ms,
            seen_ms=now_ms,
            polled_ms=0 if silent_s is None else now_ms - int(1000 * silent_s),
            in_hand=consumer.in_hand,
            done=service.tally.done,
            failed=service.tally.failed,
            rows_per_second=rows_per_second(),
            batch_jobs=service.batch_jobs,
            memory_bytes=memory_bytes,
            store=str(settings.store),
            place=place,
        )

    return describe


def _now_ms() -> int:
    return int(time.time() * 1000)
