"""`halp-store merge`: the command line over `merge_stores`.

Exit codes: 0 done, 1 they cannot be merged, 2 the command line is wrong.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from halp_store.address import storage_at
from halp_store.console import AsJson, guarded, print_json
from halp_store.progress import progress_bar

if TYPE_CHECKING:
    from halp_store.merging import Merge

EXAMPLES: Final = "\b\nExamples:\n  halp-store merge all.zarr run1.zarr run2.zarr"


def merge(
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="A new store, or one of the same configuration, to merge into."
        ),
    ],
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="Stores to read.")],
    as_json: AsJson = False,
) -> None:
    """Bring the rows of stores of one configuration together in OUT.

    Rows that are there with the same content are skipped, so the same command goes on after a
    kill. If a question has other content in two stores, all such are named and nothing is written.
    """

    def work() -> Merge:
        from halp_store.merging import merge_stores

        with progress_bar("merge") as progress:
            return merge_stores(storage_at(out), [*map(storage_at, stores)], progress=progress)

    done = guarded(work)
    if as_json:
        print_json({"store": out, **asdict(done)})
        return
    typer.echo(f"{out}: {done.rows:,} rows; {done.added:,} added, {done.skipped:,} there already")
