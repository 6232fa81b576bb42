"""Which decoder layers and positions are stored, and the layout that follows from the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Protocol

import torch

from halp_store.layout import ANSWER_SCORES, DEFAULT_POSITIONS, Layout
from halp_worker.fates import FatalError
from halp_worker.model.blueprint import Blueprint
from halp_worker.model.checkpoint import Checkpoint
from halp_worker.model.inputs import render, user_turn
from halp_worker.model.loading import LoadedModel
from halp_worker.model.parts import decoder_devices, shard_count
from halp_worker.model.positions import POSITIONS
from halp_worker.model.risk import Foresight
from halp_worker.model.segments import attention_kernel


def choose_layers(wanted: str, n_layers: int) -> tuple[int, ...]:
    """`auto`: 0, n/4, n/2, 3n/4, n-1. Else a comma-separated list of layer indices.

    Ascending, each once. Raises FatalError for an index the model does not have.
    """
    if wanted == "auto":
        chosen = {0, n_layers // 4, n_layers // 2, 3 * n_layers // 4, n_layers - 1}
        return tuple(sorted(chosen))
    try:
        indices = {int(part) for part in wanted.split(",")}
    except ValueError:
        raise FatalError(f"--layers {wanted!r}: expected auto or numbers like 0,7,14") from None
    outside = sorted(index for index in indices if not 0 <= index < n_layers)
    if outside:
        raise FatalError(f"--layers: {outside} not in this model, it has 0 to {n_layers - 1}")
    return tuple(sorted(indices))


def choose_positions(wanted: Sequence[str]) -> tuple[str, ...]:
    """The default positions and the extra ones asked for, in the order of `POSITIONS`."""
    unknown = sorted(set(wanted) - set(POSITIONS))
    if unknown:
        raise FatalError(f"--positions: {unknown} unknown, there are {', '.join(POSITIONS)}")
    return tuple(name for name in POSITIONS if name in {*DEFAULT_POSITIONS, *wanted})


class Identity(Protocol):
    """Which files a checkpoint is. `Checkpoint` is one, and needs its weights for it."""

    @property
    def revision(self) -> Any: ...
    @property
    def older_revision(self) -> Any: ...
    @property
    def weights(self) -> Any: ...


@dataclass(frozen=True)
class AssumedIdentity:
    """Of a checkpoint whose weights are not there yet: what only they tell is taken from the
    fingerprint that it is compared with."""

    revision: Any
    older_revision: Any
    weights: Any

    @classmethod
    def of(cls, checkpoint: Checkpoint, fingerprint: Mapping[str, Any]) -> AssumedIdentity:
        revision = checkpoint.commit or fingerprint.get("revision")
        return cls(revision, revision, fingerprint.get("weights"))


def layout_of(
    model: Blueprint,
    layers: tuple[int, ...],
    positions: tuple[str, ...],
    foresight: Foresight | None = None,
) -> Layout:
    """The store's layout: sizes from the model, and the fingerprint of all that shapes a number.

    Needs the weight files. Raises FatalError if the probe is not one for this layout.
    """
    layout = _describe(model, layers, positions, foresight, model.checkpoint)
    if foresight is not None:
        _check_probe(foresight, layout, model.checkpoint)
    return layout


def expected_layout(
    model: Blueprint,
    layers: tuple[int, ...],
    positions: tuple[str, ...],
    foresight: Foresight | None,
    stored: Layout | None,
) -> Layout:
    """As `layout_of`, in the words of the store that is there, for weights that are not: they are
    taken for the right ones."""
    if foresight is not None:
        files = AssumedIdentity.of(model.checkpoint, foresight.probe.identity)
        _check_probe(foresight, _describe(model, layers, positions, foresight, files), files)
    files = AssumedIdentity.of(model.checkpoint, {} if stored is None else stored.fingerprint)
    layout = _describe(model, layers, positions, foresight, files)
    return layout if stored is None else as_stored(layout, files, stored)


def _describe(
    model: Blueprint,
    layers: tuple[int, ...],
    positions: tuple[str, ...],
    foresight: Foresight | None,
    files: Identity,
) -> Layout:
    generation = model.generation
    fingerprint = {
        "model": model.name,
        "revision": files.revision,
        "weights": files.weights,
        "prompt": render(model.processor, user_turn({"type": "image"}, "{question}")),
        "image_processor": _image_processor(model.processor.image_processor),
        "generation": {
            "do_sample": False,
            "num_beams": 1,
            "max_new_tokens": generation.max_new_tokens,
            "eos_token_id": list(generation.stop_tokens),
            "repetition_penalty": generation.repetition_penalty,
        },
    }
    if foresight is not None:
        fingerprint["probe"] = foresight.fingerprint()
    return Layout(
        layers=layers,
        positions=positions,
        hidden_size=model.hidden_size,
        vision_hidden_size=model.vision_hidden_size,
        source_dtype=model.dtype,
        fingerprint=fingerprint,
        scores=ANSWER_SCORES if foresight is None else (*ANSWER_SCORES, "risk"),
    )


def _check_probe(foresight: Foresight, layout: Layout, files: Identity) -> None:
    known = foresight.probe.identity.get("weights") is not None
    foresight.check(layout if known else as_before_version_3(layout, files))


def as_stored(layout: Layout, files: Identity, stored: Layout) -> Layout:
    """`layout` in the words of a store that is there: those of before layout version 3 know less
    of the model, and those of version 1 have no scores."""
    if "weights" not in stored.fingerprint and "revision" in stored.fingerprint:
        layout = as_before_version_3(layout, files, stored.fingerprint)
    if stored.scores == () and layout.scores == ANSWER_SCORES:
        layout = replace(layout, scores=())
    return layout


def as_before_version_3(
    layout: Layout, files: Identity, stored: Mapping[str, Any] | None = None
) -> Layout:
    """`layout` with the fingerprint that these files had before layout version 3: the digest of
    samples of the files, no digest of the weights, stop tokens in the stored order, and no
    repetition penalty where there is none."""
    fingerprint = {name: value for name, value in layout.fingerprint.items() if name != "weights"}
    generation = dict(fingerprint["generation"])
    if generation["repetition_penalty"] == 1.0:
        del generation["repetition_penalty"]
    stops = ((stored or {}).get("generation") or {}).get("eos_token_id")
    if isinstance(stops, list) and set(stops) == set(generation["eos_token_id"]):
        generation["eos_token_id"] = stops
    changes = {"revision": files.older_revision, "generation": generation}
    return replace(layout, fingerprint={**fingerprint, **changes})


def provenance_of(loaded: LoadedModel, batch_size: int) -> dict[str, Any]:
    """What else may matter when two numbers differ: recorded with each segment."""
    packages = ("halp-stream", "torch", "torchvision", "transformers", "qwen-vl-utils", "pillow")
    is_cuda = loaded.device.type == "cuda"
    return {
        "packages": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name(loaded.device) if is_cuda else loaded.device.type,
        "attention": attention_kernel(loaded.device, loaded.model.dtype),
        "batch_size": batch_size,
        "devices": dict(Counter(map(str, decoder_devices(loaded.model)))),
        "tensor_parallel": shard_count(loaded.model),
    }


def _image_processor(processor: Any) -> dict[str, Any]:
    return {
        "class": type(processor).__name__,
        "min_pixels": int(processor.size["shortest_edge"]),
        "max_pixels": int(processor.size["longest_edge"]),
        "patch_size": int(processor.patch_size),
        "temporal_patch_size": int(processor.temporal_patch_size),
        "merge_size": int(processor.merge_size),
        "image_mean": [float(value) for value in processor.image_mean],
        "image_std": [float(value) for value in processor.image_std],
        "resample": int(processor.resample),
    }
