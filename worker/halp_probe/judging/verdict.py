"""The values of judging: `Question` in, `Verdict` out. Plain, for every room that judges."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Label(StrEnum):
    """What is said of an answer. A probe learns from right and wrong alone.

    abstained: the answer says that it cannot tell, and that is not the truth either; or the worker
        skipped it for its risk. unjudged: this judge cannot say.
    """

    RIGHT = "right"
    WRONG = "wrong"
    ABSTAINED = "abstained"
    UNJUDGED = "unjudged"


class Kind(StrEnum):
    """Of a question, by the form of its truth (and the options that the question lists)."""

    YES_NO = "yes/no"
    NUMBER = "number"
    CHOICE = "choice"
    SHORT = "short"
    LONG = "long"
    NONE = "no truth"


@dataclass(frozen=True)
class Question:
    """One row of a store, as a judge sees it. question: its text. finish_reason: the store's."""

    question_id: str
    question: str
    ground_truth: str
    answer: str
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Verdict:
    """label, and the rule that gave it, such as `yes/no: no where the truth is yes`.

    kind: of the question. note: what else a judge said, for people; empty for most.
    """

    label: Label
    rule: str
    kind: Kind
    note: str = ""
