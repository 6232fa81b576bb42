"""The one line at the bottom of a worker's terminal, drawn from values."""

from __future__ import annotations

import pytest

from halp_producer.activity import WorkerActivity
from halp_worker.live_line import line_text


def activity(**changes):
    return WorkerActivity(
        **{
            **{"worker": "w", "host": "h", "pid": 1, "device": "cuda:0", "model": "m"},
            **{"state": "running", "started_ms": 0, "seen_ms": 0, "in_hand": 96, "done": 2001},
            **{"failed": 3, "rows_per_second": 12.34, "batch_jobs": 32},
            **{"memory_bytes": 20_100_000_000, **changes},
        }
    )


def test_it_says_all_on_a_usual_terminal():
    """80 columns: rate, batch, backlog, done, failed, memory, in hand."""
    text = line_text(activity(), 7534, 80).plain
    assert text == (
        "12.3 rows/s  batch 32  backlog 7,534  done 2,001  failed 3  20.1 GB  in hand 96"
    )


def test_what_is_not_known_yet_is_a_dash():
    """Before the first batch and the first heartbeat."""
    text = line_text(activity(batch_jobs=0, memory_bytes=0), None, 120).plain
    assert text == "12.3 rows/s  batch -  backlog -  done 2,001  failed 3  - GB  in hand 96"


@pytest.mark.parametrize("width", [1, 10, 20, 40, 80, 200])
def test_it_is_never_longer_than_the_terminal_is_wide(width):
    """What is less important is left out whole."""
    many = activity(done=123_456_789, failed=123_456, state="stopping")
    text = line_text(many, 123_456_789, width).plain
    assert len(text) <= width
    whole = line_text(many, 123_456_789, 1000).plain
    assert whole.startswith(text)
    assert whole[len(text) :][:2] in ("", "  ") or not text


def test_a_state_that_is_not_the_usual_one_comes_first():
    """After Ctrl-C the worker is finishing."""
    assert line_text(activity(state="stopping"), 1, 80).plain.startswith("stopping  12.3 rows/s")
