"""`Compactors`: processes that compact and prune the store under the workers' hands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from chaos_watch import Story

COMMAND = "compact"
TIMEOUT_SECONDS = 60


class Compactors:
    """Each is `halp-store compact STORE --prune --grace-seconds 0`: nothing is spared."""

    def __init__(
        self,
        store: Path,
        folder: Path,
        story: Story,
        problems: list[str],
        excuses: Callable[[str], bool],
    ) -> None:
        self._store, self._story, self._problems = store, story, problems
        self._excuses = excuses
        self._log = folder / "compactors.log"
        self._running: list[subprocess.Popen[bytes]] = []
        self._killed: set[int] = set()

    def start(self) -> bool:
        """Whether there is a store to compact, and fewer than two are at it."""
        self._reap()
        if len(self._running) > 1 or not (self._store / "zarr.json").exists():
            return False
        script = Path(sys.executable).with_name("halp-store")
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [script, "compact", self._store, "--prune", "--grace-seconds", "0"],
                stdout=log,
                stderr=log,
            )
        self._story.tell(f"compactor {process.pid} starts")
        self._running.append(process)
        return True

    def kill(self) -> None:
        """The one that started last, if it still runs."""
        self._reap()
        if self._running:
            victim = self._running[-1]
            self._story.tell(f"kill compactor {victim.pid}")
            self._killed.add(victim.pid)
            victim.kill()

    def end(self) -> None:
        """All come to their end by themselves."""
        for process in self._running:
            process.wait(TIMEOUT_SECONDS)
        self._reap()

    def _reap(self) -> None:
        for process in list(self._running):
            if (code := process.poll()) is None:
                continue
            self._running.remove(process)
            self._story.tell(f"compactor {process.pid} ended with {code}")
            tail = self._log.read_text(errors="replace")[-3000:]
            if code and process.pid not in self._killed and not self._excuses(tail):
                self._problems.append(f"a compactor ended with {code}\n{tail}")
