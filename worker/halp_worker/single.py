"""One sample without server or store: `halp-worker extract`."""

from __future__ import annotations

import json
from math import isnan
from pathlib import Path

import numpy as np
import typer

from halp_producer.job import Job
from halp_store.features import FeatureBatch
from halp_worker.batcher import Batch
from halp_worker.delivery import row_key
from halp_worker.fates import FatalError
from halp_worker.launch import input_builder
from halp_worker.model.blueprint import read_blueprint
from halp_worker.model.extractor import Extractor
from halp_worker.model.images import ImageReader
from halp_worker.model.layers import choose_layers, choose_positions, expected_layout, layout_of
from halp_worker.model.loading import check_device, fetch_weights, load_model
from halp_worker.model.rehearsal import rehearse, rehearse_inputs
from halp_worker.model.risk import Foresight
from halp_worker.settings import ModelSettings


def extract_one(
    settings: ModelSettings,
    layers: str,
    positions: tuple[str, ...],
    image: Path,
    question: str,
    *,
    probe: Path | None = None,
    abstain_above: float | None = None,
) -> FeatureBatch:
    """A batch of one row. Raises Rejected or FatalError with a message."""
    foresight = Foresight.read(probe, abstain_above)
    names = choose_positions(positions)
    check_device(settings)
    path = image.absolute()
    job = Job(question_id="extract", image=path.name, question=question, ground_truth="")
    ImageReader(path.parent).read(job.image)  # before anything is loaded
    blueprint = read_blueprint(settings)
    indices = choose_layers(layers, blueprint.n_layers)
    expected_layout(blueprint, indices, names, foresight, None)
    rehearse_inputs(settings.model, blueprint, names)
    fetch_weights(settings, blueprint)
    layout = layout_of(blueprint, indices, names, foresight)
    loaded = load_model(settings, blueprint=blueprint)
    inputs = input_builder(loaded, names, path.parent, allow_urls=False)
    rehearse(settings.model, loaded, layout, inputs, foresight)
    batch = Batch((row_key(job),), (inputs.prepare(job),))
    extraction = Extractor(loaded, layout, foresight).extract(batch)
    if extraction.features is None:
        raise FatalError(extraction.fates[0][1].error)
    return extraction.features


def show(features: FeatureBatch, *, as_json: bool) -> None:
    """Prints answer, scores, positions, and each array's shape and norm; null where there is no
    score."""
    layout = features.layout
    summary = {
        "answer": features.text["answer"][0],
        "finish_reason": features.text["finish_reason"][0],
        **{name: _score(float(values[0])) for name, values in features.scores.items()},
        "layers": list(layout.layers),
        **{name: values[0].tolist() for name, values in features.integers.items()},
        "arrays": {
            name: {
                "shape": list(values[0].shape),
                "norm": [
                    round(float(one), 4)
                    for one in np.atleast_1d(np.linalg.norm(values[0], axis=-1))
                ],
            }
            for name, values in features.vectors.items()
        },
    }
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False))
        return
    for name, value in summary.items():
        if name != "arrays":
            typer.echo(f"{name:24} {'-' if value is None else value}")
    for name, array in summary["arrays"].items():
        typer.echo(f"{name:24} {tuple(array['shape'])} float32, norm {array['norm']}")


def _score(value: float) -> float | None:
    """To six digits; JSON has no NaN."""
    return None if isnan(value) else float(f"{value:.6g}")
