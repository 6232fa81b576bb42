"""`run_worker`: a model as the engine of a worker. The only place that knows every room."""

from __future__ import annotations

import logging
import socket
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import redis

from halp_producer import server
from halp_worker.assembly import Engine, serve, worker_name
from halp_worker.devices import resolve_device
from halp_worker.model.extractor import Extractor
from halp_worker.model.images import ImageReader
from halp_worker.model.inputs import InputBuilder
from halp_worker.model.layers import choose_layers, choose_positions, layout_of, provenance_of
from halp_worker.model.loading import LoadedModel, load_model
from halp_worker.service import Tally
from halp_worker.settings import WorkerSettings

log = logging.getLogger(__name__)


def run_worker(settings: WorkerSettings) -> Tally:
    """Runs until told to stop. Raises FatalError, StoreError or ServerError with a message."""
    client = server.connect_exact(settings.redis_url)
    for sentence in server.advice(client):
        log.warning(sentence)
    name = worker_name()
    try:
        gpu = resolve_device(
            settings.model.device,
            client,
            name,
            socket.gethostname(),
            lease_seconds=settings.lease_seconds,
        )
        with gpu or nullcontext():
            device = gpu.device if gpu else settings.model.device
            loaded = load_model(replace(settings.model, device=device))
            return serve(settings, model_engine(settings, loaded), client, name)
    except redis.RedisError as error:
        raise server.explained(error, settings.redis_url) from error


def model_engine(settings: WorkerSettings, loaded: LoadedModel) -> Engine:
    """The engine around a loaded model."""
    layout = layout_of(
        loaded,
        choose_layers(settings.layers, loaded.n_layers),
        choose_positions(settings.positions),
    )
    inputs = input_builder(loaded, layout.positions, settings.image_root, settings.allow_urls)
    return Engine(
        layout=layout,
        provenance=provenance_of(loaded, settings.batch_size),
        prepare=inputs.prepare,
        extractor=Extractor(loaded, layout),
        device=str(loaded.device),
    )


def input_builder(
    loaded: LoadedModel, positions: tuple[str, ...], image_root: Path, allow_urls: bool
) -> InputBuilder:
    """Inputs for this model, with room for its longest answer in the context."""
    return InputBuilder(
        loaded.processor,
        ImageReader(image_root, allow_urls=allow_urls),
        positions,
        max_prompt_tokens=loaded.context_tokens - loaded.generation.max_new_tokens,
    )
