"""The loop, with a real server, a real store, and a fast stand-in where the model would be."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_producer.activity import WorkerActivity
from halp_producer.job import canonical_json
from halp_producer.keys import DELAYED, GROUP
from halp_producer.server import connect_exact
from halp_store import FeatureBatch, Layout, StoreWriter, open_store
from halp_store.errors import DamagedSegment, PublishFailed, StoreGone
from halp_store.layout import GRID_COLUMN, TEXT_COLUMNS
from halp_worker.batcher import PATIENCE, PREPARED_BATCHES, Batcher
from halp_worker.consumer import Consumer
from halp_worker.delivery import Delivery, row_key
from halp_worker.extraction import Extraction
from halp_worker.fates import FatalError, Reason, Rejected, Rejection, Retryable, Setback
from halp_worker.heartbeat import Heartbeat
from halp_worker.service import Service

from .conftest import make_job

LAYOUT = Layout(
    layers=(0, 1),
    positions=("vision_token", "query_token"),
    hidden_size=4,
    vision_hidden_size=3,
    source_dtype="float32",
    fingerprint={"model": "stand-in"},
)


def rows_of(jobs):
    """Rows whose numbers say which job they are of."""
    n = len(jobs)
    text = dict.fromkeys(TEXT_COLUMNS, ("",) * n)
    numbers = np.array([int(job.question_id[1:]) for job in jobs])
    return FeatureBatch(
        LAYOUT,
        {
            **text,
            "question_id": tuple(job.question_id for job in jobs),
            "question_text": tuple(job.question for job in jobs),
            "content_hash": tuple(job.content_hash for job in jobs),
            "metadata": tuple(canonical_json(job.metadata) for job in jobs),
        },
        {
            name: np.zeros((n, *shape), np.int64)
            for name, (_, shape) in LAYOUT.integer_columns().items()
            if name != GRID_COLUMN
        }
        | {GRID_COLUMN: np.ones((n, 3), np.int64)},
        {
            name: np.ones((n, *shape), np.float32)
            * numbers.reshape(-1, *[1] * len(shape)).astype(np.float32)
            for name, (_, shape) in LAYOUT.vector_columns().items()
        },
    )


class StandIn:
    """Takes jobs as samples; remembers its batches; `fault` may raise."""

    def __init__(self, fault=None, reject=()):
        self.batches = []
        self.fault = fault
        self.reject = reject

    def extract(self, batch):
        self.batches.append([job.question_id for job in batch.samples])
        if self.fault:
            self.fault(batch)
        good = [job for job in batch.samples if job.question_id not in self.reject]
        bad = tuple(
            (row_key(job), Rejection(Reason.NOT_FINITE, "layer 1 is not finite"))
            for job in batch.samples
            if job.question_id in self.reject
        )
        return Extraction(rows_of(good) if good else None, bad)

    @property
    def extracted(self):
        return [name for batch in self.batches for name in batch]


def prepare(job):
    if "broken" in job.image:
        raise Rejected(Reason.IMAGE_MISSING, f"image not found: {job.image}")
    return job


@pytest.fixture
def work(server, client, keys, tmp_path):
    """`work(extractor)`: runs one worker until the stream is empty; returns its tally."""

    def run_worker(extractor, *, name="w1", batch_size=4, flush_rows=64, lease_ms=60_000):
        writer = StoreWriter.open(
            tmp_path / "s.zarr", LAYOUT, worker=name, provenance={}, flush_rows=flush_rows
        )
        with connect_exact(server.url) as connection, Batcher(prepare, batch_size) as batcher:
            consumer = Consumer(connection, keys, name=name, lease_ms=lease_ms)
            return Service(consumer, batcher, extractor, writer, until_empty=True).run()

    run_worker.store = lambda: open_store(tmp_path / "s.zarr")
    return run_worker


def letters(client, keys):
    return {
        fields[b"question_id"].decode(): fields[b"reason"].decode()
        for _, fields in client.xrange(keys.failed)
    }


def test_every_job_becomes_one_row_and_leaves_the_stream(work, enqueue, client, keys):
    """read -> batch -> extract -> write -> acknowledge, until nothing is left."""
    enqueue(*(make_job(n) for n in range(10)))
    extractor = StandIn()
    tally = work(extractor)
    assert tally.done == 10
    assert client.xlen(keys.jobs) == 0
    store = work.store()
    assert sorted(store) == sorted(f"q{n}" for n in range(10))
    assert all(store[f"q{n}"].arrays["query_token"][0, 0] == n for n in range(10))
    assert [len(batch) for batch in extractor.batches] == [4, 4, 2]


def test_nothing_is_acknowledged_before_it_is_written(work, enqueue, client, keys):
    """At every batch, what is gone from the stream is in the store."""
    enqueue(*(make_job(n) for n in range(12)))

    def check(batch):
        gone = 12 - client.xlen(keys.jobs)
        assert len(work.store()) >= gone

    work(StandIn(check), flush_rows=4)
    assert len(work.store()) == 12


def test_a_second_run_computes_nothing(work, enqueue, client, keys):
    """After a flushed server the same data set comes again: rows that are there are kept."""
    jobs = [make_job(n) for n in range(5)]
    enqueue(*jobs)
    work(StandIn())
    client.delete(keys.jobs, keys.known, keys.counts)
    enqueue(*jobs)
    again = StandIn()
    tally = work(again, name="w2")
    assert again.batches == []
    assert tally.already_stored == 5
    assert client.xlen(keys.jobs) == 0
    assert len(work.store().segments) == 1


def test_an_id_stored_with_other_content_is_rejected_as_a_conflict(work, enqueue, client, keys):
    """Never skipped in silence, never overwritten."""
    enqueue(make_job(1))
    work(StandIn())
    client.delete(keys.jobs, keys.known, keys.counts)
    enqueue(make_job(1, question="Another question?"), make_job(2))
    tally = work(StandIn(), name="w2")
    assert (tally.done, tally.failed) == (1, 1)
    assert letters(client, keys) == {"q1": "conflict"}
    assert work.store()["q1"].question_text == "Question 1?"


def test_a_job_that_cannot_be_prepared_never_takes_its_batch_with_it(work, enqueue, client, keys):
    """Broken ones go to the failed stream, batches are filled up with good ones."""
    enqueue(*(make_job(n, image="broken.png" if n % 3 == 0 else "a.png") for n in range(9)))
    extractor = StandIn()
    tally = work(extractor)
    assert (tally.done, tally.failed) == (6, 3)
    assert letters(client, keys) == dict.fromkeys(["q0", "q3", "q6"], "image_missing")
    assert len(extractor.batches[0]) == 4


def test_a_row_the_extractor_rejects_spares_the_others(work, enqueue, client, keys):
    """NaN in one row of a batch."""
    enqueue(*(make_job(n) for n in range(4)))
    tally = work(StandIn(reject=("q2",)))
    assert (tally.done, tally.failed) == (3, 1)
    assert letters(client, keys) == {"q2": "not_finite"}


def test_a_fatal_error_acknowledges_nothing_of_the_batch(work, enqueue, client, keys):
    """The process stops; another worker finds all of it."""
    enqueue(*(make_job(n) for n in range(6)))

    def fault(batch):
        raise FatalError("layer 3: its hook fired 0 times")

    with pytest.raises(FatalError):
        work(StandIn(fault))
    assert client.xlen(keys.jobs) == 6
    tally = work(StandIn(), name="w2", lease_ms=1)
    assert tally.done == 6
    assert len(work.store()) == 6


@pytest.mark.parametrize(
    "error",
    [
        PublishFailed("/s", 4),
        DamagedSegment("/s", "a", None, "cut short"),
        StoreGone("/s", "another one is there"),
        FatalError("the device is another one"),
        ZeroDivisionError("unforeseen"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_ends_the_loop_is_charged_to_no_job(
    work, enqueue, client, keys, monkeypatch, error
):
    """Given back at once, in hand of nobody, as new; its worker has left the group."""
    enqueue(*(make_job(n) for n in range(9)))

    def fail(self, may_commit=None):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "flush", fail)
        with pytest.raises(type(error)):
            work(StandIn(), flush_rows=4)
    assert client.xlen(keys.jobs) == 9
    assert client.hlen(keys.attempts) == 0
    names = [one["name"] for one in client.xinfo_consumers(keys.jobs, GROUP)]
    assert set(names) <= {DELAYED.encode()}
    assert work(StandIn(), name="w2").done == 9


def test_a_worker_that_dies_between_write_and_acknowledgement_costs_no_second_row(
    work, enqueue, client, keys, monkeypatch
):
    """The redelivered job is found in the store and acknowledged without computing."""
    enqueue(*(make_job(n) for n in range(4)))

    def die(self, receipt):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Consumer, "ack", die)
        with pytest.raises(KeyboardInterrupt):
            work(StandIn())
    assert client.xlen(keys.jobs) == 4
    assert len(work.store()) == 4
    again = StandIn()
    tally = work(again, name="w2", lease_ms=1)
    assert tally.already_stored == 4
    assert again.batches == []
    assert len(work.store().segments) == 1


def test_two_deliveries_of_one_job_make_one_row(work, enqueue, client, keys):
    """Also within one worker, also within one batch."""
    job = make_job(1)
    enqueue(job)
    client.xadd(keys.jobs, job.encode())
    work(StandIn())
    assert client.xlen(keys.jobs) == 0
    store = work.store()
    assert list(store) == ["q1"]


def test_a_stop_commits_what_is_in_hand(server, client, keys, tmp_path, enqueue):
    """`stop` ends the loop after the batch, with its rows stored and acknowledged."""
    enqueue(*(make_job(n) for n in range(20)))
    writer = StoreWriter.open(tmp_path / "s.zarr", LAYOUT, worker="w", provenance={})
    with connect_exact(server.url) as connection, Batcher(prepare, 2) as batcher:
        consumer = Consumer(connection, keys, name="w", lease_ms=60_000)
        extractor = StandIn(lambda batch: service.stop())
        service = Service(consumer, batcher, extractor, writer, until_empty=False)
        tally = service.run()
    assert tally.done == 2
    assert client.xlen(keys.jobs) == 18
    assert len(open_store(tmp_path / "s.zarr")) == 2


def test_without_until_empty_an_idle_worker_waits_for_more(
    server, client, keys, tmp_path, enqueue, wait_until
):
    """And commits what it has by time, not only by number."""
    writer = StoreWriter.open(
        tmp_path / "s.zarr", LAYOUT, worker="w", provenance={}, flush_seconds=0.1
    )
    with connect_exact(server.url) as connection, Batcher(prepare, 2) as batcher:
        consumer = Consumer(connection, keys, name="w", lease_ms=60_000)
        service = Service(consumer, batcher, StandIn(), writer, until_empty=False)
        thread = threading.Thread(target=service.run)
        thread.start()
        for n in range(3):
            enqueue(make_job(n))
            wait_until(lambda n=n: service.tally.done == n + 1)
        service.stop()
        thread.join(timeout=20)
    assert not thread.is_alive()
    assert client.xlen(keys.jobs) == 0


def test_the_heartbeat_renews_and_tells_the_run(client, keys, wait_until):
    """`halp-producer status` reads what it writes; a beat that fails is not the end."""
    renewed = []

    def renew():
        renewed.append(1)
        if len(renewed) == 2:
            raise redis.ConnectionError("gone for a moment")

    def describe(now_ms):
        return WorkerActivity(
            worker="w1",
            host="h",
            pid=1,
            device="cpu",
            model="m",
            state="running",
            started_ms=now_ms,
            seen_ms=now_ms,
            done=len(renewed),
        )

    with Heartbeat(client, keys, renewals=[renew], describe=describe, lease_seconds=0.04):
        wait_until(lambda: len(renewed) >= 4)
    told = WorkerActivity.model_validate_json(client.hget(keys.workers, "w1"))
    assert told.done == len(renewed)


def deliver(*numbers):
    return [Delivery(f"{n}-0", make_job(n)) for n in numbers]


def test_batches_keep_the_order_of_arrival_and_are_prepared_ahead():
    """Slow preparation of one does not let others overtake it."""
    gate = threading.Event()

    def slow_first(job):
        if job.question_id == "q0":
            gate.wait(10)
        return job

    with Batcher(slow_first, 2) as batcher:
        assert batcher.free_slots == 4
        batcher.submit(deliver(0, 1, 2, 3))
        assert batcher.free_slots == 0
        gate.set()
        first, second, third = batcher.take(), batcher.take(), batcher.take()
    assert [job.question_id for job in first.batch.samples] == ["q0", "q1"]
    assert [key.question_id for key in first.batch.keys] == ["q0", "q1"]
    assert [job.question_id for job in second.batch.samples] == ["q2", "q3"]
    assert third.batch is None


def taken_sizes(batcher, sizes, budget):
    """Batches of jobs whose samples have these tokens."""
    batcher.budget = budget
    batcher.submit(deliver(*range(len(sizes))))
    batches = []
    while (taken := batcher.take()).batch is not None:
        batches.append([sizes[int(job.question_id[1:])] for job in taken.batch.samples])
    return batches


@pytest.mark.parametrize(
    ("sizes", "budget", "expected"),
    [
        ([10, 10, 10, 10], None, [[10, 10, 10, 10]]),
        ([10, 10, 10, 10], 30, [[10, 10, 10], [10]]),
        ([10, 10, 25, 10], 50, [[10, 10, 10], [25]]),
        ([10, 90, 10], 30, [[10, 10], [90]]),
        ([5] * 9, 1000, [[5] * 8, [5]]),
    ],
)
def test_a_batch_keeps_to_the_budget(sizes, budget, expected):
    """All in it get as much room as the largest; one that is larger than the budget runs alone."""
    with Batcher(
        lambda job: job, 8, tokens_of=lambda job: sizes[int(job.question_id[1:])]
    ) as batcher:
        assert taken_sizes(batcher, sizes, budget) == expected


def test_what_did_not_fit_bounds_what_comes_by_half_of_its_tokens():
    """Never the other way round: a smaller batch that fails later lowers it further."""
    sizes = [10, 20, 10, 10, 10]
    with Batcher(
        lambda job: job, 8, tokens_of=lambda job: sizes[int(job.question_id[1:])]
    ) as batcher:
        batcher.submit(deliver(0, 1, 2))
        batcher.lower(batcher.take().batch)
        assert batcher.budget == 3 * 20 // 2
        assert taken_sizes(batcher, sizes, batcher.budget) == [[10, 10, 10], [20], [10]]


def test_fewer_jobs_are_at_hand_where_they_are_large():
    """Host memory is bounded by tokens, whatever the batch size: photographs of 16,384 are."""
    with Batcher(lambda job: job, 64, tokens_of=lambda _: 16_384) as batcher:
        assert batcher.free_slots == 32, "the first ones are taken for rather large"
        batcher.submit(deliver(*range(32)))
        batcher.take()
        assert batcher.free_slots == 8
        batcher.submit(deliver(*range(100, 108)))
        assert batcher.free_slots == 0
    with Batcher(lambda job: job, 64, tokens_of=lambda _: 1000) as batcher:
        batcher.submit(deliver(0))
        batcher.take()
        assert batcher.free_slots == 128


def prepared(batcher):
    """Waits for the threads, so that there is something to choose from."""
    while not all(future.done() for _, future in batcher._queue):
        time.sleep(0.001)


def test_jobs_of_about_one_size_go_together_and_those_that_share_stay_together():
    """Images of 100 and 900 tokens in turns, two questions each: no batch has both."""
    sizes = [size for size in (100, 900) * 4 for _ in range(2)]
    with Batcher(
        lambda job: job, 8, size_of=lambda job: sizes[int(job.question_id[1:])]
    ) as batcher:
        batcher.submit(deliver(*range(16)))
        prepared(batcher)
        first, second = batcher.take().batch, batcher.take().batch
    assert {sizes[int(job.question_id[1:])] for job in first.samples} == {100}
    assert {sizes[int(job.question_id[1:])] for job in second.samples} == {900}
    numbers = [int(job.question_id[1:]) for job in first.samples]
    assert numbers == sorted(numbers)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 5))
def test_nobody_waits_for_jobs_of_his_size(sizes, batch_size):
    """The oldest job is in every batch; a job that is ready is passed over twice and by what came
    before it, then it goes; none is lost."""
    with Batcher(
        lambda job: job, batch_size, size_of=lambda job: sizes[int(job.question_id[1:])]
    ) as batcher:
        waiting = list(range(len(sizes)))
        upcoming = deque(waiting)
        passed = dict.fromkeys(waiting, 0)
        ready = []
        while True:
            arriving = [upcoming.popleft() for _ in range(min(batcher.free_slots, len(upcoming)))]
            batcher.submit(deliver(*arriving))
            ready += arriving
            prepared(batcher)
            batch = batcher.take().batch
            if batch is None:
                break
            numbers = [int(job.question_id[1:]) for job in batch.samples]
            assert min(waiting) in numbers
            waiting = [one for one in waiting if one not in numbers]
            ready = [one for one in ready if one not in numbers]
            for one in ready:
                passed[one] += 1
        assert not waiting
        assert max(passed.values()) <= PATIENCE + PREPARED_BATCHES


def test_a_batch_is_written_while_the_next_one_runs(server, client, keys, tmp_path, enqueue):
    """The second batch does not end before the first one's rows are acknowledged."""
    enqueue(*(make_job(n) for n in range(8)))
    seen = []

    def wait_for_the_first(batch):
        deadline = time.monotonic() + 20
        while extractor.batches[1:] and client.xlen(keys.jobs) > 4:
            assert time.monotonic() < deadline, "nothing was acknowledged meanwhile"
            time.sleep(0.01)
        seen.append(client.xlen(keys.jobs))

    extractor = StandIn(wait_for_the_first)
    writer = StoreWriter.open(tmp_path / "s.zarr", LAYOUT, worker="w", provenance={}, flush_rows=4)
    with connect_exact(server.url) as connection, Batcher(prepare, 4) as batcher:
        consumer = Consumer(connection, keys, name="w", lease_ms=60_000)
        tally = Service(consumer, batcher, extractor, writer, until_empty=True).run()
    assert tally.done == 8
    assert seen == [8, 4]


