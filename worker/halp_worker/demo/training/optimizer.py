"""How weights move: Muon for the matrices, Adam for the rest, one schedule for both."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

_MUON_RATE: Final = 0.01
_ADAM_RATE: Final = 0.002
"""Both at their peak; found by trying on this network."""

_RISE_STEPS: Final = 40
"""Steps over which rates rise from zero: fresh weights take no large step."""

_CALM_SHARE: Final = 0.6
"""Of all steps, the last so many over which rates fall to zero; most of the accuracy comes here."""

_CLIP_NORM: Final = 1.0


class Optimizer:
    """Muon on each matrix inside the blocks, Adam on embeddings, norms, biases and heads."""

    def __init__(self, model: Any, guides: nn.Module, steps: int) -> None:
        self._steps = steps
        self._done = 0
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            inside = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
            (matrices if inside else rest).append(parameter)
        rest += guides.parameters()
        self._parameters = [*matrices, *rest]
        self._moving: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (torch.optim.Muon(matrices, lr=_MUON_RATE, weight_decay=0.01), _MUON_RATE),
            (torch.optim.AdamW(rest, lr=_ADAM_RATE, betas=(0.9, 0.98), weight_decay=0), _ADAM_RATE),
        )

    def step(self, loss: torch.Tensor) -> None:
        """Moves the weights against the loss's gradient; weights that it does not touch stay."""
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, _CLIP_NORM)
        for optimizer, rate in self._moving:
            for group in optimizer.param_groups:
                group["lr"] = rate * _share(self._done, self._steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._done += 1


def _share(done: int, steps: int) -> float:
    """Of its peak rate, after `done` of `steps` steps."""
    rise = min(1.0, (done + 1) / _RISE_STEPS)
    calm = min(1.0, (steps - done) / max(1, _CALM_SHARE * steps))
    return rise * calm
