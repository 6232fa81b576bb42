"""Rows that are deleted, and whose questions are enqueued again: computed again, and no others."""

from __future__ import annotations

import signal

import pytest

from fleet import make_job
from halp_producer import RunKeys
from halp_producer.enqueue import Outcome, enqueue_jobs
from halp_producer.status import run_status
from halp_store import verify_store
from halp_store.delete import delete_rows
from halp_store.local import LocalStorage

from .test_crash_points import assert_each_once

pytestmark = pytest.mark.slow

GONE = ("q3", "q5", "q8")


@pytest.mark.parametrize("is_running", [True, False])
def test_exactly_what_was_deleted_is_computed_again(fleet, wait_until, is_running):
    """Under a new run, also by a worker that had seen the rows before they were deleted; the run
    that knows the questions does nothing."""
    jobs = [make_job(n) for n in range(12)]
    fleet.enqueue(*jobs)
    fleet.finish()
    again = RunKeys(f"{fleet.keys.run}-again")
    if is_running:
        worker = fleet.start("--run", again.run)
        # It knows the server and the rows from now on, and waits for jobs.
        enqueue_jobs(fleet.client, again, jobs[:1])
        wait_until(lambda: run_status(fleet.client, again).done == 1)
    delete_rows(LocalStorage(fleet.store_path), GONE)
    before = set(fleet.stored())
    assert before == {job.question_id for job in jobs} - set(GONE)
    known = enqueue_jobs(fleet.client, fleet.keys, jobs)
    assert {one.outcome for one in known} == {Outcome.KNOWN}
    enqueue_jobs(fleet.client, again, jobs)
    if not is_running:
        worker = fleet.start("--run", again.run, "--until-empty")
    wait_until(lambda: run_status(fleet.client, again).done == len(jobs))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0, fleet.logs()
    assert "done=3" in worker.log.read_text()
    assert_each_once(fleet, jobs)
    expected = {job.question_id: job.content_hash for job in jobs}
    found = verify_store(fleet.store_path, expected=expected)
    assert (found.problems, found.deleted, found.counts.stored) == ((), 3, 12)
