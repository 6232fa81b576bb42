"""`halp-producer`: the command line over intake, status and dead letters.

Exit codes: 0 all is well, 1 something is wrong with the data or the server, 2 wrong usage,
130 interrupted. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import redis
import typer
from pydantic import BaseModel

from halp_producer import __version__
from halp_producer.columns import Columns
from halp_producer.dataset import Dataset
from halp_producer.images import ImageRoot
from halp_producer.intake import OnInvalid, enqueue_dataset
from halp_producer.keys import RunKeys
from halp_producer.ledger import LedgerError
from halp_producer.letters import dead_letters
from halp_producer.options import RedisUrl, Run
from halp_producer.problem import DatasetError, printable
from halp_producer.progress import listening
from halp_producer.server import DEFAULT_URL, ServerError, advice, connect, explained
from halp_producer.status import UnknownRunError, run_status
from halp_producer.wording import letter_text, report_text, status_text

app = typer.Typer(
    help="Puts datasets of (image, question, ground truth) on a stream, and says how far it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show locals, the server's URL among them
    rich_markup_mode=None,
)


def _mapping(options: list[str] | None) -> list[str]:
    try:
        Columns.from_options(options or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return options or []


Json = Annotated[
    bool, typer.Option("--json", envvar="HALP_JSON", help="Print one JSON document instead.")
]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"halp-stream {__version__}")
        raise typer.Exit


@app.command(
    epilog="\b\nExamples:\n  halp-producer enqueue questions.jsonl --image-root /data/images"
    "\n  halp-producer enqueue questions.csv.gz --run pilot --on-invalid skip"
    "\n  halp-producer enqueue questions.jsonl --map image=path_column --dry-run"
)
def enqueue(
    dataset: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="JSONL (.jsonl, .ndjson) or CSV, each also as .gz. Fields: question_id, image, "
            "question, ground_truth, and optionally metadata; other columns join metadata.",
        ),
    ],
    run: Run = "default",
    redis_url: RedisUrl = DEFAULT_URL,
    image_root: Annotated[
        Path | None,
        typer.Option(
            envvar="HALP_IMAGE_ROOT",
            help="Directory the images are under; a line whose image is not there is bad. "
            "Not checked where this machine does not see the directory.",
        ),
    ] = None,
    on_invalid: Annotated[
        OnInvalid,
        typer.Option(
            envvar="HALP_ON_INVALID",
            help="With bad lines in the file: enqueue nothing, or all but those.",
        ),
    ] = OnInvalid.STOP,
    max_backlog: Annotated[
        int | None,
        typer.Option(
            envvar="HALP_MAX_BACKLOG",
            min=1,
            help="Wait while more jobs than this are on the stream.",
        ),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            envvar="HALP_MAP",
            metavar="FIELD=COLUMN",
            callback=_mapping,
            help="Take a field from this column. May be repeated.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", envvar="HALP_DRY_RUN", help="Only check the file; needs no server."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every line of a dataset, then enqueue it.

    Each question id is added once to a run: the same command again, after a kill too, goes on
    where it was. Exits 1 when a line is bad or its id is in the run with other content.
    """
    with _errors(redis_url, "the same command goes on where this one stopped"):
        source = Dataset(dataset, Columns.from_options(mapping or []), _images(image_root))
        client = None if dry_run else _connect(redis_url)
        try:
            with listening() as listener:
                report = enqueue_dataset(
                    source,
                    RunKeys(run),
                    client,
                    on_invalid=on_invalid,
                    max_backlog=max_backlog,
                    listener=listener,
                )
        finally:
            if client is not None:
                client.close()
    typer.echo(_json(report) if as_json else report_text(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command(
    epilog="\b\nExamples:\n  halp-producer status\n  halp-producer status --run pilot --json"
)
def status(run: Run = "default", redis_url: RedisUrl = DEFAULT_URL, as_json: Json = False) -> None:
    """How many questions of a run are waiting, in flight, done and failed; and who works on it."""
    with _errors(redis_url), closing(connect(redis_url)) as client:
        found = run_status(client, RunKeys(run))
    typer.echo(_json(found) if as_json else status_text(found))


@app.command(
    epilog="\b\nExamples:\n  halp-producer failed --limit 20\n  halp-producer failed --json"
)
def failed(
    run: Run = "default",
    redis_url: RedisUrl = DEFAULT_URL,
    limit: Annotated[
        int | None, typer.Option(envvar="HALP_LIMIT", min=1, help="Show at most this many.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the questions that can never succeed, oldest first, each with its reason."""
    keys = RunKeys(run)
    with _errors(redis_url), closing(connect(redis_url)) as client:
        total = run_status(client, keys).failed
        letters = dead_letters(client, keys, limit)
        if as_json:
            _print_array(letters)
            return
        shown = 0
        for letter in letters:
            typer.echo(letter_text(letter))
            shown += 1
    more = f", {shown} shown" if shown < total else ""
    typer.echo(f"run {run}: {total:,} failed{more}")


def main() -> None:
    """The console script."""
    app(prog_name="halp-producer")


@contextmanager
def _errors(url: str, resume: str = "") -> Iterator[None]:
    """One sentence and exit code 1 for every error that is foreseen."""
    try:
        yield
    except (ServerError, DatasetError, LedgerError, UnknownRunError) as error:
        _fail(str(error))
    except redis.RedisError as error:
        _fail(f"{explained(error, url)}{'; ' if resume else ''}{resume}")
    except KeyboardInterrupt:
        typer.echo(f"interrupted{'; ' if resume else ''}{resume}", err=True)
        raise typer.Exit(130) from None


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {printable(message)}", err=True)
    raise typer.Exit(1) from None


def _connect(url: str) -> redis.Redis:
    client = connect(url)
    for sentence in advice(client):
        typer.echo(f"warning: {sentence}", err=True)
    return client


def _images(path: Path | None) -> ImageRoot | None:
    if path is None:
        return None
    root = ImageRoot(path)
    if not root.visible:
        typer.echo(f"note: {path} is not visible here: images are not checked", err=True)
        return None
    return root


def _json(value: BaseModel) -> str:
    return json.dumps(value.model_dump(mode="json"), indent=2)


def _print_array(values: Iterable[BaseModel]) -> None:
    """One JSON array, written as it is read."""
    separator = "["
    for value in values:
        typer.echo(separator + "\n" + json.dumps(value.model_dump(mode="json")), nl=False)
        separator = ","
    typer.echo("[]" if separator == "[" else "\n]")
