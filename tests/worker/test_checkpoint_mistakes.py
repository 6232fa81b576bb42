"""A checkpoint that cannot work is refused in one sentence that says what to do."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from halp_worker.fates import FatalError

from .conftest import rewrite

pytestmark = pytest.mark.slow

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3398\n"


def load(folder, **settings):
    from halp_worker.model.loading import load_model
    from halp_worker.settings import ModelSettings

    return load_model(ModelSettings(model=str(folder), device="cpu", **settings))


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def entries(file, **changes):
    return lambda folder: rewrite(folder / file, **changes)


def content(file, text):
    return lambda folder: (folder / file).write_text(text)


def shard(text):
    return lambda folder: shards(folder)[1].write_bytes(text)


def without_weights(file=None):
    def change(folder):
        for path in folder.glob("model*"):
            path.unlink()
        if file:
            (folder / file).write_bytes(b"PK")

    return change


def cut(folder):
    path = shards(folder)[0]
    path.write_bytes(path.read_bytes()[:-100])


def retyped(folder):
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(shards(folder)[0])
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name].to(torch.int8)}, shards(folder)[0])


def index_elsewhere(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.7.mlp.up_proj.weight"] = shards(folder)[0].name
    path.write_text(json.dumps(index))


def two_copies(folder):
    from safetensors.torch import load_file, save_file

    first, second = shards(folder)[:2]
    save_file({**load_file(first), **load_file(second)}, second)


TEMPLATE = "chat_template.json"
QUANTISED = "its weights are quantised .*: use the checkpoint that it was made from"

MISTAKES = {
    "adapter": (content("adapter_config.json", "{}"), "merge the adapter first.*merge_and_unload"),
    "adapter-weights": (content("adapter_model.safetensors", ""), "merge the adapter first"),
    **{
        method: (
            entries("config.json", quantization_config={"quant_method": method}),
            rf"its weights are quantised \({method}\).*use the checkpoint that it was made from",
        )
        for method in ("awq", "gptq", "bitsandbytes", "compressed-tensors", "fp8")
    },
    "quantised-text": (
        entries("config.json", text_config={"quantization_config": {"bits": 4}}),
        QUANTISED,
    ),
    "old-gptq": (content("quantize_config.json", '{"bits": 4}'), QUANTISED),
    "integers": (retyped, QUANTISED),
    "own-code": (entries("config.json", auto_map={"AutoModel": "m.M"}), "Python code of its own"),
    "own-processor": (
        entries("preprocessor_config.json", auto_map={"AutoProcessor": "m.M"}),
        r"preprocessor_config\.json names Python code",
    ),
    "fusion": (entries("config.json", fusion_config={"patch_embeddings": True}), "delete that"),
    "lfs-weights": (shard(LFS.encode()), "Git LFS pointer.*git lfs pull"),
    "lfs-tokenizer": (content("tokenizer.json", LFS), r"tokenizer\.json is a Git LFS pointer"),
    "lfs-config": (content("config.json", LFS), r"config\.json is a Git LFS pointer"),
    "empty": (shard(b""), r"00002-of-00003\.safetensors is empty"),
    "noise": (shard(b"\0" * 100), "no safetensors file, or is truncated"),
    "half-a-header": (shard((900).to_bytes(8, "little") + b'{"a":'), "truncated"),
    "truncated": (cut, r"has \d+ bytes, expected \d+: copy or download it again"),
    "no-shard": (lambda folder: shards(folder)[1].unlink(), "1 of its 3 weight files are missing"),
    "index-names-more": (index_elsewhere, r"1 weights are not where .*index\.json says"),
    "index-damaged": (content("model.safetensors.index.json", "{"), r"index\.json is damaged"),
    "mixed": (two_copies, "files of two checkpoints are mixed"),
    "pickles": (without_weights("pytorch_model.bin"), "pickles .*not read: save it again"),
    "gguf": (without_weights("model-q4.gguf"), "GGUF file .model-q4"),
    "no-weights": (without_weights(), r"has no weights: expected model\.safetensors"),
    "wrong-shape": (entries("config.json", intermediate_size=128), "6 weights are missing or have"),
    "more-weights": (entries("config.json", num_hidden_layers=1), "12 weights have no place"),
    "tied": (entries("config.json", tie_word_embeddings=True), "set tie_word_embeddings to false"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    "config-no-json": (content("config.json", '{"model_type": '), r"config\.json is not JSON"),
    "config-a-list": (content("config.json", "[]"), r"config\.json is not a JSON object"),
    "config-of-words": (entries("config.json", hidden_size="64"), "hidden_size.*expected int"),
    "other-model": (entries("config.json", model_type="qwen2_vl"), "expected a Qwen2.5-VL.*qwen2_"),
    "diffusers": (content("model_index.json", "{}"), "is a diffusers pipeline"),
    "growing-rope": (
        entries("config.json", rope_scaling={"type": "dynamic", "factor": 2.0}),
        "depend on the prompts before it",
    ),
    "rope-of-another-width": (entries("config.json", rope_scaling=None), "cannot run through it"),
    "generation-no-json": (content("generation_config.json", "{"), "generation_config.json is not"),
    "no-template": (lambda folder: (folder / TEMPLATE).unlink(), "there is none: take"),
    "template-raises": (
        entries(TEMPLATE, chat_template="{{ raise_exception('only text') }}"),
        r"fails for an image and a question \(only text\)",
    ),
    "template-of-text": (
        entries(TEMPLATE, chat_template="{{ messages[0].role + messages[0].content }}"),
        "fails for an image and a question",
    ),
    "template-is-broken": (entries(TEMPLATE, chat_template="{% if %}"), "fails for an image"),
    "template-without-image": (entries(TEMPLATE, chat_template="user"), "gives 0 image tokens"),
    "unknown-image-processor": (
        entries("preprocessor_config.json", image_processor_type="FooImageProcessor"),
        "its image processor 'FooImageProcessor' is not known",
    ),
    "other-image-processor": (
        entries("preprocessor_config.json", image_processor_type="CLIPImageProcessor"),
        "CLIPImageProcessor, which does not fit",
    ),
    "unknown-processor": (
        entries("preprocessor_config.json", processor_class="FooProcessor"),
        "takes no images with text",
    ),
    "no-image-processor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        "has no image processor",
    ),
    "no-tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        r"<\|image_pad\|> is \d+, expected \d+",
    ),
    "tokenizer-no-json": (content("tokenizer.json", "{"), "take its processor and tokenizer"),
    "small-vocabulary": (entries("config.json", vocab_size=64), r"has \d+ tokens, the model 64"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_checkpoint_is_one_sentence(tiny, tmp_path, mistake):
    """The sentence names the folder or the model, the file or the entry, and the remedy."""
    change, message = MISTAKES[mistake]
    folder = shutil.copytree(tiny, tmp_path / "copy")
    change(folder)
    with pytest.raises(FatalError) as caught:
        load(folder)
    sentence = str(caught.value)
    assert re.search(message, sentence), sentence
    assert str(folder) in sentence
    assert "\n" not in sentence


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    """A GGUF file is given like this to other programs."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(FatalError, match="is a file: give the folder"):
        load(tmp_path / "model.gguf")


