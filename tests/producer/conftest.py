"""A run with jobs in every place, whose sum is checked after each step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from click.testing import Result
from typer.testing import CliRunner

from halp_producer import cli
from halp_producer.activity import WorkerActivity
from halp_producer.balance import imbalances
from halp_producer.enqueue import create_group, enqueue_jobs
from halp_producer.job import Job
from halp_producer.keys import DELAYED, DONE, FAILED, FAILED_FOR, GROUP, RunKeys
from halp_producer.status import RunStatus, WorkerStatus, read_run

# A process starts with the peak of the one that starts it, so a small one does.
PEAK = """
import os, sys
command = [sys.executable, "-m", "halp_producer", *sys.argv[1:]]
silent = [(os.POSIX_SPAWN_OPEN, one, os.devnull, os.O_WRONLY, 0) for one in (1, 2)]
child = os.posix_spawn(sys.executable, command, os.environ, file_actions=silent)
_, status, usage = os.wait4(child, 0)
assert status == 0, status
print(usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10))
"""


class Bench:
    """A run, and what workers would do to it: `take`, `delay`, `done`, `fail`."""

    def __init__(self, client: redis.Redis, keys: RunKeys) -> None:
        self.client, self.keys = client, keys
        create_group(client, keys)

    def enqueue(self, *names: str) -> list[str]:
        """The entry ids of new jobs."""
        jobs = [
            Job(question_id=one, image="a.jpg", question="What?", ground_truth="x") for one in names
        ]
        return [one.entry_id for one in enqueue_jobs(self.client, self.keys, jobs)]

    def take(self, count: int = 1, worker: str = "w1") -> list[str]:
        """The next waiting jobs into a worker's hands, at their second attempt."""
        read = self.client.xreadgroup(GROUP, worker, {self.keys.jobs: ">"}, count=count)
        taken = [entry_id.decode() for entry_id, _ in read[0][1]]
        self.client.hset(self.keys.attempts, mapping=dict.fromkeys(taken, 2))
        return taken

    def delay(self, entry_id: str) -> None:
        """From a worker to the delayed ones, due in a long time."""
        self.client.xclaim(self.keys.jobs, GROUP, DELAYED, 0, [entry_id])
        self.client.zadd(self.keys.delayed, {entry_id: 9e12})

    def done(self, entry_id: str) -> None:
        with self.client.pipeline(transaction=True) as step:
            self._leave(step, entry_id, DONE)
            step.execute()

    def fail(self, entry_id: str, reason: str = "image-missing") -> str:
        """The id of its letter."""
        ((_, fields),) = self.client.xrange(self.keys.jobs, entry_id, entry_id)
        more = {"reason": reason, "error": "not there", "traceback": "Traceback:\n  x\x1b\n",
                "attempts": "2", "worker": "w1", "failed_ms": "1700000000000"}  # fmt: skip
        with self.client.pipeline(transaction=True) as step:
            step.xadd(self.keys.failed, {**fields, **more})
            step.hincrby(self.keys.counts, FAILED_FOR + reason, 1)
            self._leave(step, entry_id, FAILED)
            return step.execute()[0].decode()

    def surplus_letter(self, fields: dict[Any, Any], reason: str = "image-missing") -> str:
        """The id of one more letter, counted as failed, of what was never enqueued (again)."""
        for count in (FAILED, FAILED_FOR + reason):
            self.client.hincrby(self.keys.counts, count, 1)
        return self.client.xadd(self.keys.failed, {**fields, "reason": reason}).decode()

    def failed(self, *names: str, reason: str = "image-missing") -> list[str]:
        """Enqueued, taken and failed: the ids of the letters. Nothing else may be waiting."""
        self.enqueue(*names)
        return [self.fail(one, reason) for one in self.take(len(names))]

    def _leave(self, step: redis.client.Pipeline, entry_id: str, count: str) -> None:
        """All at once, as a worker's script does it: somebody may be looking meanwhile."""
        step.xack(self.keys.jobs, GROUP, entry_id)
        step.xdel(self.keys.jobs, entry_id)
        step.hdel(self.keys.attempts, entry_id)
        step.hincrby(self.keys.counts, count, 1)

    def problems(self) -> tuple[str, ...]:
        return imbalances(read_run(self.client, self.keys).books)

    def numbers(self) -> tuple[int, ...]:
        """(enqueued, waiting, delayed, in flight, done, failed)."""
        one = read_run(self.client, self.keys).status
        return (one.enqueued, one.waiting, one.delayed, one.in_flight, one.done, one.failed)

    def reasons(self) -> dict[str, int]:
        """`failed` by reason."""
        return read_run(self.client, self.keys).status.failed_by_reason

    def snapshot(self) -> list[object]:
        """Everything the run keeps, to see that nothing changed."""
        client, keys = self.client, self.keys
        return [
            client.xrange(keys.jobs), client.xrange(keys.failed), client.hgetall(keys.counts),
            client.hgetall(keys.known), client.hgetall(keys.attempts),
            client.zrange(keys.delayed, 0, -1, withscores=True),
            [(one["message_id"], one["consumer"])
             for one in client.xpending_range(keys.jobs, GROUP, "-", "+", 1000)],
        ]  # fmt: skip


