"""The `halp-worker` command. Reads options, prints results; the work is done elsewhere.

Imports nothing heavy until a command runs, so that help is instant and a missing extra is one
sentence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from halp_producer.options import RedisUrl, Run
from halp_producer.server import DEFAULT_URL
from halp_worker import dashboard_cli
from halp_worker.explained import failures_explained
from halp_worker.model_options import (
    AbstainAbove,
    AllowUrls,
    Device,
    DtypeOption,
    ImageRoot,
    Layers,
    MaxNewTokens,
    MaxPixels,
    MinPixels,
    Model,
    NoAnswer,
    Positions,
    ProbeFile,
    RepetitionPenalty,
    Revision,
    check_abstaining,
)
from halp_worker.settings import (
    DEFAULT_MODEL,
    DeviceMap,
    LogFormat,
    ModelSettings,
    WorkerSettings,
)

ALL_FAILED: Final = 4
"""Exit code of a worker whose run has ended without a row."""

app = typer.Typer(
    help="Runs Qwen2.5-VL on the jobs of a run and stores hidden states and answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show locals, the server's URL among them
    rich_markup_mode=None,
)


@app.command(
    epilog="\b\nExamples:"
    "\n  halp-worker run --store run1.zarr --image-root images/"
    "\n  halp-worker run --store run3b.zarr --model Qwen/Qwen2.5-VL-3B-Instruct --run 3b"
    "\n  HALP_STORE=run1.zarr HALP_DEVICE=cuda:1 halp-worker run --until-empty"
    "\n  halp-worker run --store run2.zarr --probe probe.safetensors --abstain-above 0.8"
)
def run(
    store: Annotated[
        str,
        typer.Option(
            envvar="HALP_STORE",
            metavar="PATH",
            help="Where the Zarr store is, or will be: a directory, or s3://, gs://, az://.",
        ),
    ],
    model: Model = DEFAULT_MODEL,
    run_name: Run = "default",
    redis_url: RedisUrl = DEFAULT_URL,
    image_root: ImageRoot = Path(),
    batch_size: Annotated[
        int,
        typer.Option(
            envvar="HALP_BATCH_SIZE",
            min=1,
            help="Most jobs in one batch; fewer where the device has no room for them.",
        ),
    ] = 64,
    max_new_tokens: MaxNewTokens = 200,
    no_answer: NoAnswer = False,
    repetition_penalty: RepetitionPenalty = 1.0,
    layers: Layers = "auto",
    positions: Positions = "",
    device: Device = "auto",
    device_map: Annotated[
        DeviceMap | None,
        typer.Option(
            envvar="HALP_DEVICE_MAP",
            help="auto: spread the layers over all GPUs, for models that do not fit one.",
        ),
    ] = None,
    until_empty: Annotated[
        bool,
        typer.Option(
            "--until-empty",
            envvar="HALP_UNTIL_EMPTY",
            help="Leave once no job is waiting or in flight: with exit code 4 if every job of the "
            "run failed, else with 0. The run must have been enqueued.",
        ),
    ] = False,
    dtype: DtypeOption = "bfloat16",
    revision: Revision = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    probe: ProbeFile = None,
    abstain_above: AbstainAbove = None,
    allow_urls: AllowUrls = False,
    lease_seconds: Annotated[
        float,
        typer.Option(
            envvar="HALP_LEASE_SECONDS",
            min=1,
            help="After this long without a sign of life another worker takes a job over.",
        ),
    ] = 60,
    max_job_seconds: Annotated[
        float,
        typer.Option(
            envvar="HALP_MAX_JOB_SECONDS",
            min=1,
            help="A job held for longer is not renewed any more, so that another worker gets it.",
        ),
    ] = 1800,
    max_attempts: Annotated[
        int,
        typer.Option(
            envvar="HALP_MAX_ATTEMPTS",
            min=1,
            help="A job that was started this often without an end is failed.",
        ),
    ] = 3,
    flush_rows: Annotated[
        int, typer.Option(envvar="HALP_FLUSH_ROWS", min=1, help="Commit after this many rows,")
    ] = 64,
    flush_seconds: Annotated[
        float, typer.Option(envvar="HALP_FLUSH_SECONDS", min=0.1, help="or after this long.")
    ] = 5,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="HALP_METRICS_PORT", min=0, max=65535, help="Serve Prometheus metrics here."
        ),
    ] = None,
    metrics_host: Annotated[
        str,
        typer.Option(
            envvar="HALP_METRICS_HOST", help="Address for the metrics; 0.0.0.0 in a container."
        ),
    ] = "127.0.0.1",
    log_format: Annotated[
        LogFormat,
        typer.Option(
            envvar="HALP_LOG_FORMAT",
            help="Of what it says on stderr. auto: text, on a terminal with a live line below; "
            "json: an object a line, with the ids of jobs and segments as fields.",
        ),
    ] = "auto",
) -> None:
    """Take jobs from the run, answer them with their states captured, store, acknowledge.

    SIGTERM or Ctrl-C: finish and commit the batch in hand, give back what was only fetched, leave.
    A second one: stop at once; nothing is lost. Exit codes: 0 done, 1 an error that is explained, 2
    wrong usage, 3 the device is broken, 4 with --until-empty: the run ended and every job failed.
    """
    check_abstaining(probe, abstain_above, no_answer=no_answer)
    with failures_explained(log_format=log_format, url=redis_url):
        from halp_worker.launch import run_worker

        ended = run_worker(
            WorkerSettings(
                store=store,
                model=ModelSettings(
                    model=model,
                    revision=revision,
                    dtype=dtype,
                    device=device,
                    device_map=device_map,
                    min_pixels=min_pixels,
                    max_pixels=max_pixels,
                    max_new_tokens=max_new_tokens,
                    no_answer=no_answer,
                    repetition_penalty=repetition_penalty,
                ),
                run=run_name,
                redis_url=redis_url,
                image_root=image_root,
                allow_urls=allow_urls,
                batch_size=batch_size,
                layers=layers,
                positions=_names(positions),
                lease_seconds=lease_seconds,
                max_job_seconds=max_job_seconds,
                max_attempts=max_attempts,
                flush_rows=flush_rows,
                flush_seconds=flush_seconds,
                until_empty=until_empty,
                metrics_port=metrics_port,
                metrics_host=metrics_host,
                log_format=log_format,
                probe=probe,
                abstain_above=abstain_above,
            )
        )
    if ended is None:
        return
    tally = ended.tally
    abstained = f" ({tally.abstained} without an answer)" if tally.abstained else ""
    typer.echo(
        f"{tally.done} stored{abstained}, {tally.already_stored} already in the store, "
        f"{tally.failed} failed"
    )
    if tally.failed:
        typer.echo(f"See why: halp-producer failed list --run {run_name}", err=True)
    if ended.is_all_failed:
        raise typer.Exit(ALL_FAILED)


@app.command(
    epilog="\b\nExamples:"
    "\n  halp-worker extract photo.jpg 'Is there a cat in the picture?'"
    "\n  halp-worker extract photo.jpg 'Is it night?' --layers 0,13,27 --json"
    "\n  halp-worker extract photo.jpg 'Is it night?' --probe probe.safetensors"
)
def extract(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    model: Model = DEFAULT_MODEL,
    max_new_tokens: MaxNewTokens = 200,
    no_answer: NoAnswer = False,
    repetition_penalty: RepetitionPenalty = 1.0,
    layers: Layers = "auto",
    positions: Positions = "",
    device: Device = "auto",
    dtype: DtypeOption = "bfloat16",
    revision: Revision = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    probe: ProbeFile = None,
    abstain_above: AbstainAbove = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output.")
    ] = False,
) -> None:
    """One sample without any server or store: prints answer, scores, positions and shapes."""
    check_abstaining(probe, abstain_above, no_answer=no_answer)
    with failures_explained():
        from halp_worker.single import extract_one, show

        settings = ModelSettings(
            model=model,
            revision=revision,
            dtype=dtype,
            device=device,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            max_new_tokens=max_new_tokens,
            no_answer=no_answer,
            repetition_penalty=repetition_penalty,
        )
        features = extract_one(
            settings,
            layers,
            _names(positions),
            image,
            question,
            probe=probe,
            abstain_above=abstain_above,
        )
        show(features, as_json=as_json)


@app.command(
    epilog="\b\nExamples:\n  halp-worker health"
    "\n  halp-worker health --run pilot --max-age-seconds 60"
)
def health(
    run_name: Run = "default",
    redis_url: RedisUrl = DEFAULT_URL,
    max_age_seconds: Annotated[
        float,
        typer.Option(
            envvar="HALP_MAX_AGE_SECONDS",
            min=1,
            help="How old the last successful poll may be: longer than the longest batch takes.",
        ),
    ] = 180,
) -> None:
    """Exit with 0 if a worker on this host has asked the server for work lately, else with 1."""
    with failures_explained():
        from halp_worker.health import health as checked

        report = checked(run_name, redis_url, max_age_seconds)
    typer.echo(report.sentence, err=not report.ok)
    if not report.ok:
        raise typer.Exit(1)


@app.command(epilog="\b\nExamples:\n  halp-worker demo --folder /tmp/halp")
def demo(
    folder: Annotated[
        Path, typer.Option(help="Where dataset, images, checkpoint and store are put.")
    ] = Path("demo-run"),
) -> None:
    """The whole path on this machine: server, dataset, two workers, store. No GPU, no downloads."""
    with failures_explained(extra="demo"):
        from halp_worker.demo.main_job import run_demo

        run_demo(folder)


def _names(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


app.command(epilog=dashboard_cli.EXAMPLES)(
    failures_explained(extra="dashboard")(dashboard_cli.dashboard)
)


def main() -> None:
    """The console script."""
    app()
