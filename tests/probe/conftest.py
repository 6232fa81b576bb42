"""A small real store with the texts that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halp_store.features import FeatureBatch
from halp_store.layout import TEXT_COLUMNS, Layout
from halp_store.writer import StoreWriter

LAYOUT = Layout(
    layers=(0, 3),
    positions=("vision_token", "query_token"),
    hidden_size=8,
    vision_hidden_size=6,
    source_dtype="bfloat16",
    fingerprint={"model": {"id": "small", "revision": "abc"}},
)


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """`make_store(rows, name="run1.zarr", layout=..., vectors={column: array}, scores={...})`.

    rows: objects with any of question, answer, truth, metadata (an object), image, image_sha256,
    finish_reason, question_id; the others follow from the row's number. Vectors are random, but
    those that are given. Returns the store's path; the rows are in order of id.
    """

    def make(
        rows: Sequence[Mapping[str, Any]],
        name: str = "run1.zarr",
        layout: Layout = LAYOUT,
        vectors: Mapping[str, Any] | None = None,
        scores: Mapping[str, Any] | None = None,
    ) -> Path:
        path = tmp_path / name
        writer = StoreWriter.open(path, layout, worker="worker", provenance={})
        writer.append(_batch(rows, layout, vectors or {}, scores or {}))
        writer.flush()
        return path

    return make


def _batch(rows, layout, vectors, scores):
    count = len(rows)
    text = {one: [""] * count for one in TEXT_COLUMNS}
    names = {"question": "question_text", "truth": "ground_truth"}
    for number, row in enumerate(rows):
        usual = {
            "question_id": f"q{number:05}",
            "image": f"{number // 2}.png",
            "metadata": {},
            "finish_reason": "stop",
            "content_hash": f"hash {number}",
        }
        for key, value in {**usual, **row}.items():
            shown = json.dumps(value) if isinstance(value, dict) else str(value)
            text[names.get(key, key)][number] = shown
    draws = np.random.default_rng(count)
    numbers = {
        one: np.full((count, *shape), 107 if one == "prompt_tokens" else 7, np.int64)
        for one, (_, shape) in layout.integer_columns().items()
    }
    drawn = {
        one: draws.standard_normal((count, *shape)).astype(np.float32)
        for one, (_, shape) in layout.vector_columns().items()
    }
    given = {one: np.asarray(values, np.float32) for one, values in vectors.items()}
    more = {"scores": {k: np.asarray(v, np.float32) for k, v in scores.items()}} if scores else {}
    texts = {one: tuple(values) for one, values in text.items()}
    return FeatureBatch(layout, texts, numbers, drawn | given, **more)
