"""What stops a worker before it loads weights, and before it takes a job."""

from __future__ import annotations

import shutil
import socket
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from halp_worker.cli import app

from .conftest import QUESTIONS, make_job, random_probe, rewrite


@pytest.fixture
def work(server, run, photos, tmp_path):
    """`work(model, option, ...)`: one worker of this test's run, until it is empty."""

    def command(model, *options):
        arguments = {
            "--store": tmp_path / "store.zarr",
            "--model": model,
            "--image-root": photos,
            "--redis-url": server.url,
            "--run": run,
            "--device": "cpu",
            "--dtype": "float32",
            "--max-new-tokens": 3,
        }
        words = [str(word) for pair in arguments.items() for word in pair]
        return CliRunner().invoke(app, ["run", "--until-empty", *words, *map(str, options)])

    command.store = tmp_path / "store.zarr"
    return command


@pytest.fixture(scope="module")
def hollow(tiny, tmp_path_factory):
    """A checkpoint whose weight files are not there."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("hollow") / "model")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    return folder


def refused(done, sentence):
    assert done.exit_code == 1, done.output
    assert sentence in " ".join(done.output.split()), done.output
    assert "Traceback" not in done.output


# -- the run -------------------------------------------------------------------------------------


def test_a_run_that_was_never_enqueued_is_refused_and_not_made(work, client, run, enqueue):
    """Before the model is looked for: the sentence, the name that was meant, and no trace."""
    enqueue(make_job(1))
    before = sorted(client.keys())
    done = work("/nowhere", "--run", run + "x")
    refused(done, f"run '{run}x': nothing was ever enqueued under this name")
    assert f"there is {run}:" in done.output
    assert sorted(client.keys()) == before
    assert not work.store.exists()


def test_a_user_who_may_not_ask_for_other_runs_is_told_the_same(client, run, enqueue):
    """The user of least privilege of docs/server.md has no SCAN."""
    import redis

    from halp_worker.fates import FatalError
    from halp_worker.start_checks import check_run

    enqueue(make_job(1))
    allowed = [f"+{name}" for name in ("exists", "xlen", "hgetall", "ping", "select", "info")]
    client.acl_setuser(run, True, passwords=["+x"], keys=["halp:*"], commands=allowed)
    try:
        where = client.connection_pool.connection_kwargs
        user = redis.Redis(host=where["host"], port=where["port"], username=run, password="x")
        with user, pytest.raises(FatalError, match=r"under this name: check --run"):
            check_run(user, run + "x", until_empty=True)
    finally:
        client.acl_deluser(run)


def test_a_worker_that_stays_may_wait_for_its_run(client, run, keys, enqueue, caplog):
    """Workers may start before anything is enqueued; once it was, nothing is said."""
    from halp_worker.start_checks import check_run

    check_run(client, run, until_empty=False)
    assert f"nothing was enqueued under run {run} yet: waiting" in caplog.text
    assert not client.keys(f"*{run}*")
    caplog.clear()
    enqueue(make_job(1))
    check_run(client, run, until_empty=False)
    check_run(client, run, until_empty=True)
    assert not caplog.text
    client.delete(keys.jobs)  # as after the last acknowledgement, where the stream is empty
    check_run(client, run, until_empty=True)


@pytest.mark.slow
def test_a_run_whose_every_job_failed_ends_with_four(work, enqueue, tiny):
    """One row is enough for 0, also in a later worker that finds nothing to do."""
    good = QUESTIONS[0].job()
    enqueue(make_job(1, question="<|im_end|>"), make_job(2, question="<|im_end|>"))
    done = work(tiny)
    assert done.exit_code == 4, done.output
    assert "0 stored, 0 already in the store, 2 failed" in done.output
    enqueue(good)
    for _ in range(2):
        done = work(tiny)
        assert done.exit_code == 0, done.output


# -- before weights ------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_needs_no_weights_is_refused_without_them(work, enqueue, hollow, client, keys):
    """Options, limits, context, device, store's address, port; no job is taken, no store made."""
    enqueue(make_job(1))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = {
            ("--positions", "foo"): "--positions: ['foo'] unknown",
            ("--layers", "0,99"): "[99] not in this model, it has 0 to 1",
            ("--layers", "first"): "expected auto or numbers",
            ("--device", "cuda:99"): "--device cuda:99",
            ("--device", "fpga"): "--device fpga",
            ("--store", "ftp://somewhere"): "ftp:// is no place for a store",
            ("--metrics-port", port): f"metrics cannot be served at 127.0.0.1:{port}",
            (
                "--min-pixels",
                60000,
            ): "--min-pixels 60000 is above the checkpoint's max_pixels 50176",
            ("--max-pixels", 100): "checkpoint's min_pixels 3136 is above --max-pixels 100",
            (
                "--min-pixels",
                900,
                "--max-pixels",
                800,
            ): "--min-pixels 900 is above --max-pixels 800",
            ("--max-new-tokens", 2048): "2048 tokens, which is too short for the smallest image",
            ("--max-new-tokens", 2040): "shortest prompt does not fit its context of 2048 tokens",
            ("--layers", "0"): "has no weights",
        }
        for options, sentence in cases.items():
            refused(work(hollow, *options), sentence)
    assert not work.store.exists()
    assert client.xlen(keys.jobs) == 1
    assert not any(group["pending"] for group in client.xinfo_groups(keys.jobs))


