"""Loading: a checkpoint as the hub lays it out, by id and by folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from halp_worker.fates import FatalError
from halp_worker.settings import DEFAULT_MODEL

pytestmark = pytest.mark.slow


def load(folder, **settings):
    from halp_worker.model.loading import load_model
    from halp_worker.settings import ModelSettings

    return load_model(ModelSettings(model=str(folder), device="cpu", **settings))


def test_the_small_checkpoint_is_laid_out_as_the_hub_does_it(checkpoint):
    """Flat config, sharded safetensors under the published names, processor and tokenizer files."""
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["hidden_size"] == 64
    assert config["rope_scaling"]["type"] == "mrope"
    assert "text_config" not in config
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    names = set(index["weight_map"])
    assert {
        "visual.merger.ln_q.weight",
        "model.layers.27.mlp.up_proj.weight",
        "lm_head.weight",
    } < names
    assert len(set(index["weight_map"].values())) > 1, "sharded"
    files = {path.name for path in checkpoint.iterdir()}
    assert {"preprocessor_config.json", "tokenizer.json", "chat_template.json"} <= files


def test_the_default_model_id_loads_from_a_hub_cache(checkpoint, tmp_path):
    """The code that loads `Qwen/Qwen2.5-VL-7B-Instruct`, offline, from the hub's own folders."""
    commit = "cc594898137f460bfe9f0759e9844b3ce807cfb5"
    repository = tmp_path / "hub" / f"models--{DEFAULT_MODEL.replace('/', '--')}"
    shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "from halp_worker.model.loading import load_model; "
        "from halp_worker.settings import ModelSettings; "
        "m = load_model(ModelSettings(device='cpu')); "
        "print(m.name, m.revision, m.n_layers, m.model.dtype)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [DEFAULT_MODEL, commit, "28", "torch.bfloat16"]


def test_the_checkpoints_sampling_and_penalty_do_not_reach_an_answer(bench, checkpoint):
    """Its generation config has do_sample and a repetition penalty; answers are plain greedy. Only
    its stop tokens are ours too."""
    stored = json.loads((checkpoint / "generation_config.json").read_text())
    assert stored["do_sample"] is True
    bench = bench()
    assert list(bench.loaded.generation.stop_tokens) == stored["eos_token_id"]
    samples = bench.samples()
    inputs = bench.plain_inputs(samples)

    def generated(**options):
        with torch.inference_mode():
            output = bench.plain.generate(**inputs, do_sample=False, **options)
        prompt = inputs["input_ids"].shape[1]
        tokenizer = bench.loaded.processor.tokenizer
        return tokenizer.batch_decode(output[:, prompt:], skip_special_tokens=True)

    answers = list(bench.extract(samples).features.text["answer"])
    assert answers == generated()
    assert answers != generated(repetition_penalty=stored["repetition_penalty"])


def test_sliding_windows_are_refused_at_load(checkpoint, tmp_path):
    """No published checkpoint has them; computed as full attention they would be wrong."""
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(FatalError, match="only full attention"):
        load(copy)


def test_the_same_folder_elsewhere_is_the_same_model(checkpoint, tmp_path):
    """A folder's identity is what is in it, not where it is mounted."""
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    assert load(copy).revision == load(checkpoint).revision


def test_another_weight_is_another_model(checkpoint, tmp_path):
    """One changed byte of a shard changes the identity."""
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    shard = next(copy.glob("*00001-of*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    assert load(copy).revision != load(checkpoint).revision


def test_a_checkpoint_that_lacks_a_weight_is_refused(checkpoint, tmp_path):
    """transformers would fill it with random numbers and go on."""
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    index_path = copy / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    name = "model.layers.5.mlp.up_proj.weight"
    shard = copy / index["weight_map"].pop(name)
    tensors = load_file(shard)
    del tensors[name]
    save_file(tensors, shard, metadata={"format": "pt"})
    index_path.write_text(json.dumps(index))
    with pytest.raises(FatalError, match=r"1 weights are missing.*layers\.5\.mlp\.up_proj"):
        load(copy)


def test_another_architecture_and_no_checkpoint_are_refused(checkpoint, tmp_path):
    """With what was expected and what was found."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(FatalError, match=r"expected a Qwen2\.5-VL checkpoint.*got gpt2"):
        load(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FatalError, match="empty"):
        load(tmp_path / "empty")
    with pytest.raises(FatalError, match="there is no such folder"):
        load(tmp_path / "nowhere")


def test_a_device_that_is_not_there_is_refused():
    """In one line that names the option."""
    from halp_worker.model.loading import choose_device

    with pytest.raises(FatalError, match="--device nonsense"):
        choose_device("nonsense")
    assert choose_device("cpu").type == "cpu"


def test_pixel_limits_are_the_checkpoints_own_unless_set(checkpoint):
    """Set, they reach the processor and the fingerprint."""
    from halp_worker.model.layers import layout_of

    own, smaller = load(checkpoint), load(checkpoint, max_pixels=16 * 28 * 28)
    limits = [
        layout_of(one, (0,), ("query_token",)).fingerprint["image_processor"]
        for one in (own, smaller)
    ]
    assert limits[0]["max_pixels"] == 64 * 28 * 28
    assert limits[1]["max_pixels"] == 16 * 28 * 28
    assert limits[0]["min_pixels"] == limits[1]["min_pixels"]


def test_building_a_checkpoint_twice_gives_the_same_model(checkpoint, tmp_path):
    """So that the demo can be run again into the same store."""
    from halp_worker.demo.small_checkpoint import build_checkpoint

    assert load(build_checkpoint(tmp_path / "again")).revision == load(checkpoint).revision


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_is_named_by_its_number(device, monkeypatch):
    """torch's calls that choose a GPU refuse `cuda` without one."""
    from halp_worker.model.loading import choose_device

    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *size, device: empty(*size))
    assert choose_device(device) == torch.device("cuda", 0)


@pytest.mark.accelerator
def test_auto_takes_the_accelerator(checkpoint):
    """CUDA first."""
    import torch

    from halp_worker.model.loading import load_model
    from halp_worker.settings import ModelSettings

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert load_model(ModelSettings(model=str(checkpoint))).device.type == "cuda"
