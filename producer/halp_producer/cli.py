"""`halp-producer`: the command line over intake, status and cancelling; `failed` has its own file.

Exit codes: see `console.py`.
"""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Annotated

import redis
import typer

from halp_producer import __version__, ask_cli, failed_cli
from halp_producer.balance import imbalances
from halp_producer.columns import Columns
from halp_producer.console import Json, errors, print_json
from halp_producer.dataset import Dataset
from halp_producer.enqueue import CHUNK_JOBS
from halp_producer.images import DEFAULT_INLINE_BYTES, ImageRoot
from halp_producer.intake import OnInvalid, enqueue_dataset
from halp_producer.job import MAX_IMAGE_BYTES
from halp_producer.keys import RunKeys
from halp_producer.move_report import OF_JOBS, MoveReport, require_one_way
from halp_producer.moves import cancel_all, cancel_jobs
from halp_producer.options import RedisUrl, Run
from halp_producer.order import GroupBy
from halp_producer.progress import counting, listening
from halp_producer.server import DEFAULT_URL, advice, connect, connect_exact
from halp_producer.status import read_run, require_run
from halp_producer.wording import report_text, run_option, status_text, sum_text

app = typer.Typer(
    help="Puts datasets of (image, question, ground truth) on a stream, and says how far it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show locals, the server's URL among them
    rich_markup_mode=None,
)
app.add_typer(failed_cli.app, name="failed")
app.command(
    "ask",
    epilog='\b\nExamples:\n  halp-producer ask kettle.jpg "Is there a kettle?"'
    '\n  halp-producer ask kitchen/0.jpg "What is it?" --image-root /data/images --run pilot',
)(ask_cli.ask_question)


