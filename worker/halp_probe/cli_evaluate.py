"""`halp-probe evaluate`: the command line over `evaluate`.

Exit codes: 0 done, 1 there are no labels, too few of them, or no such representation or field,
2 the command line is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from halp_probe.cli_fit import AUTO, Folds, InnerFolds, Jobs, Judge, LabelVersion
from halp_probe.console import LabelsFolder, explained
from halp_store.console import AsJson, StorePath, print_json
from halp_store.progress import progress_bar
from halp_store.terminal import printable_lines, table, width

if TYPE_CHECKING:
    from halp_probe.results import Entry, Evaluation, Interval

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-probe evaluate run1.zarr"
    "\n  halp-probe evaluate run1.zarr --classifiers logistic --seeds 1"
    "\n  halp-probe evaluate run1.zarr --combine vision_only+query_token@21 --source-field dataset"
    "\n  halp-probe evaluate run1.zarr --judge halp-reference --json > evaluation.json"
)

_CLASSIFIERS: Final = ("logistic", "mlp")
_ALL: Final = ",".join(_CLASSIFIERS)
_HEADER: Final = ("", "classifier", "AUROC", "95 %", "AUPRC", "ECE", "AURC")
_NUMBERS: Final = {2, 3, 4, 5, 6}

Classifiers = Annotated[
    str,
    typer.Option(metavar="NAMES", help="Of logistic and mlp, with a comma between them."),
]
Seeds = Annotated[int, typer.Option(min=1, help="Partitions into folds, each another one.")]
Samples = Annotated[
    int, typer.Option("--bootstrap", min=100, help="Samples of images, for the intervals.")
]
Combine = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A+B", help="Read these side by side too, such as vision_only+query_token@21."
    ),
]
KindField = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of the metadata. [kind or category, or the judge's kind]"),
]
SourceField = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of the metadata. [dataset or source, or one source]"),
]


def evaluate(
    store: StorePath,
    judge: Judge = AUTO,
    label_version: LabelVersion = None,
    labels: LabelsFolder = None,
    classifiers: Classifiers = _ALL,
    seeds: Seeds = 3,
    folds: Folds = 5,
    inner_folds: InnerFolds = 3,
    bootstrap: Samples = 1000,
    combine: Combine = None,
    kind_field: KindField = None,
    source_field: SourceField = None,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Say how well each representation tells wrong answers from right ones, next to baselines.

    Folds are by image and nothing is chosen on a test fold. Intervals are 95 % bootstrap over
    images, of the mean over seeds.
    """
    names = chosen_classifiers(classifiers)
    with explained():
        import sklearn  # noqa: F401 - says that the extra is missing before the store is read

        from halp_probe.evaluation import Settings
        from halp_probe.evaluation import evaluate as evaluated
        from halp_probe.labels import labels_of
        from halp_store.reader import open_store

        settings = Settings(
            names,
            seeds,
            folds,
            inner_folds,
            bootstrap,
            jobs,
            tuple(combine or ()),
            kind_field,
            source_field,
        )
        whole = open_store(store)
        found = labels_of(whole, judge, label_version, labels)
        with progress_bar("evaluation") as told:
            evaluation = evaluated(
                whole, found.verdicts, f"{found.judge} {found.version}", settings, told
            )
    if as_json:
        print_json(evaluation.to_json())
        return
    for line in described(evaluation):
        typer.echo(line)


def chosen_classifiers(text: str) -> tuple[str, ...]:
    """Of `logistic,mlp`. Raises typer.BadParameter."""
    names = tuple(dict.fromkeys(one.strip() for one in text.split(",") if one.strip()))
    unknown = [one for one in names if one not in _CLASSIFIERS]
    if unknown or not names:
        raise typer.BadParameter(
            f"expected some of {', '.join(_CLASSIFIERS)}, got {text!r}", param_hint="--classifiers"
        )
    return names


