"""How far two ways to compute one number may lie apart, from the arithmetic and from nothing else.

No bound here was taken from what a machine gave: another processor, number of threads or math
library sums in another order and rounds differently, and all of them are right.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7}
"""The distance of 1 from the next number. A single rounding errs by at most half of it."""


def rounding(layers: int, width: int, dtype: str = "float32") -> float:
    """The bound, relative to the norm of what is computed: epsilon * sqrt(layers * width).

    A sum of `width` products errs by about sqrt(width) roundings, for they go both ways (Higham
    and Mary, "A New Approach to Probabilistic Rounding Error Analysis", 2019), and `layers` of such
    sums by sqrt(layers) times that. Both of what is compared err by that, in halves of epsilon.

    layers: blocks, or matrix products, one after the other. width: the longest sum in them.

    For the small checkpoints in float32 it is about 1e-5, of which a tenth is seen; the state of
    the next token, of the layer before or of another question is a thousand times as far away
    (tests/worker/test_arithmetic.py).
    """
    return EPSILON[dtype] * math.sqrt(layers * width)


def relative(got: Any, expected: Any) -> float:
    """Largest distance of a row, relative to the row's norm."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(
        (np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()
    )


def apart(got: Any, expected: Any) -> float:
    """Largest distance of two numbers."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(got - expected).max())


LARGEST_SHARES: dict[str, float] = {}
"""Test file -> the largest share of a bound that was used up in it; `pytest --margins` shows it."""


def assert_within(distance: float, bound: float, *what: object) -> None:
    """Fails with both numbers."""
    file = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[0]
    LARGEST_SHARES[file] = max(LARGEST_SHARES.get(file, 0.0), distance / bound)
    assert distance <= bound, (*what, f"{distance:.2e} is more than {bound:.2e}")
