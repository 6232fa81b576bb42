"""`Catalogue`: the store as of about now, also where there is none yet.

Followed on one thread, only while somebody looks, once a second at most. What it gives out are
views, which do not change, so requests need no lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from halp_store.address import storage_at
from halp_store.errors import StoreError
from halp_store.reader import Store, open_store
from halp_store.storage import METADATA, Storage
from halp_store.view import View

_EVERY_S: Final = 1.0

_SHARE: Final = 10
"""A refresh that took a second (a million rows are sorted anew) comes once in ten."""


@dataclass(frozen=True)
class Shown:
    """view: all rows, None where there is no store (yet). problem: what is wrong or awaited, in a
    sentence; with a view, that it is not of now. changes: another number, other rows."""

    view: View | None = None
    problem: str | None = "the store is being opened"
    changes: int = 0
    generation: str | None = None
    segments: int = 0


class Catalogue:
    """One store. Everything may be called from any thread."""

    def __init__(self, path_or_url: str) -> None:
        """Raises BadAddress or RemoteExtraMissing; nothing is looked at."""
        self._storage: Storage = storage_at(path_or_url)
        self._store: Store | None = None
        self._shown = Shown()
        self._wanted, self._stop = threading.Event(), threading.Event()

    @property
    def where(self) -> str:
        """The store's path or URL."""
        return self._storage.where

    def now(self) -> Shown:
        """What is known, at once; what was committed since is looked for after it."""
        self._wanted.set()
        return self._shown

    def doubt(self) -> None:
        """Open the store anew: what was to be read is not there, so it may be another by now."""
        self._store = None

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follows the store on a thread of its own until the end of the `with` block."""
        self._wanted.set()
        threading.Thread(target=self._follow, name="halp-catalogue", daemon=True).start()
        try:
            yield
        finally:
            # Not waited for: a disk that hangs would hold up the end.
            self._stop.set()
            self._wanted.set()

    def _follow(self) -> None:
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            self._wanted.wait()
            self._wanted.clear()
            started = time.monotonic()
            self._shown = self._look()
            pause_s = max(_EVERY_S, _SHARE * (time.monotonic() - started))

    def _look(self) -> Shown:
        before = self._shown
        try:
            if (store := self._store) is None:
                if self._is_absent():
                    return Shown(problem=self._awaited(), changes=before.changes)
                store = self._store = open_store(self.where, storage=self._storage)
            else:
                store.refresh()
        except (StoreError, OSError) as error:
            return replace(before, problem=str(error))
        after = replace(
            before, problem=None, generation=store.generation, segments=len(store.segments)
        )
        # A view keeps its ids; a store that shows other rows has another tuple of them.
        if (
            before.view is not None
            and before.view.ids is store.ids
            and after == replace(before, problem=None)
        ):
            return after
        return replace(after, view=store[:], changes=before.changes + 1)

    def _is_absent(self) -> bool:
        return self._storage.read(METADATA) is None and not self._storage.is_foreign()

    def _awaited(self) -> str:
        return (
            f"{self.where}: there is no store yet: the first worker makes it "
            f"(halp-worker run --store {self.where}), and it shows up here by itself"
        )
