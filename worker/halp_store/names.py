"""What segments are called: `<worker>-<32 hex>`. Pure text."""

from __future__ import annotations

import re
import uuid
from typing import Final

# Leaves room for the dash and the uuid in file systems' usual 255 bytes a name.
_WORKER_CHARACTERS: Final = 100

_SEGMENT: Final = re.compile(r"(?P<worker>.+)-[0-9a-f]{32}", re.DOTALL)


def worker_prefix(worker: str) -> str:
    """A worker's name as its segments have it; empty if nothing of it can be in a file name.

    What a file name cannot hold becomes a dash; what is too long is cut. Two workers may have one
    prefix; then each may fence the other's segments, which costs a name and no row.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", worker).lstrip(".-")[:_WORKER_CHARACTERS]


def new_segment_name(prefix: str) -> str:
    """One that nobody has."""
    return f"{prefix}-{uuid.uuid4().hex}"


def prefix_of(segment: str) -> str | None:
    """The worker's prefix in a segment's name; None for a name that no worker gave."""
    found = _SEGMENT.fullmatch(segment)
    return found["worker"] if found else None
