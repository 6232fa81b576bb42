"""`halp-probe published`: the command line over `compare`.

Exit codes: 0 done, 1 there are no labels, or too few of them, 2 the command line is wrong.
"""

from __future__ import annotations

from typing import Annotated, Final

import typer

from halp_probe.cli_fit import (
    AUTO,
    ClassifierName,
    Folds,
    InnerFolds,
    Jobs,
    Seed,
    representations_asked,
)
from halp_probe.console import LabelsFolder, explained
from halp_store.console import AsJson, StorePath, print_json
from halp_store.opening import opened
from halp_store.progress import progress_bar
from halp_store.terminal import table, width

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-probe label old.zarr --judge qwen25vl_manually_reviewed.csv"
    "\n  halp-probe label old.zarr --judge auto"
    "\n  halp-probe published old.zarr --judge qwen25vl_manually_reviewed"
    "\n  halp-probe published run1.zarr --judge halp-reference --representation query_token@21"
)


def published(
    store: StorePath,
    judge: Annotated[
        str,
        typer.Option(
            "--judge", metavar="NAME", help="Whose labels are the published ones: a CSV's name."
        ),
    ] = "halp-reference",
    label_version: Annotated[
        int | None,
        typer.Option("--label-version", min=1, help="Of that judge's tables. [the latest]"),
    ] = None,
    corrected_judge: Annotated[
        str,
        typer.Option("--corrected-judge", metavar="NAME", help="Whose labels are to be believed."),
    ] = AUTO,
    corrected_version: Annotated[
        int | None,
        typer.Option("--corrected-version", min=1, help="Of that judge's tables. [the latest]"),
    ] = None,
    labels: LabelsFolder = None,
    representation: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="These alone, such as query_token@21. [all]"),
    ] = None,
    classifier: Annotated[
        ClassifierName, typer.Option(help="Of the corrected side; the published one is an MLP.")
    ] = ClassifierName.MLP,
    seed: Seed = 0,
    folds: Folds = 5,
    inner_folds: InnerFolds = 3,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Repeat the published pipeline, mistakes and all, beside the corrected one.

    Published: a random fifth of the questions for testing, nothing standardised, 50 epochs, the
    best layer picked on the test set. Corrected: no image on both sides, choice inside, intervals.
    """
    with explained():
        from halp_probe.fit import How
        from halp_probe.labels import read_labels
        from halp_probe.published import Judged, compare
        from halp_probe.published_table import said, shown

        whole = opened(store)
        left = read_labels(whole, judge, label_version, labels)
        right = read_labels(whole, corrected_judge, corrected_version, labels)
        how = How(
            representations_asked(whole, representation or []),
            classifier.value,
            seed,
            folds,
            inner_folds,
            jobs,
        )
        with progress_bar("representations") as told:
            found = compare(
                whole,
                Judged(judge, left.version, left.verdicts),
                Judged(corrected_judge, right.version, right.verdicts),
                how,
                told=told,
            )
    if as_json:
        print_json(found.to_json())
        return
    rows = list(shown(found))
    right_columns = set(range(1, len(rows[0])))
    for line in table(rows, width(), whole=set(range(len(rows[0]))), right=right_columns):
        typer.echo(line)
    typer.echo()
    for sentence in said(found):
        typer.echo(sentence)
