"""Images inside jobs: what is sent, what is promised, and that nobody prints or holds them all."""

from __future__ import annotations

import json

import pytest

from halp_producer.account import run_account
from halp_producer.dataset import Dataset
from halp_producer.enqueue import Outcome, enqueue_jobs
from halp_producer.images import ImageRoot
from halp_producer.intake import enqueue_dataset
from halp_producer.job import (
    INLINE_VERSION,
    MAX_IMAGE_BYTES,
    WIRE_VERSION,
    Job,
    JobFormatError,
    decode,
    parse,
)
from halp_producer.letters import dead_letters
from halp_producer.moves import cancel_jobs, retry_letters
from halp_producer.problem import DatasetError

PIXELS = bytes(range(256))


def job(number: int = 1, image_data: bytes | None = PIXELS, **changes: str) -> Job:
    fields = {"image": "a.jpg", "question": "What?", "ground_truth": "x", **changes}
    return Job(question_id=f"q{number}", image_data=image_data, **fields)


@pytest.fixture
def images(tmp_path):
    """A root with three images."""
    root = tmp_path / "images"
    root.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (root / name).write_bytes(PIXELS + name.encode())
    return root


@pytest.fixture
def dataset(tmp_path):
    """Six questions: two on each image, far from each other."""
    path = tmp_path / "six.jsonl"
    rows = [
        {"question_id": f"q{n}", "image": f"{'abc'[n % 3]}.jpg", "question": "?", "answer": "x"}
        for n in range(6)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def on_the_stream(client, keys) -> list[Job]:
    return [decode(fields) for _, fields in client.xrange(keys.jobs)]


def test_an_image_survives_the_stream_byte_for_byte(client, keys):
    """As it is, in an entry of its own version; jobs without stay as they were, in one chunk."""
    jobs = [job(1), job(2, None), job(3, b"\xff\0")]
    assert {one.outcome for one in enqueue_jobs(client, keys, jobs)} == {Outcome.ADDED}
    assert on_the_stream(client, keys) == jobs
    first, second, _ = (fields for _, fields in client.xrange(keys.jobs))
    assert (first[b"v"], first[b"image_data"]) == (INLINE_VERSION.encode(), PIXELS)
    assert (second[b"v"], b"image_data" in second) == (WIRE_VERSION.encode(), False)


def test_the_hash_has_the_image_only_where_there_is_one(client, keys):
    """What is stored keeps its hash; other bytes are another job."""
    fields = {"question_id": "q1", "image": "a/b.jpg", "question": "What is this?"}
    plain = parse({**fields, "ground_truth": "a dog", "metadata": {"category": "existence"}})
    assert plain.content_hash == "f1a303ee4d5a65debf4673b41d4c83e7"
    hashes = {job(1, data).content_hash for data in (None, PIXELS, PIXELS + b"\0")}
    assert len(hashes) == 3
    enqueue_jobs(client, keys, [job(1)])
    outcomes = [
        enqueue_jobs(client, keys, [job(1, data)])[0].outcome for data in (PIXELS, b"x", None)
    ]
    assert outcomes == [Outcome.KNOWN, Outcome.CONFLICT, Outcome.CONFLICT]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({b"v": b"1"}, "expected version 2 with an image inside, got '1'"),
        ({b"v": b"3"}, "expected version 2 with an image inside, got '3'"),
        ({b"image_data": None}, "expected version 1 without an image inside, got '2'"),
        ({b"image_data": b""}, "image_data: is empty"),
        ({b"image_data": bytes(MAX_IMAGE_BYTES + 1)}, f"the limit is {MAX_IMAGE_BYTES}"),
    ],
)
def test_a_version_says_whether_there_is_an_image(changes, said):
    """Anything else is malformed, and the reason does not quote the bytes."""
    fields = {name.encode(): value.encode() for name, value in job().encode().items()}
    fields |= {b"image_data": PIXELS} | changes
    with pytest.raises(JobFormatError) as caught:
        decode({name: value for name, value in fields.items() if value is not None})
    assert said in str(caught.value)
    assert len(str(caught.value)) < 200
    assert "\\x" not in repr(job())


def test_each_question_is_sent_with_its_image_and_may_be_sent_again(dataset, images, client, keys):
    """The same file and images are known; an image that changed is a conflict for its questions."""

    def enqueue():
        source = Dataset(dataset, None, ImageRoot(images), inline_bytes=1000)
        report = enqueue_dataset(source, keys, client)
        return report.added, report.known, report.conflicts

    assert enqueue() == (6, 0, 0)
    assert {(one.image, one.image_data) for one in on_the_stream(client, keys)} == {
        (path.name, path.read_bytes()) for path in images.iterdir()
    }
    assert enqueue() == (0, 6, 0)
    (images / "b.jpg").write_bytes(b"another")
    assert enqueue() == (0, 4, 2)


