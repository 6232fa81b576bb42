"""The three kinds of passes through the decoder, and the keys and values that they share.

`PrefixPass`: prefixes side by side; keeps their keys and values.
`QuestionPass`: what follows the prefixes, side by side; fills each question's row.
`DecodePass`: one token of every row.

H heads of queries, Hkv heads of keys and values, d numbers a head. Rows end in one column, so that
decoding writes all rows' tokens into the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from halp_worker.model.segments import Segments, attend


class KeyValueRows:
    """Keys and values of B questions, of each layer (B, width, Hkv, d).

    A question's prompt ends before column `prompt_width`; zeros are in front of it, and its answer
    follows. A layer's buffers are made at its first use, where its keys are.
    """

    def __init__(self, prompt_tokens: Sequence[int], new_tokens: int) -> None:
        self.prompt_tokens = tuple(prompt_tokens)
        self.prompt_width = max(self.prompt_tokens)
        self.width = self.prompt_width + new_tokens
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def layer(self, index: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if index not in self._layers:
            shape = (len(self), self.width, *like.shape[-2:])
            self._layers[index] = like.new_zeros(shape), like.new_zeros(shape)
        return self._layers[index]

    def mask(self, like: torch.Tensor) -> torch.Tensor | None:
        """(B, 1, 1, width), minus infinity before a row's first token; None if there is no such."""
        if min(self.prompt_tokens) == self.prompt_width:
            return None
        first = self.prompt_width - torch.tensor(self.prompt_tokens)
        return _additive(torch.arange(self.width) >= first[:, None], like)[:, None, None]

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows stay, in this order."""
        self.prompt_tokens = tuple(self.prompt_tokens[row] for row in rows)
        for index, (keys, values) in self._layers.items():
            chosen = torch.tensor(rows, device=keys.device)
            self._layers[index] = keys.index_select(0, chosen), values.index_select(0, chosen)


class PrefixPass:
    """Plan of the pass over G prefixes (1, sum of lengths, ...)."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.segments = Segments(lengths)
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        self.kept[layer] = key[0], value[0]
        return attend(query[0], key[0], value[0], self.segments, causal=True)[None]


class QuestionPass:
    """Plan of the pass over n questions (1, sum of lengths, ...), the rows from `first` on.

    lengths: of each question's own tokens. prefix_of: which of the prefixes each continues.
    """

    def __init__(
        self,
        prefix: PrefixPass,
        prefix_of: Sequence[int],
        lengths: Sequence[int],
        rows: KeyValueRows,
        first: int,
    ) -> None:
        self._prefix, self._rows = prefix, rows
        self._first, self._count = first, len(lengths)
        prefixes = prefix.segments
        end = rows.prompt_width
        self._longest = longest = max(lengths)
        prompts = [
            own + prefixes.lengths[group] for own, group in zip(lengths, prefix_of, strict=True)
        ]
        self._start = end - max(prompts)
        starts = [row * rows.width + end for row in range(first, first + self._count)]
        spans = list(zip(starts, lengths, prompts, strict=True))
        # Where keys come from and go to, as tokens of the pass and of rows that are laid in a line.
        self._from_prefix = _ranges(
            (prefixes.starts[group], prefixes.starts[group + 1]) for group in prefix_of
        )
        self._prefix_to = _ranges((stop - prompt, stop - own) for stop, own, prompt in spans)
        self._own_to = _ranges((stop - own, stop) for stop, own, _ in spans)
        # Queries of a pass, laid out as n rows that end together.
        self._padded = _ranges(
            (row * longest + longest - own, (row + 1) * longest) for row, own in enumerate(lengths)
        )
        column = torch.arange(self._start, end)
        last = torch.arange(end - longest, end)  # the column of each query
        begin = end - torch.tensor(prompts)
        begun = column >= begin[:, None, None]
        # What pads the queries sees the first token there is: no row of a softmax is empty.
        self._visible = (begun & (column <= last[:, None])) | (column == begin[:, None, None])
        self._on: dict[torch.device, list[torch.Tensor]] = {}

    def _tensors(self, query: torch.Tensor, groups: int) -> list[torch.Tensor]:
        if query.device not in self._on:
            indices = (self._from_prefix, self._prefix_to, self._own_to, self._padded)
            mask = _additive(self._visible, query).repeat(1, groups, 1)[:, None]
            self._on[query.device] = [*(one.to(query.device) for one in indices), mask]
        return self._on[query.device]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        groups = query.shape[2] // key.shape[2]
        from_prefix, prefix_to, own_to, padded, mask = self._tensors(query, groups)
        filled = []
        buffers = self._rows.layer(layer, key)
        for buffer, kept, own in zip(buffers, self._prefix.kept[layer], (key, value), strict=True):
            line = buffer.flatten(0, 1)
            line.index_copy_(0, prefix_to, kept.index_select(0, from_prefix))
            line.index_copy_(0, own_to, own[0])
            filled.append(
                buffer[
                    self._first : self._first + self._count, self._start : self._rows.prompt_width
                ]
            )
        rows = query.new_zeros(self._count * self._longest, *query.shape[2:])
        rows.index_copy_(0, padded, query[0])
        keys, values = filled
        output = _attend_grouped(rows.unflatten(0, (self._count, -1)), keys, values, mask)
        return output.flatten(0, 1).index_select(0, padded)[None]


