"""What the commands share: errors as one sentence with an exit code, and JSON.

Exit codes: 0 all is well, 1 something is wrong with the data or the server, 2 wrong usage,
130 interrupted. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import redis
import typer
from pydantic import BaseModel

from halp_producer.problem import DatasetError, printable
from halp_producer.scratch import ScratchError
from halp_producer.server import ServerError, explained
from halp_producer.status import UnknownRunError

Json = Annotated[
    bool, typer.Option("--json", envvar="HALP_JSON", help="Print one JSON document instead.")
]


@contextmanager
def errors(url: str, resume: Callable[[], str] = lambda: "") -> Iterator[None]:
    """One sentence and exit code 1 for every error that is foreseen; `resume` says how to go on."""
    try:
        yield
    except (ServerError, DatasetError, ScratchError, UnknownRunError) as error:
        fail(str(error))
    except redis.RedisError as error:
        fail("; ".join(filter(None, (str(explained(error, url)), resume()))))
    except KeyboardInterrupt:
        typer.echo("; ".join(filter(None, ("interrupted", resume()))), err=True)
        raise typer.Exit(130) from None


def fail(message: str) -> NoReturn:
    """The error on stderr, and exit code 1."""
    typer.echo(f"error: {printable(message)}", err=True)
    raise typer.Exit(1) from None


def print_json(value: BaseModel, **more: object) -> None:
    """One JSON object: the fields of `value`, and `more`."""
    typer.echo(json.dumps({**value.model_dump(mode="json"), **more}, indent=2))


def print_array(values: Iterable[BaseModel]) -> None:
    """One JSON array, written as it is read."""
    separator = "["
    for value in values:
        typer.echo(separator + "\n" + json.dumps(value.model_dump(mode="json")), nl=False)
        separator = ","
    typer.echo("[]" if separator == "[" else "\n]")
