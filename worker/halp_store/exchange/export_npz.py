"""npz: an array per column for `numpy.load(path, allow_pickle=False)`, texts as fixed-width `U`.

Written array after array, so that no array is in memory as a whole.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from halp_store.exchange.export import ExportError, Progress
from halp_store.exchange.selection import BATCH_BYTES, Chosen
from halp_store.exchange.unfinished import MARK

_CHARACTER_BYTES: Final = 4
# Every text of a column takes the bytes of the longest, and `numpy.load` needs them all at once.
_MOST_TEXT_BYTES: Final = 4 * 2**30

_Batches = Iterator[tuple[int, npt.NDArray[Any]]]


def write_npz(path: Path, chosen: Chosen, origin: Mapping[str, Any], progress: Progress) -> None:
    """Raises ExportError for texts that a `U` array cannot hold."""
    widths = _widths(chosen)
    done, total = 0, len(chosen) * len(chosen.columns)
    with zipfile.ZipFile(path, "w") as archive:
        about = np.array(json.dumps(origin, ensure_ascii=True))
        _add(archive, MARK, about.dtype, (), iter([(0, about)]))
        if chosen.has_layers:
            layers = np.asarray(chosen.layers, np.int64)
            _add(archive, "layer", layers.dtype, layers.shape, iter([(0, layers)]))
        for name in chosen.columns:
            is_text = name in widths
            dtype = np.dtype((np.str_, widths[name])) if is_text else chosen.dtype(name)
            rows = max(1, BATCH_BYTES // dtype.itemsize) if is_text else None
            batches = (
                (start, batch[name].astype(dtype)) for start, batch in chosen.batches([name], rows)
            )

            def told(batches: _Batches = batches, done: int = done) -> _Batches:
                for start, values in batches:
                    yield start, values
                    progress(done + start + len(values), total)

            _add(archive, name, dtype, (len(chosen), *chosen.shape(name)), told())
            done += len(chosen)


def _add(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    batches: _Batches,
) -> None:
    member = zipfile.ZipInfo(f"{name}.npy")
    # Texts are mostly padding.
    member.compress_type = zipfile.ZIP_DEFLATED if dtype.kind == "U" else zipfile.ZIP_STORED
    member.external_attr = 0o644 << 16
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    with archive.open(member, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_2_0(file, header)
        for _, values in batches:
            file.write(np.ascontiguousarray(values).tobytes())


def _widths(chosen: Chosen) -> dict[str, int]:
    """text column -> characters of its longest text."""
    widths = dict.fromkeys(chosen.text, 1)
    wrong: list[str] = []
    for name in chosen.text:
        for start, batch in chosen.batches([name]):
            for row, value in enumerate(batch[name], start):
                widths[name] = max(widths[name], len(value))
                if value.endswith("\0"):
                    wrong.append(f"{name} of {chosen.view.ids[row]!r} ends with a NUL character")
        if (size := widths[name] * _CHARACTER_BYTES * len(chosen)) > _MOST_TEXT_BYTES:
            wrong.append(f"{name} would be {size / 2**30:.0f} GiB: one text is very long")
    if wrong:
        raise ExportError(
            "npz: numpy's texts cannot hold these; leave the column out with --columns, or use "
            "another format:\n" + "\n".join(f"  {one}" for one in wrong)
        )
    return widths
