"""`Faults`: the operating system refuses the n-th thing that `halp_store` asks of it.

Below LocalStorage, where real faults come from: the names of `os` that it uses, and reads of files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from threading import Lock
from typing import Any

import pytest

from halp_store import local

CALLS = (
    *("open", "write", "fsync", "link", "unlink", "rmdir", "mkdir", "scandir", "stat", "fstat"),
    *("replace", "ftruncate", "pwrite", "preadv"),
)
# `pathlib` and `tempfile` call for those that use them here.
_CALLERS = ("halp_store", "pathlib", "tempfile")


class Faults:
    """Used with `with`; counts calls from there on.

    strike: is called at the n-th call, once; what it raises comes out of the call.
    """

    def __init__(self, at: int, strike: Callable[[], object]) -> None:
        self._at, self._strike = at, strike
        self._patch = pytest.MonkeyPatch()
        self._lock = Lock()
        self.calls = 0

    @classmethod
    def failing(cls, at: int, number: int) -> Faults:
        """The n-th call fails with this errno."""

        def fail() -> None:
            raise OSError(number, os.strerror(number))

        return cls(at, fail)

    @property
    def was_hit(self) -> bool:
        return self.calls >= self._at

    def __enter__(self) -> Faults:
        for name in CALLS:
            self._patch.setattr(os, name, self._wrapped(getattr(os, name)))
        opened = local._opened

        def opened_here(descriptor: int) -> Any:
            self._count()
            return opened(descriptor)

        self._patch.setattr(local, "_opened", opened_here)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.partition(".")[0] in _CALLERS:
                self._count()
            return real(*arguments, **options)

        return call

    def _count(self) -> None:
        with self._lock:
            self.calls += 1
            strikes = self.calls == self._at
        if strikes:
            self._strike()
