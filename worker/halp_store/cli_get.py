"""`halp-store get`: all that is known of some questions.

Exit codes: 0 done, 1 there is no such store or id (or it is damaged), 2 the command line is wrong.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from halp_store.console import AsJson, StorePath, fail, guarded
from halp_store.opening import opened
from halp_store.terminal import fields, json_text, printable

if TYPE_CHECKING:
    from halp_store.reader import Store
    from halp_store.record import Record

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-store get run1.zarr question_comb_6253"
    "\n  halp-store get run1.zarr q1 q2 q3 --json"
    "\n  halp-store get run1.zarr q1 --image-root images/"
)


def get(
    store: StorePath,
    question_ids: Annotated[
        list[str], typer.Argument(metavar="QUESTION_ID...", help="As in the data set.")
    ],
    image_root: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Where the images are, as for the worker: say the whole path, and whether there "
            "is a file.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print rows: question, picture, truth, answer, positions, shapes and norms of vectors.

    With --json an object whose `rows` are they, in the order asked for.
    """
    rows = guarded(partial(_rows, opened(store), question_ids, image_root))
    if as_json:
        typer.echo(json_text({"rows": rows}, indent=2))
        return
    typer.echo("\n\n".join("\n".join(_lines(row)) for row in rows))


def _rows(store: Store, ids: Sequence[str], image_root: Path | None) -> list[dict[str, Any]]:
    from halp_store.errors import UnknownQuestion

    records: list[Record] = []
    wrong: list[str] = []
    for question_id in dict.fromkeys(ids):
        try:
            records.append(store[question_id])
        except UnknownQuestion as error:
            wrong.append(printable(str(error)))
    if wrong:
        fail("\n".join(wrong))
    return [_row(record, image_root) for record in records]


def _row(record: Record, image_root: Path | None) -> dict[str, Any]:
    import numpy as np

    row: dict[str, Any] = {
        "question_id": record.question_id,
        "question": record.question_text,
        "image": record.image,
    }
    if image_root is not None:
        picture = _picture(image_root, record.image)
        row |= {"image_path": picture.path, "image_problem": picture.problem}
    return row | {
        "image_sha256": record.image_sha256,
        "ground_truth": record.ground_truth,
        "answer": record.answer,
        "finish_reason": record.finish_reason,
        "metadata": dict(record.metadata),
        "prompt_tokens": record.prompt_tokens,
        "image_tokens": record.image_tokens,
        "answer_tokens": record.answer_tokens,
        "image_grid_thw": list(record.image_grid_thw),
        # JSON has no NaN.
        **{name: None if math.isnan(one) else one for name, one in record.scores.items()},
        "positions": dict(record.positions),
        "layers": list(record.layers),
        "segment": record.segment,
        "arrays": {
            name: {
                "shape": list(values.shape),
                "norms": [float(norm) for norm in np.atleast_1d(np.linalg.norm(values, axis=-1))],
            }
            for name, values in record.arrays.items()
        },
    }


@dataclass(frozen=True)
class _Picture:
    """path: None for what no worker would open. problem: a sentence, or None for a file."""

    path: str | None
    problem: str | None


def _picture(root: Path, image: str) -> _Picture:
    """As a worker would find it: below the root, whatever links say."""
    from halp_producer.images import ImageRoot, is_url

    if is_url(image):
        return _Picture(None, "a URL, not looked at")
    problem = ImageRoot(root).problem(image)
    if problem is None:
        return _Picture(os.path.realpath(root / image), None)
    return _Picture(None, problem)


def _lines(row: dict[str, Any]) -> Iterator[str]:
    shown: dict[str, str] = {}
    for name, value in row.items():
        if name == "arrays":
            continue
        if name == "image_path":
            shown[name] = value or f"none: {row['image_problem']}"
        elif name != "image_problem":
            shown[name] = _shown(value)
    yield from fields(shown)
    yield "norms"
    arrays = row["arrays"]
    named = max(map(len, arrays))
    shapes = {name: " x ".join(map(str, array["shape"])) for name, array in arrays.items()}
    shaped = max(map(len, shapes.values()))
    for name, array in arrays.items():
        norms = [f"{norm:.4g}" for norm in array["norms"]]
        if len(array["shape"]) > 1:
            pairs = zip(row["layers"], norms, strict=True)
            norms = [f"layer {layer}: {norm}" for layer, norm in pairs]
        yield f"  {name:<{named}}  {shapes[name]:<{shaped}}  {', '.join(norms)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return "\n".join(
            f"{name}: {one if isinstance(one, str) else json_text(one)}"
            for name, one in value.items()
        )
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
