"""`halp-store plot`: the command line over `measure` and `draw`.

Exit codes: 0 done, 1 there is no such store, no row or no room for the picture (or the store is
damaged), 2 the command line is wrong, or names a column that is not there.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from halp_store.console import StorePath, fail, guarded
from halp_store.fields import Field, UnknownField, scalar_of
from halp_store.opening import opened
from halp_store.progress import progress_bar
from halp_store.terminal import json_text

if TYPE_CHECKING:
    from halp_store.geometry import Band, Geometry
    from halp_store.layout import Layout
    from halp_store.reader import Store

EXAMPLES: Final = (
    "\b\nExamples:"
    "\n  halp-store plot run1.zarr"
    "\n  halp-store plot run1.zarr --out run1.pdf --column query_token --layer 21"
    "\n  halp-store plot run1.zarr --color metadata.dataset --rows 5000 --force"
    "\n  halp-store plot run1.zarr --color answer_tokens --json"
)

_OUT: Final = Path("plot.png")
_FORMS: Final = ("png", "svg", "pdf")
# Enough that a mean is known to about a fiftieth of the spread, and dots are dots.
_ROWS: Final = 2000


def plot(
    store: StorePath,
    out: Annotated[
        Path | None, typer.Option(help=f"Picture to write: .png, .svg or .pdf. [{_OUT}]")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Vectors to project in two dimensions. [query_token]"),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(help="Of this decoder layer, if the column has layers. [the last but one]"),
    ] = None,
    color: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Colour the projection by this: a column of texts, integers or scores, or "
            "metadata.NAME.",
        ),
    ] = "finish_reason",
    rows: Annotated[
        int, typer.Option(min=1, help="Draw at most so many rows, chosen at random.")
    ] = _ROWS,
    force: Annotated[bool, typer.Option("--force", help="Replace a picture.")] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the numbers behind it as one JSON object; draw only if --out is given.",
        ),
    ] = False,
) -> None:
    """Draw norms and cosines between layers for each position, and a projection in two dimensions.

    Lines are means over questions, bands their 10th to 90th percentile; the projection is onto the
    first two principal components.
    """
    picture = _OUT if out is None and not as_json else out
    if picture is not None:
        _check_free(picture, force=force)
    whole = opened(store)
    name, at = _representation(whole.layout, column, layer)
    try:
        colour = scalar_of(whole.layout, color)
    except UnknownField as error:
        raise typer.BadParameter(str(error), param_hint="--color") from None
    found = guarded(partial(_measured, whole, rows, name, at, colour))
    if picture is not None:
        guarded(partial(_draw, whole.layout, found, picture, force))
    if as_json:
        typer.echo(json_text(_numbers(whole, found)))
        return
    among = f"{len(found.ids):,} of {found.total:,} rows"
    where = name if at is None else f"{name} at layer {at}"
    typer.echo(f"{picture}: {among}; the projection is of {where}, coloured by {color}")


def _check_free(picture: Path, *, force: bool) -> None:
    """Before anything is read, which may take a while."""
    if picture.suffix.lower().removeprefix(".") not in _FORMS:
        raise typer.BadParameter(
            f"{picture}: expected a name that ends in .png, .svg or .pdf", param_hint="--out"
        )
    from halp_store.exchange.unfinished import check_free

    guarded(partial(check_free, picture, is_folder=False, force=force))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        fail("halp-store plot needs matplotlib: pip install 'halp-stream[store]'")


def _representation(
    layout: Layout, column: str | None, layer: int | None
) -> tuple[str, int | None]:
    """Which vectors to project, at which layer; None for those that have none."""
    vectors = layout.vector_columns()
    usual = "query_token" if "query_token" in layout.positions else [*layout.positions, *vectors][0]
    name = usual if column is None else column
    if name not in vectors:
        raise typer.BadParameter(
            f"no column of vectors {name!r}; there are {', '.join(vectors)}", param_hint="--column"
        )
    if name not in layout.positions:
        if layer is not None:
            raise typer.BadParameter(
                f"{name} has no layers; {', '.join(layout.positions)} have", param_hint="--layer"
            )
        return name, None
    if layer is None:
        return name, layout.layers[-2:][0]
    if layer not in layout.layers:
        there = ", ".join(map(str, layout.layers))
        raise typer.BadParameter(
            f"layer {layer} is not stored; there are {there}", param_hint="--layer"
        )
    return name, layer


def _measured(store: Store, rows: int, column: str, layer: int | None, colour: Field) -> Geometry:
    from halp_store.geometry import measure

    with progress_bar("layers") as progress:
        return measure(
            store, rows=rows, column=column, layer=layer, colour=colour, progress=progress
        )


def _draw(layout: Layout, found: Geometry, picture: Path, force: bool) -> None:
    from halp_store.exchange.unfinished import unfinished
    from halp_store.plot import draw

    form = picture.suffix.lower().removeprefix(".")
    with unfinished(picture, is_folder=False, force=force) as path:
        draw(found, path, form, model=_model(layout), dtype=layout.source_dtype)


def _model(layout: Layout) -> str:
    model = layout.fingerprint.get("model", "model unknown")
    return model if isinstance(model, str) else json_text(model)


def _numbers(store: Store, found: Geometry) -> dict[str, Any]:
    from halp_store.geometry import BAND, SEED

    projection = found.projection
    points = projection.points
    return {
        "store": store.path,
        "model": store.layout.fingerprint.get("model"),
        "source_dtype": store.layout.source_dtype,
        "total": found.total,
        "rows": len(found.ids),
        "seed": SEED if len(found.ids) < found.total else None,
        "band": list(BAND),
        "layers": list(found.layers),
        "positions": {
            one.position: {"norm": _band(one.norm), "cosine_to_next": _band(one.cosine)}
            for one in found.profiles
        },
        "projection": {
            "column": projection.column,
            "layer": projection.layer,
            "explained": None if points is None else projection.explained.tolist(),
            "why_not": projection.why,
            "color": projection.colours.name,
            "points": [
                {"question_id": one, "x": x, "y": y, "color": value}
                for one, (x, y), value in zip(
                    found.ids,
                    [(None, None)] * len(found.ids) if points is None else points.tolist(),
                    projection.colours.values,
                    strict=True,
                )
            ],
        },
    }


def _band(band: Band) -> dict[str, list[float | None]]:
    """Of JSON, which has no NaN."""
    return {
        name: [one if math.isfinite(one) else None for one in values.tolist()]
        for name, values in (("mean", band.mean), ("low", band.low), ("high", band.high))
    }
