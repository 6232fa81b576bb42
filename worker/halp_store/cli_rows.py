"""`halp-store ls` and `query`: a line for each question, of all or of those that meet conditions.

Exit codes: 0 done, 1 there is no such store, run or server (or it is damaged), 2 the command line
is wrong, or names a column that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from halp_store.console import AsJson, StorePath, fail, guarded
from halp_store.fields import Field, UnknownField, columns_of, fields_of
from halp_store.opening import opened
from halp_store.query import BATCH_ROWS, FilterError, Query
from halp_store.terminal import json_text, printable_lines, table, width

if TYPE_CHECKING:
    from halp_store.failed import FailedQuestion
    from halp_store.view import View

LS_EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-store ls run1.zarr"
    "\n  halp-store ls run1.zarr --limit 0 --columns answer_tokens,metadata.dataset --json"
    "\n  halp-store ls run1.zarr --failed --run pilot"
)
QUERY_EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-store query run1.zarr 'finish_reason=length'"
    "\n  halp-store query run1.zarr 'answer_tokens>5' 'answer~^(Yes|No)' --count"
    "\n  halp-store query run1.zarr 'metadata.dataset=POPE' --ids > pope.txt"
    "\n  halp-store query run1.zarr 'mean_logprob<-1' --columns answer,mean_logprob"
    "\n\nA condition is COLUMN, one of = != < <= > >= ~ !~, and a value. ~ finds a regular "
    "expression in the text: 'answer~(?i)yes' for any case. Integers and scores compare as "
    "numbers, texts by their characters, metadata as numbers where both sides are. A row without "
    "the metadata or the score meets != and !~ alone. Give each condition as an argument of its "
    "own, in quotes for the shell."
)

# What fits a screen; programs and pipes say --limit 0.
_LIMIT: Final = 20
_USUAL: Final = (
    "question_id",
    "question_text",
    "ground_truth",
    "answer",
    "finish_reason",
    "image",
)

Limit = Annotated[
    int | None,
    typer.Option(min=0, help=f"At most so many rows; 0 for all. [{_LIMIT}; with --ids all]"),
]
Offset = Annotated[int, typer.Option(min=0, help="Leave out so many rows first.")]
ColumnNames = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="A,B",
        help="Show these, after the id: columns of texts, integers or scores, or metadata.NAME.",
    ),
]


def _run_name(run: str) -> str:
    from halp_producer.keys import RunKeys

    try:
        return RunKeys(run).run
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def ls(
    context: typer.Context,
    store: StorePath,
    limit: Limit = None,
    offset: Offset = 0,
    columns: ColumnNames = None,
    failed: Annotated[
        bool,
        typer.Option(
            "--failed",
            help="The questions that failed instead, and why; they are on the server, not in the "
            "store.",
        ),
    ] = False,
    run: Annotated[
        str,
        typer.Option(
            "--run",
            envvar="HALP_RUN",
            metavar="NAME",
            help="With --failed: of this run.",
        ),
    ] = "default",
    redis_url: Annotated[
        str | None,
        typer.Option(
            "--redis-url",
            envvar="HALP_REDIS_URL",
            help="The server, with --failed: redis://[[user]:password@]host:port/database, "
            "rediss:// or unix://.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List questions: id, question, truth, answer, finish reason and picture, a line each.

    With --json an object whose `rows` are they.
    """
    if failed:
        if columns is not None:
            raise typer.BadParameter("--columns is for what is stored, not for --failed")
        _print_failed(opened(store), _run_name(run), redis_url, offset, limit, as_json)
        return
    for name in ("run", "redis_url"):
        if _is_on_the_command_line(context, name):
            option = name.replace("_", "-")
            raise typer.BadParameter(f"--{option} is of use with --failed only")
    view = opened(store)
    shown = _wanted(view, columns)
    _print_rows(view, shown, offset, limit, as_json, {"store": view.path})
    if view.rows_deleted and not as_json:
        typer.echo(f"{view.rows_deleted:,} more were deleted", err=True)


