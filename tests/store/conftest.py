"""Small layouts and rows, and real child processes for what must be killed or run at once."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray

from halp_store.features import FeatureBatch
from halp_store.layout import SCORE_COLUMNS, TEXT_COLUMNS, Layout
from halp_store.local import LocalStorage
from halp_store.names import new_segment_name, prefix_of
from halp_store.reader import open_store
from halp_store.root import claim_root, read_root
from halp_store.segment import build_segment
from halp_store.writer import StoreWriter

MakeRows = Callable[..., FeatureBatch]
Fork = Callable[[Callable[[], object]], int]


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


HARMS = (remove, truncate, empty, flip_a_bit)
"""What may happen to a file on a disk."""


@pytest.fixture(scope="session")
def layout() -> Layout:
    """L = 2 layers, D = 8, V = 6: the shape of the real thing, in few bytes."""
    return Layout(
        layers=(0, 3),
        positions=("vision_token", "query_token"),
        hidden_size=8,
        vision_hidden_size=6,
        source_dtype="bfloat16",
        fingerprint={"model": {"id": "small", "revision": "abc"}, "max_new_tokens": 200},
        scores=SCORE_COLUMNS,
    )


@pytest.fixture(scope="session")
def plain(layout: Layout) -> Layout:
    """The same without scores: version 1."""
    return dataclasses.replace(layout, scores=())


def _range(column: str) -> tuple[int, int]:
    """Any prompt is longer than any position and any number of image tokens."""
    return (500, 999) if column == "prompt_tokens" else (1, 500)


# The share of rows without a mean_logprob.
_NONE = 0.25


@pytest.fixture(scope="session")
def make_rows(layout: Layout) -> MakeRows:
    """Rows whose values follow from id and content, so that any reader can check them."""

    def make(ids: Sequence[str], content: str = "a", of: Layout = layout) -> FeatureBatch:
        text = {name: tuple(f"{name} of {one}, {content}" for one in ids) for name in TEXT_COLUMNS}
        text["question_id"] = tuple(ids)
        text["content_hash"] = tuple(f"{content}-{one}" for one in ids)
        text["metadata"] = tuple('{"difficulty": 3}' for _ in ids)
        seeds = [[*content.encode(), *one.encode()] for one in ids]
        draws = [np.random.default_rng(seed) for seed in seeds]
        integers = {
            name: np.array([draw.integers(*_range(name), shape) for draw in draws], np.int64)
            for name, (_, shape) in of.integer_columns().items()
        }
        vectors = {
            name: np.array([draw.standard_normal(shape) for draw in draws], np.float32)
            for name, (_, shape) in of.vector_columns().items()
        }
        scores = {
            name: np.array([draw.random() for draw in draws], np.float32) for name in of.scores
        }
        if "mean_logprob" in scores:
            drawn = scores["mean_logprob"]
            drawn[drawn < _NONE] = np.nan
        return FeatureBatch(of, text, integers, vectors, scores)

    return make


@pytest.fixture(scope="session")
def open_writer(layout: Layout) -> Callable[..., StoreWriter]:
    def open_one(path: os.PathLike[str], of: Layout = layout, **options: object) -> StoreWriter:
        worker = options.pop("worker", "worker")
        return StoreWriter.open(path, of, worker=worker, provenance={"test": True}, **options)

    return open_one


def assert_columns(columns: Mapping[str, np.ndarray], expected: FeatureBatch) -> None:
    """Every column, as it was written."""
    for name, values in expected.text.items():
        assert columns[name].tolist() == list(values), name
    for name, values in expected.numbers.items():
        np.testing.assert_array_equal(columns[name], values, err_msg=name)


@pytest.fixture
def fill(open_writer, make_rows):
    """Write ids, some to a segment, in an order that is not theirs."""

    def write(path, ids, rows=7, worker="worker", content="a"):
        ids = list(ids)
        random.Random(len(ids)).shuffle(ids)
        writer = open_writer(path, worker=worker)
        for start in range(0, len(ids), rows):
            writer.append(make_rows(ids[start : start + rows], content))
            writer.flush()
        return writer

    return write


@pytest.fixture
def holds(make_rows):
    """Whether a store has exactly these ids with the right values, by halp_store and by xarray."""

    def check(path, ids, content="a"):
        expected = make_rows(sorted(ids), content)
        store = open_store(path)
        assert list(store) == sorted(ids)
        assert_columns(store.read(), expected)
        if store.generation and not store.segments:
            dataset = xarray.open_zarr(path / store.generation, chunks=None)
            assert dataset["question_id"].to_numpy().tolist() == sorted(ids)
            assert dataset["layer"].to_numpy().tolist() == list(expected.layout.layers)
            assert_columns({name: dataset[name].to_numpy() for name in store.columns}, expected)
        return store

    return check


@pytest.fixture
def fork() -> Fork:
    """Start a child that runs a function and ends with 0, or with 1 after an exception."""
    children: list[int] = []

    def start(function: Callable[[], object]) -> int:
        child = os.fork()
        if child:
            children.append(child)
            return child
        status = 1
        try:
            function()
            status = 0
        finally:  # the child ends here whatever happened: it must not run the rest of the tests
            if status:
                traceback.print_exc()
            os._exit(status)

    yield start
    for child in children:
        try:
            if os.waitpid(child, os.WNOHANG) == (0, 0):
                os.kill(child, signal.SIGCONT)  # a test that failed may have left it stopped
                os.waitpid(child, 0)
        except ChildProcessError:
            continue  # the test has waited for it


@pytest.fixture(scope="session")
def publish() -> Callable[..., str]:
    """Put a segment into a store as a writer does, but with any rows and under any name. A store is
    made where there is none."""

    def put(path: os.PathLike[str], features: FeatureBatch, worker: str = "hand") -> str:
        name = worker if prefix_of(worker) else new_segment_name(worker)
        disk = LocalStorage(path)
        is_new = disk.read("zarr.json") is None
        stamp = (claim_root(disk, features.layout) if is_new else read_root(disk)).stamp
        segment = build_segment(
            features, name=name, stamp=stamp, provenance={}, created="2026-01-01"
        )
        for key, value in segment.staged.items():
            disk.write(f"segments/{name}/{key}", value)
        assert disk.publish(f"segments/{name}/zarr.json", segment.metadata)
        return name

    return put
