"""`halp-store`: look into a store from a terminal. Here is `info`; other commands have files of
their own.

Exit codes: 0 done, 1 there is no such store or id (or it is damaged), 2 the command line is wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import typer

from halp_store import (
    cli_compact,
    cli_copy,
    cli_delete,
    cli_export,
    cli_get,
    cli_merge,
    cli_plot,
    cli_rows,
    cli_verify,
)
from halp_store.console import AsJson, StorePath, guarded
from halp_store.opening import opened
from halp_store.terminal import fields, json_text, printable, size

if TYPE_CHECKING:
    from halp_store.reader import Store

# A read opens each of them; below this nobody would notice.
_MANY_SEGMENTS: Final = 20
_NAMED_CONTRADICTIONS: Final = 5

app = typer.Typer(
    name="halp-store",
    help="Look into a store of hidden states.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Entry point of the console script."""
    app()


@app.command(
    epilog="\b\nExamples:\n  halp-store info run1.zarr\n  halp-store info run1.zarr --json"
)
def info(store: StorePath, as_json: AsJson = False) -> None:
    """Say what a store holds: rows, layers, positions, model, size, finish reasons, and what to do.

    With --json `hint` is what to do, or null.
    """
    facts = guarded(partial(_facts, opened(store)))
    if as_json:
        typer.echo(json_text(facts, indent=2))
        return
    hint = facts.pop("hint")
    if not facts["rows_deleted"]:
        del facts["rows_deleted"]
    typer.echo("\n".join(fields({name: _shown(name, value) for name, value in facts.items()})))
    if hint:
        typer.echo(f"next: {hint}")


app.command(epilog=cli_get.EXAMPLES)(cli_get.get)
app.command(epilog=cli_rows.LS_EXAMPLES)(cli_rows.ls)
app.command(epilog=cli_rows.QUERY_EXAMPLES)(cli_rows.query)
app.command(epilog=cli_plot.EXAMPLES)(cli_plot.plot)
app.command(epilog=cli_compact.EXAMPLES)(cli_compact.compact)
app.command(epilog=cli_copy.EXAMPLES)(cli_copy.copy)
app.command(epilog=cli_merge.EXAMPLES)(cli_merge.merge)
app.command(epilog=cli_delete.EXAMPLES)(cli_delete.delete)
app.command(epilog=cli_export.EXPORT_EXAMPLES)(cli_export.export)
app.command("import", epilog=cli_export.IMPORT_EXAMPLES)(cli_export.import_)
app.command(epilog=cli_verify.EXAMPLES)(cli_verify.verify)


def _facts(store: Store) -> dict[str, Any]:
    segments = len(store.segments)
    return {
        "store": store.path,
        "model": store.layout.fingerprint.get("model"),
        "rows": len(store),
        "rows_deleted": store.rows_deleted,
        "generation": store.generation,
        "segments": segments,
        "bytes_on_disk": store.bytes_on_disk(),
        "layers": list(store.layers),
        "positions": list(store.positions),
        "hidden_size": store.layout.hidden_size,
        "vision_hidden_size": store.layout.vision_hidden_size,
        "scores": list(store.layout.scores),
        "source_dtype": store.layout.source_dtype,
        "finish_reasons": dict(Counter(store.text("finish_reason")).most_common()),
        "contradictions": list(store.contradictions),
        "fingerprint": store.layout.fingerprint,
        "hint": _hint(store, segments),
    }


def _hint(store: Store, segments: int) -> str | None:
    if not len(store):
        return f"nothing is stored yet; start a worker: halp-worker run --store {store.path}"
    if store.contradictions:
        return (
            "ids were stored with two contents, one of which is shown; which, says "
            f"halp-store verify {store.path}"
        )
    if segments >= _MANY_SEGMENTS:
        return (
            f"{segments:,} segments: halp-store compact {store.path} makes reading one layer faster"
        )
    if store.rows_deleted:
        return f"halp-store compact {store.path} --prune removes the bytes of deleted rows, too"
    return None


def _shown(name: str, value: Any) -> str:
    if name == "bytes_on_disk":
        return size(value)
    if value is None:
        return "none"
    if name == "segments":
        return f"{value:,} outside the generation"
    if name == "contradictions":
        return _contradictions(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return "\n".join(f"{path}: {one}" for path, one in _leaves(value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _contradictions(ids: list[str]) -> str:
    if not ids:
        return "none"
    more = ", ..." if len(ids) > _NAMED_CONTRADICTIONS else ""
    return f"{len(ids):,}: {', '.join(map(printable, ids[:_NAMED_CONTRADICTIONS]))}{more}"


def _leaves(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """A nested object as `outer.inner` and JSON, a line each."""
    for name, one in value.items():
        if isinstance(one, Mapping) and one:
            yield from _leaves(one, f"{above}{name}.")
        else:
            yield f"{above}{name}", json.dumps(one, ensure_ascii=False)
