"""The picture of a run on a terminal, drawn from values."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from halp_producer.fleet_view import fleet_view
from halp_producer.look import Look


def drawn(look, columns=80, lines=24):
    """The lines as a terminal of this size shows them, without colours."""
    console = Console(
        file=io.StringIO(), width=columns, height=lines, force_terminal=True, color_system=None
    )
    console.print(fleet_view(look, width=columns, height=lines, hint="Ctrl-C leaves"))
    return console.file.getvalue().splitlines()


def words(line):
    return " ".join(line.split())


@pytest.fixture
def fleet(worker):
    """58 that work, one that is gone with jobs in its hands, one that left."""
    working = [worker(f"gpu-node-0{n // 8}", f"{4000 + n}-abcdef01") for n in range(58)]
    gone = worker("gpu-node-09", "77-lost", alive=False, seen_seconds_ago=95.0, in_flight=64)
    left = worker("gpu-node-09", "78-left", alive=False, in_flight=0, state="stopped")
    return (*working, gone, left)


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (140, 40), (60, 20), (200, 100)])
def test_it_fits_the_terminal_however_many_workers_there_are(status, fleet, columns, lines):
    """No line is wrapped, and the last one is not the terminal's: that is the cursor's."""
    shown = drawn(Look(status(workers=fleet), 41.2), columns, lines)
    assert max(map(len, shown)) <= columns
    assert len(shown) < lines


def test_at_80_columns_every_column_that_matters_is_whole(status, fleet):
    """Host, worker, state, device, batch, rate, jobs in hand, last heartbeat."""
    shown = drawn(Look(status(workers=fleet), 41.2))
    head = next(one for one in shown if one.startswith("host"))
    assert words(head) == "host worker state device batch rows/s in hand seen"
    row = next(one for one in shown if "4000-abcdef01" in one)
    assert words(row) == "gpu-node-00 4000-abcdef01 running cuda:0 32 12.3 96 2 s ago"


def test_a_wide_terminal_shows_what_each_did_and_its_memory(status, fleet):
    """Nothing is left out where there is room."""
    shown = drawn(Look(status(workers=fleet), 41.2), 140, 40)
    head = next(one for one in shown if one.startswith("host"))
    assert head.split()[-3:] == ["done", "failed", "memory"]
    assert next(one for one in shown if "4000-abcdef01" in one).endswith("2,001       3  20.1 GB")


def test_what_needs_a_person_comes_first_and_the_rest_is_counted(status, fleet):
    """A worker that is gone, with no rate any more; those that left come last."""
    shown = drawn(Look(status(workers=fleet), 41.2))
    (first,) = (number for number, one in enumerate(shown) if one.startswith("host"))
    assert words(shown[first + 1]) == "gpu-node-09 77-lost gone? cuda:0 32 - 64 95 s ago"
    rest = next(one for one in shown if one.startswith("and "))
    shown_workers = sum("-abcdef01" in one for one in shown)
    assert rest.startswith(f"and {59 - shown_workers} more: {58 - shown_workers} alive, 1 stopped")


def test_the_numbers_the_rate_and_the_reasons_are_there(status, worker):
    """Progress, rate, time left, each place a question can be in, failures by reason."""
    found = status(
        enqueued=20_000, waiting=7534, delayed=12, in_flight=244, done=12_120, failed=90,
        failed_by_reason={"image_missing": 60, "not_finite": 30}, workers=(worker(),),
    )  # fmt: skip
    text = "\n".join(drawn(Look(found, 41.2)))
    for part in (
        *("run pilot -> /data/run.zarr", "61 %  12,210 of 20,000"),
        "41.2 rows/s, about 3 min 9 s left",
        "failed for: 60 image_missing, 30 not_finite",
    ):
        assert part in text
    names, numbers = (one.split() for one in drawn(Look(found, 41.2))[4:6])
    assert names == ["waiting", "delayed", "in", "flight", "done", "failed"]
    assert numbers == ["7,534", "12", "244", "12,120", "90"]


def test_it_is_at_100_percent_only_at_the_end(status):
    """19,999 of 20,000 are not all."""
    almost = status(enqueued=20_000, waiting=1, delayed=0, in_flight=0, done=19_999, failed=0)
    assert " 99 %" in "\n".join(drawn(Look(almost, 1.0)))
    ended = status(enqueued=2, waiting=0, delayed=0, in_flight=0, done=2, failed=0)
    text = "\n".join(drawn(Look(ended, 0.0)))
    assert "100 %" in text
    assert "nothing left to do" in text


def test_without_a_worker_it_says_how_to_start_one(status, worker):
    """Of this run; a worker that is gone is none."""
    for workers in ((), (worker(alive=False),)):
        text = "\n".join(drawn(Look(status(workers=workers), 0.0)))
        assert "start one with halp-worker run --store STORE --run pilot" in text


def test_a_problem_takes_the_place_of_the_rate(status, worker):
    """What is shown below it is of before."""
    text = "\n".join(drawn(Look(status(workers=(worker(),)), 41.2, "server away for 12 s")))
    assert "server away for 12 s" in text
    assert "rows/s," not in text


@pytest.mark.parametrize("columns", [80, 140])
def test_hostile_words_stay_words(status, worker, columns):
    """Markup is shown as it is, control characters are escaped, lengths are cut."""
    evil = "[red]\x1b[2J\r\n\u202e\x07[/bold]" * 20
    one = worker(evil, evil, state=evil, device=evil, store=evil)
    two = worker("漢字" * 40, "漢字" * 40)
    found = status(run="pilot", workers=(one, two), failed_by_reason={evil: 2, "b": 1})
    shown = drawn(Look(found, 1.0, ""), columns)
    text = "\n".join(shown)
    assert text.replace("\n", "").isprintable()
    assert "[red]\\x1b" in text
    assert len(shown) < 24
    assert shown[-1].strip() == "Ctrl-C leaves"


def test_a_worker_that_cannot_be_read_is_shown_with_what_is_known(status, worker):
    """A name, what it holds; no heartbeat."""
    silent = worker(activity=None, alive=False, seen_seconds_ago=None, in_flight=3)
    (row,) = (one for one in drawn(Look(status(workers=(silent,)), 0.0)) if "unknown" in one)
    assert words(row) == "gpu-0-4000-abcdef01 unknown 3 never"
