"""Rows of a store as JSON-ready values: in a list, and all of one."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from halp_probe.judging.judges import judge_auto
from halp_probe.judging.verdict import Question
from halp_store.layout import COUNT_COLUMNS
from halp_store.record import Record
from halp_store.view import View

_LISTED: Final = ("question_text", "ground_truth", "answer", "image")

_LIST_CHARACTERS: Final = 400
"""Of each text in a list; the rest is shown with the row itself."""


def listed(view: View, ids: Sequence[str]) -> list[dict[str, Any]]:
    """A few fields of each. Raises DamagedSegment, or UnknownQuestion."""
    if not ids:
        return []
    wanted = (*_LISTED, "finish_reason")
    columns = {name: column.tolist() for name, column in view[list(ids)].read(wanted).items()}
    return [
        {
            "question_id": question_id,
            **{name: _cut(columns[name][row]) for name in _LISTED},
            **_judged(
                question_id,
                *(columns[name][row] for name in (*_LISTED[:3], "finish_reason")),
            ),
        }
        for row, question_id in enumerate(ids)
    ]


def whole(view: View, record: Record) -> dict[str, Any]:
    """All of it but the numbers of its vectors: their shapes, and their norms (a list, along
    `layers` where a vector has layers; null for what is no number)."""
    return {
        "question_id": record.question_id,
        "question_text": record.question_text,
        "ground_truth": record.ground_truth,
        "answer": record.answer,
        **_judged(
            record.question_id,
            record.question_text,
            record.ground_truth,
            record.answer,
            record.finish_reason,
        ),
        "finish_reason": record.finish_reason,
        "metadata": dict(record.metadata),
        "image": record.image,
        "image_sha256": record.image_sha256,
        "image_grid_thw": list(record.image_grid_thw),
        **{name: getattr(record, name) for name in COUNT_COLUMNS},
        "positions": dict(record.positions),
        "layers": list(record.layers),
        "arrays": {
            name: {"shape": list(values.shape), "norms": _norms(values)}
            for name, values in record.arrays.items()
        },
        "segment": record.segment,
        "commands": _commands(view, record),
    }


def about(view: View) -> dict[str, Any]:
    """What holds for every row."""
    fingerprint = view.layout.fingerprint
    model = fingerprint.get("model")
    return {
        "layers": list(view.layers),
        "positions": list(view.positions),
        "hidden_size": view.layout.hidden_size,
        "source_dtype": view.layout.source_dtype,
        "model": model.get("id") if isinstance(model, dict) else None,
        "filters": [
            *(name for name, (dims, _) in view.layout.integer_columns().items() if not dims),
            *("answer", "ground_truth", "finish_reason", "image", "metadata."),
        ],
    }


def _judged(*texts: str) -> dict[str, str]:
    """By the judge `auto`, as `halp-probe label` has it. texts: in the order of `Question`."""
    said = judge_auto(Question(*texts))
    return {"verdict": said.label, "rule": said.rule, "note": said.note}


def _norms(values: Any) -> list[float | None]:
    norms = np.atleast_1d(np.linalg.norm(values.astype(np.float64), axis=-1)).tolist()
    return [one if math.isfinite(one) else None for one in norms]


def _commands(view: View, record: Record) -> dict[str, str]:
    lines = [
        "from halp_store import open_store",
        "",
        f"record = open_store({view.path!r})[{record.question_id!r}]",
    ]
    for name, values in record.arrays.items():
        shape = ", ".join(map(str, values.shape))
        lines.append(f"record.arrays[{name!r}]  # float32, ({shape}{',' * (values.ndim == 1)})")
    shell = shlex.join(["halp-store", "get", view.path, "--", record.question_id])
    return {"python": "\n".join(lines), "shell": shell}


def _cut(text: str) -> str:
    return text if len(text) <= _LIST_CHARACTERS else text[: _LIST_CHARACTERS - 1] + "…"
