"""A store that is away is waited for, with a bound where nobody would wait any longer."""

from __future__ import annotations

import errno
import logging
import threading

import pytest

from halp_store.errors import StoreGone, StoreUnavailable
from halp_worker.store_outage import (
    LONGEST_PAUSE_SECONDS,
    OPEN_SECONDS,
    REPORT_SECONDS,
    STOP_SECONDS,
    PatientWriter,
    open_patiently,
)


class Clock:
    """Time passes only while somebody sleeps."""

    def __init__(self):
        self.now = 0.0
        self.pauses = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


class Disk:
    """Answers after so many failures, each with the next number of the operating system."""

    def __init__(self, failures, numbers=(errno.ENOSPC,)):
        self.left, self.numbers = failures, numbers

    def flush(self, may_commit=None):
        if self.left:
            self.left -= 1
            number = self.numbers[self.left % len(self.numbers)]
            raise StoreUnavailable("/s", "write segments/a", OSError(number, "no"), "make room")
        return "flushed"

    refresh = fence = receipt_for = flush


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def patient(clock):
    """`patient(disk)`: a writer on it, and what it calls back."""

    def make(disk):
        stopping, told = threading.Event(), []
        writer = PatientWriter(
            disk,
            wait=clock.sleep,
            is_stopping=stopping.is_set,
            on_away=lambda: told.append("away"),
            on_back=lambda: told.append("back"),
            sleep=clock.sleep,
            clock=clock,
        )
        return writer, stopping, told

    return make


@pytest.mark.parametrize("call", ["refresh", "flush", "fence", "receipt_for"])
def test_every_call_is_made_again_until_the_disk_answers(patient, clock, call):
    """With pauses that grow to a bound, and whatever the operating system says."""
    numbers = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES, errno.EXDEV)
    writer, _, told = patient(Disk(8, numbers))
    request = getattr(writer, call)
    request(*([()] if call in ("fence", "receipt_for") else []))
    assert told == ["away"] * 8 + ["back"]
    assert clock.pauses[:3] == [0.2, 0.4, 0.8]
    assert max(clock.pauses) == LONGEST_PAUSE_SECONDS
    writer.flush()
    assert told[-1] == "back", "an outage that is over is not told again"


def test_an_outage_is_reported_now_and_then(patient, clock, caplog):
    """At its beginning with place and cause, about once a minute, and at its end."""
    caplog.set_level(logging.WARNING)
    writer, _, _ = patient(Disk(60))
    writer.flush()
    lines = [record.getMessage() for record in caplog.records]
    assert "/s: cannot write segments/a: no; make room" in lines[0]
    assert len(lines) == 2 + int(clock.now // (REPORT_SECONDS + LONGEST_PAUSE_SECONDS))
    assert "available again" in lines[-1]


def test_who_is_to_stop_does_not_wait_long(patient, clock):
    """Then the outage comes out."""
    writer, stopping, _ = patient(Disk(1000))
    stopping.set()
    with pytest.raises(StoreUnavailable, match="make room"):
        writer.flush()
    assert clock.now <= STOP_SECONDS


def test_what_no_waiting_mends_comes_out_at_once(patient, clock):
    """Another store is there now."""

    class Gone:
        def flush(self, may_commit=None):
            raise StoreGone("/s", "another one is there")

    writer, _, told = patient(Gone())
    with pytest.raises(StoreGone):
        writer.flush()
    assert told == clock.pauses == []


def test_a_store_is_opened_as_soon_as_it_can_be(clock):
    """And given up after a bounded time."""
    disk = Disk(5)
    assert open_patiently(disk.flush, sleep=clock.sleep, clock=clock) == "flushed"
    with pytest.raises(StoreUnavailable):
        open_patiently(Disk(1000).flush, sleep=clock.sleep, clock=clock)
    assert clock.now <= 2 * OPEN_SECONDS
