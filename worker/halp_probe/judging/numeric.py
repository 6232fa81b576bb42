"""Questions whose truth is a number: the one number of an answer, at the truth's precision."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Final

from halp_probe.judging.kinds import number_of
from halp_probe.judging.normalise import Truth, folded, words
from halp_probe.judging.verdict import Label, Question

_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")
_NONE: Final = re.compile(
    r"\W*(?:none\b|nil\b|no \w+|there (?:is|are|was|were) (?:no|not any)\b|"
    r"there (?:isn't|aren't) any\b|(?:i )?(?:do not|don't|cannot|can't) see any\b)"
)
_VAGUE: Final = frozenset(
    {
        *("many", "several", "few", "some", "couple", "pair", "multiple", "lots", "lot"),
        *("numerous", "various", "both", "all", "dozens", "hundreds", "thousands"),
        *("yes", "no"),
    }
)
_SHORT_WORDS: Final = 3
"""An answer of so few words that has no number names something else."""
_MOST_DIGITS: Final = 100


def judge_number(question: Question, truth: Truth) -> tuple[Label, str]:
    """(label, rule). Each of the truth's alternatives is a number, as `kind_of` found."""
    numbers = (number_of(one, question.question) for one in truth.alternatives)
    expected = [one for one in numbers if one is not None]
    found, why = _numbers(question.answer)
    if len(found) > 1:
        return Label.UNJUDGED, "number: several different numbers"
    if not found:
        return _without(question.answer)
    (given,) = found
    is_percent = (_is_percent(truth.text), _is_percent(question.answer))
    if any(_same(given, one, *is_percent) for one in expected):
        return Label.RIGHT, f"number: the same{why}"
    return Label.WRONG, f"number: another{why}"


def _numbers(answer: str) -> tuple[list[str], str]:
    """(different numbers, how they were found if not as such)."""
    found = list(dict.fromkeys(one for one in words(answer) if _NUMBER.fullmatch(one)))
    if not found and _NONE.match(folded(answer)):
        return ["0"], " (says that there is none)"
    return found, ""


def _without(answer: str) -> tuple[Label, str]:
    said = words(answer)
    if len(said) > _SHORT_WORDS or set(said) & _VAGUE:
        return Label.UNJUDGED, "number: no number in the answer"
    return Label.WRONG, "number: the answer names something else"


def _is_percent(text: str) -> bool:
    return "%" in text or "percent" in folded(text)


def _same(given: str, expected: str, expects_percent: bool, gives_percent: bool) -> bool:
    """An answer may have more decimals than the truth, and is rounded to it then; but a whole
    number is a whole number. 0.5 is 50 %."""
    if max(len(given), len(expected)) > _MOST_DIGITS:
        return given == expected
    left, right = Decimal(given), Decimal(expected)
    if left == right or _rounded(left, right) == right:
        return True
    if expects_percent == gives_percent:
        return False
    return left * 100 == right if expects_percent else left == right * 100


def _rounded(value: Decimal, like: Decimal) -> Decimal | None:
    if like == like.to_integral_value():
        return None
    try:
        return value.quantize(like, ROUND_HALF_UP)
    except InvalidOperation:
        return None
