"""`halp-producer` as people run it: a process, its exit code, what it prints where."""

from __future__ import annotations

import inspect
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from halp_producer import __version__, ask_cli, cli, failed_cli
from halp_producer.job import decode
from halp_producer.keys import RunKeys
from processes import Process

COMMAND = [sys.executable, "-m", "halp_producer"]
NO_SERVER = "redis://127.0.0.1:1/0"


def row(question_id: object, **changes: object) -> str:
    record = {"question_id": question_id, "image": "a.jpg", "question": "What?", "answer": "x"}
    return json.dumps({**record, **changes}) + "\n"


@pytest.fixture
def good(tmp_path) -> Path:
    path = tmp_path / "good.jsonl"
    path.write_text("".join(row(f"q{number}") for number in range(10)))
    return path


@pytest.fixture
def bad(tmp_path) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text(row("a") + "{\n" + row("") + row("b"))
    return path


def test_enqueue_says_what_it_did_and_what_to_do_next(halp, good, client, run):
    """Exit 0; the last line of stdout is the next step."""
    result = halp("enqueue", good)
    assert result.exit_code == 0
    first, last = result.stdout.splitlines()
    assert first.startswith(f"run {run}: 10 added, 0 already there (")
    assert last.startswith("next: halp-worker run --store STORE")
    assert client.xlen(RunKeys(run).jobs) == 10
    assert "0 added, 10 already there" in halp("enqueue", good).stdout
    assert client.xlen(RunKeys(run).jobs) == 10


def test_bad_lines_go_to_stderr_and_stop_everything(halp, bad, client, run):
    """Exit 1, every bad line, and how to go on."""
    result = halp("enqueue", bad)
    assert result.exit_code == 1
    assert [one.split(": ")[0] for one in result.stderr.splitlines()] == [f"{bad}:2", f"{bad}:3"]
    assert f"{bad}: 2 bad lines" in result.stdout
    assert "nothing enqueued" in result.stdout
    assert "--on-invalid skip" in result.stdout
    assert client.xlen(RunKeys(run).jobs) == 0


def test_skip_takes_the_rest_and_exits_1(halp, bad, client, run):
    """The good lines are in the run; the exit code still says that some are not."""
    result = halp("enqueue", bad, "--on-invalid", "skip")
    assert result.exit_code == 1
    assert f"run {run}: 2 added" in result.stdout
    assert client.xlen(RunKeys(run).jobs) == 2


def test_a_conflict_exits_1(halp, good, tmp_path):
    """Reported with file and line, after everything else was enqueued."""
    assert halp("enqueue", good).exit_code == 0
    other = tmp_path / "other.jsonl"
    other.write_text(row("new") + row("q1", question="Other?"))
    result = halp("enqueue", other)
    assert result.exit_code == 1
    assert f"{other}:2: question_id: 'q1' is already in this run" in result.stderr
    assert "1 added, 0 already there, 1 conflict" in result.stdout


