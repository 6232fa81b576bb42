"""`PassCapture`: hooks that take the wanted states out of one prefill pass.

Of a decoder layer's output only some slots of the packed tokens are wanted: they are gathered
inside the hook, so nothing else of it is kept. Decode steps run without hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

from halp_worker.fates import FatalError
from halp_worker.model.parts import decoder_layers


class PassCapture:
    """Context manager around one pass; removes its hooks on the way out.

    slots: N indices into the pass's `tokens` packed tokens. names: job names for messages.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[int],
        *,
        slots: Sequence[int],
        tokens: int,
        names: Sequence[str],
    ) -> None:
        self._layers = {layer: decoder_layers(model)[layer] for layer in layers}
        self._slots = torch.tensor(slots, dtype=torch.int64)
        self._tokens = tokens
        self._names = tuple(names)
        self._captured: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for layer, module in self._layers.items():
            self._handles.append(module.register_forward_hook(self._hook(layer)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            # A Tensor since transformers 5.4, the first of a tuple before.
            states = output if isinstance(output, torch.Tensor) else output[0]
            if states.shape[:2] != (1, self._tokens):
                raise FatalError(
                    f"layer {layer}: expected a pass of (1, {self._tokens}) tokens, "
                    f"got {tuple(states.shape[:2])} (jobs {self._job_list})"
                )
            slots = self._slots.to(states.device, non_blocking=True)
            self._captured[layer].append(states.detach()[0].index_select(0, slots))

        return hook

    @property
    def _job_list(self) -> str:
        return ", ".join(map(repr, self._names))

    def states(self) -> torch.Tensor:
        """(N, L, D), still on the device; call after the pass.

        The residual stream after each layer, before the final norm. With a model over several
        devices, on the first captured layer's. Raises FatalError naming the layer and the jobs if a
        hook did not fire exactly once.
        """
        for layer, captured in self._captured.items():
            if len(captured) != 1:
                raise FatalError(
                    f"layer {layer}: its hook fired {len(captured)} times in a pass, "
                    f"expected once (jobs {self._job_list})"
                )
        rows = [captured[0] for captured in self._captured.values()]
        return torch.stack([row.to(rows[0].device) for row in rows], dim=1)
