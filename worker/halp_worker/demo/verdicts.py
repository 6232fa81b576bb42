"""`judge`: the rows of a store as answers that are right or wrong, and a table of some of them.

Who says so is `halp-probe`'s judge `auto`: the demo has no rule of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from rich.markup import escape
from rich.table import Table

from halp_probe.judging import verdict as judging
from halp_probe.judging.judges import judge_auto
from halp_store.reader import Store

_COLOURS: Final = {judging.Label.RIGHT: "green", judging.Label.WRONG: "red"}


@dataclass(frozen=True)
class Verdict:
    """One row. kind: of the question, as the data set's metadata says. image: below its root."""

    question_id: str
    kind: str
    question: str
    answer: str
    truth: str
    image: str

    @cached_property
    def label(self) -> judging.Label:
        """Right or wrong; another where the judge cannot say."""
        asked = judging.Question(self.question_id, self.question, self.truth, self.answer)
        return judge_auto(asked).label

    @property
    def right(self) -> bool:
        return self.label is judging.Label.RIGHT

    @property
    def wrong(self) -> bool:
        return self.label is judging.Label.WRONG


def judge(store: Store) -> tuple[Verdict, ...]:
    """A verdict for each row, in order of id."""
    return tuple(
        Verdict(
            question_id=record.question_id,
            kind=str(record.metadata["kind"]),
            question=record.question_text,
            answer=record.answer.strip(),
            truth=record.ground_truth,
            image=record.image,
        )
        for record in store.records()
    )


def some(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """The first right and the first wrong one of each kind, where there are such."""
    chosen: dict[tuple[str, bool], Verdict] = {}
    for one in verdicts:
        if one.right or one.wrong:
            chosen.setdefault((one.kind, one.wrong), one)
    return tuple(chosen[key] for key in sorted(chosen))


def answer_table(verdicts: Sequence[Verdict], images: Path) -> Table:
    """Question, answer, truth and picture of each."""
    table = Table(expand=True)
    table.add_column("question", ratio=1)
    for name, width in (("answer", 8), ("truth", 8)):
        table.add_column(name, no_wrap=True, overflow="ellipsis", width=width)
    table.add_column("", width=max(len(one.label) for one in verdicts))
    table.add_column("picture", no_wrap=True, width=max(len(_shown(images, v)) for v in verdicts))
    for one in verdicts:
        table.add_row(
            escape(one.question),
            escape(one.answer),
            escape(one.truth),
            f"[{_COLOURS.get(one.label, 'yellow')}]{one.label}[/]",
            escape(_shown(images, one)),
        )
    return table


def accuracy_table(verdicts: Sequence[Verdict]) -> Table:
    """Questions, and how many are answered right and wrong, by kind and over all. The rate is of
    those that were judged."""
    table = Table()
    table.add_column("kind of question")
    for name in ("questions", "right", "wrong", "hallucination rate"):
        table.add_column(name, justify="right")
    for kind in sorted({one.kind for one in verdicts}):
        _add(table, kind, [one for one in verdicts if one.kind == kind])
    table.add_section()
    _add(table, "all", verdicts)
    return table


def _add(table: Table, name: str, of: Sequence[Verdict]) -> None:
    right, wrong = sum(one.right for one in of), sum(one.wrong for one in of)
    rate = f"{wrong / (right + wrong):.0%}" if right + wrong else "–"
    table.add_row(escape(name), str(len(of)), str(right), str(wrong), rate)


def _shown(images: Path, verdict: Verdict) -> str:
    return str(images / verdict.image)
