"""`halp-store verify`: what it reads, what it prints, and how it ends."""

import errno
import json
import os
import re
import time
from types import SimpleNamespace

import pytest
import redis
import typer
from typer.testing import CliRunner

from halp_producer.account import RunAccount
from halp_producer.enqueue import enqueue_jobs
from halp_producer.job import Job
from halp_producer.keys import RunKeys
from halp_store import expectation, progress
from halp_store.cli import app
from halp_store.local import LocalStorage

HEX = "0123456789abcdef" * 2
ORPHAN = f"dead-{HEX}"


@pytest.fixture
def path(tmp_path, open_writer):
    open_writer(tmp_path / "s")
    return tmp_path / "s"


def _jobs(ids):
    return [Job(question_id=one, image=f"{one}.png", question="?", ground_truth="t") for one in ids]


@pytest.fixture
def stored(path, publish, make_rows):
    """The path of a store in which the jobs of these ids are stored, with their contents."""

    def store(*ids):
        features = make_rows(ids)
        features.text["content_hash"] = tuple(job.content_hash for job in _jobs(ids))
        publish(path, features)
        return path

    return store


@pytest.fixture
def dataset(tmp_path):
    def write(*ids, bad=()):
        lines = [
            json.dumps({"question_id": one, "image": f"{one}.png", "question": "?", "answer": "t"})
            for one in ids
        ]
        file = tmp_path / "questions.jsonl"
        file.write_text("\n".join([*lines, *bad]) + "\n")
        return str(file)

    return write


def _run(*arguments, **env):
    runner = CliRunner()
    variables = {"NO_COLOR": "1", "COLUMNS": "200", "HALP_RUN": None, **env}
    return runner.invoke(app, ["verify", *map(str, arguments)], env=variables)


def test_a_sound_store_ends_with_0(stored):
    """It says what was read, and how to ask for what may be missing."""
    result = _run(stored("a", "b"))
    assert result.exit_code == 0, result.output
    assert "2 rows in 1 segments, read whole" in result.stdout
    assert "no problems" in result.stdout
    assert "--dataset, --run or both" in result.stdout


def test_problems_end_with_1_and_are_grouped_by_kind(stored):
    """Each kind with its number, each problem with what to do."""
    path = stored("a", "b")
    for chunk in path.glob("segments/*/vision_*/c.0.0"):
        chunk.unlink()
    result = _run(path)
    assert result.exit_code == 1
    assert "problems: 2\ndamaged (2)\n  " in result.stdout
    assert "array vision_only: chunk c.0.0 is missing; restore" in result.stdout
    assert "next: do what each problem says" in result.stdout


def test_a_data_set_says_what_is_missing(stored, dataset):
    """Its questions are to be stored, with its content; where they are is counted."""
    path, file = stored("a", "b"), dataset("a", "b", "c")
    result = _run(path, "--dataset", file)
    assert result.exit_code == 1
    assert f"data set {file}: 3 questions: 2 stored, 0 failed, 0 queued, 1 missing" in result.stdout
    assert "'c' is not stored; pass --run" in result.stdout
    assert _run(path, "--dataset", dataset("a", "b")).exit_code == 0
    changed = json.dumps({"question_id": "b", "image": "x", "question": "?", "answer": "t"})
    result = _run(path, "--dataset", dataset("a", bad=[changed]))
    assert result.exit_code == 1
    assert "content (1)\n" in result.stdout


def test_a_data_set_is_read_with_its_map(stored, tmp_path):
    """As when it was enqueued, so that the contents are the same."""
    file = tmp_path / "other.csv"
    file.write_text("question_id,picture,question,answer\na,a.png,?,t\n")
    path = stored("a")
    assert _run(path, "--dataset", file, "--map", "image=picture").exit_code == 0
    assert _run(path, "--dataset", file).exit_code == 1


