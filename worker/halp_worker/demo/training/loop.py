"""The training itself: see first, then answer, from easy pictures to hard ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from halp_worker.demo.training.guides import Guides
from halp_worker.demo.training.network import SingleFrameEmbedding, build_network
from halp_worker.demo.training.optimizer import Optimizer
from halp_worker.demo.training.packing import Batch, Packer, pose
from halp_worker.demo.world.questions import QUESTION_KINDS

_EASIEST: Final = 0.15
"""Difficulty that training begins with; the limit rises to 1 over the first third of the steps."""

TRAINING: Final = 1
"""First part of every seed: the held-out sets have another there, so no scene is in both."""

_SEEN: Final = 0.4
"""Difficulty that the vision tower alone ends with."""

_RISING_SHARE: Final = 1 / 3

_CELLS_WEIGHT: Final = 0.5
"""Of what image tokens show, once questions are asked: seeing goes on being taught."""

_REPORT_STEPS: Final = 25

Report = Callable[[str], None]


@dataclass(frozen=True)
class Schedule:
    """seeing_steps: of the vision tower alone. steps: with questions. pictures: B of a batch."""

    seeing_steps: int = 600
    steps: int = 1600
    pictures: int = 16
    seed: int = 0


def train(folder: Path, schedule: Schedule, report: Report) -> Any:
    """Trains a network for the files in `folder`; returns it, float32, ready to be saved.

    Same schedule, same machine, same library: same weights.
    """
    model, processor = build_network(folder, schedule.seed)
    packer = Packer(processor, model)
    guides = Guides(model.config.text_config.hidden_size, processor.tokenizer)
    library_embedding = model.model.visual.patch_embed
    model.model.visual.patch_embed = SingleFrameEmbedding(library_embedding)
    _see(model, guides, packer, schedule, report)
    _answer(model, guides, packer, schedule, report)
    model.model.visual.patch_embed = library_embedding
    return model.eval()


def _see(model: Any, guides: Guides, packer: Packer, schedule: Schedule, report: Report) -> None:
    optimizer = Optimizer(model, guides, schedule.seeing_steps)
    for step in range(schedule.seeing_steps):
        limit = _EASIEST + (_SEEN - _EASIEST) * step / schedule.seeing_steps
        batch = _batch(packer, schedule, 0, step, limit)
        loss = guides.on_cells(image_tokens(model, batch), _embeddings(model), batch)
        optimizer.step(loss)
        if step % _REPORT_STEPS == 0:
            report(f"seeing {step}: loss {loss.item():.3f}")


def _answer(model: Any, guides: Guides, packer: Packer, schedule: Schedule, report: Report) -> None:
    optimizer = Optimizer(model, guides, schedule.steps)
    right = torch.zeros(len(QUESTION_KINDS))
    asked = torch.zeros(len(QUESTION_KINDS))
    for step in range(schedule.steps):
        rising = min(1.0, step / (_RISING_SHARE * schedule.steps))
        limit = _EASIEST + (1 - _EASIEST) * rising
        batch = _batch(packer, schedule, 1, step, limit)
        seen = image_tokens(model, batch)
        states = residual_stream(model, batch, seen)
        scores = answer_scores(model, states[-1], batch)
        spoken = cross_entropy(scores.flatten(0, 1), batch.answers.flatten())
        cells = guides.on_cells(seen, _embeddings(model), batch)
        words = guides.on_words(states, batch)
        optimizer.step(spoken + _CELLS_WEIGHT * cells + words)
        hits = (scores[:, 0].argmax(-1) == batch.answers[:, 0]).float()
        right.index_add_(0, batch.kinds, hits)
        asked.index_add_(0, batch.kinds, torch.ones_like(hits))
        if (step + 1) % _REPORT_STEPS == 0:
            shares = " ".join(
                f"{kind} {share:.2f}"
                for kind, share in zip(QUESTION_KINDS, (right / asked).tolist(), strict=True)
            )
            losses = f"answer {spoken.item():.3f} cells {cells.item():.3f} words {words.item():.3f}"
            report(f"answering {step + 1}: {losses} | right: {shares}")
            right.zero_()
            asked.zero_()


def image_tokens(model: Any, batch: Batch) -> torch.Tensor:
    """What the vision tower makes of the pictures: [B * N, hidden], in reading order."""
    seen: torch.Tensor = model.model.visual(
        batch.pixel_values, grid_thw=batch.grid, return_dict=True
    ).pooler_output
    return seen


def residual_stream(model: Any, batch: Batch, seen: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """States [B, T, hidden] before the first layer and after each; the last one is normed."""
    embedded = model.model.get_input_embeddings()(batch.input_ids)
    pictures = (batch.input_ids == model.config.image_token_id)[..., None]
    embedded = embedded.masked_scatter(pictures, seen)
    states: tuple[torch.Tensor, ...] = model.model.language_model(
        inputs_embeds=embedded,
        position_ids=batch.positions,
        # In this form the library takes the mask as it is.
        attention_mask={"full_attention": batch.mask},
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    return states


def answer_scores(model: Any, last: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Scores [B * Q, 2, V] for the answer's token and for the one that ends the turn."""
    sequence, place = batch.asked[:, :1], batch.asked[:, 1:]
    scores: torch.Tensor = model.lm_head(last[sequence, place + torch.arange(2)])
    return scores


def _batch(
    packer: Packer, schedule: Schedule, part: int, step: int, difficulty_limit: float
) -> Batch:
    rng = np.random.default_rng((TRAINING, schedule.seed, part, step))
    return packer.pack(pose(rng, schedule.pictures, difficulty_limit))


def _embeddings(model: Any) -> torch.Tensor:
    weights: torch.Tensor = model.model.get_input_embeddings().weight
    return weights
