"""`score`: the risk of every row of a store by a probe, offline.

Reads vectors a batch at a time, nothing else. The same numbers as a worker's, but for rounding:
`Scores.largest_difference` says how far, where the store has a worker's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from halp_probe.network import Floats
from halp_probe.probe import Probe, check_fits

if TYPE_CHECKING:
    from halp_probe.representation import Representation
    from halp_store.view import View

RISK: Final = "risk"
"""The store's column of what a worker computed."""
# Of vectors at a time: a few MB of one layer.
_BATCH_ROWS: Final = 1024

Told = Callable[[int, int], None]
"""Is told (rows done, of how many)."""


@dataclass(frozen=True, eq=False)
class Scores:
    """N rows, in the store's order. risk: (N,) float32.

    compared: rows that have a stored risk. largest_difference: from it; None where there is none.
    same_probe: whether the stored ones are of this very file; None where the store has none.
    """

    ids: tuple[str, ...]
    risk: Floats
    compared: int
    largest_difference: float | None
    same_probe: bool | None


def score(store: View, probe: Probe, where: str, *, told: Told | None = None) -> Scores:
    """where: the probe's file, for messages. Raises BadProbe or DamagedSegment."""
    check_fits(probe, store.layout, where)
    risk = np.empty(len(store), np.float32)
    done = 0
    layers = sorted({one.layer for one in probe.parts if one.layer is not None})
    columns = tuple(dict.fromkeys(one.column for one in probe.parts))
    batches = store.iter_batches(columns, layers=layers or None, batch_rows=_BATCH_ROWS)
    for batch in batches if len(store) else ():
        x = np.concatenate([_part(batch, one, layers) for one in probe.parts], axis=1)
        risk[done : done + len(x)] = probe.network.risk(x)
        done += len(x)
        if told is not None:
            told(done, len(store))
    if RISK not in store.layout.scores:
        return Scores(store.ids, risk, 0, None, None)
    stored = store.read([RISK])[RISK]
    there = ~np.isnan(stored)
    differences = np.abs(stored[there].astype(np.float64) - risk[there])
    return Scores(
        ids=store.ids,
        risk=risk,
        compared=int(there.sum()),
        largest_difference=float(differences.max()) if len(differences) else None,
        same_probe=_stored_digest(store) == probe.digest,
    )


def _part(
    batch: dict[str, npt.NDArray[Any]], part: Representation, layers: list[int]
) -> npt.NDArray[np.float32]:
    values = batch[part.column]
    return values if part.layer is None else values[:, layers.index(part.layer)]


def _stored_digest(store: View) -> str | None:
    """Of the probe that wrote the store's risks, as its fingerprint says."""
    said = store.layout.fingerprint.get("probe")
    return said.get("sha256") if isinstance(said, dict) else None