def query(
    store: StorePath,
    filters: Annotated[
        list[str],
        typer.Argument(metavar="CONDITION...", help="All have to hold, as in 'answer_tokens>5'."),
    ],
    limit: Limit = None,
    offset: Offset = 0,
    columns: ColumnNames = None,
    ids: Annotated[
        bool, typer.Option("--ids", help="Print the ids alone, a line each, all of them.")
    ] = False,
    count: Annotated[
        bool, typer.Option("--count", help="Print how many there are, and nothing else.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the questions whose columns meet all conditions, as `ls` does.

    With --json an object whose `rows` are they.
    """
    if ids + count + as_json > 1:
        raise typer.BadParameter("--ids, --count and --json are three ways to print: choose one")
    whole = opened(store)
    shown = _wanted(whole, columns)
    try:
        wanted = Query.parse(whole.layout, filters)
        found = guarded(partial(wanted.ids, whole))
    except (FilterError, UnknownField) as error:
        _refuse(error)
    if count:
        typer.echo(str(len(found)))
        return
    if ids:
        _print_ids(found[offset : offset + limit if limit else None])
        return
    about = {"store": whole.path, "conditions": list(filters)}
    _print_rows(whole[found], shown, offset, limit, as_json, about, of=len(whole))
    if not found and wanted.hint:
        typer.echo(wanted.hint, err=True)


def _is_on_the_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse(error: ValueError) -> NoReturn:
    raise typer.BadParameter(printable_lines(str(error))) from None


def _wanted(view: View, columns: str | None) -> tuple[Field, ...]:
    names = _USUAL if columns is None else ["question_id", *columns.split(",")]
    try:
        return fields_of(view.layout, (name.strip() for name in names))
    except UnknownField as error:
        _refuse(error)


def _print_ids(ids: Sequence[str]) -> None:
    for one in ids:
        if not one.isprintable():
            fail(f"{one!r} is an id that does not fit on one line as it is: use --json")
        typer.echo(one)


def _print_rows(
    view: View,
    shown: Sequence[Field],
    offset: int,
    limit: int | None,
    as_json: bool,
    about: dict[str, Any],
    *,
    of: int | None = None,
) -> None:
    """of: how many rows there are of which `view` shows some."""
    most = _LIMIT if limit is None else limit
    part = view[offset : offset + most if most else None]
    if as_json:
        head = {**about, "total": len(view), "offset": offset, "shown": len(part)}
        _print_json_rows(head, (row for batch in _batches(part, shown) for row in batch))
        return
    header: list[list[str]] = [[field.name for field in shown]]
    right = {at for at, field in enumerate(shown) if field.is_integer or field.is_score}
    ends = {at for at, field in enumerate(shown) if field.column == "image"}
    for batch in _batches(part, shown):
        rows = header + [[_cell(value) for value in row.values()] for row in batch]
        lines = table(rows, width(), whole={0, *right}, right=right, ends=ends)
        _print_table(lines, is_headed=bool(header))
        header = []
    among = "" if of is None else f" of {of:,}"
    typer.echo(_said(f"{len(view):,} rows{among}", len(view), offset, len(part)), err=True)


def _batches(view: View, shown: Sequence[Field]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(view), BATCH_ROWS):
        part = view[start : start + BATCH_ROWS]
        columns = guarded(partial(part.read, columns_of(shown)))
        values = zip(*(field.values(columns) for field in shown), strict=True)
        names = [field.name for field in shown]
        yield [dict(zip(names, row, strict=True)) for row in values]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json_text(value)


def _print_table(lines: Iterable[str], *, is_headed: bool) -> None:
    for number, line in enumerate(lines):
        typer.secho(line, bold=is_headed and number == 0)


def _print_json_rows(head: dict[str, Any], rows: Iterator[dict[str, Any]]) -> None:
    """One JSON object, a line for each row as it is read: there may be a million."""
    typer.echo(json_text(head)[:-1] + ', "rows": [', nl=False)
    separator = "\n"
    for row in rows:
        typer.echo(separator + json_text(row), nl=False)
        separator = ",\n"
    typer.echo("\n]}")


def _said(what: str, total: int, offset: int, shown: int) -> str:
    if shown == total:
        return what
    if not shown:
        return f"{what}; --offset {offset} is beyond the last"
    last = offset + shown
    more = f"; {total - last:,} more: --offset {last}, or --limit 0 for all"
    return f"{what}, {offset + 1:,} to {last:,} shown{more if last < total else ''}"


def _print_failed(
    store: View, run: str, redis_url: str | None, offset: int, limit: int | None, as_json: bool
) -> None:
    from halp_store.failed import read_failed

    most = (_LIMIT if limit is None else limit) or None
    read: Callable[[], tuple[int, list[FailedQuestion]]]
    read = partial(read_failed, run, redis_url, offset, most)
    total, found = guarded(read)
    if as_json:
        rows = [{**asdict(one), "stored": one.question_id in store} for one in found]
        about = {"store": store.path, "run": run, "total": total, "offset": offset}
        typer.echo(json_text({**about, "shown": len(rows), "rows": rows}, indent=2))
        return
    if found:
        cells = [[one.question_id, one.reason, one.error, one.image] for one in found]
        header = ["question_id", "reason", "error", "image"]
        lines = table([header, *cells], width(), whole={0, 1}, ends={3})
        _print_table(lines, is_headed=True)
    typer.echo(_said(f"run {run}: {total:,} failed", total, offset, len(found)), err=True)
    if total:
        of_run = "" if run == "default" else f" --run {run}"
        typer.echo(
            f"next: halp-producer failed show ID{of_run} says all of one, and halp-producer "
            f"failed retry ID{of_run} puts it back",
            err=True,
        )
