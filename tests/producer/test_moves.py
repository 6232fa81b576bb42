"""Retry, drop and cancel against real servers: one step each, safe to repeat, sums that hold."""

from __future__ import annotations

import pytest
import redis

from halp_producer.enqueue import Outcome, enqueue_jobs
from halp_producer.job import Job, decode
from halp_producer.keys import DELAYED, GROUP
from halp_producer.letters import dead_letters
from halp_producer.moves import Move, cancel_all, cancel_jobs, drop_letters, retry_letters


def on_the_stream(bench) -> list[str]:
    return [decode(fields).question_id for _, fields in bench.client.xrange(bench.keys.jobs)]


def places(bench) -> dict[str, str]:
    """One job in each place: `done`, `failed`, `held`, `later`, `waits`; name -> entry id."""
    names = ("done", "failed", "held", "later", "waits")
    ids = dict(zip(names, bench.enqueue(*names), strict=True))
    bench.take(4)
    bench.done(ids["done"])
    bench.fail(ids["failed"])
    bench.delay(ids["later"])
    assert bench.numbers() == (5, 1, 1, 1, 1, 1)
    assert bench.problems() == ()
    return ids


def test_a_retried_job_is_a_new_entry_that_equals_the_old(bench, client, keys):
    """At the end of the stream, without a letter's fields, without attempts, known by its id."""
    (letter,) = bench.failed("a")
    before = client.hget(keys.known, "a").decode().split()
    bench.enqueue("b")
    assert retry_letters(client, keys, [letter]) == [Move.MOVED]
    assert on_the_stream(bench) == ["b", "a"]
    entry_id, fields = client.xrange(keys.jobs)[-1]
    assert decode(fields) == Job(question_id="a", image="a.jpg", question="What?", ground_truth="x")
    after = client.hget(keys.known, "a").decode().split()
    assert after == [entry_id.decode(), before[1]]
    assert client.hlen(keys.attempts) == client.xlen(keys.failed) == 0
    assert bench.numbers() == (2, 2, 0, 0, 0, 0)
    assert bench.problems() == ()


@pytest.mark.parametrize("action", [retry_letters, drop_letters])
def test_a_move_of_letters_twice_is_a_move_once(bench, client, keys, action):
    """After a lost reply the same call finds them gone and changes nothing."""
    letters = bench.failed("a", "b", "c")
    assert action(client, keys, letters[:2]) == [Move.MOVED] * 2
    once = bench.snapshot()
    assert action(client, keys, letters[:2]) == [Move.GONE] * 2
    assert bench.snapshot() == once
    assert bench.problems() == ()
    assert [one.question_id for one in dead_letters(client, keys)] == ["c"]


def test_a_letter_twice_in_one_call_moves_once(bench, client, keys):
    """The script sees what it has just done."""
    (letter,) = bench.failed("a")
    assert retry_letters(client, keys, [letter, letter]) == [Move.MOVED, Move.GONE]
    assert on_the_stream(bench) == ["a"]
    assert bench.problems() == ()


def test_a_full_server_refuses_a_retry_without_a_trace(bench, client, keys, full):
    """Not one letter of the call is moved; once there is room, all are."""
    letters = bench.failed("a", "b")
    before = bench.snapshot()
    full()
    with pytest.raises(redis.OutOfMemoryError):
        retry_letters(client, keys, letters)
    assert bench.snapshot() == before
    client.config_set("maxmemory", 0)
    assert retry_letters(client, keys, letters) == [Move.MOVED] * 2
    assert bench.problems() == ()


def test_a_dropped_job_can_be_enqueued_again_with_other_content(bench, client, keys):
    """The run forgets it, as if it had never been enqueued; also on a full server."""
    places(bench)
    (letter,) = [one.entry_id for one in dead_letters(client, keys)]
    assert drop_letters(client, keys, [letter]) == [Move.MOVED]
    assert client.hget(keys.known, "failed") is None
    assert bench.numbers() == (4, 1, 1, 1, 1, 0)
    assert bench.problems() == ()
    other = Job(question_id="failed", image="b.jpg", question="Other?", ground_truth="")
    assert enqueue_jobs(client, keys, [other])[0].outcome is Outcome.ADDED
    assert bench.problems() == ()