def test_what_preparation_raises_is_that_jobs_fate_alone():
    """Rejected: failed. Retryable or anything unforeseen: tried again, with its traceback."""
    raised = {
        "q0": Rejected(Reason.IMAGE_MISSING, "gone"),
        "q1": Retryable(Reason.URL_FAILED, "timeout"),
        "q2": MemoryError("too much"),
    }

    def prepare(job):
        if job.question_id in raised:
            raise raised[job.question_id]
        return job

    with Batcher(prepare, 2) as batcher:
        batcher.submit(deliver(0, 1, 2, 3))
        taken = batcher.take()
    assert [job.question_id for job in taken.batch.samples] == ["q3"]
    fates = {key.question_id: fate for key, fate in taken.fates}
    assert fates["q0"] == Rejection(Reason.IMAGE_MISSING, "gone")
    assert fates["q1"] == Setback(Reason.URL_FAILED, "timeout")
    assert isinstance(fates["q2"], Setback)
    assert fates["q2"].reason is Reason.PREPARATION_FAILED
    assert "MemoryError: too much" in fates["q2"].traceback


def test_a_fatal_error_in_preparation_stops_the_worker():
    """It is nobody's fault, and nobody else would fare better here."""

    def broken(job):
        raise FatalError("the processor is not what we think")

    with Batcher(broken, 2) as batcher:
        batcher.submit(deliver(1))
        with pytest.raises(FatalError):
            batcher.take()