class DecodePass:
    """Plan of a step: the tokens (B, 1, ...) go into `column`, and see all that is before."""

    def __init__(self, rows: KeyValueRows, column: int) -> None:
        self._rows = rows
        self._masks: dict[torch.device, torch.Tensor | None] = {}
        self.column = column

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        keys, values = self._rows.layer(layer, key)
        keys[:, self.column] = key[:, 0]
        values[:, self.column] = value[:, 0]
        if query.device not in self._masks:
            self._masks[query.device] = self._rows.mask(query)
        mask, end = self._masks[query.device], self.column + 1
        mask = None if mask is None else mask[..., :end]
        return _attend_grouped(query, keys[:, :end], values[:, :end], mask)


class StaticDecodePass:
    """As `DecodePass`, with every tensor of the same shape and place in each step, so that the step
    can be captured once as a graph and replayed. column: (1,) int64 on the device."""

    def __init__(self, rows: KeyValueRows, column: torch.Tensor, like: torch.Tensor) -> None:
        self._rows = rows
        self._column = column
        self._columns = torch.arange(rows.width, device=column.device)
        never = like.new_zeros(len(rows), 1, 1, rows.width)
        mask = rows.mask(like)
        self._unfilled = never if mask is None else mask
        self._mask = torch.empty_like(self._unfilled)

    def begin(self) -> None:
        """Before each step: what lies after the column is not there yet."""
        later = torch.where(self._columns > self._column, float("-inf"), 0.0)
        torch.add(self._unfilled, later.to(self._mask.dtype), out=self._mask)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        keys, values = self._rows.layer(layer, key)
        keys.index_copy_(1, self._column, key)
        values.index_copy_(1, self._column, value)
        return _attend_grouped(query, keys, values, self._mask)


def _attend_grouped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """query (B, T, H, d), key and value (B, C, Hkv, d) -> (B, T, H, d).

    The queries of the heads that share keys are laid out as more tokens, so that keys and values
    are read where they are and never repeated. mask: additive, (B, 1, tokens so laid out or 1, C).
    """
    tokens, heads = query.shape[1], key.shape[2]
    query = query.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4)  # (B, Hkv, group, T, d)
    groups = query.shape[2]
    if mask is not None:
        mask = mask.expand(-1, -1, groups * tokens, -1)
    output = scaled_dot_product_attention(
        query.flatten(2, 3), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
    )
    rows: torch.Tensor = output.unflatten(2, (groups, tokens))
    return rows.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _additive(visible: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Zero where visible, minus infinity elsewhere: made once, where a bool mask is made into this
    by every call of attention."""
    mask = torch.zeros(visible.shape, dtype=like.dtype)
    return mask.masked_fill_(~visible, float("-inf")).to(like.device)


def _ranges(spans: Iterable[tuple[int, int]]) -> torch.Tensor:
    """All integers of the (start, stop) spans, one after the other."""
    return torch.cat([torch.arange(start, stop) for start, stop in spans])
