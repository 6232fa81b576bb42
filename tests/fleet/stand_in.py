"""A whole worker process with a stand-in where the model would be, for tests and benchmarks.

Everything else is what `halp-worker run` runs. Its rows follow from the question id, so that any
reader can check them. A job's question may ask for trouble:

    POISON kill       the process is killed while the job is extracted
    POISON prepare    the process is killed while the job is prepared
    POISON raise      extraction raises, whatever batch the job is in
    POISON retry      preparation raises Retryable
    POISON reject     preparation rejects the job
    POISON large      does not fit the device in a batch of more than one
    POISON device     breaks the device
    SLOW              takes a minute
    LOOK              its image is read, below --image-root or from its URL

`--disk FILE`: while the file is there, its words are what the store's disk answers.
`--at STEP:before:2:KILL` sends the process a signal before (or after) the second call of a step.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import redis

from halp_producer import server
from halp_producer.job import Job, canonical_json
from halp_store import FeatureBatch, Layout
from halp_store.errors import StoreError, StoreUnavailable
from halp_store.layout import GRID_COLUMN
from halp_store.local import LocalStorage
from halp_store.storage import SEGMENTS
from halp_worker import assembly
from halp_worker.assembly import Engine, serve, worker_name
from halp_worker.batcher import Batch
from halp_worker.consumer import Consumer
from halp_worker.delivery import row_key
from halp_worker.extraction import Extraction
from halp_worker.fates import (
    DeviceBroken,
    DeviceOutOfMemory,
    FatalError,
    Reason,
    Rejected,
    Retryable,
)
from halp_worker.last_wait import LastWait
from halp_worker.logs import set_up_logging
from halp_worker.model.images import ImageReader
from halp_worker.retry import RetryPolicy
from halp_worker.settings import ModelSettings, WorkerSettings

log = logging.getLogger("stand_in")

SMALL = Layout(
    layers=(0, 1),
    positions=("vision_token", "query_token"),
    hidden_size=8,
    vision_hidden_size=4,
    source_dtype="float32",
    fingerprint={"model": "stand-in"},
)
LARGE = Layout(
    layers=(0, 7, 14, 21, 27),
    positions=("vision_token", "query_token"),
    hidden_size=3584,
    vision_hidden_size=1280,
    source_dtype="bfloat16",
    fingerprint={"model": "stand-in of 7B"},
)


def seed_of(question_id: str) -> int:
    """What the numbers of a row are made from."""
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=4).digest(), "big")


def expected_value(question_id: str) -> np.float32:
    """The first number of each of a small row's vectors."""
    return np.float32(seed_of(question_id) % 65521)


def prepare(job: Job, images: ImageReader) -> Job:
    match job.question:
        case "LOOK":
            images.read(job.image, job.image_data)
        case "POISON prepare":
            os.kill(os.getpid(), signal.SIGKILL)
        case "POISON retry":
            raise Retryable(Reason.URL_FAILED, "the other side does not answer")
        case "POISON reject":
            raise Rejected(Reason.IMAGE_MISSING, f"image not found: {job.image}")
    return job


