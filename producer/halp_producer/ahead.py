"""`read_ahead`: an iterator that is worked on by a thread while its reader waits for a server.

Knows threads and queues; refuses to know what is iterated.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from queue import Full, Queue
from typing import Final, TypeVar

Item = TypeVar("Item")

_AHEAD: Final = 2
"""Items ready: one to take, one so that the thread need not stop when the reader comes late."""

_LOOK_UP_S: Final = 0.1
"""How soon a thread that waits for room notices that nobody reads any more."""


def read_ahead(items: Iterator[Item]) -> Generator[Item]:
    """The same items in the same order, each made while the one before it is in use.

    An exception from `items` is raised after the items before it. `items` runs in another thread
    and nowhere else; close the generator, and that thread has ended.
    """
    ready: Queue[tuple[Item] | BaseException | None] = Queue(_AHEAD)
    stop = threading.Event()

    def put(one: tuple[Item] | BaseException | None) -> None:
        while not stop.is_set():
            with suppress(Full):
                ready.put(one, timeout=_LOOK_UP_S)
                return

    def work() -> None:
        try:
            for item in items:
                put((item,))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 (raised again, in the reader's thread)
            put(error)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (one := ready.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one[0]
    finally:
        stop.set()
        thread.join()
