"""How fast the store writes and reads rows of Qwen2.5-VL-7B's size.

    python benchmarks/store.py [--flushes 32] [--folder DIR]

Rows have 5 layers of 3584 at two positions, the two vision vectors and all texts; a flush is 64
rows. The peer in the same run writes the same bytes raw: one `np.save` and one fsync per flush.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from halp_store.features import FeatureBatch
from halp_store.layout import TEXT_COLUMNS, Layout
from halp_store.reader import open_store
from halp_store.writer import StoreWriter

ROWS: Final = 64
LAYOUT: Final = Layout(
    layers=(0, 7, 14, 21, 27),
    positions=("vision_token", "query_token"),
    hidden_size=3584,
    vision_hidden_size=1280,
    source_dtype="bfloat16",
    fingerprint={"model": {"id": "benchmark"}},
)
# Both processes of a pair do their flushes in step, or the pair would be measured as one and one.
START_TIMEOUT_SECONDS: Final = 120


def make_rows(worker: str, flush: int, values: FeatureBatch | None = None) -> FeatureBatch:
    """ROWS new ids; random values as bfloat16 holds them, or those of another batch."""
    ids = tuple(f"question_{worker}_{flush}_{row}" for row in range(ROWS))
    text = {name: tuple(f"{name} {one} " * 4 for one in ids) for name in TEXT_COLUMNS}
    text |= {"question_id": ids, "metadata": ("{}",) * ROWS}
    if values is not None:
        return FeatureBatch(LAYOUT, text, values.integers, values.vectors)
    random = np.random.default_rng(7)
    integers = {
        name: random.integers(0, 2000, (ROWS, *shape))
        for name, (_, shape) in LAYOUT.integer_columns().items()
    }
    vectors: dict[str, npt.NDArray[np.float32]] = {}
    for name, (_, shape) in LAYOUT.vector_columns().items():
        drawn = random.standard_normal((ROWS, *shape), dtype=np.float32)
        drawn.view(np.uint32)[...] &= 0xFFFF0000
        vectors[name] = drawn
    return FeatureBatch(LAYOUT, text, integers, vectors)


def write_store(path: str, worker: str, flushes: int, start: Any, times: Any) -> None:
    """One worker process: its wall time in seconds goes to `times`."""
    writer = StoreWriter.open(path, LAYOUT, worker=worker, provenance={"benchmark": True})
    values = make_rows(worker, -1)
    writer.append(values)
    writer.flush()  # the first one pays for imports and threads
    batches = [make_rows(worker, flush, values) for flush in range(flushes)]
    start.wait(START_TIMEOUT_SECONDS)
    began = time.perf_counter()
    for batch in batches:
        writer.append(batch)
        writer.flush()
    times.put((began, time.perf_counter()))


def write_raw(path: str, worker: str, flushes: int, start: Any, times: Any) -> None:
    """The peer: the same vectors, uncompressed, without ids, index or publish."""
    raw = np.concatenate([v.ravel() for v in make_rows(worker, 0).vectors.values()])
    start.wait(START_TIMEOUT_SECONDS)
    began = time.perf_counter()
    for flush in range(flushes):
        with Path(f"{path}-{worker}-{flush}.npy").open("wb") as file:
            np.save(file, raw)
            os.fsync(file.fileno())
    times.put((began, time.perf_counter()))


def rows_per_second(
    function: Callable[..., None], path: Path, processes: int, flushes: int
) -> float:
    """Of all processes together, from the first one's start to the last one's end."""
    context = multiprocessing.get_context("spawn")
    start, times = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=function, args=(str(path), f"worker{one}", flushes, start, times))
        for one in range(processes)
    ]
    for worker in workers:
        worker.start()
    spans = [times.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    wall = max(end for _, end in spans) - min(began for began, _ in spans)
    return processes * flushes * ROWS / wall


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Median."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--flushes", type=int, default=32, help="per process (default 32)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for processes in (1, 2):
            for name, function in (("np.save, raw", write_raw), ("store", write_store)):
                path = Path(folder) / f"{processes}-{function.__name__}"
                rate = rows_per_second(function, path, processes, options.flushes)
                print(
                    f"{name:14} {processes} process{'es' * (processes - 1):2}  {rate:8,.0f} rows/s"
                )
        report_store(Path(folder) / "2-write_store")


def report_store(path: Path) -> None:
    store = open_store(path)
    row_bytes = sum(v[0].nbytes for v in make_rows("x", 0).vectors.values())
    middle = store.ids[len(store) // 2]
    print(
        f"\n{len(store):,} rows in {len(store.segments)} segments, "
        f"{store.bytes_on_disk() / len(store) / (row_bytes / 2):.2f} of the bytes of raw bfloat16"
    )
    for name, function in {
        "open_store": lambda: open_store(path),
        'array("query_token", layer=21)': lambda: store.array("query_token", layer=21),
        'text("answer")': lambda: store.text("answer"),
        "one row by id": lambda: store[middle],
    }.items():
        print(f"{name:32} {seconds(function) * 1000:8.1f} ms")


if __name__ == "__main__":
    main()
