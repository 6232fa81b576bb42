"""`prefill`: a chunk's images, prefixes and questions through the model; its states captured.

Each image and each prefix once, each question's own tokens once, no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from halp_worker.model.capture import PassCapture
from halp_worker.model.inputs import Sample
from halp_worker.model.parts import run_decoder
from halp_worker.model.passes import KeyValueRows, PrefixPass, QuestionPass
from halp_worker.model.plan import Chunk
from halp_worker.model.vision import encode_images


@dataclass(frozen=True)
class Prefilled:
    """A chunk's n questions, on the device, in the order of the chunk's rows.

    tokens: (n, P, L, D), the residual stream.
    vision_only, vision_encoder: (n, D) and (n, V) float32.
    last_states: (n, D) of the last prompt token, after the final norm: the first answer token's.
    """

    tokens: torch.Tensor
    vision_only: torch.Tensor
    vision_encoder: torch.Tensor
    last_states: torch.Tensor


@dataclass(frozen=True)
class CapturedStates:
    """States of B samples on the host, float32 (bfloat16 values are exact in it).

    tokens: (B, P, L, D), residual stream after the layer, before the final norm.
    vision_only: (B, D), mean over the image's merged tokens.
    vision_encoder: (B, V), mean over the image's patches before the merger.
    scores: name -> (B,).
    """

    tokens: npt.NDArray[np.float32]
    vision_only: npt.NDArray[np.float32]
    vision_encoder: npt.NDArray[np.float32]
    scores: Mapping[str, npt.NDArray[np.float32]]

    def take(self, rows: npt.NDArray[np.int64]) -> Self:
        return type(self)(
            self.tokens[rows],
            self.vision_only[rows],
            self.vision_encoder[rows],
            {name: values[rows] for name, values in self.scores.items()},
        )


def to_host(parts: Sequence[Prefilled], scores: Mapping[str, torch.Tensor]) -> CapturedStates:
    """The states of all chunks, and the (B,) scores of their rows, in ONE copy to the host."""
    device = parts[0].vision_only.device
    states = ("tokens", "vision_only", "vision_encoder")
    tensors = [
        torch.cat([getattr(part, one).to(device, torch.float32) for part in parts])
        for one in states
    ]
    tensors += [one.to(device, torch.float32) for one in scores.values()]
    flat = torch.cat([tensor.flatten() for tensor in tensors]).cpu().numpy()
    splits = np.cumsum([tensor.numel() for tensor in tensors])[:-1]
    tokens, vision_only, vision_encoder, *others = (
        array.reshape(tensor.shape)
        for array, tensor in zip(np.split(flat, splits), tensors, strict=True)
    )
    return CapturedStates(
        tokens, vision_only, vision_encoder, dict(zip(scores, others, strict=True))
    )


def prefill(
    model: Any,
    samples: Sequence[Sample],
    chunk: Chunk,
    layers: Sequence[int],
    rows: KeyValueRows,
    first: int,
) -> Prefilled:
    """Fills the chunk's rows of `rows`, from row `first` on.

    Raises FatalError if a hook does not fire as it should.
    """
    asked = [samples[row] for row in chunk.rows]
    heads = [samples[group.rows[0]] for group in chunk.groups]
    prefix_of = [index for index, group in enumerate(chunk.groups) for _ in group.rows]
    names = [sample.job.question_id for sample in asked]
    prefixes = _pack([(head, 0, head.prefix_tokens) for head in heads])
    questions = _pack([(one, one.prefix_tokens, one.prompt_tokens) for one in asked])
    wanted = _wanted(asked, prefix_of, prefixes, questions)

    images = encode_images(model, [head.image for head in heads])
    embeddings = _embed(model, prefixes.input_ids)
    of_image = (prefixes.input_ids == model.config.image_token_id).nonzero()[:, 0]
    embeddings.index_copy_(0, of_image.to(embeddings.device), images.tokens.to(embeddings))
    prefix_pass = PrefixPass(prefixes.lengths)
    with PassCapture(
        model, layers, slots=wanted.in_prefixes, tokens=len(embeddings), names=names
    ) as of_prefixes:
        run_decoder(model, embeddings[None], prefixes.position_ids[:, None], prefix_pass)

    embeddings = _embed(model, questions.input_ids)
    question_pass = QuestionPass(prefix_pass, prefix_of, questions.lengths, rows, first)
    with PassCapture(
        model, layers, slots=wanted.in_questions, tokens=len(embeddings), names=names
    ) as of_questions:
        last = run_decoder(model, embeddings[None], questions.position_ids[:, None], question_pass)

    captured = torch.cat([of_prefixes.states(), of_questions.states()])
    found = captured.index_select(0, torch.tensor(wanted.index, device=captured.device))
    group = torch.tensor(prefix_of, device=images.tokens.device)
    ends = torch.tensor(questions.starts[1:], device=last.device) - 1
    return Prefilled(
        tokens=found.unflatten(0, (len(asked), -1)),
        vision_only=images.vision_only[group],
        vision_encoder=images.vision_encoder[group],
        last_states=last[0].index_select(0, ends),
    )


@dataclass(frozen=True)
class _Packed:
    """Pieces of prompts side by side: input_ids (S,), position_ids (3, S), on the host."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: tuple[int, ...]
    starts: tuple[int, ...]


def _pack(pieces: Sequence[tuple[Sample, int, int]]) -> _Packed:
    lengths = tuple(stop - start for _, start, stop in pieces)
    return _Packed(
        torch.cat([sample.input_ids[start:stop] for sample, start, stop in pieces]),
        torch.cat([sample.position_ids[:, start:stop] for sample, start, stop in pieces], dim=1),
        lengths,
        tuple(accumulate(lengths, initial=0)),
    )


@dataclass(frozen=True)
class _Wanted:
    """Slots of the two passes whose states are wanted; index: where each question's are in both
    passes' slots, one after the other."""

    in_prefixes: list[int]
    in_questions: list[int]
    index: list[int]


def _wanted(
    asked: Sequence[Sample], prefix_of: Sequence[int], prefixes: _Packed, questions: _Packed
) -> _Wanted:
    in_prefixes: list[int] = []
    in_questions: list[int] = []
    places: list[tuple[bool, int]] = []
    for row, sample in enumerate(asked):
        for position in sample.positions:
            after_image = position - sample.prefix_tokens
            if after_image < 0:
                places.append((False, len(in_prefixes)))
                in_prefixes.append(prefixes.starts[prefix_of[row]] + position)
            else:
                places.append((True, len(in_questions)))
                in_questions.append(questions.starts[row] + after_image)
    index = [at + len(in_prefixes) * in_question for in_question, at in places]
    return _Wanted(in_prefixes, in_questions, index)


def _embed(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """(S,) on the host -> (S, D) on the device."""
    table = model.get_input_embeddings()
    return table(input_ids.to(table.weight.device, non_blocking=True))  # type: ignore[no-any-return]
