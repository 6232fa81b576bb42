"""`run_worker`: a model as the engine of a worker. The only place that knows every room.

Under `torchrun` one worker is several processes; see `ranks.py`.
"""

from __future__ import annotations

import logging
import socket
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import redis
import torch

from halp_producer import server
from halp_producer.job import Job
from halp_producer.keys import RunKeys
from halp_store.address import storage_at
from halp_store.layout import Layout
from halp_worker.assembly import Engine, serve, worker_name
from halp_worker.devices import resolve_device
from halp_worker.footprint import peak_resident_bytes
from halp_worker.model.blueprint import Blueprint, read_blueprint
from halp_worker.model.extractor import Extractor
from halp_worker.model.images import ImageReader
from halp_worker.model.inputs import InputBuilder, Sample
from halp_worker.model.layers import (
    choose_layers,
    choose_positions,
    layout_of,
    provenance_of,
)
from halp_worker.model.loading import LoadedModel, fetch_weights, load_model
from halp_worker.model.memory import token_budget
from halp_worker.model.parts import rope_index
from halp_worker.model.ranks import Ranks, ShardedExtractor, rank_count
from halp_worker.model.rehearsal import rehearse
from halp_worker.model.risk import Foresight
from halp_worker.run_store import check_store_of_run, store_of_run
from halp_worker.service import Tally
from halp_worker.settings import WorkerSettings
from halp_worker.start_checks import (
    check_blueprint,
    check_run,
    check_settings,
    check_store,
    is_all_failed,
)
from halp_worker.store_outage import open_patiently

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """A worker's end. is_all_failed: the run has ended too, and every job of it failed."""

    tally: Tally
    is_all_failed: bool


def run_worker(settings: WorkerSettings) -> Ended | None:
    """Runs until told to stop; None in a process that only helps the first rank.

    Raises FatalError, StoreError or ServerError with a message.
    """
    foresight = Foresight.read(settings.probe, settings.abstain_above)
    if rank_count() == 1:
        return _run_first(settings, None, foresight)
    ranks = Ranks()
    if ranks.is_first:
        return _run_first(settings, ranks, foresight)
    loaded = load_model(settings.model, rank_count())
    layout = layout_for(settings, loaded, foresight)
    _rehearse(settings, loaded, layout, foresight)
    # The same risk from the same states: every rank leaves out the same rows.
    ranks.follow(Extractor(loaded, layout, foresight).run)
    return None


def _run_first(settings: WorkerSettings, ranks: Ranks | None, foresight: Foresight | None) -> Ended:
    client = server.connect_patiently(settings.redis_url, log.warning)
    for sentence in server.advice(client):
        log.warning(sentence)
    name = worker_name()
    try:
        check_run(client, settings.run, until_empty=settings.until_empty)
        storage = storage_at(settings.store)
        stored_in = store_of_run(client, RunKeys(settings.run), settings.store)
        open_patiently(lambda: check_store_of_run(settings.run, stored_in, storage))
        blueprint = plan(settings, foresight)
        with ExitStack() as stack:
            model = settings.model
            if ranks is None and not model.device_map:
                gpu = resolve_device(
                    model.device,
                    client,
                    name,
                    socket.gethostname(),
                    lease_seconds=settings.lease_seconds,
                )
                if gpu is not None:
                    model = replace(model, device=stack.enter_context(gpu).device)
            log.info("loading %s", model.model)
            loaded = load_model(model, rank_count(), blueprint)
            engine = model_engine(settings, loaded, foresight)
            _rehearse(settings, loaded, engine.layout, foresight)
            if ranks is not None:
                engine = replace(engine, extractor=ShardedExtractor(engine.extractor, ranks))
            tally = serve(settings, engine, client, name)
            if ranks is not None:
                ranks.stop()
            return Ended(tally, settings.until_empty and is_all_failed(client, settings.run))
    except redis.RedisError as error:
        raise server.explained(error, settings.redis_url) from error


def plan(settings: WorkerSettings, foresight: Foresight | None) -> Blueprint:
    """The model that is to be loaded, with everything checked that needs no loaded weights, and the
    weight files on this disk. Raises FatalError or StoreError with a message."""
    check_settings(settings, rank_count())
    blueprint = read_blueprint(settings.model)
    check_blueprint(settings, blueprint, foresight)
    fetch_weights(settings.model, blueprint)
    check_store(settings, layout_for(settings, blueprint, foresight), blueprint)
    return blueprint


def _rehearse(
    settings: WorkerSettings, loaded: LoadedModel, layout: Layout, foresight: Foresight | None
) -> None:
    inputs = input_builder(loaded, layout.positions, settings.image_root, settings.allow_urls)
    rehearse(settings.model.model, loaded, layout, inputs, foresight)


def model_engine(
    settings: WorkerSettings, loaded: LoadedModel, foresight: Foresight | None = None
) -> Engine:
    """The engine around a loaded model. Raises FatalError or StoreError with a message."""
    layout = check_store(settings, layout_for(settings, loaded, foresight), loaded)
    inputs = input_builder(loaded, layout.positions, settings.image_root, settings.allow_urls)

    def prepare(job: Job) -> Sample:
        # On one of several threads: more threads for each of them would only disturb the model's.
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
        return inputs.prepare(job)

    return Engine(
        layout=layout,
        provenance=provenance_of(loaded, settings.batch_size),
        prepare=prepare,
        extractor=Extractor(loaded, layout, foresight),
        device=str(loaded.device),
        budget=token_budget(loaded.model),
        tokens_of=lambda sample: sample.prompt_tokens + loaded.generation.max_new_tokens,
        size_of=lambda sample: sample.prefix_tokens,
        memory_bytes=_peak_cuda_bytes if loaded.device.type == "cuda" else peak_resident_bytes,
    )


def _peak_cuda_bytes() -> int:
    """Of all devices together: a model may be spread over several. What the process has reserved,
    for nobody else can use it."""
    return sum(torch.cuda.max_memory_reserved(one) for one in range(torch.cuda.device_count()))


def layout_for(
    settings: WorkerSettings, model: Blueprint, foresight: Foresight | None = None
) -> Layout:
    """What this worker stores in a new store. Raises FatalError."""
    return layout_of(
        model,
        choose_layers(settings.layers, model.n_layers),
        choose_positions(settings.positions),
        foresight,
    )


def input_builder(
    loaded: LoadedModel, positions: tuple[str, ...], image_root: Path, allow_urls: bool
) -> InputBuilder:
    """Inputs for this model, with room for its longest answer in the context."""
    return InputBuilder(
        loaded.processor,
        ImageReader(image_root, allow_urls=allow_urls),
        positions,
        rope_index=rope_index(loaded.model),
        max_prompt_tokens=loaded.max_prompt_tokens,
        pin_memory=loaded.device.type == "cuda",
    )
