"""`Segments`: sequences of any lengths, side by side in one axis; attention stays inside each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, Final, Literal

import torch
from torch.nn.functional import scaled_dot_product_attention

varlen_attn: Any = None
with suppress(ImportError):  # torch >= 2.10
    from torch.nn.attention.varlen import varlen_attn

_VARLEN_OPTIONS: Final = inspect.signature(varlen_attn).parameters if varlen_attn else {}


class Segments:
    """N sequences; sequence i has lengths[i] tokens and follows sequence i-1.

    Index tensors are made once for each device, not once for each layer.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        self.starts = tuple(accumulate(self.lengths, initial=0))
        self.longest = max(self.lengths)
        self._bounds: dict[torch.device, torch.Tensor] = {}
        self._tokens: dict[torch.device, list[tuple[int, torch.Tensor]]] = {}

    def bounds(self, device: torch.device) -> torch.Tensor:
        """`starts` as (N + 1,) int32."""
        if device not in self._bounds:
            self._bounds[device] = torch.tensor(self.starts, dtype=torch.int32, device=device)
        return self._bounds[device]

    def by_length(self, device: torch.device) -> list[tuple[int, torch.Tensor]]:
        """For each length that occurs: it, and the tokens of its n sequences as (n * length,)."""
        if device not in self._tokens:
            starts: dict[int, list[int]] = {}
            for start, length in zip(self.starts, self.lengths, strict=False):
                starts.setdefault(length, []).append(start)
            self._tokens[device] = [
                (length, (torch.tensor(some)[:, None] + torch.arange(length)).flatten().to(device))
                for length, some in starts.items()
            ]
        return self._tokens[device]


def attention_kernel(device: torch.device, dtype: torch.dtype) -> Literal["varlen", "sdpa"]:
    """Which one `attend` uses there."""
    has_varlen = varlen_attn is not None and device.type == "cuda" and dtype == torch.bfloat16
    return "varlen" if has_varlen else "sdpa"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    *,
    causal: bool,
) -> torch.Tensor:
    """Attention of each sequence to itself: query (S, H, d), key, value (S, Hkv, d) -> (S, H, d).

    Scores are scaled by d ** -0.5, as Qwen2.5-VL's are, vision encoder and decoder. One call of a
    variable-length kernel where torch has one; else one call for each length that occurs.
    """
    if attention_kernel(query.device, query.dtype) == "varlen":
        return _attend_varlen(query, key, value, segments, causal=causal)
    output = torch.empty_like(query)
    for length, tokens in segments.by_length(query.device):
        rows = [
            tensor.index_select(0, tokens).unflatten(0, (-1, length)).transpose(1, 2)
            for tensor in (query, key, value)
        ]
        attended = scaled_dot_product_attention(  # (n, heads, length, d)
            rows[0], rows[1], rows[2], is_causal=causal, enable_gqa=query.shape[1] != key.shape[1]
        )
        output.index_copy_(0, tokens, attended.transpose(1, 2).flatten(0, 1))
    return output


def _attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    *,
    causal: bool,
) -> torch.Tensor:
    options: dict[str, Any] = {}
    if causal:  # is_causal in 2.10, a window that ends at the token itself since
        is_window = "window_size" in _VARLEN_OPTIONS
        options = {"window_size": (-1, 0)} if is_window else {"is_causal": True}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in _VARLEN_OPTIONS:
            options["enable_gqa"] = True
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    bounds, longest = segments.bounds(query.device), segments.longest
    parts = (one.contiguous() for one in (query, key, value))
    return varlen_attn(  # type: ignore[no-any-return]
        *parts, bounds, bounds, longest, longest, **options
    )
