"""safetensors: a tensor per integer, score and vector column; ids and texts in the metadata.

The format is a length, a JSON header and the raw values (huggingface/safetensors, "Format"), so it
is written here, tensor after tensor: the library would want all of them in memory.

Metadata, text -> text: `question_id` and each other text column that was asked for as a JSON list,
`layers` as one of integers, and where it came from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from halp_store.exchange.export import ExportError, Progress
from halp_store.exchange.selection import Chosen
from halp_store.exchange.unfinished import MARK

_NAMES: Final[Mapping[str, str]] = {"f": "F32", "i": "I64"}
_ALIGNMENT: Final = 8
# The library's limit: it refuses to read what has more.
_MOST_HEADER_BYTES: Final = 100_000_000


def write_safetensors(
    path: Path, chosen: Chosen, origin: Mapping[str, Any], progress: Progress
) -> None:
    """Raises ExportError where the texts are more than the format's header takes."""
    # Integers first: 8-byte values stay aligned, whatever comes after them.
    names = sorted(chosen.numbers, key=lambda name: -chosen.dtype(name).itemsize)
    header = _header(chosen, names, origin)
    done, total = 0, len(chosen) * len(names)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(_ALIGNMENT, "little"))
        file.write(header)
        for name in names:
            for start, batch in chosen.batches([name]):
                values = np.ascontiguousarray(batch[name])
                file.write(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
                progress(done + start + len(values), total)
            done += len(chosen)


def _header(chosen: Chosen, names: list[str], origin: Mapping[str, Any]) -> bytes:
    metadata = {MARK: json.dumps(origin), "layers": json.dumps(chosen.layers)}
    for name in chosen.text:
        values = [text for _, batch in chosen.batches([name]) for text in batch[name].tolist()]
        metadata[name] = json.dumps(values, ensure_ascii=False)
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name in names:
        shape, dtype = (len(chosen), *chosen.shape(name)), chosen.dtype(name)
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype.kind],
            "shape": shape,
            "data_offsets": (offset, end),
        }
        offset = end
    document = json.dumps(header, ensure_ascii=False).encode()
    if len(document) > _MOST_HEADER_BYTES:
        raise ExportError(
            f"safetensors: ids and texts take {len(document) / 1e6:.0f} MB, and the format holds "
            f"{_MOST_HEADER_BYTES / 1e6:.0f} MB of them; leave texts out of --columns, and export "
            "them as parquet"
        )
    return document + b" " * (-len(document) % _ALIGNMENT)
