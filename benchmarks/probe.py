"""What a probe in a worker costs, what abstaining saves, and how far its risk is from offline.

    python benchmarks/probe.py [--models demo,wide] [--repeats 5] [--device cpu] [--samples N]

`demo`: the demo's trained checkpoint on its held-out questions. `wide`: the 3B configuration with 3
layers in the decoder and 2 in the vision encoder, random weights, so that a batch on a CPU ends;
`3b` and `7b`: the whole ones, for a GPU. In bfloat16, as workers are. Of each, in turns in one run:
a batch without a probe, with one, with a threshold at the middle risk (half is not answered), and
with one below all. The probe is a network of 512-256-128 with random weights on one representation
of the decoder, and on three side by side.

Cost: `probe alone` is the time between two waits for the device around the risk of the batch,
`probabilities` that of the log-probabilities of all its tokens beside their argmax; both are shares
of the batch. On a CPU all times are processor seconds of one thread, so that what else runs on the
machine has little part in them; on a GPU seconds of the clock. Exit code 1 where a probe costs 1 %
or more, or a risk differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch
from extract_inputs import make_inputs
from extract_models import SHAPES, load_shape

from halp_probe.network import Network
from halp_probe.probe import Probe, identity_of
from halp_probe.representation import Representations, parse_representations
from halp_producer.job import Job
from halp_store.features import FeatureBatch
from halp_store.layout import Layout
from halp_worker import demo
from halp_worker.batcher import Batch
from halp_worker.delivery import row_key
from halp_worker.launch import input_builder
from halp_worker.model.extractor import Extractor
from halp_worker.model.inputs import Sample
from halp_worker.model.layers import choose_layers, choose_positions, layout_of
from halp_worker.model.likelihood import greedy
from halp_worker.model.loading import LoadedModel, choose_device, load_model
from halp_worker.model.risk import DeviceProbe, Foresight
from halp_worker.settings import ModelSettings

HIDDEN: Final = (512, 256, 128)
"""Of the published network."""

BATCH: Final = 64

FEWER: Final = {
    "num_hidden_layers": 3,
    "vision_config.depth": 2,
    "vision_config.fullatt_block_indexes": [1],
}
"""Of the 3B configuration, for a CPU: the widths, which are what a probe costs, stay."""


@dataclass(frozen=True)
class Subject:
    """A model and one batch for it."""

    name: str
    loaded: LoadedModel
    layout: Layout
    batch: Batch[Sample]

    def extractor(self, probe: Probe | None, abstain_above: float | None = None) -> Extractor:
        layers, positions = self.layout.layers, self.layout.positions
        foresight = None if probe is None else Foresight(probe, "probe", abstain_above)
        layout = layout_of(self.loaded, layers, positions, foresight)
        return Extractor(self.loaded, layout, foresight)

    def extract(self, extractor: Extractor) -> FeatureBatch:
        features = extractor.extract(self.batch).features
        if features is None:
            raise SystemExit(f"{self.name}: no row of the batch is finite")
        return features


def demo_subject(folder: Path, device: str, samples: int | None) -> Subject:
    settings = ModelSettings(str(demo.SHAPES), device=device, max_new_tokens=8)
    lines = (demo.HELD_OUT / "dataset.jsonl").read_text(encoding="utf-8").splitlines()
    jobs = [Job(**json.loads(line)) for line in lines[: samples or BATCH]]
    return _subject("demo", load_model(settings), jobs, demo.HELD_OUT / "images")


def published_subject(name: str, folder: Path, device: str, samples: int | None) -> Subject:
    """`wide`, `3b` or `7b`."""
    shape = SHAPES["3b" if name == "wide" else name]
    if name == "wide":
        sizes = replace(shape.sizes, image_tokens=64, question_tokens=20)
        shape = replace(shape, sizes=sizes, new_tokens=8, max_image_tokens=120)
    loaded = load_shape(shape, folder, device, "bfloat16", FEWER if name == "wide" else {})
    inputs = make_inputs(
        folder,
        samples or (8 if name == "wide" else BATCH),
        shape.sizes,
        seed=0,
        name="question",
        count_tokens=lambda text: len(loaded.processor.tokenizer(text)["input_ids"]),
    )
    jobs = [
        Job(question_id=one.question_id, image=one.image, question=one.question, ground_truth="")
        for one in inputs.questions
    ]
    return _subject(name, loaded, jobs, inputs.images)


def _subject(name: str, loaded: LoadedModel, jobs: Sequence[Job], images: Path) -> Subject:
    layout = layout_of(loaded, choose_layers("auto", loaded.n_layers), choose_positions(()))
    builder = input_builder(loaded, layout.positions, images, False)
    samples = tuple(builder.prepare(job) for job in jobs)
    return Subject(name, loaded, layout, Batch(tuple(map(row_key, jobs)), samples))


def features_of(rows: FeatureBatch, parts: Representations) -> np.ndarray:
    """(N, F), as they are stored."""
    layers = list(rows.layout.layers)
    columns = [
        rows.vectors[one.column]
        if one.layer is None
        else rows.vectors[one.column][:, layers.index(one.layer)]
        for one in parts
    ]
    return np.concatenate(columns, axis=1)


def random_probe(subject: Subject, rows: FeatureBatch, names: str) -> Probe:
    """Standardised by these rows, so that risks are spread as a trained one's are."""
    parts = parse_representations(subject.layout, names)
    features = features_of(rows, parts)
    rng = np.random.default_rng(0)
    sizes = (features.shape[1], *HIDDEN, 1)
    weights = [
        rng.standard_normal(pair).astype(np.float32) * np.float32((2 / pair[0]) ** 0.5)
        for pair in pairwise(sizes)
    ]
    network = Network(
        mean=features.mean(axis=0),
        scale=features.std(axis=0) + np.float32(1e-6),
        weights=tuple(weights),
        biases=tuple(np.zeros(size, np.float32) for size in sizes[1:]),
    )
    return Probe(parts, network, identity_of(subject.layout), {})


