"""`halp-probe fit`: the command line over `fit`.

Exit codes: 0 done, 1 there are no labels, too few of them, or no room for the file (or no such
representation), 2 the command line is wrong.
"""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from halp_probe.cli_score import described
from halp_probe.console import LabelsFolder, explained
from halp_store.console import AsJson, StorePath, print_json
from halp_store.opening import opened
from halp_store.progress import progress_bar

if TYPE_CHECKING:
    from halp_probe.probe import Probe
    from halp_probe.representation import Representations
    from halp_store.view import View

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-probe fit run1.zarr --save probe.safetensors"
    "\n  halp-probe fit run1.zarr --representation query_token@21 --save probe.safetensors"
    "\n  halp-probe fit run1.zarr --representation vision_only+query_token@21 --classifier mlp \\"
    "\n    --save probe.safetensors --force"
)

AUTO: Final = "auto"


class ClassifierName(StrEnum):
    """As `halp_probe.classifiers.CLASSIFIERS`, which costs numpy."""

    LOGISTIC = "logistic"
    MLP = "mlp"


Judge = Annotated[
    str, typer.Option("--judge", metavar="NAME", help="Learn from this judge's labels.")
]
LabelVersion = Annotated[
    int | None,
    typer.Option("--label-version", min=1, help="Of the judge's label tables. [the latest]"),
]
Folds = Annotated[int, typer.Option("--folds", min=2, help="Folds by image that measure it.")]
InnerFolds = Annotated[
    int, typer.Option("--inner-folds", min=2, help="Folds inside, that choose what is chosen.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of folds and of first weights.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Processes to train in. [one a core]")
]


def fit(
    store: StorePath,
    save: Annotated[Path, typer.Option("--save", metavar="FILE", help="Probe to write.")],
    judge: Judge = AUTO,
    label_version: LabelVersion = None,
    labels: LabelsFolder = None,
    representation: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What it reads: query_token@21, several with +, or auto: the one that tells best "
            "in the inner folds.",
        ),
    ] = AUTO,
    classifier: Annotated[
        ClassifierName, typer.Option(help="Logistic regression, or an MLP of 512, 256 and 128.")
    ] = ClassifierName.LOGISTIC,
    seed: Seed = 0,
    folds: Folds = 5,
    inner_folds: InnerFolds = 3,
    jobs: Jobs = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a probe on all labelled rows of a store and save it, for workers and for `score`.

    Says how good it is by the same procedure on images that are left out, and what a threshold for
    abstaining would do.
    """
    with explained():
        from halp_probe.fit import How, Origin
        from halp_probe.fit import fit as fitted
        from halp_probe.labels import labels_of
        from halp_probe.probe import save_probe
        from halp_probe.rows import load_rows
        from halp_store.exchange.unfinished import check_free, unfinished

        check_free(save, is_folder=False, force=force)
        whole = opened(store)
        found = labels_of(whole, judge, label_version, labels)
        rows = load_rows(whole, found.verdicts)
        how = How(
            representations_asked(whole, [representation]),
            classifier.value,
            seed,
            folds,
            inner_folds,
            jobs,
        )
        origin = Origin(whole.path, judge, found.version)
        with progress_bar("representations") as told:
            probe = fitted(whole, rows, how, origin, told=told)
        with unfinished(save, is_folder=False, force=force) as path:
            save_probe(probe, path)
    if as_json:
        print_json({"probe": str(save), "sha256": probe.digest, **probe.about})
        return
    for line in described(probe):
        typer.echo(line)
    typer.echo(f"\n{save}: saved\n{_next(save, whole, probe)}")


def representations_asked(store: View, names: list[str]) -> tuple[Representations, ...]:
    """All of the store by themselves, or those that are named. Raises UnknownRepresentation."""
    from halp_probe.fit import all_of
    from halp_probe.representation import parse_representations

    if names == [AUTO] or not names:
        return all_of(store)
    return tuple(parse_representations(store.layout, one) for one in names)


def _next(save: Path, store: View, probe: Probe) -> str:
    path = shlex.quote(str(save))
    if not probe.about["online"]:
        return f"next: halp-probe score {shlex.quote(store.path)} {path}"
    return (
        f"next: halp-worker run --store NEW.zarr --probe {path} --abstain-above RISK"
        "\n(RISK: one of the table; without --abstain-above every answer is generated, and its "
        "risk stored beside it)"
    )
