"""`export_store`: chosen rows of a store as one file, or folder, of another format.

Each format has a file of its own, named for it, which writes at a path that it is given. Here is
what they have in common: what is chosen, where the result came from, and that it gets its name
only when it is whole. Memory is bounded by `selection.BATCH_BYTES`, whatever the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from halp_store.errors import StoreError
from halp_store.exchange.selection import Chosen, Selection
from halp_store.exchange.unfinished import check_free, unfinished
from halp_store.layout import TEXT_COLUMNS
from halp_store.view import View

Progress = Callable[[int, int], None]
"""Is told (done, total), in a unit that is the format's own."""

Write = Callable[[Path, Chosen, Mapping[str, Any], Progress], None]
"""Path that is not there yet, what to write, where it came from, whom to tell."""


class ExportError(StoreError):
    """The rows do not fit the format; the message says which, and what to do."""


class Format(StrEnum):
    HDF5 = "hdf5"
    PARQUET = "parquet"
    ZARR = "zarr"
    SAFETENSORS = "safetensors"
    NPZ = "npz"


@dataclass(frozen=True)
class Published:
    """Where fields of the published layout come from; None for what is usual.

    vision: column that is `vision_only_representation`. vision_token: position that is
    `vision_token_representation`.
    """

    vision: str | None = None
    vision_token: str | None = None


@dataclass(frozen=True)
class Export:
    """What was written. bytes: of the result on disk. layers: of the positions; empty without."""

    path: str
    format: str
    rows: int
    columns: tuple[str, ...]
    layers: tuple[int, ...]
    bytes: int


def export_store(
    store: View,
    out: Path,
    form: Format,
    selection: Selection | None = None,
    *,
    published: Published | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Export:
    """Write chosen rows of `store` to `out`, which is there as a whole when this returns, or not.

    published: for HDF5 alone. force: replace an earlier export.
    Raises SelectionError, OutputExists, ExportError, DamagedSegment, OSError, or ImportError where
    the format's library is not installed.
    """
    is_folder = form is Format.ZARR
    check_free(out, is_folder=is_folder, force=force)
    _check_outside(store, out)
    chosen, write = _prepared(store, form, selection or Selection(), published or Published())
    with unfinished(out, is_folder=is_folder, force=force) as path:
        write(path, chosen, _origin(store, chosen), progress or (lambda done, total: None))
    layers = chosen.layers if chosen.has_layers else ()
    return Export(str(out), form.value, len(chosen), chosen.columns, layers, _size(out))


def _prepared(
    store: View, form: Format, selection: Selection, published: Published
) -> tuple[Chosen, Write]:
    """What is to be written, and by whom. Each format costs its own library alone."""
    if form is Format.HDF5:
        from halp_store.exchange.export_hdf5 import HDF5Export

        hdf5 = HDF5Export.of(store, published)
        return selection.of(store, hdf5.usual), hdf5.write
    if form is Format.SAFETENSORS:
        from halp_store.exchange.export_safetensors import write_safetensors

        numbers = tuple(store.layout.number_columns())
        return _with_ids(selection.of(store, numbers)), write_safetensors
    chosen = _with_ids(selection.of(store, store.columns))
    if form is Format.PARQUET:
        from halp_store.exchange.export_parquet import write_parquet

        return chosen, write_parquet
    if form is Format.ZARR:
        from halp_store.exchange.export_zarr import write_zarr

        return chosen, write_zarr
    from halp_store.exchange.export_npz import write_npz

    return chosen, write_npz


def _with_ids(chosen: Chosen) -> Chosen:
    """No row without its name, and the names first, as in a store."""
    wanted = {"question_id", *chosen.columns}
    first = [name for name in TEXT_COLUMNS if name in wanted]
    return Chosen(chosen.view, (*first, *chosen.numbers), chosen.layers)


def _origin(store: View, chosen: Chosen) -> dict[str, Any]:
    """What an export says of itself; JSON."""
    return {
        "halp_stream": version("halp-stream"),
        # A path may hold bytes that are no text.
        "store": store.path.encode(errors="replace").decode(),
        "rows": len(chosen),
        "layers": list(chosen.layers),
        "source_dtype": store.layout.source_dtype,
        "fingerprint": store.layout.fingerprint,
    }


def _check_outside(store: View, out: Path) -> None:
    root = Path(store.path)
    if root.is_dir() and out.resolve().is_relative_to(root.resolve()):
        raise ExportError(f"{out}: is inside the store {root}; use a path outside it")


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    return path.stat().st_size
