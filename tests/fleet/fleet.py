"""`Fleet`: worker processes that a test may kill, pause and end, on one run and one store.

The processes are forked from a server that has everything imported: they start in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import redis
import stand_in

from halp_producer import Job, RunKeys
from halp_producer.enqueue import enqueue_jobs
from halp_producer.status import run_status
from halp_store import open_store

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["stand_in"])


def _start_fork_server() -> None:
    """Once. It does not know our `sys.path`, and would import `stand_in` in each worker anew."""
    before = dict(os.environ)
    paths = [str(Path(__file__).parent), before.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    # Killed workers leave semaphores of libraries behind, which are cleaned up with a warning.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def make_job(number: int, question: str | None = None) -> Job:
    return Job(
        question_id=f"q{number}",
        image="a.png",
        question=question or f"Question {number}?",
        ground_truth="yes",
    )


def _work(arguments: Sequence[str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        code = stand_in.run(arguments)
    except BaseException:  # noqa: BLE001 - the log has it, the test sees the code
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    os._exit(code)


class Gate:
    """Batches of a worker that is started with `*gate.options` end when the test says so."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.options = ("--gate", str(path))
        self.let(0)

    def let(self, batches: int) -> None:
        """So many may have ended, counted from the worker's first one."""
        partial = self._path.with_suffix(".partial")
        partial.write_text(str(batches))
        partial.replace(self._path)

    def open(self) -> None:
        """For all there will be."""
        self.let(10**9)


class Worker:
    """A process. Exit codes as of `subprocess`: minus the signal that killed it."""

    def __init__(self, process: BaseProcess, log: Path) -> None:
        self.process, self.log = process, log

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        if self.process.pid is not None and self.is_alive:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.process.pid, number)

    def wait(self, seconds: float = 60) -> int | None:
        self.process.join(seconds)
        return self.process.exitcode

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped by SIGSTOP."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] == "T"


class Fleet:
    """One run, one store, and the processes that work on it."""

    def __init__(self, url: str, client: redis.Redis, run: str, folder: Path) -> None:
        self.url, self.client, self.keys = url, client, RunKeys(run)
        self.store_path, self._folder = folder / "store.zarr", folder
        self.workers: list[Worker] = []
        _start_fork_server()

    def enqueue(self, *jobs: Job) -> None:
        enqueue_jobs(self.client, self.keys, jobs)

    def start(self, *options: str, url: str | None = None) -> Worker:
        """A worker; its log is `worker-<n>.log` in the test's folder."""
        log = self._folder / f"worker-{len(self.workers)}.log"
        log.touch()
        arguments = [
            *("--store", str(self.store_path), "--redis-url", url or self.url),
            *("--run", self.keys.run, *options),
        ]
        process = PROCESSES.Process(target=_work, args=(arguments, log), daemon=True)
        process.start()
        self.workers.append(Worker(process, log))
        return self.workers[-1]

    def finish(self, *options: str) -> None:
        """A worker of its own empties the stream."""
        worker = self.start("--until-empty", "--lease-seconds", "0.3", *options)
        assert worker.wait() == 0, self.logs()

    def logs(self) -> str:
        return "\n".join(
            f"--- {worker.log.name}\n{worker.log.read_text(errors='replace')}"
            for worker in self.workers
        )

    def status(self) -> Any:
        return run_status(self.client, self.keys)

    def stored(self) -> Any:
        return open_store(self.store_path)

    def letters(self) -> dict[str, dict[str, str]]:
        """Question id -> its dead letter."""
        found = {}
        for _, fields in self.client.xrange(self.keys.failed):
            letter = {name.decode(): value.decode() for name, value in fields.items()}
            found[letter["question_id"]] = letter
        return found

    def end(self) -> None:
        for worker in self.workers:
            worker.signal(signal.SIGKILL)
            worker.signal(signal.SIGCONT)
            worker.wait(10)
