"""The lines a worker writes about its work: one record one line, no secrets, ids as fields."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import warnings

import pytest
from typer.testing import CliRunner

from halp_worker.cli import app
from halp_worker.logs import JsonLines, TextLines, belong_to
from halp_worker.mention import NAMED, jobs, named

URL = "redis://user:s3cr%21t@host:6379/0"


def record(message, *arguments, exc_info=None, **extra):
    return logging.getLogger("test").makeRecord(
        "test", logging.WARNING, "x.py", 1, message, arguments, exc_info, extra=extra
    )


def raised(text):
    try:
        raise ValueError(text)
    except ValueError:
        return sys.exc_info()


def test_a_line_of_json_has_the_time_the_words_and_the_fields():
    """RFC 3339 in UTC; what was passed as `extra` keeps its type."""
    lines = JsonLines()
    lines.always = {"worker": "w1", "run": "r"}
    one = record("failed %s", "q1", question_id="q1", attempt=2, segment=None)
    one.created = 1_700_000_000.1234
    assert json.loads(lines.format(one)) == {
        **{"time": "2023-11-14T22:13:20.123Z", "level": "warning", "message": "failed q1"},
        **{"logger": "test", "worker": "w1", "run": "r"},
        **{"question_id": "q1", "attempt": 2, "segment": None},
    }


def test_an_exception_is_a_field():
    """With its traceback, and still one line."""
    line = JsonLines().format(record("broken", exc_info=raised("why\nnot")))
    assert "\n" not in line
    fields = json.loads(line)
    assert fields["message"] == "broken"
    assert fields["exception"].endswith("ValueError: why\nnot")
    text = TextLines().format(record("broken", exc_info=raised("why")))
    assert text.splitlines()[-1] == "ValueError: why"


@pytest.mark.parametrize("lines", [JsonLines(URL), TextLines(URL)])
def test_the_servers_password_is_in_no_line(lines):
    """Neither as it is in the URL nor as it is; in words, fields and tracebacks."""
    one = record("a %s", "s3cr%21t", exc_info=raised("s3cr!t"), url=URL, urls=[URL])
    line = lines.format(one)
    assert "s3cr" not in line
    assert "***" in line


@pytest.mark.parametrize("lines", [JsonLines(), TextLines()])
def test_a_hostile_id_makes_no_line_of_its_own(lines):
    """Nor does it move the cursor of who reads the log."""
    evil = "q\n2026-01-01 INFO stored\x1b[2J\r\u2028\udcff"
    line = lines.format(record("failed %s", evil, question_id=evil))
    assert line.isprintable()
    assert len(line.splitlines()) == 1


def test_a_warning_of_a_library_is_one_line():
    """Without the line break before its code."""
    text = warnings.formatwarning("look out", UserWarning, "x.py", 3, "code()")
    one = logging.getLogger("py.warnings").makeRecord(
        "py.warnings", logging.WARNING, "", 0, "%s", (text,), None
    )
    assert TextLines().format(one).endswith("WARNING x.py:3: UserWarning: look out code()")


def test_many_jobs_are_named_by_the_first_and_counted():
    """A single one has a field of its own."""
    ids = [f"q{n}" for n in range(64)]
    assert named(ids[:2]) == "q0, q1"
    assert named(ids) == f"{', '.join(ids[:NAMED])} and {64 - NAMED} more"
    assert jobs(ids) == {"jobs": 64, "question_ids": ids[:NAMED]}
    assert jobs(["q1"]) == {"question_id": "q1"}


def test_belonging_needs_no_logging_that_was_set_up():
    """Tests and benchmarks have handlers of their own."""
    belong_to(worker="w1", run="r")


WHOLE = """
import sys, threading, warnings, logging
from halp_worker.logs import set_up_logging, belong_to
set_up_logging("json", "redis://:s3cret@h/0")
belong_to(worker="w1")
warnings.warn("look out")
logging.getLogger("x").info("hello", extra={"question_id": "q1"})
def broken(): raise RuntimeError("on a thread")
one = threading.Thread(target=broken); one.start(); one.join()
raise RuntimeError("s3cret at the end")
"""


def test_in_a_process_everything_on_stderr_is_json():
    """Warnings, what a thread raises, and what ends it: the exit code stays 1."""
    done = subprocess.run(
        [sys.executable, "-c", WHOLE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    lines = [json.loads(one) for one in done.stderr.splitlines()]
    assert [one["level"] for one in lines] == ["warning", "info", "critical", "critical"]
    assert all(one["worker"] == "w1" for one in lines)
    assert "look out" in lines[0]["message"]
    assert lines[1]["question_id"] == "q1"
    assert "RuntimeError: on a thread" in lines[2]["exception"]
    assert lines[3]["message"] == "unforeseen: RuntimeError: *** at the end"


@pytest.mark.slow
def test_an_error_that_is_explained_is_a_record_too(tmp_path, caplog, monkeypatch):
    """The last words of a worker that cannot start, with its exit code: no line without JSON."""
    for owner in (sys, threading):  # set up for a whole process: here for one test
        monkeypatch.setattr(owner, "excepthook", owner.excepthook)
    options = ("--redis-url", "redis://:s3cret@127.0.0.1:1/0", "--log-format", "json")
    shown = CliRunner().invoke(app, ["run", "--store", str(tmp_path / "s"), *options])
    assert (shown.exit_code, shown.output) == (1, "")
    last = caplog.records[-1]
    assert last.levelname == "CRITICAL"
    assert last.getMessage().startswith("no server at redis://:***@127.0.0.1:1/0")
