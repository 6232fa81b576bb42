"""`halp-producer failed`: the command line over dead letters; list, show, retry, drop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Annotated

import redis
import typer

from halp_producer.console import Json, errors, fail, print_array
from halp_producer.enqueue import CHUNK_BYTES, CHUNK_JOBS
from halp_producer.keys import RunKeys
from halp_producer.letters import DeadLetter, dead_letters
from halp_producer.move_report import OF_LETTERS, MoveReport, require_one_way
from halp_producer.moves import Move, drop_letters, retry_letters
from halp_producer.options import RedisUrl, Run
from halp_producer.pages import last_entry_id
from halp_producer.progress import counting
from halp_producer.server import DEFAULT_URL, connect, connect_exact
from halp_producer.status import run_status
from halp_producer.wording import letter_page, letter_text

app = typer.Typer(
    help="The questions that failed or were cancelled: look at them, put them back, forget them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Question ids (or the ids of letters)."),
]
# What to move is said on the command line, never by a variable that was left over.
Reason = Annotated[
    str | None, typer.Option("--reason", help="Only those that failed for this reason.")
]
All = Annotated[bool, typer.Option("--all", help="All of the run that are there now.")]


@app.command(
    "list",
    epilog="\b\nExamples:\n  halp-producer failed list --limit 20"
    "\n  halp-producer failed list --reason image_missing"
    "\n  halp-producer failed list --run pilot --json",
)
def list_(
    run: Run = "default",
    redis_url: RedisUrl = DEFAULT_URL,
    reason: Reason = None,
    limit: Annotated[
        int | None, typer.Option(envvar="HALP_LIMIT", min=1, help="Show at most this many.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the questions that failed, oldest first, each with its reason."""
    keys = RunKeys(run)
    with errors(redis_url), closing(connect(redis_url)) as client:
        total = run_status(client, keys).failed
        letters = islice(_of_reason(dead_letters(client, keys), reason), limit)
        if as_json:
            print_array(letters)
            return
        shown = 0
        for letter in letters:
            typer.echo(letter_text(letter))
            shown += 1
    more = f", {shown:,} shown" if shown < total else ""
    typer.echo(f"run {run}: {total:,} failed{more}")


@app.command(
    epilog="\b\nExamples:\n  halp-producer failed show question_comb_6253"
    "\n  halp-producer failed show question_comb_6253 --json"
)
def show(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="A question id (or the id of a letter).")
    ],
    run: Run = "default",
    redis_url: RedisUrl = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Everything about a question that failed, the last error and its traceback too.

    With --json an array, since a question may have more than one letter. Exits 1 if it has none.
    """
    keys = RunKeys(run)
    with errors(redis_url), closing(connect(redis_url)) as client:
        run_status(client, keys)
        found = [one for one in dead_letters(client, keys) if one.named(name)]
    if not found:
        fail(f"{name}: {OF_LETTERS[Move.UNKNOWN]}")
    if as_json:
        print_array(found)
    else:
        typer.echo("\n\n".join(letter_page(one) for one in found))


@app.command(
    epilog="\b\nExamples:\n  halp-producer failed retry question_comb_6253"
    "\n  halp-producer failed retry --reason image_missing"
    "\n  halp-producer failed retry --all --run pilot"
)
def retry(
    ids: Ids = None,
    reason: Reason = None,
    everything: All = False,
    run: Run = "default",
    redis_url: RedisUrl = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Put failed or cancelled questions back on the stream, with a fresh set of attempts.

    Give ids, or --reason, or --all. May be repeated. Exits 1 when an id is not there, or the
    server is full (then what was moved before that stays moved).
    """
    _move(retry_letters, "back on the stream", ids, reason, everything, run, redis_url, as_json)


@app.command(
    epilog="\b\nExamples:\n  halp-producer failed drop question_comb_6253"
    "\n  halp-producer failed drop --reason malformed"
    "\n  halp-producer failed drop --all --run pilot"
)
def drop(
    ids: Ids = None,
    reason: Reason = None,
    everything: All = False,
    run: Run = "default",
    redis_url: RedisUrl = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Forget failed or cancelled questions, as if they had never been enqueued.

    Give ids, or --reason, or --all. Their data set can then be enqueued again, also with other
    content. Cannot be undone. May be repeated. Exits 1 when an id is not there.
    """
    _move(drop_letters, "dropped", ids, reason, everything, run, redis_url, as_json)


def _move(
    action: Callable[[redis.Redis, RunKeys, Sequence[str]], list[Move]],
    deed: str,
    ids: list[str] | None,
    reason: str | None,
    everything: bool,
    run: str,
    redis_url: str,
    as_json: bool,
) -> None:
    require_one_way("--reason, --all", ids, reason is not None, everything)
    keys, report = RunKeys(run), MoveReport(run=run)
    wanted = dict.fromkeys(ids or [], False)

    def chosen(letters: Iterable[DeadLetter]) -> Iterator[DeadLetter]:
        if not ids:
            yield from _of_reason(letters, reason)
            return
        for letter in letters:
            names = [one for one in (letter.question_id, letter.entry_id) if one in wanted]
            wanted.update(dict.fromkeys(names, True))
            if names:
                yield letter

    # Nothing is repeated behind our back, so that the numbers are right: see `resume`.
    with (
        errors(redis_url, report.resume),
        closing(connect_exact(redis_url)) as client,
        counting(deed) as count,
    ):
        run_status(client, keys)
        # Not beyond the last letter of now: a job that fails again at once would come round.
        last = last_entry_id(client, keys.failed)
        letters = chosen(dead_letters(client, keys, last=last)) if last else iter(())
        while chunk := _chunk(letters):
            moves = action(client, keys, [entry_id for entry_id, _ in chunk])
            for (entry_id, question_id), move in zip(chunk, moves, strict=True):
                # Who asked for all that are there is content that one of them is not, by now.
                if move is not Move.GONE or ids:
                    report.note(question_id or entry_id, move, OF_LETTERS)
            count(report.moved)
    for name, there in wanted.items():
        if not there:
            report.note(name, Move.UNKNOWN, OF_LETTERS)
    report.finish(deed, as_json)


def _chunk(letters: Iterator[DeadLetter]) -> list[tuple[str, str]]:
    """(letter's id, question's id) of the next that one step should move: images count."""
    chunk: list[tuple[str, str]] = []
    size = 0
    while len(chunk) < CHUNK_JOBS and size < CHUNK_BYTES and (one := next(letters, None)):
        chunk.append((one.entry_id, one.question_id))
        size += one.image_bytes or 0
    return chunk


def _of_reason(letters: Iterable[DeadLetter], reason: str | None) -> Iterator[DeadLetter]:
    return (one for one in letters if reason is None or one.reason == reason)
