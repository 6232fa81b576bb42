"""What `halp-producer status` says in plain lines, from values."""

from __future__ import annotations

import json

import pytest

from halp_producer.activity import read_activity
from halp_producer.look import Look
from halp_producer.wording import progress_text, reasons_text, status_text, watch_line


def test_status_names_reasons_and_each_workers_batch(status, worker):
    """After the counts and the rate; a worker without a batch yet says none."""
    found = status(
        failed_by_reason={"image_missing": 3, "not_finite": 2},
        workers=(worker(), worker("b", batch_jobs=0)),
        rows_per_second=2.0,
    )
    counts, rate, reasons, first, second = status_text(found).splitlines()
    assert counts.startswith("run pilot: 100 enqueued = 60 waiting + 10 delayed + 10 in flight")
    assert rate == "2.0 rows/s, about 40 s left"
    assert reasons == "failed for: 3 image_missing, 2 not_finite"
    assert "12.3 rows/s  batches of 32  seen 2 s ago on gpu-0 (cuda:0)" in first
    assert "batches" not in second


@pytest.mark.parametrize(
    ("changes", "rate", "words"),
    [
        ({"waiting": 0, "delayed": 0, "in_flight": 0}, 0.0, "nothing left to do"),
        ({"workers": ()}, 3.0, "start one with halp-worker run --store STORE --run pilot"),
        ({}, 0.0, "nothing was stored lately"),
        ({}, 0.01, "about 2 h 13 min left"),
    ],
)
def test_the_progress_says_what_to_do_where_there_is_none(status, changes, rate, words):
    """Finished, nobody works, nothing moves, or how long it takes."""
    assert words in progress_text(Look(status(**changes), rate))


def test_many_reasons_are_cut_and_counted(status):
    """Anybody who can write to the server can make reasons up."""
    found = status(failed_by_reason={f"r{n}\x1b" + "x" * 500: 1 for n in range(20)})
    text = reasons_text(found)
    assert text.endswith("and 14 more reasons")
    assert text.isprintable()
    assert len(text) < 500


def test_a_line_of_watching_is_one_line(status):
    """With the problem at its end."""
    line = watch_line(Look(status(), 2.0, "server away for 3 s"))
    assert line.endswith("5 failed; 2.0 rows/s, about 40 s left; server away for 3 s")


def test_the_heartbeat_of_an_older_version_can_be_read():
    """What it does not say is zero or empty."""
    said = {
        **{"worker": "w", "host": "h", "pid": 1, "device": "cpu", "model": "m"},
        **{"state": "running", "started_ms": 1, "seen_ms": 2},
    }
    found = read_activity(json.dumps(said).encode())
    assert (found.batch_jobs, found.memory_bytes, found.store) == (0, 0, "")
