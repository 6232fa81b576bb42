"""A store of a large study: compaction, one layer, one row, before and after.

    python benchmarks/store_large.py [--rows 100000] [--folder DIR] [--json]

Rows are of Qwen2.5-VL-7B's size (5 layers of 3584 at two positions, the two vision vectors, all
texts), written by two worker processes in segments of 64, in an order that has nothing to do with
the ids: the worst case for sorting. Takes about 0.2 MB of disk a row while it runs.

Peers in the same run: the same matrix of one layer as one raw file, the limit of this disk and
memory; plain xarray on the generation; and the published layout, one HDF5 group a question, at a
fiftieth of the rows and scaled up.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from halp_store.features import FeatureBatch
from halp_store.layout import TEXT_COLUMNS
from store import LAYOUT, ROWS, make_rows

COLUMN, LAYER = "query_token", 21
HDF5_SHARE: Final = 50
TARGETS: Final = {
    "compact_rows_per_second": ("at least", 1300.0),
    "compact_peak_gb": ("at most", 1.5),
    "after_layer_seconds": ("at most", 5.0),
    "after_row_ms": ("at most", 20.0),
}
MEANING: Final = {
    "write_rows_per_second": "written by two workers, rows/s",
    "before_open_seconds": "open_store, segments, s",
    "before_layer_seconds": "one layer, segments, s",
    "before_row_ms": "one row by id, segments, ms",
    "compact_rows_per_second": "halp-store compact, rows/s",
    "compact_peak_gb": "its peak memory, GB",
    "after_open_seconds": "open_store, compacted, s",
    "after_layer_seconds": "one layer, compacted, s",
    "after_row_ms": "one row by id, all columns, compacted, ms",
    "xarray_layer_seconds": "peer: one layer, plain xarray, s",
    "dask_layer_seconds": "peer: one layer, plain xarray with dask, s",
    "raw_layer_seconds": "peer: one layer, np.load of a raw file, s",
    "hdf5_layer_seconds": "peer: one layer, published HDF5 layout, scaled, s",
    "hdf5_row_ms": "peer: one row by id, published HDF5 layout, ms",
    "bytes_per_row": "bytes a row on disk, compacted",
}


def in_a_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What it returns, and the peak memory of that process in GB."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_report, args=(function, arguments, answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def _report(function: Callable[..., Any], arguments: tuple[Any, ...], answers: Any) -> None:
    result = function(*arguments)
    answers.put((result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9))


def write_share(path: str, ids: list[str], worker: str) -> None:
    from halp_store.writer import StoreWriter

    writer = StoreWriter.open(path, LAYOUT, worker=worker, provenance={"benchmark": True})
    values = make_rows(worker, 0)
    for start in range(0, len(ids), ROWS):
        some = tuple(ids[start : start + ROWS])
        text = {name: tuple(f"{name} {one} " * 4 for one in some) for name in TEXT_COLUMNS}
        text |= {"question_id": some, "metadata": ("{}",) * len(some)}
        rows = values.take(list(range(len(some))))
        writer.append(FeatureBatch(LAYOUT, text, rows.integers, rows.vectors))
        writer.flush()


def write(path: str, rows: int) -> float:
    """Seconds."""
    ids = [f"question_comb_{number}" for number in range(rows)]
    random.Random(7).shuffle(ids)
    context = multiprocessing.get_context("spawn")
    began = time.perf_counter()
    shares = [
        context.Process(target=write_share, args=(path, ids[one::2], f"worker{one}"))
        for one in range(2)
    ]
    for share in shares:
        share.start()
    for share in shares:
        share.join()
        if share.exitcode:
            raise RuntimeError(f"a writer ended with {share.exitcode}")
    return time.perf_counter() - began


def compact_it(path: str) -> float:
    """Seconds."""
    from halp_store.compaction import compact
    from halp_store.local import LocalStorage

    began = time.perf_counter()
    compact(LocalStorage(path))
    return time.perf_counter() - began


def read_it(path: str, rows: int) -> tuple[float, float, float]:
    """(seconds to open, seconds for one layer, milliseconds for one row), medians."""
    from halp_store.reader import open_store

    began = time.perf_counter()
    store = open_store(path)
    opened = time.perf_counter() - began
    if len(store) != rows:
        raise RuntimeError(f"expected {rows} rows, got {len(store)}")
    layers = [seconds(lambda: store.array(COLUMN, LAYER)) for _ in range(3)]
    some = random.Random(1).sample(store.ids, 50)
    single = [seconds(lambda one=one: store[one]) for one in some]
    return opened, statistics.median(layers), statistics.median(single) * 1000


def read_plainly(path: str, chunks: dict[str, int] | None) -> float:
    """Seconds. chunks: None without dask, {} with it."""
    import xarray

    from halp_store.reader import open_store

    generation = Path(path) / (open_store(path).generation or "")
    dataset = xarray.open_zarr(generation, chunks=chunks)
    return statistics.median(
        seconds(lambda: dataset[COLUMN].sel(layer=LAYER).to_numpy()) for _ in range(3)
    )


def read_raw(folder: str, rows: int) -> float:
    file = Path(folder) / "layer.npy"
    np.save(file, np.ones((rows, LAYOUT.hidden_size), np.float32))
    return statistics.median(seconds(lambda: np.load(file)) for _ in range(3))


def read_hdf5(folder: str, rows: int) -> tuple[float, float]:
    """(seconds for one layer of all rows, scaled; milliseconds for one row)"""
    import h5py

    some, file = make_rows("hdf5", 0), Path(folder) / "published.h5"
    count = max(rows // HDF5_SHARE, 1)
    with h5py.File(file, "w") as part:
        for row in range(count):
            group = part.create_group(f"question_comb_{row}")
            for name in ("question", "image_id", "ground_truth_answer", "answer"):
                group[name] = f"{name} {row}"
            group["vision_only_representation"] = some.vectors["vision_only"][row % ROWS]
            for name in ("vision_token", "query_token"):
                below = group.create_group(f"{name}_representation")
                for number, layer in enumerate(LAYOUT.layers):
                    below[f"layer_{layer}"] = some.vectors[name][row % ROWS, number]
    began = time.perf_counter()
    with h5py.File(file) as part:
        np.stack([part[one][f"{COLUMN}_representation"][f"layer_{LAYER}"][:] for one in part])
    whole = (time.perf_counter() - began) * rows / count
    with h5py.File(file) as part:
        single = [
            seconds(lambda one=one: part[f"question_comb_{one}"].visititems(_take))
            for one in range(0, count, max(count // 50, 1))
        ]
    return whole, statistics.median(single) * 1000


def _take(_: str, item: Any) -> None:
    if hasattr(item, "dtype"):
        item[()]


def seconds(function: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def measure(folder: str, rows: int) -> dict[str, float]:
    path = str(Path(folder) / "large.zarr")
    found = {"rows": float(rows), "write_rows_per_second": rows / write(path, rows)}
    before, _ = in_a_process(read_it, path, rows)
    took, peak = in_a_process(compact_it, path)
    after, _ = in_a_process(read_it, path, rows)
    whole, single = in_a_process(read_hdf5, folder, rows)[0]
    size = sum(one.stat().st_size for one in (Path(path) / "compacted").rglob("*") if one.is_file())
    names = ("open_seconds", "layer_seconds", "row_ms")
    found |= {f"before_{name}": value for name, value in zip(names, before, strict=True)}
    found |= {"compact_rows_per_second": rows / took, "compact_peak_gb": peak}
    found |= {f"after_{name}": value for name, value in zip(names, after, strict=True)}
    found |= {
        "xarray_layer_seconds": in_a_process(read_plainly, path, None)[0],
        "dask_layer_seconds": in_a_process(read_plainly, path, {})[0],
        "raw_layer_seconds": in_a_process(read_raw, folder, rows)[0],
        "hdf5_layer_seconds": whole,
        "hdf5_row_ms": single,
        "bytes_per_row": size / rows,
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(folder, options.rows)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"| {options.rows:,} rows | | target |\n|---|---|---|")
    for name, meaning in MEANING.items():
        word, target = TARGETS.get(name, ("", None))
        wanted = "" if target is None else f"{word} {target:g}"
        print(f"| {meaning} | {found[name]:,.4g} | {wanted} |")


if __name__ == "__main__":
    main()
