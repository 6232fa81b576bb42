"""`WorkerActivity`: what a worker says of itself on the server, and what `status` shows of it."""

from __future__ import annotations

import json
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

RUNNING: Final = "running"
STOPPING: Final = "stopping"
STORE_AWAY: Final = "store unavailable"
"""The state of a worker that keeps its rows and waits until it can write to its store."""

STOPPED: Final = "stopped"
"""The state of a worker that left by itself; it says so in its last heartbeat."""


class WorkerActivity(BaseModel):
    """One worker's last heartbeat. Written by workers, read by `halp-producer status`.

    Times are Unix milliseconds by the server's clock: the script that writes them moves them from
    the worker's own. `done` and `failed` count since this worker started;
    `rows_per_second` is its rate over the last minute or since its start. `polled_ms`: when the
    server last answered its read, 0 if it has not yet; while a batch runs, not after its start;
    while the store is unavailable, when the worker last tried it. `place`: its host and what its
    settings say of images; workers of one place can read the same images.
    `batch_jobs`: of the last batch, 0 before the first. `memory_bytes`: the most that was in use,
    of the device where that is CUDA, else of the process. `store`: its path or URL. Zero and empty
    too where a worker of an older version does not say.
    """

    model_config = ConfigDict(frozen=True)

    worker: str
    host: str
    pid: int
    device: str
    model: str
    state: str
    started_ms: int
    seen_ms: int
    polled_ms: int = 0
    in_hand: int = 0
    done: int = 0
    failed: int = 0
    rows_per_second: float = 0.0
    batch_jobs: int = 0
    memory_bytes: int = 0
    store: str = ""
    place: str = ""


def read_activity(value: bytes) -> WorkerActivity | None:
    """The heartbeat that was written; None for what cannot be read as one."""
    try:
        return WorkerActivity.model_validate(json.loads(value))
    except (ValidationError, ValueError):
        return None
