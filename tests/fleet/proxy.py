"""`Proxy`: a server's loopback neighbour that forwards commands one by one and can lose a reply.

It reads just enough of the protocol to tell where a command and where a reply ends (RESP2 and
RESP3, nested), so that exactly one reply can be lost: the command took effect, the client never
hears of it. It does not notice that a client is gone before the reply it waits for is there.
"""

from __future__ import annotations

import hashlib
import socket
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from halp_producer import enqueue
from halp_worker import scripts

SCRIPTS: Final = {
    name: text
    for name, text in vars(scripts).items()
    if name.isupper() and not name.startswith("_")
} | {"ENQUEUE": enqueue._SCRIPT}
"""What is recorded for a script, and its text."""

_NAMES: Final = {
    hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): name
    for name, text in SCRIPTS.items()
}

_WITH_SUBCOMMAND: Final = {"CLIENT", "CONFIG", "SCRIPT", "XGROUP", "XINFO"}


class Loss(StrEnum):
    """hang_up: the connection is closed instead. silence: it stays open, and nothing comes."""

    HANG_UP = "hang up"
    SILENCE = "silence"


class _Wire:
    """One end of a connection, read in whole commands or replies. Raises EOFError, OSError."""

    def __init__(self, end: socket.socket) -> None:
        self._file = end.makefile("rb")

    def close(self) -> None:
        self._file.close()

    def line(self) -> bytes:
        found = self._file.readline()
        if not found.endswith(b"\n"):
            raise EOFError
        return found

    def _exactly(self, size: int) -> bytes:
        found = self._file.read(size)
        if len(found) < size:
            raise EOFError
        return found

    def command(self) -> tuple[bytes, list[str]]:
        """As it was sent, and its words."""
        head = self.line()
        if not head.startswith(b"*"):
            return head, head.decode().split()
        raw, words = head, []
        for _ in range(int(head[1:])):
            size = self.line()
            word = self._exactly(int(size[1:]) + 2)
            raw += size + word
            words.append(word[:-2].decode("utf-8", "replace"))
        return raw, words

    def reply(self) -> bytes:
        """One whole reply, with what the server tells unasked before it."""
        head = self.line()
        kind, rest = head[:1], head[1:].strip()
        if kind in b"+-:_#,(":
            return head
        size = int(rest)
        if kind in b"$=!":
            return head if size < 0 else head + self._exactly(size + 2)
        parts = 2 * size if kind in b"%|" else max(0, size)
        whole = head + b"".join(self.reply() for _ in range(parts))
        return whole + self.reply() if kind in b"|>" else whole

    def drain(self) -> None:
        """Returns when the other side has hung up."""
        while self._file.read(1):
            pass


class Proxy:
    """Context manager. `url` is that of the server, by way of here.

    seen: the name of each command that was answered, in order. A script goes by its name in
    `halp_worker.scripts`, or ENQUEUE; one that the server did not know by `<name> NOSCRIPT`.
    lost: those of them whose replies were lost. asked: first words of what was sent on.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}{parts.path}"
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name="proxy")]
        self._is_closed = False
        self._plan: dict[str, Collection[int]] = {}
        self._numbers: Collection[int] = ()
        self._how = Loss.HANG_UP
        self._counted: Counter[str] = Counter()
        self.seen: list[str] = []
        self.lost: list[str] = []
        self.asked: set[str] = set()

    def lose(self, plan: dict[str, Collection[int]], how: Loss = Loss.HANG_UP) -> None:
        """Name of a command -> which of its replies, counted from now on from 1, are lost."""
        with self._lock:
            self._counted.clear()
            self._plan, self._how = plan, how

    def lose_numbers(self, *numbers: int) -> None:
        """Of all replies, counted from now on from 1, these are lost."""
        with self._lock:
            self._counted.clear()
            self._numbers = numbers

    def __enter__(self) -> Proxy:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_closed = True
            ends = list(self._ends)
        for end in [self._listener, *ends]:
            _hang_up(end)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=[client], name="proxy")
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with self._tracked(client) as asks, socket.create_connection(self._upstream) as server:
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._tracked(server) as answers:
                    self._forward(client, asks, server, answers)
        except (OSError, EOFError):
            pass  # one side has hung up: so does this

    def _forward(
        self, client: socket.socket, asks: _Wire, server: socket.socket, answers: _Wire
    ) -> None:
        while True:
            raw, words = asks.command()
            server.sendall(raw)
            self.asked.add(words[0].upper())
            reply = answers.reply()
            if not self._is_lost(_name(words, reply)):
                client.sendall(reply)
            elif self._how is Loss.HANG_UP:
                return
            else:
                asks.drain()
                return

    def _is_lost(self, name: str) -> bool:
        with self._lock:
            self.seen.append(name)
            self._counted[name] += 1
            lost = (
                self._counted[name] in self._plan.get(name, ())
                or self._counted.total() in self._numbers
            )
            if lost:
                self.lost.append(name)
            return lost

    @contextmanager
    def _tracked(self, end: socket.socket) -> Iterator[_Wire]:
        with self._lock:
            if self._is_closed:
                end.close()
                raise EOFError
            self._ends.add(end)
        wire = _Wire(end)
        try:
            yield wire
        finally:
            with self._lock:
                self._ends.discard(end)
            _hang_up(end)
            wire.close()
            end.close()


def _name(words: list[str], reply: bytes) -> str:
    first = words[0].upper()
    if first == "EVALSHA":
        name = _NAMES.get(words[1], words[1])
        return f"{name} NOSCRIPT" if reply.startswith(b"-NOSCRIPT") else name
    if first in _WITH_SUBCOMMAND and len(words) > 1:
        return f"{first} {words[1].upper()}"
    return first


def _hang_up(end: socket.socket) -> None:
    """Also wakes whoever waits on it, which closing does not."""
    with suppress(OSError):  # the other side was faster
        end.shutdown(socket.SHUT_RDWR)
