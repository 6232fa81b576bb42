"""Small real checkpoints and real photographs, made once a session."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis

from halp_producer import Job, RunKeys
from halp_producer import server as server_module
from halp_producer.enqueue import enqueue_jobs
from tolerance import rounding


def make_job(number: int, **changes: Any) -> Job:
    """A job without a picture behind it, for tests of the queue."""
    fields = {
        "question_id": f"q{number}",
        "image": "a.png",
        "question": f"Question {number}?",
        "ground_truth": "yes",
    }
    return Job(**{**fields, **changes})


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Where a test's server is not there, no test waits for it."""
    monkeypatch.setattr(server_module, "PATIENCE_S", 0)


@pytest.fixture
def keys(run: str) -> RunKeys:
    return RunKeys(run)


@pytest.fixture
def enqueue(client: redis.Redis, keys: RunKeys) -> Callable[..., None]:
    """`enqueue(job, ...)` into this test's run."""

    def add(*jobs: Job) -> None:
        enqueue_jobs(client, keys, list(jobs))

    return add


@dataclass(frozen=True)
class Question:
    """What a test asks about a photograph."""

    image: str
    text: str

    def job(self, number: int = 0) -> Job:
        return Job(
            question_id=f"{Path(self.image).stem}_{number}",
            image=self.image,
            question=self.text,
            ground_truth="?",
        )


QUESTIONS = (
    Question("astronaut.png", "Who is it?"),
    Question("coffee.png", "Is there a cup on the table, and what is in it?"),
    Question("chelsea.png", "Which animal?"),
    Question("tall.png", "What is on the left?"),
)
"""Mixed image sizes and prompt lengths: every batch of them is padded."""


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real photographs, and one cut of them in another aspect ratio."""
    from PIL import Image

    from halp_worker.demo.photos import write_dataset

    folder = write_dataset(tmp_path_factory.mktemp("photos")).parent / "images"
    with Image.open(folder / "astronaut.png") as image:
        image.crop((0, 0, 120, 400)).save(folder / "tall.png")
    return folder


def _shapes() -> dict[str, Any]:
    from halp_worker.demo.small_checkpoint import SmallShape

    return {
        "28-layers": SmallShape(),
        "5-layers-hidden-48-6-heads-3-kv": SmallShape(
            layers=5, hidden_size=48, intermediate_size=80, heads=6, kv_heads=3, seed=1
        ),
        "9-layers-hidden-96-4-heads-1-kv-tied": SmallShape(
            layers=9,
            hidden_size=96,
            heads=4,
            kv_heads=1,
            vision_depth=6,
            vision_hidden_size=48,
            tie_word_embeddings=True,
            seed=2,
        ),
        "2-layers": SmallShape(layers=2, vision_depth=2, seed=3),
    }


SHAPE_NAMES = (
    "28-layers",
    "5-layers-hidden-48-6-heads-3-kv",
    "9-layers-hidden-96-4-heads-1-kv-tied",
)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoint folders by shape name, built at first use."""
    from halp_worker.demo.small_checkpoint import build_checkpoint

    built: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in built:
            built[name] = build_checkpoint(tmp_path_factory.mktemp(name), _shapes()[name])
        return built[name]

    return checkpoint


@pytest.fixture(scope="session")
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    """The default small checkpoint."""
    return checkpoints("28-layers")


@pytest.fixture(scope="session")
def tiny(checkpoints: Callable[[str], Path]) -> Path:
    """A checkpoint of two layers, for tests that change its files in a copy."""
    return checkpoints("2-layers")


def rewrite(path: Path, **changes: Any) -> None:
    """Sets entries of a JSON file; None removes one."""
    entries = {**json.loads(path.read_text()), **changes}
    kept = {name: value for name, value in entries.items() if value is not None}
    path.write_text(json.dumps(kept))


def random_probe(layout: Any, names: str, hidden: tuple[int, ...] = (), seed: int = 0) -> Any:
    """A probe of this layout that nothing was trained for: of `a+b@1`, with hidden layers."""
    import numpy as np

    from halp_probe.network import Network
    from halp_probe.probe import Probe, identity_of
    from halp_probe.representation import parse_representations, sizes_of

    parts = parse_representations(layout, names)
    sizes = (sum(sizes_of(layout, parts)), *hidden, 1)
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    network = Network(
        mean=normal(sizes[0]) / 10,
        scale=np.exp(normal(sizes[0]) / 4),
        weights=tuple(
            normal(into, out) * np.float32((2 / into) ** 0.5) for into, out in pairwise(sizes)
        ),
        biases=tuple(normal(out) / 10 for out in sizes[1:]),
    )
    return Probe(parts, network, identity_of(layout), {"auroc": 0.5})


