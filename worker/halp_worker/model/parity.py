"""`ParityCheck`: do our passes give the states that the model's own forward gives?

Our passes do what a Qwen2.5-VL of the transformers we know does. A later one, or a model with
additions, may do more, and wrong states look like any others. So at load one small image and a
question go through both, and one token after them, as in a decode step.

How far two ways to the same numbers may be apart is measured: the model's own forward runs with two
kinds of attention, and ours may be `_SLACK` times as far from one as the other is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from halp_producer.job import Job
from halp_worker.fates import FatalError
from halp_worker.model.capture import PassCapture
from halp_worker.model.images import ImageReader
from halp_worker.model.inputs import InputBuilder, PreparedImage, Sample
from halp_worker.model.parts import (
    decoder_layers,
    language_model,
    next_logits,
    rope_index,
    run_decoder,
    vision_encoder,
)
from halp_worker.model.passes import DecodePass, KeyValueRows
from halp_worker.model.plan import plan_chunks
from halp_worker.model.prefill import prefill

_SIDE_TOKENS: Final = (5, 6)
"""Height and width of the image, in merged tokens: more than one window of the vision encoder."""

_QUESTION: Final = "What is in the picture?"

_SLACK: Final = 3.0
"""Ours may be so many times as far off as the second run of the model's own forward: it is 0.6 to
1.0 times in float32, and less in bfloat16."""

_ROUNDINGS: Final = 2.0
"""Distance that is always allowed, in roundings of the dtype and square roots of the depth: what
one way rounds and the other does not adds up like that."""

_CEILING: Final = 0.5
"""Distance that is never allowed, however far apart the two runs are."""


@dataclass(frozen=True)
class _Run:
    """States of T prompt tokens and one more, on the host, float32.

    stages: by name, in the order of computation, each (rows, width).
    """

    stages: dict[str, torch.Tensor]

    def distances(self, other: _Run) -> dict[str, float]:
        """Largest distance of a row, relative to its length in `other`; NaN if not finite."""
        return {
            name: float(
                ((states - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-30)).max()
            )
            for (name, states), expected in zip(
                self.stages.items(), other.stages.values(), strict=True
            )
        }


class ParityCheck:
    """Runs the model's own forward when it is made, which must be before our attention is set.

    With tensor parallelism every rank makes one at the same time.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._model = model
        self._sample = _make_sample(model, processor)
        # A token that is in the prompt stands for the first of the answer.
        self._next_token = self._sample.input_ids[-1:]
        attention = model.config._attn_implementation
        model.set_attn_implementation("eager")
        self._second = self._own_forward()
        model.set_attn_implementation(attention)
        self._expected = self._own_forward()

    def require_same_states(self) -> None:
        """Raises FatalError naming the first place where our passes give other states, or where the
        model's own are no numbers."""
        for name, states in self._expected.stages.items():
            if not states.isfinite().all():
                raise FatalError(
                    f"this model's own states are not finite, first {name}: its weights are "
                    f"damaged, or beyond what {self._model.dtype} holds: copy or download it "
                    "again, or take another --dtype"
                )
        found = self._our_passes().distances(self._expected)
        measured = self._second.distances(self._expected)
        rounding = torch.finfo(self._model.dtype).eps
        for number, (name, distance) in enumerate(found.items()):
            always = _ROUNDINGS * rounding * (number + 1) ** 0.5
            allowed = min(max(always, _SLACK * measured[name]), _CEILING)
            if not distance <= allowed:
                raise FatalError(
                    f"our passes do not give this model's own states, first {name}: distance "
                    f"{distance:.2g}, allowed {allowed:.2g}. The checkpoint, or this transformers, "
                    "computes more than the Qwen2.5-VL we know: take a published checkpoint, or "
                    "another transformers, and report it"
                )

    @torch.inference_mode()
    def _own_forward(self) -> _Run:
        model, sample = self._model, self._sample
        device = model.get_input_embeddings().weight.device
        input_ids = torch.cat([sample.input_ids, self._next_token])[None].to(device)
        with _vision_states(model) as vision, _layer_inputs(model) as inputs_of:
            output = model(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                mm_token_type_ids=(input_ids == model.config.image_token_id).int(),
                pixel_values=sample.image.pixel_values.to(device),
                image_grid_thw=sample.image.grid_thw.to(device),
                use_cache=False,
            )
        model.model.rope_deltas = None
        # What goes into a layer is what the one before gave, and all that was added to it since.
        return _run(model, vision, inputs_of[1:], output.logits[0, -2:])

    @torch.inference_mode()
    def _our_passes(self) -> _Run:
        model, sample = self._model, self._sample
        layers = range(len(decoder_layers(model)))
        rows = KeyValueRows([sample.prompt_tokens], 1)
        (chunk,) = plan_chunks([sample], sample.prompt_tokens)
        with _vision_states(model) as vision:
            part = prefill(model, [sample], chunk, layers, rows, 0)
        embedded = model.get_input_embeddings()(
            self._next_token[None].to(model.get_input_embeddings().weight.device)
        )
        position = torch.full((3, 1, 1), sample.next_position)
        with PassCapture(model, layers, slots=[0], tokens=1, names=["parity"]) as step:
            last = run_decoder(model, embedded, position, DecodePass(rows, rows.prompt_width))
        states = [
            torch.cat([part.tokens[0, :, layer], step.states()[:, layer]]) for layer in layers
        ]
        logits = next_logits(model, torch.cat([part.last_states, last[0].to(part.last_states)]))
        return _run(model, vision, states, logits)