def test_what_needs_no_weights_is_refused_before_they_are_read(tiny, tmp_path, monkeypatch):
    """A 7B model takes minutes to load."""
    from halp_worker.model import loading

    folder = shutil.copytree(tiny, tmp_path / "copy")
    (folder / TEMPLATE).unlink()
    monkeypatch.setattr(loading, "_load_weights", lambda *_: pytest.fail("loaded"))
    with pytest.raises(FatalError, match="chat template"):
        load(folder)


def test_a_template_of_the_tokenizer_is_used(tiny, tmp_path):
    """Older checkpoints have it in `tokenizer_config.json` alone: the prompt is the same."""
    from halp_worker.model.inputs import render, user_turn

    folder = shutil.copytree(tiny, tmp_path / "copy")
    template = json.loads((folder / TEMPLATE).read_text())["chat_template"]
    (folder / TEMPLATE).unlink()
    rewrite(folder / "tokenizer_config.json", chat_template=template)
    turn = user_turn({"type": "image"}, "Is it?")
    assert render(load(folder).processor, turn) == render(load(tiny).processor, turn)


@pytest.mark.parametrize("kind", ["flash_attention_2", "kernels-community/flash-attn", "eager"])
def test_attention_is_ours_whatever_a_checkpoint_says(tiny, tmp_path, kind):
    """The entry would ask for a package, and change numbers where it is installed."""
    from halp_worker.model.attention import DECODER

    folder = shutil.copytree(tiny, tmp_path / "copy")
    rewrite(folder / "config.json", attn_implementation=kind)
    assert load(folder).model.config.get_text_config()._attn_implementation == DECODER


