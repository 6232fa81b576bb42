"""`halp-probe labels` and `halp-probe agreement`: the label tables of a store, and what they share.

Exit codes: 0 done, 1 there is no such store, there are no labels, or a table is damaged, 2 the
command line is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from halp_probe.console import LabelsFolder, explained
from halp_probe.judging.verdict import Label
from halp_store.console import AsJson, StorePath, print_json
from halp_store.opening import opened
from halp_store.terminal import printable_lines, table, width

if TYPE_CHECKING:
    from halp_probe.agreement import Agreement
    from halp_probe.judging.verdict import Question
    from halp_probe.labels import LabelTable

LABELS_EXAMPLES: Final = (
    "\b\nExamples:\n  halp-probe labels run1.zarr\n  halp-probe labels run1.zarr --json"
)
AGREEMENT_EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-probe agreement run1.zarr"
    "\n  halp-probe agreement run1.zarr --judge auto --judge anna --show 20"
    "\n  halp-probe agreement run1.zarr --json"
)

_LISTED: Final = ("judge", "version", "rows", *Label, "created")
_NUMBERS: Final = range(1, 3 + len(Label))


def labels(store: StorePath, labels: LabelsFolder = None, as_json: AsJson = False) -> None:
    """List the label tables of a store."""
    with explained():
        from halp_probe.labels import labels_folder, list_labels

        whole = opened(store)
        folder = labels_folder(whole.path, labels)
        found = list_labels(whole, labels)
    if as_json:
        print_json({"labels": str(folder), "tables": [dict(about) for _, _, about in found]})
        return
    if not found:
        typer.echo(printable_lines(f"{folder}: no labels yet: halp-probe label {store}"), err=True)
        return
    rows = [list(_LISTED)]
    for judge, version, about in found:
        counts = [f"{about['labels'].get(one, 0):,}" for one in Label]
        rows.append(
            [judge, str(version), f"{about['rows']:,}", *counts, str(about.get("created", ""))]
        )
    whole_columns = set(range(len(_LISTED)))
    for line in table(rows, width(), whole=whole_columns, right=set(_NUMBERS)):
        typer.echo(line)
    typer.echo(printable_lines(f"\n{folder}"))


def agreement(
    store: StorePath,
    judge: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Compare these alone; may be given often. [all]"),
    ] = None,
    labels: LabelsFolder = None,
    show: Annotated[
        int, typer.Option(min=0, help="Of each two, print so many rows on which they differ.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Say how far judges agree: the newest table of each with that of each other one.

    Only answers that both call right or wrong can agree; kappa is 0 by chance and 1 for always.
    """
    with explained():
        from halp_probe.agreement import agreement as agreed
        from halp_probe.agreement import disagreements
        from halp_probe.questions import questions_of

        whole = opened(store)
        pairs = list(combinations(_tables(whole, judge or [], labels), 2))
        found = [agreed(*pair) for pair in pairs]
        differing = [disagreements(*pair)[:show] for pair in pairs]
        questions = {one.question_id: one for one in questions_of(whole)} if any(differing) else {}
    if as_json:
        lists = zip(found, pairs, differing, strict=True)
        print_json({"pairs": [_json(one, pair, ids, questions) for one, pair, ids in lists]})
        return
    for number, (one, pair, ids) in enumerate(zip(found, pairs, differing, strict=True)):
        if number:
            typer.echo()
        for line in _told(one, pair, ids, questions):
            typer.echo(line)


def _tables(store: Any, judges: Sequence[str], given: Any) -> list[LabelTable]:
    """The newest of each judge. Raises NoLabels where there are not two."""
    from halp_probe.labels import NoLabels, labels_folder, list_labels, read_labels

    names = list(dict.fromkeys(judges or [one for one, _, _ in list_labels(store, given)]))
    found = [read_labels(store, name, None, given) for name in names]
    if len(found) < 2:
        there = ", ".join(names) or "none"
        raise NoLabels(
            f"{labels_folder(store.path, given)}: expected labels of two judges, got {there}: "
            f"label with another one: halp-probe label {store.path} --judge NAME"
        )
    return found


def _told(
    one: Agreement,
    pair: tuple[LabelTable, LabelTable],
    ids: Sequence[str],
    questions: Mapping[str, Question],
) -> Iterator[str]:
    yield printable_lines(one.sentence)
    rows = [[f"{one.left} \\ {one.right}", *Label]]
    for left in Label:
        counts = [one.counts.get((left, right), 0) for right in Label]
        if any(counts):
            rows.append([str(left), *(f"{count:,}" for count in counts)])
    columns = set(range(len(rows[0])))
    yield from table(rows, width(), whole=columns, right=columns - {0})
    if not ids:
        return
    yield ""
    shown = [["question_id", "question", "truth", "answer", one.left, one.right]]
    for row in ids:
        question = questions.get(row)
        texts = (question.question, question.ground_truth, question.answer) if question else ()
        said = (f"{table.verdicts[row].label}: {table.verdicts[row].rule}" for table in pair)
        shown.append([row, *(texts or ("(no longer stored)", "", "")), *said])
    yield from table(shown, width(), whole=())


def _json(
    one: Agreement,
    pair: tuple[LabelTable, LabelTable],
    ids: Sequence[str],
    questions: Mapping[str, Question],
) -> dict[str, Any]:
    rows = []
    for row in ids:
        question = questions.get(row)
        rows.append(
            {
                "question_id": row,
                "question": question.question if question else None,
                "ground_truth": question.ground_truth if question else None,
                "answer": question.answer if question else None,
                **{
                    side: {
                        "label": str(said.verdicts[row].label),
                        "rule": said.verdicts[row].rule,
                        "note": said.verdicts[row].note,
                    }
                    for side, said in zip(("left", "right"), pair, strict=True)
                },
            }
        )
    versions = {"left_version": pair[0].version, "right_version": pair[1].version}
    return {**one.to_json(), **versions, "differing": rows}