def test_images_that_travelled_inside_are_part_of_what_is_expected(
    path, publish, make_rows, dataset, tmp_path
):
    """The same images: nothing is wrong; one that changed since, or none named: other content."""
    root = tmp_path / "images"
    root.mkdir()
    jobs = [job.model_copy(update={"image_data": job.image.encode()}) for job in _jobs("ab")]
    for job in jobs:
        (root / job.image).write_bytes(job.image_data)
    features = make_rows(("a", "b"))
    features.text["content_hash"] = tuple(job.content_hash for job in jobs)
    publish(path, features)
    inside = ("--dataset", dataset("a", "b"), "--image-root", root, "--inline-images")
    assert _run(path, *inside).exit_code == 0
    assert _run(path, *inside[:2]).exit_code == 1
    (root / "b.png").write_bytes(b"another")
    result = _run(path, *inside)
    assert result.exit_code == 1
    assert "content (1)\n" in result.stdout


def test_bad_lines_of_a_data_set_are_problems(stored, dataset):
    """Named by file and line; so is an id with two contents, and one said twice is none."""
    other = json.dumps({"question_id": "a", "image": "x", "question": "?", "answer": "t"})
    file = dataset("a", "a", bad=["{", other])
    result = _run(stored("a"), "--dataset", file)
    assert result.exit_code == 1
    assert "dataset (2)\n" in result.stdout
    assert f"{file}:3: " in result.stdout
    assert f"{file}:4: question_id: 'a' is also on an earlier line" in result.stdout
    assert "problems: 2" in result.stdout


class Account:
    """In place of the server: what a run says of its questions."""

    def __init__(self, monkeypatch, on_read=lambda: None, **fields):
        self.asked = []

        def account(client, keys):
            self.asked.append((client, keys.run))
            on_read()
            return RunAccount(**{"known": {}, "failed": {}, "queued": frozenset(), **fields})

        def connect(url):
            return SimpleNamespace(close=lambda: None, url=url)

        monkeypatch.setattr("halp_producer.account.run_account", account)
        monkeypatch.setattr("halp_producer.server.connect", connect)


def test_a_run_says_which_questions_there_are(stored, monkeypatch):
    """Without a data set, what was enqueued is expected, with its content."""
    path = stored("a")
    known = {job.question_id: job.content_hash for job in _jobs("afqm")}
    fields = {"failed": {"f": "image-missing"}, "queued": frozenset("q")}
    account = Account(monkeypatch, known=known, **fields)
    result = _run(path, "--run", "pilot", "--redis-url", "redis://there:1/0")
    assert result.exit_code == 1
    assert "run pilot: 4 questions: 1 stored, 1 failed, 1 queued, 1 missing" in result.stdout
    assert "'m' is neither stored nor failed nor queued" in result.stdout
    ((client, run),) = account.asked
    assert (client.url, run) == ("redis://there:1/0", "pilot")
    Account(monkeypatch, known={**known, "a": "other"}, **fields)
    assert "content (1)\n" in _run(path, "--run", "pilot").stdout


def test_a_data_set_and_a_run_together(stored, dataset, monkeypatch):
    """The data set says which questions, the run where those are that are not stored."""
    Account(monkeypatch, known={"z": "z"}, failed={"f": "image-missing"}, queued=frozenset("q"))
    path = stored("a")
    result = _run(path, "--run", "pilot", "--dataset", dataset("a", "f", "q"))
    assert result.exit_code == 0, result.output
    assert "and run pilot: 3 questions: 1 stored, 1 failed, 1 queued, 0 missing" in result.stdout


def test_the_server_is_read_before_the_store(stored, monkeypatch):
    """A question that a worker finishes during the verify is stored, not missing."""
    path = stored("a")
    known = {job.question_id: job.content_hash for job in _jobs("ab")}
    Account(monkeypatch, on_read=lambda: stored("b"), known=known)
    result = _run(path, "--run", "pilot")
    assert result.exit_code == 0, result.output
    assert "2 stored" in result.stdout


def test_a_run_is_asked_about_only_when_it_is_named(stored):
    """A HALP_RUN that was left over asks nobody; there is no server here."""
    result = _run(stored("a"), HALP_RUN="pilot", HALP_REDIS_URL="redis://127.0.0.1:1/0")
    assert result.exit_code == 0, result.output


