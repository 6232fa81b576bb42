"""A worker that is stopped beyond its lease and then goes on: its late result changes nothing."""

from __future__ import annotations

import signal

import pytest
from stand_in import STEPS

from fleet import make_job

from .test_crash_points import assert_each_once

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", [step for step in STEPS if step != "read"])
def test_a_zombie_changes_nothing(fleet, wait_until, step, when):
    """SIGSTOP at any step, another worker takes the jobs over and finishes, SIGCONT."""
    jobs = [make_job(number) for number in range(4)]
    fleet.enqueue(*jobs)
    zombie = fleet.start(
        "--lease-seconds", "0.3", "--flush-rows", "4", "--at", f"{step}:{when}:1:STOP"
    )
    wait_until(lambda: zombie.is_stopped)
    fleet.finish()
    before = {name: fleet.stored()[name].segment for name in fleet.stored()}
    assert len(before) == len(jobs), fleet.logs()
    zombie.signal(signal.SIGCONT)
    zombie.signal(signal.SIGTERM)
    assert zombie.wait() == 0, fleet.logs()
    after = {name: fleet.stored()[name].segment for name in fleet.stored()}
    assert after == before, fleet.logs()
    assert_each_once(fleet, jobs)
