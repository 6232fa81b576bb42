"""`halp-worker demo`: the whole path with the shipped model, and what it leaves to look at."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from halp_store import open_store
from halp_worker.demo import HELD_OUT
from halp_worker.demo.verdicts import Verdict, judge, some

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """(folder, output of a first run, rows' segments then, output of a second run)."""
    folder = tmp_path_factory.mktemp("demo") / "run"

    def run():
        command = [sys.executable, "-m", "halp_worker", "demo", "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = run()
    segments = open_store(folder / "store.zarr").segments
    return folder, first, segments, run()


def test_every_held_out_question_is_answered_and_stored(shown):
    """By two workers, from the shipped pictures."""
    folder = shown[0]
    lines = (HELD_OUT / "dataset.jsonl").read_text().splitlines()
    assert sorted(open_store(folder / "store.zarr")) == sorted(
        json.loads(line)["question_id"] for line in lines
    )


def test_run_again_it_finds_everything_stored(shown):
    """Nothing is computed twice."""
    folder, _, segments, second = shown
    assert open_store(folder / "store.zarr").segments == segments
    assert "already there" in second


def test_it_says_how_often_the_model_hallucinates(shown):
    """The rate printed is that of the store's answers."""
    folder, first, *_ = shown
    verdicts = judge(open_store(folder / "store.zarr"))
    wrong = sum(not one.right for one in verdicts)
    assert re.search(rf"all\W+{len(verdicts)}\W+{len(verdicts) - wrong}\W+{wrong}\W", first)
    assert 0.1 <= wrong / len(verdicts) <= 0.3


def test_it_leaves_a_picture_of_right_and_wrong_answers(shown):
    """A PNG, named in the output."""
    folder, first, *_ = shown
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "plot.png" in "".join(first.split())


def test_the_next_command_it_names_works(shown):
    """Typed as it was printed."""
    _, first, *_ = shown
    (line,) = re.findall(r"^ *\$ (\S*halp-store get .*)$", first, re.MULTILINE)
    program, *arguments = line.split()
    found = subprocess.check_output(
        [Path(sys.executable).with_name(Path(program).name), *arguments]
    )
    assert b"query_token" in found


def test_the_rows_shown_are_one_right_and_one_wrong_of_each_kind():
    """Where there are both."""
    rows = [("a", "yes"), ("b", "no"), ("c", "yes"), ("d", "no")]
    verdicts = [Verdict(name, "existence", "?", said, "yes", "x.png") for name, said in rows]
    other = Verdict("e", "count", "?", "2", "2", "x.png")
    assert [one.question_id for one in some([*verdicts, other])] == ["e", "a", "b"]
