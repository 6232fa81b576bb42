"""`halp-store`: look into a store from a terminal.

Exit codes: 0 done, 1 there is no such store or id (or it is damaged), 2 the command line is wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from halp_store.errors import StoreError

if TYPE_CHECKING:
    from halp_store.reader import Store
    from halp_store.record import Record

app = typer.Typer(
    name="halp-store",
    help="Look into a store of hidden states.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_NEEDS_EXTRA: Final = "halp-store needs numpy and zarr: pip install 'halp-stream[store]'"

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="Directory of the store.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def main() -> None:
    """Entry point of the console script."""
    app()


@app.command(
    epilog="\b\nExamples:\n  halp-store info run1.zarr\n  halp-store info run1.zarr --json"
)
def info(store: StorePath, as_json: AsJson = False) -> None:
    """Say what a store holds: rows, segments, layers, positions, model, size, finish reasons."""
    facts = _guarded(lambda: _facts(_open(store)))
    if as_json:
        _print_json(facts)
        return
    table = Table("", "", show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(f"[bold]{escape(name.replace('_', ' '))}[/]", escape(_shown(name, value)))
    _console().print(table)


@app.command(
    epilog="\b\nExamples:\n  halp-store get run1.zarr question_comb_6253"
    "\n  halp-store get run1.zarr question_comb_6253 --json"
)
def get(
    store: StorePath,
    question_id: Annotated[str, typer.Argument(metavar="QUESTION_ID", help="As in the data set.")],
    as_json: AsJson = False,
) -> None:
    """Print one row: question, image, truth, answer, positions, shapes and vector norms."""
    row = _guarded(lambda: _row(_open(store)[question_id]))
    if as_json:
        _print_json(row)
        return
    console, table = _console(), Table("", "", show_header=False, box=None)
    arrays = row.pop("arrays")
    for name, value in row.items():
        table.add_row(f"[bold]{escape(name.replace('_', ' '))}[/]", escape(_shown(name, value)))
    console.print(table)
    vectors = Table("array", "shape", "norm of each vector", box=None)
    for name, array in arrays.items():
        norms = ", ".join(f"{norm:.4g}" for norm in array["norms"])
        vectors.add_row(escape(name), str(tuple(array["shape"])), norms)
    console.print(vectors)


def _open(path: Path) -> Store:
    from halp_store.reader import open_store

    return open_store(path)


def _guarded(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `read` returns; a store error or a missing extra ends the process with its sentence."""
    try:
        return read()
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {"numpy", "zarr"}:
            raise
        _fail(_NEEDS_EXTRA)
    except (StoreError, OSError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)


def _facts(store: Store) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "store": store.path,
        "rows": len(store),
        "segments": len(store.segments),
        "bytes_on_disk": store.bytes_on_disk(),
        "layers": list(store.layers),
        "positions": list(store.positions),
        "hidden_size": store.layout.hidden_size,
        "vision_hidden_size": store.layout.vision_hidden_size,
        "source_dtype": store.layout.source_dtype,
        "finish_reasons": dict(Counter(store.text("finish_reason")).most_common()),
        "fingerprint": store.layout.fingerprint,
    }
    if store.contradictions:
        facts["contradictions"] = list(store.contradictions)
    return facts


def _row(record: Record) -> dict[str, Any]:
    import numpy as np

    return {
        "question_id": record.question_id,
        "question": record.question_text,
        "image": record.image,
        "image_sha256": record.image_sha256,
        "ground_truth": record.ground_truth,
        "answer": record.answer,
        "finish_reason": record.finish_reason,
        "metadata": dict(record.metadata),
        "prompt_tokens": record.prompt_tokens,
        "image_tokens": record.image_tokens,
        "answer_tokens": record.answer_tokens,
        "image_grid_thw": list(record.image_grid_thw),
        "positions": dict(record.positions),
        "layers": list(record.layers),
        "segment": record.segment,
        "arrays": {
            name: {
                "shape": list(values.shape),
                "norms": [float(norm) for norm in np.atleast_1d(np.linalg.norm(values, axis=-1))],
            }
            for name, values in record.arrays.items()
        },
    }


def _shown(name: str, value: Any) -> str:
    if name == "bytes_on_disk":
        return f"{value / 1e6:,.1f} MB"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return "\n".join(f"{path}: {one}" for path, one in _leaves(value))
    return str(value)


def _leaves(value: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """A nested object as `outer.inner` and JSON, a line each."""
    for name, one in value.items():
        if isinstance(one, dict) and one:
            yield from _leaves(one, f"{above}{name}.")
        else:
            yield f"{above}{name}", json.dumps(one, ensure_ascii=False)


def _console() -> Console:
    # Answers are shown as they are: ":smile:" is no emoji, a number in one needs no colour.
    return Console(emoji=False, highlight=False)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
