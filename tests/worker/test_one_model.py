"""One fingerprint, one model: what tells two checkpoints apart, and which stores a worker joins."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from halp_store.errors import StoreMismatch
from halp_store.writer import StoreWriter
from halp_worker.model.checkpoint import Checkpoint
from halp_worker.model.checkpoint_digest import sampled_digest

from .conftest import random_probe, rewrite

MEGABYTE = 1 << 20


def checkpoint_of(folder):
    return Checkpoint(Path(folder), "local", None)


def write(folder, tensors, shards=1):
    from safetensors.numpy import save_file

    folder.mkdir()
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return checkpoint_of(folder)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number}.safetensors"
        part = names[number::shards]
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    rewrite(folder / "model.safetensors.index.json", weight_map=weight_map)
    return checkpoint_of(folder)


@pytest.fixture(scope="module")
def tensors():
    """Large matrices with a norm and a bias between each two, as a model has: 24 MB."""
    rng = np.random.default_rng(0)

    def noise(*shape):
        return rng.integers(0, 1000, shape).astype(np.float32)

    return {
        f"layers.{layer}.{name}": noise(*shape)
        for layer in range(8)
        for name, shape in {"weight": (768, 1024), "norm": (512,), "bias": (64,)}.items()
    }


def test_norms_and_biases_are_seen(tensors, tmp_path):
    """64 pieces of a file miss most small tensors: the older digest of the two is equal."""
    changed = {
        name: values + 1 if name.endswith("norm") else values for name, values in tensors.items()
    }
    one, other = write(tmp_path / "one", tensors), write(tmp_path / "other", changed)
    assert one.weights != other.weights
    assert one.revision != other.revision
    few = {**tensors, "layers.3.norm": tensors["layers.3.norm"] + 1}
    third = write(tmp_path / "third", few)
    assert sampled_digest(third.folder) == sampled_digest(one.folder), "the case is there"
    assert third.revision != one.revision


def test_each_tensor_counts(tensors, tmp_path):
    """Its first, middle and last numbers, its name, its shape and its type."""
    own = write(tmp_path / "own", tensors).weights
    seen = {own}
    for number, name in enumerate(tensors):
        changed = tensors[name].copy()
        changed.flat[(0, changed.size // 2, -1)[number % 3]] += 1
        folder = tmp_path / str(number)
        seen.add(write(folder, {**tensors, name: changed}).weights)
        shutil.rmtree(folder)
    assert len(seen) == len(tensors) + 1
    norm = tensors["layers.0.norm"]
    rest = {name: values for name, values in tensors.items() if name != "layers.0.norm"}
    for number, other in enumerate(
        (
            {**rest, "layers.0.norm2": norm},
            {**rest, "layers.0.norm": norm.reshape(2, -1)},
            {**rest, "layers.0.norm": norm.view(np.int32)},
            rest,
        )
    ):
        assert write(tmp_path / f"other-{number}", other).weights not in seen


def test_the_same_tensors_in_other_files_are_the_same_weights(tensors, tmp_path):
    """Saved again with another shard size nothing has changed."""
    digests = {write(tmp_path / str(shards), tensors, shards).weights for shards in (1, 2, 5)}
    assert len(digests) == 1


def test_a_digest_says_which_kind_it_is(tensors, tmp_path):
    """The older one of files, this one of tensors."""
    checkpoint = write(tmp_path / "one", tensors)
    assert checkpoint.revision.startswith("sha256-tensors:")
    assert checkpoint.older_revision.startswith("sha256:")


def test_every_small_file_that_shapes_an_answer_counts(tiny, tmp_path):
    """Configurations, tokenizer and template."""
    seen = {checkpoint_of(tiny).revision}
    files = [path.name for path in tiny.iterdir() if path.suffix == ".json"]
    files.remove("model.safetensors.index.json")
    for file in files:
        folder = shutil.copytree(tiny, tmp_path / file)
        rewrite(folder / file, something="else")
        seen.add(checkpoint_of(folder).revision)
    assert len(seen) == len(files) + 1


@pytest.mark.parametrize("odd", [[[7]], True, "7", None])
def test_what_is_no_token_number_stops_no_answer(tiny, tmp_path, odd):
    """`true` is not token 1, and a list in a list is no error without a sentence."""
    folder = shutil.copytree(tiny, tmp_path / "odd")
    rewrite(folder / "generation_config.json", eos_token_id=odd)
    stops = checkpoint_of(folder).stop_tokens
    assert set(stops) <= set(checkpoint_of(tiny).stop_tokens)
    assert all(type(stop) is int for stop in stops)


def test_a_template_in_the_folder_of_named_ones_counts(tiny, tmp_path):
    """transformers takes `default.jinja` from there if the checkpoint has no other template."""
    folder = shutil.copytree(tiny, tmp_path / "named")
    templates = folder / "additional_chat_templates"
    templates.mkdir()
    seen = set()
    for words in ("Answer briefly.", "Answer at length."):
        (templates / "default.jinja").write_text(words)
        seen.add(checkpoint_of(folder).revision)
    assert len(seen) == 2


def test_weights_replaced_in_the_hubs_cache_are_another_model(tiny, tmp_path):
    """The commit is the folder's name, and says nothing of what lies in it now."""
    from halp_worker.demo.checkpoint_files import SmallShape
    from halp_worker.demo.small_checkpoint import build_checkpoint

    other = build_checkpoint(tmp_path / "other", SmallShape(layers=2, vision_depth=2, seed=9))
    one, two = (Checkpoint(folder, "some/model", "abc") for folder in (tiny, other))
    assert one.revision == two.revision == "abc"
    assert one.weights != two.weights


