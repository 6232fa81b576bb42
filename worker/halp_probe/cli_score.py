"""`halp-probe score` and `halp-probe show`: the command lines over `score` and a probe's file.

Exit codes: 0 done, 1 the probe is none, or not for this store (or there is no such file), 2 the
command line is wrong.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from halp_probe.console import explained
from halp_store.console import AsJson, StorePath, print_json
from halp_store.opening import opened
from halp_store.progress import progress_bar
from halp_store.terminal import fields, json_text, table, width

if TYPE_CHECKING:
    from halp_probe.probe import Probe
    from halp_probe.score import Scores

SCORE_EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-probe score run2.zarr probe.safetensors --out risks.csv"
    "\n  halp-probe score run2.zarr probe.safetensors | sort -t, -k2 -g | tail"
    "\n  halp-probe score run2.zarr probe.safetensors --json"
)
SHOW_EXAMPLES: Final = (
    "\b\nExamples:\n  halp-probe show probe.safetensors\n  halp-probe show probe.safetensors --json"
)

_HEADER: Final = ("question_id", "risk")
# As printed: shares at a threshold, and their names in a probe's file.
_SHARES: Final = {
    "answers skipped": "share",
    "wrong of those": "precision",
    "of all wrong": "caught",
    "wrong of the rest": "wrong_below",
}
NOT_ONLINE: Final = (
    "its store was imported, and nobody knows of which model: no worker can use it; score stores "
    "of the same import with it"
)

ProbePath = Annotated[
    Path, typer.Argument(metavar="PROBE", help="File that `halp-probe fit --save` wrote.")
]


def score(
    store: StorePath,
    probe: ProbePath,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV to write. [standard output]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Risk of every row of a store, offline: CSV with question_id and risk.

    Where a worker stored risks too, says how far these are from them.
    """
    with explained():
        from halp_probe.probe import load_probe
        from halp_probe.score import score as scored
        from halp_store.exchange.unfinished import check_free, unfinished

        if out is not None:
            check_free(out, is_folder=False, force=force)
        read = load_probe(probe)
        whole = opened(store)
        with progress_bar("rows") as told:
            found = scored(whole, read, str(probe), told=told)
        if out is not None:
            with (
                unfinished(out, is_folder=False, force=force) as path,
                path.open("w", newline="", encoding="utf-8") as file,
            ):
                csv.writer(file).writerows(_lines(found))
    if as_json:
        print_json(_json(whole.path, read, found, with_risks=out is None))
        return
    if out is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(_lines(found))
    else:
        typer.echo(f"{out}: {len(found.ids):,} rows")
    for sentence in _compared(found):
        typer.echo(sentence, err=True)


def show(probe: ProbePath, as_json: AsJson = False) -> None:
    """What a probe is: for which model and layout, how good, and what a threshold would do."""
    with explained():
        from halp_probe.probe import load_probe

        read = load_probe(probe)
    if as_json:
        print_json(
            {
                "probe": str(probe),
                "sha256": read.digest,
                "representation": read.name,
                "inputs": len(read.network.mean),
                "layers": [list(one.shape) for one in read.network.weights],
                "identity": read.identity,
                "about": read.about,
            }
        )
        return
    for line in described(read):
        typer.echo(line)


def described(probe: Probe) -> Iterator[str]:
    """Lines for people. `about` is anybody's JSON: what it lacks is not said."""
    about = probe.about
    sizes = " -> ".join(str(len(one)) for one in probe.network.weights)
    said = {
        "reads": probe.name,
        "classifier": f"{about.get('classifier')}: {sizes} -> 1; {json_text(about.get('chosen'))}",
        "trained_on": f"{_count(about.get('rows'))} rows of {about.get('store')}, "
        f"{_count(about.get('wrong'))} wrong, {_count(about.get('images'))} images",
        "labels": f"judge {about.get('judge')}, version {about.get('label_version')}",
        "AUROC": f"{_interval(about.get('auroc'))} on images that it did not learn from",
    }
    picks = about.get("picks")
    if isinstance(picks, dict) and len(about.get("chosen_among") or ()) > 1:
        said["picks"] = ", ".join(f"{name} ({count}x)" for name, count in picks.items())
    quantiles = about.get("risk_quantiles")
    if isinstance(quantiles, dict):
        said["risk, by quantile"] = ", ".join(
            f"{at}: {_number(value)}" for at, value in quantiles.items()
        )
    said |= {"made": str(about.get("created")), "versions": json_text(about.get("versions"))}
    for name, value in sorted(probe.identity.items()):
        said[f"only for {name}"] = value if isinstance(value, str) else json_text(value)
    yield from fields(said)
    if about.get("online") is False:
        yield f"online: no: {NOT_ONLINE}"
    yield from threshold_lines(about)


def threshold_lines(about: Mapping[str, Any]) -> Iterator[str]:
    """The table to choose `--abstain-above` from."""
    found = about.get("thresholds")
    rows = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    if not rows:
        return
    yield "--abstain-above, on images that it did not learn from:"
    cells = [
        [_threshold(one.get("above")), *(_percent(one.get(name)) for name in _SHARES.values())]
        for one in rows
    ]
    header = ["risk above", *_SHARES]
    right = set(range(len(header)))
    yield from table([header, *cells], width(), whole=right, right=right)


def _lines(found: Scores) -> Iterator[tuple[str, str]]:
    yield _HEADER
    yield from zip(found.ids, map(str, found.risk), strict=True)


def _compared(found: Scores) -> Iterator[str]:
    if found.same_probe is None:
        return
    if not found.compared:
        yield "the store has a column of risks, and no row has one"
        return
    if not found.same_probe:
        yield "the stored risks are of another probe"
    yield (
        f"largest difference from {found.compared:,} stored risks: {found.largest_difference:.3g}"
    )


def _json(store: str, probe: Probe, found: Scores, *, with_risks: bool) -> dict[str, Any]:
    risks = dict(zip(found.ids, map(float, found.risk), strict=True))
    return {
        "store": store,
        "representation": probe.name,
        "sha256": probe.digest,
        "rows": len(found.ids),
        "compared": found.compared,
        "largest_difference": found.largest_difference,
        "same_probe": found.same_probe,
        **({"risks": risks} if with_risks else {}),
    }


def _interval(value: Any) -> str:
    if not isinstance(value, dict):
        return "unknown"
    low, high = _number(value.get("low")), _number(value.get("high"))
    return f"{_number(value.get('value'))} [{low}, {high}]"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def _threshold(value: Any) -> str:
    """As it would be typed."""
    return f"{value:.2f}" if isinstance(value, int | float) else "-"


def _percent(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else "-"