@pytest.fixture
def halp(server, run, monkeypatch) -> Callable[..., Result]:
    """Runs a command in this process, against this test's server and run."""
    monkeypatch.setenv("HALP_REDIS_URL", server.url)
    monkeypatch.setenv("HALP_RUN", run)
    return lambda *arguments: CliRunner().invoke(cli.app, [str(one) for one in arguments])


@pytest.fixture
def keys(run: str) -> RunKeys:
    return RunKeys(run)


@pytest.fixture
def bench(client: redis.Redis, keys: RunKeys) -> Bench:
    """This test's run, with a group and no jobs."""
    return Bench(client, keys)


@pytest.fixture
def full(client: redis.Redis) -> Iterator[Callable[[], None]]:
    """`full()`: from now on the server has no memory left, until the test is over."""
    yield lambda: client.config_set("maxmemory", 1) and None
    client.config_set("maxmemory", 0)


@pytest.fixture
def peak_mib() -> Callable[..., float]:
    """`peak_mib(*arguments)`: the peak memory of that halp-producer command."""

    def measure(*arguments: str) -> float:
        return float(subprocess.check_output([sys.executable, "-c", PEAK, *arguments]))

    return measure


@pytest.fixture
def worker() -> Callable[..., WorkerStatus]:
    """`worker(host, name, ...)`: one that works; fields of its status or its activity by name."""

    def make(host: str = "gpu-0", name: str = "4000-abcdef01", **changes: Any) -> WorkerStatus:
        said = {
            **{"worker": f"{host}-{name}", "host": host, "pid": 1, "device": "cuda:0"},
            **{"model": "m", "state": "running", "started_ms": 0, "seen_ms": 0, "in_hand": 96},
            **{"done": 2001, "failed": 3, "rows_per_second": 12.3, "batch_jobs": 32},
            **{"memory_bytes": 20_100_000_000, "store": "/data/run.zarr"},
        }
        known = {"alive": True, "in_flight": 96, "seen_seconds_ago": 2.0}
        for field, value in changes.items():
            (said if field in said else known)[field] = value
        known.setdefault("activity", WorkerActivity(**said))
        return WorkerStatus(worker=said["worker"], **known)

    return make


@pytest.fixture
def status(worker: Callable[..., WorkerStatus]) -> Callable[..., RunStatus]:
    """`status(...)`: run `pilot`, one worker on it; fields by name."""

    def make(**changes: Any) -> RunStatus:
        values = {
            **{"run": "pilot", "enqueued": 100, "waiting": 60, "delayed": 10, "in_flight": 10},
            **{"done": 15, "failed": 5, "failed_by_reason": {}, "rows_per_second": 2.0},
            **{"workers": (worker(),), **changes},
        }
        return RunStatus(**values)

    return make
