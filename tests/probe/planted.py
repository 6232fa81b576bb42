"""A store whose states know what was planted in them, and no more; and the verdicts on its rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from halp_probe.judging.verdict import Kind, Label, Verdict
from halp_store.features import FeatureBatch
from halp_store.layout import TEXT_COLUMNS, Layout
from halp_store.reader import Store, open_store
from halp_store.writer import StoreWriter

QUESTIONS_OF_AN_IMAGE = 4
KINDS = ("colour", "number")
SOURCES = ("amber", "pope")
SIGNAL = 1.0
"""Of the direction in `query_token@1`, in deviations: AUROC 0.76 by theory."""
LAYOUT = Layout(
    layers=(0, 1, 2),
    positions=("vision_token", "query_token"),
    hidden_size=6,
    vision_hidden_size=5,
    source_dtype="float32",
    fingerprint={"model": {"id": "small", "revision": "abc"}},
)


def planted_store(
    path: Path, rows: int = 400, seed: int = 0, *, by_image: bool = False, layout: Layout = LAYOUT
) -> tuple[Store, dict[str, Verdict]]:
    """`query_token@1` has one direction along which wrong rows lie `SIGNAL` further; the rest is
    noise. by_image: instead, each image has its own share of wrong answers, and `vision_only`
    says which image it is (and nothing that another image could be told from)."""
    draws = np.random.default_rng(seed)
    image = np.arange(rows) // QUESTIONS_OF_AN_IMAGE
    share = draws.beta(0.3, 0.6, image.max() + 1)[image] if by_image else np.full(rows, 0.4)
    wrong = draws.random(rows) < share
    vectors = {
        name: draws.standard_normal((rows, *shape)).astype(np.float32)
        for name, (_, shape) in layout.vector_columns().items()
    }
    vectors["query_token"][:, 1, 0] += SIGNAL * wrong
    if by_image:
        vectors["vision_only"] = vectors["vision_only"][image] * 3
    ids = [f"q{row:05d}" for row in range(rows)]
    of_row = {
        "question_id": ids,
        "content_hash": ids,
        "question_text": [f"What {KINDS[row % 2]} is thing {row % 7}?" for row in range(rows)],
        "image": [f"{one}.png" for one in image],
        "image_sha256": [f"{one:064x}" for one in image],
        "answer": ["a thing"] * rows,
        "finish_reason": ["stop"] * rows,
        "metadata": [
            json.dumps({"kind": KINDS[row % 2], "dataset": SOURCES[one % 2]})
            for row, one in enumerate(image)
        ],
    }
    batch = FeatureBatch(
        layout,
        {name: tuple(of_row.get(name, [""] * rows)) for name in TEXT_COLUMNS},
        {
            name: np.full((rows, *shape), 3, np.int64)
            for name, (_, shape) in layout.integer_columns().items()
        },
        vectors,
        {name: draws.random(rows).astype(np.float32) for name in layout.scores},
    )
    writer = StoreWriter.open(path, layout, worker="worker", provenance={})
    writer.append(batch)
    writer.flush()
    verdicts = {
        one: Verdict(Label.WRONG if bad else Label.RIGHT, "planted", Kind.SHORT)
        for one, bad in zip(ids, wrong.tolist(), strict=True)
    }
    return open_store(path), verdicts
