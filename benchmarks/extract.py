"""How fast answers with hidden states are made, beside the published loop and plain `generate`.

    python benchmarks/extract.py [--shape small|3b|7b] [--ways reference,plain,worker] [--json]

One run on one machine: the same loaded model, the same questions, the device's own peaks. The ways
are in extract_ways.py, the models in extract_models.py, the questions in extract_inputs.py, the
least that must be computed in extract_flops.py. Warm-up is not timed. Markdown tables go to stdout
(with --json one object), progress to stderr. Targets are printed as reached or not: exit code 0
means that it ran, and that every id was in the worker's store once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

# The libraries' bars and advice are not ours to show; read when they are imported.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from extract_flops import Costs, Counted, Lengths, Peaks, count_one_forward, measure_peaks
from extract_inputs import Inputs, make_inputs
from extract_models import SHAPES, Shape, attention_of, library_attention, load_shape
from extract_report import WAYS, is_disturbed, show, targets_of
from extract_ways import Ran, Way, WorkerWay, plain, processed, reference, worker_batch_size
from transformers.utils import logging as transformers_logging

from halp_worker.model.layers import choose_layers
from halp_worker.model.loading import LoadedModel, choose_device

COUNTED: Final = 8
"""Questions whose FLOPs are counted, a way: counting is slow."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Bench:
    """Everything that the ways share. lengths: of `inputs`, in their order."""

    loaded: LoadedModel
    shape: Shape
    inputs: Inputs
    few: Inputs
    warm_up: Inputs
    lengths: tuple[Lengths, ...]
    few_lengths: tuple[Lengths, ...]
    costs: Costs
    peaks: Peaks


def prepare(options: argparse.Namespace, shape: Shape, folder: Path) -> Bench:
    say(f"model: {shape.name} on {options.device}")
    loaded = load_shape(shape, folder, options.device, options.dtype, dict(options.config))
    tokenizer = loaded.processor.tokenizer

    def write(name: str, samples: int) -> Inputs:
        return make_inputs(
            folder,
            samples,
            shape.sizes,
            seed=options.seed,
            name=name,
            count_tokens=lambda text: len(tokenizer(text)["input_ids"]),
            shuffled=not options.in_order,
        )

    inputs = write("question", shape.samples)
    few = inputs.first(COUNTED, folder / "few.jsonl")
    batch_sizes = (options.batch_size, worker_batch_size(dict(options.worker)))
    warm_up = write("warmup", min(2 * max(batch_sizes), shape.samples))
    config = loaded.model.config
    say("peaks of the device")
    return Bench(
        loaded,
        shape,
        inputs,
        few,
        warm_up,
        tuple(lengths_of(loaded, inputs, shape.new_tokens)),
        tuple(lengths_of(loaded, few, shape.new_tokens)),
        Costs(config, loaded.model.dtype.itemsize),
        measure_peaks(loaded.device, loaded.model.dtype),
    )


def lengths_of(loaded: LoadedModel, inputs: Inputs, new_tokens: int) -> list[Lengths]:
    end_of_image = loaded.processor.tokenizer.convert_tokens_to_ids("<|vision_end|>")
    lengths = []
    for one in inputs.questions:
        tensors = processed(loaded, inputs, [one])
        tokens = tensors["input_ids"][0].tolist()
        t, h, w = tensors["image_grid_thw"][0].tolist()
        prefix = tokens.index(end_of_image) + 1
        lengths.append(Lengths(one.image, (t, h, w), prefix, len(tokens), new_tokens))
    return lengths


def check_formula(bench: Bench) -> float:
    """FLOPs of the formula by those that were counted, for one plain forward of one sample."""
    loaded, one = bench.loaded, bench.few_lengths[0]
    tensors = processed(loaded, bench.few, bench.few.questions[:1]).to(loaded.device)
    with library_attention(loaded.model):
        counted = count_one_forward(loaded.model, tensors)
    costs = bench.costs
    by_formula = costs.vision(one.grid) + costs.decoder(one.prompt, one.prompt) + costs.head(1)
    return by_formula / counted


