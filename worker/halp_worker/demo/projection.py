"""`draw_projection`: the hidden states of right and wrong answers, in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from halp_probe.judging.verdict import Label
from halp_store.fields import scalar_of
from halp_store.geometry import Colours, measure
from halp_store.plot import draw
from halp_store.reader import Store

COLUMN: Final = "query_token"

_SIDES: Final = tuple(map(str, Label))


def draw_projection(store: Store, labels: Mapping[str, Label], path: Path) -> int:
    """Writes a PNG as `halp-store plot` does, coloured by right and wrong; returns its layer.

    labels: question id to what was said of its answer, for every row.
    """
    layer = store.layers[-2]
    field = scalar_of(store.layout, "answer")
    found = measure(store, rows=len(store), column=COLUMN, layer=layer, colour=field)
    values = tuple(str(labels[question_id]) for question_id in found.ids)
    sides = [one for one in _SIDES if one in values]
    colours = Colours(
        name="the answer is",
        values=values,
        groups=np.array([sides.index(one) for one in values], np.int64),
        legend=tuple((side, values.count(side)) for side in sides),
    )
    found = replace(found, projection=replace(found.projection, colours=colours))
    dtype = store.layout.source_dtype
    draw(found, path, "png", model="The demo's Qwen2.5-VL", dtype=dtype)
    return layer
