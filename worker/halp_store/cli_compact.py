"""`halp-store compact`: the command line over `compact` and `prune`.

Exit codes: 0 done, 1 there is no such store or it cannot be read, 2 the command line is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from halp_store.address import storage_at
from halp_store.console import AsJson, StorePath, guarded, print_json
from halp_store.progress import progress_bar

if TYPE_CHECKING:
    from halp_store.compaction import Compaction
    from halp_store.pruning import Pruning

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-store compact run1.zarr"
    "\n  halp-store compact run1.zarr --prune"
    "\n  halp-store compact s3://bucket/run1.zarr --scratch /data/scratch --json"
)

# A writer's staging deadline: what reads segments by hand should be done by then.
_GRACE_SECONDS: Final = 600.0


def compact(
    store: StorePath,
    with_prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Then remove what a generation that is older than the grace time stands for: "
            "the segments that it covers, and older generations.",
        ),
    ] = False,
    grace_seconds: Annotated[
        float,
        typer.Option(
            "--grace-seconds",
            min=0,
            help="With --prune: a generation has to be this old before what it stands for goes.",
        ),
    ] = _GRACE_SECONDS,
    scratch: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            writable=True,
            help="A folder on a disk with room for the largest column, for sorting. Default: the "
            "store's own disk; for a bucket the system's temporary folder.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring all rows into one sorted group of large shards, for fast reading.

    It lies beside the segments, below compacted/, and opens in plain xarray. Workers and readers
    may go on meanwhile. After a kill the same command goes on where it was.
    """
    storage = guarded(lambda: storage_at(store))

    def work() -> tuple[Compaction, Pruning | None]:
        from halp_store.compaction import compact
        from halp_store.pruning import prune

        with progress_bar("compact") as progress:
            compacted = compact(storage, scratch=scratch, progress=progress)
        if not with_prune:
            return compacted, None
        with progress_bar("prune") as progress:
            return compacted, prune(storage, grace_seconds=grace_seconds, progress=progress)

    compacted, pruned = guarded(work)
    if as_json:
        print_json(
            {
                "store": store,
                **_facts(compacted),
                "prune": None if pruned is None else asdict(pruned),
            }
        )
    else:
        typer.echo("\n".join(_lines(store, compacted, pruned)))


def _facts(compacted: Compaction) -> dict[str, object]:
    """deleted: only where there were any."""
    facts = asdict(compacted)
    if not compacted.deleted:
        del facts["deleted"]
    return facts


def _lines(store: str, compacted: Compaction, pruned: Pruning | None) -> Iterator[str]:
    generation, rows = compacted.generation, compacted.rows
    if generation is None:
        yield f"{store}: nothing to compact: no rows are stored yet"
    elif compacted.segments or compacted.deleted:
        again = ", going on with what an earlier call had begun" if compacted.resumed else ""
        yield f"{store}: {generation}: {rows:,} rows, {compacted.segments:,} segments taken{again}"
    else:
        yield f"{store}: {generation} has all {rows:,} rows already"
    if compacted.deleted:
        yield f"{compacted.deleted:,} rows left out: they were deleted"
    if compacted.dropped:
        yield f"{compacted.dropped:,} rows left out: another of the same question stands for them"
    if compacted.contradictions:
        named = ", ".join(compacted.contradictions[:5])
        yield f"of those with other content: {len(compacted.contradictions):,} questions: {named}"
    if pruned is not None:
        yield (
            f"pruned: {pruned.segments:,} segments and {pruned.generations:,} older generations, "
            f"{pruned.files:,} files"
        )
        if pruned.seconds is not None:
            yield (
                f"left for now: {pruned.waiting:,} that were covered too recently; the same "
                f"command removes them in {pruned.seconds:,.0f} s"
            )
    elif compacted.segments or compacted.deleted:
        yield f"to remove the segments that it covers: halp-store compact {store} --prune"
    if generation is not None and "://" not in store:
        yield f'next: xarray.open_zarr("{store}/{generation}"), or halp_store.open_store("{store}")'
