"""Jobs that harm their worker or their batch end with a reason, their neighbours in the store."""

from __future__ import annotations

import signal

import pytest

from fleet import make_job

pytestmark = pytest.mark.slow

JOBS = 10


def enqueue_with(fleet, poison, at=3):
    jobs = [make_job(number, poison if number == at else None) for number in range(JOBS)]
    fleet.enqueue(*jobs)
    return sorted(job.question_id for job in jobs if job.question != poison)


def work_until_empty(fleet, *options):
    """Workers one after the other, as a supervisor would start them; how many were killed."""
    for killed in range(20):
        worker = fleet.start("--until-empty", "--lease-seconds", "0.3", *options)
        code = worker.wait()
        if code == 0:
            return killed
        assert code == -signal.SIGKILL, fleet.logs()
    raise AssertionError(fleet.logs())


def assert_books_balance(fleet, done, failed):
    status = fleet.status()
    assert (status.done, status.failed) == (done, failed), fleet.logs()
    assert (status.waiting, status.delayed, status.in_flight) == (0, 0, 0)


@pytest.mark.parametrize("poison", ["POISON kill", "POISON prepare"])
def test_a_job_that_kills_its_worker_takes_nobody_along(fleet, poison):
    """Attempts count when work starts; what comes back from the dead runs alone; the third death
    is the last, and every neighbour is stored although each was in the same hands."""
    others = enqueue_with(fleet, poison)
    assert work_until_empty(fleet) == 3
    assert sorted(fleet.stored()) == others, fleet.logs()
    letter = fleet.letters()["q3"]
    assert letter["reason"] == "worker_died"
    assert letter["attempts"] == "3"
    assert "3 times" in letter["error"]
    assert_books_balance(fleet, JOBS - 1, 1)


def test_two_poison_jobs_do_not_add_up_on_their_neighbours(fleet):
    """Six deaths in all, and each innocent job was in at most one of them."""
    jobs = [make_job(n, "POISON kill" if n in (2, 7) else None) for n in range(JOBS)]
    fleet.enqueue(*jobs)
    assert work_until_empty(fleet, "--batch-size", "8") in (5, 6)
    assert len(fleet.stored()) == JOBS - 2, fleet.logs()
    assert {name: one["reason"] for name, one in fleet.letters().items()} == dict.fromkeys(
        ["q2", "q7"], "worker_died"
    )
    assert_books_balance(fleet, JOBS - 2, 2)


def test_the_guilty_job_of_a_batch_is_found_by_bisection(fleet):
    """Its neighbours are finished at once; it is tried again, and fails with its traceback."""
    others = enqueue_with(fleet, "POISON raise")
    assert work_until_empty(fleet, "--batch-size", "8", "--retry-ms", "50") == 0
    assert sorted(fleet.stored()) == others, fleet.logs()
    letter = fleet.letters()["q3"]
    assert letter["reason"] == "extraction_failed"
    assert letter["attempts"] == "3"
    assert letter["error"] == "RuntimeError: this job cannot be extracted"
    assert "in extract" in letter["traceback"]
    assert letter["worker"]
    assert_books_balance(fleet, JOBS - 1, 1)


def test_a_batch_that_does_not_fit_is_halved_not_failed(fleet):
    """And no later batch is that large."""
    jobs = [make_job(n, "POISON large" if n == 0 else None) for n in range(40)]
    fleet.enqueue(*jobs)
    assert work_until_empty(fleet, "--batch-size", "8") == 0
    assert len(fleet.stored()) == 40
    assert fleet.letters() == {}
    log = fleet.logs()
    assert log.count("8 jobs did not fit the device's memory") == 1
    assert_books_balance(fleet, 40, 0)


def test_a_retryable_job_waits_without_holding_up_others(fleet, wait_until):
    """They are stored while it waits, however long that is."""
    others = enqueue_with(fleet, "POISON retry", at=0)
    fleet.start("--batch-size", "2", "--retry-ms", "600000", "--flush-seconds", "0.2")
    wait_until(lambda: fleet.status().done == len(others))
    assert fleet.status().delayed == 1
    assert sorted(fleet.stored()) == others


def test_a_retryable_job_fails_in_the_end_with_its_last_error(fleet):
    """It comes back each time, until it was tried as often as it may be."""
    others = enqueue_with(fleet, "POISON retry", at=0)
    assert work_until_empty(fleet, "--batch-size", "2", "--retry-ms", "50") == 0
    assert sorted(fleet.stored()) == others
    letter = fleet.letters()["q0"]
    assert (letter["reason"], letter["attempts"]) == ("url_failed", "3")
    assert "does not answer" in letter["error"]
    assert_books_balance(fleet, JOBS - 1, 1)


def test_an_ordinary_rejection_costs_one_attempt(fleet):
    """What can never succeed is not tried again."""
    others = enqueue_with(fleet, "POISON reject")
    assert work_until_empty(fleet) == 0
    assert sorted(fleet.stored()) == others
    assert fleet.letters()["q3"]["attempts"] == "1"
