"""`halp-producer ask`: the command line over `ask`: which image, which id, what became of it."""

from __future__ import annotations

import os
import shlex
import uuid
from contextlib import closing
from pathlib import Path
from typing import Annotated

import redis
import typer
from pydantic import BaseModel

from halp_producer.ask import AskError, ask
from halp_producer.console import Json, errors, fail, print_json
from halp_producer.images import ImageRoot, is_url
from halp_producer.job import MAX_IMAGE_BYTES, Job, JobFormatError, parse
from halp_producer.keys import RunKeys
from halp_producer.options import RedisUrl, Run
from halp_producer.problem import printable
from halp_producer.results import ABSTAINED, Fate, Result
from halp_producer.server import DEFAULT_URL, connect
from halp_producer.status import UnknownRunError, run_status


class Unanswered(BaseModel):
    """What `--json` prints where there is no `Result` in time."""

    question_id: str
    fate: None = None


def ask_question(
    image: Annotated[
        str,
        typer.Argument(
            help="A file here or below the image root, or a URL (for workers with --allow-urls)."
        ),
    ],
    question: Annotated[str, typer.Argument(help="Exactly what the model is asked.")],
    run: Run = "default",
    redis_url: RedisUrl = DEFAULT_URL,
    image_root: Annotated[
        Path | None,
        typer.Option(
            envvar="HALP_IMAGE_ROOT",
            help="Directory that workers have too: an image below it is named, not sent.",
        ),
    ] = None,
    inline_images: Annotated[
        bool,
        typer.Option(
            "--inline-images",
            envvar="HALP_INLINE_IMAGES",
            help="Send the image inside the job, below the image root too.",
        ),
    ] = False,
    # Of one question each: never by a variable that was left over.
    truth: Annotated[str, typer.Option("--truth", help="The ground truth, if it is known.")] = "",
    question_id: Annotated[
        str | None,
        typer.Option("--id", help="The question's id; one of its own otherwise (ask-...)."),
    ] = None,
    timeout_seconds: Annotated[
        float,
        typer.Option(envvar="HALP_TIMEOUT_SECONDS", min=0, help="Wait at most so long."),
    ] = 300.0,
    as_json: Json = False,
) -> None:
    """Ask one question about one image, wait for a worker, and print the answer.

    The hidden states are in the store then, like those of any other question of the run. Exits 1
    when the question failed or has no answer in time; it then stays enqueued.
    """
    job = _job(image, question, truth, question_id, image_root, inline_images)
    name = printable(job.question_id)
    run_option = "" if run == "default" else f" --run {run}"
    stays = (
        f"the question may be enqueued as {name}: `halp-producer cancel {name}{run_option}` takes "
        "it back"
    )
    try:
        with errors(redis_url, lambda: stays), closing(connect(redis_url)) as client:
            result = ask(
                client,
                RunKeys(run),
                job,
                timeout_seconds=timeout_seconds,
                note=lambda text: typer.echo(printable(text), err=True),
            )
            store = _store(client, RunKeys(run)) if result else ""
    except AskError as error:
        fail(str(error))
    if as_json:
        print_json(result or Unanswered(question_id=job.question_id), run=run)
    if result is None:
        fail(
            f"no answer in {timeout_seconds:g} s; the question stays enqueued as {name}: "
            f"`halp-producer status{run_option}` says how far the run is, "
            f"`halp-producer cancel {name}{run_option}` takes it back"
        )
    if result.fate is Fate.FAILED:
        fail(
            f"{name}: {result.reason}: {result.error}; `halp-producer failed show "
            f"{name}{run_option}` says more"
        )
    if not as_json:
        typer.echo(_answer_text(name, result, store))


def _store(client: redis.Redis, keys: RunKeys) -> str:
    """Where the run's workers write, as they say; `STORE` where they do not all say the same."""
    try:
        workers = run_status(client, keys).workers
    except (redis.RedisError, UnknownRunError):
        return "STORE"  # the answer is at hand, and matters more
    said = {one.activity.store for one in workers if one.activity and one.activity.store}
    return shlex.quote(printable(said.pop())) if len(said) == 1 else "STORE"


def _answer_text(name: str, result: Result, store: str) -> str:
    place = "" if result.segment is None else f"row {result.row} of {printable(result.segment)}; "
    risk = "" if result.risk is None else f"risk {result.risk:.2f}"
    states = f"hidden states: {place}halp-store get {store} {name}"
    if result.finish_reason == ABSTAINED:
        return f"abstained: {risk or 'its risk'} is above the worker's threshold\n{states}"
    return "\n".join([_answer_line(result), *([risk] if risk else []), states])


def _answer_line(result: Result) -> str:
    if result.answer is None:
        return "(answered before: the store has the answer)"
    if result.answer:
        return printable(result.answer)
    is_meant = result.finish_reason in {"stop", "length"}
    return "(the answer is empty)" if is_meant else "(no answer: the worker gives none)"


def _job(
    image: str,
    question: str,
    truth: str,
    question_id: str | None,
    image_root: Path | None,
    inline_images: bool,
) -> Job:
    root = ImageRoot(image_root) if image_root is not None else None
    name, data = _image(image, root, inline_images)
    try:
        return parse(
            {
                "question_id": question_id or f"ask-{uuid.uuid4().hex[:16]}",
                "image": name,
                "question": question,
                "ground_truth": truth,
                "image_data": data,
            }
        )
    except JobFormatError as error:
        raise typer.BadParameter(printable(str(error))) from None


def _image(image: str, root: ImageRoot | None, inline_images: bool) -> tuple[str, bytes | None]:
    """(what the job calls it, its bytes if they travel inside)."""
    if is_url(image):
        return image, None
    if root is not None and not root.visible and not inline_images:
        typer.echo(f"note: {root.path} is not visible here: the image is not checked", err=True)
        return image, None
    here = Path(image)
    below = root.path / image if root is not None else here
    path = here if here.exists() else below
    looked = f" (looked here and under {root.path})" if root is not None else ""
    if not path.is_file():
        raise typer.BadParameter(printable(f"not a file: {image}{looked}"))
    real = Path(os.path.realpath(path))
    name = path.name
    if root is not None and real.is_relative_to(os.path.realpath(root.path)):
        name = real.relative_to(os.path.realpath(root.path)).as_posix()
        if not inline_images:
            return name, None
    try:
        return name, ImageRoot(real.parent).read(real.name, MAX_IMAGE_BYTES)
    except ValueError as error:
        raise typer.BadParameter(printable(str(error))) from None
