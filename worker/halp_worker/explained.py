"""`failures_explained`: around each command; what a user can mend becomes a sentence and a code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from halp_worker.settings import LogFormat

log = logging.getLogger(__name__)


@contextmanager
def failures_explained(
    extra: str = "worker", log_format: LogFormat = "text", url: str = ""
) -> Iterator[None]:
    """Turns what a user can do something about into one message and exit code 1."""
    from halp_worker.logs import set_up_logging

    try:
        _silence_libraries()
        set_up_logging(log_format, url)
        yield
    except ModuleNotFoundError as error:
        # A module of our own that is missing is a defect, and shows as one.
        if (error.name or "").startswith("halp_"):
            raise
        _fail(
            f"this command needs the {extra} extra ({error.name} is not installed): "
            f"pip install 'halp-stream[{extra}]'"
        )
    except Exception as error:
        if not _is_for_people(error):
            raise
        if log_format == "json":
            log.critical("%s", error)
            raise typer.Exit(_exit_code(error)) from None
        _fail(str(error), _exit_code(error))


def _is_for_people(error: Exception) -> bool:
    import redis

    from halp_producer.server import ServerError
    from halp_store.errors import StoreError
    from halp_worker.fates import DeviceOutOfMemory, FatalError, Rejected, Retryable

    fates = FatalError | Rejected | Retryable | DeviceOutOfMemory
    return isinstance(error, fates | ServerError | StoreError | redis.RedisError | OSError)


def _exit_code(error: Exception) -> int:
    """3 tells a supervisor that this machine's device is broken, so that it need not try again."""
    from halp_worker.fates import DeviceBroken

    return 3 if isinstance(error, DeviceBroken) else 1


def _fail(message: str, code: int = 1) -> None:
    typer.echo(f"halp-worker: {message}", err=True)
    raise typer.Exit(code)


def _silence_libraries() -> None:
    # The libraries' own bars and advice are not ours to show; these must be set before they load.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
