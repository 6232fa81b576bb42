"""Temporary files for one intake, gone when the process is, whichever way it ends: a database for
what the first pass learned, and unzipped text. Where the disk is full, a `ScratchError`.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

_CACHE_KIB: Final = 8192
"""SQLite's page cache; the rest spills to the temporary file."""

_SETUP: Final = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -{_CACHE_KIB};
PRAGMA temp_store = FILE;
"""


class ScratchError(Exception):
    """A temporary file cannot be written; the message says what to do."""


@contextmanager
def room_needed() -> Iterator[None]:
    """Around what writes to a temporary file: raises ScratchError when that fails."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise ScratchError(
            f"a temporary file cannot be written: {error}; point TMPDIR to a directory with room "
            "for about 200 bytes a line, and for the text of a .gz that has to be reordered"
        ) from None


@contextmanager
def scratch_database() -> Iterator[sqlite3.Connection]:
    """An empty database on disk; transactions are the caller's."""
    database = sqlite3.connect("", isolation_level=None)  # "": temporary, on disk
    try:
        database.executescript(_SETUP)
        yield database
    finally:
        database.close()


def scratch_file(buffer_bytes: int) -> IO[bytes]:
    """An empty file without a name."""
    with room_needed():
        return tempfile.TemporaryFile(buffering=buffer_bytes)
