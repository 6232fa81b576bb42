"""`LineProblem` and `DatasetError`: what can be wrong with a line, and with a whole file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class DatasetError(Exception):
    """The file as a whole cannot be used; the message says why and what to do."""


class LineProblem(NamedTuple):
    """One thing that is wrong with one line. `str()` is one line: `file:line: field: reason`."""

    path: Path
    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.path}:{self.line}: {self.field}: {self.reason}")


def printable(text: str) -> str:
    """`text` as one line a terminal can show: control characters and surrogates are escaped."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def shortened(text: str, longest: int) -> str:
    """`text`, with its middle left out where it has more characters than `longest`."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} [...] {text[-half:]}"


def in_short(text: str, longest: int = 500) -> str:
    """`text` as a part of one line of a message: printable, and not long."""
    return printable(shortened(text, longest))
