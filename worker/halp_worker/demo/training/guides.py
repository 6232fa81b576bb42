"""What helps the network to see: heads and losses that exist in training only.

Without them the vision tower learns next to nothing from answers of one word for a long time. They
ask of single states what an answer needs: of an image token what it shows, in the language model's
own words; of the word that names a shape where that shape is, what it looks like and how many there
are of it; of a question's last token how far two shapes lie apart.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn
from torch.nn.functional import cross_entropy, rms_norm, smooth_l1_loss

from halp_worker.demo.training.packing import NOTHING, Batch
from halp_worker.demo.world.scene import COLOURS, MAX_SHAPES, SHAPE_KINDS

NAMED_LAYER: Final = 4
"""States after so many layers are asked where a named shape is: half-way, so that layers remain to
use it."""

ASKED_LAYER: Final = 6
"""And after so many, how far two shapes lie apart."""

_KIND_WEIGHT: Final = 2.0
"""Kinds are harder to see than colours, which are told from any patch."""

_SPOT_WEIGHT: Final = 2.0

_LOOKS_WEIGHT: Final = 0.5
"""Of how many shapes a word names, and which kind and colour the one has."""


class Guides(nn.Module):
    """The heads. They are dropped when the network is saved."""

    def __init__(self, hidden_size: int, tokenizer: Any) -> None:
        super().__init__()
        self.cell_spot = nn.Linear(hidden_size, 2)
        self.cell_centre = nn.Linear(hidden_size, 1)
        self.named_spot = nn.Linear(hidden_size, 2)
        self.named_kind = nn.Linear(hidden_size, len(SHAPE_KINDS))
        self.named_colour = nn.Linear(hidden_size, len(COLOURS))
        self.named_matches = nn.Linear(hidden_size, MAX_SHAPES + 1)
        self.asked_step = nn.Linear(hidden_size, 2)
        self.sharpness = nn.Parameter(torch.tensor(2.0))
        self.nothing = nn.Parameter(torch.zeros(2))
        self._kinds = _word_ids(tokenizer, SHAPE_KINDS)
        self._colours = _word_ids(tokenizer, tuple(COLOURS))

    def on_cells(self, seen: torch.Tensor, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Loss of image tokens [B * N, hidden] against the words [V, hidden] for what they show."""
        direction = rms_norm(seen, seen.shape[-1:])
        loss = seen.new_zeros(())
        taught = (
            (self._kinds, batch.cell_kinds, _KIND_WEIGHT),
            (self._colours, batch.cell_colours, 1.0),
        )
        for which, (spellings, shown, weight) in enumerate(taught):
            for word_ids in spellings:
                scores = direction @ embeddings[word_ids].T * self.sharpness
                empty = self.nothing[which].expand(len(scores), 1)
                # A cell that shows nothing is the last class.
                target = torch.where(shown < 0, len(word_ids), shown)
                spoken = cross_entropy(torch.cat((scores, empty), 1), target)
                loss = loss + weight * spoken / len(spellings)
        loss = loss + _SPOT_WEIGHT * _where_known(self.cell_spot(seen), batch.cell_spots)
        centre = nn.functional.binary_cross_entropy_with_logits(
            self.cell_centre(seen)[:, 0], batch.cell_centres.clamp(max=1)
        )
        return loss + centre

    def on_words(self, states: tuple[torch.Tensor, ...], batch: Batch) -> torch.Tensor:
        """Loss of the states that name and ask; `states`: the residual stream, layer by layer."""
        named = _normed(states[NAMED_LAYER][batch.named[:, 0], batch.named[:, 1]])
        asked = _normed(states[ASKED_LAYER][batch.asked[:, 0], batch.asked[:, 1]])
        return (
            _SPOT_WEIGHT * _where_known(self.named_spot(named), batch.spots)
            + _LOOKS_WEIGHT * cross_entropy(self.named_matches(named), batch.matches)
            + _LOOKS_WEIGHT * _of_those_known(self.named_kind(named), batch.named_kinds)
            + _LOOKS_WEIGHT * _of_those_known(self.named_colour(named), batch.named_colours)
            + _SPOT_WEIGHT * _where_known(self.asked_step(asked), batch.steps)
        )


def _normed(states: torch.Tensor) -> torch.Tensor:
    return rms_norm(states, states.shape[-1:])


def _where_known(guessed: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    known = ~true[:, 0].isnan()
    if not known.any():
        return guessed.new_zeros(())
    return smooth_l1_loss(guessed[known], true[known], beta=0.1)


def _of_those_known(scores: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    known = true != NOTHING
    return cross_entropy(scores[known], true[known]) if known.any() else scores.new_zeros(())


def _word_ids(tokenizer: Any, words: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
    """Token ids of the words, as they stand within a question and as they stand alone."""
    spellings = ([f" {word}" for word in words], list(words))
    return tuple(torch.tensor(tokenizer(text)["input_ids"]).view(-1) for text in spellings)