def _mapping(options: list[str] | None) -> list[str]:
    try:
        Columns.from_options(options or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return options or []


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
    "\n  halp-producer enqueue questions.jsonl --image-root . --inline-images --max-backlog 1000"
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
    inline_images: Annotated[
        bool,
        typer.Option(
            "--inline-images",
            envvar="HALP_INLINE_IMAGES",
            help="Send each image inside its job, for workers that do not see the image root. "
            "The server holds them in memory until they are done: see --max-backlog.",
        ),
    ] = False,
    max_inline_bytes: Annotated[
        int,
        typer.Option(
            envvar="HALP_MAX_INLINE_BYTES",
            min=1,
            max=MAX_IMAGE_BYTES,
            help="With --inline-images: a line whose image is larger is bad.",
        ),
    ] = DEFAULT_INLINE_BYTES,
    on_invalid: Annotated[
        OnInvalid,
        typer.Option(
            envvar="HALP_ON_INVALID",
            help="With bad lines in the file: enqueue nothing, or all but those.",
        ),
    ] = OnInvalid.STOP,
    group_by: Annotated[
        GroupBy,
        typer.Option(
            envvar="HALP_GROUP_BY",
            help="Enqueue the questions of one image together, wherever they are in the file: "
            "workers then compute each image once for many questions. Or keep the file's order.",
        ),
    ] = GroupBy.IMAGE,
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
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            envvar="HALP_WAIT",
            help="Then watch the run until each of its questions, these and others, is done or "
            "failed; exits 1 if any failed.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every line of a dataset, then enqueue it.

    Each question id is added once to a run: the same command again, after a kill too, goes on
    where it was. Exits 1 when a line is bad or its id is in the run with other content.
    """
    if wait and dry_run:
        raise typer.BadParameter("--dry-run enqueues nothing to wait for: leave out --wait")
    images = _images(image_root)
    if inline_images and images is None:
        raise typer.BadParameter("--inline-images needs an --image-root that this machine sees")
    with errors(redis_url, lambda: "the same command goes on where this one stopped"):
        source = Dataset(
            dataset,
            Columns.from_options(mapping or []),
            images,
            inline_bytes=max_inline_bytes if inline_images else None,
        )
        client = None if dry_run else _connect(redis_url)
        try:
            with listening() as listener:
                report = enqueue_dataset(
                    source,
                    RunKeys(run),
                    client,
                    on_invalid=on_invalid,
                    group_by=group_by,
                    max_backlog=max_backlog,
                    listener=listener,
                )
        finally:
            if client is not None:
                client.close()
    if not as_json:
        typer.echo(report_text(report))
    found = None
    if wait and report.questions and not report.stopped:
        from halp_producer.watch_cli import wait_for_run  # with it comes rich

        found = wait_for_run(redis_url, RunKeys(run))
    if as_json:
        print_json(report, **({"status": found.model_dump(mode="json")} if found else {}))
    elif found:
        typer.echo(sum_text(found))
    if found and found.failed:
        typer.echo(f"{found.failed:,} failed: halp-producer failed list{run_option(run)}", err=True)
    if not report.ok or (found and found.failed):
        raise typer.Exit(1)


@app.command(
    epilog="\b\nExamples:\n  halp-producer status\n  halp-producer status --run pilot --json"
    "\n  halp-producer status --check"
    "\n  halp-producer status --watch"
)
def status(
    run: Run = "default",
    redis_url: RedisUrl = DEFAULT_URL,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            envvar="HALP_CHECK",
            help="Check that the numbers agree with each other; exits 1 if they do not.",
        ),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            envvar="HALP_WATCH",
            help="Look again each second, until Ctrl-C. With --json, one object a line.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """How many questions of a run are waiting, in flight, done and failed; and who works on it.

    With --check, what does not hold in the book-keeping, and what to do about it.
    """
    if check and watch:
        raise typer.BadParameter("--check looks once: leave out --watch")
    if watch:
        from halp_producer.watch_cli import watch_run

        watch_run(redis_url, RunKeys(run), as_json=as_json)
        return
    with errors(redis_url), closing(connect(redis_url)) as client:
        found, books = read_run(client, RunKeys(run))
    problems = imbalances(books) if check else ()
    if as_json:
        print_json(found, **({"problems": problems} if check else {}))
    elif check:
        typer.echo("\n".join([sum_text(found), *(problems or ["book-keeping holds"])]))
    else:
        typer.echo(status_text(found))
    if problems:
        raise typer.Exit(1)


@app.command(
    epilog="\b\nExamples:\n  halp-producer cancel question_comb_6253"
    "\n  halp-producer cancel --all --run pilot"
)
def cancel(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION_ID", help="Question ids.")
    ] = None,
    # Never by a variable that was left over.
    everything: Annotated[
        bool, typer.Option("--all", help="All that are waiting, delayed or in flight now.")
    ] = False,
    run: Run = "default",
    redis_url: RedisUrl = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Take questions off the stream: waiting, delayed or in flight, they become failed ones.

    The worker that has one in its hands discards what it computed; a question whose commit is
    under way may be stored all the same. `halp-producer failed retry` undoes it, `failed drop`
    forgets them. May be repeated. Exits 1 when an id is unknown, done or failed.
    """
    require_one_way("--all", ids, everything)
    keys, report = RunKeys(run), MoveReport(run=run)
    # Nothing is repeated behind our back, so that the numbers are right: see `resume`.
    with (
        errors(redis_url, report.resume),
        closing(connect_exact(redis_url)) as client,
        counting("cancelled") as count,
    ):
        require_run(client, keys)
        for cancelled in cancel_all(client, keys) if everything else ():
            report.moved += cancelled
            count(report.moved)
        names = iter(dict.fromkeys(ids or []))
        while chunk := list(islice(names, CHUNK_JOBS)):
            for name, move in zip(chunk, cancel_jobs(client, keys, chunk), strict=True):
                report.note(name, move, OF_JOBS)
            count(report.moved)
    report.finish("cancelled", as_json)


def main() -> None:
    """The console script."""
    app(prog_name="halp-producer")


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
