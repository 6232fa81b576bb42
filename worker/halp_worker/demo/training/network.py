"""The network that is trained: the real architecture at the demo's sizes, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration

from halp_worker.demo.checkpoint_files import (
    SmallShape,
    make_tokenizer,
    write_config,
    write_processor,
    write_weights,
)
from halp_worker.demo.training.sight import prepare_sight
from halp_worker.demo.world.questions import ANSWERS, DIRECTIONS
from halp_worker.demo.world.scene import COLOURS, SHAPE_KINDS

SIZES: Final = SmallShape(
    layers=8,
    hidden_size=128,
    intermediate_size=256,
    heads=4,
    kv_heads=2,
    vision_depth=4,
    vision_hidden_size=96,
    vision_heads=4,
    context_tokens=512,
    max_image_tokens=64,
    tie_word_embeddings=True,
    # One window holds the largest picture: a small tower has no depth to spare for partial views.
    window_px=168,
    initializer_range=0.05,
    # Sequences are short: with the published 1e6 most rotations would never turn.
    rope_theta=100.0,
)

_MERGES: Final = 224
"""Enough for every word of every question to be one token."""


def words() -> tuple[str, ...]:
    """All that is ever said: the tokenizer is learned from it."""
    kinds = [*SHAPE_KINDS, *(f"{kind}s" for kind in SHAPE_KINDS), "crosses"]
    frame = "You are a helpful assistant. system user assistant Is there a an What colour is the"
    frame += " shape thing How many shapes are Where relative to? yes no"
    return (*frame.split(), *kinds, *COLOURS, *DIRECTIONS, *ANSWERS["count"])


def write_files(folder: Path) -> None:
    """Everything of the checkpoint but its weights, into `folder` (created)."""
    folder.mkdir(parents=True, exist_ok=True)
    said = list(words())
    # Each word with a blank before it and without, often enough that all of it becomes one token.
    corpus = [f"{word} {word}" for word in said for _ in range(4)]
    tokenizer = make_tokenizer(corpus, _MERGES)
    write_config(folder, SIZES, tokenizer)
    write_processor(folder, tokenizer, SIZES)


def build_network(folder: Path, seed: int) -> tuple[Any, Any]:
    """Model (float32, fresh weights) and processor for the files that `write_files` left."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(folder))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    prepare_sight(model.model.visual)
    return model.float().train(), AutoProcessor.from_pretrained(folder)


def save_network(folder: Path, model: Any) -> None:
    """The weights in bfloat16, beside the files; loads with plain `from_pretrained`."""
    write_weights(folder, model.to(torch.bfloat16))


class SingleFrameEmbedding(nn.Module):
    """Patch embedding for still pictures: both frames are one, so their weights are added first.

    Equal to the library's for pictures, in half the work and without a three-dimensional
    convolution. It shares the weights: train through it, save the model around it.
    """

    def __init__(self, library: Any) -> None:
        super().__init__()
        self.proj = library.proj

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """patches: [N, channels * 2 frames * 14 * 14] as the processor has them; [N, hidden]."""
        weights = self.proj.weight
        first = patches.view(len(patches), weights.shape[1], 2, -1)[:, :, 0]
        return nn.functional.linear(first.flatten(1), weights.sum(2).flatten(1))
