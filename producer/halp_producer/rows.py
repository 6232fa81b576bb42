"""The rows of a CSV file, each with the line it starts on.

Knows quoting, bounds and bytes that are not UTF-8; refuses to know what columns mean.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from halp_producer.job import MAX_TEXT_BYTES
from halp_producer.lines import MAX_LINE_BYTES, LineError, Lines

_UNDECODABLE: Final = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of bytes that are not UTF-8; no valid UTF-8 decodes to these."""


class Row(NamedTuple):
    """One row. line, offset: where it starts. reason: why it cannot be read (then without cells).
    bad_cells: (index, reason) of cells that hold something else than text. size: in bytes."""

    line: int
    cells: list[str]
    reason: str | None = None
    bad_cells: tuple[tuple[int, str], ...] = ()
    size: int = 0
    offset: int = 0


class _Text:
    """Decoded lines for `csv.reader`. Not a generator: it goes on after it raised LineError."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.start_row()

    def start_row(self) -> None:
        self.row_bytes, self.damaged = 0, False

    def __iter__(self) -> _Text:
        return self

    def __next__(self) -> str:
        raw = next(self._lines)
        self.row_bytes += len(raw)
        if self.row_bytes > MAX_LINE_BYTES:
            raise LineError(self._lines.number, f"is longer than {MAX_LINE_BYTES} bytes")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("utf-8", "surrogateescape")
            self.damaged = True
        self.damaged = self.damaged or "\0" in text
        return text


def read_rows(lines: Lines) -> Iterator[Row]:
    """Every row but blank ones, the header first. After a row that cannot be read goes on with
    the next line. Sets the csv module's cell limit (global to the process) to a job's own."""
    csv.field_size_limit(MAX_TEXT_BYTES)
    text = _Text(lines)
    reader = csv.reader(text, strict=True)
    while True:
        text.start_row()
        start, offset = lines.number + 1, lines.offset
        try:
            cells = next(reader)
        except StopIteration:
            return
        except LineError as error:
            yield Row(start, [], str(error))
        except csv.Error as error:
            until = f" (read up to line {lines.number})" if lines.number > start else ""
            yield Row(start, [], f"is not CSV: {error}{until}")
        else:
            if len(cells) > 1 or (cells and cells[0].strip()):
                bad_cells = _bad_cells(cells) if text.damaged else ()
                yield Row(start, cells, None, bad_cells, text.row_bytes, offset)


def _bad_cells(cells: list[str]) -> tuple[tuple[int, str], ...]:
    return tuple(
        (index, "is not UTF-8" if _UNDECODABLE.search(cell) else "has a NUL character")
        for index, cell in enumerate(cells)
        if "\0" in cell or _UNDECODABLE.search(cell)
    )
