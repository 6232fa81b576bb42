"""Truths of a few words, and long ones: equal, another name of it, or said in the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from halp_probe.judging.kinds import LONG_WORDS
from halp_probe.judging.normalise import Truth, folded, holds, singular, words
from halp_probe.judging.verdict import Label, Question

Words = tuple[str, ...]

BUILT_IN: Final = (
    ("grey", "gray"),
    ("couch", "sofa"),
    ("television", "tv", "tv set"),
    ("cell phone", "cellphone", "mobile phone", "mobile", "smartphone"),
    ("bicycle", "bike"),
    ("motorcycle", "motorbike"),
    ("airplane", "aeroplane", "plane"),
    ("car", "automobile"),
    ("fridge", "refrigerator"),
    ("photo", "photograph"),
    ("laptop", "laptop computer", "notebook computer"),
    ("remote", "remote control"),
    ("doughnut", "donut"),
    ("hotdog", "hot dog"),
    ("sunglasses", "sun glasses"),
    ("kid", "child"),
    ("kids", "children"),
    ("usa", "us", "united states", "united states of america", "america"),
    ("uk", "united kingdom", "great britain"),
    ("soccer", "football"),
    ("purple", "violet"),
    ("trash can", "garbage can", "dustbin"),
    ("traffic light", "traffic signal", "stoplight"),
)
"""What any two people would call the same in a picture. More with `--synonyms FILE`."""

_NEGATIONS: Final = frozenset(
    {
        *("no", "not", "never", "neither", "nor", "without", "cannot", "cant", "isnt", "arent"),
        *(
            "wasnt",
            "werent",
            "dont",
            "doesnt",
            "didnt",
            "hasnt",
            "havent",
            "instead",
            "unlike",
            "none",
            "nothing",
            "nobody",
        ),
    }
)
_CLAUSE: Final = re.compile(r"[.;!?](?:\s|$)|,(?!\d)|\n|\b(?:but|however|although|though)\b")


class Synonyms:
    """Groups of phrases; each is written as the first of its group."""

    def __init__(self, groups: Iterable[Iterable[str]] = ()) -> None:
        self._to: dict[Words, Words] = {}
        for group in (*BUILT_IN, *groups):
            phrases = [one for one in map(words, group) if one]
            known = [self._to[one] for one in phrases if one in self._to]
            if phrases:
                first = known[0] if known else phrases[0]
                self._to |= dict.fromkeys(phrases, first)
        self._longest = max(map(len, self._to))

    def written(self, text: Words) -> Words:
        """Each phrase as the first of its group, the longest phrases first."""
        found: list[str] = []
        at = 0
        while at < len(text):
            for size in range(min(self._longest, len(text) - at), 0, -1):
                if same := self._to.get(text[at : at + size]):
                    found += same
                    at += size
                    break
            else:
                found.append(text[at])
                at += 1
        return tuple(found)


def judge_short(question: Question, truth: Truth, synonyms: Synonyms) -> tuple[Label, str]:
    """(label, rule). For truths of kind short and long."""
    is_long = any(len(words(one)) > LONG_WORDS for one in truth.alternatives)
    kind = "long" if is_long else "short"
    said = words(question.answer)
    names = [words(one) for one in truth.alternatives]
    if said in names or said == words(truth.text):
        which = "equal" if len(names) == 1 or said == words(truth.text) else "an alternative"
        return Label.RIGHT, f"{kind}: {which}"
    same = synonyms.written(said)
    if same in [synonyms.written(one) for one in names]:
        return Label.RIGHT, f"{kind}: a synonym"
    if singular(same) in [singular(synonyms.written(one)) for one in names]:
        return Label.RIGHT, f"{kind}: the same, one or several"
    places = _said(question.answer, [synonyms.written(one) for one in names], synonyms)
    if "plain" in places.values():
        return Label.RIGHT, f"{kind}: the answer has it"
    if "hedged" in places.values():
        return Label.UNJUDGED, f"{kind}: the answer has it as one of several"
    if is_long:
        return Label.UNJUDGED, "long: not the truth's words"
    if any(_NEGATIONS & set(one) for one in names) and _NEGATIONS & set(said):
        return Label.UNJUDGED, "short: both say what is not"
    if "negated" in places.values():
        return Label.WRONG, "short: the answer negates it"
    if any(holds(same, synonyms.written(one)) for one in names):
        return Label.UNJUDGED, "short: part of the truth"
    return Label.WRONG, "short: the answer does not have it"


def _said(answer: str, names: list[Words], synonyms: Synonyms) -> Mapping[Words, str]:
    """Name -> how the answer has it: plain, hedged ("red or blue") or negated ("not red")."""
    found: dict[Words, str] = {}
    clauses = [synonyms.written(words(one)) for one in _CLAUSE.split(folded(answer))]
    whole = tuple(one for clause in clauses for one in clause)
    for name in names:
        ways = {
            _way(clause, at, len(name), name) for clause in clauses for at in holds(name, clause)
        }
        if not ways and holds(name, whole):  # a name with a comma in it
            ways = {"plain"}
        for way in ("negated", "hedged", "plain"):
            if way in ways:
                found[name] = way
    return found


def _way(clause: Words, at: int, size: int, name: Words) -> str:
    if _NEGATIONS & set(clause[:at]) and not _NEGATIONS & set(name):
        return "negated"
    is_hedged = clause[at - 1 : at] == ("or",) or clause[at + size : at + size + 1] == ("or",)
    return "hedged" if is_hedged else "plain"
