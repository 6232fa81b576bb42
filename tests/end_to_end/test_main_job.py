"""The whole path with real parts: server, data set, worker processes, store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from halp_producer import RunKeys
from halp_store import open_store
from tolerance import assert_within, relative, rounding

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A checkpoint, and the demo's data set of real photographs."""
    from halp_worker.demo.photos import write_dataset
    from halp_worker.demo.small_checkpoint import build_checkpoint

    folder = tmp_path_factory.mktemp("scene")
    build_checkpoint(folder / "checkpoint")
    write_dataset(folder)
    return folder


@pytest.fixture
def commands(scene, server, run, tmp_path):
    """The commands of the README as processes, on this test's run and store."""
    return Commands(scene, server.url, run, tmp_path / "store.zarr")


class Commands:
    def __init__(self, scene, url, run, store):
        self.scene, self.url, self.run, self.store = scene, url, run, store

    def producer(self, *arguments):
        where = ["--redis-url", self.url, "--run", self.run]
        return subprocess.run(
            [sys.executable, "-m", "halp_producer", *arguments, *where],
            capture_output=True,
            text=True,
            check=False,
        )

    def enqueue(self, dataset="dataset.jsonl"):
        done = self.producer(
            "enqueue", str(self.scene / dataset), "--image-root", str(self.scene / "images")
        )
        assert done.returncode == 0, done.stderr
        return done

    def enqueue_many(self, count):
        """Questions on one image, more of them than a test lets a worker do."""
        path = self.store.with_name("many.jsonl")
        fields = {"image": "coffee.png", "question": "What is it?", "ground_truth": ""}
        lines = [json.dumps({"question_id": f"q{number}", **fields}) for number in range(count)]
        path.write_text("\n".join(lines))
        done = self.producer("enqueue", str(path), "--image-root", str(self.scene / "images"))
        assert done.returncode == 0, done.stderr

    def status(self):
        return json.loads(self.producer("status", "--json").stdout)

    def worker(self, *options, launcher=(), device="cpu", until_empty=True):
        return subprocess.Popen(
            [
                *(sys.executable, "-m", *launcher, "halp_worker", "run", "--device", device),
                *["--until-empty"] * until_empty,
                *("--store", str(self.store), "--model", str(self.scene / "checkpoint")),
                *("--image-root", str(self.scene / "images"), "--redis-url", self.url),
                *("--run", self.run, "--dtype", "float32", "--max-new-tokens", "6"),
                *options,
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )


NEVER_FLUSHED = ("--batch-size", "2", "--flush-rows", "1000", "--flush-seconds", "600")
"""What such a worker extracts stays in flight, however fast it is."""


def finish(worker):
    output, errors = worker.communicate(timeout=200)
    assert worker.returncode == 0, errors
    return output


def dataset(scene):
    lines = (scene / "dataset.jsonl").read_text().splitlines()
    return {record["question_id"]: record for record in map(json.loads, lines)}


def test_two_workers_store_every_id_exactly_once_equal_to_direct_extraction(
    commands, scene, client
):
    """Equal to direct extraction; and a second run adds nothing, anywhere."""
    commands.enqueue()
    workers = [commands.worker("--batch-size", "4") for _ in range(2)]
    outputs = [finish(worker) for worker in workers]
    records = dataset(scene)
    assert sum(int(output.split()[0]) for output in outputs) == len(records)
    status = commands.status()
    assert (status["done"], status["failed"]) == (len(records), 0)
    assert (status["waiting"], status["in_flight"]) == (0, 0)

    store = open_store(commands.store)
    assert_equal_to_direct_extraction(store, scene)

    segments = store.segments
    again = commands.enqueue()
    assert f"{len(records)} already there" in again.stdout + again.stderr
    assert finish(commands.worker()).startswith("0 stored")
    store.refresh()
    assert store.segments == segments
    assert client.xlen(RunKeys(commands.run).jobs) == 0


def assert_equal_to_direct_extraction(store, scene):
    records = dataset(scene)
    assert sorted(store) == sorted(records)
    assert store.contradictions == ()
    expected = extracted_directly(scene, list(records)[::4])
    bound = rounding(28 + 4 + 3, 128)  # layers of decoder and encoder, and the longest sum
    for question_id, row in expected.items():
        record = store[question_id]
        assert record.question_text == records[question_id]["question"]
        assert record.ground_truth == records[question_id]["ground_truth"]
        assert record.metadata == records[question_id]["metadata"]
        assert record.answer == row.text["answer"][0]
        for name, values in row.vectors.items():
            got, wanted = record.arrays[name], values[0]
            assert_within(relative(got, wanted), bound, question_id, name)
        for position, index in record.positions.items():
            assert index == row.integers[f"{position}_position"][0]


TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "-m", "--")


def test_two_processes_with_half_of_every_layer_are_one_worker(commands, scene):
    """Tensor parallelism under `torchrun`: the hooks see whole states, the rows are the same."""
    commands.enqueue()
    output = finish(commands.worker("--batch-size", "8", launcher=TORCHRUN, device="auto"))
    assert output.startswith(f"{len(dataset(scene))} stored"), output
    store = open_store(commands.store)
    assert_equal_to_direct_extraction(store, scene)


