"""Puts one worker together from what the user chose, and runs it.

The only place that knows every room; what it builds, `service.py` runs.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
import uuid
from pathlib import Path

from halp_producer import server
from halp_producer.activity import WorkerActivity
from halp_producer.keys import RunKeys
from halp_store.writer import StoreWriter
from halp_worker.batcher import Batcher
from halp_worker.consumer import Consumer
from halp_worker.heartbeat import Describe, Heartbeat
from halp_worker.model.extractor import Extractor
from halp_worker.model.images import ImageReader
from halp_worker.model.inputs import InputBuilder
from halp_worker.model.layers import choose_layers, choose_positions, layout_of, provenance_of
from halp_worker.model.loading import LoadedModel, load_model
from halp_worker.service import IDLE_BLOCK_MS, Service, Tally
from halp_worker.settings import WorkerSettings

log = logging.getLogger(__name__)


def run_worker(settings: WorkerSettings) -> Tally:
    """Runs until told to stop. Raises FatalError, StoreError or ServerError with a message."""
    keys = RunKeys(settings.run)
    control = server.connect(settings.redis_url)
    for sentence in server.advice(control):
        log.warning(sentence)
    loaded = load_model(settings.model)
    layout = layout_of(
        loaded,
        choose_layers(settings.layers, loaded.n_layers),
        choose_positions(settings.positions),
    )
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:4]}"
    writer = StoreWriter.open(
        settings.store,
        layout,
        worker=name,
        provenance=provenance_of(loaded, settings.batch_size),
        flush_rows=settings.flush_rows,
        flush_seconds=settings.flush_seconds,
    )
    consumer = Consumer(
        server.connect_blocking(settings.redis_url, IDLE_BLOCK_MS),
        control,
        keys,
        name=name,
        lease_ms=int(settings.lease_seconds * 1000),
    )
    inputs = input_builder(loaded, layout.positions, settings.image_root, settings.allow_urls)
    with Batcher(inputs.prepare, settings.batch_size) as batcher:
        service = Service(
            consumer,
            batcher,
            Extractor(loaded, layout),
            writer,
            until_empty=settings.until_empty,
        )
        describe = _describer(settings, loaded, consumer, service)
        heartbeat = Heartbeat(
            control,
            keys,
            renew=consumer.renew,
            describe=describe,
            lease_seconds=settings.lease_seconds,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop())
        log.info("worker %s: run %s -> %s", name, settings.run, settings.store)
        with heartbeat:
            return service.run()


def input_builder(
    loaded: LoadedModel, positions: tuple[str, ...], image_root: Path, allow_urls: bool
) -> InputBuilder:
    """Inputs for this model, with room for its longest answer in the context."""
    return InputBuilder(
        loaded.processor,
        ImageReader(image_root, allow_urls=allow_urls),
        positions,
        max_prompt_tokens=loaded.context_tokens - loaded.generation.max_new_tokens,
    )


def _describer(
    settings: WorkerSettings, loaded: LoadedModel, consumer: Consumer, service: Service
) -> Describe:
    started_ms = int(time.time() * 1000)

    def describe(now_ms: int) -> WorkerActivity:
        seconds = max(1e-3, (now_ms - started_ms) / 1000)
        return WorkerActivity(
            worker=consumer.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=str(loaded.device),
            model=settings.model.model,
            state=service.state,
            started_ms=started_ms,
            seen_ms=now_ms,
            in_hand=consumer.in_hand,
            done=service.tally.done,
            failed=service.tally.failed,
            rows_per_second=round(service.tally.done / seconds, 3),
        )

    return describe
