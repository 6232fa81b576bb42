"""`measure`: norms, cosines and a projection of a sample of rows: the numbers behind a picture.

Reads one layer of one column at a time, of at most `rows` rows drawn without replacement; the same
store and the same number give the same rows. N rows of the sample, L layers, D hidden size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from halp_store.errors import StoreError
from halp_store.fields import Field
from halp_store.terminal import json_text
from halp_store.view import View

SEED: Final = 0
# Above the tenth colour nobody tells them apart: nine values and what is left.
MOST_GROUPS: Final = 9
# What the band around a mean holds, as quantiles.
BAND: Final = (0.1, 0.9)

Numbers = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Is told (layers read, layers to read)."""


class NothingToMeasure(StoreError):  # noqa: N818 - as in `halp_store.errors`
    """The store has no rows yet."""


@dataclass(frozen=True)
class Band:
    """Over the rows of a sample, one value a layer or a pair of them; NaN where none is defined.

    low, high: the quantiles `BAND`.
    """

    mean: Numbers
    low: Numbers
    high: Numbers


@dataclass(frozen=True)
class Profile:
    """One position. norm: Euclidean, (L,). cosine: between the vectors of a row at layer i and at
    the next stored layer, (L - 1,); undefined for a vector of zeros."""

    position: str
    norm: Band
    cosine: Band


@dataclass(frozen=True)
class Colours:
    """What the points of a projection are coloured by; one of `numbers` and `groups` is there.

    values: N, as stored. numbers: (N,), NaN where there is none. groups: (N,), which of `legend`;
    that holds (value, rows). others: how many values its last entry stands for, or 0.
    """

    name: str
    values: tuple[Any, ...]
    numbers: Numbers | None = None
    groups: npt.NDArray[np.int64] | None = None
    legend: tuple[tuple[str, int], ...] = ()
    others: int = 0


@dataclass(frozen=True)
class Projection:
    """The first two principal components of one representation.

    layer: None for a column without layers. points: (N, 2), or None with `why` there is none.
    explained: shares of the variance, (2,). Signs are such that the largest weight is positive.
    """

    column: str
    layer: int | None
    colours: Colours
    points: Numbers | None
    explained: Numbers
    why: str | None


@dataclass(frozen=True)
class Geometry:
    """ids: of the sample, N. total: rows in the store."""

    ids: tuple[str, ...]
    total: int
    layers: tuple[int, ...]
    profiles: tuple[Profile, ...]
    projection: Projection


def sample(view: View, rows: int) -> View:
    """At most `rows` of the rows, in order of id."""
    if len(view) <= rows:
        return view
    drawn = np.random.default_rng(SEED).choice(len(view), rows, replace=False)
    ids = view.ids
    return view[[ids[row] for row in np.sort(drawn).tolist()]]


def measure(
    store: View,
    *,
    rows: int,
    column: str,
    layer: int | None,
    colour: Field,
    progress: Progress | None = None,
) -> Geometry:
    """column: of vectors, the one to project. layer: a decoder layer index, None for a column
    without layers. colour: of one value a row.

    Raises NothingToMeasure, DamagedSegment, or ValueError listing what there is.
    """
    view = sample(store, rows)
    if not len(view):
        raise NothingToMeasure(
            f"{store.path}: there are no rows to draw yet; start a worker: "
            f"halp-worker run --store {store.path}"
        )
    tell = _Steps(progress, len(view.positions) * len(view.layers) + 1)
    profiles = tuple(_profile(view, position, tell) for position in view.positions)
    points, explained, why = _project(view.array(column, layer)[1])
    tell()
    return Geometry(
        ids=view.ids,
        total=len(store),
        layers=view.layers,
        profiles=profiles,
        projection=Projection(column, layer, _colours(view, colour), points, explained, why),
    )


