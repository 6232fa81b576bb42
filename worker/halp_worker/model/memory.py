"""`token_budget`: how many tokens of keys and values have room beside the weights."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import torch

from halp_worker.fates import FatalError
from halp_worker.model.parts import decoder_devices, shard_count

CHUNK_TOKENS: Final = 16_384
"""Tokens in one prefill pass: enough to keep any card busy, and what they need meanwhile stays near
2 GB for the 7B model."""

HOST_BYTES: Final = 512 << 20
"""For keys and values where the CPU is the device: other processes need its memory too, and a batch
should end in minutes. Some 8 jobs of the 3B model, more of a small one."""

SHARE: Final = 0.9
"""Of the memory that is free: the allocator's blocks do not fit without gaps."""


def token_budget(model: Any) -> int:
    """Tokens in a batch, each question counted with the longest one's prompt and answer.

    Call once the weights are loaded and nothing else is on the device.
    """
    token_bytes = layer_token_bytes(model)
    budgets = []
    for device, count in Counter(decoder_devices(model)).items():
        room = HOST_BYTES
        if device.type != "cpu":
            room = int(SHARE * free_bytes(device)) - chunk_bytes(model, count)
        budgets.append(room // (token_bytes * count))
    return max(1, min(budgets))


def layer_token_bytes(model: Any) -> int:
    """Of one token's key and value in one layer."""
    text = model.config.get_text_config()
    heads = text.num_key_value_heads // shard_count(model)
    head_size = text.hidden_size // text.num_attention_heads
    return int(2 * heads * head_size * model.dtype.itemsize)


def chunk_bytes(model: Any, layers: int) -> int:
    """An estimate from above of what one prefill pass needs on a device that has so many layers:
    the prefixes' keys and values, and the largest activations of decoder and vision encoder."""
    text, vision = model.config.get_text_config(), model.config.vision_config
    decoder = CHUNK_TOKENS * (8 * text.hidden_size + 3 * text.intermediate_size)
    patches = CHUNK_TOKENS * vision.spatial_merge_size**2
    encoder = patches * (8 * vision.hidden_size + 3 * vision.intermediate_size)
    kept = CHUNK_TOKENS * layers * layer_token_bytes(model)
    return int(kept + max(decoder, encoder) * model.dtype.itemsize)


def free_bytes(device: torch.device) -> int:
    """What a process may still take."""
    match device.type:
        case "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            # What torch holds and does not use is free as well.
            return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        case "mps":
            return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        case other:
            raise FatalError(f"--device {other}: no way to tell how much of its memory is free")
