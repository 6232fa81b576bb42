"""`halp-store verify`: the command line over `verify_store` and `repair`.

Exit codes: 0 nothing is wrong, 1 something is (or there is no such store, data set, run or server),
2 the command line is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from halp_store.address import storage_at
from halp_store.console import AsJson, StorePath, fail, guarded, print_json
from halp_store.expectation import Expectation, NotAvailable, read_expectation
from halp_store.progress import progress_bar
from halp_store.verification import Note, NoteKind, Problem, ProblemKind, Verification

if TYPE_CHECKING:
    from halp_store.repair import Repair

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-store verify run1.zarr"
    "\n  halp-store verify run1.zarr --dataset questions.jsonl"
    "\n  halp-store verify run1.zarr --dataset questions.csv.gz --map image=path_column --run pilot"
    "\n  halp-store verify run1.zarr --repair --json"
)

# Of each kind: enough to see a pattern, and what is said before still fits a terminal's history.
_SHOWN: Final = 50

# The writers' staging deadline: what is younger may be a worker at work.
_GRACE_SECONDS: Final = 600.0


@dataclass(frozen=True)
class _Report:
    store: str
    dataset: Path | None
    run: str | None
    grace_seconds: float
    repair: Repair | None
    verification: Verification


def _mapping(options: list[str] | None) -> list[str]:
    if not options:
        return []
    from halp_producer.columns import Columns

    try:
        Columns.from_options(options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return options


def _run_name(run: str | None) -> str | None:
    if run is None:
        return None
    from halp_producer.keys import RunKeys

    try:
        return RunKeys(run).run
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def verify(
    store: StorePath,
    dataset: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="The JSONL or CSV file that was enqueued: each of its questions must be stored, "
            "with its content. Images are not looked at without --inline-images.",
        ),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FIELD=COLUMN",
            callback=_mapping,
            help="Take a field of the data set from this column, as when it was enqueued. "
            "May be repeated.",
        ),
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(
            "--image-root",
            exists=True,
            file_okay=False,
            help="With --inline-images: the folder that the images of the data set are under.",
        ),
    ] = None,
    inline_images: Annotated[
        bool,
        typer.Option(
            "--inline-images",
            help="The data set was enqueued with --inline-images: its images are part of what is "
            "expected.",
        ),
    ] = False,
    # Without a variable: one that was left over would ask a server that nobody meant.
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="NAME",
            callback=_run_name,
            help="Ask the server which questions failed and which are queued; without --dataset "
            "also which there are.",
        ),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            "--redis-url",
            envvar="HALP_REDIS_URL",
            help="The server, with --run: redis://[[user]:password@]host:port/database, rediss:// "
            "or unix://.",
        ),
    ] = None,
    with_repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="First remove what killed workers left and no reader sees. Published segments "
            "are never touched.",
        ),
    ] = False,
    grace_seconds: Annotated[
        float,
        typer.Option(
            "--grace-seconds",
            min=0,
            help="With --repair: leave alone what changed in the last so many seconds; a worker "
            "may be writing it.",
        ),
    ] = _GRACE_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Read a whole store and say all that is wrong: damage, duplicates, missing questions.

    Workers may go on meanwhile. Exits 0 when nothing is wrong, 1 when something is.
    """
    if mapping and dataset is None:
        raise typer.BadParameter("--map says how to read --dataset, which is not given")
    if inline_images and (dataset is None or image_root is None):
        raise typer.BadParameter("--inline-images needs --dataset and --image-root")
    storage = guarded(lambda: storage_at(store))

    def read() -> _Report:
        from halp_store.repair import repair
        from halp_store.root import read_root
        from halp_store.verify import verify_store

        read_root(storage)  # a wrong path is to be said before a server is asked
        # The server before the store: what is queued now may be stored by then, not the reverse.
        inline_root = image_root if inline_images else None
        wanted = _expectation(dataset, mapping or [], inline_root, run, redis_url)
        repaired = repair(storage, grace_seconds=grace_seconds) if with_repair else None
        with progress_bar("verify") as progress:
            found = verify_store(
                storage,
                expected=wanted.expected,
                failed=wanted.failed,
                queued=wanted.queued,
                progress=progress,
            )
        found = replace(found, problems=(*wanted.problems, *found.problems))
        return _Report(store, dataset, run, grace_seconds, repaired, found)

    report = guarded(read)
    if as_json:
        _print_json(report)
    else:
        typer.echo("\n".join(_lines(report)))
    if not report.verification.ok:
        raise typer.Exit(1)


