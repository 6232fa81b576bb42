"""Questions that list options: the letter or the text that an answer names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from halp_probe.judging.kinds import choice_of, options_of
from halp_probe.judging.normalise import Truth, folded, holds, words
from halp_probe.judging.verdict import Label, Question

_ALONE: Final = re.compile(r"\W*([a-h])\W*")
_LEADING: Final = re.compile(r"[\W_]*(?:\(([a-h])\)|([a-h])[).:,]+(?=\s|\W|$)|([a-h])[).:](?=\w))")
_NAMED: Final = re.compile(r"\b(?:answer|option|choice)(?: is| would be)?\W+([a-h])(?=[^\w\s']|$)")
_MARKED: Final = re.compile(r"\(([a-h])\)")
_NEGATION: Final = re.compile(r"\b(?:not|no|never|neither|nor|cannot|except)\b|n't\b")


def judge_choice(question: Question, truth: Truth) -> tuple[Label, str]:
    """(label, rule). The truth names an option, as `kind_of` found."""
    options = options_of(question.question)
    expected = choice_of(truth.text, options)
    given, why = _chosen(question.answer, options)
    if given is None or expected is None:
        return Label.UNJUDGED, f"choice: {why}"
    if given == expected:
        return Label.RIGHT, f"choice: the same option ({why})"
    return Label.WRONG, f"choice: another option ({why})"


def _chosen(answer: str, options: Mapping[str, str]) -> tuple[str | None, str]:
    """(letter, how it was found), or (None, why there is none)."""
    text = folded(answer)
    letters = _letters(text)
    if len(letters) > 1:
        return None, "several options"
    named = _texts(text, options)
    if not letters and len(named) == 1 and words(text) in map(words, options.values()):
        return named.pop(), "text"
    if letters:
        letter = letters.pop()
        if letter not in options:
            return None, "a letter that is no option"
        if named and letter not in named:
            return None, "letter and text are of two options"
        return letter, "letter"
    if _NEGATION.search(text):
        return None, "with a negation"
    if len(named) == 1:
        return named.pop(), "text"
    return None, "several options" if named else "no option"


def _letters(text: str) -> set[str]:
    if found := _ALONE.fullmatch(text):
        return {found[1]}
    marked = set(_MARKED.findall(text))
    if found := _LEADING.match(text):
        return {next(one for one in found.groups() if one)} | marked
    return set(_NAMED.findall(text)) or marked


def _texts(text: str, options: Mapping[str, str]) -> set[str]:
    """Options whose text is in the answer, but not those that are part of a longer one there."""
    said = words(text)
    sizes = {letter: words(one) for letter, one in options.items()}
    same = {letter for letter, one in sizes.items() if one == said}
    if same:
        return same
    found = {letter for letter, one in sizes.items() if holds(one, said)}
    longer = {
        letter
        for letter in found
        for other in found
        if other != letter
        and holds(sizes[letter], sizes[other])
        and len(holds(sizes[letter], said)) <= len(holds(sizes[other], said))
    }
    return found - longer