def test_the_server_may_come_from_a_variable(stored, monkeypatch):
    """As for every other command."""
    account = Account(monkeypatch)
    _run(stored("a"), "--run", "pilot", HALP_REDIS_URL="redis://there:2/0")
    assert account.asked[0][0].url == "redis://there:2/0"


def test_a_real_run_is_accounted_for(stored, server, client, run):
    """One stored, one failed with its reason, one still queued: nothing is missing."""
    keys = RunKeys(run)
    enqueue_jobs(client, keys, _jobs("aq"))
    path = stored("a")
    result = _run(path, "--run", run, "--redis-url", server.url)
    assert result.exit_code == 0, result.output
    assert "2 questions: 1 stored, 0 failed, 1 queued, 0 missing" in result.stdout
    for entry_id, _ in client.xrange(keys.jobs):
        client.xdel(keys.jobs, entry_id)
    client.xadd(keys.failed, {"question_id": "q", "reason": "image-missing"})
    result = _run(path, "--run", run, "--redis-url", server.url)
    assert "2 questions: 1 stored, 1 failed, 0 queued, 0 missing" in result.stdout
    client.delete(keys.failed)
    result = _run(path, "--run", run, "--redis-url", server.url)
    assert (result.exit_code, "1 missing" in result.stdout) == (1, True)


def test_an_unknown_run_and_no_server_end_with_1_and_a_sentence(stored, server, run):
    """On stderr, without a traceback."""
    path = stored("a")
    for url, said in ((server.url, run), ("redis://127.0.0.1:1/0", "127.0.0.1:1")):
        result = _run(path, "--run", run, "--redis-url", url)
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr
        assert isinstance(result.exception, SystemExit)


def test_a_server_that_goes_away_ends_with_1_and_a_sentence(stored, monkeypatch):
    """In the middle of reading the run: no half of an account is used."""

    def go_away():
        raise redis.ConnectionError("Connection reset by peer")

    Account(monkeypatch, on_read=go_away)
    result = _run(stored("a"), "--run", "pilot", "--redis-url", "redis://there:1/0")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there:1" in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_a_wrong_path_is_said_before_anybody_is_asked(tmp_path, monkeypatch, dataset):
    """And so is a data set of another format."""
    account = Account(monkeypatch)
    result = _run(tmp_path / "nowhere", "--run", "pilot")
    assert (result.exit_code, account.asked) == (1, [])
    assert "not a store" in result.stderr


def test_a_data_set_of_another_format_ends_with_1_and_a_sentence(stored, tmp_path):
    """As the producer says it."""
    (tmp_path / "x.txt").touch()
    result = _run(stored("a"), "--dataset", tmp_path / "x.txt")
    assert result.exit_code == 1
    assert "unknown format '.txt'" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--map", "image=x"],
        ["--inline-images", "--image-root", "."],
        ["--dataset", __file__, "--inline-images"],
        ["--dataset", __file__, "--map", "nope"],
        ["--dataset", "nowhere.jsonl"],
        ["--run", "a b"],
        ["--grace-seconds", "-1"],
        ["--nope"],
    ],
)
def test_a_wrong_command_line_ends_with_2(stored, arguments):
    """Before anything is read."""
    assert _run(stored("a"), *arguments).exit_code == 2


def test_json_has_everything(stored, dataset):
    """All problems with their segments and arrays, whatever is shown to a person."""
    path = stored("a")
    result = _run(path, "--json", "--dataset", dataset("a", *map(str, range(60))))
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["ok"], found["rows"], found["segments"]) == (False, 1, 1)
    assert found["counts"] == {"stored": 1, "failed": 0, "queued": 0, "missing": 60}
    assert len(found["problems"]) == 60
    assert found["problems"][0].keys() == {"kind", "sentence", "question_id", "segment", "array"}
    assert (found["notes"], found["repair"], found["run"]) == ([], None, None)
    assert json.loads(_run(path, "--json").stdout)["ok"]


