"""What can become of a job that does not become a row, and of a worker that cannot go on.

Three fates, three types: `Rejected` (failed at once), `Retryable` (delayed, some times),
`FatalError` (the process ends, nothing is acknowledged).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from traceback import format_exception


class Reason(StrEnum):
    """Why a job did not succeed. The word in the failed stream, in `status` and in the docs."""

    MALFORMED = "malformed"
    IMAGE_MISSING = "image_missing"
    IMAGE_OUTSIDE_ROOT = "image_outside_root"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_TOO_LARGE = "image_too_large"
    URL_REFUSED = "url_refused"
    URL_FAILED = "url_failed"
    SPECIAL_TOKEN = "special_token"  # noqa: S105 - a reason, not a secret
    PROMPT_TOO_LONG = "prompt_too_long"
    NOT_FINITE = "not_finite"
    CONFLICT = "conflict"
    IMAGE_UNAVAILABLE = "image_unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    PREPARATION_FAILED = "preparation_failed"
    EXTRACTION_FAILED = "extraction_failed"
    WORKER_DIED = "worker_died"


class HostPart(StrEnum):
    """What a worker's machine and settings provide for all jobs alike."""

    IMAGES = "images"
    """The image root: its path, mount and permissions, and the memory to decode in."""

    NETWORK = "network"
    """The way to http(s) URLs."""


@dataclass(frozen=True)
class Rejection:
    """One job's end: a reason for machines, a sentence for people.

    traceback: of what was raised, for those who mend the program; empty where there is none.
    host_part: what of this host may be the cause; another host may succeed. None: the job is.
    """

    reason: Reason
    error: str
    traceback: str = ""
    host_part: HostPart | None = None


@dataclass(frozen=True)
class Setback:
    """One job's attempt that failed, and may succeed another time. Fields as in `Rejection`."""

    reason: Reason
    error: str
    traceback: str = ""
    host_part: HostPart | None = None

    @classmethod
    def of(cls, reason: Reason, error: Exception) -> Setback:
        """Of something unforeseen: its type, its words, its traceback; keeps no frame alive."""
        text = "".join(format_exception(error))
        return cls(reason, f"{type(error).__name__}: {error}", text)


Fate = Rejection | Setback
"""Of a job that did not become a row this time."""


class Rejected(Exception):  # noqa: N818 - a fate of a job, not an error of the program
    """Raised while one job is prepared; carries its rejection and harms no other job."""

    def __init__(self, reason: Reason, error: str, host_part: HostPart | None = None) -> None:
        super().__init__(error)
        self.rejection = Rejection(reason, error, host_part=host_part)


class Retryable(Exception):  # noqa: N818 - a fate of an attempt, not an error of the program
    """Raised while one job is prepared, where waiting may mend it: a URL, a network disk."""

    def __init__(self, reason: Reason, error: str, host_part: HostPart | None = None) -> None:
        super().__init__(error)
        self.setback = Setback(reason, error, host_part=host_part)


class DeviceOutOfMemory(Exception):  # noqa: N818 - named for what it says
    """The device has too little memory for this batch; a smaller one may fit."""


class FatalError(Exception):
    """The worker cannot go on: it stops with this message, and nothing in hand is acknowledged."""


class DeviceBroken(FatalError):  # noqa: N818 - named for what it says
    """The device cannot be used by this process any more: illegal access, ECC, lost GPU."""
