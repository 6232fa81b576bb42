"""`plan_chunks`: samples -> chunks of images, prefixes and questions. Indices only, on the host.

A prompt is a prefix, up to and including the last image token, and the question after it. Attention
is causal, so the prefix cannot see the question: what is computed of it serves every question whose
prompt begins the same on the same image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from halp_worker.model.inputs import Sample


@dataclass(frozen=True)
class Group:
    """Questions that share a prefix. rows: their samples, by index in the batch."""

    rows: tuple[int, ...]
    prefix_tokens: int
    tokens: int  # the prefix once, and each question's own


@dataclass(frozen=True)
class Chunk:
    """Groups that are prefilled together."""

    groups: tuple[Group, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(row for group in self.groups for row in group.rows)


def plan_chunks(samples: Sequence[Sample], chunk_tokens: int) -> list[Chunk]:
    """Every sample once. A chunk has at most `chunk_tokens` tokens, or a single group.

    Groups of equal prefix length are neighbours: their attention is one batched call.
    """
    shared: dict[tuple[str, bytes], list[int]] = {}
    for row, sample in enumerate(samples):
        prefix = sample.input_ids[: sample.prefix_tokens].numpy().tobytes()
        shared.setdefault((sample.image.sha256, prefix), []).append(row)
    groups = [_group(samples, rows) for rows in shared.values()]
    groups.sort(key=lambda group: group.prefix_tokens)
    return [Chunk(tuple(some)) for some in _pieces(groups, chunk_tokens)]


def _group(samples: Sequence[Sample], rows: list[int]) -> Group:
    prefix = samples[rows[0]].prefix_tokens
    own = sum(samples[row].prompt_tokens - prefix for row in rows)
    return Group(tuple(rows), prefix, prefix + own)


def _pieces(groups: Iterable[Group], chunk_tokens: int) -> Iterable[list[Group]]:
    piece: list[Group] = []
    tokens = 0
    for group in groups:
        if piece and tokens + group.tokens > chunk_tokens:
            yield piece
            piece, tokens = [], 0
        piece.append(group)
        tokens += group.tokens
    if piece:
        yield piece
