"""Zarr v3: one plain group of the chosen rows, for `xarray.open_zarr` and `zarr.open_group`.

Names and dims are those of a segment, so that a notebook for the one reads the other. It is not a
store: it has no root, no segments and no ids of its own to look up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr

from halp_store.arrays import add_array
from halp_store.exchange.export import Progress
from halp_store.exchange.selection import BATCH_BYTES, Chosen
from halp_store.exchange.unfinished import MARK
from halp_store.segment import group_document
from halp_store.storage import METADATA

# A chunk of one layer of 256 rows is 3.7 MB with D = 3584: one layer is read without the others.
_VECTOR_ROWS: Final = 256
_SCALAR_ROWS: Final = 4096


def write_zarr(path: Path, chosen: Chosen, origin: Mapping[str, Any], progress: Progress) -> None:
    group = zarr.open_group(path, mode="w-", zarr_format=3)
    if chosen.has_layers:
        layers = np.asarray(chosen.layers, np.int64)
        array = add_array(group, "layer", ("layer",), layers.shape, layers.dtype, layers.shape)
        array[...] = layers
    total = len(chosen) * len(chosen.columns)
    for number, name in enumerate(chosen.columns):
        shape = chosen.shape(name)
        dims = ("question", *chosen.dims(name))
        inner = tuple(1 if dim == "layer" else n for dim, n in zip(dims[1:], shape, strict=True))
        rows = min(_VECTOR_ROWS if shape else _SCALAR_ROWS, len(chosen))
        array = add_array(
            group, name, dims, (len(chosen), *shape), chosen.dtype(name), (rows, *inner)
        )
        # Whole chunks, so that none is read back to be written again.
        together = rows * max(1, BATCH_BYTES // (rows * max(1, chosen.row_bytes([name]))))
        for start, batch in chosen.batches([name], together):
            values = batch[name]
            array[start : start + len(values)] = values
            progress(number * len(chosen) + start + len(values), total)
    attributes = {"coordinates": "question_id", MARK: dict(origin)}
    documents = {
        f"{one.parent.name}/{METADATA}": one.read_bytes() for one in path.glob(f"*/{METADATA}")
    }
    (path / METADATA).write_bytes(group_document(json.loads(json.dumps(attributes)), documents))
