"""`agreement`: whether an answer is its ground truth, letter for letter once both are tidied.

No judgement: "No, there is none." differs from "No". Who wants one has the texts.
"""

from __future__ import annotations

import unicodedata
from typing import Final, Literal

Agreement = Literal["matches", "differs"]

_AROUND: Final = " .,;:!?\"'`()[]"
"""What a model puts around an answer and a data set does not, or the other way round."""


def agreement(ground_truth: str, answer: str) -> Agreement | None:
    """None where one of both is empty: there is nothing to compare."""
    truth, given = _tidied(ground_truth), _tidied(answer)
    if not truth or not given:
        return None
    return "matches" if truth == given else "differs"


def _tidied(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_AROUND)
