"""`halp-probe label`: the command line over judges and `write_labels`.

Exit codes: 0 done, 1 the judge failed or there is no such store (no table is made), 2 the command
line is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from halp_probe.console import LabelsFolder, explained
from halp_probe.judging.judges import AUTO, NAMES
from halp_probe.judging.verdict import Label, Question
from halp_probe.labelling import COMMAND, ENDPOINT, Asked, judge_store
from halp_store.console import AsJson, StorePath, print_json
from halp_store.progress import progress_bar
from halp_store.terminal import printable_lines, table, width

if TYPE_CHECKING:
    from halp_probe.agreement import Agreement
    from halp_probe.labels import LabelTable
    from halp_store.view import View

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-probe label run1.zarr"
    "\n  halp-probe label run1.zarr --judge halp-reference"
    "\n  halp-probe label run1.zarr --synonyms synonyms.json"
    "\n  halp-probe label run1.zarr --judge anna.csv --column is_hallucinating_manual"
    "\n  halp-probe label run1.zarr --judge command --command 'python judge.py' --name mine"
    "\n  halp-probe label run1.zarr --judge endpoint --endpoint http://localhost:8000/v1 \\"
    "\n    --judge-model qwen3-32b"
)

_TOLD_COLUMNS: Final = ("question_id", "question", "truth", "answer", "rule")


def label(
    store: StorePath,
    judge: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"One of {', '.join(NAMES)}, {COMMAND}, {ENDPOINT}, or a FILE.csv of labels.",
        ),
    ] = AUTO,
    labels: LabelsFolder = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Keep the labels of a file, a program or a model as his."
        ),
    ] = None,
    synonyms: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For auto: JSON, a list of lists of same phrases."),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of FILE.csv. [label, is_hallucinating_manual, ...]"),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(metavar="PROGRAM", help="Reads a question a line, writes a verdict a line."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of an OpenAI-compatible server; key: HALP_JUDGE_KEY."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model to ask at the endpoint.")
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead of the endpoint's usual prompt.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 4,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Ask an endpoint elsewhere without TLS.")
    ] = False,
    examples: Annotated[
        int, typer.Option(min=0, help="Show so many wrong and so many unjudged answers.")
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """Say which answers are right and wrong, and keep that in a table beside the store.

    No table is ever written over: the same judge again makes the next version.
    """
    asked = Asked(
        *(judge, name, labels, synonyms, column, command, endpoint, judge_model, prompt),
        *(concurrency, allow_http),
    )
    _check(asked)
    with explained():
        from halp_probe.judging.endpoint import forget
        from halp_probe.labels import labels_folder, write_labels
        from halp_probe.questions import questions_of
        from halp_store.reader import open_store

        whole = open_store(store)
        labels_folder(whole.path, labels)
        questions = questions_of(whole)
        with progress_bar("questions") as told:
            judged = judge_store(asked, whole, questions, told)
        written = write_labels(
            whole, judged.name, judged.verdicts, options=judged.options, given=labels
        )
        if judged.unfinished is not None:
            forget(judged.unfinished)
        others = _agreements(whole, written, labels)
    for line in judged.said:
        typer.echo(printable_lines(line), err=True)
    if as_json:
        print_json(_json(written, others))
        return
    for line in _told(written, questions, examples):
        typer.echo(line)
    for one in others:
        typer.echo(printable_lines(one.sentence))
    typer.echo(printable_lines(f"\n{written.path}: version {written.version} of {written.judge}"))


def _check(asked: Asked) -> None:
    """Ends with exit code 2 where options do not fit together."""
    if not asked.is_file and asked.judge not in {*NAMES, COMMAND, ENDPOINT}:
        names = ", ".join((*NAMES, COMMAND, ENDPOINT))
        raise typer.BadParameter(
            f"no judge {asked.judge!r}; there are {names}, or a FILE.csv", param_hint="--judge"
        )
    belongs = {
        "--synonyms": (asked.synonyms, asked.judge == AUTO, "--judge auto"),
        "--column": (asked.column, asked.is_file, "--judge FILE.csv"),
        "--command": (asked.command, asked.judge == COMMAND, "--judge command"),
        "--endpoint": (asked.endpoint, asked.judge == ENDPOINT, "--judge endpoint"),
        "--judge-model": (asked.model, asked.judge == ENDPOINT, "--judge endpoint"),
        "--prompt": (asked.prompt, asked.judge == ENDPOINT, "--judge endpoint"),
        "--name": (asked.name, asked.judge not in NAMES, "a file, a program or an endpoint"),
    }
    for option, (value, does, where) in belongs.items():
        if value is not None and not does:
            raise typer.BadParameter(f"goes with {where} alone", param_hint=option)
    needed = {
        COMMAND: {"--command": asked.command},
        ENDPOINT: {"--endpoint": asked.endpoint, "--judge-model": asked.model},
    }
    for option, value in needed.get(asked.judge, {}).items():
        if not value:
            raise typer.BadParameter(f"--judge {asked.judge} needs it", param_hint=option)
    if asked.stored_name in NAMES and asked.judge not in NAMES:
        raise typer.BadParameter(
            f"{asked.stored_name!r} is a judge of its own: name these labels otherwise",
            param_hint="--name",
        )


def _agreements(store: View, written: LabelTable, given: Path | None) -> list[Agreement]:
    """With the newest table of each other judge."""
    from halp_probe.agreement import agreement
    from halp_probe.labels import list_labels, read_labels

    judges = dict.fromkeys(judge for judge, _, _ in list_labels(store, given))
    return [
        agreement(written, read_labels(store, judge, None, given))
        for judge in judges
        if judge != written.judge
    ]


def _told(written: LabelTable, questions: Sequence[Question], examples: int) -> Iterator[str]:
    names = [str(one) for one in Label]
    rows = [["kind of question", "rows", *names]]
    for kind, labels in written.about["kinds"].items():
        rows.append([kind, *_counts([labels[one] for one in names])])
    rows.append(["all", *_counts([written.about["labels"][one] for one in names])])
    columns = range(len(rows[0]))
    yield from table(rows, width(), whole=set(columns), right=set(columns) - {0})
    for wanted in (Label.WRONG, Label.UNJUDGED):
        if chosen := _examples(written, questions, wanted, examples):
            yield f"\n{wanted}, for example:"
            yield from table([_TOLD_COLUMNS, *chosen], width(), whole=())
    yield ""


def _counts(values: Sequence[int]) -> list[str]:
    return [f"{one:,}" for one in (sum(values), *values)]


def _examples(
    written: LabelTable, questions: Sequence[Question], wanted: Label, most: int
) -> list[tuple[str, ...]]:
    """The first of each rule, then others."""
    of = [
        one
        for one in questions
        if (verdict := written.verdicts.get(one.question_id)) and verdict.label is wanted
    ]
    first: dict[str, Question] = {}
    for one in of:
        first.setdefault(written.verdicts[one.question_id].rule, one)
    chosen = list(dict.fromkeys([*first.values(), *of[:most]]))[:most]
    return [
        (
            one.question_id,
            one.question,
            one.ground_truth,
            one.answer,
            written.verdicts[one.question_id].rule,
        )
        for one in chosen
    ]


def _json(written: LabelTable, others: Sequence[Agreement]) -> dict[str, Any]:
    return {
        **written.about,
        "path": str(written.path),
        "agreement": [one.to_json() for one in others],
    }
