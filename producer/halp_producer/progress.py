"""`listening` tells a person how an intake goes, `counting` how far a long command is; a bar or a
line that changes on a terminal, plain lines elsewhere.

Everything goes to stderr; stdout is for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from halp_producer.listener import Listener
from halp_producer.problem import LineProblem, printable

if TYPE_CHECKING:
    from rich.progress import Progress

_LINE_EVERY_S: Final = 5.0
_CHANGE_EVERY_S: Final = 0.2


@contextmanager
def listening() -> Iterator[Listener]:
    """The listener for this stderr, for as long as the intake takes."""
    if not sys.stderr.isatty():
        yield PlainLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[records]:>11,} records {task.fields[rate]:>9,.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bar(progress)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int], None]]:
    """Yields what is to be told the number reached; shows it as `12,000 what` now and then."""
    terminal = sys.stderr.isatty()
    every_s = _CHANGE_EVERY_S if terminal else _LINE_EVERY_S
    due = time.monotonic() + every_s
    shown = False

    def tell(number: int) -> None:
        nonlocal due, shown
        if time.monotonic() >= due:
            due = time.monotonic() + every_s
            start, end = ("\r\x1b[K", "") if terminal else ("", "\n")
            print(f"{start}{number:,} {what}", end=end, file=sys.stderr, flush=True)
            shown = True

    try:
        yield tell
    finally:
        if shown and terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Rate:
    """Records a second since the phase began."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def of(self, records: int) -> float:
        return records / max(time.monotonic() - self._started, 1e-9)


class PlainLines:
    """One line every few seconds, and one for each problem and note."""

    def phase(self, name: str, total_bytes: int) -> None:
        self._name, self._total = name, total_bytes
        self._rate = Rate()
        self._next = time.monotonic() + _LINE_EVERY_S

    def progress(self, bytes_read: int, records: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LINE_EVERY_S
            percent = 100 * bytes_read / max(self._total, 1)
            rate = self._rate.of(records)
            self._say(f"{self._name}: {percent:.0f} %, {records:,} records, {rate:,.0f}/s")

    def problem(self, problem: LineProblem) -> None:
        self._say(str(problem))

    def note(self, text: str) -> None:
        self._say(printable(text))

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Bar:
    """A bar for each phase; problems and notes scroll by above it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def phase(self, name: str, total_bytes: int) -> None:
        self._task = self._progress.add_task(name, total=total_bytes, records=0, rate=0.0)
        self._rate = Rate()

    def progress(self, bytes_read: int, records: int) -> None:
        self._progress.update(
            self._task, completed=bytes_read, records=records, rate=self._rate.of(records)
        )

    def problem(self, problem: LineProblem) -> None:
        self._say(str(problem))

    def note(self, text: str) -> None:
        self._say(printable(text))

    def _say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
