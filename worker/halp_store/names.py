"""What segments (`<worker>-<32 hex>`) and generations (`compacted/<number>`) are called.

Pure text.
"""

from __future__ import annotations

import re
import uuid
from typing import Final

from halp_store.storage import GENERATIONS, SEGMENTS

DELETIONS: Final = "deleted"
"""Below it lie the files that name deleted rows; see `halp_store.deletions`."""

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


def generation_name(number: int) -> str:
    """`compacted/000001`: where it is. Numbers count from 1."""
    return f"{GENERATIONS}/{number:06d}"


def generation_number(name: str) -> int | None:
    """Of a name below `compacted/`; None for what `compact` did not write."""
    return int(name) if re.fullmatch(r"[0-9]{6,}", name) else None


def is_generation(name: str) -> bool:
    """Whether it is a generation's name, not a segment's: those have no slash."""
    return name.startswith(f"{GENERATIONS}/")


def group_prefix(name: str) -> str:
    """Where the segment or generation of this name is, below the root."""
    return name if is_generation(name) else f"{SEGMENTS}/{name}"
