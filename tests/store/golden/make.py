"""Made the stores beside it, once. To be run again only for a new layout version:

    python tests/store/golden/make.py

Refuses to write over what is there: a golden store that is made anew proves nothing.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from halp_store.compaction import compact
from halp_store.features import FeatureBatch
from halp_store.fence import fence_segment
from halp_store.layout import LAYOUT_VERSION, SCORE_COLUMNS, TEXT_COLUMNS, Layout
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.root import claim_root, read_root
from halp_store.segment import build_segment

HERE: Final = Path(__file__).parent
LAYOUT: Final = Layout(
    layers=(0, 7, 14, 21, 27),
    positions=("vision_token", "query_token", "question_token"),
    hidden_size=4,
    vision_hidden_size=3,
    source_dtype="bfloat16",
    fingerprint={"model": {"id": "Qwen/Qwen2.5-VL-7B-Instruct", "revision": "abc"}, "greedy": True},
    scores=SCORE_COLUMNS,
)
ANSWERS: Final = ("Yes.", "", "No, there is none.\n", "🦓 e\u0301", "nul \0 inside", "x" * 300)
SEGMENTS: Final = (
    ("host-1-" + "a" * 32, ("question_comb_1", "question_comb_10", "question_comb_2")),
    ("host-2-" + "b" * 32, ("question_comb_3", "question_comb_2", "zoë", "a b")),
    ("host-1-" + "c" * 32, ("question_comb_4",)),
)
"""The id that is there twice has the same content, as after a redelivery."""
ABSTAINED: Final = ("question_comb_10", "zoë")
"""Nothing was generated: there is no mean_logprob."""


def make_rows(ids: Sequence[str]) -> FeatureBatch:
    draws = [np.random.default_rng([1, *one.encode()]) for one in ids]
    text = {name: tuple(f"{name} of {one}" for one in ids) for name in TEXT_COLUMNS} | {
        "question_id": tuple(ids),
        "answer": tuple(
            "" if one in ABSTAINED else ANSWERS[len(one) % len(ANSWERS)] for one in ids
        ),
        "finish_reason": tuple("abstained" if one in ABSTAINED else "stop" for one in ids),
        "metadata": tuple(json.dumps({"dataset": "POPE", "difficulty": len(one)}) for one in ids),
    }
    integers = {
        name: np.array([draw.integers(1, 300, shape) for draw in draws], np.int64)
        for name, (_, shape) in LAYOUT.integer_columns().items()
    } | {"prompt_tokens": np.array([300 + len(one) for one in ids], np.int64)}
    vectors = {}
    for name, (_, shape) in LAYOUT.vector_columns().items():
        drawn = np.array([draw.standard_normal(shape) for draw in draws], np.float32)
        drawn.view(np.uint32)[...] &= 0xFFFF0000  # what bfloat16 holds
        vectors[name] = drawn
    scores = {
        name: np.array([draw.random() for draw in draws], np.float32) for name in LAYOUT.scores
    }
    scores["mean_logprob"] *= -3
    scores["mean_logprob"][[one in ABSTAINED for one in ids]] = np.nan
    return FeatureBatch(LAYOUT, text, integers, vectors, scores)


def publish(storage: LocalStorage, name: str, ids: Sequence[str]) -> None:
    segment = build_segment(
        make_rows(ids),
        name=name,
        stamp=read_root(storage).stamp,
        provenance={"torch": "2.11"},
        created="2026-11-25T00:00:00.000",
    )
    for key, value in segment.staged.items():
        storage.write(f"segments/{name}/{key}", value)
    storage.publish(f"segments/{name}/zarr.json", segment.metadata)


def columns(ids: Sequence[str]) -> dict[str, object]:
    rows = make_rows(ids)
    numbers = {name: values.tolist() for name, values in rows.numbers.items()}
    for name in rows.scores:  # JSON has no NaN
        numbers[name] = [None if math.isnan(one) else one for one in numbers[name]]
    return {**rows.text, **numbers}


def main() -> None:
    target = HERE / f"layout-{LAYOUT_VERSION}.json"
    if target.exists():
        raise SystemExit(f"{target} is there; golden stores are made once")
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(Path(folder) / "store")
        root = claim_root(storage, LAYOUT)
        for name, ids in SEGMENTS:
            publish(storage, name, ids)
        fence_segment(storage, "host-3-" + "d" * 32)
        storage.write("segments/host-3-" + "e" * 32 + "/answer/c.0", b"staged, never published")
        shutil.make_archive(str(HERE / f"layout-{LAYOUT_VERSION}-segments"), "zip", storage.root)
        compact(storage)
        prune(storage, grace_seconds=0)
        publish(storage, "host-2-" + "f" * 32, ("question_comb_5", "question_comb_6"))
        (storage.root / ".partial").rmdir()
        shutil.make_archive(str(HERE / f"layout-{LAYOUT_VERSION}-compacted"), "zip", storage.root)
    ids = sorted({one for _, some in SEGMENTS for one in some})
    later = sorted([*ids, "question_comb_5", "question_comb_6"])
    stores = {"segments": columns(ids), "compacted": columns(later)}
    document = {"layout": root.to_json(), "stores": stores}
    target.write_text(json.dumps(document, indent=1, allow_nan=False))


if __name__ == "__main__":
    main()