MISFITS = {
    "patch": ({"patch_size": 16}, "its patch_size is 16, that of the model 14"),
    "merge": ({"merge_size": 4}, "its merge_size is 4, that of the model 2 (spatial_merge_size"),
    "frames": ({"temporal_patch_size": 1}, "its temporal_patch_size is 1, that of the model 2"),
    "limits": (
        {"min_pixels": 99999},
        "min_pixels 99999 is above the checkpoint's max_pixels 50176",
    ),
    "zero": ({"min_pixels": 0}, "expected numbers of pixels above 0"),
    "colours": ({"image_mean": [0.5, 0.5]}, "a made image and a question could not be prepared"),
}


@pytest.mark.slow
@pytest.mark.parametrize("misfit", MISFITS)
def test_a_preprocessor_of_another_model_is_refused_without_weights(hollow, tmp_path, misfit):
    """With both numbers; what has no sentence of its own fails in the rehearsal."""
    from halp_worker.fates import FatalError
    from halp_worker.model.blueprint import read_blueprint
    from halp_worker.model.rehearsal import rehearse_inputs
    from halp_worker.settings import ModelSettings

    changes, sentence = MISFITS[misfit]
    folder = shutil.copytree(hollow, tmp_path / "model")
    rewrite(folder / "preprocessor_config.json", **changes)
    with pytest.raises(FatalError) as caught:
        rehearse_inputs("m", read_blueprint(ModelSettings(str(folder))), ("query_token",))
    assert sentence in str(caught.value)


@pytest.mark.slow
def test_a_store_or_a_probe_of_something_else_is_refused_without_weights(
    work, enqueue, hollow, tiny, tmp_path
):
    """By the fields that the small files and the options tell; the same settings get further."""
    enqueue(QUESTIONS[0].job())
    assert work(tiny).exit_code == 0
    enqueue(QUESTIONS[1].job())
    for options, field in {
        ("--layers", "0"): "layers: the store has",
        ("--positions", "question_token"): "positions: the store has",
        ("--dtype", "bfloat16"): "source_dtype: the store has",
        ("--max-pixels", 9999): "fingerprint.image_processor.max_pixels: the store has",
        ("--max-new-tokens", 4): "fingerprint.generation.max_new_tokens: the store has 3",
    }.items():
        done = work(hollow, *options)
        refused(done, field)
        assert "weights" not in done.output
    refused(work(hollow), "has no weights")
    from halp_store import open_store

    path = tmp_path / "probe.safetensors"
    path.write_bytes(random_probe(open_store(work.store).layout, "query_token@1").to_bytes())
    other = ("--store", tmp_path / "other.zarr", "--probe", path)
    refused(work(hollow, *other, "--layers", "0"), "layers: the probe has")
    refused(work(hollow, *other), "has no weights")
    refused(work(hollow, "--probe", path), "fingerprint.probe")