def test_an_image_that_cannot_travel_makes_its_line_bad(halp, dataset, images, client, keys):
    """File and line, and what to do: too large, empty. Nothing is enqueued."""
    (images / "a.jpg").write_bytes(bytes(2000))
    (images / "b.jpg").write_bytes(b"")
    ended = halp(
        *("enqueue", dataset, "--image-root", images),
        *("--inline-images", "--max-inline-bytes", "1999"),
    )
    assert ended.exit_code == 1
    first, second, *_ = ended.stderr.splitlines()
    assert first.startswith(f"{dataset}:1: image: is larger than 1,999 bytes: a.jpg")
    assert "raise --max-inline-bytes" in first
    assert second.startswith(f"{dataset}:2: image: is empty: b.jpg")
    assert client.exists(keys.jobs) == 0
    ended = halp("enqueue", dataset, "--inline-images")
    assert (ended.exit_code, "needs an --image-root" in ended.stderr) == (2, True)


def test_an_image_that_is_gone_at_the_second_look_stops_the_enqueueing(
    dataset, images, client, keys
):
    """Between check and sending; the line is named, and the same command goes on later."""

    class Vanishing(ImageRoot):
        looks = 0

        def problem(self, image):
            self.looks += 1
            return "not found: it was there" if self.looks > 6 else super().problem(image)

    source = Dataset(dataset, None, Vanishing(images), inline_bytes=1000)
    with pytest.raises(
        DatasetError, match=r"six\.jsonl:1: image: not found: .* run the same command"
    ):
        enqueue_dataset(source, keys, client)


def test_a_letter_keeps_the_image_and_shows_its_size(halp, client, keys):
    """List, show and JSON say how large it is; retry puts it back as it was."""
    enqueue_jobs(client, keys, [job(1), job(2, None)])
    cancel_jobs(client, keys, ["q1", "q2"])
    assert [one.image_bytes for one in dead_letters(client, keys)] == [256, None]
    shown = halp("failed", "show", "q1").stdout
    assert "a.jpg (256 bytes inside the job)" in shown
    whole = [json.loads(halp("failed", "list", "--json").stdout)[0]["image_bytes"]]
    assert whole == [256]
    for output in (shown, halp("failed", "list").stdout, halp("failed", "list", "--json").stdout):
        assert "\\u00" not in output
        assert "image_data" not in output
    assert retry_letters(client, keys, [one.entry_id for one in dead_letters(client, keys)]) == [
        "moved",
        "moved",
    ]
    assert on_the_stream(client, keys) == [job(1), job(2, None)]


def test_letters_and_accounts_are_read_without_the_images(client, keys):
    """Pages are bounded in bytes on the server, and the images stay there."""
    jobs = [job(number, bytes(400_000)) for number in range(1, 8)]
    enqueue_jobs(client, keys, jobs)
    cancel_jobs(client, keys, ["q1", "q2", "q3", "q4"])
    before = client.info("stats")["total_net_output_bytes"]
    assert [one.question_id for one in dead_letters(client, keys)] == ["q1", "q2", "q3", "q4"]
    assert run_account(client, keys).queued == {"q5", "q6", "q7"}
    assert client.info("stats")["total_net_output_bytes"] - before < 100_000


@pytest.mark.slow
def test_the_memory_of_the_producer_does_not_grow_with_the_images(
    peak_mib, server, run, tmp_path, client, keys
):
    """80 images of 500 kB pass through it, one chunk at a time."""
    root = tmp_path / "images"
    root.mkdir()
    path = tmp_path / "many.jsonl"
    with path.open("w") as file:
        for number in range(80):
            (root / f"{number}.jpg").write_bytes(number.to_bytes(2) * 250_000)
            row = {"question_id": f"q{number}", "image": f"{number}.jpg"}
            file.write(json.dumps({**row, "question": "?", "answer": "x"}) + "\n")
    options = ("enqueue", str(path), "--image-root", str(root), "--redis-url", server.url)
    few = peak_mib(*options, "--run", run, "--dry-run")
    many = peak_mib(*options, "--run", run, "--inline-images")
    assert client.xlen(keys.jobs) == 80
    assert many - few < 20
