"""`live_line`: one line at the bottom of a terminal that says what the worker does.

It shows what the worker's heartbeat says, more often. Log lines scroll by above it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.text import Text

from halp_producer.activity import RUNNING, WorkerActivity

_A_SECOND: Final = 2
"""How often it is drawn: a row more is seen at once, and the drawing costs the model nothing."""


@contextmanager
def live_line(
    describe: Callable[[], WorkerActivity], backlog: Callable[[], int | None]
) -> Iterator[None]:
    """At the bottom of stderr until the end of the `with` block; nothing where stderr is no
    terminal. Both are called by a thread of its own. backlog: jobs left in the run, if known."""
    console = Console(file=sys.stderr)
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield
        return
    with Live(
        get_renderable=lambda: line_text(describe(), backlog(), console.width),
        console=console,
        refresh_per_second=_A_SECOND,
        transient=True,
        redirect_stdout=False,
    ):
        console.show_cursor(True)  # a worker that is killed leaves the terminal as it was
        yield


def line_text(activity: WorkerActivity, backlog: int | None, width: int) -> Text:
    """As much of it as fits, the most important first: never more than one line. The state where it
    is not the usual one."""
    state = [] if activity.state == RUNNING else [("", activity.state, "bold yellow")]
    numbers = [
        *state,
        ("", f"{activity.rows_per_second:,.1f} rows/s", "bold cyan"),
        ("batch", f"{activity.batch_jobs:,}" if activity.batch_jobs else "-", "default"),
        ("backlog", "-" if backlog is None else f"{backlog:,}", "default"),
        ("done", f"{activity.done:,}", "green"),
        ("failed", f"{activity.failed:,}", "red" if activity.failed else "default"),
        ("", decimal(activity.memory_bytes) if activity.memory_bytes else "- GB", "default"),
        ("in hand", f"{activity.in_hand:,}", "default"),
    ]
    line = Text(no_wrap=True, overflow="ellipsis")
    for name, value, style in numbers:
        part = Text.assemble((f"{name} " if name else "", "dim"), (value, style))
        if line.cell_len + part.cell_len + 2 > width:
            break
        line = line + Text("  " if line else "") + part
    return line
