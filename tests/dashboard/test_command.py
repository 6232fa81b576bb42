"""`halp-worker dashboard`: as a process, and what it refuses before it listens."""

import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from typer.testing import CliRunner

from halp_store.errors import StoreError
from halp_worker.cli import app
from halp_worker.dashboard.serving import DashboardSettings, served
from halp_worker.fates import FatalError
from processes import Process

from .conftest import NO_SERVER, write_rows


def served_with(tmp_path, **changes):
    settings = {
        "store": str(tmp_path / "s.zarr"),
        "image_root": None,
        "run": "default",
        "redis_url": NO_SERVER,
        "host": "127.0.0.1",
        "port": 0,
        "allow_remote": False,
    }
    return served(DashboardSettings(**settings | changes))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_with_code_0(tmp_path, how):
    """Also while a browser keeps its connection, and with nothing said."""
    write_rows(tmp_path / "s.zarr", [{"question_id": "q1"}])
    with Process(
        [
            *(sys.executable, "-m", "halp_worker", "dashboard", "--redis-url", NO_SERVER),
            *("--store", tmp_path / "s.zarr", "--port", "0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(f"{address}healthz") as answer:  # noqa: S310 - our own
            assert answer.read() == b'{"ok":true}'
            process.send_signal(how)
            _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "box.example"])  # noqa: S104
def test_more_than_this_machine_takes_a_word_of_its_own(tmp_path, host):
    """Which says what it means: there is no password."""
    with (
        pytest.raises(FatalError, match=r"no password.*--allow-remote"),
        served_with(tmp_path, host=host),
    ):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_this_machine_needs_no_word(tmp_path, host):
    """Any of its own addresses."""
    with served_with(tmp_path, host=host) as address:
        assert address.startswith(f"http://{host}:")


def test_an_address_that_is_taken_is_one_sentence(tmp_path):
    """Which says how to get another."""
    with served_with(tmp_path) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        with (
            pytest.raises(FatalError, match=f"cannot be served at 127.0.0.1:{port}.*--port"),
            served_with(tmp_path, port=port),
        ):
            pass


def test_a_store_that_cannot_be_is_refused_at_once(tmp_path):
    """One that is not there yet is no error; an address of no kind is."""
    with (
        pytest.raises(StoreError, match="is no place for a store"),
        served_with(tmp_path, store="ftp://x/y"),
    ):
        pass


def test_what_it_refuses_is_one_sentence_and_exit_code_1(tmp_path):
    """As with every command."""
    ended = CliRunner().invoke(
        app, ["dashboard", "--store", str(tmp_path / "s.zarr"), "--host", "192.0.2.1"]
    )
    assert ended.exit_code == 1
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith("halp-worker: --host 192.0.2.1 is more than this machine")


def test_help_shows_how_to_use_it():
    """With examples, and without loading anything."""
    shown = CliRunner().invoke(app, ["dashboard", "--help"])
    assert shown.exit_code == 0
    assert "halp-worker dashboard --store run1.zarr --image-root images/" in shown.stdout
