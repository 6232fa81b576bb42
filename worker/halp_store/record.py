"""`Record`: one row of a store, everything that is known of one question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Record:
    """Fields are the store's columns.

    metadata: the job's, parsed. prompt_tokens, image_tokens, answer_tokens: in tokens.
    image_grid_thw: patches before the merge (t, h, w).
    positions: position -> the token's index in the unpadded prompt.
    layers: what the rows of the token arrays are, L of them.
    scores: name -> value, NaN where there is none; empty in a store without scores.
    arrays: name -> float32; `vision_only` (D,), `vision_encoder` (V,), each position (L, D).
    segment: where the row is stored.
    """

    question_id: str
    question_text: str
    image: str
    image_sha256: str
    ground_truth: str
    answer: str
    finish_reason: str
    metadata: Mapping[str, Any]
    content_hash: str
    prompt_tokens: int
    image_tokens: int
    answer_tokens: int
    image_grid_thw: tuple[int, int, int]
    positions: Mapping[str, int]
    layers: tuple[int, ...]
    scores: Mapping[str, float]
    arrays: Mapping[str, npt.NDArray[np.float32]]
    segment: str
