"""`abstains`: whether a text says that it cannot tell."""

from __future__ import annotations

import re
from typing import Final

from halp_probe.judging.normalise import folded

_CANNOT: Final = r"(?:can ?not|can't|could not|couldn't|am unable to|am not able to|unable to)"
_KNOWING: Final = (
    r"(?:tell|say|determine|determined|know|answer|answered|identify|be determined|be answered|"
    r"be identified|be known|be said|be told|be sure|be certain|be inferred|provide|see the image|"
    r"see the picture|view the image|view images|see any image)"
)
_SAYS: Final = re.compile(
    rf"\b{_CANNOT} (?:\w+ly )?{_KNOWING}\b"
    r"|\b(?:do not|don't|did not|didn't) (?:really )?know\b"
    r"|\bnot (?:enough|sufficient) (?:information|info|context|detail|evidence|data)\b"
    r"|\binsufficient (?:information|context|detail|evidence|data)\b"
    r"|\b(?:unanswerable|indeterminate|undeterminable|unknowable)\b"
    r"|\b(?:not|im)(?: |-)?possible to (?:tell|say|determine|know|answer|identify)\b"
    r"|\b(?:hard|difficult) to (?:tell|say|determine|know)\b"
    r"|\b(?:am|'m|i'm) not (?:\w+ly )?(?:sure|certain)\b"
    r"|\b(?:there is|there's) no (?:way to (?:tell|know|determine)|information)\b"
    r"|\bdoes(?: not|n't) (?:provide|contain|give) (?:enough|sufficient|any|the)?\s*"
    r"(?:information|context|details?)\b"
    r"|\b(?:no|not) answer (?:is )?possible\b"
)
_WHOLE: Final = re.compile(
    r"\W*(?:(?:it is |it's |this is |i am |i'm )?(?:unknown|unclear|not clear|not sure|unsure|"
    r"uncertain|n/a|not applicable|not available|undetermined|not known|no idea|idk|"
    r"(?:hard|difficult) to (?:tell|say)|can(?:no|')t (?:tell|say)|(?:i )?have no idea))\W*"
)
_LEADS: Final = re.compile(r"\W*(?:yes|no|yeah|nope)\b(?! (?:idea|way|information|one knows))")
_TURNS: Final = re.compile(r"\b(?:but|however|though|although|yet)\b")
_SENTENCE: Final = re.compile(r"[.!?](?:\s|$)")


def abstains(text: str) -> bool:
    """Its first sentence says so, and nothing is said against it: "I am not sure, but it is red"
    is an answer, "No, I cannot see one" is one too."""
    text = folded(text)
    if _WHOLE.fullmatch(text):
        return True
    if _LEADS.match(text) or _TURNS.search(text):
        return False
    return bool(_SAYS.search(_SENTENCE.split(text, maxsplit=1)[0]))
