"""Texts as they are compared: tidied, as words, malformed truths repaired, alternatives apart.

Knows no rule of right and wrong.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from functools import lru_cache
from typing import Final, NamedTuple

from halp_probe.judging.number_words import with_digits

_AROUND: Final = " .,;:!?\"'`()[]*_"
"""What a model puts around an answer and a data set does not, or the other way round."""
_ARTICLES: Final = frozenset({"a", "an", "the"})
_ONE_KIND: Final = str.maketrans({**dict.fromkeys("\u2019\u2018\u02bc\u00b4`", "'"), "\u2212": "-"})
_THOUSANDS: Final = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_WORD: Final = re.compile(
    r"(?<![^\s\"'(\[{<:=*_~|])-\d+(?:\.\d+)?|\d+(?:\.\d+)?|[^\s!-/:-@\[-`{-~\d]+[+#]*|[%$+=<>^~|#]"
)
"""A number, letters (with their marks) without digits, or a sign that changes what is said."""
_MINUS: Final = re.compile(r"\b(?:minus|negative) (?=\d)")
_ACCENTS: Final = re.compile("[\u0300-\u036f]")
"""Of Latin, Greek and Cyrillic: many leave them out. Marks of other scripts are letters."""
_MOST_LIST: Final = 2000
"""Characters of a truth that is looked at as a Python list; more is no list of answers."""
_LISTED_LETTERS: Final = re.compile(r"[a-e]+")
_SHORTEST_SINGULAR: Final = 3
"""Letters: "gas" and "his" are no plurals."""
_SIDE: Final = re.compile(r"[^\W\d_]{2,}[^/]*")


class Truth(NamedTuple):
    """text: repaired. alternatives: at least the text itself, or none if it says nothing.
    repaired: what was done to it, for people; empty for most."""

    text: str
    alternatives: tuple[str, ...]
    repaired: str


def folded(text: str) -> str:
    """One line, NFKC, any case, one kind of apostrophe and of minus."""
    for _ in range(2):  # what folding the case leaves behind may be composed again
        text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.translate(_ONE_KIND).split())


def tidied(text: str) -> str:
    """Folded, without what is put around it."""
    return folded(text).strip(_AROUND)


def words(text: str) -> tuple[str, ...]:
    """Words without articles and punctuation; number words are digits: "Twenty-two" is 22.

    Nothing but articles stays as it is: "A" may be a letter.
    """
    text = _THOUSANDS.sub(lambda found: found.group().replace(",", ""), folded(text))
    text = text.replace("'", "").replace("&", " and ")
    if not text.isascii():
        text = _ACCENTS.sub("", unicodedata.normalize("NFD", text.replace("\u2212", "-")))
        text = unicodedata.normalize("NFC", text)
        text = "".join(one if one.isascii() else _spaced(one) for one in text)
    text = _MINUS.sub("-", text)
    found = with_digits(_WORD.findall(text))
    return tuple(one for one in found if one not in _ARTICLES) or tuple(found)


@lru_cache(maxsize=4096)
def _spaced(one: str) -> str:
    """A letter, a mark or a digit as it is; a symbol as a word of its own; nothing of what is
    not seen; anything else a gap."""
    category = unicodedata.category(one)
    if one.isalnum() or category.startswith("M"):
        return one
    if category == "Cf":
        return ""
    return f" {one} " if category.startswith("S") else " "


def singular(found: tuple[str, ...]) -> tuple[str, ...]:
    """Words without what makes an English plural, as far as spelling tells."""
    return tuple(map(_one, found))


def _one(word: str) -> str:
    if len(word) <= _SHORTEST_SINGULAR or not word.endswith("s"):
        return word
    if word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("xes", "ches", "shes", "sses", "zes")) else word[:-1]


def holds(inner: tuple[str, ...], outer: tuple[str, ...]) -> tuple[int, ...]:
    """Where `inner` begins in `outer`, as whole words."""
    size = len(inner)
    if not size:
        return ()
    return tuple(at for at in range(len(outer) - size + 1) if outer[at : at + size] == inner)


def truth_of(text: str) -> Truth:
    """A data set's truth, repaired and with its alternatives."""
    whole, several, repaired = _repaired(text)
    parts = several or _split(whole)
    found = tuple(dict.fromkeys(one.strip() for one in parts if words(one)))
    return Truth(whole, found, repaired)


def _repaired(text: str) -> tuple[str, tuple[str, ...], str]:
    """(text, alternatives if it was a list of some, what was done)."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]") and len(text) <= _MOST_LIST:
        listed = _list(text)
        if len(listed) > 1 and all(len(one) == 1 for one in listed):
            listed = ["".join(listed)]
        if listed:
            inner = [_joined(one) or one for one in listed]
            shown = "; ".join(inner)
            several = tuple(inner) if len(inner) > 1 else ()
            return shown, several, f"the truth {text!r} is read as {shown!r}"
    if joined := _joined(text):
        return joined, (), f"the truth {text!r} is read as {joined!r}"
    return text, (), ""


def _list(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return []
    is_texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return value if is_texts else []


def _joined(text: str) -> str:
    """Of "n, o": characters that were joined by ", ". Nothing where it may be a list: "A, B"."""
    letters = text.split(", ") if ", " in text else text.split(",")
    if len(letters) < 2 or any(len(one) != 1 for one in letters):
        return ""
    joined = "".join(letters)
    if joined.casefold() in {"no", "yes"}:
        return joined
    if len(joined) < 3 or not any(one.isalpha() for one in joined):
        return ""
    is_list = _LISTED_LETTERS.fullmatch(joined.casefold()) or joined.isupper()
    return "" if is_list else joined


def _split(text: str) -> list[str]:
    """Alternatives: "a; b", "a | b", "a or b", "grey/gray". Not those of 1/2, n/a or km/h."""
    parts = [one for piece in re.split(r"[;|]", text) for one in re.split(r"(?i)\sor\s", piece)]
    if len(parts) > 1:
        parts[0] = re.sub(r"(?i)^\s*either\s+", "", parts[0])
    found: list[str] = []
    for one in parts:
        sides = [side.strip() for side in one.split("/")]
        is_several = len(sides) > 1 and all(map(_SIDE.fullmatch, sides))
        found += sides if is_several else [one]
    return found
