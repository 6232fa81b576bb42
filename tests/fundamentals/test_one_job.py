"""One job, from the line of a data set to the acknowledgement, by hand. Read from top to bottom.

Everything here is real but the model: its place is taken by numbers that are easy to recognise.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from halp_producer import Job, RunKeys
from halp_producer.columns import Columns
from halp_producer.dataset import Dataset
from halp_producer.enqueue import Outcome, enqueue_jobs
from halp_producer.server import connect_exact
from halp_producer.status import run_status
from halp_store import FeatureBatch, Layout, Receipt, StoreWriter, open_store
from halp_worker.consumer import Consumer

LINE = {
    "question_id": "q1",
    "image": "kitchen/0001.jpg",
    "question": "Is there a kettle?",
    "ground_truth": "No",
    "room": "kitchen",
}

LAYOUT = Layout(
    layers=(0, 7, 14, 21, 27),
    positions=("vision_token", "query_token"),
    hidden_size=8,
    vision_hidden_size=4,
    source_dtype="bfloat16",
    fingerprint={"model": "none", "prompt": "{question}"},
)


@pytest.fixture
def job(tmp_path) -> Job:
    """1. A line of a data set is a job; what is not a field of it becomes metadata."""
    path = tmp_path / "dataset.jsonl"
    path.write_text(json.dumps(LINE) + "\n")
    (record,) = Dataset(path, Columns(), None).read()
    assert record.job is not None
    assert record.job.metadata == {"room": "kitchen"}
    return record.job


@pytest.fixture
def keys(run) -> RunKeys:
    """2. A run is a name; its keys on the server follow from it."""
    assert RunKeys("pilot").jobs == "halp:{pilot}:jobs"
    return RunKeys(run)


def features_of(job: Job) -> FeatureBatch:
    """What the extractor makes of a batch: one row here, all vectors equal to one."""
    text = {
        "question_id": job.question_id,
        "question_text": job.question,
        "image": job.image,
        "image_sha256": "0" * 64,
        "ground_truth": job.ground_truth,
        "answer": "There is a kettle.",
        "finish_reason": "stop",
        "metadata": json.dumps(job.metadata),
        "content_hash": job.content_hash,
    }
    return FeatureBatch(
        LAYOUT,
        text={name: (value,) for name, value in text.items()},
        integers={
            name: np.ones((1, *shape), np.int64)
            for name, (_, shape) in LAYOUT.integer_columns().items()
        },
        vectors={
            name: np.ones((1, *shape), np.float32)
            for name, (_, shape) in LAYOUT.vector_columns().items()
        },
    )


def test_the_life_of_a_job(job, keys, server, client, tmp_path):
    """enqueue, read, extract, write, acknowledge: and at each step, where the job is."""
    # 3. Enqueueing adds an id once, however often it is sent.
    assert enqueue_jobs(client, keys, [job])[0].outcome is Outcome.ADDED
    assert enqueue_jobs(client, keys, [job])[0].outcome is Outcome.KNOWN
    changed = job.model_copy(update={"question": "Is there a cat?"})
    assert enqueue_jobs(client, keys, [changed])[0].outcome is Outcome.CONFLICT
    assert client.xlen(keys.jobs) == 1

    # 4. A worker is a consumer of the run's group. What it reads is in its hands.
    with connect_exact(server.url) as connection:
        consumer = Consumer(connection, keys, name="worker-1", lease_ms=60_000)
        (delivery,) = consumer.read(slots=8, block_ms=0)
        assert delivery.job == job
        assert (run_status(client, keys).waiting, run_status(client, keys).in_flight) == (0, 1)
        assert consumer.begin([delivery]).started == [delivery]  # counted before work starts

        # 5. The store does not know it yet; the row is buffered, then committed.
        path = tmp_path / "run.zarr"
        writer = StoreWriter.open(path, LAYOUT, worker="worker-1", provenance={})
        assert writer.lookup(delivery.key) == "new"
        writer.append(features_of(delivery.job))
        assert writer.lookup(delivery.key) == "buffered"
        assert len(open_store(path)) == 0
        flush = writer.flush(may_commit=consumer.renew)  # only what is still ours
        assert len(open_store(path)) == 1

        # 6. Only a committed write makes a receipt, and only a receipt acknowledges.
        with pytest.raises(TypeError):
            Receipt(rows=(delivery.key,))
        assert flush.receipt is not None
        assert consumer.ack(flush.receipt) == 1
        status = run_status(client, keys)
        assert (status.in_flight, status.done) == (0, 1)
        assert client.xlen(keys.jobs) == 0

    # 7. From here on anybody reads it, by id or by layer.
    store = open_store(path)
    assert store["q1"].answer == "There is a kettle."
    ids, matrix = store.array("query_token", layer=21)
    assert (ids, matrix.shape) == (("q1",), (1, 8))
