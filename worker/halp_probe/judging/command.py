"""`run_command`: a program of the user's own as the judge, run once for all questions.

Each question is a JSON object on a line of its stdin, each verdict one on a line of its stdout. No
shell is between, and no verdict is kept if anything is wrong with any.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any, Final

from halp_probe.errors import ProbeError
from halp_probe.judging.kinds import kind_of
from halp_probe.judging.normalise import truth_of
from halp_probe.judging.verdict import Kind, Label, Question, Verdict

_RULE: Final = "program"
_LABELS: Final = ", ".join(Label)
_MOST_SHOWN: Final = 200
"""Characters of what the program said, in a message."""
_MOST_LINE: Final = 1 << 24
"""Characters of one line: a program that never ends its line must not fill the memory."""
_WAIT_S: Final = 10.0
"""For a program that has closed its output to end, or to die when it is told to."""


class BadProgram(ProbeError):  # noqa: N818 - named for what it says
    """The program did not judge; the message says in which line of its output, or how it ended."""


def run_command(
    questions: Sequence[Question],
    argv: Sequence[str],
    told: Callable[[int, int], None] | None = None,
) -> Mapping[str, Verdict]:
    """A verdict for each question, in their order. argv: the program and what it is given.

    told: is called with (verdicts so far, questions). What the program writes to stderr goes there.
    Raises BadProgram.
    """
    if not argv:
        raise BadProgram("expected a program to judge with, got nothing: --command 'PROG ARGS'")
    kinds = {
        one.question_id: kind_of(one.question, truth_of(one.ground_truth)) for one in questions
    }
    try:
        program = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, ValueError) as error:
        raise BadProgram(f"{argv[0]}: cannot be started: {error}") from error
    with _ended(program):
        found = _talk(program, argv[0], questions, kinds, told)
    return {one.question_id: found[one.question_id] for one in questions}


class _ended:  # noqa: N801 - reads as a sentence
    """No child outlives its caller, whatever happened."""

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self._program = program

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._program.poll() is None:
            self._program.kill()
        self._program.wait()
        for stream in (self._program.stdin, self._program.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def _talk(
    program: subprocess.Popen[str],
    name: str,
    questions: Sequence[Question],
    kinds: Mapping[str, Kind],
    told: Callable[[int, int], None] | None,
) -> dict[str, Verdict]:
    """Writes on a thread and reads here: a full pipe on either side stops neither."""
    if program.stdin is None or program.stdout is None:
        raise BadProgram(f"{name}: has no pipes")
    writer = threading.Thread(target=_ask, args=(program.stdin, questions, kinds), daemon=True)
    writer.start()
    found: dict[str, Verdict] = {}
    number = 0
    while line := program.stdout.readline(_MOST_LINE):
        number += 1
        if not line.strip():
            continue
        try:
            question_id, verdict = _verdict(line, kinds)
            if question_id in found:
                raise BadProgram(f"{question_id!r} was judged before")
        except BadProgram as error:
            raise BadProgram(f"{name}: line {number} of its output: {error}") from None
        found[question_id] = verdict
        if told:
            told(len(found), len(questions))
    try:
        code = program.wait(_WAIT_S)
    except subprocess.TimeoutExpired:
        raise BadProgram(
            f"{name}: has closed its output and runs on after {_WAIT_S:g} s; it was ended"
        ) from None
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise BadProgram(
            f"{name}: {how} after {len(found):,} of {len(questions):,} verdicts; nothing was "
            "labelled"
        )
    if lacking := [one for one in kinds if one not in found]:
        some = ", ".join(map(repr, lacking[:3])) + (", ..." if len(lacking) > 3 else "")
        raise BadProgram(
            f"{name}: expected a verdict for each of {len(questions):,} questions, "
            f"{len(lacking):,} have none ({some}); nothing was labelled"
        )
    return found


def _ask(stdin: IO[str], questions: Sequence[Question], kinds: Mapping[str, Kind]) -> None:
    # A program that has ended reads no more: how it ended is said by its exit code.
    with suppress(OSError, ValueError):
        for one in questions:
            row = {**asdict(one), "kind": kinds[one.question_id]}
            stdin.write(json.dumps(row, ensure_ascii=True) + "\n")
        stdin.close()


def _verdict(line: str, kinds: Mapping[str, Kind]) -> tuple[str, Verdict]:
    try:
        said: Any = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise BadProgram(f"expected a JSON object, got {line.strip()[:_MOST_SHOWN]!r}")
    question_id = said.get("question_id")
    if not isinstance(question_id, str) or question_id not in kinds:
        raise BadProgram(f"question_id: no question has it: {str(question_id)[:_MOST_SHOWN]!r}")
    label = said.get("label")
    if label not in list(Label):
        raise BadProgram(f"label: expected one of {_LABELS}; got {str(label)[:_MOST_SHOWN]!r}")
    rule, note = said.get("rule", _RULE), said.get("note", "")
    if not isinstance(rule, str) or not isinstance(note, str):
        raise BadProgram("rule and note: expected texts")
    return question_id, Verdict(Label(label), rule or _RULE, kinds[question_id], note)
