"""What a store of imported rows is like: which columns, and what of them nobody knows.

Decided once, by the first part that is read, and written into the store's fingerprint: `imported`,
an object of `format`, the columns that the two vision fields are, and `unknown`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from halp_store.address import storage_at
from halp_store.errors import StoreError
from halp_store.exchange.export import Published
from halp_store.exchange.export_hdf5 import SOURCES
from halp_store.exchange.published_hdf5 import (
    VISION,
    VISION_TOKEN,
    BadGroup,
    PublishedReader,
    PublishedRow,
    usual_shape,
)
from halp_store.layout import COUNT_COLUMNS, GRID_COLUMN, Layout
from halp_store.root import read_root
from halp_store.storage import METADATA

# Of a part: enough that a few odd groups do not decide the layout of the store.
_SURVEYED_ROWS: Final = 32


class ImportRefused(StoreError):  # noqa: N818 - as in `halp_store.errors`
    """Nothing can be imported into this store."""


def stored_layout(store: str | os.PathLike[str], wanted: Published) -> Layout | None:
    """Of a store that an import made; None where there is none yet."""
    storage = storage_at(store)
    if storage.read(METADATA) is None:
        return None
    layout = read_root(storage).layout
    if not layout.unknown:
        raise ImportRefused(
            f"{storage.where}: is not a store of imported rows, but of a worker's: they cannot be "
            "mixed; use a new path"
        )
    for name, asked in ((VISION, wanted.vision), (VISION_TOKEN, wanted.vision_token)):
        has = layout.fingerprint["imported"].get(name)
        if asked not in {None, has}:
            raise ImportRefused(
                f"{storage.where}: has {name} as {has}, not as {asked}; use a new path"
            )
    return layout


def surveyed_layout(parts: Sequence[Path], wanted: Published) -> Layout | None:
    """Of the first part that has a good group; None without any."""
    for part in parts:
        try:
            with PublishedReader(part) as file:
                rows: list[PublishedRow] = []
                for name in file:
                    try:
                        rows.append(file.read_row(name))
                    except BadGroup:
                        continue
                    if len(rows) == _SURVEYED_ROWS:
                        break
                if shape := usual_shape(rows):
                    return _layout(shape, file.origin, wanted)
        except (OSError, RuntimeError):
            continue
    return None


def _layout(
    shape: tuple[tuple[int, ...], int, int], origin: Mapping[str, Any], wanted: Published
) -> Layout:
    layers, hidden_size, vision_size = shape
    by_size = "vision_only" if vision_size == hidden_size else "vision_encoder"
    said = _sources(origin)
    vision = wanted.vision or said.get(VISION, by_size)
    token = wanted.vision_token or said.get(VISION_TOKEN, "halp_reference")
    other = "vision_only" if vision == "vision_encoder" else "vision_encoder"
    positions = (token, "query_token")
    unknown = (
        *("image_sha256", *COUNT_COLUMNS, GRID_COLUMN),
        *(f"{one}_position" for one in positions),
        other,
    )
    return Layout(
        layers=layers,
        positions=positions,
        hidden_size=hidden_size,
        vision_hidden_size=vision_size if vision == "vision_encoder" else 0,
        source_dtype="unknown",
        fingerprint={
            "imported": {
                "format": "halp-hdf5",
                VISION: vision,
                VISION_TOKEN: token,
                "unknown": list(unknown),
            }
        },
    )


def _sources(origin: Mapping[str, Any]) -> dict[str, str]:
    """What a file says of its two vision fields, where that is one of the columns they may be."""
    said = origin.get(SOURCES)
    allowed = {
        VISION: ("vision_only", "vision_encoder"),
        VISION_TOKEN: ("vision_token", "halp_reference"),
    }
    if not isinstance(said, Mapping):
        return {}
    return {name: said[name] for name, those in allowed.items() if said.get(name) in those}


def disagreement(origin: Mapping[str, Any], layout: Layout, wanted: Published) -> str | None:
    """Why a file cannot go into this store, if it says of itself that it holds something else."""
    imported = layout.fingerprint["imported"]
    asked = {VISION: wanted.vision, VISION_TOKEN: wanted.vision_token}
    for name, said in _sources(origin).items():
        if said != imported.get(name) and not asked[name]:
            return f"its {name} is {said}, the store's is {imported.get(name)}; use another store"
    return None


def vision_column(layout: Layout) -> tuple[str, int]:
    """Column and size of the one vision vector."""
    name = layout.fingerprint["imported"][VISION]
    return name, layout.vector_columns()[name][1][0]
