"""Yes/no questions: what an answer says, where that is safe to say."""

from __future__ import annotations

import re
from typing import Final

from halp_probe.judging.kinds import NO, YES, asking_sentence, yes_no_of
from halp_probe.judging.normalise import Truth, folded, singular, words
from halp_probe.judging.verdict import Label, Question

_LEADING: Final = re.compile(r"[\s\W_]*([^\W\d_]+)")
_OTHER: Final = {"true": True, "correct": True, "false": False, "incorrect": False, "not": False}
"""At the beginning of an answer alone: elsewhere they say something of something else."""
_NO_ANSWER: Final = re.compile(r"[\s\W_]*no (?:doubt|wonder|problem|question|one|matter|longer)\b")
_BOTH: Final = re.compile(r"\b(?:yes\W+(?:and |or )?no|no\W+(?:and |or )?yes)\b")
_SAID: Final = re.compile(r"\b(yes|no)\b(?=\s*(?:[^\w\s]|$))")
"""With a stop behind it: "no" before a noun ("a dog with no collar") answers nothing."""
_NEGATED: Final = frozenset(
    {
        *("no", "not", "isnt", "arent", "wasnt", "werent", "doesnt", "dont", "didnt", "hasnt"),
        *("havent", "cannot", "cant", "never", "none"),
    }
)
_FILL: Final = frozenset(
    {
        *("is", "are", "was", "were", "be", "been", "there", "do", "does", "did", "has", "have"),
        *("in", "on", "of", "at", "this", "that", "it", "its", "image", "picture", "photo"),
        *("scene", "you", "see", "i", "can", "to", "any", "and", "shown", "visible", "here"),
        "present",
    }
)
_EXISTS: Final = re.compile(
    r"\b(?:(?:is|are|was|were) there|(?:do|can) you see|(?:contain|contains|show|shows))\b"
)
_THERE_IS_NO: Final = re.compile(
    r"\W*(?:there (?:is|are|was|were) (?:no|not|n't)\b|there (?:isn't|aren't|wasn't|weren't)\b|"
    r"there's no\b|(?:i )?(?:do not|don't|cannot|can't|can not) see\b|no\b)"
)
_THERE_IS: Final = re.compile(r"\W*there (?:is|are|was|were)\b|\W*there's\b")
_CLAUSE: Final = re.compile(r"[.;!?,](?:\s|$)|\b(?:but|however|although|though)\b")


def judge_yes_no(question: Question, truth: Truth) -> tuple[Label, str]:
    """(label, rule). The truth begins with yes or no, as `kind_of` found."""
    expected = yes_no_of(truth.text, question.question)
    given, why = _said(question.question, question.answer)
    if given is None or expected is None:
        return Label.UNJUDGED, f"yes/no: {why}"
    said, meant = ("yes" if one else "no" for one in (given, expected))
    if given == expected:
        return Label.RIGHT, f"yes/no: {said}, as the truth ({why})"
    return Label.WRONG, f"yes/no: {said} where the truth is {meant} ({why})"


def _said(question: str, answer: str) -> tuple[bool | None, str]:
    """(yes, no or neither; how it was found)."""
    text = folded(answer)
    if _BOTH.search(text):
        return None, "both yes and no"
    if (found := _LEADING.match(text)) and not _NO_ANSWER.match(text):
        word = found[1]
        if word in YES or (word in NO and not _is_determiner(text, found.end())):
            return word in YES, "first word"
        if word in _OTHER and (word != "not" or text[found.end() :].strip()[:4] != "only"):
            return _OTHER[word], "first word"
    said = set(_SAID.findall(text))
    if len(said) == 1:
        return said == {"yes"}, "one of both"
    if len(said) == 2:
        return None, "both yes and no"
    return _sentence(question, text)


def _is_determiner(text: str, end: int) -> bool:
    """`No dog is there`: looked at as a sentence."""
    rest = re.match(r" (\w+)", text[end:])
    return rest is not None and rest[1] not in _PLAIN


_PLAIN: Final = frozenset(
    {
        *("there", "it", "they", "he", "she", "i", "the", "this", "that", "these", "those", "we"),
        *("you", "a", "an", "its", "is", "are", "not", "in"),
    }
)
"""After a `no` that is an answer by itself, without a comma: "no there is not"."""


def _sentence(question: str, text: str) -> tuple[bool | None, str]:
    """Of an answer without yes and no: its first clause, if it is the question's own words."""
    asking = asking_sentence(question)
    asked = _content(asking)
    clause, *rest = _CLAUSE.split(text, maxsplit=1)
    said = _content(clause)
    is_negated = bool(set(words(clause)) & _NEGATED)
    if set(words(asking)) & _NEGATED or not said:
        return None, "neither yes nor no"
    if is_negated:
        if _THERE_IS_NO.match(clause) and _EXISTS.search(asking):
            is_asked = set(said) <= set(asked)
            return (False, "says that there is none") if is_asked else (None, "of other words")
        # "Not on the left, on the right" may be a yes: nothing may follow.
        is_whole = said == asked and not words(" ".join(rest))
        return (False, "the question, negated") if is_whole else (None, "neither yes nor no")
    if _THERE_IS.match(clause) and _EXISTS.search(asking):
        said = tuple(one for one in said if not one.isdecimal())  # "there are two"
    if said == asked and not words(" ".join(rest)):
        return True, "the question, stated"
    return None, "neither yes nor no"


def _content(text: str) -> tuple[str, ...]:
    """Words that say something, in their order, plural as singular."""
    kept = (one for one in words(text) if one not in _FILL | _NEGATED)
    return singular(tuple(kept))
