"""`ask`: one question, and how it ended, whatever happens to its message."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest

from halp_producer import ask_cli
from halp_producer.activity import WorkerActivity
from halp_producer.ask import AskError, ask
from halp_producer.enqueue import enqueue_jobs
from halp_producer.job import Job, decode
from halp_producer.letters import dead_letters
from halp_producer.moves import retry_letters
from halp_producer.results import Fate, Result, read_results
from halp_store.features import StoredRow, _seal_receipt
from halp_worker.consumer import Consumer
from halp_worker.fates import Reason, Rejection

JOB = Job(question_id="asked", image="a.png", question="What is it?", ground_truth="")
SAID = Result(question_id="asked", fate=Fate.STORED, answer="A cat.", segment="seg", row=3)


class Colleague:
    """A consumer that ends one job as it is told."""

    def __init__(self, client, keys) -> None:
        self.consumer = Consumer(client, keys, name="w1", lease_ms=60_000)

    def stores(self, answer: str = "A cat.", **known: object) -> None:
        (one,) = self._take()
        self.consumer.ack(_seal_receipt((StoredRow(one.key, "seg", 3, answer, **known),)))

    def fails(self) -> None:
        (one,) = self._take()
        self.consumer.fail(one.key, Rejection(Reason.IMAGE_MISSING, "not there"))

    def _take(self):
        while not (found := self.consumer.read(1, 1000)):
            pass
        return found


@pytest.fixture
def colleague(client, keys) -> Colleague:
    return Colleague(client, keys)


@pytest.fixture
def meanwhile():
    """`meanwhile(act)`: on a thread of its own, which has ended when the test has."""
    threads = []

    def start(act: Callable[[], object]) -> None:
        threads.append(threading.Thread(target=act))
        threads[-1].start()

    yield start
    for one in threads:
        one.join(timeout=30)


def test_an_answer_comes_with_the_place_of_its_row(client, keys, colleague, meanwhile):
    """Of this question, whatever else ends meanwhile."""
    other = JOB.model_copy(update={"question_id": "other"})
    enqueue_jobs(client, keys, [other])
    meanwhile(lambda: [colleague.fails(), colleague.stores()])
    assert ask(client, keys, JOB, timeout_seconds=30) == SAID


def test_a_failure_comes_with_its_reason(client, keys, colleague, meanwhile):
    """As in its dead letter."""
    meanwhile(colleague.fails)
    found = ask(client, keys, JOB, timeout_seconds=30)
    assert (found.fate, found.reason, found.error) == (Fate.FAILED, "image_missing", "not there")


def test_without_an_answer_in_time_the_question_stays(client, keys):
    """And what was waited for is said, once."""
    said = []
    assert ask(client, keys, JOB, timeout_seconds=0.01, note=said.append) is None
    assert client.xlen(keys.jobs) == 1
    assert said == ["asked: no worker is alive; start one: halp-worker run --store STORE "
                    f"--run {keys.run}"]  # fmt: skip


def test_who_asks_again_gets_the_answer_again(client, keys, colleague):
    """The same id and the same question is the same job, and its message is still there."""
    enqueue_jobs(client, keys, [JOB])
    colleague.stores()
    assert ask(client, keys, JOB, timeout_seconds=30) == SAID
    assert len(read_results(client, keys).results) == 1


def test_without_its_message_the_job_says_how_it_ended(client, keys, colleague):
    """Trimmed or lost: it is no longer on the stream, so it failed or is stored."""
    enqueue_jobs(client, keys, [JOB])
    colleague.stores()
    client.delete(keys.results)
    assert ask(client, keys, JOB, timeout_seconds=30) == Result(
        question_id="asked", fate=Fate.STORED
    )
    other = JOB.model_copy(update={"question_id": "other"})
    enqueue_jobs(client, keys, [other])
    colleague.fails()
    client.delete(keys.results)
    found = ask(client, keys, other, timeout_seconds=30)
    assert (found.fate, found.reason, found.error) == (Fate.FAILED, "image_missing", "not there")


def test_the_message_of_an_earlier_try_is_not_the_end(client, keys, colleague, meanwhile):
    """It failed, and was put back: what counts is what comes of that."""
    enqueue_jobs(client, keys, [JOB])
    colleague.fails()
    retry_letters(client, keys, [one.entry_id for one in dead_letters(client, keys)])
    assert ask(client, keys, JOB, timeout_seconds=0.01) is None
    meanwhile(colleague.stores)
    assert ask(client, keys, JOB, timeout_seconds=30) == SAID


def test_an_id_that_is_used_for_another_question_is_refused(client, keys):
    """What is there stays."""
    enqueue_jobs(client, keys, [JOB])
    with pytest.raises(AskError, match="with other content"):
        ask(
            client,
            keys,
            JOB.model_copy(update={"question": "Another?"}),
            timeout_seconds=30,
        )


def test_a_question_that_is_dropped_meanwhile_is_said(client, keys, colleague, meanwhile):
    """Nobody waits for ever for what was forgotten."""

    def fail_and_drop():
        colleague._take()
        with client.pipeline() as pipe:  # in one step, as if nobody had looked in between
            pipe.delete(keys.jobs, keys.known)
            pipe.execute()

    meanwhile(fail_and_drop)
    with pytest.raises(AskError, match="was dropped, or the server lost the run"):
        ask(client, keys, JOB, timeout_seconds=30)


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path):
    """`images/kitchen/0.png`: the root is `images`."""
    path = tmp_path / "images" / "kitchen" / "0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"picture")
    return path


def enqueued(client, keys) -> Job:
    ((_, fields),) = client.xrange(keys.jobs)
    return decode(fields)


def test_the_command_prints_the_answer_and_where_the_states_are(
    halp, picture, colleague, meanwhile
):
    """Exit 0; and the same as one JSON object."""
    meanwhile(colleague.stores)
    ended = halp("ask", picture, "What is it?", "--id", "asked")
    assert ended.exit_code == 0, ended.output
    assert ended.stdout == "A cat.\nhidden states: row 3 of seg; halp-store get STORE asked\n"
    again = json.loads(halp("ask", picture, "What is it?", "--id", "asked", "--json").stdout)
    assert (again["fate"], again["answer"], again["row"]) == ("stored", "A cat.", 3)


def test_the_command_says_how_likely_the_answer_is_wrong(halp, picture, colleague, meanwhile):
    """Where a worker has a probe: with the answer, and for machines."""
    meanwhile(lambda: colleague.stores(finish_reason="stop", risk=0.125))
    ended = halp("ask", picture, "What is it?", "--id", "asked")
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.startswith("A cat.\nrisk 0.12\nhidden states: ")
    again = json.loads(halp("ask", picture, "What is it?", "--id", "asked", "--json").stdout)
    assert (again["risk"], again["finish_reason"]) == (0.125, "stop")


def test_the_command_says_that_the_worker_abstained(halp, picture, colleague, meanwhile):
    """Not an error: the question is stored, with its states. Exit 0."""
    meanwhile(lambda: colleague.stores("", finish_reason="abstained", risk=0.93))
    ended = halp("ask", picture, "What is it?", "--id", "asked")
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.startswith(
        "abstained: risk 0.93 is above the worker's threshold\nhidden states: row 3 of seg; "
    )
    again = json.loads(halp("ask", picture, "What is it?", "--id", "asked", "--json").stdout)
    assert (again["fate"], again["finish_reason"], again["answer"]) == ("stored", "abstained", "")


@pytest.mark.parametrize(
    ("reason", "said"),
    [("stop", "(the answer is empty)"), ("skipped", "(no answer: the worker gives none)")],
)
def test_the_command_tells_an_empty_answer_from_none(
    halp, picture, colleague, meanwhile, reason, said
):
    """By the finish reason."""
    meanwhile(lambda: colleague.stores("", finish_reason=reason))
    assert halp("ask", picture, "What?", "--id", "asked").stdout.startswith(said)


def test_the_command_names_the_store_where_all_workers_write_to_one(
    halp, picture, colleague, meanwhile, client, keys
):
    """As they say in their heartbeats, quoted for a shell."""
    who = {"worker": "w1", "host": "h", "pid": 1, "device": "cpu", "model": "m", "state": "running"}
    said = WorkerActivity(**who, started_ms=0, seen_ms=0, store="/data/my run.zarr")
    client.hset(keys.workers, "w1", said.model_dump_json())
    meanwhile(colleague.stores)
    ended = halp("ask", picture, "What is it?", "--id", "asked")
    assert ended.stdout.endswith("halp-store get '/data/my run.zarr' asked\n")


def test_the_command_says_why_there_is_no_answer(halp, picture, colleague, meanwhile, run):
    """Exit 1: the reason of a failure; after the timeout, how to take the question back."""
    meanwhile(colleague.fails)
    ended = halp("ask", picture, "What?", "--id", "one")
    assert ended.exit_code == 1
    assert "one: image_missing: not there; `halp-producer failed show one" in ended.stderr
    ended = halp("ask", picture, "What?", "--id", "two", "--timeout-seconds", "0.01", "--json")
    assert ended.exit_code == 1
    assert json.loads(ended.stdout) == {"question_id": "two", "fate": None, "run": run}
    assert f"`halp-producer cancel two --run {run}` takes it back" in ended.stderr


@pytest.mark.parametrize("inline", [False, True])
def test_an_image_below_the_root_is_named_unless_it_is_to_travel(
    halp, picture, client, keys, inline, monkeypatch
):
    """Wherever the command runs: an absolute path, one from here, one from the root."""
    monkeypatch.chdir(picture.parent)
    root = picture.parents[1]
    for name in (picture, "0.png", "kitchen/0.png"):
        options = ["--image-root", root, "--timeout-seconds", "0", *(["--inline-images"] * inline)]
        halp("ask", name, "What?", *options)
        job = enqueued(client, keys)
        assert job.image == "kitchen/0.png"
        assert job.image_data == (b"picture" if inline else None)
        assert job.question_id.startswith("ask-")
        client.delete(keys.jobs)


def test_an_image_outside_of_the_root_travels_inside_its_job(halp, picture, client, keys, tmp_path):
    """Under its own name; without a root, any image does. A URL never does."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name, root, expected in (
        (picture, ["--image-root", elsewhere], ("0.png", b"picture")),
        (picture, [], ("0.png", b"picture")),
        ("https://example.org/a.png", [], ("https://example.org/a.png", None)),
    ):
        halp("ask", name, "What?", *root, "--timeout-seconds", "0")
        job = enqueued(client, keys)
        assert (job.image, job.image_data) == expected
        client.delete(keys.jobs)


def test_what_cannot_be_asked_is_wrong_usage(halp, picture, client, keys):
    """Exit 2, and nothing is enqueued: no such file, too large, an empty question."""
    assert "not a file: nowhere.png" in halp("ask", "nowhere.png", "What?").stderr
    assert halp("ask", picture, " ").exit_code == 2
    with picture.open("wb") as file:
        file.truncate(ask_cli.MAX_IMAGE_BYTES + 1)
    ended = halp("ask", picture, "What?")
    assert (ended.exit_code, "is larger than" in ended.stderr) == (2, True)
    assert client.exists(keys.jobs) == 0
