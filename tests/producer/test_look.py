"""A viewer's rate and time left: differences of the run's own count, over the last minute."""

from __future__ import annotations

import pytest

from halp_producer.look import TRUSTED_AFTER_S, Look, Lookout
from halp_producer.pace import WINDOW_S, Pace


def test_the_pace_is_that_of_the_last_minute():
    """What was faster before is forgotten."""
    pace = Pace()
    for second in range(0, 60):
        pace.tell(second, 100 * second)
    for second in range(60, 200):
        pace.tell(second, 5900 + 2 * (second - 60))
    assert pace.per_second == pytest.approx(2)
    assert WINDOW_S <= pace.span_s <= WINDOW_S + 1


def test_a_pace_that_is_told_often_stays_small():
    """A live line tells it far more often than a heartbeat."""
    pace = Pace()
    for tick in range(10_000):
        pace.tell(tick / 100, tick)
    assert len(pace._told) <= 2 * WINDOW_S + 2
    assert pace.per_second == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("told", [[], [(0.0, 5)], [(1.0, 5), (1.0, 6)]])
def test_a_pace_of_no_time_is_zero(told):
    """And no division by zero."""
    pace = Pace()
    for now_s, count in told:
        pace.tell(now_s, count)
    assert pace.per_second == 0


def test_a_count_that_falls_starts_the_pace_anew():
    """The server forgot the run, and it began again."""
    pace = Pace()
    pace.tell(0, 1000)
    pace.tell(10, 2000)
    pace.tell(20, 10)
    pace.tell(30, 40)
    assert pace.per_second == pytest.approx(3)


def test_the_workers_are_believed_until_the_viewer_knows_better(status):
    """Of a few seconds the run's count says little: rows are done by the segment."""
    lookout = Lookout()
    assert lookout.look(status(done=0, rows_per_second=7.0), 0).rows_per_second == 7
    early = lookout.look(status(done=64, rows_per_second=7.0), 2)
    assert early.rows_per_second == 7
    late = lookout.look(status(done=100, rows_per_second=7.0), TRUSTED_AFTER_S + 5)
    assert late.rows_per_second == pytest.approx(100 / (TRUSTED_AFTER_S + 5))


def test_the_time_left_is_what_is_left_by_the_rate(status):
    """Waiting, delayed and in flight; none where nothing moves or nothing is left."""
    found = status(waiting=70, delayed=20, in_flight=10)
    assert Look(found, 4.0).seconds_left == 25
    assert Look(found, 0.0).seconds_left is None
    assert Look(status(waiting=0, delayed=0, in_flight=0), 4.0).seconds_left is None
