"""`judge`: the rows of a store as answers that are right or wrong, and a table of some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from halp_store.reader import Store
from halp_worker.demo.comparison import is_right


@dataclass(frozen=True)
class Verdict:
    """One row. kind: of the question, as the data set's metadata says. image: below its root."""

    question_id: str
    kind: str
    question: str
    answer: str
    truth: str
    image: str

    @property
    def right(self) -> bool:
        """Whether the answer is the truth."""
        return is_right(self.answer, self.truth)


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
        chosen.setdefault((one.kind, one.right), one)
    return tuple(chosen[key] for key in sorted(chosen, key=lambda key: (key[0], not key[1])))


def answer_table(verdicts: Sequence[Verdict], images: Path) -> Table:
    """Question, answer, truth and picture of each."""
    table = Table(expand=True)
    table.add_column("question", ratio=1)
    for name, width in (("answer", 8), ("truth", 8)):
        table.add_column(name, no_wrap=True, overflow="ellipsis", width=width)
    table.add_column("", width=5)
    table.add_column("picture", no_wrap=True, width=max(len(_shown(images, v)) for v in verdicts))
    for one in verdicts:
        table.add_row(
            escape(one.question),
            escape(one.answer),
            escape(one.truth),
            "[green]right[/]" if one.right else "[red]wrong[/]",
            escape(_shown(images, one)),
        )
    return table


def accuracy_table(verdicts: Sequence[Verdict]) -> Table:
    """Questions, and how many are answered right and wrong, by kind and over all."""
    table = Table()
    table.add_column("kind of question")
    for name in ("questions", "right", "wrong", "hallucination rate"):
        table.add_column(name, justify="right")
    counts = Counter((one.kind, one.right) for one in verdicts)
    kinds = sorted({one.kind for one in verdicts})
    for kind in kinds:
        _add(table, kind, counts[kind, True], counts[kind, False])
    table.add_section()
    right = sum(one.right for one in verdicts)
    _add(table, "all", right, len(verdicts) - right)
    return table


def _add(table: Table, name: str, right: int, wrong: int) -> None:
    rate = f"{wrong / (right + wrong):.0%}"
    table.add_row(escape(name), str(right + wrong), str(right), str(wrong), rate)


def _shown(images: Path, verdict: Verdict) -> str:
    return str(images / verdict.image)
