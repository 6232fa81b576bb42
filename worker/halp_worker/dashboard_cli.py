"""`halp-worker dashboard`: a web page over a run and its store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from halp_producer.options import RedisUrl, Run
from halp_producer.server import DEFAULT_URL

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-worker dashboard --store run1.zarr --image-root images/"
    "\n  halp-worker dashboard --store run1.zarr --run pilot --port 8051"
    "\n  ssh -L 8050:localhost:8050 gpu-box    # then open http://localhost:8050/ here"
)


def dashboard(
    store: Annotated[
        str,
        typer.Option(
            envvar="HALP_STORE",
            metavar="PATH",
            help="The Zarr store, there or not yet: a directory, or s3://, gs://, az://.",
        ),
    ],
    image_root: Annotated[
        Path | None,
        typer.Option(
            envvar="HALP_IMAGE_ROOT",
            exists=True,
            file_okay=False,
            help="Where the pictures are, as for the workers; without it none are shown.",
        ),
    ] = None,
    run_name: Run = "default",
    redis_url: RedisUrl = DEFAULT_URL,
    host: Annotated[
        str,
        typer.Option(
            envvar="HALP_DASHBOARD_HOST",
            help="Address to listen at; more than this machine takes --allow-remote as well.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            envvar="HALP_DASHBOARD_PORT", min=0, max=65535, help="0 for any that is free."
        ),
    ] = 8050,
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote",
            envvar="HALP_DASHBOARD_ALLOW_REMOTE",
            help="Serve other machines too. There is no password: anyone who reaches it sees "
            "questions, answers and pictures.",
        ),
    ] = False,
) -> None:
    """Serve a web page: what the fleet does, and a browser of the stored questions.

    Changes nothing, on the server or in the store. Works without a server, and before there is a
    store. SIGTERM or Ctrl-C: leave at once, with exit code 0.
    """
    from halp_worker.dashboard.serving import DashboardSettings, serve_dashboard

    settings = DashboardSettings(store, image_root, run_name, redis_url, host, port, allow_remote)
    serve_dashboard(settings, lambda address: typer.echo(f"{address}  (Ctrl-C to leave)"))