def test_a_stop_reaches_the_rank_that_has_the_queue_and_spares_the_others(
    commands, scene, wait_until
):
    """SIGTERM to `torchrun`, which sends it to every rank: the batch in hand is stored, and the
    others, which would take minutes, are given back."""
    commands.enqueue_many(2000)
    one = commands.worker(
        "--batch-size", "1", "--flush-rows", "1", launcher=TORCHRUN, device="auto"
    )
    wait_until(lambda: commands.status()["done"] >= 1, seconds=120)
    one.send_signal(signal.SIGTERM)
    _, errors = one.communicate(timeout=60)
    status = commands.status()
    assert status["in_flight"] == 0, errors
    assert status["done"] == len(open_store(commands.store)) < 2000, errors


def test_a_rank_that_dies_ends_its_worker_and_loses_nothing(commands, scene, wait_until):
    """SIGKILL to the process that only helps: the others end too, and another worker goes on."""
    commands.enqueue()
    options = ("--batch-size", "1", "--flush-rows", "1", "--lease-seconds", "2")
    doomed = commands.worker(*options, launcher=TORCHRUN, device="auto", until_empty=False)
    wait_until(lambda: commands.status()["done"] >= 1, seconds=120)
    for process in psutil.Process(doomed.pid).children(recursive=True):
        if process.environ().get("RANK") == "1":
            process.kill()
    doomed.communicate(timeout=100)
    assert doomed.returncode != 0
    finish(commands.worker("--lease-seconds", "2"))
    assert_equal_to_direct_extraction(open_store(commands.store), scene)
    assert commands.status()["failed"] == 0


def extracted_directly(scene, question_ids):
    """Rows of the given ids, each alone through the model in this process."""
    from halp_producer import Job
    from halp_worker.batcher import Batch
    from halp_worker.delivery import row_key
    from halp_worker.launch import input_builder
    from halp_worker.model.extractor import Extractor
    from halp_worker.model.layers import choose_layers, layout_of
    from halp_worker.model.loading import load_model
    from halp_worker.settings import ModelSettings

    loaded = load_model(
        ModelSettings(str(scene / "checkpoint"), dtype="float32", device="cpu", max_new_tokens=6)
    )
    layout = layout_of(
        loaded, choose_layers("auto", loaded.n_layers), ("vision_token", "query_token")
    )
    inputs = input_builder(loaded, layout.positions, scene / "images", allow_urls=False)
    extractor = Extractor(loaded, layout)
    records = dataset(scene)
    return {
        name: extractor.extract(
            Batch((row_key(Job(**records[name])),), (inputs.prepare(Job(**records[name])),))
        ).features
        for name in question_ids
    }


def test_a_killed_workers_jobs_are_finished_by_the_other(commands, scene, wait_until):
    """SIGKILL with jobs in its hands: each id is stored once, by the one that is left."""
    commands.enqueue()
    doomed = commands.worker(*NEVER_FLUSHED, until_empty=False)
    wait_until(lambda: commands.status()["in_flight"] >= 4, seconds=120)
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    status = commands.status()
    assert status["done"] == 0, "nothing was committed, so nothing is acknowledged"
    assert status["in_flight"] >= 4
    finish(commands.worker("--lease-seconds", "1"))
    store = open_store(commands.store)
    assert sorted(store) == sorted(dataset(scene))
    status = commands.status()
    assert (status["done"], status["waiting"], status["in_flight"]) == (len(store), 0, 0)


def test_a_bad_image_ends_in_the_failed_stream_and_nowhere_else(commands, scene, tmp_path):
    """Of a batch with a missing, a broken and a good image the good one is stored."""
    (scene / "images" / "broken.png").write_bytes(b"not a picture")
    lines = [
        {"question_id": name, "image": image, "question": "What is it?", "ground_truth": ""}
        for name, image in [("good", "coffee.png"), ("gone", "gone.png"), ("bad", "broken.png")]
    ]
    path = scene / "mixed.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    done = commands.producer("enqueue", str(path))
    assert done.returncode == 0, done.stderr
    output = finish(commands.worker())
    assert "1 stored" in output
    assert "2 failed" in output
    letters = json.loads(commands.producer("failed", "list", "--json").stdout)
    reasons = {letter["question_id"]: letter["reason"] for letter in letters_of(letters)}
    assert reasons == {"gone": "image_missing", "bad": "image_unreadable"}
    assert list(open_store(commands.store)) == ["good"]


def letters_of(answer):
    """The list of dead letters, whether it is the document or a part of it."""
    return answer if isinstance(answer, list) else answer["failed"]


def test_a_worker_with_another_configuration_is_refused(commands, scene):
    """The store names what differs; nothing is taken from the stream."""
    commands.enqueue()
    finish(commands.worker())
    other = commands.worker("--max-new-tokens", "7")
    _, errors = other.communicate(timeout=100)
    assert other.returncode == 1
    assert "max_new_tokens" in errors
    assert "Traceback" not in errors


def test_a_term_signal_commits_the_batch_in_hand(commands, wait_until):
    """The worker leaves with exit code 0, and what it finished is stored and acknowledged."""
    commands.enqueue()
    worker = commands.worker(*NEVER_FLUSHED, until_empty=False)
    # It fetches more than three batches only once it has extracted.
    wait_until(lambda: commands.status()["in_flight"] > 6, seconds=120)
    worker.send_signal(signal.SIGTERM)
    finish(worker)
    status = commands.status()
    assert status["done"] == len(open_store(commands.store)) > 0
