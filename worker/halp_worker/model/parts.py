"""Where a Qwen2.5-VL keeps its parts; the names are transformers' own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from halp_worker.model.attention import Plan


def vision_encoder(model: Any) -> Any:
    """(patches, P) and grids in; `last_hidden_state` (patches, V) before the merger in window
    order, `pooler_output` (tokens, D) in raster order out."""
    return model.model.visual


def language_model(model: Any) -> Any:
    """The decoder: embeddings in, states after the final norm out."""
    return model.model.language_model


def decoder_layers(model: Any) -> Any:
    """The decoder layers of a Qwen2.5-VL, in order."""
    return language_model(model).layers


def decoder_devices(model: Any) -> list[torch.device]:
    """Where each decoder layer is."""
    return [next(layer.parameters()).device for layer in decoder_layers(model)]


def rope_index(model: Any) -> Callable[..., torch.Tensor]:
    """The model's own M-RoPE positions of one prompt: see `inputs.RopeIndex`. Runs on the host."""
    index = model.model.get_rope_index
    known = inspect.signature(index).parameters  # no mm_token_type_ids before 5.3

    def of_prompt(**inputs: torch.Tensor) -> torch.Tensor:
        positions, _ = index(**{name: one for name, one in inputs.items() if name in known})
        return positions[:, 0]  # type: ignore[no-any-return]

    return of_prompt


def run_decoder(
    model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor, plan: Plan
) -> torch.Tensor:
    """One pass: embeddings (B, T, D) at position ids (3, B, T) -> states after the norm (B, T, D).

    The plan is the pass's attention, and keeps its keys and values: there is no mask and no cache.
    """
    output = language_model(model)(
        inputs_embeds=embeddings,
        position_ids=position_ids.to(embeddings.device, non_blocking=True),
        attention_mask={"full_attention": None},
        use_cache=False,
        plan=plan,
    )
    return output.last_hidden_state  # type: ignore[no-any-return]


def next_logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    """States after the norm (B, D) -> (B, V), in the model's dtype."""
    return model.lm_head(states)  # type: ignore[no-any-return]


def shard_count(model: Any) -> int:
    """How many processes have a slice of every layer (tensor parallelism); 1, all is here."""
    return int(getattr(model, "tp_size", None) or 1)
