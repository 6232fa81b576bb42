"""`run_command`: a program judges all rows or none; it cannot hang or half-fill a table."""

import sys

import pytest

from halp_probe.judging.command import BadProgram, run_command
from halp_probe.judging.verdict import Kind, Label, Question

pytestmark = pytest.mark.slow

QUESTIONS = [
    Question(f"q{number}", "Is there a \u732b?", "no", "No.\nReally.") for number in range(40)
]
READ = "import json, sys\nrows = [json.loads(line) for line in sys.stdin]\n"
SAY = "say = lambda **said: print(json.dumps(said))\n"


@pytest.fixture
def program(tmp_path):
    def write(code):
        path = tmp_path / "judge.py"
        path.write_text(code)
        return [sys.executable, str(path)]

    return write


def test_a_program_gets_every_text_and_gives_every_label(program):
    """In any order; rule and note are its own."""
    code = (
        READ
        + SAY
        + (
            "for row in reversed(rows):\n"
            "    say(question_id=row['question_id'], label='right', note=row['question'],\n"
            "        rule=' '.join([row['ground_truth'], row['answer'], row['kind']]))\n"
        )
    )
    told = []
    found = run_command(QUESTIONS, program(code), lambda *said: told.append(said))
    assert list(found) == [one.question_id for one in QUESTIONS]
    one = found["q0"]
    assert (one.label, one.kind) == (Label.RIGHT, Kind.YES_NO)
    assert (one.rule, one.note) == ("no No.\nReally. yes/no", "Is there a \u732b?")
    assert told[-1] == (40, 40)


def test_pipes_that_are_full_on_both_sides_do_not_stop_it(program):
    """It writes before it has read all, and both are more than a pipe holds."""
    large = [Question(f"q{number}", "?" * 3000, "no", "x" * 3000) for number in range(200)]
    code = (
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    said = {'question_id': json.loads(line)['question_id'], 'label': 'wrong'}\n"
        "    print(json.dumps({**said, 'note': 'y' * 5000}), flush=True)\n"
    )
    assert len(run_command(large, program(code))) == 200


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("exit(3)", "exit code 3"),
        (READ, "40 have none"),
        (READ + SAY + "say(question_id='q0', label='right')", "39 have none"),
        (READ + "print('hello')", "line 1 of its output: expected a JSON object"),
        (READ + "print('[1]')", "expected a JSON object"),
        (READ + SAY + "say(question_id='x', label='right')", "no question has it"),
        (READ + SAY + "say(question_id='q0', label='maybe')", "expected one of right, wrong"),
        (READ + SAY + "say(question_id='q0')", "label"),
        (READ + SAY + "say(question_id='q0', label='right', note=3)", "rule and note"),
        (READ + SAY + "[say(question_id='q0', label='right') for _ in '12']", "judged before"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
    ],
)
def test_a_program_that_does_not_judge_every_row_is_an_error(program, code, sentence):
    """That says what it did."""
    with pytest.raises(BadProgram, match=sentence):
        run_command(QUESTIONS, program(code))


def test_a_program_that_is_not_there_is_said():
    """And nothing to start is too."""
    with pytest.raises(BadProgram, match="no-such-program"):
        run_command(QUESTIONS, ["no-such-program"])
    with pytest.raises(BadProgram, match="--command"):
        run_command(QUESTIONS, [])


def test_a_program_that_reads_nothing_may_judge(program):
    """A closed pipe is no error of its own."""
    code = (
        "import json\n"
        + SAY
        + ("[say(question_id=f'q{number}', label='abstained') for number in range(40)]\n")
    )
    found = run_command(QUESTIONS, program(code))
    assert {one.label for one in found.values()} == {Label.ABSTAINED}


def test_a_program_that_runs_on_after_a_mistake_is_ended(program):
    """Nobody waits for it."""
    with pytest.raises(BadProgram, match="expected a JSON object"):
        run_command(QUESTIONS, program("import time\nprint('x', flush=True)\ntime.sleep(600)\n"))


def test_no_shell_reads_the_command():
    """What a shell would run is the name of a program that is not there."""
    with pytest.raises(BadProgram, match="cannot be started"):
        run_command(QUESTIONS, ["echo hello; true"])
