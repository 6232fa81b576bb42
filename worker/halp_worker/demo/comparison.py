"""When an answer of the demo's model is right: the same words, whatever their case and stops."""

from __future__ import annotations

import string
from typing import Final

_STOPS: Final = str.maketrans("", "", string.punctuation)


def is_right(answer: str, truth: str) -> bool:
    """Whether both are the same words. Enough for answers of one word; no more is claimed."""
    return _words(answer) == _words(truth)


def _words(text: str) -> list[str]:
    return text.lower().translate(_STOPS).split()
