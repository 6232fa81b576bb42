"""The suite ends, also where SIGINT is ignored or a program that a test started does not end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from processes import Process

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_a_test_that_sends_sigint_ends_where_a_shell_has_it_ignored():
    """As a script's `&` and `nohup` have it: the suite takes it back for all it starts."""
    meant = f"{TESTS / 'store' / 'test_follow.py'}::test_it_can_be_interrupted"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", meant],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS.parent,
        timeout=100,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_block_that_an_error_leaves_kills_its_program():
    """The error may be the test's timeout; the program would run for an hour."""
    with (
        pytest.raises(TimeoutError),
        Process([sys.executable, "-c", "import time; time.sleep(3600)"]) as process,
    ):
        raise TimeoutError
    assert process.returncode == -signal.SIGKILL


def test_no_test_waits_for_a_program_for_ever():
    """Blocks are of `Process`."""
    waiting = "with subprocess." + "Popen("
    assert [path.name for path in TESTS.rglob("*.py") if waiting in path.read_text()] == []
