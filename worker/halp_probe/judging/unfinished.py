"""`Unfinished`: the verdicts of a run that is not over, kept so that nothing is asked twice.

A file of JSON lines beside the label tables. Its name follows from all that may change a verdict,
so that verdicts of another prompt, model or store are never taken for these. It is no label table,
and nothing but the next run of the same judge reads it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

from halp_probe.errors import ProbeError
from halp_probe.judging.verdict import Kind, Label, Question, Verdict

SUFFIX: Final = ".unfinished"
_DIGITS: Final = 16
"""Hexadecimal, of a sha256: enough that two judges of one store never meet."""


class UnfinishedBusy(ProbeError):  # noqa: N818 - named for what it says
    """Another run writes to it."""


def unfinished_file(folder: Path, judge: str, identity: Mapping[str, Any]) -> Path:
    """Where it is. folder: of the label tables. identity: JSON object, all that makes the judge."""
    text = json.dumps(identity, sort_keys=True)
    return folder / judge / f"{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}{SUFFIX}"


class Unfinished:
    """found: what is known already, by the digest of the question it is about."""

    def __init__(self, file: IO[bytes], found: dict[str, tuple[Verdict, str]]) -> None:
        self._file, self._lock = file, threading.Lock()
        self._found = found

    def get(self, question: Question) -> tuple[Verdict, str] | None:
        """(verdict, model that gave it); None where it was not asked, or its texts are others."""
        return self._found.get(digest(question))

    def add(self, question: Question, verdict: Verdict, served: str) -> None:
        """On the disk when it returns. For several threads. Raises OSError."""
        line = {"question": digest(question), "served": served, **asdict(verdict)}
        with self._lock:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


@contextmanager
def opened_unfinished(path: Path) -> Iterator[Unfinished]:
    """For one run at a time. Raises UnfinishedBusy or OSError.

    A line that a kill cut short is taken off: its question is asked again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnfinishedBusy(
                f"{path}: another run asks the same judge about the same store: wait for it"
            ) from None
        except OSError:  # a file system without locks
            pass
        file.seek(0)
        found: dict[str, tuple[Verdict, str]] = {}
        whole = 0
        for line in file:
            known = _read(line)
            if known is None:
                break
            found[known[0]] = known[1:]
            whole += len(line)
        file.truncate(whole)
        yield Unfinished(file, found)


def forget(path: Path) -> None:
    """Once the table is written."""
    with suppress(FileNotFoundError):
        path.unlink()


def digest(question: Question) -> str:
    """Of all that a judge is told."""
    text = json.dumps(asdict(question), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(line: bytes) -> tuple[str, Verdict, str] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        said = json.loads(line)
        verdict = Verdict(Label(said["label"]), said["rule"], Kind(said["kind"]), said["note"])
        return said["question"], verdict, said["served"]
    except (ValueError, TypeError, KeyError):
        return None
