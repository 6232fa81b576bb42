"""`judge_store`: the judge that was asked for, applied to all questions of a store.

Knows the judges and what each needs; refuses to know terminals and label tables.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from halp_probe.errors import ProbeError
from halp_probe.judging.judges import NAMES, judge_named
from halp_probe.judging.verdict import Question, Verdict

if TYPE_CHECKING:
    from halp_store.view import View

COMMAND: Final = "command"
ENDPOINT: Final = "endpoint"
_CHUNK: Final = 500
"""Questions between two looks at the progress."""

_Told = Callable[[int, int], None] | None


@dataclass(frozen=True)
class Judged:
    """options: what else makes the judge what it is, for labels.json. said: for people."""

    name: str
    verdicts: Mapping[str, Verdict]
    options: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    unfinished: Path | None = None


@dataclass(frozen=True)
class Asked:
    """The command line, as far as it says who judges."""

    judge: str
    name: str | None
    labels: Path | None
    synonyms: Path | None
    column: str | None
    command: str | None
    endpoint: str | None
    model: str | None
    prompt: Path | None
    concurrency: int
    allow_http: bool

    @property
    def is_file(self) -> bool:
        return self.judge.casefold().endswith(".csv")

    @property
    def stored_name(self) -> str:
        """Of the judge whose table it will be."""
        return self.name or (Path(self.judge).stem if self.is_file else self.judge)


def judge_store(
    asked: Asked, store: View, questions: Sequence[Question], told: _Told = None
) -> Judged:
    """told: is called with (questions judged, questions). Raises ProbeError or OSError."""
    from halp_probe.labels import check_judge_name

    name = asked.stored_name
    check_judge_name(name)
    if asked.judge == COMMAND:
        return _by_command(asked, name, questions, told)
    if asked.judge == ENDPOINT:
        return _by_endpoint(asked, name, store, questions, told)
    if asked.judge not in NAMES:
        return _by_file(asked, name, questions)
    groups = _synonyms(asked.synonyms) if asked.synonyms is not None else []
    judge = judge_named(name, groups)
    found: dict[str, Verdict] = {}
    for number, one in enumerate(questions):
        found[one.question_id] = judge(one)
        if told and not number % _CHUNK:
            told(number, len(questions))
    return Judged(name, found, {"synonyms": groups} if groups else {})


def _by_file(asked: Asked, name: str, questions: Sequence[Question]) -> Judged:
    from halp_probe.judging.from_file import read_file

    found = read_file(Path(asked.judge), questions, asked.column)
    said = []
    if found.unknown:
        said.append(f"{asked.judge}: {found.unknown:,} ids are not in the store")
    if found.missing:
        said.append(f"{asked.judge}: {found.missing:,} rows of the store are not in it: unlabelled")
    options = {"file": str(Path(asked.judge).absolute()), "column": found.column}
    return Judged(name, found.verdicts, {**options, "unknown_ids": found.unknown}, tuple(said))


def _by_command(asked: Asked, name: str, questions: Sequence[Question], told: _Told) -> Judged:
    from halp_probe.judging.command import run_command

    try:
        argv = shlex.split(asked.command or "")
    except ValueError as error:
        raise ProbeError(f"--command {asked.command!r}: {error}") from None
    found = run_command(questions, argv, told)
    return Judged(name, found, {"command": asked.command})


def _by_endpoint(
    asked: Asked, name: str, store: View, questions: Sequence[Question], told: _Told
) -> Judged:
    from halp_probe.judging.endpoint import EndpointSettings, ask_endpoint, unfinished_path
    from halp_probe.judging.prompt import PROMPT
    from halp_probe.labels import labels_folder

    prompt = PROMPT if asked.prompt is None else _text(asked.prompt)
    settings = EndpointSettings(
        url=asked.endpoint or "",
        model=asked.model or "",
        concurrency=asked.concurrency,
        allow_http=asked.allow_http,
        prompt=prompt,
    )
    unfinished = unfinished_path(labels_folder(store.path, asked.labels), name, settings, store)
    found = ask_endpoint(questions, settings, unfinished, told)
    return Judged(name, found.verdicts, found.about, unfinished=unfinished)


def _synonyms(path: Path) -> list[list[str]]:
    try:
        groups = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{path}: is no JSON: {error}") from error
    is_groups = isinstance(groups, list) and all(
        isinstance(group, list) and all(isinstance(one, str) for one in group) for group in groups
    )
    if not is_groups:
        raise ProbeError(
            f'{path}: expected a list of lists of texts, such as [["couch", "sofa"]], got '
            f"{json.dumps(groups)[:80]}"
        )
    found: list[list[str]] = groups
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ProbeError(f"{path}: expected UTF-8, got other bytes ({error})") from error
