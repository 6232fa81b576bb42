"""`Ledger`: what the first pass learned about each line, on disk, so that memory stays flat.

Knows ids, content hashes and line numbers; refuses to know records.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final, NamedTuple

from halp_producer.scratch import room_needed

_BATCH: Final = 2000
"""Lines between inserts: where a larger batch stops being faster."""

_TABLES: Final = """
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

_SKIPPED: Final = "SELECT line FROM skipped WHERE line BETWEEN ? AND ? ORDER BY line"


class Duplicate(NamedTuple):
    """A line whose id was used before, on `first_line`, with the same content or with other."""

    question_id: str
    line: int
    first_line: int
    same: bool


class Ledger:
    """Filled once with `good` and `bad`, then read once with `duplicates` and `skipped`."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        with room_needed():
            database.executescript(_TABLES)
        self._good: list[tuple[str, bytes, int]] = []
        self._bad: list[tuple[int]] = []

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
        with room_needed():
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

    def skipped(self, first: int, last: int) -> Iterator[int]:
        """The numbers of the lines to skip from `first` to `last`, ascending. Complete once
        `duplicates` is exhausted."""
        for (line,) in self._database.execute(_SKIPPED, (first, last)):
            yield line

    def _skip(self) -> None:
        self._database.executemany("INSERT OR IGNORE INTO skipped VALUES (?)", self._bad)
        self._bad.clear()

    def _flush(self) -> None:
        with room_needed():
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO good VALUES (?, ?, ?)", self._good)
            self._database.executemany("INSERT INTO bad VALUES (?)", self._bad)
            self._database.execute("COMMIT")
        self._good.clear()
        self._bad.clear()