def test_a_full_server_drops_and_cancels(bench, client, keys, full):
    """These make room: the server's own limit must not stop them."""
    places(bench)
    full()
    assert cancel_jobs(client, keys, ["held", "later", "waits"]) == [Move.MOVED] * 3
    assert bench.problems() == ()
    letters = [one.entry_id for one in dead_letters(client, keys)]
    assert drop_letters(client, keys, letters) == [Move.MOVED] * 4
    client.config_set("maxmemory", 0)
    assert bench.numbers() == (1, 0, 0, 0, 1, 0)
    assert bench.problems() == ()


def test_dropping_what_was_never_enqueued_mends_the_sum(bench, client, keys):
    """A foreign entry was never counted: only its letter and the count of failed go."""
    foreign = client.xadd(keys.jobs, {"what": "ever"}).decode()
    assert "1 job more" in bench.problems()[0]
    bench.take()
    letter = bench.fail(foreign, "malformed")
    assert "1 job more" in bench.problems()[0]
    assert drop_letters(client, keys, [letter]) == [Move.MOVED]
    assert bench.problems() == ()
    assert bench.numbers() == (0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("first", [0, 1])
def test_two_letters_of_one_question_do_not_corrupt_the_counts(bench, client, keys, first):
    """Whichever is dropped first: the question is forgotten once, the surplus letter is a surplus
    until it goes."""
    (letter,) = bench.failed("a")
    second = bench.surplus_letter(client.xrange(keys.failed)[0][1])
    letters = [letter, second]
    assert len(bench.problems()) == 1
    assert drop_letters(client, keys, [letters[first]]) == [Move.MOVED]
    assert len(bench.problems()) == 1
    assert bench.numbers() == (0, 0, 0, 0, 0, 1)
    assert drop_letters(client, keys, [letters[1 - first]]) == [Move.MOVED]
    assert bench.problems() == ()
    assert bench.numbers() == (0, 0, 0, 0, 0, 0)


def test_a_second_letter_is_not_put_on_the_stream_beside_its_job(bench, client, keys):
    """One job for a question: the surplus letter stays, and dropping it takes no job along."""
    (letter,) = bench.failed("a")
    second = bench.surplus_letter(client.xrange(keys.failed)[0][1])
    assert retry_letters(client, keys, [letter, second]) == [Move.MOVED, Move.ON_THE_STREAM]
    assert on_the_stream(bench) == ["a"]
    assert drop_letters(client, keys, [second]) == [Move.MOVED]
    assert on_the_stream(bench) == ["a"]
    assert client.hexists(keys.known, "a")
    assert bench.problems() == ()


def test_a_letter_without_a_job_cannot_be_retried(bench, client, keys):
    """There is nothing to put on the stream; it stays until it is dropped."""
    letter = bench.surplus_letter({"error": "gone"}, "malformed")
    assert retry_letters(client, keys, [letter]) == [Move.EMPTY]
    assert drop_letters(client, keys, [letter]) == [Move.MOVED]
    assert bench.problems() == ()


@pytest.mark.parametrize("known", ["", "nonsense", "x y z", "1-1"])
def test_a_broken_known_entry_stops_nothing(bench, client, keys, known):
    """What another program wrote there is no reason to leave a script half done."""
    (letter,) = bench.failed("a")
    client.hset(keys.known, "a", known)
    assert cancel_jobs(client, keys, ["a"]) == [Move.GONE]
    assert retry_letters(client, keys, [letter]) == [Move.MOVED]
    assert bench.problems() == ()


def test_an_entry_of_thousands_of_fields_is_moved_too(bench, client, keys):
    """Lua cannot pass on that many; what no job has is cut, and nothing is stuck."""
    client.xadd(keys.jobs, {f"f{number}": "x" for number in range(5000)})
    assert list(cancel_all(client, keys)) == [1]
    ((letter, fields),) = client.xrange(keys.failed)
    assert len(fields) == 1006
    assert retry_letters(client, keys, [letter.decode()]) == [Move.MOVED]


def test_cancel_takes_a_job_from_wherever_it_is(bench, client, keys):
    """Waiting, delayed and in flight alike; its letter says who held it and after how many
    attempts."""
    places(bench)
    names = ["done", "failed", "held", "later", "waits", "nobody"]
    assert cancel_jobs(client, keys, names) == [
        Move.GONE, Move.GONE, Move.MOVED, Move.MOVED, Move.MOVED, Move.UNKNOWN,
    ]  # fmt: skip
    assert bench.numbers() == (5, 0, 0, 0, 1, 4)
    assert bench.problems() == ()
    letters = list(dead_letters(client, keys))[1:]
    assert [(one.question_id, one.worker, one.attempts) for one in letters] == [
        ("held", "w1", 2), ("later", "", 2), ("waits", "", 0),
    ]  # fmt: skip
    assert {one.reason for one in letters} == {"cancelled"}
    assert {one.error for one in letters} == {"cancelled by halp-producer cancel"}
    assert all(one.failed_at for one in letters)
    assert client.zcard(keys.delayed) == client.hlen(keys.attempts) == 0
    assert client.xpending(keys.jobs, GROUP)["pending"] == 0


def test_a_cancel_twice_is_a_cancel_once(bench, client, keys):
    """After a lost reply the same call finds nothing left and changes nothing."""
    places(bench)
    assert cancel_jobs(client, keys, ["held", "later", "waits"]) == [Move.MOVED] * 3
    once = bench.snapshot()
    assert cancel_jobs(client, keys, ["held", "later", "waits"]) == [Move.GONE] * 3
    assert list(cancel_all(client, keys)) == []
    assert bench.snapshot() == once


def test_retry_undoes_a_cancel(bench, client, keys):
    """The job is waiting again, the same as it was, with a fresh set of attempts."""
    places(bench)
    cancel_jobs(client, keys, ["later"])
    letter = list(dead_letters(client, keys))[-1]
    assert retry_letters(client, keys, [letter.entry_id]) == [Move.MOVED]
    assert on_the_stream(bench) == ["held", "waits", "later"]
    assert bench.numbers() == (5, 2, 0, 1, 1, 1)
    assert bench.problems() == ()
    (again,) = bench.take(2)[1:]
    assert client.hget(keys.known, "later").decode().startswith(again)


def test_the_worker_that_holds_a_cancelled_job_finds_its_lease_lost(bench, client, keys):
    """The entry is no longer pending for it, which is what its scripts ask."""
    (entry,) = bench.enqueue("a")
    bench.take()
    cancel_jobs(client, keys, ["a"])
    assert client.xpending_range(keys.jobs, GROUP, entry, entry, 1, "w1") == []


def test_cancel_all_goes_in_chunks_and_takes_everything(bench, client, keys):
    """Foreign entries too; what is done or failed stays so."""
    places(bench)
    client.xadd(keys.jobs, {"what": "ever"})
    bench.enqueue(*(f"q{number}" for number in range(700)))
    chunks = list(cancel_all(client, keys))
    assert (sum(chunks), len(chunks)) == (704, 3)
    assert client.xlen(keys.jobs) == 0
    assert [one for one in bench.problems() if "1 job more" not in one] == []
    assert bench.numbers() == (705, 0, 0, 0, 1, 705)


def test_cancel_all_works_without_a_group_and_without_a_stream(client, keys):
    """A run that no worker ever saw, and one that is not there."""
    assert list(cancel_all(client, keys)) == []
    enqueue_jobs(client, keys, [Job(question_id="a", image="a", question="?", ground_truth="")])
    assert list(cancel_all(client, keys)) == [1]


def test_cancel_all_leaves_what_comes_meanwhile(bench, client, keys):
    """It ends, however busy producers are."""
    bench.enqueue(*(f"q{number}" for number in range(300)))
    chunks = cancel_all(client, keys)
    first = next(chunks)
    bench.enqueue("late")
    assert first + sum(chunks) == 300
    assert on_the_stream(bench) == ["late"]
    assert bench.problems() == ()


def test_an_entry_that_is_another_questions_is_left_alone(bench, client, keys):
    """Where the known ids are wrong, the entry's own id decides."""
    a, _ = bench.enqueue("a", "b")
    client.hset(keys.known, "b", f"{a} x")
    assert cancel_jobs(client, keys, ["b"]) == [Move.GONE]
    assert on_the_stream(bench) == ["a", "b"]


def test_no_ids_are_no_call(keys):
    """An empty chunk does not need the server."""
    nowhere = redis.Redis(port=1)
    for action in (retry_letters, drop_letters, cancel_jobs):
        assert action(nowhere, keys, []) == []


def test_no_worker_can_be_named_like_the_delayed_ones(bench, client, keys):
    """The consumer of delayed jobs is shown as nobody's hands in letters."""
    bench.enqueue("a")
    (entry,) = bench.take()
    bench.delay(entry)
    cancel_jobs(client, keys, ["a"])
    (letter,) = dead_letters(client, keys)
    assert DELAYED not in letter.model_dump_json()
