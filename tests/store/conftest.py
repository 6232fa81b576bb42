"""Small layouts and rows, and real child processes for what must be killed or run at once."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from halp_store.features import FeatureBatch
from halp_store.layout import TEXT_COLUMNS, Layout
from halp_store.writer import StoreWriter

MakeRows = Callable[..., FeatureBatch]
Fork = Callable[[Callable[[], object]], int]


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
    )


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
            name: np.array([draw.integers(0, 999, shape) for draw in draws], np.int64)
            for name, (_, shape) in of.integer_columns().items()
        }
        vectors = {
            name: np.array([draw.standard_normal(shape) for draw in draws], np.float32)
            for name, (_, shape) in of.vector_columns().items()
        }
        return FeatureBatch(of, text, integers, vectors)

    return make


@pytest.fixture(scope="session")
def open_writer(layout: Layout) -> Callable[..., StoreWriter]:
    def open_one(path: os.PathLike[str], of: Layout = layout, **options: object) -> StoreWriter:
        worker = options.pop("worker", "worker")
        return StoreWriter.open(path, of, worker=worker, provenance={"test": True}, **options)

    return open_one


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
            os.waitpid(child, 0)
        except ChildProcessError:
            continue  # the test has waited for it