# -- stores that are there -----------------------------------------------------------------------


def loaded_from(folder, **settings):
    from halp_worker.model.loading import load_model
    from halp_worker.settings import ModelSettings

    return load_model(ModelSettings(model=str(folder), device="cpu", **settings))


def engine_layout(loaded, store, foresight=None):
    from halp_worker.launch import model_engine
    from halp_worker.settings import ModelSettings, WorkerSettings

    settings = WorkerSettings(
        store=str(store),
        model=ModelSettings(),
        run="r",
        redis_url="",
        image_root=Path(),
        allow_urls=False,
        batch_size=4,
        layers="auto",
        positions=(),
        lease_seconds=60,
        max_job_seconds=60,
        max_attempts=3,
        flush_rows=1,
        flush_seconds=1,
        until_empty=True,
        metrics_port=None,
        metrics_host="",
    )
    return model_engine(settings, loaded, foresight).layout


def older(loaded, **generation):
    """The layout that a worker before layout version 3 made for the same checkpoint."""
    import dataclasses

    from halp_worker.launch import choose_layers, layout_of

    layout = layout_of(
        loaded, choose_layers("auto", loaded.n_layers), ("vision_token", "query_token")
    )
    fingerprint = {
        "model": "local",
        "revision": sampled_digest(loaded.checkpoint.folder),
        "prompt": layout.fingerprint["prompt"],
        "image_processor": layout.fingerprint["image_processor"],
        "generation": {
            "do_sample": False,
            "num_beams": 1,
            "max_new_tokens": loaded.generation.max_new_tokens,
            "eos_token_id": list(loaded.generation.stop_tokens),
            **generation,
        },
    }
    return dataclasses.replace(layout, fingerprint=fingerprint)


def join(store, layout):
    return StoreWriter.open(store, layout, worker="w", provenance={}, flush_rows=1, flush_seconds=1)


@pytest.mark.slow
def test_a_worker_goes_on_with_the_store_of_an_older_release(tiny, tmp_path):
    """Same folder, same stop tokens in any order: the store's own words. Other ones are refused."""
    loaded = loaded_from(tiny)
    stops = list(loaded.generation.stop_tokens)
    assert len(stops) > 1
    for order in (stops, stops[::-1]):
        store = tmp_path / f"{order[0]}.zarr"
        join(store, older(loaded, eos_token_id=order))
        join(store, engine_layout(loaded, store))
    fewer = tmp_path / "fewer.zarr"
    join(fewer, older(loaded, eos_token_id=stops[:1]))
    with pytest.raises(StoreMismatch, match="generation"):
        join(fewer, engine_layout(loaded, fewer))
    other = shutil.copytree(tiny, tmp_path / "copy")
    rewrite(other / "config.json", something="else")
    with pytest.raises(StoreMismatch, match="revision"):
        join(
            tmp_path / f"{stops[0]}.zarr",
            engine_layout(loaded_from(other), tmp_path / f"{stops[0]}.zarr"),
        )


@pytest.mark.slow
def test_an_older_store_has_no_penalty(tiny, tmp_path):
    """Its rows were made without one."""
    store = tmp_path / "old.zarr"
    join(store, older(loaded_from(tiny)))
    with pytest.raises(StoreMismatch, match="generation"):
        join(store, engine_layout(loaded_from(tiny, repetition_penalty=1.05), store))


@pytest.mark.slow
def test_rows_with_and_without_a_penalty_do_not_mix(tiny, tmp_path):
    """The penalty is in the fingerprint, and so is that there is none."""
    store = tmp_path / "new.zarr"
    join(store, engine_layout(loaded_from(tiny), store))
    join(store, engine_layout(loaded_from(tiny), store))
    with pytest.raises(StoreMismatch, match="generation"):
        join(store, engine_layout(loaded_from(tiny, repetition_penalty=1.05), store))


@pytest.mark.slow
def test_a_probe_of_an_older_release_is_used_on(tiny, tmp_path):
    """A probe knows its checkpoint by the digest that was there when it was fitted."""
    from halp_worker.fates import FatalError
    from halp_worker.model.risk import Foresight

    loaded = loaded_from(tiny)
    probe = random_probe(older(loaded), "query_token@1")
    layout = engine_layout(loaded, tmp_path / "new.zarr", Foresight(probe, "p"))
    assert layout.fingerprint["weights"] == loaded.checkpoint.weights
    other = shutil.copytree(tiny, tmp_path / "copy")
    rewrite(other / "config.json", something="else")
    with pytest.raises(FatalError, match="revision"):
        engine_layout(loaded_from(other), tmp_path / "other.zarr", Foresight(probe, "p"))
