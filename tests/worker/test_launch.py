"""What is put together before a model is loaded: the server is asked, a GPU is leased."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from halp_producer.keys import gpu_lease
from halp_producer.server import ServerError
from halp_worker import launch
from halp_worker.devices import Gpu, resolve_device, take_gpu
from halp_worker.fates import FatalError
from halp_worker.settings import ModelSettings, WorkerSettings


@pytest.fixture
def settings(server, run, tmp_path, monkeypatch):
    """Of a worker that may wait for its run, and whose model needs no files."""
    monkeypatch.setattr(launch, "plan", lambda *_: None)
    return WorkerSettings(
        store=tmp_path / "s.zarr",
        model=ModelSettings("none"),
        run=run,
        redis_url=server.url,
        image_root=Path(),
        allow_urls=False,
        batch_size=1,
        layers="auto",
        positions=(),
        lease_seconds=60,
        max_job_seconds=60,
        max_attempts=3,
        flush_rows=1,
        flush_seconds=1,
        until_empty=False,
        metrics_port=None,
        metrics_host="127.0.0.1",
    )


def test_a_worker_loads_its_model_on_the_gpu_that_is_free(settings, client, run, monkeypatch):
    """With GPU 0 another worker's, the model goes to GPU 1, which is free again in the end."""
    gpus = (Gpu(0, f"{run}-a"), Gpu(1, f"{run}-b"))

    def load(model_settings, ranks, blueprint):
        assert client.exists(gpu_lease(f"{run}-b"))
        raise FatalError(f"loading on {model_settings.device}")

    monkeypatch.setattr(launch, "load_model", load)
    monkeypatch.setattr(launch, "resolve_device", partial(resolve_device, list_gpus=lambda: gpus))
    taken = take_gpu(client, "other", "host", gpus=gpus, lease_seconds=60, patience_seconds=0)
    with taken, pytest.raises(FatalError, match="loading on cuda:1"):
        launch.run_worker(settings)
    assert not client.exists(gpu_lease(f"{run}-b"))


def test_a_named_device_is_used_as_named(settings, monkeypatch):
    """No lease, no question."""

    def load(model_settings, ranks, blueprint):
        raise FatalError(f"loading on {model_settings.device}")

    monkeypatch.setattr(launch, "load_model", load)
    named = replace(settings, model=ModelSettings("none", device="cuda:7"))
    with pytest.raises(FatalError, match="loading on cuda:7"):
        launch.run_worker(named)


def test_a_server_that_is_not_there_is_said_before_anything_is_loaded(settings, monkeypatch):
    """Loading 7B takes a minute; a wrong URL should not."""
    monkeypatch.setattr(launch, "load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ServerError, match="no server at"):
        launch.run_worker(replace(settings, redis_url="redis://127.0.0.1:1/0"))
