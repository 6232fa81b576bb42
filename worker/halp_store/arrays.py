"""How this layout writes an array: codecs, chunk keys, fill values. Segments and generations alike.

zarr writes; `halp_store.chunks` reads, and other Zarr readers too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

# A chunk of one array is a file beside its zarr.json: no directory levels to create and sync.
_CHUNK_KEYS: Final[Any] = {"name": "default", "separator": "."}
# A plain reader that does not check for missing chunks should at least see that something is off.
_FILL: Final[Mapping[str, Any]] = {"f": np.nan, "i": -1}


def add_array(
    group: zarr.Group,
    name: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None = None,
) -> zarr.Array[Any]:
    """An array without values yet. dtype: float32, int64, or object for strings."""
    is_text = dtype.kind == "O"
    return group.create_array(
        name,
        shape=shape,
        dtype="string" if is_text else dtype,
        chunks=chunks,
        shards=shards,
        filters=None,
        compressors=[
            BloscCodec(
                cname="zstd",
                clevel=1,
                shuffle="noshuffle" if is_text else "shuffle",
                typesize=1 if is_text else dtype.itemsize,
            ),
            # Without it a torn chunk decodes to garbage without an error.
            Crc32cCodec(),
        ],
        fill_value="" if is_text else _FILL[dtype.kind],
        chunk_key_encoding=_CHUNK_KEYS,
        dimension_names=dims,
        # A missing chunk has to mean damage, never "all fill values".
        config={"write_empty_chunks": True},
    )
