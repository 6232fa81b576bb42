"""What a worker tells while it works: a live line on a terminal, ids in every line of its log."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import stand_in

from fleet import make_job
from halp_producer.activity import STOPPED

pytestmark = pytest.mark.slow


def test_a_terminal_has_one_live_line_below_the_log(fleet, wait_until, at_terminal):
    """It changes in place, the log scrolls above it, and in the end it is gone."""
    fleet.enqueue(*(make_job(n) for n in range(8)))
    worker = at_terminal(
        *(sys.executable, str(Path(stand_in.__file__)), "--store", str(fleet.store_path)),
        *("--redis-url", fleet.url, "--run", fleet.keys.run, "--log-format", "auto"),
        *("--flush-seconds", "0.2", "--lease-seconds", "1"),
    )
    wait_until(lambda: "batch 4  backlog 0  done 8  failed 0" in worker.text)
    fleet.enqueue(make_job(8, "POISON reject"))
    wait_until(lambda: "done 8  failed 1" in worker.text)
    assert "failed q8: image_missing" in worker.text
    worker.press_ctrl_c()
    assert worker.wait() == 0
    last = worker.text.rpartition("finishing the batch in hand")[2]
    assert worker.text.splitlines()[-1].startswith("Tally(done=8, failed=1")
    assert "\n\n" not in last.replace("\r", "")
    assert worker.raw.rindex(b"\x1b[?25h") > worker.raw.rindex(b"\x1b[?25l")


def test_every_line_about_jobs_or_segments_has_their_ids_as_fields(fleet, wait_until):
    """Stored, failed, retried, halved, out of memory, taken over: in words and in fields."""
    questions = {1: "POISON reject", 2: "POISON retry", 3: "POISON raise", 6: "POISON large"}
    fleet.enqueue(*(make_job(n, questions.get(n)) for n in range(8)))
    worker = fleet.start(
        *("--log-format", "json", "--max-attempts", "2", "--retry-ms", "50", "--until-empty"),
        *("--batch-size", "8"),
    )
    assert worker.wait() == 0, fleet.logs()
    *lines, tally = worker.log.read_text().splitlines()
    assert tally.startswith("Tally(")
    records = [json.loads(one) for one in lines]
    assert {one["run"] for one in records} == {fleet.keys.run}
    assert len({one["worker"] for one in records}) == 1
    about = [one for one in records if one["logger"] in stand_in_loggers(records)]
    said = {
        words: [one for one in about if one["message"].startswith(words)]
        for words in ("stored", "failed q", "attempt", "a batch of", "took over", "worker")
    }
    assert all(said.values()), said
    oom = [one for one in about if "did not fit the device" in one["message"]]
    for one in (*said["stored"], *said["a batch of"], *said["took over"], *oom):
        ids = [one["question_id"]] if "question_id" in one else one["question_ids"]
        assert ids
        assert all(name in one["message"] for name in ids)
    for one in (*said["failed q"], *said["attempt"]):
        assert one["question_id"] in one["message"]
        assert one["reason"] in ("image_missing", "url_failed", "extraction_failed")
    segments = {one["segment"] for one in said["stored"]}
    assert all(one["segment"] in one["message"] for one in said["stored"])
    assert segments <= {path.name for path in (fleet.store_path / "segments").iterdir()}


def stand_in_loggers(records):
    """All but the stand-in's own words."""
    return {one["logger"] for one in records} - {"stand_in"}


def test_a_lost_lease_names_its_job(fleet, wait_until):
    """The question's id and the entry's."""
    fleet.enqueue(make_job(0))
    zombie = fleet.start(
        *("--lease-seconds", "0.3", "--at", "extract:after:1:STOP", "--log-format", "json")
    )
    wait_until(lambda: zombie.is_stopped)
    fleet.finish()
    zombie.signal(signal.SIGCONT)
    wait_until(lambda: "its result is discarded" in zombie.log.read_text())
    (line,) = (one for one in zombie.log.read_text().splitlines() if "discarded" in one)
    fields = json.loads(line)
    assert fields["question_id"] == "q0"
    assert fields["message"].startswith(f"lease of q0 (entry {fields['entry_id']}) was lost")


def test_the_heartbeat_says_batch_memory_and_store(fleet):
    """What `status` and the dashboard show of a worker."""
    fleet.enqueue(*(make_job(n) for n in range(4)))
    fleet.finish("--batch-size", "4")
    (found,) = (one.activity for one in fleet.status().workers)
    assert (found.state, found.done, found.batch_jobs) == (STOPPED, 4, 4)
    assert found.store == str(fleet.store_path)
    assert 10_000_000 < found.memory_bytes < 100_000_000_000
    assert found.rows_per_second > 0