def described(found: Evaluation) -> Iterator[str]:
    """What is printed: counts, the table, its parts, and what is to be thought of it."""
    yield from map(printable_lines, _counted(found))
    rows = [_HEADER, *(_line(one) for one in found.entries)]
    yield ""
    yield from table(rows, width(), whole={1, *_NUMBERS}, right=_NUMBERS)
    for title, of, groups in (
        ("kind", "by_kind", found.counts.kinds),
        ("source", "by_source", found.counts.sources),
    ):
        if len(groups) > 1:
            yield ""
            yield from _parts(found, title, of, groups)
    yield ""
    yield from map(printable_lines, _chosen(found))
    yield from _leaks(found)
    yield from _transfers(found)


def _counted(found: Evaluation) -> Iterator[str]:
    counts = found.counts
    labels = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.labels.items()))
    yield f"{found.store}: {counts.stored:,} rows of {found.model}, labelled by {found.judge}"
    yield f"labels: {labels}"
    yield (
        f"learned from: {counts.rows:,} rows on {counts.images:,} images, {counts.wrong:,} wrong "
        f"({counts.wrong / counts.rows:.1%})"
    )
    settings = found.settings
    yield (
        f"folds by image: {settings['folds']}, {settings['inner_folds']} inside; "
        f"{settings['seeds']} seeds; {settings['bootstrap']:,} bootstrap samples; "
        f"{settings['seconds']:,.0f} s"
    )
    if settings["left_out"]:
        yield f"too large, left out: {', '.join(settings['left_out'])}"


def _line(entry: Entry) -> tuple[str, ...]:
    figures = (entry.auprc, entry.ece, entry.aurc)
    name = f"{entry.name} ({entry.note})" if entry.group == "control" else entry.name
    return (
        name,
        entry.classifier,
        _figure(entry.auroc.value),
        _range(entry.auroc),
        *(_figure(one.value) for one in figures),
    )


def _parts(
    found: Evaluation, title: str, of: str, groups: Mapping[str, tuple[int, int]]
) -> Iterator[str]:
    """AUROC of each kind or source: what is chosen, and the baselines."""
    header = (f"AUROC by {title}", "classifier", *groups)
    sizes = ("rows, wrong", "", *(f"{rows:,}, {wrong:,}" for rows, wrong in groups.values()))
    lines = [
        (
            one.name,
            one.classifier,
            *(_figure(part.auroc.value) for part in getattr(one, of).values()),
        )
        for one in found.entries
        if one.group in {"chosen", "baseline"}
    ]
    right = set(range(2, 2 + len(groups)))
    yield from table([header, sizes, *lines], width(), whole={1}, right=right)


def _chosen(found: Evaluation) -> Iterator[str]:
    for classifier, picks in found.picks.items():
        shown = ", ".join(f"{name} {count}x" for name, count in picks.items())
        name, value = found.picked_on_test[classifier]
        yield f"chosen by inner folds ({classifier}): {shown}"
        yield f"  picked on the test folds it would have been {name} with {_figure(value)}"


def _leaks(found: Evaluation) -> Iterator[str]:
    if found.leaks:
        yield ""
        rows = [("leak", "classifier", "folds by image", "folds by question")]
        rows += [
            (one.name, one.classifier, _whole(one.by_image), _whole(one.by_question))
            for one in found.leaks
        ]
        yield from table(rows, width(), whole={1, 2, 3}, right={2, 3})


def _transfers(found: Evaluation) -> Iterator[str]:
    if found.transfers:
        yield ""
        rows = [("transfer", "trained on", "tested on", "rows", "AUROC")]
        rows += [
            (one.name, one.trained_on, one.tested_on, f"{one.rows:,}", _whole(one.auroc))
            for one in found.transfers
        ]
        yield from table(rows, width(), whole={3, 4}, right={3, 4})


def _whole(interval: Interval) -> str:
    return f"{_figure(interval.value)} {_range(interval)}"


def _range(interval: Interval) -> str:
    return f"[{_figure(interval.low)}, {_figure(interval.high)}]"


def _figure(value: Any) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