def _run(
    model: Any, vision: list[torch.Tensor], states: list[torch.Tensor], logits: torch.Tensor
) -> _Run:
    if len(vision) != 2 or len(states) != len(decoder_layers(model)):
        raise FatalError(
            f"the model's own forward calls its vision encoder {len(vision) // 2} times and "
            f"{len(states)} of {len(decoder_layers(model))} layers for one image: this is not the "
            "Qwen2.5-VL we know"
        )
    stages = {
        "in the vision encoder": vision[0],
        "in the vision encoder's merger": vision[1],
        **{f"after layer {layer}": rows for layer, rows in enumerate(states)},
        "in the logits of the next token": logits,
    }
    return _Run({name: rows.to("cpu", torch.float32) for name, rows in stages.items()})


def _make_sample(model: Any, processor: Any) -> Sample:
    """A made image and a question; all positions are wanted."""
    images = processor.image_processor
    side = images.patch_size * images.merge_size
    height, width = (tokens * side for tokens in _SIDE_TOKENS)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # Whatever the limits are, this size stays as it is.
    pixels = images(images=[Image.fromarray(noise)], do_resize=False, return_tensors="pt")
    grid = pixels["image_grid_thw"]
    image = PreparedImage(
        "parity", pixels["pixel_values"], grid, int(grid.prod()) // images.merge_size**2
    )
    job = Job(question_id="parity", image="parity", question=_QUESTION, ground_truth="")
    builder = InputBuilder(
        processor,
        ImageReader(Path()),
        (),
        rope_index=rope_index(model),
        max_prompt_tokens=model.config.get_text_config().max_position_embeddings,
    )
    sample = builder.sample(job, image)
    return replace(sample, positions=tuple(range(sample.prompt_tokens)))


@contextmanager
def _vision_states(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collects patches before the merger and merged tokens of each call of the vision encoder."""
    states: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        # Clones: what calls the encoder may change its output in place.
        states.extend([output.last_hidden_state.clone(), output.pooler_output.clone()])

    handle = vision_encoder(model).register_forward_hook(keep)
    try:
        yield states
    finally:
        handle.remove()


@contextmanager
def _layer_inputs(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collects what goes into each decoder layer, and into the final norm: (T, D) each."""
    inputs_of: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, named: Any) -> None:
        inputs_of.append((inputs[0] if inputs else named["hidden_states"])[0].clone())

    modules = [*decoder_layers(model), language_model(model).norm]
    handles = [one.register_forward_pre_hook(keep, with_kwargs=True) for one in modules]
    try:
        yield inputs_of
    finally:
        for handle in handles:
            handle.remove()
