"""The names of everything a run keeps on the server. They exist here and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

GROUP: Final = "workers"
"""The one consumer group of a run's stream."""

DELAYED: Final = "(delayed)"
"""The consumer that holds jobs which wait for another try; no worker can have this name."""

ENQUEUED: Final = "enqueued"
DONE: Final = "done"
FAILED: Final = "failed"
"""Fields of the counts hash. Always: enqueued = length of the stream + done + failed."""

FAILED_FOR: Final = "failed:"
"""Fields of the counts hash, each with a reason after it: the letters of `failed` by their reason.
Always: their sum = failed. One that comes to 0 is deleted."""

EPOCH: Final = "epoch"
"""Field of the counts hash: when the run's first job came, in Unix microseconds. Another one means
that the server forgot the run in between."""

LETTER_FIELDS: Final = ("reason", "error", "traceback", "attempts", "worker", "failed_ms")
"""What a dead letter has besides the job's fields. `attempts`: how often work was started."""

_RUN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class RunKeys:
    """Keys of one run. The braces keep them in one hash slot, so scripts may use them together.

    Raises ValueError for a name that is not 1 to 64 of `A-Za-z0-9._-`, starting with one of the
    first three kinds.
    """

    run: str

    def __post_init__(self) -> None:
        if not _RUN_NAME.fullmatch(self.run):
            raise ValueError(
                f"run name {self.run!r}: expected 1 to 64 letters, digits, '.', '_' or '-', "
                "starting with a letter or digit"
            )

    @property
    def jobs(self) -> str:
        """Stream. One entry a job; deleted when acknowledged, so its length is what is left."""
        return f"halp:{{{self.run}}}:jobs"

    @property
    def failed(self) -> str:
        """Stream of dead letters: the job's fields and those of `LETTER_FIELDS`."""
        return f"halp:{{{self.run}}}:failed"

    @property
    def delayed(self) -> str:
        """Sorted set: id of an entry pending for DELAYED -> when it is due, in Unix ms; 0 at once,
        -1 at once for workers of a place that has not refused it."""
        return f"halp:{{{self.run}}}:delayed"

    @property
    def attempts(self) -> str:
        """Hash: id of an entry on `jobs` -> how often work on it was started, after a blank by
        whom, unless that worker gave it back, and after a blank each the places (a host with its
        settings) that could not read its image."""
        return f"halp:{{{self.run}}}:attempts"

    @property
    def known(self) -> str:
        """Hash: question id -> `<entry id> <content hash>` of everything ever enqueued.

        The entry id is that on `jobs` (also when the entry is gone by now)."""
        return f"halp:{{{self.run}}}:known"

    @property
    def counts(self) -> str:
        """Hash: `enqueued`, `done`, `failed`, `failed:<reason>` of each reason, `epoch`."""
        return f"halp:{{{self.run}}}:counts"

    @property
    def results(self) -> str:
        """Stream: a message for each job that ended, see `halp_producer.results`; trimmed."""
        return f"halp:{{{self.run}}}:results"

    @property
    def stores(self) -> str:
        """Hash: path or URL of a store -> the id of the store that workers of the run had there."""
        return f"halp:{{{self.run}}}:stores"

    @property
    def workers(self) -> str:
        """Hash: worker name -> JSON of `halp_producer.activity.WorkerActivity`."""
        return f"halp:{{{self.run}}}:workers"


def gpu_lease(uuid: str) -> str:
    """String with a time to live: which worker uses this GPU. Not a run's: GPUs are the host's."""
    return f"halp:gpu:{uuid}"


_TYPES: Final = {
    **dict.fromkeys(("jobs", "failed", "results"), "stream"),
    **dict.fromkeys(("attempts", "known", "counts", "workers"), "hash"),
    "delayed": "zset",
}


def type_of(key: str) -> str:
    """What the server calls the type of this key."""
    return _TYPES.get(key.rpartition(":")[2], "string")
