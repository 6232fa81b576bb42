"""The results stream as other programs read it."""

from __future__ import annotations

import threading

import pytest

from halp_producer.moves import CANCELLED, CANCELLED_ERROR, cancel_all, cancel_jobs, drop_letters
from halp_producer.results import (
    BEFORE_ALL,
    MAX_ANSWER_BYTES,
    MAX_WORD_BYTES,
    Fate,
    Result,
    bounded,
    last_result,
    read_results,
    stored_message,
)


def say(client, keys, *names: str) -> None:
    for name in names:
        fields = stored_message(name, f"Answer {name}", "seg", 7)
        client.xadd(keys.results, dict(zip(fields[::2], fields[1::2], strict=True)))


def test_messages_are_read_once_each_from_wherever_one_was(client, keys):
    """`last` of one read is `after` of the next; nothing new is an empty page."""
    say(client, keys, "a", "b")
    first = read_results(client, keys)
    assert [one.question_id for one in first.results] == ["a", "b"]
    assert first.results[0] == Result(
        question_id="a", fate=Fate.STORED, answer="Answer a", segment="seg", row=7
    )
    assert read_results(client, keys, first.last) == ([], first.last)
    say(client, keys, "c")
    assert [one.question_id for one in read_results(client, keys, first.last).results] == ["c"]


def test_from_now_on_is_a_place_to_start(client, keys):
    """Also before the first message."""
    assert last_result(client, keys) == BEFORE_ALL
    say(client, keys, "a")
    now = last_result(client, keys)
    say(client, keys, "b")
    assert [one.question_id for one in read_results(client, keys, now).results] == ["b"]


def test_a_read_waits_for_the_next_message(client, keys):
    """It comes at once when it is written."""
    timer = threading.Timer(0.05, say, [client, keys, "a"])
    timer.start()
    found = read_results(client, keys, block_ms=10_000)
    timer.join()
    assert [one.question_id for one in found.results] == ["a"]


def test_what_is_no_message_is_passed_over(client, keys):
    """Another program's entry stops nobody, and is not read again."""
    client.xadd(keys.results, {"what": "ever"})
    last = client.xadd(keys.results, {"question_id": b"\xff", "fate": "done"}).decode()
    assert read_results(client, keys) == ([], last)
    client.xadd(keys.results, {"question_id": b"q\xff", "fate": "stored", "row": "many"})
    assert read_results(client, keys).results == [Result(question_id="q\ufffd", fate=Fate.STORED)]


def test_a_risk_comes_as_it_was_stored_and_a_finish_reason_too(client, keys):
    """The same float32; without a probe there is none."""
    risk = 0.9300000071525574
    for name, known in (("a", {"finish_reason": "abstained", "risk": risk}), ("b", {})):
        fields = stored_message(name, "", "seg", 7, **known)
        client.xadd(keys.results, dict(zip(fields[::2], fields[1::2], strict=True)))
    first, second = read_results(client, keys).results
    assert (first.finish_reason, first.risk) == ("abstained", pytest.approx(risk, abs=1e-9))
    assert (second.finish_reason, second.risk) == (None, None)


@pytest.mark.parametrize("words", ["nan", "inf", "-0.1", "1.5", "much", "", b"\xff", "0" * 5000])
def test_a_risk_that_is_none_stops_nobody(client, keys, words):
    """Another program wrote it: the rest of the message is as good as ever."""
    client.xadd(keys.results, {"question_id": "a", "fate": "stored", "risk": words, "answer": "No"})
    (found,) = read_results(client, keys).results
    assert (found.question_id, found.answer) == ("a", "No")
    assert found.risk in {None, 0.0}


def test_a_finish_reason_has_its_bound():
    """Whatever a store holds that others wrote."""
    fields = stored_message("a", None, "seg", 7, finish_reason="é" * 1000)
    assert len(fields[fields.index("finish_reason") + 1]) <= MAX_WORD_BYTES


def test_a_message_holds_no_more_than_its_share_of_an_answer():
    """Cut between characters, and said so."""
    assert bounded("Yes.") == b"Yes."
    assert bounded("a" * MAX_ANSWER_BYTES) == b"a" * MAX_ANSWER_BYTES
    cut = bounded("aé" * MAX_ANSWER_BYTES)
    assert len(cut) <= MAX_ANSWER_BYTES
    assert cut.decode().endswith(("a...", "é..."))


def test_a_cancelled_job_has_its_message_too(bench, client, keys):
    """One each, in the same step; what was not cancelled has none, nor has what is dropped."""
    bench.enqueue("a", "b", "c")
    bench.done(bench.take()[0])
    cancel_jobs(client, keys, ["a", "b", "nobody"])
    client.xadd(keys.jobs, {"question_id": "x" * 2000})
    list(cancel_all(client, keys))
    found = read_results(client, keys).results
    assert [one.question_id for one in found] == ["b", "c", "x" * 512]
    assert {(one.fate, one.reason, one.error) for one in found} == {
        (Fate.FAILED, CANCELLED, CANCELLED_ERROR)
    }
    letters = [entry.decode() for entry, _ in client.xrange(keys.failed)]
    drop_letters(client, keys, letters)
    assert len(read_results(client, keys).results) == 3
