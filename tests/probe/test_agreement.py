"""How far two judges agree: counted, and against scikit-learn's kappa."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from halp_probe.agreement import agreement, disagreements
from halp_probe.cli import app
from halp_probe.judging.verdict import Kind, Label, Verdict
from halp_probe.labels import LabelTable, write_labels
from halp_store import open_store

SHORT = {"r": Label.RIGHT, "w": Label.WRONG, "a": Label.ABSTAINED, "u": Label.UNJUDGED}


def table_of(letters, judge="one", version=1):
    """q0, q1, ... labelled right, wrong, abstained or unjudged; `.` is no row."""
    verdicts = {
        f"q{number}": Verdict(SHORT[one], "rule", Kind.SHORT)
        for number, one in enumerate(letters)
        if one != "."
    }
    return LabelTable(judge, version, {}, verdicts, Path())


def test_only_what_both_judged_can_agree():
    """The others are counted apart."""
    found = agreement(table_of("rrwwua.r"), table_of("rwwrrrr.", "two"))
    assert (found.both, found.judged, found.same) == (6, 4, 2)
    assert found.percent == 50
    assert found.kappa == 0
    assert found.counts == {
        (Label.RIGHT, Label.RIGHT): 1,
        (Label.RIGHT, Label.WRONG): 1,
        (Label.WRONG, Label.WRONG): 1,
        (Label.WRONG, Label.RIGHT): 1,
        (Label.UNJUDGED, Label.RIGHT): 1,
        (Label.ABSTAINED, Label.RIGHT): 1,
    }
    assert found.sentence == (
        "one and two agree on 2 of 4 answers that both judged (50.0 %, Cohen's kappa 0.000)"
    )


@given(st.lists(st.tuples(st.sampled_from("rw"), st.sampled_from("rw")), min_size=1))
def test_kappa_is_cohens(pairs):
    """As scikit-learn has it; None where that is not a number."""
    left, right = ("".join(one) for one in zip(*pairs, strict=True))
    found = agreement(table_of(left), table_of(right, "two"))
    if len(set(left + right)) == 1:
        assert found.kappa is None
    else:
        assert found.kappa == pytest.approx(cohen_kappa_score(list(left), list(right)))


@given(st.text("rwau.", max_size=20), st.text("rwau.", max_size=20))
def test_agreement_has_two_equal_sides(left, right):
    """Whoever is named first."""
    one, other = table_of(left), table_of(right, "two")
    forth, back = agreement(one, other), agreement(other, one)
    assert (forth.both, forth.judged, forth.same) == (back.both, back.judged, back.same)
    assert forth.kappa == back.kappa
    assert {(b, a): rows for (a, b), rows in forth.counts.items()} == back.counts
    assert set(disagreements(one, other)) == set(disagreements(other, one))
    assert len(disagreements(one, other)) == forth.judged - forth.same


def test_nothing_judged_by_both_is_no_percentage():
    """Not one of zero either."""
    found = agreement(table_of("ru"), table_of("ur", "two"))
    assert (found.percent, found.kappa) == (None, None)
    assert "no answer is right or wrong to both (2 rows in both tables)" in found.sentence


def test_two_versions_of_one_judge_are_told_apart():
    """By their numbers."""
    found = agreement(table_of("r"), table_of("r", version=2))
    assert (found.left, found.right) == ("one 1", "one 2")


@pytest.fixture
def labelled(make_store):
    """A store that three judges have labelled."""
    rows = [
        {"question": "How many?", "truth": "3", "answer": "two"},
        {"question": "How many?", "truth": "3", "answer": "three"},
        {"question": "Is it?", "truth": "yes", "answer": "No."},
    ]
    path = make_store(rows)
    for judge in ("auto", "halp-reference"):
        done = CliRunner().invoke(app, ["label", str(path), "--judge", judge])
        assert done.exit_code == 0, done.output
    mine = {"q00000": Verdict(Label.WRONG, "seen", Kind.NUMBER, "a note")}
    write_labels(open_store(path), "mine", mine | {"gone": mine["q00000"]})
    return path


def test_all_pairs_are_compared(labelled):
    """Of the newest tables, with the rows on which they differ, if asked for."""
    done = CliRunner().invoke(app, ["agreement", str(labelled), "--show", "5"])
    assert done.exit_code == 0, done.output
    assert "auto and halp-reference agree on 2 of 3 answers" in done.stdout
    assert "auto and mine agree on 1 of 1 answers" in done.stdout
    assert "halp-reference and mine agree on 0 of 1 answers" in done.stdout
    assert "How many?" in done.stdout
    quiet = CliRunner().invoke(app, ["agreement", str(labelled)])
    assert "How many?" not in quiet.stdout


def test_a_program_gets_all_pairs_as_json(labelled):
    """With the texts of the rows on which they differ."""
    options = ["--judge", "auto", "--judge", "halp-reference", "--show", "1", "--json"]
    done = CliRunner().invoke(app, ["agreement", str(labelled), *options])
    (pair,) = json.loads(done.stdout)["pairs"]
    assert (pair["left"], pair["right"]) == ("auto", "halp-reference")
    assert (pair["both"], pair["judged"], pair["same"]) == (3, 3, 2)
    assert pair["counts"] == {
        "right": {"right": 1},
        "wrong": {"right": 1, "wrong": 1},
    }
    (row,) = pair["differing"]
    assert (row["question_id"], row["ground_truth"], row["answer"]) == ("q00000", "3", "two")
    assert row["left"]["label"] == "wrong"
    assert row["right"]["label"] == "right"


def test_one_judge_alone_has_nobody_to_agree_with(labelled):
    """The sentence says what to do."""
    done = CliRunner().invoke(app, ["agreement", str(labelled), "--judge", "auto"])
    assert done.exit_code == 1
    assert "expected labels of two judges, got auto" in done.stderr
