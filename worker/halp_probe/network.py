"""`Network`: standardise, linear layers with ReLU between them, the logistic function. In numpy.

One linear layer is logistic regression. Knows how to apply itself; refuses to know how it was
trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_LARGEST_LOGIT: Final = 700.0
"""Beyond it float64's exponential overflows; the risk is 0 or 1 in float32 long before."""


@dataclass(frozen=True, eq=False)
class Network:
    """mean, scale: (F,) float32; inputs are (x - mean) / scale.
    weights: float32 (F, H1), (H1, H2), ..., (Hn, 1). biases: (H1,), ..., (1,)."""

    mean: Floats
    scale: Floats
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]

    def risk(self, features: Floats) -> Floats:
        """(N, F) float32 -> (N,) float32 in [0, 1]: how likely the answer will be wrong."""
        values = (features - self.mean) / self.scale
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = (np.maximum(values, 0) if number else values) @ weight + bias
        logits = np.clip(values[:, 0].astype(np.float64), -_LARGEST_LOGIT, _LARGEST_LOGIT)
        return (1 / (1 + np.exp(-logits))).astype(np.float32)
