"""Leaving in order, leaving at once, and coming back to a server that forgot everything."""

from __future__ import annotations

import signal

import pytest

from fleet import make_job
from halp_producer.keys import DELAYED, GROUP

from .test_crash_points import assert_each_once

pytestmark = pytest.mark.slow


def consumers(fleet):
    return {
        one["name"].decode(): one["pending"]
        for one in fleet.client.xinfo_consumers(fleet.keys.jobs, GROUP)
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_commits_the_batch_in_hand_and_gives_the_rest_back_at_once(
    fleet, wait_until, gate, number
):
    """Another worker gets what was only fetched while the long batch still runs, and no attempt
    is counted; the batch in hand is stored and acknowledged; the group is left."""
    jobs = [make_job(n) for n in range(12)]
    fleet.enqueue(*jobs)
    leaving = fleet.start(*gate.options, "--batch-size", "4")
    wait_until(lambda: fleet.status().in_flight == 12)
    wait_until(lambda: "extracting 4" in leaving.log.read_text())
    leaving.signal(number)
    other = fleet.start("--batch-size", "2", "--until-empty")
    wait_until(lambda: fleet.status().done == 8)
    assert leaving.is_alive, "its own batch still runs"
    gate.open()
    assert leaving.wait() == 0, fleet.logs()
    assert other.wait() == 0, fleet.logs()
    assert_each_once(fleet, jobs)
    assert "done=4" in leaving.log.read_text()
    assert set(consumers(fleet)) <= {DELAYED}, "both have left the group"
    assert fleet.client.hlen(fleet.keys.attempts) == 0


def test_a_second_signal_stops_at_once_and_loses_nothing(fleet, wait_until, gate):
    """The process is gone although its batch never ends; an heir does the work."""
    jobs = [make_job(n) for n in range(4)]
    fleet.enqueue(*jobs)
    hasty = fleet.start(*gate.options)
    wait_until(lambda: "extracting" in hasty.log.read_text())
    hasty.signal(signal.SIGTERM)
    wait_until(lambda: "finishing the batch" in hasty.log.read_text())
    hasty.signal(signal.SIGTERM)
    assert hasty.wait() == 128 + signal.SIGTERM
    fleet.finish()
    assert_each_once(fleet, jobs)


def test_an_idle_worker_leaves_when_it_is_told(fleet, wait_until):
    """Nothing in hand, nothing to wait for."""
    idle = fleet.start()
    wait_until(lambda: fleet.client.exists(fleet.keys.jobs, fleet.keys.workers) == 2)
    idle.signal(signal.SIGTERM)
    assert idle.wait() == 0
    assert consumers(fleet) == {}


def test_after_flushall_the_same_data_set_completes_and_nothing_stored_is_computed_again(
    fleet, wait_until
):
    """Two workers are at it, one idle with an old index; the server forgets; the producer sends
    everything again: each id is stored once, and no stored row was computed a second time."""
    jobs = [make_job(n) for n in range(40)]
    fleet.enqueue(*jobs[:20])
    first = fleet.start("--flush-rows", "4", "--flush-seconds", "0.2")
    second = fleet.start("--flush-rows", "4", "--flush-seconds", "0.2")
    wait_until(lambda: fleet.status().done == 20)
    fleet.client.flushall()
    fleet.enqueue(*jobs)
    wait_until(lambda: fleet.status().done == 40)
    for worker in (first, second):
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, fleet.logs()
    assert_each_once(fleet, jobs)
    extracted = [
        name
        for line in fleet.logs().splitlines()
        if "extracting" in line
        for name in line.partition(": ")[2].split()
    ]
    assert sorted(extracted) == sorted(job.question_id for job in jobs)


def test_a_job_held_too_long_is_taken_over_although_its_worker_lives(fleet, wait_until, gate):
    """A hung extractor renews its leases for ever but for --max-job-seconds."""
    jobs = [make_job(n) for n in range(2)]
    fleet.enqueue(*jobs)
    hung = fleet.start(*gate.options, "--lease-seconds", "0.4", "--max-job-seconds", "1")
    wait_until(lambda: "extracting" in hung.log.read_text())
    fleet.finish("--lease-seconds", "0.4")
    assert hung.is_alive
    assert "no longer renewed" in hung.log.read_text()
    assert_each_once(fleet, jobs)
