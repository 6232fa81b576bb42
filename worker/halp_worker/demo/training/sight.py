"""First weights of the vision tower: what a small one would take long to find by itself.

Patches are first read by their lowest spatial frequencies, and attention first looks at the patches
next door. Both are a start only; every weight is free to move. From plain random weights the tower
tells colours early and shapes very late.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch

_NEXT_DOOR: Final = ((0, 1), (0, -1), (1, 0), (-1, 0))
"""Rows up and columns left of itself that a patch first looks at, head by head."""

_PULLS: Final = (3.0, 5.0)
"""How much an attention score falls with distance, for each of the two fastest rotations; the
fastest alone would come round again six patches away."""

_LEVEL: Final = 0.1
"""Of a patch's mean, against its other frequencies: the background is bright everywhere."""

_GAIN: Final = 0.25
"""Makes an edge about one unit."""

_OPPONENTS: Final = ((1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (0.5, 0.5, -1.0))
"""Brightness, red against green, yellow against blue."""


def prepare_sight(visual: Any) -> None:
    """Sets patch embedding and attention biases of a fresh vision tower, in place."""
    with torch.no_grad():
        weights = visual.patch_embed.proj.weight
        one_frame = _frequencies(weights.shape[0] // len(_OPPONENTS), weights.shape[-1])
        weights.copy_(one_frame[:, :, None].expand_as(weights) / weights.shape[2])
        for block in visual.blocks:
            bias = _looking_next_door(block.attn, visual.rotary_pos_emb.inv_freq)
            block.attn.qkv.bias.copy_(bias.flatten())


def _frequencies(number: int, side: int) -> torch.Tensor:
    """Cosine waves [3 * number, 3 channels, side, side], from the lowest frequency up."""
    places = torch.arange(side) + 0.5
    waves = torch.stack([torch.cos(math.pi * turns * places / side) for turns in range(side)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    opponents = torch.tensor(_OPPONENTS)
    opponents = opponents / opponents.norm(dim=1, keepdim=True)
    pairs = sorted(
        ((down, across) for down in range(side) for across in range(side)),
        key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair),
    )
    rows = []
    for down, across in pairs[:number]:
        gain = _GAIN * (_LEVEL if down == across == 0 else 1)
        wave = gain * torch.outer(waves[down], waves[across])
        rows += [opponent[:, None, None] * wave for opponent in opponents]
    return torch.stack(rows)


def _looking_next_door(attention: Any, rotations: torch.Tensor) -> torch.Tensor:
    """Biases [3, heads, head size] for query, key and value.

    A query's bias is the key's, turned back by the step: their product is largest where the key's
    patch lies that far up and left.
    The first half of a head holds rotations for rows, then for columns; the second half the other
    components of the same.
    """
    half = attention.head_dim // 2
    bias = torch.zeros(3, attention.num_heads, attention.head_dim)
    for head in range(attention.num_heads):
        step = _NEXT_DOOR[head % len(_NEXT_DOOR)]
        for axis in (0, 1):
            for which, pull in enumerate(_PULLS):
                at = axis * (half // 2) + which
                length = math.sqrt(pull * math.sqrt(attention.head_dim))
                turn = float(rotations[which]) * step[axis]
                bias[0, head, at] = length * math.cos(turn)
                bias[0, head, at + half] = -length * math.sin(turn)
                bias[1, head, at] = length
    return bias
