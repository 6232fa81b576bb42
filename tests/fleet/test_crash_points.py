"""A worker that is killed before or after any step: every id ends in the store, once."""

from __future__ import annotations

import signal

import pytest
from stand_in import STEPS, expected_value

from fleet import make_job

pytestmark = pytest.mark.slow

JOBS = 12


def assert_each_once(fleet, jobs):
    """Every id in exactly one row, with its own numbers; the books balance; nothing is left."""
    store = fleet.stored()
    assert sorted(store) == sorted(job.question_id for job in jobs), fleet.logs()
    for job in jobs:
        assert store[job.question_id].arrays["vision_only"][0] == expected_value(job.question_id)
    try:
        from halp_store.verify import verify_store
    except ImportError:
        return
    found = verify_store(
        fleet.store_path, expected={job.question_id: job.content_hash for job in jobs}
    )
    assert found.ok, (found.problems, fleet.logs())
    status = fleet.status()
    assert (status.done, status.failed) == (len(jobs), 0), fleet.logs()
    assert (status.waiting, status.delayed, status.in_flight) == (0, 0, 0)


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_loses_and_doubles_nothing(fleet, step, when, call):
    """read, begin, extract, confirm, stage, sync, publish, acknowledge: SIGKILL, then an heir."""
    jobs = [make_job(number) for number in range(JOBS)]
    fleet.enqueue(*jobs)
    doomed = fleet.start("--until-empty", "--flush-rows", "4", "--at", f"{step}:{when}:{call}:KILL")
    assert doomed.wait() == -signal.SIGKILL, fleet.logs()
    fleet.finish()
    assert_each_once(fleet, jobs)


def test_kills_one_after_the_other_lose_nothing(fleet):
    """Each heir is killed at another step; the last one finishes. Deaths count as attempts, so
    more of them are allowed here than steps."""
    jobs = [make_job(number) for number in range(JOBS)]
    fleet.enqueue(*jobs)
    for step in STEPS:
        fleet.start(
            *("--until-empty", "--lease-seconds", "0.3", "--flush-rows", "4"),
            *("--max-attempts", "20", "--at", f"{step}:after:2:KILL"),
        ).wait()
    fleet.finish("--max-attempts", "20")
    assert_each_once(fleet, jobs)
