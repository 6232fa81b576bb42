"""`halp-producer failed`, `cancel` and `status --check` as people run them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from halp_producer import progress
from halp_producer.letters import dead_letters


def failed_ids(client, keys) -> list[str]:
    return [one.question_id for one in dead_letters(client, keys)]


def test_list_can_be_of_one_reason(halp, bench, run):
    """The limit is for those that are shown; the total is that of the run."""
    bench.failed("a", "b", "c")
    bench.failed("x", reason="malformed")
    lines = halp("failed", "list", "--reason", "malformed").stdout.splitlines()
    assert lines == [
        "x: malformed: not there (a.jpg; w1, 2 attempts, 2023-11-14 22:13:20 UTC)",
        f"run {run}: 4 failed, 1 shown",
    ]
    shown = halp("failed", "list", "--reason", "image-missing", "--limit", "2", "--json").stdout
    assert [one["question_id"] for one in json.loads(shown)] == ["a", "b"]


@pytest.mark.parametrize("by", ["question", "letter"])
def test_show_tells_everything(halp, bench, by):
    """The job, the reason, and the traceback with its lines but without its control characters."""
    letter, _ = bench.failed("a", "b")
    name = "a" if by == "question" else letter
    result = halp("failed", "show", name)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for line in ("question_id:  a", f"letter:       {letter}", "reason:       image-missing",
                 "error:        not there", "attempts:     2", "worker:       w1",
                 "failed:       2023-11-14 22:13:20 UTC", "question:     What?"):  # fmt: skip
        assert line in lines
    assert lines[-3:] == ["traceback:", "  Traceback:", "    x\\x1b"]
    (shown,) = json.loads(halp("failed", "show", name, "--json").stdout)
    assert (shown["entry_id"], shown["attempts"]) == (letter, 2)
    assert shown["traceback"] == "Traceback:\n  x\x1b\n"


def test_show_of_an_unknown_id_exits_1(halp, bench):
    """One sentence, nothing on stdout."""
    bench.failed("a")
    result = halp("failed", "show", "b")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: b: no failed question or letter has this id\n"


@pytest.mark.parametrize("command", [["failed", "retry"], ["failed", "drop"], ["cancel"]])
@pytest.mark.parametrize("ways", [[], ["a", "--all"]])
def test_what_to_move_is_said_in_exactly_one_way(halp, bench, command, ways):
    """Anything else is wrong usage, and moves nothing."""
    bench.failed("a")
    before = bench.snapshot()
    result = halp(*command, *ways)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "give exactly one of: ids" in result.stderr
    assert bench.snapshot() == before


@pytest.mark.parametrize("command", ["retry", "drop"])
@pytest.mark.parametrize("ways", [["a", "--reason", "r"], ["--reason", "r", "--all"]])
def test_a_reason_is_a_way_of_its_own(halp, bench, command, ways):
    """It is not combined with ids or --all."""
    bench.failed("a")
    assert halp("failed", command, *ways).exit_code == 2


def test_no_variable_chooses_what_to_drop(halp, bench, client, keys, monkeypatch):
    """What was left over in an environment must not empty a run."""
    bench.failed("a", "b")
    for name in ("HALP_ALL", "HALP_REASON", "HALP_IDS"):
        monkeypatch.setenv(name, "image-missing")
    assert halp("failed", "drop").exit_code == 2
    assert halp("failed", "drop", "a").exit_code == 0
    assert failed_ids(client, keys) == ["b"]


def test_retry_by_id_does_the_others_and_names_the_unknown(halp, bench, client, keys, run):
    """Exit 1 for the unknown one; ids of questions and of letters may be mixed."""
    _, b, _ = bench.failed("a", "b", "c")
    result = halp("failed", "retry", "a", "nobody", b)
    assert result.exit_code == 1
    assert result.stderr == "nobody: no failed question or letter has this id\n"
    assert result.stdout == f"run {run}: 2 back on the stream, 1 not\n"
    assert failed_ids(client, keys) == ["c"]
    assert bench.numbers() == (3, 2, 0, 0, 0, 1)
    assert bench.problems() == ()


def test_retry_by_reason_and_of_all(halp, bench, client, keys, run):
    """No match is no error."""
    bench.failed("a", "b")
    bench.failed("x", reason="malformed")
    result = halp("failed", "retry", "--reason", "malformed")
    assert (result.exit_code, result.stdout) == (0, f"run {run}: 1 back on the stream\n")
    assert failed_ids(client, keys) == ["a", "b"]
    report = json.loads(halp("failed", "retry", "--all", "--json").stdout)
    assert report == {"run": run, "moved": 2, "left_out": []}
    result = halp("failed", "retry", "--all")
    assert (result.exit_code, result.stdout) == (0, f"run {run}: 0 back on the stream\n")
    assert bench.numbers() == (3, 3, 0, 0, 0, 0)


def test_drop_forgets_and_says_so_in_json(halp, bench, client, keys, run):
    """The unknown id is in the document too."""
    bench.failed("a", "b")
    result = halp("failed", "drop", "b", "c", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["moved"] == 1
    assert [(one["id"], one["why"]) for one in report["left_out"]] == [("c", "unknown")]
    assert client.hkeys(keys.known) == [b"a"]
    assert bench.problems() == ()


def test_thousands_of_letters_are_moved_chunk_by_chunk(halp, bench, client, keys, monkeypatch):
    """Every one of them, and it is told how far it is."""
    monkeypatch.setattr(progress, "_LINE_EVERY_S", -1)
    names = [f"q{number}" for number in range(1200)]
    bench.failed(*names)
    result = halp("failed", "retry", "--all")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0] == "250 back on the stream"
    assert bench.numbers() == (1200, 1200, 0, 0, 0, 0)
    assert halp("cancel", "--all").exit_code == 0
    assert halp("failed", "drop", "--all").exit_code == 0
    assert bench.numbers() == (0, 0, 0, 0, 0, 0)
    assert bench.problems() == ()
    assert client.hlen(keys.known) == 0


def test_a_full_server_stops_a_retry_with_a_sentence(halp, bench, full):
    """Exit 1, nothing moved, and what to do."""
    bench.failed("a")
    before = bench.snapshot()
    full()
    result = halp("failed", "retry", "--all")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the server is out of memory" in result.stderr
    assert "0 moved before that; the same command goes on" in result.stderr
    assert bench.snapshot() == before


def test_a_surplus_letter_is_said_and_left(halp, bench, client, keys):
    """It is one more than was enqueued; drop, not retry, is what it needs."""
    bench.failed("a")
    bench.surplus_letter(client.xrange(keys.failed)[0][1])
    result = halp("failed", "retry", "--all")
    assert result.exit_code == 1
    assert "a: is on the stream already" in result.stderr
    assert halp("failed", "drop", "a").exit_code == 0
    assert bench.numbers() == (1, 1, 0, 0, 0, 0)
    assert bench.problems() == ()


def test_cancel_says_of_each_id_why_not(halp, bench, client, keys, run):
    """Exit 1 if one could not be cancelled; the others are."""
    done, _, _ = bench.enqueue("a", "b", "c")
    bench.take(2)
    bench.done(done)
    result = halp("cancel", "a", "b", "c", "c", "nobody")
    assert result.exit_code == 1
    assert result.stdout == f"run {run}: 2 cancelled, 2 not\n"
    assert result.stderr.splitlines() == [
        "a: is done or failed: nothing to cancel",
        "nobody: was never enqueued in this run",
    ]
    assert failed_ids(client, keys) == ["b", "c"]
    assert bench.problems() == ()


def test_cancel_all_empties_the_stream_once(halp, bench, run):
    """Again it has nothing to do, and that is no error."""
    bench.enqueue("a", "b", "c")
    bench.take(1)
    assert halp("cancel", "--all").stdout == f"run {run}: 3 cancelled\n"
    report = json.loads(halp("cancel", "--all", "--json").stdout)
    assert report == {"run": run, "moved": 0, "left_out": []}
    assert halp("cancel", "--all", "--run", "nobody").exit_code == 1


def test_check_of_a_sound_run_says_so(halp, bench):
    """Exit 0; the sum is shown with it. Without --check there is no list of problems."""
    bench.failed("a", "b")
    result = halp("status", "--check")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert "2 enqueued = 0 waiting + 0 delayed + 0 in flight + 0 done + 2 failed" in first
    assert second == "book-keeping holds"
    assert json.loads(halp("status", "--check", "--json").stdout)["problems"] == []
    assert "problems" not in json.loads(halp("status", "--json").stdout)


def test_check_says_what_does_not_hold(halp, bench, client, keys):
    """Exit 1, a sentence for each, read from a real run."""
    bench.enqueue("a", "b", "c")
    (entry,) = bench.take()
    client.zadd(keys.delayed, {entry: 1})
    client.xadd(keys.jobs, {"what": "ever"})
    client.xadd(keys.failed, {"what": "ever"})
    client.hdel(keys.known, "c")
    client.hset(keys.attempts, mapping={"1-1": 1, "1-2": 1})
    result = halp("status", "--check")
    assert result.exit_code == 1
    starts = [one[:12] for one in result.stdout.splitlines()[1:]]
    assert starts == [
        "1 job more o",
        "0 jobs delay",
        "0 failed by ",
        "3 enqueued b",
        "3 jobs with ",
    ]
    result = halp("status", "--check", "--json")
    assert (result.exit_code, len(json.loads(result.stdout)["problems"])) == (1, 5)


def test_a_terminal_sees_how_far_a_long_command_is(server, bench, run):
    """A line that changes in place and is gone at the end; the result stays."""
    bench.enqueue(*(f"q{number}" for number in range(600)))
    program = "from halp_producer import cli, progress; progress._CHANGE_EVERY_S = 0; cli.main()"
    command = [sys.executable, "-c", program, "cancel", "--all", "--run", run]
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*command, "--redis-url", server.url], stdout=subprocess.PIPE, stderr=follower
    )
    os.close(follower)
    output, _ = process.communicate()
    seen = os.read(leader, 65536).decode()
    os.close(leader)
    assert "\r\x1b[K250 cancelled" in seen
    assert seen.endswith("\r\x1b[K")
    assert output.decode() == f"run {run}: 600 cancelled\n"
