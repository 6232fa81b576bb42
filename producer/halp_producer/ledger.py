"""`Ledger`: what the first pass learned about each line, on disk, so that memory stays flat.

Knows ids, content hashes and line numbers; refuses to know records. It lives in a private
temporary SQLite file that is gone when the process is, whichever way it ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

_BATCH: Final = 2000
"""Lines between inserts: where a larger batch stops being faster."""

_CACHE_KIB: Final = 8192
"""SQLite's page cache; the rest spills to the temporary file."""

_SETUP: Final = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -{_CACHE_KIB};
PRAGMA temp_store = FILE;
CREATE TABLE good (id TEXT, hash BLOB, line INTEGER);
CREATE TABLE bad (line INTEGER);
CREATE TABLE skipped (line INTEGER PRIMARY KEY);
"""

# One sort of (id, line) instead of an index over ids: random ids would make each insert a seek.
_TWICE: Final = """
SELECT id, line, first_line, hash = first_hash FROM (
    SELECT id, line, hash, first_value(line) OVER same AS first_line,
           first_value(hash) OVER same AS first_hash, row_number() OVER same AS place
    FROM good WINDOW same AS (PARTITION BY id ORDER BY line)
) WHERE place > 1
"""


class Duplicate(NamedTuple):
    """A line whose id was used before, on `first_line`, with the same content or with other."""

    question_id: str
    line: int
    first_line: int
    same: bool


class LedgerError(Exception):
    """The temporary file cannot be written; the message says what to do."""


class Ledger:
    """Filled once with `good` and `bad`, then read once with `duplicates` and `skipped`."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # "": temporary, on disk
        try:
            self._database.executescript(_SETUP)
        except sqlite3.OperationalError as error:
            self._database.close()
            raise _explained(error) from None
        self._good: list[tuple[str, bytes, int]] = []
        self._bad: list[tuple[int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def good(self, line: int, question_id: str, content_hash: str) -> None:
        """Notes a line that is fine by itself."""
        self._good.append((question_id, bytes.fromhex(content_hash), line))
        if len(self._good) >= _BATCH:
            self._flush()

    def bad(self, line: int) -> None:
        """Notes a line to skip."""
        self._bad.append((line,))
        if len(self._bad) >= _BATCH:
            self._flush()

    def duplicates(self) -> Iterator[Duplicate]:
        """Every line whose id an earlier good line has. All of these will be skipped."""
        self._flush()
        try:
            self._database.execute("BEGIN")
            self._database.execute("INSERT OR IGNORE INTO skipped SELECT line FROM bad")
            cursor = self._database.execute(_TWICE)
            for question_id, line, first_line, same in cursor:
                self._bad.append((line,))
                if len(self._bad) >= _BATCH:
                    self._skip()
                yield Duplicate(question_id, line, first_line, bool(same))
            self._skip()
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise _explained(error) from None

    def skipped(self) -> Iterator[int]:
        """The numbers of all lines to skip, ascending. Complete once `duplicates` is exhausted."""
        for (line,) in self._database.execute("SELECT line FROM skipped ORDER BY line"):
            yield line

    def _skip(self) -> None:
        self._database.executemany("INSERT OR IGNORE INTO skipped VALUES (?)", self._bad)
        self._bad.clear()

    def _flush(self) -> None:
        try:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO good VALUES (?, ?, ?)", self._good)
            self._database.executemany("INSERT INTO bad VALUES (?)", self._bad)
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise _explained(error) from None
        self._good.clear()
        self._bad.clear()


def _explained(error: sqlite3.OperationalError) -> LedgerError:
    return LedgerError(
        f"the temporary ledger cannot be written: {error}; it needs about 100 bytes a line, "
        "point TMPDIR to a directory with room"
    )
