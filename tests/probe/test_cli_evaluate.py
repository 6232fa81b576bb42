"""`halp-probe evaluate`, at a terminal."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from halp_probe.cli import app
from halp_probe.labels import write_labels

from .planted import planted_store

QUICK = ("--classifiers", "logistic", "--seeds", "1", "--bootstrap", "100", "--jobs", "1")


def run(*arguments):
    """Exit code, stdout, stderr."""
    wide = {"COLUMNS": "200"}  # whatever terminal the tests are run on
    done = CliRunner(env=wide).invoke(app, ["evaluate", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A store with labels of a judge named auto."""
    path = tmp_path_factory.mktemp("evaluate") / "run1.zarr"
    store, verdicts = planted_store(path, 240)
    write_labels(store, "auto", verdicts)
    return path


@pytest.mark.slow
def test_the_table_has_every_line_that_was_measured(path):
    """Representations, combinations, the chosen one, baselines and the control; then what follows
    from them."""
    code, out, err = run(path, *QUICK)
    assert (code, err) == (0, "")
    for name in (
        *("vision_only", "vision_encoder", "vision_token@0", "query_token@2", "chosen"),
        *("vision_only+query_token@1", "question kind only", "source only", "answer length"),
        *("bag of words", "image only", "shuffled labels", "AUROC by kind", "AUROC by source"),
        *("chosen by inner folds (logistic)", "picked on the test folds", "folds by question"),
        *("transfer", "240 rows of small@abc, labelled by auto 1", "60 images"),
    ):
        assert name in out, name


@pytest.mark.slow
def test_json_has_what_the_table_says_and_more(path):
    """One object, without NaN; another combination where it is asked for."""
    code, out, err = run(path, *QUICK, "--combine", "vision_encoder+query_token@0", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    names = {one["name"]: one for one in found["entries"]}
    assert names["vision_encoder+query_token@0"]["group"] == "combination"
    assert names["query_token@1"]["auroc"]["value"] > 0.6
    assert found["counts"]["rows"] == 240
    assert set(names["chosen"]["by_kind"]) == {"colour", "number"}
    assert found["settings"]["folds"] == 5


def test_a_store_without_labels_says_which_command_makes_them(path):
    """Exit code 1, one sentence."""
    code, out, err = run(path, *QUICK, "--judge", "llm")
    assert (code, out) == (1, "")
    assert "no labels of judge 'llm'" in err
    assert "halp-probe label" in err


def test_what_cannot_be_done_ends_with_one_sentence(path):
    """A representation, a field or a number of folds that there is not."""
    for arguments, sentence in (
        (("--combine", "query_token@7+vision_only"), "no representation 'query_token@7'"),
        (("--kind-field", "colour"), "--kind-field colour: 240 of 240 labelled rows have none"),
        (("--folds", "70"), "70 folds by image need wrong answers on 70 images"),
    ):
        code, out, err = run(path, *QUICK, *arguments)
        assert (code, out) == (1, ""), err
        assert sentence in err
        assert "Traceback" not in err


def test_a_classifier_that_there_is_not_is_a_mistake_of_the_command_line(path):
    """Exit code 2."""
    code, _, err = run(path, "--classifiers", "tree")
    assert code == 2
    assert "expected some of logistic, mlp" in err.replace("\n", " ")
