"""`halp-store copy`: the command line over `copy`.

Exit codes: 0 done, 1 it cannot be read, written, or is refused, 2 the command line is wrong.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from halp_store.address import storage_at
from halp_store.console import AsJson, StorePath, guarded, print_json
from halp_store.progress import progress_bar

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
            metavar="TARGET", help="Where the copy goes: nothing yet, or an earlier copy of STORE."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Make a consistent copy while workers write and compact --prune runs.

    The same command again goes on after a kill, and brings over what is new. The copy is the same
    store, with the same id: let workers write to one of both only.
    """

    def work() -> Copied:
        from halp_store.copying import copy as copy_store

        with progress_bar("copy") as progress:
            return copy_store(storage_at(store), storage_at(target), progress)

    copied = guarded(work)
    if as_json:
        print_json({"store": store, "target": target, **asdict(copied)})
    else:
        typer.echo(f"{target}: {copied.rows:,} rows; {copied.groups:,} groups copied")
