"""`kind_of`: what a question asks for, by the form of its truth and the options it lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from halp_probe.judging.abstentions import abstains
from halp_probe.judging.normalise import Truth, folded, tidied, words
from halp_probe.judging.verdict import Kind

LONG_WORDS: Final = 8
"""More words than this are a sentence: an answer that says the same has other words."""

YES: Final = frozenset({"yes", "yeah", "yep", "yup"})
NO: Final = frozenset({"no", "nope", "nah"})

_LEADING: Final = re.compile(r"[\s\W_]*([a-z]+)\b")
_ASKS: Final = re.compile(
    r"[\s\W_]*(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|may|might|"
    r"isn't|aren't|doesn't|don't|didn't)\b"
)
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")
_NO_NUMBER: Final = re.compile(
    r"\d:\d|\d/\d|\d-\d|[a-z]\d|\d(?:st|nd|rd|th|s)\b|\d\s*(?:[ap]m\b|[ap]\.m)"
)
"""Times, dates, ranges, ordinals, names with digits."""
_NONE: Final = re.compile(r"\W*(?:none|nothing|nobody|no \w+)\W*")
_ASKS_NUMBER: Final = re.compile(r"\bhow many\b|\b(?:number|count) of\b|\bcount the\b")
_BEFORE: Final = frozenset({"$", "€", "£", "¥", "about", "around", "approximately", "+"})
_MOST_UNITS: Final = 2
"""Words after a number that is a number still: "12 square kilometres"."""
_OPTION: Final = re.compile(r"\(([a-h])\)|(?<!\w)([a-h])[.):](?=\s|\S)")


def asking_sentence(question: str) -> str:
    """The first that begins like "Is there" or "Does it", folded; empty if none does."""
    sentences = re.split(r"[\n.?!:]\s*", folded(question))
    return next((one for one in sentences if _ASKS.match(one)), "")


def options_of(question: str) -> Mapping[str, str]:
    """Letter -> text, of "(A) red (B) blue", "A. red", on one line or several. Lower case."""
    text = "\n".join(map(folded, question.splitlines()))
    found: list[tuple[str, int, int]] = []
    for one in _OPTION.finditer(text):
        if (one[1] or one[2]) == chr(ord("a") + len(found)):
            found.append((chr(ord("a") + len(found)), one.start(), one.end()))
    if len(found) < 2:
        return {}
    ends = [start for _, start, _ in found[1:]] + [len(text)]
    texts = {
        letter: tidied(text[begin:end].strip().partition("\n")[0])
        for (letter, _, begin), end in zip(found, ends, strict=True)
    }
    return texts if all(texts.values()) else {}


def yes_no_of(text: str, question: str) -> bool | None:
    """Of a truth that begins with yes or no and means it: "No; there is none", not "No entry"."""
    text = folded(text)
    found = _LEADING.match(text)
    if not found:
        return None
    word, rest = found[1], text[found.end() :]
    if word in {"true", "false"}:
        return None if words(rest) else word == "true"
    if word not in YES | NO:
        return None
    is_alone = not words(rest) or not rest.startswith(" ") or rest.startswith((" -", " \u2013"))
    return word in YES if is_alone or bool(asking_sentence(question)) else None


def number_of(text: str, question: str) -> str | None:
    """The number that a truth is, with up to two words of a unit; None for anything else.

    Asked how many, "none" and "no dogs" are 0.
    """
    if _NONE.fullmatch(folded(text)) and _ASKS_NUMBER.search(folded(question)):
        return "0"
    if _NO_NUMBER.search(folded(text)):
        return None
    found = [one for one in words(text) if one not in _BEFORE]
    if not found or not _NUMBER.fullmatch(found[0]) or len(found) > 1 + _MOST_UNITS:
        return None
    return None if any(_NUMBER.fullmatch(one) for one in found[1:]) else found[0]


def choice_of(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of an option that a truth names by its letter, its text or both."""
    text = folded(text)
    if found := re.fullmatch(r"\W*([a-h])\W*", text):
        return found[1] if found[1] in options else None
    if found := re.match(r"\W*([a-h])[.):]+\s*(?=\S)", text):
        return found[1] if found[1] in options else None
    same = [letter for letter, one in options.items() if words(one) == words(text)]
    return same[0] if len(same) == 1 else None


def kind_of(question: str, truth: Truth) -> Kind:
    """By the truth's own form first: what cannot be compared as a number is not one."""
    if not truth.alternatives:
        return Kind.NONE
    if (options := options_of(question)) and choice_of(truth.text, options):
        return Kind.CHOICE
    said = {yes_no_of(one, question) for one in truth.alternatives} - {None}
    if yes_no_of(truth.text, question) is not None and len(said) == 1:
        return Kind.YES_NO
    meant = [one for one in truth.alternatives if not abstains(one)]
    if meant and all(number_of(one, question) is not None for one in meant):
        return Kind.NUMBER
    is_long = any(len(words(one)) > LONG_WORDS for one in truth.alternatives)
    return Kind.LONG if is_long else Kind.SHORT
