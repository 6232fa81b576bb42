"""`StoreDisk`: the disk of the store, which is filled, and the store's folder, which is moved away
or exchanged for another store for a while."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from chaos_watch import Story

from halp_store.errors import StoreError
from halp_store.local import LocalStorage
from halp_store.root import claim_root, read_root

DISK_SIZE = "96m"
"""Several times what a storm stores."""

EXCUSES = (
    "is not there any more",
    "there is no store any more, but rows of run",
    "is not the store any more that rows of run",
    "not a store: expected the zarr.json",
    "the store is not available",
    "cannot ",
)
"""What ends a worker or a compaction while the store is away or its disk is full."""


class StoreDisk:
    """A small disk of its own where this user may mount one; else the disk is never filled."""

    def __init__(self, store: Path, story: Story, problems: list[str]) -> None:
        self._store, self._story, self._problems = store, story, problems
        self._away = store.with_name("away.zarr")
        self._stranger = store.with_name("stranger.zarr")
        self._ballast = store.with_name("ballast")
        self._troubled = False
        self.can_fill = self._mount(store.parent)

    def _mount(self, folder: Path) -> bool:
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "tmpfs", str(folder)]
        with suppress(FileNotFoundError):
            return not subprocess.run(command, capture_output=True, check=False).returncode
        return False

    def excuses(self, log: str) -> bool:
        """Whether trouble with the store, which there was, may have ended who wrote this log."""
        return self._troubled and any(words in log for words in EXCUSES)

    def hurt(self, kind: str) -> bool:
        """Whether it could be done now; `heal` ends it."""
        if self._away.exists() or self._ballast.exists():
            return False
        if kind == "fill store":
            return self.can_fill and self._fill()
        try:
            layout = read_root(LocalStorage(self._store)).layout
        except StoreError:
            return False  # there is none yet
        self._troubled = True
        self._story.tell(f"store: {kind}")
        self._store.rename(self._away)
        if kind == "exchange store":
            claim_root(LocalStorage(self._store), layout)
        return True

    def _fill(self) -> bool:
        self._troubled = True
        self._story.tell("store: its disk is full")
        with suppress(OSError), self._ballast.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        return True

    def heal(self) -> None:
        """The store is back at its place, and its disk has room."""
        self._ballast.unlink(missing_ok=True)
        if not self._away.exists():
            return
        if self._store.exists():
            self._store.rename(self._stranger)
            if rows := list(self._stranger.glob("segments/*/zarr.json")):
                self._problems.append(f"{len(rows)} segments in a store that took our place")
            shutil.rmtree(self._stranger)
        self._away.rename(self._store)
        self._story.tell("store: is back")

    def end(self) -> None:
        if self.can_fill:
            subprocess.run(["umount", "-l", self._store.parent], capture_output=True, check=False)
