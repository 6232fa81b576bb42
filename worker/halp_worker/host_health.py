"""`HostHealth`: whether images cannot be read because of the jobs or because of this host.

Knows fates and jobs; does not know the queue. A fault that may be the host's is certain only once
the host has read another image: until then it is held. A host that cannot read the images of
`HOST_FAULTS` jobs in a row, nor one that it has read before, is broken.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from halp_producer.images import is_url
from halp_producer.job import Job
from halp_store.features import RowKey
from halp_worker.batcher import Taken
from halp_worker.fates import FatalError, Fate, HostPart, Rejected, Retryable

HOST_FAULTS: Final = 10
"""So many jobs in a row. A data set seldom lacks as many images one after the other; a host that
reads none finds out before it has held many jobs from others."""

_ADVICE: Final = {
    HostPart.IMAGES: "check --image-root, its mount and its permissions",
    HostPart.NETWORK: "check its network, its proxy and --allow-urls, or put the files below "
    "--image-root",
}

Settled = tuple[RowKey, Fate]


class HostBroken(FatalError):  # noqa: N818 - named for what it says
    """This host reads no images, whatever the job."""


@dataclass
class _Part:
    """rows: those that failed since the last success. error: the last one's. held: fates that are
    not yet certain. known: a job whose image was read."""

    rows: set[RowKey] = field(default_factory=set)
    error: str = ""
    held: list[Settled] = field(default_factory=list)
    known: Job | None = None


class HostHealth:
    """prepare: reads the image of a job, or raises. `drain` may be called from another thread."""

    def __init__(self, prepare: Callable[[Job], object]) -> None:
        self._prepare = prepare
        self._parts = {part: _Part() for part in HostPart}
        self._lock = threading.Lock()
        self.broken: HostBroken | None = None
        """What the worker stops with."""

    def __len__(self) -> int:
        """Fates that are held."""
        return sum(len(part.held) for part in self._parts.values())

    def judge(self, taken: Taken[Any]) -> list[Settled]:
        """The fates that are certain now; the others are held."""
        last = {part_of(job): (job, place) for job, place in taken.prepared}
        certain = [settled for settled in taken.fates if settled[1].host_part is None]
        for name, part in self._parts.items():
            known, place = last.get(name, (None, 0))
            if known is not None:
                part.known = known
                certain += self._clear(part)
            for at, (key, fate) in enumerate(taken.fates):
                if fate.host_part is not name:
                    continue
                if at < place:
                    certain.append((key, fate))
                else:
                    self._hold(part, key, fate)
            if len(part.rows) >= HOST_FAULTS:
                certain += self._decide(name, part)
        return certain

    def judge_held(self) -> list[Settled]:
        """All that is held: there is nothing else to do that could tell."""
        with self._lock:
            held = [settled for part in self._parts.values() for settled in part.held]
            for part in self._parts.values():
                part.held = []
        return held

    def drain(self) -> list[RowKey]:
        """Gives up all fates that are held; returns whose they are."""
        return [key for key, _ in self.judge_held()]

    def _hold(self, part: _Part, key: RowKey, fate: Fate) -> None:
        with self._lock:
            part.rows.add(key)
            part.error = fate.error
            part.held.append((key, fate))

    def _clear(self, part: _Part) -> list[Settled]:
        with self._lock:
            held, part.held, part.rows = part.held, [], set()
        return held

    def _decide(self, name: HostPart, part: _Part) -> list[Settled]:
        if part.known is not None and self._can_read(part.known):
            return self._clear(part)
        self.broken = HostBroken(
            f"this host could not read the images of {len(part.rows)} jobs in a row, the last: "
            f"{part.error}; {_ADVICE[name]}. Its jobs were given back, no attempt counted: another "
            "worker can do them"
        )
        return []

    def _can_read(self, job: Job) -> bool:
        try:
            self._prepare(job)
        except (Rejected, Retryable):
            return False
        return True


def part_of(job: Job) -> HostPart | None:
    """What of the host its image needs; None for one that travels inside the job."""
    if job.image_data is not None:
        return None
    return HostPart.NETWORK if is_url(job.image) else HostPart.IMAGES


def place_of(image_root: Path, *, allow_urls: bool) -> str:
    """A name for this host with what decides which images it can read: the folder that the image
    root is here, the user, and whether URLs are loaded. Workers of one place need not be asked
    one after the other. Without blanks."""
    root = image_root.absolute()
    try:
        status = os.stat(root)  # noqa: PTH116 - a path that cannot be looked at is a place as well
        folder = (status.st_dev, status.st_ino)
    except (OSError, ValueError):
        folder = (0, 0)
    seen = repr((str(root), folder, os.geteuid(), allow_urls))
    host = "".join(socket.gethostname().split()) or "host"
    return f"{host}:{hashlib.sha256(seen.encode('utf-8', 'backslashreplace')).hexdigest()[:8]}"
