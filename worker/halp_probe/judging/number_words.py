"""Number words as digits: "twenty-two", "one hundred and five", "a dozen". English alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final

_BELOW_TWENTY: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS_NAMES: Final = (
    *("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
)
_SMALL: Final = {name: value for value, name in enumerate(_BELOW_TWENTY)}
_TENS: Final = {name: 10 * value for value, name in enumerate(_TENS_NAMES, start=2)}
_TIMES: Final = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 1_000_000}
_LARGEST: Final = 10**15
"""Nobody says more in words; a model that repeats itself may go on for ever."""
_ALL: Final = {**_SMALL, **_TENS, **_TIMES}


def with_digits(tokens: Sequence[str]) -> list[str]:
    """The same words, each number in words as one of digits. `no one` and `none` stay."""
    found: list[str] = []
    at = 0
    while at < len(tokens):
        value, size = _number(tokens, at)
        if size and not (tokens[at] == "one" and size == 1 and found[-1:] == ["no"]):
            is_negative = found[-1:] == ["minus"] and not found[-2:-1]
            found[-1:] = [f"-{value}"] if is_negative else [*found[-1:], str(value)]
            at += size
        else:
            found.append(_plain(tokens[at]))
            at += 1
    return found


def _number(tokens: Sequence[str], start: int) -> tuple[int, int]:
    """(value, how many words) of the longest number in words from here."""
    total, now, at, last = 0, 0, start, ""
    while at < len(tokens):
        one = tokens[at]
        if one in _TIMES:
            if last == "times" and _TIMES[one] <= 100:
                break
            if (now or 1) * _TIMES[one] > _LARGEST:
                break
            now = (now or 1) * _TIMES[one]
            if _TIMES[one] >= 1000:
                total, now = total + now, 0
            last = "times"
        elif one in _TENS and last in {"", "times", "and"}:
            now, last = now + _TENS[one], "tens"
        elif one in _SMALL and (
            last in {"", "times", "and"} or (last == "tens" and 0 < _SMALL[one] < 10)
        ):
            now, last = now + _SMALL[one], "small"
        elif one == "and" and last == "times" and at + 1 < len(tokens) and tokens[at + 1] in _ALL:
            if tokens[at + 1] in _TIMES:
                break
            last = "and"
        else:
            break
        at += 1
    return total + now, at - start


def _plain(token: str) -> str:
    """2.50 and 002 as 2.5 and 2, in the digits of ASCII."""
    if not token.lstrip("-")[:1].isdecimal():
        return token
    sign = "-" if token.startswith("-") else ""
    ascii_digits = (
        one if one == "." else str(unicodedata.decimal(one)) for one in token[len(sign) :]
    )
    whole, _, part = "".join(ascii_digits).partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    if whole == "0" and not part:
        return "0"
    return f"{sign}{whole}.{part}" if part else sign + whole
