"""The judges by name: pure functions, `Question` in, `Verdict` out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Final

from halp_probe.judging.abstentions import abstains
from halp_probe.judging.choice import judge_choice
from halp_probe.judging.kinds import kind_of
from halp_probe.judging.normalise import Truth, tidied, truth_of, words
from halp_probe.judging.numeric import judge_number
from halp_probe.judging.short import Synonyms, judge_short
from halp_probe.judging.verdict import Kind, Label, Question, Verdict
from halp_probe.judging.yes_no import judge_yes_no

Judge = Callable[[Question], Verdict]
_Rule = Callable[[Question, Truth], tuple[Label, str]]

EXACT: Final = "exact"
AUTO: Final = "auto"
REFERENCE: Final = "halp-reference"

_FAILED: Final = re.compile(r"\W*generation failed\W*", re.IGNORECASE)
"""What published scripts stored where there was no answer."""
_NOT_ANSWERED: Final = frozenset({"skipped", "failed", "error"})
_PUBLISHED: Final = re.compile(r"\b(yes|no)\b")

_OF_KIND: Final[Mapping[str, tuple[Kind, _Rule]]] = {
    "yesno": (Kind.YES_NO, judge_yes_no),
    "numeric": (Kind.NUMBER, judge_number),
    "choice": (Kind.CHOICE, judge_choice),
}

NAMES: Final = (EXACT, *_OF_KIND, AUTO, REFERENCE)


def judge_named(name: str, synonyms: Iterable[Iterable[str]] = ()) -> Judge:
    """One of NAMES. synonyms: groups of phrases besides those that are built in, for `auto`.

    Raises KeyError.
    """
    if name == EXACT:
        return _exact
    if name == REFERENCE:
        return _reference
    if name == AUTO:
        return partial(_auto, Synonyms(synonyms))
    kind, rule = _OF_KIND[name]
    return partial(_only, name, kind, rule)


@lru_cache(maxsize=1)
def _usual() -> Synonyms:
    return Synonyms()


def judge_auto(question: Question) -> Verdict:
    """The judge for everybody: by the question's kind, with the built-in synonyms."""
    return _auto(_usual(), question)


def _auto(synonyms: Synonyms, question: Question) -> Verdict:
    rules: Mapping[Kind, _Rule] = dict(_OF_KIND.values())
    return _judged(question, lambda kind: rules.get(kind, partial(judge_short, synonyms=synonyms)))


def _only(name: str, wanted: Kind, rule: _Rule, question: Question) -> Verdict:
    """Of its kind alone; the rest is for other judges."""

    def chosen(kind: Kind) -> _Rule:
        return rule if kind is wanted else _other_kind

    def _other_kind(_: Question, __: Truth) -> tuple[Label, str]:
        return Label.UNJUDGED, f"{name}: not a question of this kind"

    truth = truth_of(question.ground_truth)
    kind = kind_of(question.question, truth)
    if kind not in {wanted, Kind.NONE} and question.finish_reason == "stop":
        return Verdict(*_other_kind(question, truth), kind, truth.repaired)
    return _judged(question, chosen)


def _exact(question: Question) -> Verdict:
    return _judged(question, lambda _: _differs)


def _differs(_: Question, __: Truth) -> tuple[Label, str]:
    return Label.WRONG, "exact: not the truth's letters"


def _judged(question: Question, rule_of: Callable[[Kind], _Rule]) -> Verdict:
    """What holds for every kind, then the rule of the kind."""
    truth = truth_of(question.ground_truth)
    kind = kind_of(question.question, truth)

    def said(label: Label, rule: str) -> Verdict:
        return Verdict(label, rule, kind, truth.repaired)

    if without := not_answered(question):
        return said(*without)
    if kind is Kind.NONE:
        return said(Label.UNJUDGED, "no truth")
    if not words(question.answer):
        return said(Label.UNJUDGED, "no answer")
    given = tidied(question.answer)
    if given == tidied(truth.text) or given == tidied(question.ground_truth):
        return said(Label.RIGHT, "equal, but for case and outer punctuation")
    meant = [one for one in truth.alternatives if not abstains(one)]
    has_abstained, may_abstain = abstains(question.answer), len(meant) < len(truth.alternatives)
    if has_abstained and may_abstain:
        return said(Label.RIGHT, "abstention: cannot tell, as the truth")
    if has_abstained:
        return said(Label.ABSTAINED, "abstention: the answer says that it cannot tell")
    if not meant:
        return said(Label.WRONG, "abstention: an answer where the truth is that none can tell")
    return said(*rule_of(kind)(question, truth._replace(alternatives=tuple(meant))))


def not_answered(question: Question) -> tuple[Label, str] | None:
    """(label, rule) of what no model answered: none of the judges looks at it."""
    if question.finish_reason == "abstained":
        return Label.ABSTAINED, "abstention: the worker did not let it answer, for its risk"
    if question.finish_reason in _NOT_ANSWERED:
        return Label.UNJUDGED, f"not answered: finish reason {question.finish_reason}"
    if _FAILED.fullmatch(question.answer):
        return Label.UNJUDGED, "not answered: generation failed"
    return None


def _reference(question: Question) -> Verdict:
    """The published rule, to reproduce: a wrong answer without yes and no counts as right."""
    kind = kind_of(question.question, truth_of(question.ground_truth))
    if without := not_answered(question):
        return Verdict(*without, kind)
    found = (_PUBLISHED.search(one.lower()) for one in (question.ground_truth, question.answer))
    truth, answer = (one and one[1] for one in found)
    if not truth or not answer:
        lacking = "truth" if not truth else "answer"
        rule = f"published: no yes or no in the {lacking}, which counts as right"
        return Verdict(Label.RIGHT, rule, kind)
    if truth == answer:
        return Verdict(Label.RIGHT, f"published: {answer} in both", kind)
    return Verdict(Label.WRONG, f"published: {answer} where the truth has {truth}", kind)
