"""What a run says of itself: numbers that add up, workers, dead letters."""

from __future__ import annotations

import json
import time

import pytest
import redis

from halp_producer.activity import WorkerActivity
from halp_producer.enqueue import create_group, enqueue_jobs
from halp_producer.job import Job
from halp_producer.keys import DELAYED, DONE, FAILED, GROUP, RunKeys
from halp_producer.letters import dead_letters
from halp_producer.moves import drop_letters
from halp_producer.status import UnknownRunError, run_status
from halp_producer.wording import sum_text


@pytest.fixture
def keys(run) -> RunKeys:
    return RunKeys(run)


def jobs(count: int) -> list[Job]:
    return [
        Job(question_id=f"q{one}", image="a.jpg", question="What?", ground_truth="x")
        for one in range(count)
    ]


def heartbeat(client, keys: RunKeys, worker: str, ago_s: float, rate: float) -> None:
    now_ms = int(1000 * time.time())
    activity = WorkerActivity(
        worker=worker, host="h", pid=1, device="cpu", model="m", state="working",
        started_ms=now_ms - 60_000, seen_ms=now_ms - int(1000 * ago_s), rows_per_second=rate,
    )  # fmt: skip
    client.hset(keys.workers, worker, activity.model_dump_json())


def finish(client, keys: RunKeys, worker: str, count: int, outcome: str) -> None:
    ((_, entries),) = client.xreadgroup(GROUP, worker, {keys.jobs: ">"}, count=count)
    for entry_id, _ in entries:
        client.xack(keys.jobs, GROUP, entry_id)
        client.xdel(keys.jobs, entry_id)
        client.hincrby(keys.counts, outcome, 1)


def test_the_numbers_add_up(client, keys):
    """enqueued = waiting + delayed + in flight + done + failed, each the right one."""
    create_group(client, keys)
    enqueue_jobs(client, keys, jobs(20))
    finish(client, keys, "w1", 5, DONE)
    finish(client, keys, "w1", 2, FAILED)
    client.xreadgroup(GROUP, "w1", {keys.jobs: ">"}, count=3)
    client.xreadgroup(GROUP, "w2", {keys.jobs: ">"}, count=1)
    found = run_status(client, keys)
    numbers = (found.enqueued, found.waiting, found.in_flight, found.done, found.failed)
    assert numbers == (20, 9, 4, 5, 2)
    assert {one.worker: one.in_flight for one in found.workers} == {"w1": 3, "w2": 1}
    assert not found.finished


def test_failed_jobs_are_counted_by_reason_most_frequent_first(bench):
    """Without reading the letters; a reason of which nothing is left is gone."""
    bench.failed("a", reason="malformed")
    bench.failed("b", "c", reason="image_missing")
    (gone,) = bench.failed("d", reason="conflict")
    drop_letters(bench.client, bench.keys, [gone])
    found = list(run_status(bench.client, bench.keys).failed_by_reason.items())
    assert found == [("image_missing", 2), ("malformed", 1)]


def test_delayed_jobs_are_neither_waiting_nor_in_flight(client, keys):
    """Their consumer is no worker; a run that has only these left is not finished."""
    create_group(client, keys)
    enqueue_jobs(client, keys, jobs(3))
    finish(client, keys, "w1", 1, DONE)
    client.xreadgroup(GROUP, DELAYED, {keys.jobs: ">"}, count=2)
    found = run_status(client, keys)
    numbers = (found.waiting, found.delayed, found.in_flight, found.done)
    assert numbers == (0, 2, 0, 1)
    assert [one.worker for one in found.workers] == ["w1"]
    assert not found.finished
    assert sum_text(found).endswith(
        "3 enqueued = 0 waiting + 2 delayed + 0 in flight + 1 done + 0 failed"
    )


def test_a_run_without_a_group_has_everything_waiting(client, keys):
    """Before the group there is nothing in flight; that is no error."""
    enqueue_jobs(client, keys, jobs(3))
    assert (run_status(client, keys).waiting, run_status(client, keys).in_flight) == (3, 0)


