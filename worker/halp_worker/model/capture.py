"""`PrefillCapture`: hooks that take the wanted states out of one `generate` call, once.

A decoder layer is called once at prefill with (B, T, D) and then once per new token with
(B, 1, D). Only the prefill call is wanted, and of it only P rows per sample: they are gathered
inside the hook, so nothing else of a layer's output is kept. The vision encoder runs once inside
the same call; both means over it are taken in a hook of its merger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from halp_worker.fates import FatalError


@dataclass(frozen=True)
class CapturedStates:
    """States of B samples on the host, float32 (bfloat16 values are exact in it).

    tokens: (B, P, L, D), residual stream after the layer, before the final norm.
    vision_only: (B, D), mean over the image's merged tokens.
    vision_encoder: (B, V), mean over the image's patches before the merger.
    """

    tokens: npt.NDArray[np.float32]
    vision_only: npt.NDArray[np.float32]
    vision_encoder: npt.NDArray[np.float32]


def decoder_layers(model: Any) -> Any:
    """The decoder layers of a Qwen2.5-VL, in order."""
    return model.model.language_model.layers


def vision_merger(model: Any) -> Any:
    """Takes patches (sum of patches, V), gives merged tokens (sum of tokens, D).

    Both are in window order, and windows never cross images: a mean per image is the same as in
    raster order.
    """
    return model.model.visual.merger


class PrefillCapture:
    """Context manager around one `generate` call; removes its hooks on the way out.

    columns: (B, P) int64, the wanted columns of the padded prompts.
    grid_thw: (B, 3) int64, one image a sample. padded_tokens: T.
    names: B job names for messages.

    Copies: the gathered rows; everything else stays the model's own.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[int],
        *,
        columns: torch.Tensor,
        grid_thw: torch.Tensor,
        padded_tokens: int,
        names: Sequence[str],
    ) -> None:
        self._model = model
        self._layers = tuple(layers)
        self._columns = columns
        self._patches = grid_thw.prod(dim=1).tolist()
        self._padded_tokens = padded_tokens
        self._names = tuple(names)
        self._rows: dict[int, list[torch.Tensor]] = {layer: [] for layer in self._layers}
        self._pooled: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for layer in self._layers:
            module = decoder_layers(self._model)[layer]
            self._handles.append(module.register_forward_hook(self._layer_hook(layer)))
        merger = vision_merger(self._model)
        self._handles.append(merger.register_forward_hook(self._merger_hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _layer_hook(self, layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            # A Tensor since transformers 5.4, the first of a tuple before.
            states = output if isinstance(output, torch.Tensor) else output[0]
            batch, tokens = states.shape[:2]
            if tokens == 1:
                return  # one decode step
            expected = (len(self._names), self._padded_tokens)
            if (batch, tokens) != expected:
                raise FatalError(
                    f"layer {layer}: expected a prefill of (batch, tokens) {expected}, "
                    f"got {(batch, tokens)} (jobs {self._job_list})"
                )
            columns = self._columns.to(states.device)
            rows = torch.arange(batch, device=states.device)[:, None]
            self._rows[layer].append(states.detach()[rows, columns])

        return hook

    def _merger_hook(self, module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        patches = inputs[0].detach()
        merge = patches.shape[0] // output.shape[0]
        self._pooled.append(
            (
                _mean_per_image(output.detach(), [count // merge for count in self._patches]),
                _mean_per_image(patches, self._patches),
            )
        )

    @property
    def _job_list(self) -> str:
        return ", ".join(map(repr, self._names))

    def to_host(self) -> CapturedStates:
        """All captured states in ONE copy to the host; call after the model's call.

        Raises FatalError naming the layer and the jobs if a hook did not fire exactly once.
        """
        for layer, captured in self._rows.items():
            if len(captured) != 1:
                raise FatalError(
                    f"layer {layer}: its hook fired {len(captured)} times at prefill, "
                    f"expected once (jobs {self._job_list})"
                )
        if len(self._pooled) != 1:
            raise FatalError(
                f"vision encoder: ran {len(self._pooled)} times, expected once "
                f"(jobs {self._job_list})"
            )
        vision_only, vision_encoder = self._pooled[0]
        device = vision_only.device
        # With a model over several devices, each layer's rows come from its own.
        tokens = torch.stack(
            [self._rows[layer][0].to(device, torch.float32) for layer in self._layers], dim=2
        )
        parts = (tokens, vision_only, vision_encoder)
        flat = torch.cat([part.reshape(-1) for part in parts]).cpu().numpy()
        splits = np.cumsum([part.numel() for part in parts])[:-1]
        arrays = np.split(flat, splits)
        return CapturedStates(
            *(array.reshape(part.shape) for array, part in zip(arrays, parts, strict=True))
        )


def _mean_per_image(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """(sum of counts, D) of B images -> (B, D) float32. Sums in float32 whatever the dtype."""
    return torch.stack([part.float().mean(dim=0) for part in torch.split(values, counts)])
