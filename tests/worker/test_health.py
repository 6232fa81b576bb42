"""Whether a container is healthy, judged by its workers' last poll."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from halp_producer.activity import WorkerActivity
from halp_worker.health import check_health, health

NOW_MS = 1_800_000_000_000


@pytest.fixture
def beat(client, keys):
    """`beat(worker, polled_s_ago=...)`: a heartbeat in this test's run."""

    def write(worker="w", *, polled_s_ago=None, now_ms=NOW_MS, **changes):
        fields = {
            "worker": worker,
            "host": "here",
            "pid": 1,
            "device": "cpu",
            "model": "m",
            "state": "running",
            "started_ms": now_ms - 90_000,
            "seen_ms": now_ms - 1_000,
            "polled_ms": 0 if polled_s_ago is None else now_ms - int(polled_s_ago * 1000),
        }
        activity = WorkerActivity(**{**fields, **changes})
        client.hset(keys.workers, worker, activity.model_dump_json())

    return write


@pytest.fixture
def check(client, keys):
    return lambda: check_health(client, keys, host="here", max_age_seconds=60, now_ms=NOW_MS)


def test_a_worker_that_polled_lately_is_healthy(beat, check):
    """The sentence names it and the time."""
    beat(polled_s_ago=3)
    report = check()
    assert report.ok
    assert report.sentence == "worker w last asked for work 3.0 s ago"


def test_a_loop_that_hangs_is_unhealthy_though_its_heart_beats(beat, check):
    """The heartbeat is a thread of its own: it says nothing of the loop."""
    beat(polled_s_ago=61)
    report = check()
    assert not report.ok
    assert "last asked for work 61.0 s ago, 60 s are allowed" in report.sentence
    assert "heartbeat 1.0 s ago" in report.sentence
    assert "restart it" in report.sentence


def test_one_worker_that_works_is_enough(beat, check):
    """Whoever else of the host hangs or has left."""
    beat("hangs", polled_s_ago=600)
    beat("left", polled_s_ago=1, state="stopped")
    beat("works", polled_s_ago=2)
    assert check().ok


def test_a_worker_that_left_is_not_healthy(beat, check):
    """However lately it polled."""
    beat(polled_s_ago=1, state="stopped")
    report = check()
    assert not report.ok
    assert "worker w stopped 1.0 s ago" in report.sentence


def test_a_worker_that_still_loads_is_not_healthy_yet(beat, check):
    """It says so, and for how long."""
    beat(state="starting")
    report = check()
    assert not report.ok
    assert "started 90.0 s ago and has not asked for work yet (it is starting)" in report.sentence


def test_a_worker_that_waits_for_its_store_is_healthy_while_it_tries(beat, check):
    """To restart it would lose the rows that it keeps."""
    beat(polled_s_ago=4, state="store unavailable", store="/data/s.zarr")
    report = check()
    assert report.ok
    assert "keeps its rows until it can write to /data/s.zarr" in report.sentence
    beat(polled_s_ago=100, state="store unavailable")
    assert not check().ok


def test_workers_of_other_hosts_do_not_count(beat, check):
    """A container speaks for itself."""
    beat("far", polled_s_ago=1, host="there")
    report = check()
    assert not report.ok
    assert "no worker of host here is known (1 elsewhere)" in report.sentence


def test_a_heartbeat_that_cannot_be_read_is_passed_over(client, keys, beat, check):
    """A newer version's, or a damaged one."""
    client.hset(keys.workers, "odd", "{")
    client.hset(keys.workers, "old", '{"worker": "old"}')
    beat(polled_s_ago=1)
    assert check().ok


def test_the_command_asks_the_server_for_this_host(server, keys, beat):
    """By the name the machine has, and by its clock."""
    beat(polled_s_ago=0, now_ms=int(time.time() * 1000), host=socket.gethostname())
    assert health(keys.run, server.url, 60).ok
    assert not health(keys.run, server.url, 60, host="elsewhere").ok


def test_a_server_that_is_away_is_a_sentence_without_the_password():
    """The check fails, it does not crash."""
    report = health("r", "redis://:secret@127.0.0.1:9/0", 60)
    assert not report.ok
    assert "no server at redis://:***@127.0.0.1:9/0" in report.sentence


def test_the_check_loads_nothing_heavy():
    """It runs every few seconds, beside the worker."""
    code = "import sys, halp_worker.health; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"torch", "numpy", "zarr", "transformers", "prometheus_client"} & set(loaded)
