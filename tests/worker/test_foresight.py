"""`halp-worker run --probe`: from the queue to store and results stream, with a real model."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from halp_probe.probe import load_probe, save_probe
from halp_producer.results import read_results
from halp_store import StoreWriter, open_store
from halp_worker.cli import app
from halp_worker.model import extractor
from halp_worker.model.layers import choose_positions, layout_of
from tolerance import apart, assert_within

from .conftest import Question, probe_bound, random_probe

pytestmark = pytest.mark.slow

ASKED = tuple(
    Question(image, text).job(number)
    for number, (image, text) in enumerate(
        (image, text)
        for image in ("astronaut.png", "coffee.png", "tall.png")
        for text in ("Who is it?", "Is there a cup on the table?")
    )
)


@pytest.fixture
def layout(bench):
    """What `work` stores without a probe."""
    plain = bench()
    return layout_of(plain.loaded, plain.layout.layers, choose_positions(()))


@pytest.fixture
def probe_file(layout, tmp_path):
    """`probe_file(seed, field=...)`: one that fits but for the named fields of its identity."""

    def write(seed=0, **identity):
        probe = random_probe(layout, "query_token@7+vision_only", (8,), seed)
        probe = dataclasses.replace(probe, identity={**probe.identity, **identity})
        path = tmp_path / f"probe-{len(list(tmp_path.iterdir()))}.safetensors"
        save_probe(probe, path)
        return path

    return write


@pytest.fixture
def work(server, run, checkpoint, photos, tmp_path):
    """`work(option, ...)`: one worker until the run is empty, on `store.zarr`; or, with `runs` off,
    the words of the command."""

    def command(*options, runs=True):
        arguments = {
            "--store": tmp_path / "store.zarr",
            "--model": checkpoint,
            "--image-root": photos,
            "--redis-url": server.url,
            "--run": run,
            "--device": "cpu",
            "--dtype": "float32",
            "--max-new-tokens": 6,
        }
        words = [str(word) for pair in arguments.items() for word in pair]
        words = ["run", "--until-empty", *words, *map(str, options)]
        return words if not runs else CliRunner().invoke(app, words)

    command.store = lambda: open_store(tmp_path / "store.zarr")
    command.path = tmp_path / "store.zarr"
    return command


def offline(store, probe):
    columns = [
        store.array(part.column) if part.layer is None else store.array(part.column, part.layer)
        for part in probe.parts
    ]
    return probe.network.risk(np.concatenate([values for _, values in columns], axis=1))


def test_each_row_has_its_risk_in_the_store_and_in_its_message(
    work, enqueue, probe_file, layout, client, keys
):
    """The offline one but for rounding, the stored one to the last digit; answers are as ever."""
    enqueue(*ASKED)
    done = work("--probe", probe_file())
    assert done.exit_code == 0, done.output
    store = work.store()
    risk = store.read(["risk"])["risk"]
    probe = random_probe(layout, "query_token@7+vision_only", (8,))
    assert_within(apart(risk, offline(store, probe)), probe_bound(probe))
    assert len(set(risk.tolist())) == len(ASKED)
    stored = dict(zip(store.ids, risk.tolist(), strict=True))
    results = read_results(client, keys).results
    assert {one.question_id: np.float32(one.risk) for one in results} == stored
    assert {one.finish_reason for one in results} <= {"stop", "length"}
    assert "without an answer" not in done.output


def test_what_is_above_the_threshold_is_stored_without_an_answer(
    work, enqueue, probe_file, client, keys, monkeypatch
):
    """And is not decoded; the message says so, and the closing line."""
    probe = probe_file()
    enqueue(*ASKED)
    assert work("--probe", probe, "--store", work.path.with_name("all.zarr")).exit_code == 0
    whole = open_store(work.path.with_name("all.zarr"))
    risk = whole.read(["risk"])["risk"]
    threshold = round(float(np.median(risk)), 3)
    above = dict(zip(whole.ids, (risk > threshold).tolist(), strict=True))
    client.delete(keys.jobs, keys.known, keys.counts, keys.results)

    decoded = []
    original = extractor.decode

    def counted(model, rows, *arguments, **options):
        decoded.append(len(rows))
        return original(model, rows, *arguments, **options)

    monkeypatch.setattr(extractor, "decode", counted)
    enqueue(*ASKED)
    done = work("--probe", probe, "--abstain-above", threshold)
    assert done.exit_code == 0, done.output
    skipped = sum(above.values())
    assert 0 < skipped < len(ASKED)
    rehearsed, *batches = decoded
    assert (rehearsed, sum(batches)) == (1, len(ASKED) - skipped)
    assert f"{len(ASKED)} stored ({skipped} without an answer)" in done.output
    store = work.store()
    for name, is_above in above.items():
        record = store[name]
        assert (record.finish_reason == "abstained") == is_above
        assert record.answer == ("" if is_above else whole[name].answer)
    columns = store.read(["answer_tokens", "mean_logprob", "finish_reason"])
    silent = columns["finish_reason"] == "abstained"
    assert np.array_equal(np.isnan(columns["mean_logprob"]), silent)
    assert not columns["answer_tokens"][silent].any()
    results = {one.question_id: one for one in read_results(client, keys).results}
    assert {name: one.finish_reason == "abstained" for name, one in results.items()} == above
    assert all(results[name].risk > threshold for name in above if above[name])


def test_a_probe_of_something_else_is_refused_before_a_job_is_taken(
    work, enqueue, probe_file, client, keys, tmp_path
):
    """Another revision, layers, positions; garbage, a pickle: exit 1, one sentence, no store."""
    enqueue(*ASKED)
    garbage, pickled = tmp_path / "garbage", tmp_path / "pickle"
    garbage.write_bytes(b"\x10\0\0\0\0\0\0\0not a safetensor")
    pickled.write_bytes(pickle.dumps([1, 2, 3]))
    cases = [
        ((probe_file(revision="sha256:0"),), "revision"),
        ((probe_file(), "--layers", "0,1,7"), "layers: the probe has [0, 7, 14, 21, 27], here is"),
        ((probe_file(), "--positions", "question_token"), "positions"),
        ((probe_file(), "--min-pixels", "50176"), "image_processor"),
        ((garbage,), "is no probe"),
        ((pickled,), "is no probe"),
    ]
    for (path, *options), said in cases:
        done = work("--probe", path, *options)
        assert done.exit_code == 1, done.output
        assert said in done.output
        assert str(path) in done.output
        assert "Traceback" not in done.output
        assert not work.path.exists()
        assert client.xlen(keys.jobs) == len(ASKED)
        assert not any(group["pending"] for group in client.xinfo_groups(keys.jobs))


def test_a_file_that_is_no_probe_is_said_before_the_model_is_loaded(work, tmp_path, monkeypatch):
    """Loading 7B takes a minute; a wrong file should not."""
    from halp_worker import launch

    monkeypatch.setattr(launch, "load_model", lambda *_: pytest.fail("loaded"))
    path = tmp_path / "it"
    path.write_bytes(b"")
    assert work("--probe", path).exit_code == 1


def test_processes_with_half_of_every_layer_leave_out_the_same_rows(
    work, enqueue, probe_file, client, keys, bench
):
    """Tensor parallelism: each rank decides for itself, and none waits for a row of another's."""
    probe = probe_file()
    enqueue(*ASKED)
    assert work("--probe", probe, "--store", work.path.with_name("all.zarr")).exit_code == 0
    alone = open_store(work.path.with_name("all.zarr"))
    ids, risk = alone.ids, alone.read(["risk"])["risk"]
    low, high = np.sort(risk)[len(ids) // 2 - 1 : len(ids) // 2 + 1]
    threshold = round(float(low + high) / 2, 4)
    client.delete(keys.jobs, keys.known, keys.counts)
    enqueue(*ASKED)
    words = work("--probe", probe, "--abstain-above", threshold, "--device", "auto", runs=False)
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "halp_worker"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    store = work.store()
    for name, expected in zip(ids, risk, strict=True):
        record = store[name]
        assert (record.finish_reason == "abstained") == (expected > threshold)
    together = dict(zip(store.ids, store.read(["risk"])["risk"], strict=True))
    bound = bench().bound() + probe_bound(load_probe(probe))
    assert_within(apart([together[name] for name in ids], risk), bound)


def test_a_store_has_the_rows_of_one_probe_and_one_threshold(work, enqueue, probe_file, client):
    """Another one, none, another threshold: refused by the fields that differ."""
    probe = probe_file()
    enqueue(ASKED[0])
    assert work("--probe", probe).exit_code == 0
    enqueue(ASKED[1])
    others = ([], ["--probe", probe_file(seed=1)], ["--probe", probe, "--abstain-above", "0.5"])
    for options in others:
        done = work(*options)
        assert done.exit_code == 1
        assert "probe" in done.output
        assert "Traceback" not in done.output
    assert work("--probe", probe).exit_code == 0
    assert len(work.store()) == 2


def test_a_store_without_scores_goes_on_as_it_began(work, enqueue, layout, probe_file):
    """Of layout version 1: rows are added to it as before; with a probe it is refused."""
    StoreWriter.open(work.path, dataclasses.replace(layout, scores=()), worker="old", provenance={})
    enqueue(*ASKED[:2])
    done = work("--probe", probe_file())
    assert done.exit_code == 1
    assert "scores" in done.output
    done = work()
    assert done.exit_code == 0, done.output
    assert work.store().layout.scores == ()
    assert len(work.store()) == 2


def test_a_new_store_has_the_scores_of_every_answer(work, enqueue, bench):
    """Without any probe: entropy and mean log-probability, as extracted directly."""
    enqueue(*ASKED)
    assert work().exit_code == 0
    store = work.store()
    assert store.layout.scores == ("first_token_entropy", "mean_logprob")
    plain = bench()
    jobs = {job.question_id: job for job in ASKED}
    samples = [plain.inputs.prepare(jobs[name]) for name in store.ids]
    expected = plain.extract(samples).features
    for name, values in store.read(["first_token_entropy", "mean_logprob"]).items():
        assert_within(apart(values, expected.scores[name]), plain.score_bound, name)
