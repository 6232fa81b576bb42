"""The whole circle: answers, labels, a probe, and the same probe before the first token."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import redis

from halp_probe.probe import load_probe
from halp_producer.keys import RunKeys
from halp_producer.results import read_results
from halp_store import open_store
from halp_worker.demo import HELD_OUT, SHAPES
from tolerance import apart, assert_within, rounding

pytestmark = pytest.mark.slow


class Circle:
    """The commands of docs/probes.md on the demo's model and pictures."""

    def __init__(self, folder, url):
        self.folder, self.url = folder, url
        self.before, self.after = folder / "before.zarr", folder / "after.zarr"
        self.probe = folder / "probe.safetensors"

    def command(self, program, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", program, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def enqueue(self, run):
        where = ["--redis-url", self.url, "--run", run, "--image-root", HELD_OUT / "images"]
        self.command("halp_producer", "enqueue", HELD_OUT / "dataset.jsonl", *where)

    def work(self, run, store, *options):
        return subprocess.run(
            [
                *(sys.executable, "-m", "halp_worker", "run", "--until-empty", "--device", "cpu"),
                *("--store", store, "--model", SHAPES, "--image-root", HELD_OUT / "images"),
                *("--redis-url", self.url, "--run", run, "--max-new-tokens", "8", *options),
            ],
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def circle(tmp_path_factory, server):
    """Answered without a probe, labelled, fitted, and answered again with it."""
    circle = Circle(tmp_path_factory.mktemp("circle"), server.url)
    circle.enqueue("risk-before")
    done = circle.work("risk-before", circle.before)
    assert done.returncode == 0, done.stderr
    circle.command("halp_probe", "label", circle.before, "--judge", "auto")
    fit = ["--representation", "query_token@6", "--save", circle.probe]
    circle.command("halp_probe", "fit", circle.before, *fit)
    circle.enqueue("risk-after")
    probe = ["--probe", circle.probe, "--abstain-above", "0.3"]
    done = circle.work("risk-after", circle.after, *probe)
    assert done.returncode == 0, done.stderr
    return circle


def test_every_row_has_its_risk_and_it_is_that_of_the_probe_on_the_stored_states(circle):
    """But for rounding, though one was computed on the device and before the first token."""
    store = open_store(circle.after)
    _, states = store.array("query_token", layer=6)
    expected = load_probe(circle.probe).network.risk(states)
    risk = store.read(["risk"])["risk"]
    assert len(store) == 280
    assert_within(apart(risk, expected), rounding(3, states.shape[1]))


def test_halp_probe_score_says_the_same(circle):
    """The command for a store that has none."""
    out = circle.folder / "risks.csv"
    circle.command("halp_probe", "score", circle.after, circle.probe, "--out", out)
    with out.open(newline="") as file:
        found = {one["question_id"]: float(one["risk"]) for one in csv.DictReader(file)}
    store = open_store(circle.after)
    stored = dict(zip(store.ids, store.read(["risk"])["risk"].tolist(), strict=True))
    assert found.keys() == stored.keys()
    distance = max(abs(found[one] - stored[one]) for one in found)
    assert_within(distance, rounding(3, store.layout.hidden_size))


def test_what_is_likely_wrong_is_not_answered_and_all_else_is_as_before(circle):
    """Above the threshold nothing is generated; the states are there all the same."""
    before, after = open_store(circle.before), open_store(circle.after)
    columns = after.read(["risk", "finish_reason", "answer", "answer_tokens", "mean_logprob"])
    above = columns["risk"] > 0.3
    assert 10 < above.sum() < 200
    assert ((columns["finish_reason"] == "abstained") == above).all()
    assert (columns["answer"][above] == "").all()
    assert (columns["answer_tokens"][above] == 0).all()
    assert np.isnan(columns["mean_logprob"][above]).all()
    answers = np.array(before.text("answer"), object)
    assert (columns["answer"][~above] == answers[~above]).mean() > 0.98  # bfloat16, other batches


def test_abstaining_spares_wrong_answers_more_often_than_right_ones(circle):
    """What it is for; on the answers that it was trained on, and no measure of anything."""
    before, after = open_store(circle.before), open_store(circle.after)
    wrong = np.array(
        [
            given.strip().lower() != truth
            for given, truth in zip(before.text("answer"), before.text("ground_truth"), strict=True)
        ]
    )
    above = after.read(["risk"])["risk"] > 0.3
    assert wrong[above].mean() > 2 * wrong.mean()


def test_the_risk_is_in_the_message_of_each_result(circle):
    """Who waits for answers learns it at once."""
    store = open_store(circle.after)
    stored = dict(zip(store.ids, store.read(["risk"])["risk"].tolist(), strict=True))
    with redis.Redis.from_url(circle.url) as client:
        results = read_results(client, RunKeys("risk-after")).results
    assert len(results) == 280
    for one in results:
        assert one.risk == pytest.approx(stored[one.question_id], abs=1e-6)
        assert (one.finish_reason == "abstained") == (one.risk > 0.3)


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--layers", "0,2,4,6"], "layers"), (["--min-pixels", "50176"], "image_processor")],
)
def test_a_probe_of_another_layout_or_model_is_refused(circle, options, named, tmp_path):
    """With the field that differs, before a job is taken."""
    probe = ["--probe", circle.probe]
    done = circle.work("risk-before", tmp_path / "store.zarr", *probe, *options)
    assert done.returncode == 1
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store.zarr").exists()


def test_a_store_keeps_the_risks_of_one_probe_apart_from_those_of_another(circle):
    """Another threshold, or none, is another configuration."""
    for options in ([], ["--probe", circle.probe, "--abstain-above", "0.9"]):
        done = circle.work("risk-after", circle.after, *options)
        assert done.returncode == 1
        assert "probe" in done.stderr


def test_one_command_goes_from_the_store_to_the_report(circle):
    """A page that needs nothing else, and the figures as JSON."""
    out = circle.folder / "report"
    quick = ["--classifiers", "logistic", "--seeds", "1", "--bootstrap", "100"]
    circle.command(
        *("halp_probe", "report", circle.before, out, "--image-root", HELD_OUT / "images", *quick)
    )
    page = (out / "index.html").read_text()
    assert "query_token" in page
    assert "<script src" not in page
    found = json.loads((out / "evaluation.json").read_text())
    assert found["counts"]["rows"] == 280
