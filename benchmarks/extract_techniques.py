"""What each technique of the fast path gains, measured alone: with it and without, in turns.

    python benchmarks/extract_techniques.py [--samples 128] [--repeats 5]

The small checkpoint on the CPU, the inputs of extract.py, the middle of the repeats. A technique is
taken away in the way that each line says; everything else stays. What only exists on CUDA (captured
graphs, the variable-length kernel, pinned copies) is not measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from extract_inputs import Inputs, make_inputs
from extract_models import SHAPES, library_attention, load_shape

from halp_producer.job import Job
from halp_worker.batcher import Batch
from halp_worker.delivery import row_key
from halp_worker.launch import input_builder
from halp_worker.model import decode
from halp_worker.model.extractor import Extractor
from halp_worker.model.inputs import PreparedImage, Sample
from halp_worker.model.layers import choose_layers, choose_positions, layout_of
from halp_worker.model.loading import LoadedModel
from halp_worker.model.vision import encode_images

BATCH: Final = 64
LARGE_SIDE: Final = 72
"""Patches: an image of 1,296 tokens."""

Run = Callable[[], None]


class Bench:
    """A model, its samples in order of their images, and the two runs of each technique."""

    def __init__(self, loaded: LoadedModel, inputs: Inputs, mixed: Sequence[Inputs]) -> None:
        self.loaded = loaded
        layers = choose_layers("auto", loaded.n_layers)
        self.layout = layout_of(loaded, layers, choose_positions(()))
        self.builder = input_builder(loaded, self.layout.positions, inputs.images, False)
        # Holds no image from one run to the next.
        self.other_builder = input_builder(loaded, self.layout.positions, inputs.images, False)
        self.jobs = jobs_of(inputs)
        self.samples = self._prepared(inputs)
        self.mixed = [
            sample for pair in zip(*map(self._prepared, mixed), strict=True) for sample in pair
        ]

    def _prepared(self, inputs: Inputs) -> list[Sample]:
        return [self.builder.prepare(job) for job in jobs_of(inputs)]

    def extract(self, samples: Sequence[Sample], **generation: Any) -> None:
        changed = dataclasses.replace(self.loaded.generation, **generation)
        extractor = Extractor(dataclasses.replace(self.loaded, generation=changed), self.layout)
        for start in range(0, len(samples), BATCH):
            batch = tuple(samples[start : start + BATCH])
            extractor.extract(Batch(tuple(row_key(one.job) for one in batch), batch))

    def apart(self) -> list[Sample]:
        """Each question with an image of its own."""
        return [
            dataclasses.replace(one, image=dataclasses.replace(one.image, sha256=f"{number:064}"))
            for number, one in enumerate(self.samples)
        ]

    def padded_prefill(self, samples: Sequence[Sample]) -> None:
        """One forward of a left-padded batch, as `generate` begins."""
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            width = max(one.prompt_tokens for one in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, one in enumerate(batch):
                ids[row, width - one.prompt_tokens :] = one.input_ids
                mask[row, width - one.prompt_tokens :] = 1
            model = self.loaded.model
            with torch.inference_mode(), library_attention(model):
                model(
                    input_ids=ids,
                    attention_mask=mask,
                    pixel_values=torch.cat([one.image.pixel_values for one in batch]),
                    image_grid_thw=torch.cat([one.image.grid_thw for one in batch]),
                    mm_token_type_ids=(ids == model.config.image_token_id).int(),
                    use_cache=True,
                    logits_to_keep=1,
                )

    def encode(self, images: Sequence[PreparedImage]) -> None:
        with torch.inference_mode():
            encode_images(self.loaded.model, images)

    def images(self) -> list[PreparedImage]:
        return list({one.image.sha256: one.image for one in self.samples}.values())

    def spread_stops(self) -> tuple[int, ...]:
        """Stop tokens that end some answers early and others not at all."""
        extractor = Extractor(self.loaded, self.layout)
        _, answers = extractor.run(self.samples[:BATCH])
        often = statistics.multimode([answer[2] for answer in answers])
        return (*often[:1], statistics.multimode([answer[5] for answer in answers])[0])


def jobs_of(inputs: Inputs) -> list[Job]:
    return [
        Job(question_id=one.question_id, image=one.image, question=one.question, ground_truth="")
        for one in inputs.questions
    ]


@contextmanager
def changed(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def without(module: Any, name: str, value: Any, run: Run) -> Run:
    def changed_run() -> None:
        with changed(module, name, value):
            run()

    return changed_run


def techniques(bench: Bench) -> Iterator[tuple[str, str, Run, Run]]:
    """Name, what is done without it, with, without."""
    samples, apart = bench.samples, bench.apart()
    yield (
        "one image and prefix for all its questions",
        "each question has its own",
        lambda: bench.extract(samples),
        lambda: bench.extract(apart),
    )
    for what, some in (("as these", apart), ("of 15 and 240 tokens, mixed", bench.mixed)):
        yield (
            f"side by side, no padding; images {what}",
            "prefill of a padded batch; images not shared in both",
            lambda some=some: bench.extract(some, max_new_tokens=0),  # type: ignore[misc]
            lambda some=some: bench.padded_prefill(some),  # type: ignore[misc]
        )
    yield (
        "images of about one size together; 15 and 240 tokens, mixed",
        "in order of arrival",
        lambda: bench.extract(sorted(bench.mixed, key=lambda one: one.prefix_tokens)),
        lambda: bench.extract(bench.mixed),
    )
    images = bench.images()
    yield (
        "windows of one size together, these small images",
        "a call of attention for each window",
        lambda: bench.encode(images),
        lambda: library(bench, lambda: bench.encode(images)),
    )
    large = [large_image(images[0])]
    yield (
        "windows of one size together, an image of 1,296 tokens",
        "a call of attention for each window",
        lambda: bench.encode(large),
        lambda: library(bench, lambda: bench.encode(large)),
    )
    stops = {"stop_tokens": bench.spread_stops(), "max_new_tokens": 48}
    yield (
        "rows that have ended leave (48 tokens, most end early)",
        "all rows to the end of the longest",
        lambda: bench.extract(samples, **stops),
        without(decode, "LEAVING", 1 << 30, lambda: bench.extract(samples, **stops)),
    )
    yield (
        "an image prepared once for all its questions",
        "read, resized and cut for each",
        lambda: prepare(bench, keep=True),
        lambda: prepare(bench, keep=False),
    )
    yield (
        "no answer (`--no-answer`)",
        "12 tokens each",
        lambda: bench.extract(samples, max_new_tokens=0),
        lambda: bench.extract(samples),
    )


def library(bench: Bench, run: Run) -> None:
    with library_attention(bench.loaded.model):
        run()


def large_image(like: PreparedImage) -> PreparedImage:
    patches = LARGE_SIDE**2
    pixels = torch.randn(patches, like.pixel_values.shape[1])
    grid = torch.tensor([[1, LARGE_SIDE, LARGE_SIDE]])
    return PreparedImage("0" * 64, pixels, grid, patches // 4)


def prepare(bench: Bench, *, keep: bool) -> None:
    """keep: the images of earlier jobs are still there, as they are in a worker."""
    held: list[Sample] = []
    for job in bench.jobs:
        if not keep:
            held.clear()
        held.append(bench.other_builder.prepare(job))


def seconds(run: Run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def show(
    bench: Bench, technique: str, instead: str, used: Sequence[float], lacking: Sequence[float]
) -> None:
    with_it, without_it = (
        1000 * statistics.median(one[1:]) / len(bench.samples) for one in (used, lacking)
    )
    print(
        f"| {technique} | {with_it:.2f} | {without_it:.2f} | {without_it / with_it:.2f} "
        f"| {instead} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shape = dataclasses.replace(SHAPES["small"], max_image_tokens=300)
        loaded = load_shape(shape, Path(name), "cpu", "bfloat16", {})

        def inputs(kind: str, samples: int, image_tokens: int) -> Inputs:
            return make_inputs(
                Path(name),
                samples,
                dataclasses.replace(shape.sizes, image_tokens=image_tokens),
                seed=0,
                name=kind,
                count_tokens=lambda text: len(loaded.processor.tokenizer(text)["input_ids"]),
                shuffled=False,
            )

        half = options.samples // 2
        bench = Bench(
            loaded,
            inputs("question", options.samples, shape.sizes.image_tokens),
            [inputs("small", half, 15), inputs("large", half, 240)],
        )
        print(f"{len(bench.samples)} questions on {len(bench.images())} images, ms a question\n")
        print("| technique | with | without | gain | without it |\n|---|---|---|---|---|")
        repeats = range(options.repeats + 1)  # the first warms up
        for technique, instead, with_it, without_it in techniques(bench):
            pairs = [(seconds(with_it), seconds(without_it)) for _ in repeats]
            show(bench, technique, instead, *zip(*pairs, strict=True))
        # Not in turns: once there is a second team of threads it disturbs the first one too.
        used = [seconds(lambda: bench.extract(bench.samples)) for _ in repeats]
        with ThreadPoolExecutor(1) as beside:
            other = lambda: beside.submit(bench.extract, bench.samples).result()  # noqa: E731
            lacking = [seconds(other) for _ in repeats]
        show(
            bench,
            "the device's work on the thread that loaded the model",
            "on another",
            used,
            lacking,
        )
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        print(f"\nLoad average at the end: {load}.", file=sys.stderr)


if __name__ == "__main__":
    main()
