"""The heartbeat: renews, tells the run, and forgets workers that are gone and hold nothing."""

from __future__ import annotations

import json
import time

import pytest
import redis

from halp_producer.activity import WorkerActivity, read_activity
from halp_producer.keys import DELAYED, GROUP
from halp_producer.server import connect_exact
from halp_producer.status import run_status, server_ms
from halp_worker.consumer import Consumer
from halp_worker.health import check_health
from halp_worker.heartbeat import Heartbeat

from .conftest import make_job


def activity(name, now_ms, **changes):
    return WorkerActivity(
        **{
            **{"worker": name, "host": "h", "pid": 1, "device": "cpu", "model": "m"},
            **{"state": "running", "started_ms": now_ms, "seen_ms": now_ms},
            **changes,
        }
    )


@pytest.fixture
def beat(client, keys):
    """`beat(name, forget_after_seconds)`: one heartbeat of that worker."""

    def once(name="w1", forget_after_seconds=600.0, renewals=()):
        with Heartbeat(
            client,
            keys,
            renewals=renewals,
            describe=lambda now_ms: activity(name, now_ms),
            lease_seconds=60,
            forget_after_seconds=forget_after_seconds,
        ):
            pass

    return once


@pytest.fixture
def member(server, keys):
    with connect_exact(server.url) as connection:
        yield lambda name: Consumer(connection, keys, name=name, lease_ms=60_000)


def consumers(client, keys):
    return {one["name"].decode() for one in client.xinfo_consumers(keys.jobs, GROUP)}


def long_ago(client, keys, name):
    """As if that worker had not been seen for an hour."""
    past = activity(name, int(time.time() * 1000) - 3_600_000)
    client.hset(keys.workers, name, past.model_dump_json())


def test_a_worker_that_is_gone_and_holds_nothing_is_forgotten(beat, member, enqueue, client, keys):
    """Its consumer and its last words leave the run's lists, in one script."""
    enqueue(make_job(1))
    member("w1").read(1, 0)
    client.xgroup_createconsumer(keys.jobs, GROUP, "gone")
    long_ago(client, keys, "gone")
    assert consumers(client, keys) == {"w1", "gone"}
    beat("w1")
    assert consumers(client, keys) == {"w1"}
    assert client.hkeys(keys.workers) == [b"w1"]


def test_a_worker_that_holds_a_job_is_never_removed(beat, member, enqueue, client, keys):
    """Removing it would drop what it holds for good."""
    enqueue(make_job(1))
    member("gone").read(1, 0)
    long_ago(client, keys, "gone")
    beat("w1")
    assert consumers(client, keys) == {"gone"}
    assert client.xpending(keys.jobs, GROUP)["pending"] == 1
    assert client.hexists(keys.workers, "gone")


def test_one_that_was_seen_lately_stays(beat, member, client, keys):
    """An idle worker holds nothing either."""
    member("w1").read(1, 0)  # makes the group
    client.xgroup_createconsumer(keys.jobs, GROUP, "idle")
    client.hset(keys.workers, "idle", activity("idle", int(time.time() * 1000)).model_dump_json())
    beat("w1")
    assert "idle" in consumers(client, keys)


def test_the_holder_of_delayed_jobs_is_no_worker(beat, member, enqueue, client, keys):
    """It never beats and may hold nothing, and stays."""
    enqueue(make_job(1))
    one = member("w1")
    (delivery,) = one.read(1, 0)
    one.release([delivery.key])
    one.read(1, 0)
    assert DELAYED in consumers(client, keys)
    beat("w1", forget_after_seconds=0)
    assert DELAYED in consumers(client, keys)


@pytest.mark.parametrize("words", ["not json", "null", "[]", json.dumps({"seen_ms": "x"}), "{}"])
def test_last_words_that_cannot_be_read_are_no_obstacle(beat, client, keys, words):
    """Whatever somebody wrote there: it is forgotten, and the heartbeat goes on."""
    client.hset(keys.workers, "strange", words)
    beat("w1")
    assert client.hkeys(keys.workers) == [b"w1"]


@pytest.mark.parametrize("off_s", [86_400, -86_400, 0])
def test_a_worker_is_judged_by_the_clock_of_the_server(client, keys, monkeypatch, off_s):
    """Its own may be a day off: it is alive, it has just polled, and it stays on the list."""
    now_s = time.time
    monkeypatch.setattr(time, "time", lambda: now_s() + off_s)
    with Heartbeat(
        client,
        keys,
        renewals=(),
        describe=lambda now_ms: activity(
            "w1", now_ms, started_ms=now_ms - 60_000, polled_ms=now_ms - 5_000
        ),
        lease_seconds=60,
    ):
        pass
    monkeypatch.undo()
    (worker,) = run_status(client, keys).workers
    assert worker.alive
    assert worker.seen_seconds_ago < 5
    assert abs(worker.activity.seen_ms - server_ms(client, keys)) < 5_000
    assert worker.activity.seen_ms - worker.activity.started_ms == 60_000
    report = check_health(
        client, keys, host="h", max_age_seconds=60, now_ms=server_ms(client, keys)
    )
    assert report.ok, report.sentence


@pytest.mark.parametrize("off_s", [86_400, -86_400])
def test_a_dead_worker_of_an_older_version_is_not_alive_by_its_own_clock(beat, client, keys, off_s):
    """A time that the server's clock has not reached is none, and is forgotten as others are."""
    seen_ms = int(1000 * (time.time() + off_s))
    client.hset(keys.workers, "old", activity("old", seen_ms).model_dump_json())
    (worker,) = run_status(client, keys).workers
    assert not worker.alive
    assert worker.activity is not None
    assert worker.seen_seconds_ago is None or worker.seen_seconds_ago > 80_000
    beat("w1")
    assert client.hkeys(keys.workers) == [b"w1"]


def test_what_a_worker_says_of_itself_arrives_as_it_was_said(client, keys):
    """The script writes it down with other times, and nothing else changed."""
    said = activity(
        "w1", 1_800_000_000_000, store="s3://b/ü \\ \"x\"/🙂.zarr", rows_per_second=0.125,
        memory_bytes=150_000_000_000, done=12_345_678, batch_jobs=64,
    )  # fmt: skip
    with Heartbeat(client, keys, renewals=(), describe=lambda _: said, lease_seconds=60):
        pass
    heard = read_activity(client.hget(keys.workers, "w1"))
    times = {"seen_ms": 0, "started_ms": 0, "polled_ms": 0}
    assert heard.model_copy(update=times) == said.model_copy(update=times)
    assert heard.polled_ms == 0


def test_a_full_server_still_hears_it(beat, client, keys):
    """Else `status` would call every worker gone just when it matters."""
    client.config_set("maxmemory", 1)
    try:
        beat("w1")
    finally:
        client.config_set("maxmemory", 0)
    assert client.hexists(keys.workers, "w1")


def test_a_renewal_that_fails_keeps_no_other_from_its_turn(beat, client, keys):
    """Each on its own: the lease of a job, and the words for `status`."""
    renewed = []

    def broken():
        raise redis.ConnectionError("gone for a moment")

    beat("w1", renewals=[broken, lambda: renewed.append(1)])
    assert renewed
    assert client.hexists(keys.workers, "w1")
