"""`Example`: an answer that a probe judged well or badly, with its texts and its picture.

Which rows, is decided by risk alone, so that a report shows what there is and not what pleases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from halp_probe.judging.verdict import Verdict
from halp_probe.report.curves import mean_risk
from halp_probe.report.pictures import Picture, Pictures
from halp_probe.results import Entry, Evaluation

if TYPE_CHECKING:
    from halp_store.view import View

EACH: Final = 6
"""Of each outcome: enough to see a pattern or none, and a page that still can be sent."""
_COLUMNS: Final = ("question_text", "answer", "ground_truth", "image", "image_sha256")


class Outcome(StrEnum):
    """caught, missed: wrong answers with the highest and the lowest risk. false_alarm, quiet: right
    answers with the highest and the lowest."""

    CAUGHT = "caught"
    MISSED = "missed"
    FALSE_ALARM = "false alarm"
    QUIET = "confidently right"


@dataclass(frozen=True)
class Example:
    """risk: mean over seeds, out of fold. above: share of all answers with a lower risk."""

    question_id: str
    question: str
    answer: str
    truth: str
    rule: str
    note: str
    risk: float
    above: float
    picture: Picture


Examples = Mapping[Outcome, tuple[Example, ...]]


def pick(
    risk: npt.NDArray[np.float64], wrong: npt.NDArray[np.bool_], each: int = EACH
) -> dict[Outcome, list[int]]:
    """Row numbers by outcome, the clearest case first; equal risks in order of row.

    Of few rows, the riskier half is never shown with the other.
    """
    found: dict[Outcome, list[int]] = {}
    order = np.argsort(risk, kind="stable")
    order = order[np.isfinite(risk[order])]
    for is_wrong, high, low in (
        (True, Outcome.CAUGHT, Outcome.MISSED),
        (False, Outcome.FALSE_ALARM, Outcome.QUIET),
    ):
        rows = order[wrong[order] == is_wrong].tolist()
        most = min(each, (len(rows) + 1) // 2)
        found[high] = sorted(rows[len(rows) - most :], key=lambda row: (-risk[row], row))
        found[low] = rows[: min(each, len(rows) // 2)]
    return found


def read_examples(
    view: View,
    evaluation: Evaluation,
    entry: Entry,
    verdicts: Mapping[str, Verdict],
    pictures: Pictures,
    each: int = EACH,
) -> Examples:
    """Of the entry's risks. verdicts: question id -> what the judge said.

    Raises UnknownQuestion (a StoreError) or DamagedSegment.
    """
    risk = mean_risk(entry.risk)
    picked = pick(risk, evaluation.wrong, each)
    rows = [row for some in picked.values() for row in some]
    ids = [evaluation.ids[row] for row in rows]
    texts = view[ids].read(_COLUMNS) if ids else {name: np.zeros(0, object) for name in _COLUMNS}
    ranked = np.sort(risk[np.isfinite(risk)])
    made: dict[int, Example] = {}
    for number, (row, question_id) in enumerate(zip(rows, ids, strict=True)):
        question, answer, truth, image, sha256 = (str(texts[name][number]) for name in _COLUMNS)
        verdict = verdicts.get(question_id)
        made[row] = Example(
            question_id=question_id,
            question=question,
            answer=answer,
            truth=truth,
            rule=verdict.rule if verdict else "",
            note=verdict.note if verdict else "",
            risk=float(risk[row]),
            above=float(np.searchsorted(ranked, risk[row])) / len(ranked),
            picture=pictures.of(image, sha256),
        )
    return {outcome: tuple(made[row] for row in some) for outcome, some in picked.items()}
