"""`halp-probe report`: the command line over `evaluate` and `write_report`.

Exit codes: 0 done, 1 there is no such store, nothing to learn from or no room for the report (or no
such labels), 2 the command line is wrong.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from halp_probe.cli_evaluate import (
    Classifiers,
    Combine,
    KindField,
    Samples,
    Seeds,
    SourceField,
    chosen_classifiers,
)
from halp_probe.cli_fit import AUTO, Folds, InnerFolds, Jobs, Judge, LabelVersion
from halp_probe.console import LabelsFolder, explained
from halp_store.console import StorePath
from halp_store.opening import opened
from halp_store.progress import progress_bar

if TYPE_CHECKING:
    from halp_probe.labels import LabelTable
    from halp_probe.results import Evaluation
    from halp_store.view import View

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-probe report run1.zarr report"
    "\n  halp-probe report run1.zarr report --image-root images/ --force"
    "\n  halp-probe report run1.zarr report --classifiers logistic --seeds 5 --bootstrap 5000"
    "\n  halp-probe report run1.zarr report --combine vision_only+query_token@21"
)

_IMAGES: Final = "images"
"""Beside a store of this machine, as the demo has it."""


def report(
    context: typer.Context,
    store: StorePath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    judge: Judge = AUTO,
    label_version: LabelVersion = None,
    labels: LabelsFolder = None,
    image_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Show pictures from below this folder. [images/ beside the store, if there]",
        ),
    ] = None,
    classifiers: Classifiers = "logistic,mlp",
    seeds: Seeds = 3,
    folds: Folds = 5,
    inner_folds: InnerFolds = 3,
    bootstrap: Samples = 1000,
    combine: Combine = None,
    kind_field: KindField = None,
    source_field: SourceField = None,
    jobs: Jobs = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a report.")] = False,
) -> None:
    """Evaluate all representations of a store, and write a page with tables, plots and examples.

    The page needs nothing else: no server, no network. Labels that are not there yet are made
    first, by judges that need nothing, such as `auto`.
    """
    names = chosen_classifiers(classifiers)
    with explained():
        from datetime import UTC, datetime

        from halp_probe.evaluation import Settings, evaluate
        from halp_probe.report.folder import check_free
        from halp_probe.report.writing import write_report

        # Before anything is read: evaluating takes minutes.
        check_free(out, force=force)
        whole = opened(store)
        table = _labels(whole, judge, label_version, labels)
        settings = Settings(
            classifiers=names,
            seeds=seeds,
            folds=folds,
            inner_folds=inner_folds,
            bootstrap=bootstrap,
            jobs=jobs,
            combine=tuple(combine or ()),
            kind_field=kind_field,
            source_field=source_field,
        )
        named = f"{table.judge} {table.version}"
        with progress_bar("evaluating") as told:
            found = evaluate(whole, table.verdicts, named, settings, told)
        with progress_bar("report") as told:
            page = write_report(
                found,
                whole,
                table.verdicts,
                out,
                image_root=image_root or _beside(store),
                command=shlex.join(_command(context)),
                made=datetime.now(UTC),
                force=force,
                told=told,
            )
    _say(page, found)


def _labels(store: View, judge: str, version: int | None, given: Path | None) -> LabelTable:
    """Those of a judge that needs nothing are made where there are none."""
    from halp_probe.labels import labels_of

    table = labels_of(store, judge, version, given)
    typer.echo(f"labels: {table.path}", err=True)
    return table


def _beside(store: str) -> Path | None:
    from halp_store.address import is_url

    folder = None if is_url(store) else Path(store).absolute().parent / _IMAGES
    return folder if folder is not None and folder.is_dir() else None


def _command(context: typer.Context) -> Iterator[str]:
    """What was typed, without `--force`: it is not needed twice."""
    yield from ("halp-probe", "report")
    for one in context.command.params:
        source = context.get_parameter_source(one.name or "")
        if one.name is None or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[one.name]
        if one.param_type_name == "argument":
            yield str(value)
        elif value is not True:
            for each in value if isinstance(value, list | tuple) else (value,):
                yield from (one.opts[0], str(each))


def _say(page: Path, found: Evaluation) -> None:
    from halp_probe.report.highlights import highlights_of
    from halp_probe.report.sentences import in_short
    from halp_store.terminal import printable

    for sentence in in_short(found, highlights_of(found)):
        typer.echo(printable(sentence))
    typer.echo(f"\n{page}: open it in a browser; figures and plots are beside it")
