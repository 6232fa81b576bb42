"""`halp-store merge`: the command line over `merge`.

Exit codes: 0 done, 1 it cannot be read, written, or is refused, 2 the command line is wrong.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from halp_store.console import AsJson, guarded, print_json
from halp_store.progress import progress_bar

if TYPE_CHECKING:
    from halp_store.merging import Merge

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-store merge all.zarr run1.zarr run2.zarr"
    "\n  halp-store merge all.zarr s3://bucket/run3.zarr --json"
)


def merge(
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="The merged store: a new path, or one to go on.")
    ],
    stores: Annotated[
        list[str], typer.Argument(metavar="STORE...", help="Stores of one configuration.")
    ],
    as_json: AsJson = False,
) -> None:
    """Bring the rows of several stores of one configuration into one.

    The stores stay as they are. A question that two of them have with the same content is taken
    once, one with two contents refuses the whole command. The same command again goes on.
    """

    def work() -> Merge:
        from halp_store.merging import merge as merge_stores

        with progress_bar("merge") as progress:
            return merge_stores(out, stores, progress)

    merged = guarded(work)
    if as_json:
        print_json({"store": out, **asdict(merged)})
    else:
        typer.echo(
            f"{out}: {merged.rows:,} rows; {merged.added:,} added, "
            f"{merged.skipped:,} were there already"
        )