# -- running ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One way, and what it gets: the slow one gets fewer questions."""

    way: Way
    inputs: Inputs
    warm_up: Inputs


def tasks_of(bench: Bench, options: argparse.Namespace, folder: Path) -> dict[str, Task]:
    loaded, shape = bench.loaded, bench.shape
    inputs, warm_up = bench.inputs, bench.warm_up
    layers = choose_layers("auto", loaded.n_layers)
    makers: dict[str, Callable[[], Task]] = {
        "reference": lambda: Task(
            reference(loaded, layers), cut(inputs, shape.reference_samples), cut(warm_up, 2)
        ),
        "plain": lambda: Task(
            plain(loaded, options.batch_size), inputs, cut(warm_up, options.batch_size)
        ),
        "worker": lambda: Task(
            WorkerWay(loaded, folder, shape.new_tokens, dict(options.worker)), inputs, warm_up
        ),
    }
    return {name: makers[name]() for name in WAYS if name in options.ways}


def cut(inputs: Inputs, count: int | None) -> Inputs:
    return replace(inputs, questions=inputs.questions[:count])


def run_all(tasks: Mapping[str, Task], repeats: int) -> dict[str, list[Ran]]:
    """In turns, so that what else the machine does meets all of them."""
    ran: dict[str, list[Ran]] = {name: [] for name in tasks}
    for turn in range(repeats):
        for name, task in tasks.items():
            if turn == 0:
                say(f"{name}: warm-up, {len(task.warm_up.questions)} questions")
                task.way(task.warm_up, None)
            one = task.way(task.inputs, None)
            ran[name].append(one)
            say(f"{name}: {one.samples / one.timing.seconds:,.2f} samples/s")
    return ran


def count_flops(bench: Bench, tasks: Mapping[str, Task]) -> dict[str, Counted]:
    found = {}
    for name, task in tasks.items():
        say(f"{name}: counting FLOPs of {len(bench.few.questions)} questions")
        found[name] = Counted()
        task.way(bench.few, found[name])
    return found


# -- reporting -------------------------------------------------------------------------------


