"""`RepetitionPenalty`: makes tokens that a row already has less likely, as `generate` does.

The rule of transformers' `RepetitionPenaltyLogitsProcessor`: in float32, a positive logit of a
token of the prompt or the answer is divided by the penalty, a negative one multiplied. The prompt's
image placeholders and special tokens count, as in `generate` for one question at a time. (In a
padded batch `generate` counts the padding too; here there is none.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from halp_worker.model.likelihood import Chosen, logprobs_of


@dataclass
class RepetitionPenalty:
    """seen: (B, V) bool, tokens of each row's prompt and answer so far. Rows leave by
    `keep`."""

    value: float
    seen: torch.Tensor

    @classmethod
    def of_prompts(
        cls, value: float, prompts: Sequence[torch.Tensor], logits: torch.Tensor
    ) -> RepetitionPenalty:
        """prompts: token ids of each row. logits: (B, V), for the size and the device."""
        seen = torch.zeros(logits.shape, dtype=torch.bool)
        for row, tokens in enumerate(prompts):
            seen[row, tokens] = True
        return cls(value, seen.to(logits.device))

    def choose(self, logits: torch.Tensor) -> Chosen:
        """(B, V) -> the token of each row, which is seen from now on. Its probability is the
        model's own, before the penalty. Changes `seen` in place, for captured graphs."""
        scores = logits.float()
        scores = torch.where(
            self.seen,
            torch.where(scores < 0, scores * self.value, scores / self.value),
            scores,
        )
        tokens = scores.argmax(dim=-1)
        self.seen.scatter_(1, tokens[:, None], True)
        return Chosen(tokens, logprobs_of(logits, tokens))

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows stay, in this order; in a new tensor."""
        self.seen = self.seen.index_select(0, rows)
