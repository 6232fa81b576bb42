"""`Producers`: everything that enqueues in a run of chaos, and may be killed over it.

Real `halp-producer enqueue` processes over files of jobs, one file after the other, and a thread's
worth of `Enqueuer` that enqueues the same jobs again.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from chaos_server import ChaosServer, client_of
from chaos_watch import Broken, Story

from halp_producer import Job, RunKeys
from halp_producer.enqueue import Enqueuer

PART_JOBS = 400
"""Jobs of one file for `halp-producer enqueue`; the next one comes when it is through."""

MAX_BACKLOG = 250
"""Enough that nobody idles, few enough that the end is short."""

POISONS = {
    "POISON kill": 0.0015,
    "POISON prepare": 0.0015,
    "POISON raise": 0.003,
    "POISON retry": 0.003,
    "POISON reject": 0.003,
    "POISON large": 0.003,
}


class Producers:
    """jobs: all of the files so far, whether enqueued yet or not."""

    def __init__(
        self,
        seed: int,
        folder: Path,
        server: ChaosServer,
        keys: RunKeys,
        story: Story,
        problems: list[str],
    ) -> None:
        self._seed, self._folder, self._server, self._keys = seed, folder, server, keys
        self._story, self._problems = story, problems
        self.jobs: list[Job] = []
        self._parts: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None

    def next_part(self) -> None:
        """A file of new jobs, whole on the disk before anybody reads it."""
        draw = random.Random(f"{self._seed}/{len(self._parts)}")
        questions = draw.choices(
            [None, *POISONS], [1 - sum(POISONS.values()), *POISONS.values()], k=PART_JOBS
        )
        jobs = []
        for number, question in enumerate(questions, len(self.jobs)):
            text = question or f"Question {number}? " + "x" * draw.randint(0, 200)
            jobs.append(
                Job(question_id=f"q{number}", image="a.png", question=text, ground_truth="yes")
            )
        path = self._folder / f"part-{len(self._parts)}.jsonl"
        write_dataset(path, jobs)
        self.jobs += jobs
        self._parts.append(path)

    def look_after(self) -> None:
        """A process that was killed is started again; one that is through gets the next file."""
        if self._process is None:
            if self._server.is_up:
                self._process = self._enqueue(self._parts[-1], "--max-backlog", str(MAX_BACKLOG))
        elif (code := self._process.poll()) is not None:
            self._process = None
            self._story.tell(f"producer ended with {code}")
            if code == 0:
                self.next_part()
            elif code not in (1, -signal.SIGKILL):  # 1: no server to be found
                self._problems.append(f"halp-producer ended with {code}: {self.log()[-3000:]}")

    def _enqueue(self, path: Path, *options: str) -> subprocess.Popen[bytes]:
        with (self._folder / "producer.log").open("ab") as log:
            return subprocess.Popen(
                [
                    *(Path(sys.executable).with_name("halp-producer"), "enqueue", path, "--json"),
                    *("--run", self._keys.run, "--redis-url", self._server.url, *options),
                ],
                stdout=log if options else subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def log(self) -> str:
        """What all of the processes had to say."""
        path = self._folder / "producer.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def kill(self) -> bool:
        if self._process is None:
            return False
        self._story.tell("kill producer")
        self._process.kill()
        return True

    def repeat(self) -> Iterator[None]:
        """Another producer, that enqueues what the first one did or will, by the public class."""
        draw = random.Random(f"{self._seed}/repeater")
        client = client_of(self._server.url)
        enqueuer = Enqueuer(client, self._keys, max_backlog=MAX_BACKLOG)
        while True:
            start = draw.randrange(len(self.jobs))
            enqueuer.send(self.jobs[start : start + draw.randint(1, 50)])
            yield

    def enqueue_all(self, dataset: Path) -> int:
        """How many of them were new."""
        producer = self._enqueue(dataset)
        output, _ = producer.communicate(timeout=60)
        if producer.returncode:
            raise Broken(f"halp-producer ended with {producer.returncode}: {self.log()[-3000:]}")
        self._story.tell(f"enqueued everything: {output.decode()}")
        return int(json.loads(output)["added"])

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


def write_dataset(path: Path, jobs: Sequence[Job]) -> None:
    with path.open("w") as file:
        file.writelines(
            json.dumps(
                {
                    "question_id": job.question_id,
                    "image": job.image,
                    "question": job.question,
                    "ground_truth": job.ground_truth,
                }
            )
            + "\n"
            for job in jobs
        )
