"""`halp-store`: look into a store from a terminal; `verify` has its own file.

Exit codes: 0 done, 1 there is no such store or id (or it is damaged), 2 the command line is wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from halp_store import cli_verify
from halp_store.console import AsJson, StorePath, guarded, plain_console, print_json

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
app.command(epilog=cli_verify.EXAMPLES)(cli_verify.verify)


def main() -> None:
    """Entry point of the console script."""
    app()


@app.command(
    epilog="\b\nExamples:\n  halp-store info run1.zarr\n  halp-store info run1.zarr --json"
)
def info(store: StorePath, as_json: AsJson = False) -> None:
    """Say what a store holds: rows, segments, layers, positions, model, size, finish reasons."""
    facts = guarded(lambda: _facts(_open(store)))
    if as_json:
        print_json(facts)
        return
    table = Table("", "", show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(f"[bold]{escape(name.replace('_', ' '))}[/]", escape(_shown(name, value)))
    plain_console().print(table)


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
    row = guarded(lambda: _row(_open(store)[question_id]))
    if as_json:
        print_json(row)
        return
    console, table = plain_console(), Table("", "", show_header=False, box=None)
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