def test_a_person_sees_the_first_fifty_of_a_kind(stored, dataset):
    """And how many more there are, and where."""
    result = _run(stored("a"), "--dataset", dataset("a", *map(str, range(60))))
    assert result.stdout.count(" is not stored; ") == 50
    assert "missing (60)\n" in result.stdout
    assert "and 10 more; --json prints all" in result.stdout
    assert "more;" not in _run(stored("b"), "--dataset", dataset("a", *map(str, range(50)))).stdout


def _orphan(path, age):
    disk = LocalStorage(path)
    disk.write(f"segments/{ORPHAN}/answer/c.0", b"x")
    then = time.time() - age
    for one in ("answer/c.0", "answer", "."):
        os.utime(path / "segments" / ORPHAN / one, (then, then))
    return disk


def test_leftovers_are_said_and_removed_on_demand(stored):
    """A note and the command; with --repair what was done, and no note any more."""
    path = stored("a")
    disk = _orphan(path, 700)
    result = _run(path)
    assert result.exit_code == 0
    assert f"note, unpublished (1)\n  {path}: segment {ORPHAN}" in result.stdout
    assert f"halp-store verify {path} --repair" in result.stdout
    assert disk.list_keys(f"segments/{ORPHAN}") == [f"segments/{ORPHAN}/answer/c.0"]
    result = _run(path, "--repair")
    assert result.exit_code == 0
    assert "repair: fenced 1 segments that nobody had published, removed 1 of" in result.stdout
    assert "note" not in result.stdout
    assert disk.list_keys(f"segments/{ORPHAN}") == [f"segments/{ORPHAN}/zarr.json"]


def test_the_grace_is_the_staging_deadline_unless_said_otherwise(stored):
    """600 s; less on demand."""
    path = stored("a")
    _orphan(path, 500)
    assert json.loads(_run(path, "--repair", "--json").stdout)["repair"]["waiting"] == [ORPHAN]
    shown = _run(path, "--repair").stdout
    assert "left alone 1 that changed in the last 600 s" in shown
    assert "to remove" not in shown
    found = _run(path, "--repair", "--grace-seconds", "400", "--json")
    assert json.loads(found.stdout)["repair"]["fenced"] == [ORPHAN]


def test_a_disk_that_is_too_full_to_repair_is_said(path, publish, make_rows, monkeypatch):
    """How many segments wait, and what to do first."""
    publish(path, make_rows(["a"]))
    LocalStorage(path).write(f"segments/{ORPHAN}/answer/c.0", b"x")
    opened = os.open

    def full(name, flags, *arguments, **options):
        if flags & os.O_CREAT and str(name).startswith((".partial-", "zarr.json")):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(name, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", full)
    shown = _run(path, "--repair", "--grace-seconds", "0").stdout
    assert "; the disk is too full to fence 1 more: free some space and repair again" in shown


def test_a_terminal_gets_a_bar(stored, monkeypatch):
    """On stderr, so that what is printed stays a result; and none without a terminal."""
    path = stored("a")
    assert _run(path).stderr == ""
    told = []
    monkeypatch.setattr(progress.sys, "stderr", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(
        "rich.progress.Progress.update", lambda self, task, **numbers: told.append(numbers)
    )
    monkeypatch.setattr("rich.progress.Progress.start", lambda self: None)
    monkeypatch.setattr("rich.progress.Progress.stop", lambda self: None)
    with progress.progress_bar("read") as tell:
        tell(1, 2)
    assert told == [{"completed": 1, "total": 2}]


def test_help_has_an_example_for_each_way():
    """And every option is explained."""
    shown = _run("--help").stdout
    for example in ("run1.zarr", "--dataset questions.jsonl", "--run pilot", "--repair"):
        assert example in shown
    command = typer.main.get_command(app).commands["verify"]
    assert all(one.help for one in command.params if one.name != "help")


def test_the_producer_is_asked_lazily():
    """Who verifies a store alone needs nothing of the queue; see tests/test_walls.py too."""
    source = expectation.__loader__.get_source(expectation.__name__)
    assert not re.findall(r"(?m)^(?:from|import) (?:redis|halp_producer)", source)
