"""Validation on real mistakes: 2,800 questions that the demo's model answers, some wrongly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "predict.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The evaluation that `benchmarks/predict.py` prints: logistic regression, one partition."""
    folder = tmp_path_factory.mktemp("predict")
    options = ["--classifiers", "logistic", "--seeds", "1", "--keep", str(folder)]
    subprocess.run([sys.executable, str(BENCHMARK), *options], check=True, timeout=280)
    return json.loads((folder / "evaluation.json").read_text())


def auroc(found, name):
    """(value, low, high) of one line of the table."""
    (entry,) = [one for one in found["entries"] if one["name"] == name]
    return tuple(entry["auroc"][key] for key in ("value", "low", "high"))


def test_the_model_is_wrong_often_enough_to_study(found):
    """By the judge that anybody would use."""
    counts = found["counts"]
    assert counts["stored"] == 2800
    assert counts["rows"] > 2700, "the judge can say of nearly all"
    assert 0.1 < counts["wrong"] / counts["rows"] < 0.2
    assert counts["images"] == 400


def test_the_states_know_more_than_the_kind_of_question(found):
    """Their interval begins above the end of the baseline's."""
    _, _, kind = auroc(found, "question kind only")
    for layer in (4, 6, 7):
        value, low, _ = auroc(found, f"query_token@{layer}")
        assert low > kind
        assert value > 0.75


def test_later_layers_know_more_than_the_first(found):
    """The last prompt token has not seen the picture at layer 0 but through one layer."""
    assert auroc(found, "query_token@6")[1] > auroc(found, "query_token@0")[0]


def test_with_shuffled_labels_there_is_nothing_to_know(found):
    """The control: half, within its interval."""
    (control,) = [one for one in found["entries"] if one["group"] == "control"]
    assert control["auroc"]["low"] <= 0.5 <= control["auroc"]["high"]
    assert control["auroc"]["value"] == pytest.approx(0.5, abs=0.06)


def test_the_unbiased_choice_is_not_above_the_one_that_was_picked_on_the_test(found):
    """What choosing on the test folds adds is not there to be had."""
    (chosen,) = [one for one in found["entries"] if one["group"] == "chosen"]
    _, picked = found["picked_on_test"]["logistic"]
    assert chosen["auroc"]["value"] <= picked
    assert chosen["auroc"]["value"] > 0.78


def test_folds_by_question_inflate_what_knows_the_picture(found):
    """The planted leak: seven questions share a picture, and its noise."""
    (leak,) = [one for one in found["leaks"] if one["name"] == "vision_token@6"]
    assert leak["by_question"]["value"] > leak["by_image"]["value"] + 0.01