def test_float32_is_float32(tiny):
    """No TF32 in matrix products or convolutions, whatever was set before."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    load(tiny, dtype="float32")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (["<|endoftext|>"], None, ["<|endoftext|>"]),
        (["<|endoftext|>"], "<|im_end|>", ["<|endoftext|>", "<|im_end|>"]),
        (None, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"]),
        (None, None, ["<|endoftext|>"]),
        (["<|im_end|>"], ["<|vision_pad|>"], ["<|im_end|>", "<|vision_pad|>", "<|endoftext|>"]),
    ],
)
def test_stop_tokens_are_all_that_any_file_names(tiny, tmp_path, generation, config, expected):
    """Generation config, config and tokenizer (`<|endoftext|>` here); recorded in the store."""
    from halp_worker.model.layers import layout_of

    folder = shutil.copytree(tiny, tmp_path / "copy")
    ids = load(tiny).processor.tokenizer.convert_tokens_to_ids
    rewrite(
        folder / "generation_config.json",
        eos_token_id=None if generation is None else ids(generation),
    )
    rewrite(folder / "config.json", eos_token_id=None if config is None else ids(config))
    loaded = load(folder)
    assert list(loaded.generation.stop_tokens) == ids(expected)
    stored = layout_of(loaded, (0,), ("query_token",)).fingerprint["generation"]
    assert stored["eos_token_id"] == ids(expected)


def test_the_stop_token_of_the_tokenizer_alone_counts(tiny, tmp_path):
    """Tokenizer `<|im_end|>`, generation config only `<|endoftext|>`: answers must not run on."""
    folder = shutil.copytree(tiny, tmp_path / "copy")
    rewrite(folder / "tokenizer_config.json", eos_token="<|im_end|>")
    loaded = load(folder)
    tokenizer = loaded.processor.tokenizer
    assert tokenizer.eos_token == "<|im_end|>"
    rewrite(folder / "generation_config.json", eos_token_id=tokenizer.pad_token_id)
    rewrite(folder / "config.json", eos_token_id=None)
    stops = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    assert list(load(folder).generation.stop_tokens) == stops


def test_a_penalty_of_the_checkpoint_is_told_once(tiny, tmp_path, caplog):
    """Unless it is applied, there is none, or no answer is generated."""
    folder = shutil.copytree(tiny, tmp_path / "copy")

    def warnings(**settings):
        caplog.clear()
        load(folder, **settings)
        return [one.getMessage() for one in caplog.records if "repetition_penalty" in one.msg]

    (sentence,) = warnings()
    assert "1.05" in sentence
    assert "--repetition-penalty" in sentence
    assert not warnings(repetition_penalty=1.05)
    assert not warnings(no_answer=True)
    rewrite(folder / "generation_config.json", repetition_penalty=None)
    assert not warnings()
