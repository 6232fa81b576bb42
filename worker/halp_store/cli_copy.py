"""`halp-store copy`: the command line over `copy_store`.

Exit codes: 0 done, 1 it cannot be copied, or not to there, 2 the command line is wrong.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from halp_store.address import storage_at
from halp_store.console import AsJson, StorePath, guarded, print_json
from halp_store.progress import progress_bar
from halp_store.terminal import size

if TYPE_CHECKING:
    from halp_store.copying import Copied

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-store copy run1.zarr /backup/run1.zarr"
    "\n  halp-store copy run1.zarr s3://bucket/run1.zarr --json"
)


def copy(
    store: StorePath,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="Where the copy goes: a new directory or URL, or an earlier copy of this store.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Copy a store as of now, or bring an earlier copy up to date.

    Workers and compact --prune may go on meanwhile. After a kill the same command goes on where it
    was; until the first copy is complete, it does not open. A copy has the store's id: write to
    one of both only.
    """

    def work() -> Copied:
        from halp_store.copying import copy_store

        with progress_bar("copy") as progress:
            return copy_store(storage_at(store), storage_at(target), progress=progress)

    done = guarded(work)
    if as_json:
        print_json({"store": store, "target": target, **asdict(done)})
        return
    typer.echo(
        f"{target}: {done.rows:,} rows; brought over: {done.groups:,} segments and generations, "
        f"{done.keys:,} files, {size(done.size)}"
    )
