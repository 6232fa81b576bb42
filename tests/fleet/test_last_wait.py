"""A worker that was told to stop does not wait for the server for ever; nothing is lost by that."""

from __future__ import annotations

import signal

import pytest
import redis

from fleet import Fleet, make_job
from halp_producer.server import ServerAwayError, ServerError, connect_patiently
from halp_worker.last_wait import LAST_WAIT_SECONDS

from .test_outages import JOBS, OPTIONS, WAITS, assert_sound

pytestmark = pytest.mark.slow

SHORT = ("--last-wait", "0.5")


@pytest.fixture
def fleet(own, run, tmp_path):
    """On a server of its own."""
    with redis.Redis.from_url(own.url) as client:
        one = Fleet(own.url, client, run, tmp_path)
        yield one
        one.end()


@pytest.fixture
def hang(own):
    """`hang()`: the server answers nothing from now on, until the test's `go_on`, or its end."""
    process = own.process
    yield lambda: process.send_signal(signal.SIGSTOP)
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)


def go_on(own):
    own.process.send_signal(signal.SIGCONT)


def test_the_wait_after_a_stop_is_shorter_than_supervisors_wait():
    """Twenty seconds at most, with all that comes around it."""
    assert LAST_WAIT_SECONDS + 2 < 20


@pytest.mark.parametrize("away", ["hangs", "ended"])
def test_what_is_stored_and_not_acknowledged_ends_with_1_and_is_found(
    fleet, own, wait_until, hang, away
):
    """The worker stands between its segment and its acknowledgement when the server goes."""
    fleet.enqueue(*JOBS)
    worker = fleet.start(*OPTIONS, *SHORT, "--at", "publish:after:2:STOP")
    wait_until(lambda: worker.is_stopped)
    stored = len(fleet.stored())
    # A stop takes a moment: on a busy machine the acknowledgement may be out before it.
    unacknowledged = stored - fleet.status().done
    if away == "hangs":
        hang()
    else:
        own.stop(signal.SIGKILL)
    worker.signal(signal.SIGCONT)
    worker.signal(signal.SIGTERM)
    assert worker.wait(40) == (1 if unacknowledged else 0), fleet.logs()
    text = worker.log.read_text()
    assert "has not answered for 0.5 s since the stop: ending without it" in text
    assert f"{unacknowledged} of them are stored and will be found" in text
    if away == "hangs":
        go_on(own)
    else:
        own.start()
    assert stored == len(fleet.stored())
    fleet.finish(*OPTIONS)
    assert_sound(fleet)


def test_an_idle_worker_ends_with_0_though_the_server_hangs(fleet, own, wait_until, hang):
    """It has nothing to tell."""
    fleet.enqueue(make_job(1))
    worker = fleet.start(*OPTIONS, *SHORT)
    wait_until(lambda: fleet.status().done == 1)
    hang()
    worker.signal(signal.SIGTERM)
    assert worker.wait(40) == 0, fleet.logs()
    go_on(own)
    assert_sound(fleet, [make_job(1)])


def test_a_server_that_refuses_to_write_is_not_waited_for_either(fleet, own, wait_until):
    """It answers what is read all the while."""
    fleet.enqueue(*JOBS)
    worker = fleet.start(*OPTIONS, *SHORT, "--at", "publish:after:1:STOP")
    wait_until(lambda: worker.is_stopped)
    fleet.client.config_set("min-replicas-to-write", 1)
    unacknowledged = len(fleet.stored()) - fleet.status().done
    worker.signal(signal.SIGCONT)
    wait_until(lambda: WAITS in worker.log.read_text())
    worker.signal(signal.SIGTERM)
    assert worker.wait(40) == (1 if unacknowledged else 0), fleet.logs()
    fleet.client.config_set("min-replicas-to-write", 0)
    fleet.finish(*OPTIONS)
    assert_sound(fleet)


def test_a_server_that_comes_late_is_waited_for_at_the_start(own):
    """With a word each time, and no longer than said."""
    own.stop()
    told, pauses = [], []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            own.start()

    connect_patiently(own.url, told.append, sleep=sleep).close()
    assert len(told) == 3
    assert all("waiting for it" in one and "connection refused" in one for one in told)
    assert pauses == sorted(pauses)
    own.stop()
    times = iter(range(0, 1000, 25))
    with pytest.raises(ServerAwayError, match="connection refused"):
        connect_patiently(own.url, told.append, sleep=pauses.append, clock=lambda: next(times))
    own.start()


@pytest.mark.parametrize("url", ["redis://127.0.0.1/x", "redis://h/0?foo=1", "no-user"])
def test_what_waiting_does_not_mend_is_refused_at_once(own, url):
    """A URL that cannot be read; a user who is not known."""
    url = own.url.replace("//", "//nobody:x@") if url == "no-user" else url
    with pytest.raises(ServerError):
        connect_patiently(url, pytest.fail, sleep=pytest.fail)