def principal_components(values: npt.NDArray[Any]) -> tuple[Numbers, Numbers]:
    """(N, 2) and the shares of variance (2,) of (N, D), by singular values.

    Raises ValueError, with the reason, where two components are not defined.
    """
    count = len(values)
    if count < 3:  # any two points lie on a line
        raise ValueError(f"takes 3 rows at least; there {_are(count)}")
    centred = values.astype(np.float64)
    centred -= centred.mean(axis=0)
    # Of the smaller of both Gram matrices: what a sample of thousands takes seconds for.
    rows_fewer = count <= centred.shape[1]
    gram = centred @ centred.T if rows_fewer else centred.T @ centred
    squares, vectors = np.linalg.eigh(gram)
    total = float(np.trace(gram))
    scale = float(np.abs(values).max()) or 1.0
    if total <= count * (scale * np.finfo(np.float32).eps) ** 2 * values.shape[1]:
        raise ValueError(f"all {count:,} vectors are the same")
    if len(squares) < 2:
        raise ValueError("takes 2 dimensions at least")
    squares, vectors = np.maximum(squares[:-3:-1], 0.0), vectors[:, :-3:-1]
    if rows_fewer:
        points = vectors * np.sqrt(squares)
        weights = centred.T @ vectors
    else:
        points, weights = centred @ vectors, vectors
    largest = np.abs(weights).argmax(axis=0)
    signs = np.where(weights[largest, [0, 1]] < 0, -1.0, 1.0)
    return points * signs, squares / total


class _Steps:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _profile(view: View, position: str, tell: _Steps) -> Profile:
    norms, cosines = [], []
    before: npt.NDArray[np.float32] | None = None
    before_norm = np.empty(0)
    for layer in view.layers:
        here = view.array(position, layer)[1]
        norm = np.sqrt(np.einsum("nd,nd->n", here, here, dtype=np.float64))
        if before is not None:
            product = np.einsum("nd,nd->n", before, here, dtype=np.float64)
            lengths = before_norm * norm
            defined = lengths > 0
            cosines.append(product[defined] / lengths[defined])
        norms.append(norm)
        before, before_norm = here, norm
        tell()
    return Profile(position, _band(norms), _band(cosines))


def _band(values: list[Numbers]) -> Band:
    """Of the rows of each."""
    none = (np.nan, np.nan, np.nan)
    found = [(one.mean(), *np.quantile(one, BAND)) if len(one) else none for one in values]
    table = np.array(found, np.float64).reshape(len(values), 3)
    return Band(table[:, 0], table[:, 1], table[:, 2])


def _project(values: npt.NDArray[np.float32]) -> tuple[Numbers | None, Numbers, str | None]:
    try:
        points, explained = principal_components(values)
    except ValueError as error:
        return None, np.full(2, np.nan), f"a projection {error}"
    return points, explained, None


def _colours(view: View, field: Field) -> Colours:
    values = tuple(field.values(view.read([field.column])))
    sizes = [_number(one) for one in values]
    there = [one for one in values if one is not None]
    numeric = bool(there) and len(there) == sum(one is not None for one in sizes)
    # Few different ones in the metadata are labels, such as 0 and 1; a count or a score is always a
    # size.
    if field.is_integer or (numeric and (field.is_score or len(set(there)) > MOST_GROUPS)):
        numbers = np.array([np.nan if one is None else one for one in sizes])
        return Colours(field.name, values, numbers=numbers)
    labels = ["none" if one is None else _label(one) for one in values]
    counts = sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0]))
    few = counts if len(counts) <= MOST_GROUPS + 1 else counts[:MOST_GROUPS]
    if numeric:
        few = sorted(few, key=lambda item: float(item[0]) if item[0] != "none" else np.inf)
    place = {label: number for number, (label, _) in enumerate(few)}
    groups = np.array([place.get(label, len(few)) for label in labels], np.int64)
    rest = counts[len(few) :]
    other = [(f"{len(rest):,} others", sum(count for _, count in rest))] if rest else []
    return Colours(field.name, values, groups=groups, legend=(*few, *other), others=len(rest))


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # of an integer with hundreds of digits, which JSON may hold
        return None
    return number if math.isfinite(number) else None


def _label(value: object) -> str:
    return value if isinstance(value, str) else json_text(value)


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"