def middle(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds, from an idle device to an idle device; the first run warms up."""
    found = []
    for _ in range(repeats + 1):
        wait(device)
        began = now(device)
        run()
        wait(device)
        found.append(now(device) - began)
    return statistics.median(found[1:])


def now(device: torch.device) -> float:
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def probe_seconds(subject: Subject, probe: Probe, repeats: int) -> float:
    """Of the risk of the batch alone, on the states of its prefill."""
    device = subject.loaded.device
    on_device = DeviceProbe(probe, subject.layout, device)
    kept: list[Any] = []

    class Keeping(DeviceProbe):
        def risk(self, parts: Any) -> torch.Tensor:
            kept[:] = [parts]
            return super().risk(parts)

    extractor = subject.extractor(probe)
    extractor._probe = Keeping(probe, subject.layout, device)
    subject.extract(extractor)
    with torch.inference_mode():
        return middle(lambda: on_device.risk(kept[0]), device, 10 * repeats)


def probability_seconds(subject: Subject, repeats: int) -> float:
    """Of the batch's log-probabilities, beside the argmax that is there anyway."""
    loaded = subject.loaded
    vocabulary = loaded.model.lm_head.out_features
    shape = (len(subject.batch), vocabulary)
    logits = torch.randn(shape, device=loaded.device).to(loaded.model.dtype)
    with torch.inference_mode():
        both = middle(lambda: greedy(logits), loaded.device, 3 * repeats)
        one = middle(lambda: logits.argmax(dim=-1), loaded.device, 3 * repeats)
    return max(0.0, both - one) * loaded.generation.max_new_tokens


def measure(subject: Subject, names: str, repeats: int) -> bool:
    """Prints a line; whether it keeps to the targets."""
    plain = subject.extractor(None)
    probe = random_probe(subject, subject.extract(plain), names)
    rows = subject.extract(subject.extractor(probe))
    risk = rows.scores["risk"]
    difference = float(np.abs(risk - probe.network.risk(features_of(rows, probe.parts))).max())
    threshold = float(np.median(risk))
    half, none = (subject.extractor(probe, above) for above in (threshold, 0.0))
    skipped = [
        subject.extract(one).text["finish_reason"].count("abstained") for one in (half, none)
    ]
    runs = (plain, subject.extractor(probe), half, none)
    device = subject.loaded.device
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for found, extractor in zip(times, runs, strict=True):
            began = now(device)
            subject.extract(extractor)
            found.append(now(device) - began)
    without, with_it, *abstaining = (statistics.median(found[1:]) for found in times)
    alone = probe_seconds(subject, probe, repeats)
    probabilities = probability_seconds(subject, repeats)
    saved = [
        f"{1000 * took:.1f}, {count} skipped: {1 - took / with_it:.0%} saved"
        for took, count in zip(abstaining, skipped, strict=True)
    ]
    print(
        f"| {subject.name} | {names} | {len(subject.batch)} | {1000 * without:.1f} "
        f"| {1000 * with_it:.1f} | {1000 * alone:.2f}, {alone / without:.2%} "
        f"| {1000 * probabilities:.1f}, {probabilities / without:.1%} "
        f"| {saved[0]} | {saved[1]} | {difference:.1e} |",
        flush=True,
    )
    return alone < 0.01 * without and difference <= 1e-5


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default="demo,wide", help="of demo, wide, 3b, 7b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, help="in the batch (default: 64; wide: 8)")
    options = parser.parse_args()
    device = str(choose_device(options.device))
    if device == "cpu":
        torch.set_num_threads(1)
    print(
        "| model | probe on | jobs | ms without | ms with | probe alone, ms | probabilities, ms "
        "| half abstained, ms | all abstained, ms | largest difference |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    is_good = True
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            if name == "demo":
                subject = demo_subject(Path(folder), device, options.samples)
            else:
                subject = published_subject(name, Path(folder), device, options.samples)
            late = f"query_token@{subject.layout.layers[-2]}"
            several = f"vision_only+vision_token@{subject.layout.layers[-2]}+{late}"
            for names in (late, several):
                is_good &= measure(subject, names, options.repeats)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
