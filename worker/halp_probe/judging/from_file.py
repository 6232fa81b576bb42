"""`read_file`: the labels of a person, or of another program, from a CSV file.

Knows the column names that published label files have; refuses to know how the labels came to be.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from halp_probe.errors import ProbeError
from halp_probe.judging.kinds import kind_of
from halp_probe.judging.normalise import truth_of
from halp_probe.judging.verdict import Label, Question, Verdict

ID_COLUMN: Final = "question_id"
COLUMNS: Final = ("label", "is_hallucinating_manual", "is_hallucinating", "hallucination")
"""Looked for in this order: what a person said is before what a script said."""
_NOTE: Final = "note"
_VALUES: Final[Mapping[str, Label]] = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "hallucinated", "wrong"), Label.WRONG),
    **dict.fromkeys(("false", "0", "0.0", "no", "right"), Label.RIGHT),
    **dict.fromkeys(("", "nan", "unjudged"), Label.UNJUDGED),
    "abstained": Label.ABSTAINED,
}
_EXPECTED: Final = (
    "true, 1, yes, hallucinated or wrong; false, 0, no or right; abstained; or nothing"
)
_DELIMITERS: Final = (",", ";", "\t")
"""As spreadsheets write them."""
_MOST_PROBLEMS: Final = 20
"""That are said one by one: more have one cause."""
_MOST_SHOWN: Final = 60
"""Characters of a value in a message."""


class BadLabelsFile(ProbeError):  # noqa: N818 - named for what it says
    """The file cannot be used; the message has every line that is wrong, and why."""


@dataclass(frozen=True)
class FileLabels:
    """verdicts: of the questions that the file has a line for, in the order of the questions.

    column: that the labels are from. unknown: ids of the file that no question has. missing:
    questions without a line.
    """

    verdicts: Mapping[str, Verdict]
    column: str
    unknown: int
    missing: int


def read_file(path: Path, questions: Sequence[Question], column: str | None = None) -> FileLabels:
    """column: that has the labels; the first of COLUMNS that there is without it.

    Raises BadLabelsFile or OSError.
    """
    names, rows = _rows(path)
    chosen = _column(path, names, column)
    found, problems = _labels(rows, chosen)
    if problems:
        raise BadLabelsFile(_said(path, problems))
    return FileLabels(
        {
            one.question_id: Verdict(
                found[one.question_id][0],
                found[one.question_id][1],
                kind_of(one.question, truth_of(one.ground_truth)),
                found[one.question_id][2],
            )
            for one in questions
            if one.question_id in found
        },
        chosen,
        unknown=len(found.keys() - {one.question_id for one in questions}),
        missing=sum(one.question_id not in found for one in questions),
    )


_Row = tuple[int, dict[str, str] | str]
"""Line number, and the cells by column or what is wrong with them."""


def _rows(path: Path) -> tuple[list[str], list[_Row]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadLabelsFile(f"{path}: expected UTF-8, got other bytes ({error})") from error
    head = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=lambda one: (head.count(one), one == ","))
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[_Row] = []
    try:
        names = [one.strip() for one in next(lines, [])]
        for cells in lines:
            if not any(one.strip() for one in cells):
                continue
            if len(cells) != len(names):
                rows.append((lines.line_num, f"expected {len(names)} cells, got {len(cells)}"))
            else:
                rows.append((lines.line_num, dict(zip(names, cells, strict=True))))
    except csv.Error as error:
        raise BadLabelsFile(f"{path}:{lines.line_num}: is no CSV: {error}") from error
    return names, rows


def _column(path: Path, names: Sequence[str], column: str | None) -> str:
    there = ", ".join(names) or "none"
    if ID_COLUMN not in names:
        raise BadLabelsFile(f"{path}:1: expected a column {ID_COLUMN}, got {there}")
    wanted = COLUMNS if column is None else (column,)
    for name in wanted:
        if names.count(name) == 1 and name != ID_COLUMN:
            return name
    expected = " or ".join(wanted)
    hint = "; --column NAME names another" if column is None else ""
    raise BadLabelsFile(f"{path}:1: expected a column {expected}, got {there}{hint}")


def _labels(
    rows: Sequence[_Row], column: str
) -> tuple[dict[str, tuple[Label, str, str]], list[tuple[int, str]]]:
    """(id -> label, rule, note; line -> problem)."""
    found: dict[str, tuple[Label, str, str]] = {}
    lines: dict[str, int] = {}
    problems: list[tuple[int, str]] = []
    for line, cells in rows:
        if isinstance(cells, str):
            problems.append((line, cells))
            continue
        question_id, value = cells[ID_COLUMN].strip(), cells[column].strip()
        label = _VALUES.get(value.casefold())
        if not question_id:
            problems.append((line, f"{ID_COLUMN}: is empty"))
        elif label is None:
            problems.append((line, f"{column}: expected {_EXPECTED}; got {value[:_MOST_SHOWN]!r}"))
        elif question_id in found and found[question_id][0] is not label:
            was = f"is {found[question_id][0]} in line {lines[question_id]} and {label} here"
            problems.append((line, f"{question_id[:_MOST_SHOWN]!r} {was}"))
        else:
            rule = f"file: {column} is {value.casefold() or 'empty'}"
            found.setdefault(question_id, (label, rule, cells.get(_NOTE, "").strip()))
            lines.setdefault(question_id, line)
    return found, problems


def _said(path: Path, problems: Sequence[tuple[int, str]]) -> str:
    shown = [f"{path}:{line}: {problem}" for line, problem in problems[:_MOST_PROBLEMS]]
    if more := len(problems) - len(shown):
        shown.append(f"{path}: and {more:,} more lines like these")
    return "\n".join([*shown, f"{path}: nothing was labelled; mend the file and label again"])
