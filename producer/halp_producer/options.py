"""The options that commands of producer and worker share: which run, which server."""

from __future__ import annotations

from typing import Annotated

import typer

from halp_producer.keys import RunKeys


def _run_name(name: str) -> str:
    try:
        RunKeys(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return name


Run = Annotated[
    str,
    typer.Option(
        "--run", envvar="HALP_RUN", callback=_run_name, help="The run: one stream, one result."
    ),
]
RedisUrl = Annotated[
    str,
    typer.Option(
        "--redis-url",
        envvar="HALP_REDIS_URL",
        help="The server: redis://[[user]:password@]host:port/database, rediss://, unix://, "
        "redis+sentinel:// or redis+cluster://.",
    ),
]
