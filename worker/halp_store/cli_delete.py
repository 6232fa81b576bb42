"""`halp-store delete`: the command line over `delete_rows`.

Exit codes: 0 done, 1 there is no such store or id, or nobody said yes, 2 the command line is wrong.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from halp_store.address import storage_at
from halp_store.console import AsJson, StorePath, fail, guarded, print_json

if TYPE_CHECKING:
    from halp_store.delete import Deletion

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-store delete run1.zarr question_comb_6253 --yes"
    "\n  halp-store query run1.zarr 'finish_reason=length' --ids > bad.txt"
    "\n  halp-store delete run1.zarr --ids bad.txt"
)


def delete(
    store: StorePath,
    question_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of questions.")
    ] = None,
    ids_file: Annotated[
        Path | None,
        typer.Option(
            "--ids",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Take the ids from this file, one a line.",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask. Needed where nobody can be asked.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete rows, so that their questions can be extracted again. This cannot be undone.

    Nothing shows the rows from then on; their bytes go with `halp-store compact --prune`. Workers
    and readers may go on meanwhile. If one id was never stored, nothing is deleted.
    """
    if bool(question_ids) == bool(ids_file):
        raise typer.BadParameter("give either ids or --ids FILE")
    ids = question_ids or _lines_of(ids_file)
    storage = guarded(lambda: storage_at(store))

    def look() -> Deletion:
        from halp_store.delete import deletable

        return deletable(storage, ids)

    def work() -> Deletion:
        from halp_store.delete import delete_rows

        return delete_rows(storage, ids)

    if not yes:
        _ask(store, len(guarded(look).deleted))
    done = guarded(work)
    if as_json:
        print_json({"store": store, **asdict(done)})
        return
    before = f"; {len(done.before):,} were before" if done.before else ""
    typer.echo(f"{store}: {len(done.deleted):,} rows deleted{before}")
    typer.echo(
        "to have them extracted again, enqueue the data set into a new run, and start a worker on "
        f"it: halp-producer enqueue DATASET --run NAME, halp-worker run --run NAME --store {store}"
    )
    typer.echo(f"to remove their bytes, too: halp-store compact {store} --prune")


def _lines_of(path: Path | None) -> list[str]:
    try:
        text = path.read_text("utf-8-sig") if path else ""
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: cannot be read as UTF-8 text, one id a line: {error}")
    return [line for line in text.split("\n") if line] or fail(f"{path}: has no ids: one a line")


def _ask(store: str, rows: int) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"this deletes {rows:,} rows of {store} for good: add --yes")
    if not typer.confirm(f"delete {rows:,} rows of {store} for good?", err=True):
        fail("nothing was deleted")
