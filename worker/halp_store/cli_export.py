"""`halp-store export` and `halp-store import`: the command lines over `export_store` and
`import_published`.

Exit codes: 0 done, 1 something is not there or does not fit (import: or a group was bad; the others
are stored), 2 the command line is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from halp_store.console import AsJson, StorePath, fail, guarded, print_json
from halp_store.progress import progress_bar
from halp_store.terminal import printable

if TYPE_CHECKING:
    from halp_store.exchange.export import Export
    from halp_store.exchange.importing import Import

Result = TypeVar("Result")

EXPORT_EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-store export run1.zarr run1.h5 --format hdf5"
    "\n  halp-store export run1.zarr run1.parquet --format parquet --layers 14,21"
    "\n  halp-store export run1.zarr x.npz --format npz --columns query_token,answer --layers 21"
    "\n  halp-store export run1.zarr some.safetensors --format safetensors --ids ids.txt --force"
)
IMPORT_EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-store import old.zarr embeddings_part_*.h5"
    "\n  halp-store import old.zarr run1.h5 --json"
)

# Each batch in order of id has rows of nearly all of them, and reads those again.
_MANY_SEGMENTS: Final = 100
# Of import's problems: enough to see a pattern, and what is said before still fits a terminal.
_SHOWN: Final = 50


class FormatName(StrEnum):
    """As `halp_store.exchange.export.Format`, which costs numpy."""

    HDF5 = "hdf5"
    PARQUET = "parquet"
    ZARR = "zarr"
    SAFETENSORS = "safetensors"
    NPZ = "npz"


class VisionColumn(StrEnum):
    VISION_ENCODER = "vision_encoder"
    VISION_ONLY = "vision_only"


class VisionTokenPosition(StrEnum):
    VISION_TOKEN = "vision_token"  # noqa: S105 - a token of a prompt
    HALP_REFERENCE = "halp_reference"


def _names(value: str | None) -> str | None:
    """A list with commas, none of its names empty."""
    if value is not None and not all(name.strip() for name in value.split(",")):
        raise typer.BadParameter(f"expected names with commas between them, got {value!r}")
    return value


def _numbers(value: str | None) -> str | None:
    if value is not None and not all(one.strip().isdecimal() for one in value.split(",")):
        raise typer.BadParameter(f"expected layer indices with commas between, got {value!r}")
    return value


def export(
    store: StorePath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; for zarr, a folder.")],
    form: Annotated[
        FormatName, typer.Option("--format", help="hdf5 is the published HALP layout.")
    ],
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="14,21", callback=_numbers, help="Decoder layers to take; all without it."
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            callback=_names,
            help="Columns to take, token positions among them; without it all, but for "
            "safetensors no texts, and for hdf5 those of its layout.",
        ),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Take these rows, in this order: one question id per line.",
        ),
    ] = None,
    vision: Annotated[
        VisionColumn | None,
        typer.Option(
            help="hdf5: what vision_only_representation is. The published numbers used the mean "
            "before the merger, vision_encoder, which is taken where it is stored; vision_only is "
            "the mean of the merged tokens."
        ),
    ] = None,
    vision_token: Annotated[
        VisionTokenPosition | None,
        typer.Option(
            help="hdf5: what vision_token_representation is: vision_token, the last token of the "
            "image, without this. halp_reference is the token that the published scripts took."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if an export is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write rows of a store as one file of another format.

    OUT gets its name only when it is whole.
    """
    if form is not FormatName.HDF5 and (vision or vision_token):
        raise typer.BadParameter("--vision and --vision-token are for --format hdf5 alone")

    def write() -> Export:
        from halp_store.exchange.export import Format, Published, export_store
        from halp_store.exchange.selection import Selection
        from halp_store.reader import open_store

        selection = Selection(
            None if ids is None else _ids_in(ids),
            None if columns is None else tuple(name.strip() for name in columns.split(",")),
            None if layers is None else tuple(int(one) for one in layers.split(",")),
        )
        opened = open_store(store)
        if form is not FormatName.HDF5 and len(opened.segments) > _MANY_SEGMENTS:
            typer.echo(f"slow until it is compacted: halp-store compact {store}", err=True)
        with progress_bar("export") as progress:
            return export_store(
                opened,
                out,
                Format(form.value),
                selection,
                published=Published(vision, vision_token),
                force=force,
                progress=progress,
            )

    done = guarded(lambda: _with_extra(write))
    if as_json:
        print_json(asdict(done))
        return
    at = f", layers {', '.join(map(str, done.layers))}" if done.layers else ""
    size = f"{done.bytes / 1e6:,.1f} MB"
    typer.echo(f"{done.path}: {done.rows:,} rows of {len(done.columns)} columns{at}, {size}")


def import_(
    store: StorePath,
    parts: Annotated[
        list[Path], typer.Argument(metavar="PART.h5...", help="Files of the published layout.")
    ],
    vision: Annotated[
        VisionColumn | None,
        typer.Option(
            help="The column that vision_only_representation becomes. Without it what the file "
            "says, if halp-store wrote it, else vision_only if it is as long as a token's state "
            "and vision_encoder if not."
        ),
    ] = None,
    vision_token: Annotated[
        VisionTokenPosition | None,
        typer.Option(
            help="The position that vision_token_representation becomes. Without it what the file "
            "says, if halp-store wrote it, else halp_reference: the token that the published "
            "scripts took is not the last one of the image."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read published HDF5 files into a new store, or on into one that an import made.

    After a kill the same command goes on. Groups that are bad are listed, and the others stored.
    """

    def read() -> Import:
        from halp_store.exchange.export import Published
        from halp_store.exchange.importing import import_published

        with progress_bar("import") as progress:
            return import_published(
                store, parts, published=Published(vision, vision_token), progress=progress
            )

    done = guarded(lambda: _with_extra(read))
    if as_json:
        print_json(asdict(done))
    else:
        typer.echo("\n".join(_lines(done)))
    if done.problems:
        raise typer.Exit(1)


def _lines(done: Import) -> Iterator[str]:
    yield f"{done.store}: {done.stored:,} rows stored, {done.present:,} were there already"
    for name, groups in sorted(done.left_out.items()):
        what = f"{printable(name)} of {groups:,} groups"
        yield f"not stored, because the layout does not have it: {what}"
    if done.problems:
        yield f"problems: {len(done.problems):,}"
    yield from (f"  {printable(one.sentence)}" for one in done.problems[:_SHOWN])
    if (rest := len(done.problems) - _SHOWN) > 0:
        yield f"  and {rest:,} more; --json prints all"


def _ids_in(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        fail(f"{path}: expected question ids as UTF-8 text, one per line ({error})")
    return tuple(one for line in lines if (one := line.removesuffix("\r")))


def _with_extra(work: Callable[[], Result]) -> Result:
    """What `work` returns; a library of the extra that is missing ends with a sentence."""
    try:
        return work()
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        if name not in {"h5py", "pyarrow"}:
            raise
        fail(f"halp-store needs {name}: pip install 'halp-stream[store]'")
