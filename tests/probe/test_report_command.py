"""`halp-probe report`: from a store without labels to the page, in one command."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from halp_probe.cli import app
from halp_probe.labels import list_labels

IMAGES, EACH = 30, 4
FAST = (
    *("--classifiers", "logistic", "--seeds", "1", "--folds", "3", "--inner-folds", "2"),
    *("--bootstrap", "100", "--jobs", "1"),
)


@pytest.fixture(scope="module")
def drawn():
    """wrong: of 120 rows; and vectors that know it at the last layer alone."""
    random = np.random.default_rng(0)
    wrong = random.random(IMAGES * EACH) < 0.4
    late = random.normal(0, 1, (len(wrong), 2, 8))
    late[:, 1, 0] += 2.5 * wrong
    return wrong, late


@pytest.fixture
def store(make_store, drawn, tmp_path):
    wrong, late = drawn
    (tmp_path / "images").mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (64, 48), (8 * number, 90, 120)).save(
            tmp_path / "images" / f"{number}.png"
        )
    rows = [
        {
            "question": f"Is there a kettle, {number}?",
            "answer": "yes",
            "truth": "no" if bad else "yes",
            "image": f"{number // EACH}.png",
            "metadata": {"dataset": "pope"},
        }
        for number, bad in enumerate(wrong.tolist())
    ]
    return make_store(rows, vectors={"query_token": late})


def run(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.mark.slow
def test_one_command_goes_from_a_store_to_the_page(store, drawn, tmp_path):
    """Labels are made, the figures said in words, and all of it is in the folder."""
    out = tmp_path / "out"
    done = run(store, out, *FAST)
    assert done.exit_code == 0, done.output
    assert [(judge, number) for judge, number, _ in list_labels(str(store))] == [("auto", 1)]
    wrong = int(drawn[0].sum())
    assert f"120 are labelled right or wrong; {wrong} of these are wrong" in done.stdout
    assert "tells wrong answers from right ones with AUROC 0.9" in done.stdout
    assert "The best baseline" in done.stdout
    assert str(out / "index.html") in done.stdout
    page = (out / "index.html").read_text(encoding="utf-8")
    # The pictures beside the store, and what was typed.
    assert page.count("data:image/jpeg") == 24
    typed = " ".join(["halp-probe", "report", str(store), str(out), *FAST])
    assert re.search(r"<pre[^>]*>(.*?)</pre>", page)[1] == html.escape(typed)
    figures = json.loads((out / "evaluation.json").read_bytes())
    assert figures["counts"]["wrong"] == wrong

    again = run(store, out, *FAST)
    assert again.exit_code == 1
    assert "--force replaces it" in again.stderr
    assert run(store, out, *FAST, "--force", "--image-root", tmp_path).exit_code == 0
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "there is no file" in page
    assert "--force" not in page
    assert len(list_labels(str(store))) == 1


def test_what_cannot_be_done_is_said_before_the_evaluation(store, tmp_path):
    """A folder of others, a judge that nobody knows, a version that is not there."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("mine")
    for arguments, said in (
        ((store, tmp_path / "thesis"), "not one of a report"),
        ((store, tmp_path / "no" / "out"), "there is no folder"),
        ((store, tmp_path / "out", "--judge", "nobody"), "no labels of judge 'nobody'"),
        ((store, tmp_path / "out", "--label-version", "3"), "no labels"),
        ((tmp_path / "none.zarr", tmp_path / "out"), "none.zarr"),
    ):
        done = run(*arguments, *FAST)
        assert done.exit_code == 1, done.output
        assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_answers_of_one_class_leave_no_report(make_store, tmp_path):
    """A sentence that says so, and no figure."""
    rows = [{"question": "Is it?", "answer": "yes", "truth": "yes"} for _ in range(40)]
    done = run(make_store(rows), tmp_path / "out", *FAST)
    assert done.exit_code == 1
    assert "wrong" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_wrong_command_line_is_code_2(store, tmp_path):
    """As everywhere."""
    assert run(store, tmp_path / "out", "--classifiers", "forest").exit_code == 2
    assert run(store, tmp_path / "out", "--seeds", "0").exit_code == 2
    assert run(store, tmp_path / "out", "--image-root", tmp_path / "none").exit_code == 2
