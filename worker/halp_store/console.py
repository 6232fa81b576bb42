"""What the commands of `halp-store` share: errors as one sentence, exit code 1, JSON, a console.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer
from rich.console import Console

from halp_store.errors import StoreError

Result = TypeVar("Result")

NEEDS_EXTRA: Final = "halp-store needs numpy and zarr: pip install 'halp-stream[store]'"

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="Directory of the store.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def guarded(read: Callable[[], Result]) -> Result:
    """What `read` returns; a store error or a missing extra ends the process with its sentence."""
    try:
        return read()
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {"numpy", "zarr"}:
            raise
        fail(NEEDS_EXTRA)
    except (StoreError, OSError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """The sentence on stderr, and exit code 1."""
    typer.echo(message, err=True)
    raise typer.Exit(1)


def plain_console() -> Console:
    # Answers are shown as they are: ":smile:" is no emoji, a number in one needs no colour.
    return Console(emoji=False, highlight=False)


def print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