@pytest.mark.slow
def test_a_store_of_other_weights_is_refused_before_they_are_loaded(
    work, enqueue, tiny, tmp_path, monkeypatch
):
    """Their files are enough to know it."""
    from safetensors.torch import load_file, save_file

    from halp_worker.model import loading

    enqueue(QUESTIONS[0].job())
    assert work(tiny).exit_code == 0
    folder = shutil.copytree(tiny, tmp_path / "copy")
    path = sorted(folder.glob("*.safetensors"))[0]
    save_file({name: values + 1 for name, values in load_file(path).items()}, path)
    monkeypatch.setattr(loading, "_load_weights", lambda *_: pytest.fail("loaded"))
    refused(work(folder), "fingerprint.weights: the store has")


def test_an_image_root_without_images_is_told(tmp_path, caplog):
    """Empty, or not there any more: it may be right, where all images are URLs."""
    from halp_worker.start_checks import _check_image_root

    _check_image_root(tmp_path)
    assert f"the image root {tmp_path} is empty: is its disk mounted?" in caplog.text
    _check_image_root(tmp_path / "gone")
    assert "gone cannot be read: No such file or directory" in caplog.text
    caplog.clear()
    (tmp_path / "a.png").touch()
    _check_image_root(tmp_path)
    assert not caplog.text


@pytest.mark.slow
def test_extract_refuses_without_weights_too(hollow, photos, tmp_path):
    """A wrong option, an image that is not there."""
    photo = photos / "coffee.png"
    for image, options, sentence in (
        (photo, ("--positions", "foo"), "--positions: ['foo'] unknown"),
        (photo, ("--layers", "0,99"), "[99] not in this model"),
        (photo, ("--min-pixels", "60000"), "--min-pixels 60000 is above"),
        (tmp_path / "no.png", (), "image not found: no.png"),
        (photo, (), "has no weights"),
    ):
        words = ["extract", str(image), "What?", "--model", str(hollow), "--device", "cpu"]
        refused(CliRunner().invoke(app, [*words, *options]), sentence)


# -- the rehearsal -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_rehearsal_finds_what_only_a_forward_shows(bench, monkeypatch):
    """States or scores that are not finite, and what raises; a good model passes, and answers are
    thrown away."""
    import torch

    from halp_worker.fates import DeviceBroken, FatalError
    from halp_worker.model.rehearsal import rehearse

    bench = bench("2-layers")
    loaded, norm = bench.loaded, bench.loaded.model.model.language_model.norm

    def rehearsed(**generation):
        changed = replace(loaded, generation=replace(loaded.generation, **generation))
        rehearse("m", changed, bench.layout, bench.inputs)

    rehearsed()
    rehearsed(max_new_tokens=0)
    kept = norm.weight.data.clone()
    norm.weight.data.fill_(torch.nan)
    try:
        with pytest.raises(FatalError, match=r"could not be extracted .values are not finite"):
            rehearsed()
    finally:
        norm.weight.data.copy_(kept)
    for error, kind, sentence in (
        (RuntimeError("shapes\ndo not fit"), FatalError, r"extracted .RuntimeError: shapes.: no"),
        (KeyError("x"), FatalError, "the settings or the checkpoint are at fault"),
        (torch.OutOfMemoryError("CUDA out of memory"), FatalError, "do not fit the device"),
        (RuntimeError("CUDA error: an illegal memory access"), DeviceBroken, "the device failed"),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr("halp_worker.model.extractor.prefill", fail)
        with pytest.raises(kind, match=sentence):
            rehearsed()


@pytest.mark.slow
def test_a_worker_rehearses_before_it_takes_a_job(work, enqueue, tiny, client, keys, monkeypatch):
    """What raises for the made image stops the worker; the jobs wait as before."""
    from halp_worker import launch

    enqueue(QUESTIONS[0].job())
    monkeypatch.setattr(launch, "serve", lambda *_: pytest.fail("took jobs"))

    def fail(*_, **__):
        raise ValueError("a made-up fault")

    monkeypatch.setattr("halp_worker.model.extractor.prefill", fail)
    refused(work(tiny), "could not be extracted (ValueError: a made-up fault)")
    assert not client.hexists(keys.counts, "failed")
    assert client.xlen(keys.jobs) == 1
    assert not work.store.exists()
