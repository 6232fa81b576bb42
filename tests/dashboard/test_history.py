"""`History`: an hour of a run's counts, bounded, with gaps where nothing is known."""

from halp_worker.dashboard.history import History, Sample


def filled(counts, step_s=2.0):
    history = History()
    for number, done in enumerate(counts):
        history.add(Sample(1000 + step_s * number, done, 0, 0, 1))
    return history


def test_a_rate_is_what_was_done_in_the_ten_seconds_before():
    """Commits come every few seconds: over less time a rate is a comb."""
    points = filled([0, 0, 0, 50, 50, 50, 50, 50, 50, 50]).points()
    rates = [one.done_per_second for one in points]
    assert rates[:4] == [None, 0, 0, 50 / 6]
    assert rates[5] == 5.0
    assert rates[-1] == 0.0


def test_an_hour_is_bounded_and_its_older_part_coarser():
    """A sample each two seconds, for five hours."""
    points = filled(range(5 * 1800)).points()
    assert len(points) < 350
    assert points[-1].at_s - points[0].at_s > 3500
    assert points[-1].at_s - points[-2].at_s == 2
    assert points[1].at_s - points[0].at_s == 20
    assert all(one.done_per_second == 0.5 for one in points[1:])


def test_samples_that_come_too_often_are_left_out():
    """The server is asked each second, the chart shows each other one."""
    assert len(filled(range(10), step_s=1.0).points()) == 5


def test_a_server_that_was_away_leaves_a_gap():
    """What was done meanwhile is in no rate: nobody knows when it was."""
    history = filled([0, 10])
    history.interrupt()
    history.add(Sample(1030, 500, 0, 0, 1))
    history.add(Sample(1032, 504, 0, 0, 1))
    assert [one.done_per_second for one in history.points()] == [None, 5.0, None, 2.0]


def test_counts_that_fall_begin_anew():
    """The server forgot the run, and it was enqueued again."""
    rates = [one.done_per_second for one in filled([100, 110, 3, 5]).points()]
    assert rates == [None, 5.0, None, 1.0]


def test_a_process_that_slept_leaves_a_gap():
    """A laptop that was closed."""
    history = filled([0, 10])
    history.add(Sample(2000, 20, 0, 0, 1))
    assert [one.done_per_second for one in history.points()] == [None, None]


def test_a_clock_that_goes_back_begins_anew():
    """Points are in order of time, whatever was set."""
    history = filled([0, 10])
    history.add(Sample(500, 20, 0, 0, 1))
    history.add(Sample(502, 30, 0, 0, 1))
    assert [(one.at_s, one.done_per_second) for one in history.points()] == [(500, None), (502, 5)]


def test_failed_jobs_that_are_tried_again_are_no_negative_rate():
    """`failed retry` takes them off the count."""
    history = History()
    for number, failed in enumerate([5, 9, 2]):
        history.add(Sample(1000 + 2 * number, 0, failed, 0, 1))
    assert [one.failed_per_second for one in history.points()] == [None, 2.0, 0.0]


def test_no_samples_are_no_points():
    """Before the server was asked."""
    assert History().points() == []
