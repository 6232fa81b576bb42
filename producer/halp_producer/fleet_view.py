"""`fleet_view`: a run and its workers as a picture for a terminal. Values in, renderables out.

Knows rich; refuses to know servers and clocks. Whatever workers say of themselves is shown as plain
text: no markup, no control characters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from halp_producer.activity import STOPPED, WorkerActivity
from halp_producer.look import Look
from halp_producer.problem import printable
from halp_producer.status import WorkerStatus
from halp_producer.wording import progress_text, reasons_text, state_text

_LEAST_WORKERS: Final = 3
"""However low the terminal is."""

_GAP: Final = 2
"""Between two columns."""

_NUMBER: Final = 9
"""Characters of a count, as of `in flight` or of a million."""


def fleet_view(look: Look, *, width: int, height: int, hint: str = "") -> RenderableType:
    """Fits a terminal of `width` columns and `height` lines, if that has at least some 80 and 20.

    hint: the last line, such as how to leave.
    """
    above = [_headline(look), _bar(look), _progress(look), Text(), *_counts(look), *_failures(look)]
    below = [Text(), _line(hint, "dim")] if hint else []
    # A blank line, the table's head, the line for the rest, and the cursor's own.
    shown = max(_LEAST_WORKERS, height - len(above) - len(below) - 4)
    workers = [Text(), *_workers(look.found.workers, width, shown)] if look.found.workers else []
    return Group(*above, *workers, *below)


def _headline(look: Look) -> RenderableType:
    stores = sorted({one.activity.store for one in look.found.workers if one.activity} - {""})
    where = f" -> {', '.join(map(printable, stores))}" if stores else ""
    return _line(f"run {look.found.run}", "bold").append(where, style="not bold")


def _bar(look: Look) -> RenderableType:
    found = look.found
    ended = found.done + found.failed
    colour = "red" if found.failed and not found.done else "green"
    bar = ProgressBar(
        total=max(1, found.enqueued),
        completed=ended,
        complete_style=colour,
        finished_style=colour,
    )
    percent = 100 * ended // max(1, found.enqueued)
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    grid.add_row(bar, _line(f"{percent:3} %  {ended:,} of {found.enqueued:,}"))
    return grid


def _progress(look: Look) -> RenderableType:
    """With a problem, no rate: it would be one of before."""
    if look.problem:
        return _line(look.problem, "bold yellow")
    needs_worker = not look.found.finished and not look.has_worker
    return _line(progress_text(look), "bold yellow" if needs_worker else "bold")


def _counts(look: Look) -> list[RenderableType]:
    found = look.found
    names, numbers = _line("", "dim"), _line("")
    for name, number, style in (
        ("waiting", found.waiting, "bold"),
        ("delayed", found.delayed, "bold yellow"),
        ("in flight", found.in_flight, "bold cyan"),
        ("done", found.done, "bold green"),
        ("failed", found.failed, "bold red"),
    ):
        wide = 0 if not names else _NUMBER + 3
        names.append(name.rjust(wide or _NUMBER))
        numbers.append(f"{number:,}".rjust(wide or _NUMBER), style=style if number else "dim")
    return [names, numbers]


def _failures(look: Look) -> list[RenderableType]:
    reasons = reasons_text(look.found)
    return [Text(), _line(f"failed for: {reasons}", "red")] if reasons else []


class _Column(NamedTuple):
    """keep: columns with a higher number go first where there is no room."""

    title: str
    keep: int
    is_number: bool
    text: Callable[[WorkerStatus, WorkerActivity], str]


_COLUMNS: Final = (
    _Column("host", 0, False, lambda _, said: printable(said.host)),
    _Column("worker", 0, False, lambda one, said: _name_on_host(one.worker, said.host)),
    _Column("state", 0, False, lambda one, _: state_text(one)),
    _Column("device", 1, False, lambda _, said: printable(said.device)),
    _Column("batch", 0, True, lambda _, said: f"{said.batch_jobs:,}" if said.batch_jobs else "-"),
    _Column("rows/s", 0, True, lambda one, said: _rate(one, said)),
    _Column("in hand", 0, True, lambda one, _: f"{one.in_flight:,}"),
    _Column("seen", 0, True, lambda one, _: _seen(one)),
    _Column("done", 2, True, lambda _, said: f"{said.done:,}"),
    _Column("failed", 3, True, lambda _, said: f"{said.failed:,}"),
    _Column("memory", 4, True, lambda _, x: decimal(x.memory_bytes) if x.memory_bytes else "-"),
)
_SHORTENED: Final = {"host": (8, 24), "worker": (12, 24), "device": (8, 16), "state": (8, 17)}
"""What is cut to make room: to how many characters at least, and to how many in any case."""


def _workers(workers: Sequence[WorkerStatus], width: int, shown: int) -> list[RenderableType]:
    """Those in trouble first, then those alive, then those that left; the first `shown` of them."""
    ordered = sorted(workers, key=lambda one: (_rank(one), one.worker))
    chosen, rest = ordered[:shown], ordered[shown:]
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    columns = _that_fit(chosen, width)
    for column, cells_wide in columns:
        table.add_column(
            column.title,
            justify="right" if column.is_number else "left",
            no_wrap=True,
            overflow="ellipsis",
            width=cells_wide,
        )
    for one in chosen:
        table.add_row(*(_line(_cell(one, column)) for column, _ in columns), style=_style(one))
    return [table, *([_line(f"and {len(rest):,} more: {_summary(rest)}", "dim")] if rest else [])]


def _that_fit(chosen: Sequence[WorkerStatus], width: int) -> list[tuple[_Column, int]]:
    """The columns that there is room for, each with its width."""
    wide = {
        column.title: max(cell_len(column.title), *(cell_len(_cell(x, column)) for x in chosen))
        for column in _COLUMNS
    }
    for title, (_, most) in _SHORTENED.items():
        wide[title] = min(wide[title], most)
    columns = list(_COLUMNS)

    def excess() -> int:
        return sum(wide[one.title] + _GAP for one in columns) - _GAP - width

    while excess() > 0 and (least := max(columns, key=lambda one: one.keep)).keep > 1:
        columns.remove(least)
    for title, (least_wide, _) in _SHORTENED.items():
        wide[title] -= max(0, min(excess(), wide[title] - least_wide))
    return [(one, wide[one.title]) for one in columns]


def _cell(worker: WorkerStatus, column: _Column) -> str:
    if worker.activity is not None:
        return column.text(worker, worker.activity)
    known = {
        "worker": printable(worker.worker),
        "state": state_text(worker),
        "in hand": f"{worker.in_flight:,}",
        "seen": _seen(worker),
    }
    return known.get(column.title, "")


def _name_on_host(worker: str, host: str) -> str:
    """Without the host's name, which has a column of its own."""
    return printable(worker.removeprefix(f"{host}-"))


def _rate(worker: WorkerStatus, said: WorkerActivity) -> str:
    return f"{said.rows_per_second:,.1f}" if worker.alive else "-"


def _seen(worker: WorkerStatus) -> str:
    ago = worker.seen_seconds_ago
    if ago is None:
        return "never"
    seconds, unit = (1, "s") if ago < 100 else (60, "min") if ago < 6000 else (3600, "h")
    return f"{ago / seconds:,.0f} {unit} ago"


def _has_left(worker: WorkerStatus) -> bool:
    return worker.activity is not None and worker.activity.state == STOPPED


def _rank(worker: WorkerStatus) -> int:
    return 1 if worker.alive else 2 if _has_left(worker) else 0


def _style(worker: WorkerStatus) -> str:
    return ("yellow", "default", "dim")[_rank(worker)]


def _summary(workers: Sequence[WorkerStatus]) -> str:
    ranks = [_rank(one) for one in workers]
    named = ((0, "gone?"), (1, "alive"), (2, "stopped"))
    return ", ".join(f"{ranks.count(rank)} {word}" for rank, word in named if rank in ranks)


def _line(text: str, style: str = "") -> Text:
    """One line, cut where the terminal ends."""
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")