def test_a_dry_run_adds_nothing_and_needs_no_server(halp, good, bad, client, run):
    """The same checks and exit codes, without a connection."""
    result = halp("enqueue", good, "--dry-run", "--redis-url", NO_SERVER)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "nothing enqueued (dry run), 10 questions would be" in result.stdout
    assert halp("enqueue", bad, "--dry-run", "--redis-url", NO_SERVER).exit_code == 1
    assert client.keys(f"halp:{{{run}}}:*") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("enqueue", "no-such-file.jsonl"),
        ("enqueue",),
        ("enqueue", "{good}", "--on-invalid", "maybe"),
        ("enqueue", "{good}", "--max-backlog", "0"),
        ("enqueue", "{good}", "--map", "image"),
        ("enqueue", "{good}", "--run", "two words"),
        ("status", "--run", "-"),
        ("failed",),
        ("failed", "list", "--limit", "0"),
        ("dance",),
    ],
)
def test_wrong_usage_exits_2(halp, good, arguments):
    """Before anything is read or connected."""
    result = halp(*(one.format(good=good) for one in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""


def test_an_unknown_format_exits_1(halp, tmp_path):
    """It is the data that is wrong, and the message says what would do."""
    path = tmp_path / "d.parquet"
    path.touch()
    result = halp("enqueue", path)
    assert result.exit_code == 1
    assert "expected .jsonl, .ndjson or .csv" in result.stderr


def test_json_is_one_document_on_stdout(halp, bad, good):
    """Whatever happens on stderr."""
    result = halp("enqueue", bad, "--on-invalid", "skip", "--json")
    report = json.loads(result.stdout)
    assert (report["added"], report["bad"], report["stopped"]) == (2, 2, False)
    status = json.loads(halp("status", "--json").stdout)
    assert (status["enqueued"], status["waiting"], status["workers"]) == (2, 2, [])
    assert json.loads(halp("failed", "list", "--json").stdout) == []


def test_status_and_failed_of_an_unknown_run_exit_1(halp):
    """A typing error in --run is said, not shown as zeros."""
    for command in (["status"], ["failed", "list"], ["failed", "show", "q"]):
        result = halp(*command, "--run", "nobody")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "error: no run 'nobody'" in result.stderr


def test_status_shows_the_sum_and_the_workers(halp, good, client, run):
    """One line of numbers that add up, one line for each worker."""
    keys = RunKeys(run)
    halp("enqueue", good)
    client.xreadgroup("workers", "w1", {keys.jobs: ">"}, count=3)
    client.hset(keys.workers, "w2", "{}")
    lines = halp("status").stdout.splitlines()
    expected = f"run {run}: 10 enqueued = 7 waiting + 0 delayed + 3 in flight + 0 done + 0 failed"
    assert lines[0] == expected
    assert [one.split()[0] for one in lines[2:]] == ["w1", "w2"]


def test_failed_lists_reasons_on_one_line_each(halp, good, client, run):
    """Text from elsewhere cannot break the line or drive the terminal."""
    halp("enqueue", good)
    keys = RunKeys(run)
    fields = {"question_id": "q1", "image": "a.jpg", "worker": "w", "failed_ms": 1700000000000}
    for _ in range(2):
        client.xadd(keys.failed, {**fields, "reason": "image-broken", "error": "bad\n\x1b[31m"})
        client.hincrby(keys.counts, "failed", 1)
    result = halp("failed", "list", "--limit", "1")
    line, total = result.stdout.splitlines()
    assert line == "q1: image-broken: bad\\n\\x1b[31m (a.jpg; w, 2023-11-14 22:13:20 UTC)"
    assert total == f"run {run}: 2 failed, 1 shown"
    assert len(json.loads(halp("failed", "list", "--json").stdout)) == 2


def test_an_image_root_that_is_not_visible_is_said_once(halp, good, tmp_path):
    """The images may be on another machine; then nothing is checked, and that is said."""
    result = halp("enqueue", good, "--image-root", tmp_path / "elsewhere", "--dry-run")
    assert result.exit_code == 0
    assert result.stderr.count("is not visible here: images are not checked") == 1
    result = halp("enqueue", good, "--image-root", tmp_path, "--dry-run")
    assert result.exit_code == 1
    assert result.stderr.count("image: not found: a.jpg") == 10


def test_the_version_is_the_distributions(halp):
    """`halp-producer --version`."""
    assert halp("--version").stdout == f"halp-stream {__version__}\n"


WHAT_TO_MOVE = {"everything", "reason"}
"""Said on the command line alone: a variable that was left over must not choose what to drop."""

WHAT_TO_ASK = {"truth", "question_id"}
"""Of one question, and of no other."""


def commands() -> list[tuple]:
    """(name, command, function) of every command, those of the group too."""
    top = typer.main.get_command(cli.app).commands
    functions = {"ask": ask_cli.ask_question}
    pairs = [
        (one, top[one], functions.get(one) or getattr(cli, one)) for one in top if one != "failed"
    ]
    inner = top["failed"].commands
    named = {"list": "list_"}
    return pairs + [(one, inner[one], getattr(failed_cli, named.get(one, one))) for one in inner]


def test_every_option_is_also_a_variable_and_a_parameter():
    """CLI options, HALP_* variables and parameters cannot drift apart."""
    assert len(commands()) == 8
    for name, command, function in commands():
        shown = {one.name for one in command.params if one.name != "help"}
        assert shown == set(inspect.signature(function).parameters)
        for one in command.params:
            if one.opts[0].startswith("-") and one.name != "help":
                option = one.opts[0].removeprefix("--").replace("-", "_")
                variable = (
                    None if one.name in WHAT_TO_MOVE | WHAT_TO_ASK else f"HALP_{option.upper()}"
                )
                assert one.envvar == variable, (name, one.opts)
                assert one.help


def test_every_command_has_a_help_text_with_examples():
    """Each says what it does and shows a line that can be typed."""
    for name, command, _ in commands():
        assert command.help, name
        assert "halp-producer" in (command.epilog or ""), name


@pytest.mark.parametrize(
    "url", ["redis://:s3cret@127.0.0.1:1/0", "redis://:s3cret/x@h:p/0", "x://:s3cret@h"]
)
def test_the_password_is_in_no_output(good, url):
    """Errors are one sentence on stderr, without a traceback and without the password."""
    for command in (["enqueue", str(good)], ["status"], ["failed", "list"], ["cancel", "--all"]):
        result = CliRunner().invoke(cli.app, [*command, "--redis-url", url])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1
        assert "s3cret" not in result.stderr
        assert isinstance(result.exception, SystemExit)


def test_a_kill_in_the_middle_loses_and_doubles_nothing(server, client, run, tmp_path):
    """kill -9 while enqueueing, then the same command: exactly one entry for each question."""
    keys, count = RunKeys(run), 10_000
    path = tmp_path / "d.jsonl"
    path.write_text("".join(row(f"q{number}") for number in range(count)))
    command = [*COMMAND, "enqueue", str(path), "--run", run, "--redis-url", server.url, "--json"]
    held = [*command, "--max-backlog", "9000"]  # it waits there, if it is not killed before
    with Process(held, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while client.xlen(keys.jobs) < 1000:
            assert first.poll() is None
            time.sleep(0.001)
        first.kill()
    reached = client.xlen(keys.jobs)
    assert 1000 <= reached < count
    done = subprocess.run(command, capture_output=True, check=True)
    report = json.loads(done.stdout)
    assert (report["known"], report["added"]) == (reached, count - reached)
    ids = [decode(fields).question_id for _, fields in client.xrange(keys.jobs)]
    assert ids == [f"q{number}" for number in range(count)]
    assert client.hlen(keys.known) == count
    assert int(client.hget(keys.counts, "enqueued")) == count


def test_an_interrupt_says_that_the_same_command_goes_on(server, run, good):
    """Ctrl-C while waiting: exit 130 and one sentence, no traceback."""
    command = [*COMMAND, "enqueue", str(good), "--run", run, "--redis-url", server.url]
    with Process([*command, "--max-backlog", "3"], stderr=subprocess.PIPE, text=True) as process:
        assert "--max-backlog 3" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest == "interrupted; the same command goes on where this one stopped\n"


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(server, run, bad):
    """The bar is on stderr; problems stand above it, whole and unwrapped."""
    leader, follower = pty.openpty()
    command = [*COMMAND, "enqueue", str(bad), "--on-invalid", "skip", "--redis-url", server.url]
    process = subprocess.Popen(
        [*command, "--run", run],
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "60"},
    )
    os.close(follower)
    seen = b""
    while chunk := _read(leader):
        seen += chunk
    output, _ = process.communicate()
    os.close(leader)
    text = seen.decode()
    assert process.returncode == 1
    assert "checking" in text
    assert "enqueueing" in text
    assert "records" in text
    assert f"{bad}:3: question_id: is empty" in text
    assert b"2 added" in output


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # Linux says so when the other side is closed
        return b""
