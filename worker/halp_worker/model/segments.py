"""`Segments`: sequences of any lengths, side by side in one axis; attention stays inside each."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, Literal

import torch
from torch.nn.functional import scaled_dot_product_attention

varlen_attn: Any = None
with suppress(ImportError):  # torch >= 2.10
    from torch.nn.attention.varlen import varlen_attn

_VARLEN_OPTIONS: Final = inspect.signature(varlen_attn).parameters if varlen_attn else {}

PADDED: Final = 1.5
"""In a bucket the longest sequence has at most so many times the tokens of the shortest."""


@dataclass(frozen=True)
class Bucket:
    """n sequences of about equal length, to be laid out as rows that are padded at their ends.

    tokens: their tokens, in the packed axis. places: where these are in the n * length of the rows,
    None if that is all of them. source: what each place of the rows is filled with; padding with a
    token of the same sequence. mask: (n, 1, 1, length) additive, over the padding; None if there is
    none.
    """

    length: int
    tokens: torch.Tensor
    places: torch.Tensor | None
    source: torch.Tensor
    mask: torch.Tensor | None


class Segments:
    """N sequences; sequence i has lengths[i] tokens and follows sequence i-1.

    Index tensors are made once for each device, not once for each layer.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        self.starts = tuple(accumulate(self.lengths, initial=0))
        self.longest = max(self.lengths)
        self._bounds: dict[torch.device, torch.Tensor] = {}
        self._buckets: dict[torch.device, list[Bucket]] = {}

    def bounds(self, device: torch.device) -> torch.Tensor:
        """`starts` as (N + 1,) int32."""
        if device not in self._bounds:
            self._bounds[device] = torch.tensor(self.starts, dtype=torch.int32, device=device)
        return self._bounds[device]

    def buckets(self, like: torch.Tensor) -> list[Bucket]:
        """All sequences, in as few buckets as bounded padding allows. like: device, and the mask's
        dtype."""
        if like.device not in self._buckets:
            made = [self._bucket(some, like) for some in self._of_about_equal_length()]
            self._buckets[like.device] = made
        return self._buckets[like.device]

    def _of_about_equal_length(self) -> Iterator[list[int]]:
        order = sorted(range(len(self.lengths)), key=lambda one: -self.lengths[one])
        bucket: list[int] = []
        for one in order:
            if bucket and self.lengths[one] * PADDED < self.lengths[bucket[0]]:
                yield bucket
                bucket = []
            bucket.append(one)
        yield bucket

    def _bucket(self, some: list[int], like: torch.Tensor) -> Bucket:
        some = sorted(some)
        each = [self.lengths[one] for one in some]
        starts = torch.tensor([self.starts[one] for one in some])[:, None]
        length = max(each)
        at = torch.arange(length)
        is_own = at < torch.tensor(each)[:, None]
        source = torch.where(is_own, starts + at, starts).flatten()
        places, mask = None, None
        if min(each) < length:
            places = torch.arange(is_own.numel())[is_own.flatten()].to(like.device)
            mask = torch.zeros(is_own.shape, dtype=like.dtype).masked_fill_(~is_own, float("-inf"))
            mask = mask[:, None, None].to(like.device)
        return Bucket(
            length, source[is_own.flatten()].to(like.device), places, source.to(like.device), mask
        )


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
    variable-length kernel where torch has one; else one call for each bucket. Only here are rows
    padded, and only for attention: no linear layer sees that.
    """
    if attention_kernel(query.device, query.dtype) == "varlen":
        return _attend_varlen(query, key, value, segments, causal=causal)
    output = torch.empty_like(query)
    for bucket in segments.buckets(query):
        rows = [
            tensor.index_select(0, bucket.source).unflatten(0, (-1, bucket.length)).transpose(1, 2)
            for tensor in (query, key, value)
        ]
        attended = scaled_dot_product_attention(  # (n, heads, length, d)
            rows[0],
            rows[1],
            rows[2],
            # What pads the end of a row is behind all of its tokens: causal attention masks it.
            attn_mask=None if causal else bucket.mask,
            is_causal=causal,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        attended = attended.transpose(1, 2).flatten(0, 1)
        if bucket.places is not None:
            attended = attended.index_select(0, bucket.places)
        output.index_copy_(0, bucket.tokens, attended)
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
