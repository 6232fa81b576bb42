"""`Foresight`: a probe in a worker: the risk of each answer, from prefill states, on the device.

Knows which states a probe reads and what may be skipped for it; refuses to know how it was trained.
The numbers are computed in float64 (float32 on MPS, which has no other): it is a few matrices for a
whole batch, TF32 has no say in it, and what is left to differ from `Network.risk` on the stored
states is that one's own float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from halp_probe.probe import BadProbe, Probe, check_fits, load_probe
from halp_probe.representation import Representation
from halp_store.layout import Layout
from halp_worker.fates import FatalError
from halp_worker.model.prefill import Prefilled


@dataclass(frozen=True)
class Foresight:
    """A probe as a worker uses it. file: its name, for messages.

    abstain_above: an answer of a risk above this is not generated; None, every answer is.
    """

    probe: Probe
    file: str
    abstain_above: float | None = None

    @classmethod
    def read(cls, path: Path | None, abstain_above: float | None) -> Foresight | None:
        """None without a file. Raises FatalError if it is no probe, or cannot be read."""
        if path is None:
            return None
        try:
            return cls(load_probe(path), str(path), abstain_above)
        except BadProbe as error:
            raise FatalError(f"--probe {error}") from error
        except OSError as error:
            raise FatalError(f"--probe {path}: {error.strerror or error}") from error

    def check(self, layout: Layout) -> None:
        """Raises FatalError if the probe is of another model or layout, naming the fields."""
        try:
            check_fits(self.probe, layout, self.file)
        except BadProbe as error:
            raise FatalError(f"--probe {error}") from error

    def fingerprint(self) -> dict[str, Any]:
        """What of it shapes a stored number: rows of another probe or threshold are others."""
        return {"sha256": self.probe.digest, "abstain_above": self.abstain_above}

    def answered(self, risk: torch.Tensor) -> list[int]:
        """(B,) -> the rows to generate answers for. Waits for the device, with a threshold."""
        if self.abstain_above is None:
            return list(range(len(risk)))
        below = (risk <= self.abstain_above).tolist()
        return [row for row, is_below in enumerate(below) if is_below]


class DeviceProbe:
    """A probe's numbers on a device. One for each worker; a few MB at most."""

    def __init__(self, probe: Probe, layout: Layout, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        network = probe.network
        self._places = [_Place.of(part, layout) for part in probe.parts]
        self._mean, self._scale = (
            torch.from_numpy(one).to(device, dtype) for one in (network.mean, network.scale)
        )
        self._linear = [
            (torch.from_numpy(weight).to(device, dtype), torch.from_numpy(bias).to(device, dtype))
            for weight, bias in zip(network.weights, network.biases, strict=True)
        ]

    def risk(self, parts: Sequence[Prefilled]) -> torch.Tensor:
        """Of the rows of all parts, in their order: (B,) float32 on the probe's device."""
        features = torch.cat([self._features(part) for part in parts])
        values = (features - self._mean) / self._scale
        for number, (weight, bias) in enumerate(self._linear):
            values = (values.relu() if number else values) @ weight + bias
        return values[:, 0].sigmoid().float()

    def _features(self, states: Prefilled) -> torch.Tensor:
        """(n, F) of n rows: the probe's parts side by side."""
        # Of the same values as are stored: float32 and float64 hold what bfloat16 does.
        return torch.cat([place.take(states).to(self._mean) for place in self._places], dim=1)


@dataclass(frozen=True)
class _Place:
    """Where `Prefilled` has a representation. index: of position and layer; None of an image's."""

    field: str
    index: tuple[int, int] | None

    @classmethod
    def of(cls, part: Representation, layout: Layout) -> _Place:
        if part.layer is None:
            return cls(part.column, None)
        return cls("tokens", (layout.positions.index(part.column), layout.layers.index(part.layer)))

    def take(self, states: Prefilled) -> torch.Tensor:
        """(n, D) or (n, V)."""
        values: torch.Tensor = getattr(states, self.field)
        return values if self.index is None else values[:, self.index[0], self.index[1]]