def figures_of(bench: Bench, runs: Sequence[Ran], counted: Counted) -> dict[str, Any]:
    """Of the run in the middle by time; all of them from that one."""
    one = sorted(runs, key=lambda ran: ran.timing.seconds)[(len(runs) - 1) // 2]
    timing, seconds = one.timing, one.timing.seconds
    rate = one.samples / seconds
    least = bench.costs.prefill(bench.few_lengths) + bench.costs.decode(bench.few_lengths)
    roof = bench.peaks.samples_per_second(bench.costs, bench.lengths, one.batch)
    return {
        "samples": one.samples,
        "seconds": seconds,
        "samples/s": rate,
        "samples/s of all runs": [ran.samples / ran.timing.seconds for ran in runs],
        "samples in a call": one.batch,
        "prefill tokens/s": one.prompt_tokens / seconds,
        "decode tokens/s": one.answer_tokens / seconds,
        "busy": timing.inside_share if timing.busy is None else timing.busy,
        "busy by": "calls" if timing.busy is None else "nvml",
        "inside the model's calls": timing.inside_share,
        "processors of others": timing.others,
        "peak bytes": timing.peak_bytes,
        "flops a sample": counted.total / len(bench.few_lengths),
        "flops of the minimum": counted.total / least,
        "not counted": counted.unseen,
        "roofline samples/s": roof,
        "of the roofline": rate / roof,
        "stages": timing.stages,
    }


def report_of(
    bench: Bench,
    ran: Mapping[str, Sequence[Ran]],
    counted: Mapping[str, Counted],
    formula: float,
) -> dict[str, Any]:
    ways = {name: figures_of(bench, runs, counted[name]) for name, runs in ran.items()}
    for name in ("reference", "plain"):
        if name in ways:
            for figures in ways.values():
                figures[f"times {name}"] = figures["samples/s"] / ways[name]["samples/s"]
    lengths, loaded = bench.lengths, bench.loaded
    few = bench.few_lengths
    least = bench.costs.prefill(few) + bench.costs.decode(few)
    return {
        "shape": bench.shape.name,
        "device": device_name(loaded.device),
        "dtype": loaded.dtype,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "worker's attention": attention_of(loaded.model),
        "questions": len(lengths),
        "images": len({one.image for one in lengths}),
        "prompt tokens": statistics.mean(one.prompt for one in lengths),
        "image tokens": statistics.mean(image_tokens(bench, one) for one in lengths),
        "new tokens": bench.shape.new_tokens,
        "parameters": sum(one.numel() for one in loaded.model.parameters()),
        "peak flops/s": bench.peaks.flops,
        "copy bytes/s": bench.peaks.bandwidth,
        "minimum flops a sample": least / len(few),
        "formula by count": formula,
        "ways": ways,
        "targets": targets_of(bench.shape.name, ways),
        "disturbed": is_disturbed(ways),
    }


def image_tokens(bench: Bench, one: Lengths) -> int:
    t, h, w = one.grid
    return t * h * w // int(bench.costs.eyes.spatial_merge_size) ** 2


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads of {os.cpu_count()} processors"


# -- the command -----------------------------------------------------------------------------


def assignment(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON where it is that."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def ways(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := set(chosen) - WAYS.keys():
        raise argparse.ArgumentTypeError(f"{sorted(unknown)} unknown, there are {list(WAYS)}")
    return chosen


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=SHAPES, help="default: 7b on CUDA, else small")
    add("--ways", type=ways, default=list(WAYS), help="comma-separated (default: all three)")
    add("--samples", type=int, help="questions (default: 48 small, 128 others)")
    add("--reference-samples", type=int, help="of them for the reference loop (all small, 12)")
    add("--batch-size", type=int, default=8, help="of plain generate (default 8)")
    add("--new-tokens", type=int, help="of each answer (default: 12 small, 64 others)")
    add("--image-tokens", type=int, help="of a picture, in the mean (default: 64 at most, 1300)")
    add("--question-tokens", type=int, help="of a question, in the mean (default: 20, 70)")
    add("--in-order", action="store_true", help="lines of one picture are neighbours")
    add("--repeats", type=int, help="in turns; the middle one counts (default: 3 small, 1)")
    add("--device", default="auto", help="default: auto")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--seed", type=int, default=0)
    add("--folder", type=Path, help="where to write (default: a temporary folder)")
    add("--json", action="store_true", help="one JSON object instead of the tables")
    text = "of `halp-worker run`, such as batch_size=32; may be repeated"
    add("--worker", type=assignment, action="append", default=[], metavar="NAME=VALUE", help=text)
    text = "of a large model's configuration, such as vision_config.depth=2; may be repeated"
    add("--config", type=assignment, action="append", default=[], metavar="NAME=VALUE", help=text)
    return parser.parse_args(arguments)


def shape_of(options: argparse.Namespace) -> Shape:
    """The shape that was named, with what was asked for in place of its own values."""
    shape = SHAPES[options.shape or ("7b" if options.device.startswith("cuda") else "small")]
    sizes = shape.sizes
    return replace(
        shape,
        samples=options.samples or shape.samples,
        reference_samples=options.reference_samples or shape.reference_samples,
        new_tokens=options.new_tokens or shape.new_tokens,
        repeats=options.repeats or shape.repeats,
        sizes=replace(
            sizes,
            image_tokens=options.image_tokens or sizes.image_tokens,
            question_tokens=options.question_tokens or sizes.question_tokens,
        ),
    )


def on_signal(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # what follows is the cleaning up
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    signal.signal(signal.SIGTERM, on_signal)
    transformers_logging.disable_progress_bar()
    device = choose_device(options.device)
    options.device = f"cuda:{device.index or 0}" if device.type == "cuda" else str(device)
    shape = shape_of(options)
    with tempfile.TemporaryDirectory(prefix="halp-extract-", dir=options.folder) as name:
        folder = Path(name)
        bench = prepare(options, shape, folder)
        formula = check_formula(bench)
        tasks = tasks_of(bench, options, folder)
        ran = run_all(tasks, shape.repeats)
        counted = count_flops(bench, tasks)
    report = report_of(bench, ran, counted, formula)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


if __name__ == "__main__":
    main()