def test_a_full_server_still_says_where_a_run_stands(client, keys):
    """That is when people ask; it refuses transactions then, even those that only read."""
    enqueue_jobs(client, keys, jobs(3))
    client.config_set("maxmemory", 1)
    try:
        assert run_status(client, keys).waiting == 3
    finally:
        client.config_set("maxmemory", 0)


def test_a_key_of_another_kind_is_an_error(client, keys):
    """It is not taken for a run without a group."""
    client.set(keys.jobs, "mine")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        run_status(client, keys)


def test_a_run_is_finished_when_nothing_waits_or_is_in_flight(client, keys):
    """Done and failed together are the end."""
    create_group(client, keys)
    enqueue_jobs(client, keys, jobs(2))
    finish(client, keys, "w1", 1, DONE)
    finish(client, keys, "w1", 1, FAILED)
    assert run_status(client, keys).finished


def test_an_unknown_run_is_an_error_that_names_it(client, keys):
    """A typing error in --run is not an empty run."""
    with pytest.raises(UnknownRunError, match=f"no run '{keys.run}'"):
        run_status(client, keys)


def test_only_workers_seen_lately_are_alive_and_count_for_the_rate(client, keys):
    """A heartbeat older than 30 s is shown with its age but not believed."""
    enqueue_jobs(client, keys, jobs(1))
    heartbeat(client, keys, "alive", 1, 2.5)
    heartbeat(client, keys, "gone", 120, 4.0)
    found = run_status(client, keys)
    alive, gone = found.workers
    assert (alive.worker, alive.alive) == ("alive", True)
    assert (gone.worker, gone.alive) == ("gone", False)
    assert gone.seen_seconds_ago >= 119
    assert found.rows_per_second == 2.5


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"\xff", b'{"worker": 1}'])
def test_a_heartbeat_that_cannot_be_read_does_not_hide_the_run(client, keys, value):
    """A worker of another version is listed by name."""
    enqueue_jobs(client, keys, jobs(1))
    client.hset(keys.workers, "w\xff".encode("latin-1"), value)
    (worker,) = run_status(client, keys).workers
    assert (worker.worker, worker.activity, worker.alive) == ("w\ufffd", None, False)
    json.loads(run_status(client, keys).model_dump_json())


def test_dead_letters_are_listed_oldest_first_and_paged(client, keys):
    """All of them, or the first few."""
    for number in range(600):
        client.xadd(keys.failed, {"question_id": f"q{number}", "reason": "image-missing"})
    letters = list(dead_letters(client, keys))
    assert [one.question_id for one in letters] == [f"q{one}" for one in range(600)]
    assert [one.question_id for one in dead_letters(client, keys, 300)][-1] == "q299"
    assert list(dead_letters(client, RunKeys(keys.run + "-other"))) == []


def test_a_dead_letter_shows_whatever_is_there(client, keys):
    """Broken jobs end up here: missing fields and bytes that are not text are no obstacle."""
    client.xadd(keys.failed, {"question_id": b"q\xff", "failed_ms": "soon", b"\xfe": "x"})
    client.xadd(
        keys.failed,
        {
            **jobs(1)[0].encode(),
            **{"reason": "r", "error": "e", "worker": "w", "failed_ms": "1700000000000"},
            **{"attempts": "3", "traceback": "t"},
        },
    )
    broken, whole = dead_letters(client, keys)
    assert (broken.question_id, broken.reason, broken.failed_ms) == ("q\ufffd", "", None)
    assert (broken.failed_at, broken.attempts, broken.traceback) == (None, None, "")
    assert (whole.attempts, whole.traceback) == (3, "t")
    assert (whole.question_id, whole.image, whole.error) == ("q0", "a.jpg", "e")
    assert f"{whole.failed_at:%Y-%m-%d}" == "2023-11-14"
