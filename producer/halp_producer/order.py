"""`Order`: in which order the records of a file are enqueued, on disk, so that memory stays flat.

A worker computes an image once for all its questions in a batch, so these have to be neighbours on
the stream. Knows images and places in the file; refuses to know records and what is wrong in them.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from halp_producer.scratch import room_needed

_BATCH: Final = 2000
"""Runs between inserts: where a larger batch stops being faster."""

# A run: good lines of one image with no other image's between them.
_TABLE: Final = """
CREATE TABLE runs (number INTEGER PRIMARY KEY, image BLOB, offset INTEGER, first INTEGER,
                   last INTEGER)
"""

_GROUPED: Final = """
SELECT number, offset, first, last FROM (
    SELECT *, first_value(number) OVER (PARTITION BY image ORDER BY number) AS place FROM runs
) ORDER BY place, number
"""


class GroupBy(StrEnum):
    """image: the questions of one image together. none: the file's own order."""

    IMAGE = "image"
    NONE = "none"


class Stretch(NamedTuple):
    """Lines to read in one go, from `first` to the record that starts on `last`.

    offset: of `first`, in bytes of the unzipped text; 0 where it is the start of the file."""

    offset: int
    first: int
    last: int


class Order:
    """Filled once with `good` in the file's order, then read once with `stretches`."""

    def __init__(self, database: sqlite3.Connection, group_by: GroupBy) -> None:
        self._database, self._group_by = database, group_by
        with room_needed():
            database.execute(_TABLE)
        self._image: str | None = None
        self._runs: list[tuple[bytes, int, int, int]] = []
        self._offset = self._first = self._last = 0

    def good(self, line: int, offset: int, image: str) -> None:
        """Notes a record that is fine by itself, where it starts and which image it is about."""
        if self._group_by is GroupBy.NONE:
            image = ""
        if image != self._image:
            if self._image is not None:
                self._end_run(self._image)
            self._image, self._offset, self._first = image, offset, line
        self._last = line

    def stretches(self) -> Iterator[Stretch]:
        """All of them, as few as possible: one for a file that is grouped already.

        Images are in the order in which good lines first name them, the lines of an image in the
        file's.
        The first stretch starts the file.
        """
        if self._image is None:
            return
        self._end_run(self._image)
        self._flush()
        stretch, next_number = Stretch(0, 1, 0), 1  # whatever precedes the first run is in it
        with room_needed():  # to sort
            for number, offset, first, last in self._database.execute(_GROUPED):
                if number == next_number:
                    stretch = stretch._replace(last=last)
                else:
                    yield stretch
                    stretch = Stretch(offset, first, last)
                next_number = number + 1
        yield stretch

    def _end_run(self, image: str) -> None:
        digest = hashlib.blake2b(image.encode("utf-8"), digest_size=16).digest()
        self._runs.append((digest, self._offset, self._first, self._last))
        if len(self._runs) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        with room_needed():
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO runs VALUES (NULL, ?, ?, ?, ?)", self._runs)
            self._database.execute("COMMIT")
        self._runs.clear()
