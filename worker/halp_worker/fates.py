"""What can become of a job that does not become a row, and of a worker that cannot go on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a job can never succeed. The word in the failed stream, in `status` and in the docs."""

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


@dataclass(frozen=True)
class Rejection:
    """One job's end: a reason for machines, a sentence for people."""

    reason: Reason
    error: str


class Rejected(Exception):  # noqa: N818 - a fate of a job, not an error of the program
    """Raised while one job is prepared; carries its rejection and harms no other job."""

    def __init__(self, reason: Reason, error: str) -> None:
        super().__init__(error)
        self.rejection = Rejection(reason, error)


class FatalError(Exception):
    """The worker cannot go on: it stops with this message, and nothing in hand is acknowledged."""
