"""Attention of our own passes, registered in transformers' attention interface.

The decoder's attention is whatever the pass that runs says (`passes.py`): transformers hands the
keyword argument `plan` of `language_model(...)` on to it. The vision encoder's takes windows of
equal size together, where transformers' own path calls attention for each window of each layer.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import torch
from transformers import AttentionInterface

from halp_worker.model.segments import Segments, attend

DECODER: Final = "halp_passes"

VISION: Final = "halp_flash_windows"
"""transformers hands all windows over in one call to what has `flash` in its name."""


class Plan(Protocol):
    """What one pass does for attention, layer by layer."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """query (B, T, H, d), key and value (B, T, Hkv, d) of the tokens of this pass
        -> (B, T, H, d)."""


def use_own_attention(model: Any) -> None:
    """From now on the decoder runs in passes (`generate` does not work any more), and the vision
    encoder has fewer calls of attention for the same result."""
    AttentionInterface.register(DECODER, _decoder_attention)
    AttentionInterface.register(VISION, _VisionAttention())
    model.set_attn_implementation({"text_config": DECODER, "vision_config": VISION})


def _decoder_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: Plan,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    parts = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return plan.attend(module.layer_idx, *parts), None


class _VisionAttention:
    """Bounds of windows -> `Segments`, made once a forward pass and not once a layer."""

    def __init__(self) -> None:
        self._recent: list[tuple[torch.Tensor, Segments]] = []

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        cu_seq_lens_q: torch.Tensor,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        segments = self._segments(cu_seq_lens_q)
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return attend(query, key, value, segments, causal=False)[None], None

    def _segments(self, bounds: torch.Tensor) -> Segments:
        for known, segments in self._recent:
            if known is bounds:
                return segments
        segments = Segments([length for length in bounds.diff().tolist() if length])
        # Two are in use at a time: windows, and whole images in the layers that see all.
        self._recent = [*self._recent[-1:], (bounds, segments)]
        return segments
