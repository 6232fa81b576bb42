"""Chaos: a whole run under random faults, and then the question whether anything was lost.

    python tests/fleet/chaos.py --seed 7 --seconds 60 --server redis-server --seeds 20

A server of its own, producer and worker processes; they are killed, stopped and restarted as the
seed says. Then the faults end, everything is enqueued once more, and every id must be stored
exactly once with its own numbers, or have failed for its own reason. Times are the machine's, so
that a seed gives the same faults and not the same interleaving.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis
from chaos_compactors import Compactors
from chaos_producers import Producers, write_dataset
from chaos_server import SERVERS, ChaosServer, NotHere, binary_of, client_of
from chaos_store import StoreDisk
from chaos_verdict import Verdict, judge
from chaos_watch import Broken, Repeating, Sampler, Story
from stand_in import STEPS

from fleet import Fleet
from halp_producer import RunKeys

WORKERS = 5
MAX_ATTEMPTS = 7
"""Random kills count as attempts. Of an innocent job so many are next to impossible."""

FAULTS = {
    "kill": 30,
    "pause": 18,
    "term": 15,
    "kill producer": 12,
    "hang up": 10,
    "compact": 10,
    "fill": 6,
    "fill store": 4,
    "move store": 4,
    "exchange store": 3,
    "restart": 3,
    "kill server": 3,
}
"""What happens, and how often in relation to the others."""

MEAN_GAP_SECONDS = 0.35
STRUCK = 0.4
"""Of the workers: those that kill or stop themselves at a step, where a random moment seldom is."""

DRAIN_SECONDS = 120
"""After the last fault: more than the longest retry delay and all deaths of a poison job."""


@dataclass
class Outcome:
    """What happened in one run. counts: faults and findings by name."""

    seed: int
    server: str
    seconds: float
    jobs: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)
    folder: Path | None = None

    @property
    def ok(self) -> bool:
        return not self.verdict.problems

    def __str__(self) -> str:
        c, v = self.counts, self.verdict
        return (
            f"seed {self.seed}, {self.server}, {self.seconds:.0f} s: {self.jobs} jobs, "
            f"{v.rows} rows, {v.failed} failed ({v.innocent_died} innocent); {c['kill']} kills, "
            f"{c['pause']} stops ({c['struck']} more at a step), {c['term']} terms, "
            f"{c['kill producer']} producer kills, {c['compact']} compactions, "
            f"{c['restart']}+{c['kill server']} server restarts+kills, {c['fill']} full phases, "
            f"{c['fill store']} full, {c['move store']} moved and {c['exchange store']} exchanged "
            "stores, "
            f"{c['hang up']} hang-ups; {c['deaths']} deaths in all, {c['lost']} leases lost, "
            f"{c['taken']} takeovers, "
            f"{c['forgotten']} writes forgotten; {v.segments} segments, {v.fenced} fenced; "
            f"{c['samples']} samples: {'OK' if self.ok else 'FAILED'}"
        )


class Chaos:
    """One run. `storm`, then `calm`, then `verdict`; `end` in any case."""

    def __init__(self, seed: int, binary: str, folder: Path, outcome: Outcome) -> None:
        self._random, self._seed = random.Random(seed), seed
        self._folder, self.outcome = folder, outcome
        self.problems = outcome.verdict.problems
        self.story = Story(folder / "events.log")
        self._server = ChaosServer(binary, folder / "server")
        self._keys = RunKeys(f"chaos-{seed}")
        self.fleet = Fleet(
            self._server.url, client_of(self._server.url, 10), self._keys.run, folder
        )
        self._producers = Producers(
            seed, folder, self._server, self._keys, self.story, self.problems
        )
        self.fleet.store_path = folder / "disk" / "store.zarr"
        self._disk = StoreDisk(self.fleet.store_path, self.story, self.problems)
        self._compactors = Compactors(
            self.fleet.store_path, folder, self.story, self.problems, self._disk.excuses
        )
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._tickets = itertools.count()
        self._told: dict[int, set[int]] = {}  # worker -> signals that we sent
        self._paused: set[int] = set()
        self._live: list[int] = []  # indices into fleet.workers
        self._threads: list[Repeating] = []
        self._storming = True

    # -- the storm -------------------------------------------------------------------------

    def storm(self, seconds: float) -> None:
        self._server.start()
        self._producers.next_part()
        sampler = Sampler(self._server.url, self._keys, self.outcome.counts, self.story)
        repeater = self._producers.repeat()
        self._threads = [
            Repeating(sampler.sample, 0.02, self.problems),
            Repeating(lambda: next(repeater), 0.3, self.problems),
        ]
        for _ in range(WORKERS):
            self._start_worker()
        over = time.monotonic() + seconds
        next_fault = time.monotonic() + 1
        while time.monotonic() < over and not self.problems:
            self._tick()
            if time.monotonic() >= next_fault:
                next_fault += self._random.expovariate(1 / MEAN_GAP_SECONDS)
                self._strike()
            time.sleep(0.01)

    def _tick(self) -> None:
        self._keep_workers()
        self._producers.look_after()

    def _keep_agenda(self) -> None:
        while self._agenda and self._agenda[0][0] <= time.monotonic():
            heapq.heappop(self._agenda)[2]()
        for index in self._live:
            # It stopped itself at a step: until after its lease.
            if index not in self._paused and self.fleet.workers[index].is_stopped:
                self.outcome.counts["struck"] += 1
                self.story.tell(f"worker {index} stopped itself")
                self._paused.add(index)
                self._later(self._pause_of(index), lambda victim=index: self._resume(victim))

    def _pause_of(self, index: int) -> float:
        return random.Random(f"{self._seed}/pause {index}").uniform(1, 5)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        moment = time.monotonic() + seconds
        heapq.heappush(self._agenda, (moment, next(self._tickets), action))

    def _strike(self) -> None:
        kind = self._random.choices(list(FAULTS), list(FAULTS.values()))[0]
        # Drawn whether used or not, so that the faults after this one do not depend on it.
        which, share = self._random.random(), self._random.random()
        able = [index for index in self._live if index not in self._paused]
        victim = able[int(which * len(able))] if able else None
        if kind in ("kill", "pause", "term"):
            done = victim is not None and self._hurt(kind, victim, share)
        elif kind == "kill producer":
            done = self._producers.kill()
        elif kind.endswith("store"):
            # Before rows are stored, a worker that finds no store rightly makes one.
            done = self._has_rows() and self._disk.hurt(kind)
            self._later(0.5 + 2 * share, self._disk.heal)
        elif kind == "compact":
            done = self._compactors.start()
            self._later(4 * share, self._compactors.kill)
        else:
            done = self._server.is_up and self._hurt_server(kind, share)
        self.outcome.counts[kind] += bool(done)

    def _has_rows(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.fleet.status().done)
        return False

    def _hurt(self, kind: str, victim: int, share: float) -> bool:
        worker = self.fleet.workers[victim]
        if kind == "pause":
            if len(self._paused) > 1:
                return False
            seconds = 0.3 + 4.2 * share  # leases are 1 to 2 s
            self.story.tell(f"stop worker {victim} for {seconds:.2f} s")
            self._paused.add(victim)
            worker.signal(signal.SIGSTOP)
            self._later(seconds, lambda: self._resume(victim))
            return True
        number = signal.SIGKILL if kind == "kill" else signal.SIGTERM
        if number in self._told[victim]:
            return False  # a second SIGTERM is another thing
        self.story.tell(f"{kind} worker {victim}")
        self._told[victim].add(number)
        worker.signal(number)
        return True

    def _resume(self, victim: int) -> None:
        if victim in self._paused:
            self.story.tell(f"resume worker {victim}")
            self._paused.discard(victim)
            self.fleet.workers[victim].signal(signal.SIGCONT)

    def _hurt_server(self, kind: str, share: float) -> bool:
        self.story.tell(f"server: {kind}")
        match kind:
            case "hang up":
                self._server.hang_up()
            case "fill":
                self._server.fill()
                self._later(0.5 + 1.5 * share, self._free)
            case "restart" | "kill server":
                how = signal.SIGTERM if kind == "restart" else signal.SIGKILL
                self._server.stop(how)
                self._later(1.5 * share, self._start_server)
        return True

    def _free(self) -> None:
        if self._server.is_up:
            self.story.tell("server: memory is free again")
            self._server.free()

    def _start_server(self) -> None:
        self._server.start()
        self.story.tell("server: is up again")

    # -- workers ---------------------------------------------------------------------------

    def _start_worker(self) -> None:
        # Of its own, since how many die by when is not the seed's.
        draw = random.Random(f"{self._seed}/worker {len(self.fleet.workers)}")
        lease, batch_ms, flush_rows = (
            draw.uniform(1, 2),
            draw.randint(5, 30),
            draw.choice([4, 8, 16, 32]),
        )
        strikes: tuple[str, ...] = ()
        if self._storming and draw.random() < STRUCK:
            step = draw.choices(list(STEPS), [3 if one == "publish" else 1 for one in STEPS])[0]
            when, how = draw.choice(["before", "after"]), draw.choice(["KILL", "STOP", "STOP"])
            strikes = ("--at", f"{step}:{when}:{draw.randint(1, 3)}:{how}")
        worker = self.fleet.start(
            *("--batch-size", "4", "--batch-ms", str(batch_ms)),
            *("--lease-seconds", f"{lease:.3f}", "--max-attempts", str(MAX_ATTEMPTS)),
            *("--retry-ms", "1", "--flush-rows", str(flush_rows), "--flush-seconds", "0.3"),
            *strikes,
        )
        index = len(self.fleet.workers) - 1
        self.story.tell(
            f"worker {index} is process {worker.process.pid}, lease {lease:.3f} s {strikes}"
        )
        self._live.append(index)
        self._told[index] = set()

    def _bury(self, index: int) -> None:
        """Whether it may have ended so: by a poison job, or as it was told."""
        worker = self.fleet.workers[index]
        code = worker.wait(5)
        self._live.remove(index)
        self._paused.discard(index)
        self.outcome.counts["deaths"] += 1
        self.story.tell(f"worker {index} ended with {code}")
        was_told = signal.SIGTERM in self._told[index]
        allowed = {-signal.SIGKILL, 0, -signal.SIGTERM} if was_told else {-signal.SIGKILL}
        tail = worker.log.read_text(errors="replace")[-3000:]
        if code == 1 and self._disk.excuses(tail):
            return
        if code not in allowed:
            self.problems.append(f"worker {index} ended with {code}\n{tail}")

    # -- the calm --------------------------------------------------------------------------

    def calm(self) -> Path:
        """No more faults: everything once more, until nothing is left; the whole data set."""
        self.story.tell("calm")
        self._storming = False
        for _, _, action in sorted(self._agenda):
            action()
        self._agenda.clear()
        self._disk.heal()
        self._producers.end()
        self._compactors.end()
        dataset = self._folder / "dataset.jsonl"
        write_dataset(dataset, self._producers.jobs)
        self.outcome.jobs = len(self._producers.jobs)
        self._threads.pop().stop()  # what it repeats is at its end too
        self._producers.enqueue_all(dataset)
        over = time.monotonic() + DRAIN_SECONDS
        while not self.fleet.status().finished:
            if time.monotonic() > over:
                raise Broken(f"not empty after {DRAIN_SECONDS} s\n{self._dump()}")
            if self.problems:
                return dataset
            self._keep_workers()
            time.sleep(0.05)
        if (again := self._producers.enqueue_all(dataset)) != 0:
            self.problems.append(f"{again} ids were new when all of them were known")
        self._dismiss()
        return dataset

    def _keep_workers(self) -> None:
        self._keep_agenda()
        for index in list(self._live):
            if not self.fleet.workers[index].is_alive:
                self._bury(index)
                self._start_worker()

    def _dismiss(self) -> None:
        """All workers end in order."""
        for index in self._live:
            self._told[index].add(signal.SIGTERM)
            self.fleet.workers[index].signal(signal.SIGTERM)
        over = time.monotonic() + 30
        while self._live:
            if time.monotonic() > over:
                raise Broken(f"workers {self._live} did not end after SIGTERM\n{self._dump()}")
            self._keep_agenda()
            for index in list(self._live):
                if not self.fleet.workers[index].is_alive:
                    self._bury(index)
            time.sleep(0.02)
        self._threads.pop().stop()

    def _dump(self) -> str:
        client, jobs = self.fleet.client, self._keys.jobs
        return "\n".join(
            repr(one)
            for one in (
                self.fleet.status(),
                client.xinfo_stream(jobs),
                client.xinfo_groups(jobs),
                client.xinfo_consumers(jobs, "workers"),
                client.xpending_range(jobs, "workers", "-", "+", 50),
                client.zrange(self._keys.delayed, 0, 50, withscores=True),
                client.hgetall(self._keys.attempts),
            )
        )

    # -- the end ---------------------------------------------------------------------------

    def verdict(self, dataset: Path) -> None:
        before = list(self.problems)
        self.outcome.verdict = judge(self.fleet, self._producers.jobs, dataset)
        self.outcome.verdict.problems[:0] = before

    def read_logs(self) -> None:
        """Counts what workers say, and finds what nobody should: a thread that died, a traceback of
        a command."""
        counts = self.outcome.counts
        problems = self.outcome.verdict.problems
        for worker in self.fleet.workers:
            text = worker.log.read_text(errors="replace")
            counts["lost"] += len(re.findall(r"lease of \S+ was lost", text))
            counts["taken"] += sum(
                map(int, re.findall(r"took over (\d+) jobs.*-[0-9a-f]{8}", text))
            )
            if found := re.search(r"Exception (in thread|ignored)(.*\n){1,40}", text):
                problems.append(f"{worker.log.name}: {found[0]}")
        if "Traceback" in (text := self._producers.log()):
            problems.append(f"producer.log: {text[-3000:]}")

    def end(self) -> None:
        """Kills whatever of it is left."""
        for thread in self._threads:
            thread.tell()
        self._producers.end()
        self._compactors.end()
        self.fleet.end()
        self._server.stop(signal.SIGKILL)
        self.story.close()

    def unmount(self) -> None:
        """After the verdict, which reads the store."""
        self._disk.end()


def run_chaos(seed: int, server: str, seconds: float, *, keep: bool = False) -> Outcome:
    """One run; its folder is kept if something is wrong. Raises NotHere."""
    binary = binary_of(server)
    folder = Path(tempfile.mkdtemp(prefix=f"halp-chaos-{seed}-"))
    outcome = Outcome(seed, server, seconds, folder=folder)
    started = time.monotonic()
    chaos = Chaos(seed, binary, folder, outcome)
    try:
        chaos.storm(seconds)
        if outcome.ok:
            dataset = chaos.calm()
            chaos.verdict(dataset)
    except Exception:  # noqa: BLE001 - it is told, with the seed and the folder
        outcome.verdict.problems.append(traceback.format_exc())
    except BaseException:
        keep = True
        print(f"seed {seed}, {server}: broken off; kept: {folder}", file=sys.stderr)
        raise
    finally:
        chaos.end()
        outcome.seconds = time.monotonic() - started
        chaos.read_logs()
        chaos.unmount()
        if outcome.ok and not keep:
            shutil.rmtree(folder)
            outcome.folder = None
        else:
            (folder / "outcome.txt").write_text(
                "\n".join([str(outcome), *outcome.verdict.problems])
            )
    return outcome


def _at_hand(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        try:
            binary_of(name)
        except NotHere as error:
            print(f"left out: {error}", flush=True)
        else:
            yield name


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after the other")
    parser.add_argument("--seconds", type=float, default=60, help="how long faults go on")
    parser.add_argument(
        "--server", default="all", help=f"{', '.join(SERVERS)}, a path, or all that are here"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder of a good run too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    servers = list(SERVERS) if options.server == "all" else [options.server]
    here = list(_at_hand(servers))
    bad = 0
    for seed in range(options.seed, options.seed + options.seeds):
        for server in here:
            outcome = run_chaos(seed, server, options.seconds, keep=options.keep)
            print(outcome, flush=True)
            if outcome.folder is not None:
                print(f"  kept: {outcome.folder}", flush=True)
            for problem in outcome.verdict.problems:
                print(f"  {problem}", flush=True)
            bad += not outcome.ok
    if not here:
        return 2
    return 1 if bad else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
