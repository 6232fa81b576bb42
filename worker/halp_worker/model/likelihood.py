"""What a model's logits say of an answer: the greedy tokens, and how sure the model was of them.

Float32 whatever the model computes in; nothing here changes which token is chosen. V numbers in the
vocabulary, natural logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Chosen:
    """tokens: int64. logprobs: float32, of the same shape and device: of each token's probability
    among the whole vocabulary."""

    tokens: torch.Tensor
    logprobs: torch.Tensor

    def take(self, rows: torch.Tensor) -> Chosen:
        """The given rows, a copy."""
        return Chosen(self.tokens[rows], self.logprobs[rows])


def greedy(logits: torch.Tensor) -> Chosen:
    """(B, V) -> the most likely token of each row, (B,)."""
    tokens = logits.argmax(dim=-1)
    return Chosen(tokens, logprobs_of(logits, tokens))


def logprobs_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(B, V) and (B,) -> (B,) float32, the logarithm of each token's probability."""
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    return logprobs.gather(-1, tokens[:, None])[:, 0]


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """(B, V) -> (B,) float32, in nats: 0 where one token has it all, ln V where all are alike."""
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def mean_logprob(answers: Chosen, stops: Sequence[int]) -> torch.Tensor:
    """Of answers (B, T) -> (B,) float32: over the tokens up to and including the first of `stops`,
    over all of them where there is none. What follows it does not count, whatever it is."""
    ends = torch.isin(answers.tokens, torch.tensor(sorted(stops), device=answers.tokens.device))
    counted = ends.cumsum(dim=-1) - ends.to(torch.int64) == 0
    total = answers.logprobs.masked_fill(~counted, 0).sum(dim=-1)
    return total / counted.sum(dim=-1)
