"""`python -m halp_worker.demo.training OUT --seed 0`: all that the demo ships, from nothing."""

from __future__ import annotations

import ctypes
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from halp_worker.demo.training.loop import Schedule, train
from halp_worker.demo.training.network import save_network, write_files
from halp_worker.demo.training.record import write_record
from halp_worker.demo.training.score import accuracy, answers, read_jobs
from halp_worker.demo.world.dataset import write_dataset

_SHIPPED_PICTURES: Final = 40
"""280 questions: enough for a rate, and under 2 MB of pictures."""

_JUDGED_PICTURES: Final = 400
"""The accuracy that is recorded is over these; the shipped ones are the first of them."""

_HELD_OUT_SEED: Final = 1

_USUAL: Final = Schedule()

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt(3)


def main(
    out: Annotated[Path, typer.Argument(help="Folder for shapes/, the checkpoint, and held_out/.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same machine: same weights.")] = 0,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps with questions; fewer to see it run, and worse.")
    ] = _USUAL.steps,
) -> None:
    """Train the demo's model on the CPU, judge it on scenes it never saw, write what is shipped."""
    _keep_memory()
    # The vision tower's own steps go with them.
    seeing_steps = max(1, steps * _USUAL.seeing_steps // _USUAL.steps)
    schedule = Schedule(seeing_steps=seeing_steps, steps=steps, seed=seed)
    checkpoint = out / "shapes"
    started = time.monotonic()
    write_files(checkpoint)
    model = train(
        checkpoint,
        schedule,
        lambda line: typer.echo(f"{time.monotonic() - started:6.0f} s  {line}"),
    )
    save_network(checkpoint, model)
    seconds = time.monotonic() - started
    write_dataset(out / "held_out", _SHIPPED_PICTURES, _HELD_OUT_SEED)
    with tempfile.TemporaryDirectory() as judged:
        jobs = read_jobs(write_dataset(Path(judged), _JUDGED_PICTURES, _HELD_OUT_SEED))
        given = answers(checkpoint, jobs, Path(judged) / "images")
    shipped = len(read_jobs(out / "held_out" / "dataset.jsonl"))
    right = {
        "held_out": accuracy(jobs[:shipped], given[:shipped]),
        "fresh": accuracy(jobs, given),
    }
    write_record(checkpoint, schedule, seconds, right)
    for kind, share in right["fresh"].items():
        typer.echo(f"{kind:10} {share['questions']:5} questions, {share['right']:.1%} right")


def _keep_memory() -> None:
    """Keeps freed memory in the process: zeroed anew for each tensor it is most of a step."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):  # glibc
            library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
            library.mallopt(_MMAP_THRESHOLD, 2**31 - 1)


if __name__ == "__main__":
    typer.run(main)
