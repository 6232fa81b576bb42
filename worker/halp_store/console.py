"""What the commands of `halp-store` share: errors as one sentence, exit code 1, JSON.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer

from halp_store.errors import StoreError
from halp_store.terminal import json_text, printable_lines

Result = TypeVar("Result")

NEEDS_EXTRA: Final = "halp-store needs numpy and zarr: pip install 'halp-stream[store]'"

StorePath = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="Directory of the store, or its URL: s3://, gs:// or az://."
    ),
]
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
    typer.echo(printable_lines(message), err=True)
    raise typer.Exit(1)


def print_json(value: dict[str, Any]) -> None:
    typer.echo(json_text(value, indent=2))
