"""`Probe`: a trained classifier on hidden states, and its file.

The file is safetensors: tensors `mean`, `scale`, `weight.<i>`, `bias.<i>`, and one JSON text in its
metadata. It names the store's model and layout, and is refused for any other. Knows numpy and
safetensors alone, so that a worker can read it without what trained it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from halp_probe.errors import ProbeError
from halp_probe.network import Floats, Network
from halp_probe.representation import (
    Representation,
    Representations,
    UnknownRepresentation,
    name_of,
    representations_of,
    sizes_of,
)
from halp_store.layout import Layout

FORMAT_VERSION: Final = 1
_KEY: Final = "halp_probe"
_CHECKSUM: Final = "sha256"
"""Of all the rest: safetensors has none, and a weight with another bit is a weight."""
_MOST_BYTES: Final = 1 << 30
"""Of a probe file: some hundred times the largest that is written here."""
_CHANGES_NO_STATE: Final = ("generation", "probe")
"""Of a fingerprint: what changes answers, and no state before the first token."""


class BadProbe(ProbeError):  # noqa: N818 - named for what it says
    """The file is no probe, or not one for this model and layout; the message says why."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A classifier, what it reads, and where it may be used.

    parts: what it reads, side by side: F numbers together.
    identity: of the stores it may be used on, see `identity_of`.
    about: JSON object: how it was trained and how good it is; for people.
    """

    parts: Representations
    network: Network
    identity: Mapping[str, Any]
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        return name_of(self.parts)

    def to_bytes(self) -> bytes:
        """What `save_probe` writes; the same probe gives the same bytes."""
        described = {
            "format_version": FORMAT_VERSION,
            "parts": [str(one) for one in self.parts],
            "identity": dict(self.identity),
            "about": dict(self.about),
        }
        tensors = _tensors(self.network)
        text = json.dumps({**described, _CHECKSUM: _checksum(described, tensors)}, sort_keys=True)
        return bytes(save(tensors, metadata={_KEY: text}))

    @property
    def digest(self) -> str:
        """sha256 of the file, hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def identity_of(layout: Layout) -> dict[str, Any]:
    """What has to be the same for a probe to mean the same: model, prompt, image processor, layers,
    positions, sizes and dtype. Not the generation's settings: they come after the states."""
    fingerprint = {k: v for k, v in layout.fingerprint.items() if k not in _CHANGES_NO_STATE}
    whole = {
        **fingerprint,
        "layers": layout.layers,
        "positions": layout.positions,
        "hidden_size": layout.hidden_size,
        "vision_hidden_size": layout.vision_hidden_size,
        "source_dtype": layout.source_dtype,
    }
    found: dict[str, Any] = json.loads(json.dumps(whole))
    return found


def check_fits(probe: Probe, layout: Layout, where: str) -> None:
    """Raises BadProbe naming the fields that differ. where: the probe's file, for the message."""
    ours = identity_of(layout)
    names = sorted(set(ours) | set(probe.identity))
    lines = [
        f"  {name}: the probe has {_shown(probe.identity.get(name))}, here is "
        f"{_shown(ours.get(name))}"
        for name in names
        if ours.get(name) != probe.identity.get(name)
    ]
    if lines:
        raise BadProbe(
            "\n".join([f"{where}: is a probe of another model or layout; these differ:", *lines])
            + "\nfit one on a store of this configuration: halp-probe fit STORE --save FILE"
        )
    there = representations_of(layout)
    if lacking := [str(one) for one in probe.parts if one not in there]:
        raise BadProbe(
            f"{where}: reads {', '.join(lacking)}; here are {', '.join(map(str, there))}"
        )
    sizes = sizes_of(layout, probe.parts)
    if sum(sizes) != len(probe.network.mean):
        raise BadProbe(
            f"{where}: expected {sum(sizes)} inputs for {probe.name}, got {len(probe.network.mean)}"
        )


def save_probe(probe: Probe, path: Path) -> None:
    """Writes a new file. Raises OSError, FileExistsError above all."""
    with path.open("xb") as file:
        file.write(probe.to_bytes())


def load_probe(path: Path) -> Probe:
    """Raises BadProbe or OSError."""
    if path.stat().st_size > _MOST_BYTES:
        raise BadProbe(f"{path}: is no probe: {path.stat().st_size:,} bytes")
    return parse_probe(path.read_bytes(), str(path))


def parse_probe(data: bytes, where: str) -> Probe:
    """Raises BadProbe. where: for the message."""
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        described = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        version = described["format_version"]
        if version != FORMAT_VERSION:
            raise BadProbe(f"{where}: expected probe format {FORMAT_VERSION}, got {version!r}")
        expected = _checksum({k: v for k, v in described.items() if k != _CHECKSUM}, tensors)
        if described[_CHECKSUM] != expected:
            raise BadProbe(f"{where}: is damaged: its checksum is not that of what it holds")
        count = sum(name.startswith("weight.") for name in tensors)
        probe = Probe(
            parts=tuple(Representation.parse(one) for one in described["parts"]),
            network=Network(
                mean=tensors["mean"],
                scale=tensors["scale"],
                weights=tuple(tensors[f"weight.{number}"] for number in range(count)),
                biases=tuple(tensors[f"bias.{number}"] for number in range(count)),
            ),
            identity=described["identity"],
            about=described["about"],
        )
    except BadProbe:
        raise
    except (
        *(SafetensorError, UnknownRepresentation, KeyError, TypeError, ValueError),
        *(AttributeError, RecursionError),
    ) as e:
        raise BadProbe(
            f"{where}: is no probe: expected what `halp-probe fit --save` wrote ({e})"
        ) from e
    _check_shapes(probe, set(tensors), where)
    return probe


def _tensors(network: Network) -> dict[str, Floats]:
    """Under their names in the file."""
    found = {"mean": network.mean, "scale": network.scale}
    pairs = zip(network.weights, network.biases, strict=True)
    for number, (weight, bias) in enumerate(pairs):
        found |= {f"weight.{number}": weight, f"bias.{number}": bias}
    return {name: np.ascontiguousarray(values) for name, values in found.items()}


def _checksum(described: Mapping[str, Any], tensors: Mapping[str, Floats]) -> str:
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name]
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _check_shapes(probe: Probe, names: set[str], where: str) -> None:
    network = probe.network
    if not probe.parts or not isinstance(probe.about, dict):
        raise BadProbe(
            f"{where}: expected what the probe reads, and an object that says what it is"
        )
    width = network.mean.size
    arrays: list[tuple[str, Floats, tuple[int, ...]]] = [
        ("mean", network.mean, (width,)),
        ("scale", network.scale, (width,)),
    ]
    for number, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        out = weight.shape[1] if weight.ndim == 2 else -1
        arrays += [
            (f"weight.{number}", weight, (width, out)),
            (f"bias.{number}", bias, (out,)),
        ]
        width = out
    for name, values, shape in arrays:
        if values.dtype != np.float32 or values.shape != shape:
            raise BadProbe(
                f"{where}: {name}: expected float32 {shape}, got {values.dtype} {values.shape}"
            )
        if not np.isfinite(values).all() or (name == "scale" and (values <= 0).any()):
            raise BadProbe(f"{where}: {name}: has values that are not finite, or scales of 0")
    if width != 1 or not network.weights or not isinstance(probe.identity, dict):
        raise BadProbe(f"{where}: expected linear layers down to one output, got {width}")
    if set(_tensors(network)) != names:
        raise BadProbe(
            f"{where}: expected tensors {sorted(_tensors(network))}, got {sorted(names)}"
        )


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