class StandIn:
    """Takes as long as it is told, and gives rows that follow from the ids."""

    def __init__(self, layout: Layout, batch_seconds: float, gate: Path | None = None) -> None:
        self._layout, self._batch_seconds = layout, batch_seconds
        self._gate, self._batches = gate, 0
        # Real states do not compress well; these are made once and cost nothing a row.
        noise = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)
        noise = (noise.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        self._noise = np.concatenate([noise, noise])  # a row starts anywhere in the first half

    def extract(self, batch: Batch[Job]) -> Extraction:
        names = " ".join(job.question_id for job in batch.samples)
        log.info("extracting %d: %s", len(batch), names)
        questions = [job.question for job in batch.samples]
        if "POISON kill" in questions:
            os.kill(os.getpid(), signal.SIGKILL)
        if "POISON device" in questions:
            raise DeviceBroken("the device is lost")
        if "POISON raise" in questions:
            raise RuntimeError("this job cannot be extracted")
        if "POISON large" in questions and len(batch) > 1:
            raise DeviceOutOfMemory("not that many at once")
        if "SLOW" in questions:
            time.sleep(60)
        if self._batch_seconds:
            time.sleep(self._batch_seconds)
        self._batches += 1
        while self._gate and int(self._gate.read_text()) < self._batches:
            time.sleep(0.005)
        return Extraction(rows_of(self._layout, batch.samples, self._noise))


def rows_of(layout: Layout, jobs: tuple[Job, ...], noise: np.ndarray) -> FeatureBatch:
    n = len(jobs)
    text = {
        "question_id": tuple(job.question_id for job in jobs),
        "question_text": tuple(job.question for job in jobs),
        "image": tuple(job.image for job in jobs),
        "image_sha256": ("0" * 64,) * n,
        "ground_truth": tuple(job.ground_truth for job in jobs),
        "answer": tuple(f"answer to {job.question_id}" for job in jobs),
        "finish_reason": ("stop",) * n,
        "metadata": tuple(canonical_json(job.metadata) for job in jobs),
        "content_hash": tuple(row_key(job).content_hash for job in jobs),
    }
    integers = {
        name: np.ones((n, *shape), np.int64)
        for name, (_, shape) in layout.integer_columns().items()
    }
    integers["prompt_tokens"] += 9
    integers[GRID_COLUMN] = np.tile(np.array([1, 4, 4], np.int64), (n, 1))
    seeds = np.array([seed_of(job.question_id) for job in jobs])
    vectors = {}
    for name, (_, shape) in layout.vector_columns().items():
        size = int(np.prod(shape))
        values = np.empty((n, size), np.float32)
        for row, seed in enumerate(seeds):
            start = int(seed) % (len(noise) // 2)
            values[row] = noise[start : start + size]
            values[row, 0] = seed % 65521
        vectors[name] = values.reshape(n, *shape)
    return FeatureBatch(layout, text, integers, vectors)


STEPS: dict[str, tuple[type, str]] = {
    "read": (Consumer, "read"),
    "begin": (Consumer, "begin"),
    "extract": (StandIn, "extract"),
    "confirm": (Consumer, "renew"),
    "stage": (LocalStorage, "write"),
    "sync": (LocalStorage, "sync"),
    "publish": (LocalStorage, "publish"),
    "acknowledge": (Consumer, "ack"),
}
"""Where `--at` can strike."""


def strike(step: str, when: str, call: int, number: int) -> None:
    """From now on the `call`-th call of the step sends this process the signal."""
    owner, name = STEPS[step]
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def struck(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        # Of the store's, those that write a segment: not the root, not a partial file.
        is_meant = name not in ("write", "publish") or arguments[0].startswith(SEGMENTS)
        calls += is_meant
        mine = is_meant and calls == call
        if mine and when == "before":
            os.kill(os.getpid(), number)
        answer = original(self, *arguments, **options)
        if mine and when == "after":
            os.kill(os.getpid(), number)
        return answer

    setattr(owner, name, struck)


def disk_as_told(told: Path) -> None:
    """From now on nothing is read from or written to the store while there is that file."""
    for name in ("read", "write", "sync", "publish", "list_names"):
        original = getattr(LocalStorage, name)

        def asked(self: Any, *arguments: Any, original: Any = original) -> Any:
            if told.exists():
                error = OSError(errno.ENOSPC, told.read_text())
                raise StoreUnavailable(self.where, f"use {arguments[0]}", error, "make room")
            return original(self, *arguments)

        setattr(LocalStorage, name, asked)


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--image-root", type=Path, default=Path())
    parser.add_argument("--allow-urls", action="store_true")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--batch-ms", type=float, default=0)
    parser.add_argument("--gate", type=Path, help="a file: how many batches may end so far")
    parser.add_argument("--lease-seconds", type=float, default=60)
    parser.add_argument("--max-job-seconds", type=float, default=1800)
    parser.add_argument("--max-attempts", type=int, default=3)
    parser.add_argument("--retry-ms", type=int, default=2000)
    parser.add_argument("--flush-rows", type=int, default=64)
    parser.add_argument("--flush-seconds", type=float, default=5)
    parser.add_argument("--metrics-port", type=int)
    parser.add_argument("--last-wait", type=float, help="seconds, instead of the worker's")
    parser.add_argument("--disk", type=Path)
    parser.add_argument("--until-empty", action="store_true")
    parser.add_argument("--log-format", help="as of `halp-worker run`; without, for these tests")
    parser.add_argument("--large", action="store_true", help="rows of the 7B model's size")
    parser.add_argument("--at", action="append", default=[], metavar="STEP:WHEN:CALL:SIGNAL")
    return parser.parse_args(arguments)


def run(arguments: Sequence[str]) -> int:
    """One worker, until it is told to stop or (`--until-empty`) has nothing left to do."""
    options = options_of(arguments)
    if options.log_format:
        set_up_logging(options.log_format, options.redis_url)
    else:
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s.%(msecs)03d %(process)d %(levelname)s %(message)s",
            datefmt="%H:%M:%S",
            stream=sys.stderr,
            force=True,
        )
    layout = LARGE if options.large else SMALL
    settings = WorkerSettings(
        store=options.store,
        model=ModelSettings("stand-in"),
        run=options.run,
        redis_url=options.redis_url,
        image_root=options.image_root,
        allow_urls=options.allow_urls,
        batch_size=options.batch_size,
        layers="auto",
        positions=(),
        lease_seconds=options.lease_seconds,
        max_job_seconds=options.max_job_seconds,
        max_attempts=options.max_attempts,
        flush_rows=options.flush_rows,
        flush_seconds=options.flush_seconds,
        until_empty=options.until_empty,
        metrics_port=options.metrics_port,
        metrics_host="127.0.0.1",
        log_format=options.log_format or "text",
    )
    engine = Engine(
        layout=layout,
        provenance={"stand_in": True},
        prepare=partial(
            prepare, images=ImageReader(options.image_root, allow_urls=options.allow_urls)
        ),
        extractor=StandIn(layout, options.batch_ms / 1000, options.gate),
        device="none",
    )
    if options.last_wait:
        assembly.LastWait = partial(LastWait, seconds=options.last_wait)
    if options.disk:
        disk_as_told(options.disk)
    for one in options.at:
        step, when, call, name = one.split(":")
        strike(step, when, int(call), signal.Signals[f"SIG{name}"])
    try:
        tally = serve(
            settings,
            engine,
            _connected(options.redis_url),
            worker_name(),
            retries=RetryPolicy(options.max_attempts, options.retry_ms),
        )
    except DeviceBroken as error:
        print(error, file=sys.stderr)
        return 3
    except (FatalError, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    except redis.RedisError as error:
        print(server.explained(error, options.redis_url), file=sys.stderr)
        return 1
    print(tally, flush=True)
    return 0


def _connected(url: str) -> Any:
    """A server that restarts at this moment is waited for, as a supervisor would."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return server.connect_exact(url)
        except server.ServerError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
