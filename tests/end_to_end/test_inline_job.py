"""Images inside jobs, with real parts: the files are gone, a worker dies, every row is right."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import pytest

from halp_producer import RunKeys
from halp_producer.results import Fate, read_results
from halp_store import open_store

from .test_main_job import NEVER_FLUSHED, Commands, finish

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a checkpoint and an image root that no image of the test is below."""
    from halp_worker.demo.small_checkpoint import build_checkpoint

    folder = tmp_path_factory.mktemp("scene")
    build_checkpoint(folder / "checkpoint")
    (folder / "images").mkdir()
    return folder


@pytest.fixture
def photos(tmp_path):
    """Two real photographs, as bytes."""
    from halp_worker.demo.photos import write_dataset

    folder = write_dataset(tmp_path / "photos").parent / "images"
    return [(folder / name).read_bytes() for name in ("astronaut.png", "coffee.png")]


def test_jobs_with_images_inside_outlive_their_files_and_a_worker(
    checkpoint, photos, server, client, run, tmp_path, wait_until
):
    """Two images of one name stay apart; each row has its own image's hash, each message its row's
    answer; a question that was asked beside them is answered too."""
    commands = Commands(checkpoint, server.url, run, tmp_path / "store.zarr")
    root, expected = tmp_path / "root", {}
    root.mkdir()
    for turn, data in enumerate(photos):
        (root / "it.png").write_bytes(data)
        ids = [f"{'ab'[turn]}{number}" for number in range(3)]
        expected |= dict.fromkeys(ids, hashlib.sha256(data).hexdigest())
        path = tmp_path / f"{turn}.jsonl"
        rows = [
            {"question_id": one, "image": "it.png", "question": f"Is it {one}?", "answer": "no"}
            for one in ids
        ]
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        done = commands.producer(
            *("enqueue", str(path), "--image-root", str(root)),
            *("--inline-images", "--max-inline-bytes", str(4 << 20)),
        )
        assert done.returncode == 0, done.stderr
    asking = subprocess.Popen(
        [
            *(sys.executable, "-m", "halp_producer", "ask", str(root / "it.png"), "What is it?"),
            *("--id", "asked", "--redis-url", server.url, "--run", run, "--json"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    expected["asked"] = expected["b0"]
    keys = RunKeys(run)
    wait_until(lambda: client.xlen(keys.jobs) == len(expected), 100)
    shutil.rmtree(root)

    dies = commands.worker(*NEVER_FLUSHED, "--lease-seconds", "2", until_empty=False)
    wait_until(lambda: commands_in_flight(client, keys), 200)
    dies.kill()
    dies.communicate()
    finish(commands.worker("--batch-size", "2", "--lease-seconds", "2"))

    store = open_store(commands.store)
    assert dict(zip(store.ids, store.text("image_sha256"), strict=True)) == expected
    assert set(store.text("image")) == {"it.png"}
    said = read_results(client, keys).results
    assert sorted(one.question_id for one in said) == sorted(expected)
    for one in said:
        row = store[one.question_id]
        assert (one.fate, one.answer, one.segment) == (Fate.STORED, row.answer, row.segment)
    answer = json.loads(asking.communicate(timeout=60)[0])
    assert asking.returncode == 0
    assert (answer["question_id"], answer["answer"]) == ("asked", store["asked"].answer)


def commands_in_flight(client, keys):
    """Whether a worker holds jobs."""
    groups = client.xinfo_groups(keys.jobs)
    return any(group["pending"] for group in groups)
