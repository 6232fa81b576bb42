"""`run_account`: where each question of a run is."""

from __future__ import annotations

import pytest
import redis

from halp_producer.account import run_account
from halp_producer.job import Job
from halp_producer.moves import cancel_jobs, retry_letters
from halp_producer.status import UnknownRunError


def test_every_question_is_accounted_for(bench, client, keys):
    """Known with its content, failed with its reason, queued wherever it is; done is the rest."""
    names = ("done", "failed", "held", "later", "waits")
    ids = dict(zip(names, bench.enqueue(*names), strict=True))
    bench.take(4)
    bench.done(ids["done"])
    bench.fail(ids["failed"], "image-broken")
    bench.delay(ids["later"])
    account = run_account(client, keys)
    assert set(account.known) == set(names)
    job = Job(question_id="held", image="a.jpg", question="What?", ground_truth="x")
    assert account.known["held"] == job.content_hash
    assert account.failed == {"failed": "image-broken"}
    assert account.queued == {"held", "later", "waits"}


def test_an_account_of_thousands_is_read_in_pages(bench, client, keys):
    """Nothing is lost between two pages."""
    names = [f"q{number}" for number in range(2500)]
    bench.enqueue(*names)
    cancel_jobs(client, keys, names[:600])
    account = run_account(client, keys)
    assert account.known.keys() == set(names)
    assert account.failed == dict.fromkeys(names[:600], "cancelled")
    assert account.queued == set(names[600:])


def test_an_unknown_run_has_no_account(client, keys):
    """A typing error in --run is not an empty run."""
    with pytest.raises(UnknownRunError):
        run_account(client, keys)


def test_entries_without_an_id_are_left_out(bench, client, keys):
    """A foreign entry is no question; bytes that are no text are no obstacle."""
    bench.enqueue("a")
    client.xadd(keys.jobs, {"what": "ever"})
    client.xadd(keys.failed, {"reason": "malformed"})
    client.xadd(keys.failed, {b"question_id": b"\xff", "reason": "malformed"})
    account = run_account(client, keys)
    assert (account.queued, account.failed) == ({"a"}, {"\ufffd": "malformed"})


@pytest.mark.parametrize("move", ["fails", "is retried"])
def test_a_job_that_moves_meanwhile_is_not_lost(bench, client, keys, monkeypatch, move):
    """Between the reading of the stream and that of the letters, and after the latter."""
    bench.enqueue("a")
    if move == "is retried":
        cancel_jobs(client, keys, ["a"])
    bench.enqueue("b")
    whole = redis.Redis.xrange
    read: list[str] = []

    def xrange(self, name, *arguments, **named):
        if name == keys.failed and not read:
            read.append(name)
            if move == "fails":
                cancel_jobs(client, keys, ["a"])
            else:
                letter = whole(client, keys.failed)[0][0].decode()
                retry_letters(client, keys, [letter])
        return whole(self, name, *arguments, **named)

    monkeypatch.setattr(redis.Redis, "xrange", xrange)
    account = run_account(client, keys)
    assert "a" in account.queued | set(account.failed)
    assert "b" in account.queued
    assert account.known.keys() == {"a", "b"}