def _expectation(
    dataset: Path | None,
    mapping: list[str],
    inline_root: Path | None,
    run: str | None,
    redis_url: str | None,
) -> Expectation:
    try:
        return read_expectation(dataset, mapping, inline_root, run, redis_url)
    except NotAvailable as error:
        fail(str(error))


def _print_json(report: _Report) -> None:
    found = report.verification
    print_json(
        {
            "store": report.store,
            "dataset": None if report.dataset is None else str(report.dataset),
            "run": report.run,
            "ok": found.ok,
            **asdict(found),
            "repair": None if report.repair is None else asdict(report.repair),
        }
    )


def _lines(report: _Report) -> Iterator[str]:
    found = report.verification
    generation = f"generation {found.generation} and " if found.generation else ""
    places = f"{generation}{found.segments:,} segments"
    deleted = f"; {found.deleted:,} of them were deleted" if found.deleted else ""
    yield f"{report.store}: {found.rows:,} rows in {places}, read whole{deleted}"
    yield _expected_line(report)
    if report.repair:
        yield _repair_line(report.repair, report.grace_seconds)
    for kind, notes in _by_kind(NoteKind, found.notes):
        yield from _shown(f"note, {kind}", notes)
    if found.ok:
        yield "no problems"
    else:
        yield f"problems: {len(found.problems):,}"
    for kind, problems in _by_kind(ProblemKind, found.problems):
        yield from _shown(kind, problems)
    yield from _next_lines(report)


def _expected_line(report: _Report) -> str:
    sources = [f"data set {report.dataset}"] if report.dataset else []
    sources += [f"run {report.run}"] if report.run else []
    if not sources:
        return "not asked whether questions are missing: that takes --dataset, --run or both"
    counts = report.verification.counts
    total = counts.stored + counts.failed + counts.queued + counts.missing
    return (
        f"{' and '.join(sources)}: {total:,} questions: {counts.stored:,} stored, "
        f"{counts.failed:,} failed, {counts.queued:,} queued, {counts.missing:,} missing"
    )


def _repair_line(repair: Repair, grace_seconds: float) -> str:
    no_room = (
        f"; the disk is too full to fence {len(repair.no_room):,} more: free some space and "
        "repair again"
    )
    return (
        f"repair: fenced {len(repair.fenced):,} segments that nobody had published, removed "
        f"{repair.files_removed:,} of their files and {repair.partials_removed:,} half-written "
        f"ones; left alone {len(repair.waiting):,} that changed in the last {grace_seconds:g} s"
        + (no_room if repair.no_room else "")
    )


def _next_lines(report: _Report) -> Iterator[str]:
    found = report.verification
    if not found.ok:
        yield "next: do what each problem says, then verify again"
    leftovers = {NoteKind.UNPUBLISHED, NoteKind.FENCED}
    if report.repair is None and any(note.kind in leftovers for note in found.notes):
        yield f"to remove what killed workers left: halp-store verify {report.store} --repair"


def _by_kind(
    kinds: Iterable[StrEnum], found: Iterable[Problem | Note]
) -> Iterator[tuple[str, list[Problem | Note]]]:
    """Those kinds of which there are any, in the order of `kinds`."""
    groups: dict[str, list[Problem | Note]] = {kind: [] for kind in kinds}
    for one in found:
        groups[one.kind].append(one)
    return ((kind, group) for kind, group in groups.items() if group)


def _shown(title: str, found: list[Problem | Note]) -> Iterator[str]:
    rest = len(found) - _SHOWN
    yield f"{title} ({len(found):,})"
    yield from (f"  {one.sentence}" for one in found[:_SHOWN])
    if rest > 0:
        yield f"  and {rest:,} more; --json prints all"
