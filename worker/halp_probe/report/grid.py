"""`Grid`: the AUROC of one classifier by representation and layer. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from halp_probe.representation import Representation
from halp_probe.results import Evaluation, Group

NO_LAYER: Final = None


@dataclass(frozen=True, eq=False)
class Grid:
    """columns: representations, those without layers first, else as in the evaluation. layers:
    ascending, NO_LAYER first. values: (columns, layers), NaN where there is none."""

    classifier: str
    columns: tuple[str, ...]
    layers: tuple[int | None, ...]
    values: npt.NDArray[np.float64]


def grid_of(evaluation: Evaluation, classifier: str) -> Grid | None:
    """None where this classifier was not evaluated on single representations."""
    cells: dict[tuple[str, int | None], float] = {}
    for one in evaluation.entries:
        if one.group is Group.REPRESENTATION and one.classifier == classifier:
            what = Representation.parse(one.name)
            cells[what.column, what.layer] = one.auroc.value
    if not cells:
        return None
    columns = tuple(dict.fromkeys(column for column, _ in cells))
    layered = {column for column, layer in cells if layer is not None}
    columns = tuple(sorted(columns, key=lambda one: one in layered))
    layers = tuple(
        sorted({layer for _, layer in cells}, key=lambda one: -1 if one is None else one)
    )
    values = np.full((len(columns), len(layers)), math.nan)
    for (column, layer), value in cells.items():
        values[columns.index(column), layers.index(layer)] = value
    return Grid(classifier, columns, layers, values)
