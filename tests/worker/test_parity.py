"""A model that does more than our passes know is refused at load, and the place is named."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as library

from halp_worker.demo import SHAPES
from halp_worker.fates import FatalError

pytestmark = pytest.mark.slow


def test_weights_that_are_no_numbers_are_said_to_be_so(tmp_path):
    """It is the files that are damaged, and not our passes."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(SHAPES, tmp_path / "model")
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if name.endswith("layers.1.mlp.down_proj.weight"):
                tensors[name].fill_(torch.nan)
        save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(FatalError, match="own states are not finite, first after layer 1: its"):
        load(folder)


def load(folder, dtype="float32"):
    from halp_worker.model.loading import load_model
    from halp_worker.settings import ModelSettings

    return load_model(ModelSettings(model=str(folder), device="cpu", dtype=dtype))


def deepstack(monkeypatch):
    """Image features are added once more after layer 1, by the model that calls the decoder."""
    forward, layer = library.Qwen2_5_VLModel.forward, library.Qwen2_5_VLDecoderLayer.forward
    inside = []

    def model_forward(self, *inputs, **named):
        inside.append(named["input_ids"] == self.config.image_token_id)
        try:
            return forward(self, *inputs, **named)
        finally:
            inside.pop()

    def layer_forward(self, hidden_states, *inputs, **named):
        states = layer(self, hidden_states, *inputs, **named)
        if inside and self.self_attn.layer_idx == 1:
            states = states + inside[-1][..., None] * states.roll(1, dims=-1)
        return states

    monkeypatch.setattr(library.Qwen2_5_VLModel, "forward", model_forward)
    monkeypatch.setattr(library.Qwen2_5_VLDecoderLayer, "forward", layer_forward)


def between_layers(monkeypatch):
    """The decoder adds to the stream between layers 1 and 2, where no hook of a layer sees it."""
    forward = library.Qwen2_5_VLDecoderLayer.forward

    def layer_forward(self, hidden_states, *inputs, **named):
        if self.self_attn.layer_idx == 2 and named.get("plan") is None:
            hidden_states = hidden_states * 1.3
        return forward(self, hidden_states, *inputs, **named)

    monkeypatch.setattr(library.Qwen2_5_VLDecoderLayer, "forward", layer_forward)


def scaled_attention(monkeypatch):
    """Scores of another scale, which the library hands to its attention and ours does not read."""
    begin = library.Qwen2_5_VLAttention.__init__

    def init(self, *inputs, **named):
        begin(self, *inputs, **named)
        if self.layer_idx == 3:
            self.scaling *= 4

    monkeypatch.setattr(library.Qwen2_5_VLAttention, "__init__", init)


def scaled_vision(monkeypatch):
    """The same in the vision encoder."""
    begin = library.Qwen2_5_VLVisionAttention.__init__

    def init(self, *inputs, **named):
        begin(self, *inputs, **named)
        self.scaling *= 4

    monkeypatch.setattr(library.Qwen2_5_VLVisionAttention, "__init__", init)


def other_features(monkeypatch):
    """What the encoder gave is changed on its way to the decoder."""
    features = library.Qwen2_5_VLModel.get_image_features

    def changed(self, *inputs, **named):
        output = features(self, *inputs, **named)
        output.pooler_output = tuple(2 * one for one in output.pooler_output)
        return output

    monkeypatch.setattr(library.Qwen2_5_VLModel, "get_image_features", changed)


def capped_logits(monkeypatch):
    """The first token is chosen from other logits than the output layer's."""
    forward = library.Qwen2_5_VLForConditionalGeneration.forward

    def capped(self, *inputs, **named):
        output = forward(self, *inputs, **named)
        output.logits = 0.1 * (output.logits * 10).tanh()
        return output

    monkeypatch.setattr(library.Qwen2_5_VLForConditionalGeneration, "forward", capped)


ADDITIONS = {
    deepstack: "after layer 1:",
    # What goes into a layer is the stream after the one before: layer 2 gets what it should, and
    # then adds to it by itself.
    between_layers: "after layer 2:",
    scaled_attention: "after layer 3:",
    scaled_vision: "in the vision encoder:",
    other_features: "after layer 0:",
    capped_logits: "in the logits of the next token:",
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("addition", ADDITIONS, ids=lambda one: one.__name__)
def test_a_model_with_additions_is_refused_by_the_layer(monkeypatch, addition, dtype):
    """Before any state of it is stored; without them it loads. A trained model, whose attention
    does something: in a random one it is little more than a mean."""
    addition(monkeypatch)
    with pytest.raises(FatalError) as caught:
        load(SHAPES, dtype)
    assert f"first {ADDITIONS[addition]}" in str(caught.value)
    monkeypatch.undo()
    load(SHAPES, dtype)


def test_a_forward_that_does_not_run_is_one_sentence(tiny, monkeypatch):
    """A version of the library that wants other inputs."""

    def forward(self, *inputs, **named):
        raise TypeError("missing 1 required argument: 'image_sizes'")

    monkeypatch.setattr(library.Qwen2_5_VLModel, "forward", forward)
    with pytest.raises(FatalError, match=r"cannot run through it \(TypeError: missing 1"):
        load(tiny)


def test_the_check_leaves_no_trace(tiny):
    """No hook, and no position of its prompt in the model."""
    model = load(tiny).model
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.model.rope_deltas is None
    assert not torch.is_inference(next(model.parameters()))
