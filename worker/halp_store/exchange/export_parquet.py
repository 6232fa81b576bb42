"""Parquet: a row per question, a column per text, integer, score and vector.

Each layer is its own column. A vector is a fixed-size list of float32. Each batch is a row group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from halp_store.exchange.export import Progress
from halp_store.exchange.selection import Chosen
from halp_store.exchange.unfinished import MARK

_KINDS: Final = {"O": pa.string(), "i": pa.int64(), "f": pa.float32()}


def write_parquet(
    path: Path, chosen: Chosen, origin: Mapping[str, Any], progress: Progress
) -> None:
    schema = _schema(chosen).with_metadata({MARK: json.dumps(origin, ensure_ascii=False)})
    vectors = [
        f"{field.name}.list.element"
        for field in schema
        if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type)
    ]
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=list(chosen.text),
        # Values of bfloat16 have two empty bytes, which only this puts together: half the size.
        use_byte_stream_split=vectors,
        write_statistics=[name for name in chosen.columns if not chosen.shape(name)],
    ) as writer:
        for start, batch in chosen.batches(chosen.columns):
            arrays = [array for name in chosen.columns for array in _arrays(name, chosen, batch)]
            rows = len(batch[chosen.columns[0]])
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=rows)
            progress(start + rows, len(chosen))


def _schema(chosen: Chosen) -> pa.Schema:
    fields: list[tuple[str, Any]] = []
    for name in chosen.columns:
        kind = _KINDS[chosen.dtype(name).kind]
        if "layer" in chosen.dims(name):
            hidden = pa.list_(kind, chosen.shape(name)[-1])
            fields += [(_of_layer(name, layer), hidden) for layer in chosen.layers]
        else:
            shape = chosen.shape(name)
            fields.append((name, pa.list_(kind, shape[0]) if shape else kind))
    return pa.schema(fields)


def _arrays(name: str, chosen: Chosen, batch: Mapping[str, npt.NDArray[Any]]) -> Iterator[pa.Array]:
    values = batch[name]
    if not chosen.shape(name):
        yield pa.array(values, _KINDS[chosen.dtype(name).kind])
    elif "layer" in chosen.dims(name):
        for number in range(len(chosen.layers)):
            yield _lists(values[:, number])
    else:
        yield _lists(values)


def _lists(values: npt.NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _of_layer(name: str, layer: int) -> str:
    return f"{name}_layer_{layer}"
