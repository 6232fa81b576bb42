"""`judge`: after the storm, whether every id is where the promise says, and nothing is left over.

Reads the store twice: with plain Zarr, as anybody would, and with `halp-store verify`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray
import zarr
from stand_in import SMALL, expected_value

from fleet import Fleet
from halp_producer import Job
from halp_producer.balance import imbalances
from halp_producer.keys import GROUP
from halp_producer.status import read_run
from halp_store.compaction import compact
from halp_store.local import LocalStorage
from halp_store.storage import GENERATIONS, METADATA, SEGMENTS
from halp_store.verify import verify_store

REASONS: dict[str, tuple[str, ...]] = {
    "POISON kill": ("worker_died",),
    "POISON prepare": ("worker_died",),
    # Tried several times, so that a random kill may be the last of them.
    "POISON raise": ("extraction_failed", "worker_died"),
    "POISON retry": ("url_failed", "worker_died"),
    "POISON reject": ("image_missing",),
}
"""What a job that must not be stored may fail for. All others, POISON large too, are innocent."""

_SHOWN = 20


@dataclass
class Verdict:
    """problems: everything that breaks the promise, in sentences."""

    problems: list[str] = field(default_factory=list)
    rows: int = 0
    segments: int = 0
    fenced: int = 0
    failed: int = 0
    innocent_died: int = 0


def judge(fleet: Fleet, jobs: Sequence[Job], dataset: Path) -> Verdict:
    """No worker and no producer runs any more."""
    verdict = Verdict()
    rows = list(_rows(fleet.store_path, verdict))
    verdict.rows = len(rows)
    stored = Counter(name for name, _ in rows)
    _say(verdict, "stored more than once", [name for name, n in stored.items() if n > 1])
    _say(verdict, "with wrong values", [name for name, is_right in rows if not is_right])
    _judge_fates(fleet, jobs, set(stored), verdict)
    _judge_server(fleet, len(stored), len(jobs), verdict)
    _judge_verified(fleet, jobs, verdict)
    _judge_compacted(fleet.store_path, set(stored), verdict)
    for command in (
        ["halp-store", "verify", str(fleet.store_path), "--dataset", str(dataset)],
        ["halp-producer", "status", "--check"],
    ):
        _run(fleet, command, verdict)
    return verdict


def _rows(store: Path, verdict: Verdict) -> Iterator[tuple[str, bool]]:
    """(id, whether its numbers are its own) of every published row, whoever else has the id."""
    generation = max(
        (one.parent for one in (store / GENERATIONS).glob("*/zarr.json")), default=None
    )
    folders = sorted((store / SEGMENTS).iterdir())
    if generation:
        covered = {name for name, _, _ in zarr.open_group(generation, mode="r").attrs["segments"]}
        folders = [generation, *(one for one in folders if one.name not in covered)]
    for folder in folders:
        document = folder / METADATA
        if not document.exists():
            continue
        if json.loads(document.read_bytes())["attributes"].get("tombstone"):
            verdict.fenced += 1
            continue
        verdict.segments += folder != generation
        group = zarr.open_group(folder, mode="r")
        names = [str(name) for name in _read(group, "question_id")]
        firsts = [
            _read(group, column).reshape(len(names), -1)[:, 0] for column in SMALL.vector_columns()
        ]
        answers = _read(group, "answer")
        for row, name in enumerate(names):
            wanted = expected_value(name)
            is_right = all(column[row] == wanted for column in firsts)
            yield name, is_right and str(answers[row]) == f"answer to {name}"


def _read(group: zarr.Group, name: str) -> np.ndarray:
    array: Any = group[name]
    return np.asarray(array[...])


def _judge_fates(fleet: Fleet, jobs: Sequence[Job], stored: set[str], verdict: Verdict) -> None:
    letters = [
        {name.decode(): value.decode() for name, value in fields.items()}
        for _, fields in fleet.client.xrange(fleet.keys.failed)
    ]
    verdict.failed = len(letters)
    reasons = {one["question_id"]: one["reason"] for one in letters}
    twice = [name for name, n in Counter(one["question_id"] for one in letters).items() if n > 1]
    _say(verdict, "with more than one letter", twice)
    ids = {job.question_id for job in jobs}
    _say(verdict, "neither stored nor failed", sorted(ids - stored - reasons.keys()))
    _say(verdict, "stored and failed", sorted(stored & reasons.keys()))
    _say(verdict, "that nobody enqueued", sorted((stored | reasons.keys()) - ids))
    wrong = []
    for job in jobs:
        reason, allowed = reasons.get(job.question_id), REASONS.get(job.question, (None,))
        if reason in allowed:
            continue
        wrong.append(f"{job.question_id} ({job.question}: {reason}, expected {allowed})")
        verdict.innocent_died += reason == "worker_died"
    _say(verdict, "with the wrong fate", wrong)


def _judge_server(fleet: Fleet, stored: int, jobs: int, verdict: Verdict) -> None:
    status, books = read_run(fleet.client, fleet.keys)
    verdict.problems += imbalances(books)
    found = {
        "enqueued": books.enqueued,
        "done": books.done,
        "failed": books.failed,
        "on the stream": books.stream,
        "pending": books.pending,
        "delayed": books.delayed,
        "due": books.due,
        "with attempts": books.attempts,
        "held by consumers": sum(
            one["pending"] for one in fleet.client.xinfo_consumers(fleet.keys.jobs, GROUP)
        ),
        "held by workers": sum(one.in_flight for one in status.workers),
    }
    wanted = dict.fromkeys(found, 0) | {
        "enqueued": jobs,
        "done": stored,
        "failed": verdict.failed,
    }
    verdict.problems += [
        f"{name}: expected {wanted[name]}, got {number}"
        for name, number in found.items()
        if number != wanted[name]
    ]


def _judge_verified(fleet: Fleet, jobs: Sequence[Job], verdict: Verdict) -> None:
    letters = fleet.letters()
    found = verify_store(
        fleet.store_path,
        expected={job.question_id: job.content_hash for job in jobs},
        failed={name: one["reason"] for name, one in letters.items()},
        queued=(),
    )
    verdict.problems += [f"verify: {one.kind}: {one.sentence}" for one in found.problems]
    if found.rows != verdict.rows:
        verdict.problems.append(f"verify: expected {verdict.rows} rows, got {found.rows}")


def _judge_compacted(store: Path, stored: set[str], verdict: Verdict) -> None:
    """One generation has them all, as anybody reads it who has never heard of this project."""
    done = compact(LocalStorage(store))
    if done.generation is None:
        return
    dataset = xarray.open_zarr(store / done.generation, chunks=None)
    ids = dataset["question_id"].to_numpy().tolist()
    if ids != sorted(stored):
        _say(verdict, "not in the generation", sorted(stored.difference(ids)))
        _say(verdict, "in the generation alone", sorted(set(ids).difference(stored)))
        _say(verdict, "twice or not in order", ids if len(ids) == len(stored) else [])
    wanted = np.array([expected_value(one) for one in ids])
    for column in SMALL.vector_columns():
        values = dataset[column].to_numpy().reshape(len(ids), -1)[:, 0]
        wrong = [ids[row] for row in np.flatnonzero(values != wanted)]
        _say(verdict, f"with a wrong {column} in the generation", wrong)


def _run(fleet: Fleet, command: Sequence[str], verdict: Verdict) -> None:
    """A command that a person would run now; it has to be content."""
    script = Path(sys.executable).with_name(command[0])
    ended = subprocess.run(
        [script, *command[1:], "--run", fleet.keys.run, "--redis-url", fleet.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if ended.returncode:
        verdict.problems.append(
            f"{' '.join(command)}: exit code {ended.returncode}: {ended.stdout}{ended.stderr}"
        )


def _say(verdict: Verdict, what: str, names: Sequence[str]) -> None:
    if names:
        shown = ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
        verdict.problems.append(f"{len(names)} {what}: {shown}")
