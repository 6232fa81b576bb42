"""`draw_projection`: the hidden states of right and wrong answers, in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from halp_store.fields import scalar_of
from halp_store.geometry import Colours, measure
from halp_store.plot import draw
from halp_store.reader import Store

COLUMN: Final = "query_token"

_SIDES: Final = ("right", "wrong")


def draw_projection(store: Store, right: Mapping[str, bool], path: Path) -> int:
    """Writes a PNG as `halp-store plot` does, coloured by right and wrong; returns its layer.

    right: question id to whether its answer is right, for every row.
    """
    layer = store.layers[-2]
    field = scalar_of(store.layout, "answer")
    found = measure(store, rows=len(store), column=COLUMN, layer=layer, colour=field)
    values = tuple(_SIDES[not right[question_id]] for question_id in found.ids)
    colours = Colours(
        name="the answer is",
        values=values,
        groups=np.array([_SIDES.index(one) for one in values], np.int64),
        legend=tuple((side, values.count(side)) for side in _SIDES),
    )
    found = replace(found, projection=replace(found.projection, colours=colours))
    dtype = store.layout.source_dtype
    draw(found, path, "png", model="The demo's Qwen2.5-VL", dtype=dtype)
    return layer
