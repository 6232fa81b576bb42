"""What `status --check` finds: nothing in a sound run, one sentence for each number that is off."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from halp_producer.balance import Books, imbalances

SOUND = Books(
    enqueued=20, done=5, failed=3, reasons=3, stream=12, pending=6, delayed=2, due=2, letters=3,
    known=20, attempts=4,
)  # fmt: skip


def test_a_sound_run_has_no_problem():
    """Also an empty one."""
    assert imbalances(SOUND) == ()
    assert imbalances(Books(**{one.name: 0 for one in fields(Books)})) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stream": 13}, "1 job more on the stream, done or failed than was enqueued"),
        ({"done": 1007}, "1,002 jobs more on the stream, done or failed than were enqueued"),
        ({"stream": 11}, "1 job fewer on the stream, done or failed than was enqueued"),
        ({"due": 1}, "2 jobs delayed, but 1 with a due time"),
        ({"reasons": 2}, "3 failed by the count, but 2 by the counts of each reason"),
        ({"letters": 2}, "3 failed by the count, but 2 on the failed stream"),
        ({"known": 19}, "20 enqueued by the count, but 19 known by id"),
        ({"attempts": 7}, "7 jobs with attempts, but 6 in flight or delayed"),
        ({"pending": 13, "attempts": 13}, "1 job more in flight or delayed than on the stream"),
    ],
)
def test_each_number_that_is_off_is_one_sentence(change, said):
    """It says which numbers, what that means, and who did it."""
    (sentence,) = imbalances(replace(SOUND, **change))
    assert sentence.startswith(said)
    assert "something other than" in sentence or "by something other than" in sentence


def test_all_problems_are_said_at_once():
    """Not the first one only."""
    assert (
        len(imbalances(replace(SOUND, stream=1, reasons=1, letters=9, known=1, due=0, attempts=99)))
        == 7
    )
