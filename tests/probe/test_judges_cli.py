"""`halp-probe label`: each judge over a real store, what it says, and what it leaves behind."""

import csv
import json
import shlex
import sys

import pytest
from typer.testing import CliRunner

from halp_probe.cli import app
from halp_probe.labels import read_labels
from halp_store.reader import open_store

ROWS = [
    {"question": "Is there a dog?", "truth": "no", "answer": "No."},
    {"question": "Is there a cat?", "truth": "n, o", "answer": "Yes"},
    {"question": "How many dogs?", "truth": "3", "answer": "two"},
    {"question": "What colour?", "truth": "grey", "answer": "It is gray"},
    {"question": "What colour?", "truth": "crimson", "answer": "dark red"},
    {"question": "Which? (A) red (B) blue", "truth": "B", "answer": "blue"},
    {"question": "What?", "truth": "red", "answer": "I cannot tell"},
    {"question": "What?", "truth": "", "answer": "red"},
    {"question": "What?", "truth": "red", "answer": "", "finish_reason": "abstained"},
]
AUTO = [
    *("right", "wrong", "wrong", "right", "wrong", "right", "abstained", "unjudged", "abstained"),
]


@pytest.fixture
def store(make_store):
    return make_store(ROWS)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["label", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def labels_of(store, judge, version=None):
    found = read_labels(open_store(store), judge, version)
    return [str(one.label) for one in found.verdicts.values()]


def test_the_usual_judge_labels_every_row_with_its_rule(store, tmp_path):
    """In a table beside the store that a spreadsheet can read."""
    result = run(store)
    with (tmp_path / "run1.labels/auto/000001/labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [one["label"] for one in rows] == AUTO
    assert [one["question_id"] for one in rows] == list(open_store(store))
    assert all(one["rule"] and one["kind"] for one in rows)
    assert "'n, o' is read as 'no'" in rows[1]["note"]
    assert "dark red" in result.stdout
    assert str(tmp_path / "run1.labels/auto/000001") in result.stdout


def test_the_machine_readable_answer_has_counts_and_agreement(store):
    """As labels.json, and what other judges say."""
    run(store, "--judge", "halp-reference")
    found = json.loads(run(store, "--json").stdout)
    assert found["labels"] == {"right": 3, "wrong": 3, "abstained": 2, "unjudged": 1}
    assert found["kinds"]["yes/no"] == {"right": 1, "wrong": 1, "abstained": 0, "unjudged": 0}
    assert sum(found["rules"].values()) == len(ROWS)
    assert found["store"]["rows"] == len(ROWS)
    (other,) = found["agreement"]
    assert (other["left"], other["right"]) == ("auto", "halp-reference")
    assert (other["judged"], other["same"]) == (6, 3)


def test_a_judge_that_labels_again_writes_the_next_version(store):
    """What was there stays, also another judge's."""
    run(store)
    run(store, "--judge", "exact")
    before = labels_of(store, "exact")
    synonyms = store.parent / "synonyms.json"
    synonyms.write_text('[["crimson", "dark red"]]')
    run(store, "--synonyms", synonyms)
    assert labels_of(store, "auto", 1) == AUTO
    assert labels_of(store, "auto")[4] == "right"
    assert labels_of(store, "exact") == before
    about = read_labels(open_store(store), "auto").about
    assert about["options"] == {"synonyms": [["crimson", "dark red"]]}


def test_labels_of_a_file_are_kept_under_its_name(store, tmp_path):
    """And it says which rows it has nothing on, and which ids are not the store's."""
    file = tmp_path / "anna.csv"
    file.write_text("question_id,is_hallucinating\nq00000,True\nq00002,0\nother,1\n")
    result = run(store, "--judge", file)
    assert labels_of(store, "anna") == ["wrong", "right"]
    assert "1 ids are not in the store" in result.stderr
    assert "7 rows of the store are not in it" in result.stderr


def test_a_program_judges_under_the_name_that_it_is_given(store, tmp_path):
    """Its verdicts are stored as any others."""
    program = tmp_path / "judge.py"
    program.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    row = json.loads(line)\n"
        "    said = {'question_id': row['question_id'], 'label': 'wrong', 'note': row['answer']}\n"
        "    print(json.dumps(said))\n"
    )
    command = shlex.join([sys.executable, str(program)])
    run(store, "--judge", "command", "--command", command, "--name", "mine")
    found = read_labels(open_store(store), "mine")
    assert {str(one.label) for one in found.verdicts.values()} == {"wrong"}
    assert found.verdicts["q00000"].note == "No."
    assert found.about["options"] == {"command": command}


def test_a_judge_that_fails_leaves_no_table(store, tmp_path):
    """Neither half of one nor an empty folder."""
    file = tmp_path / "bad.csv"
    file.write_text("question_id,label\nq00000,maybe\nq00001,perhaps\n")
    result = run(store, "--judge", file, code=1)
    assert f"{file}:2:" in result.stderr
    assert f"{file}:3:" in result.stderr
    run(store, "--judge", "command", "--command", f"{sys.executable} -c 'exit(3)'", code=1)
    assert not (tmp_path / "run1.labels").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--judge", "nobody"], "no judge 'nobody'"),
        (["--judge", "command"], "needs it"),
        (["--judge", "endpoint", "--endpoint", "https://x/v1"], "needs it"),
        (["--judge", "exact", "--synonyms", "x.json"], "--judge auto"),
        (["--column", "x"], "--judge FILE.csv"),
        (["--name", "x"], "a file, a program"),
        (["--judge", "auto.csv"], "judge of its own"),
        (["--judge", "command", "--command", "x", "--name", "exact"], "judge of its own"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(store, arguments, sentence):
    """Before anything is read."""
    assert sentence in run(store, *arguments, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--judge", "nowhere.csv"], "nowhere.csv"),
        (["--judge", "command", "--command", "a 'b"], "No closing quotation"),
        (["--judge", "command", "--command", "no-such-program"], "no-such-program"),
        (["--judge", "command", "--command", "x", "--name", "../x"], "names a folder"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(store, arguments, sentence, tmp_path):
    """With exit code 1."""
    assert sentence in run(store, *arguments, code=1).stderr
    assert not (tmp_path / "run1.labels").exists()


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1]", '["a"]', "[[1]]"])
def test_synonyms_that_are_no_lists_of_texts_are_refused(store, text):
    """With what is expected."""
    file = store.parent / "synonyms.json"
    file.write_text(text)
    assert str(file) in run(store, "--synonyms", file, code=1).stderr


def test_a_store_in_a_bucket_needs_a_place_for_its_labels():
    """Labels are on a disk."""
    from halp_probe.errors import ProbeError
    from halp_probe.labels import labels_folder

    with pytest.raises(ProbeError, match="--labels DIR"):
        labels_folder("s3://bucket/run1.zarr")


def test_what_an_answer_holds_cannot_steer_a_terminal(make_store):
    """Control characters are shown, not sent."""
    store = make_store([{"truth": "red", "answer": "\x1b[2J\u202eblue", "question": "What\n?"}])
    shown = run(store).stdout
    assert "\x1b" not in shown
    assert "\u202e" not in shown
