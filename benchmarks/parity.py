"""How far the fast path is from one sample at a time in float32, and how far bfloat16 alone is.

    python benchmarks/parity.py [--shape small|3b|7b] [--device DEVICE] [--samples 48]

The truth: float32, one sample a call, the library's own forward and `generate` with its plainest
attention ("eager"), from the same bfloat16 weights. Beside it the worker's extractor on all samples
at once, in float32 and in bfloat16, and bfloat16 one sample a call. Prints a table: for each
position and layer the largest relative error of a row, and the smallest cosine of the fast one;
then the share of equal answers. Exit code 1 if bfloat16 fast is more than 1.5 times as far from the
truth as bfloat16 single, or float32 fast farther than 1e-5 (on a GPU 1e-4).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch
from extract_inputs import make_inputs
from extract_models import SHAPES, library_attention, load_shape

from halp_producer.job import Job
from halp_store.layout import Layout
from halp_worker.launch import input_builder
from halp_worker.model.extractor import Extractor
from halp_worker.model.inputs import Sample
from halp_worker.model.layers import choose_layers, choose_positions, layout_of
from halp_worker.model.loading import LoadedModel, choose_device


@dataclass(frozen=True)
class States:
    """tokens: (B, P, L, D); vision_only, vision_encoder: (B, D) and (B, V). answers: token ids."""

    tokens: np.ndarray
    vision_only: np.ndarray
    vision_encoder: np.ndarray
    answers: list[list[int]]

    def columns(self, layout: Layout) -> dict[str, np.ndarray]:
        """Each as (B, width), by a name for people."""
        columns = {"vision_only": self.vision_only, "vision_encoder": self.vision_encoder}
        for p, position in enumerate(layout.positions):
            for i, layer in enumerate(layout.layers):
                columns[f"{position}, layer {layer}"] = self.tokens[:, p, i]
        return columns


def fast(loaded: LoadedModel, layout: Layout, samples: Sequence[Sample]) -> States:
    found, answers = Extractor(loaded, layout).run(samples)
    return States(found.tokens, found.vision_only, found.vision_encoder, answers)


def single(loaded: LoadedModel, layout: Layout, samples: Sequence[Sample]) -> States:
    """The library alone: hidden states of a forward; the last layer's by a hook, un-normed."""
    tokens, only, encoder, answers = [], [], [], []
    model = loaded.model
    last = loaded.n_layers - 1
    kept: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        kept[:] = [output if isinstance(output, torch.Tensor) else output[0]]

    with torch.inference_mode(), library_attention(model, "eager"):
        for sample in samples:
            inputs = {
                "input_ids": sample.input_ids[None],
                "attention_mask": torch.ones_like(sample.input_ids)[None],
                "mm_token_type_ids": (sample.input_ids == model.config.image_token_id).int()[None],
                "pixel_values": sample.image.pixel_values,
                "image_grid_thw": sample.image.grid_thw,
            }
            inputs = {name: one.to(loaded.device) for name, one in inputs.items()}
            vision = model.model.get_image_features(
                inputs["pixel_values"], inputs["image_grid_thw"]
            )
            only.append(vision.pooler_output[0].float().mean(0))
            encoder.append(vision.last_hidden_state.float().mean(0))
            handle = model.model.language_model.layers[last].register_forward_hook(keep)
            states = model(**inputs, output_hidden_states=True).hidden_states
            handle.remove()
            rows = [
                torch.stack(
                    [
                        (kept[0] if layer == last else states[layer + 1])[0, position].float()
                        for layer in layout.layers
                    ]
                )
                for position in sample.positions
            ]
            tokens.append(torch.stack(rows))
            output = model.generate(**inputs, generation_config=model.generation_config)
            answers.append(output[0, sample.prompt_tokens :].tolist())
    arrays = (torch.stack(one).cpu().numpy() for one in (tokens, only, encoder))
    return States(*arrays, answers)


def error(got: np.ndarray, truth: np.ndarray) -> float:
    distance = np.linalg.norm(got.astype(float) - truth, axis=-1)
    return float((distance / np.linalg.norm(truth.astype(float), axis=-1)).max())


def cosine(got: np.ndarray, truth: np.ndarray) -> float:
    got, truth = got.astype(float), truth.astype(float)
    norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(truth, axis=-1)
    return float(((got * truth).sum(-1) / norms).min())


def same(one: States, other: States) -> str:
    equal = sum(a == b for a, b in zip(one.answers, other.answers, strict=True))
    return f"{equal} of {len(one.answers)}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=48)
    options = parser.parse_args()
    device = str(choose_device(options.device))
    with tempfile.TemporaryDirectory() as name:
        shape = SHAPES[options.shape]
        loaded = load_shape(shape, Path(name), device, "bfloat16", {})
        inputs = make_inputs(
            Path(name),
            options.samples,
            shape.sizes,
            seed=0,
            name="question",
            count_tokens=lambda text: len(loaded.processor.tokenizer(text)["input_ids"]),
        )
        layout = layout_of(
            loaded, choose_layers("auto", loaded.n_layers), choose_positions(("question_token",))
        )
        builder = input_builder(loaded, layout.positions, inputs.images, False)
        samples = [
            builder.prepare(
                Job(
                    question_id=one.question_id,
                    image=one.image,
                    question=one.question,
                    ground_truth="",
                )
            )
            for one in inputs.questions
        ]
        bf16_fast = fast(loaded, layout, samples)
        bf16_single = single(loaded, layout, samples)
        loaded.model.float()
        fp32_fast = fast(loaded, layout, samples)
        truth = single(loaded, layout, samples)
    found = [one.columns(layout) for one in (fp32_fast, bf16_single, bf16_fast)]
    print(
        f"{shape.name} on {device}, torch {torch.__version__}: {len(samples)} questions on "
        f"{len({one.image.sha256 for one in samples})} images in one batch\n"
    )
    print("| | float32 fast | bfloat16 single | bfloat16 fast | of single | cosine, fast |")
    print("|---|---|---|---|---|---|")
    is_good = True
    for column, expected in truth.columns(layout).items():
        exact, rounded, both = (error(one[column], expected) for one in found)
        distance = [np.linalg.norm(one[column].astype(float) - expected) for one in found[1:]]
        ratio = distance[1] / distance[0]
        is_good &= bool(exact < (1e-5 if device == "cpu" else 1e-4) and ratio < 1.5)
        print(
            f"| {column} | {exact:.1e} | {rounded:.1e} | {both:.1e} | {ratio:.2f} "
            f"| {cosine(found[2][column], expected):.6f} |"
        )
    print("\nEqual answers: float32 fast and single", same(fp32_fast, truth), end="; ")
    print("bfloat16 fast and single", same(bf16_fast, bf16_single), end="; ")
    print("bfloat16 single and float32", same(bf16_single, truth), end="; ")
    print("bfloat16 fast and float32", same(bf16_fast, truth))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