def probe_bound(probe: Any) -> float:
    """For risks of the same states: standardised, multiplied, squeezed between 0 and 1. What the
    logit errs by, relative to its size, is more than the risk errs by."""
    weights = probe.network.weights
    return rounding(len(weights) + 2, max(max(one.shape) for one in weights))


@dataclass(frozen=True)
class Bench:
    """A loaded model with all it takes to run samples through it, and an oracle beside it.

    plain: the same checkpoint as transformers loads it, with attention in plain matrix products
        ("eager"): nothing of ours is in it.
    """

    loaded: Any
    layout: Any
    inputs: Any
    extractor: Any
    plain: Any
    _largest_logit: list[float] = field(default_factory=list)

    @property
    def vision_bound(self) -> float:
        """For what the vision encoder gives, its merger included; relative, in float32."""
        vision = self.loaded.model.config.vision_config
        merged = vision.hidden_size * vision.spatial_merge_size**2
        patch = vision.patch_size**2 * vision.temporal_patch_size * vision.in_channels
        return rounding(vision.depth + 2, max(merged, patch, vision.intermediate_size))

    def bound(self, layer: int | None = None, more: int = 0) -> float:
        """For states of a layer (of any, without one), and `more` products that follow."""
        text = self.loaded.model.config.get_text_config()
        layers = self.loaded.n_layers if layer is None else layer + 1
        width = max(text.hidden_size, text.intermediate_size)
        decoder = rounding(layers + 1 + more, width)
        return math.hypot(self.vision_bound, decoder)

    @property
    def score_bound(self) -> float:
        """For entropies and log-probabilities, in nats: they move by no more than the logits do,
        and those by the bound of the states times their own size."""
        if not self._largest_logit:
            import torch

            with torch.inference_mode():
                logits = self.plain(**self.plain_inputs(self.samples())).logits[:, -1]
            self._largest_logit.append(float(logits.abs().max()))
        return self.bound() * max(1.0, self._largest_logit[0])

    def samples(self, questions: tuple[Question, ...] = QUESTIONS) -> list[Any]:
        return [self.inputs.prepare(question.job()) for question in questions]

    def plain_inputs(self, samples: list[Any]) -> dict[str, Any]:
        """What the processor itself makes of the same images and questions, padded on the left."""
        from qwen_vl_utils import process_vision_info

        from halp_worker.model.inputs import render, user_turn

        processor = self.loaded.processor
        size = processor.image_processor.size
        limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        turns = []
        for sample in samples:
            image = self.inputs._images.read(sample.job.image).pixels
            turns.append(
                user_turn({"type": "image", "image": image, **limits}, sample.job.question)
            )
        images, _ = process_vision_info(turns)
        return dict(
            processor(
                text=[render(processor, turn) for turn in turns],
                images=images,
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )
        )

    def extract(self, samples: list[Any]) -> Any:
        from halp_worker.batcher import Batch
        from halp_worker.delivery import row_key

        keys = tuple(row_key(sample.job) for sample in samples)
        return self.extractor.extract(Batch(keys, tuple(samples)))


@pytest.fixture(scope="session")
def bench(checkpoints: Callable[[str], Path], photos: Path) -> Callable[..., Bench]:
    """`bench(shape, dtype, device)`: loaded once a session, all positions."""
    from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

    from halp_worker.launch import input_builder
    from halp_worker.model.extractor import Extractor
    from halp_worker.model.layers import choose_layers, choose_positions, layout_of
    from halp_worker.model.loading import load_model
    from halp_worker.model.positions import POSITIONS
    from halp_worker.settings import ModelSettings

    made: dict[tuple[str, str, str], Bench] = {}

    def make(shape: str = "28-layers", dtype: Any = "float32", device: str = "cpu") -> Bench:
        if (shape, dtype, device) not in made:
            loaded = load_model(
                ModelSettings(
                    model=str(checkpoints(shape)), dtype=dtype, device=device, max_new_tokens=6
                )
            )
            layout = layout_of(
                loaded,
                choose_layers("auto", loaded.n_layers),
                choose_positions(list(POSITIONS)),
            )
            inputs = input_builder(loaded, layout.positions, photos, allow_urls=False)
            plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                checkpoints(shape), dtype=dtype, attn_implementation="eager"
            ).eval()
            # The checkpoint's own has sampling and a penalty.
            plain.generation_config = GenerationConfig(
                do_sample=False,
                max_new_tokens=loaded.generation.max_new_tokens,
                eos_token_id=list(loaded.generation.stop_tokens),
                pad_token_id=loaded.processor.tokenizer.pad_token_id,
            )
            made[shape, dtype, device] = Bench(
                loaded, layout, inputs, Extractor(loaded, layout), plain
            )
        return made[shape, dtype, device]

    return make
