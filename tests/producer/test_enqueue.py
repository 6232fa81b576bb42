"""Enqueueing against real servers: once each, safe to repeat, patient."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halp_producer.dataset import Dataset
from halp_producer.enqueue import Enqueuer, Outcome, create_group, enqueue_jobs
from halp_producer.intake import enqueue_dataset
from halp_producer.job import Job, decode
from halp_producer.keys import GROUP, RunKeys
from halp_producer.server import connect


def job(number: int, **changes: str) -> Job:
    fields = {
        "question_id": f"q{number}",
        "image": f"{number // 2}.jpg",
        "question": f"What is {number}?",
        "ground_truth": "a dog",
    }
    return Job(**{**fields, **changes})


@pytest.fixture
def keys(run) -> RunKeys:
    return RunKeys(run)


@pytest.fixture
def own_server(server, tmp_path) -> Iterator:
    """A server of this test's own, to fill up, lock and restart."""
    directory = tmp_path / "server"
    directory.mkdir()
    one = type(server)(server.binary, directory)
    one.start()
    yield one
    one.stop()


def wait_until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)


def exactly_once(client: redis.Redis, keys: RunKeys, count: int) -> None:
    """One stream entry, one known id and one count for each question."""
    entries = client.xrange(keys.jobs)
    ids = [decode(fields).question_id for _, fields in entries]
    assert len(ids) == len(set(ids)) == count
    known = client.hgetall(keys.known)
    assert {name.decode(): value.split()[0] for name, value in known.items()} == {
        name: entry for name, (entry, _) in zip(ids, entries, strict=True)
    }
    assert int(client.hget(keys.counts, "enqueued")) == count


def test_a_new_job_becomes_one_entry(client, keys):
    """The entry decodes to the job; the id is known with its entry and its content."""
    (result,) = enqueue_jobs(client, keys, [job(1)])
    assert result.outcome is Outcome.ADDED
    ((entry_id, fields),) = client.xrange(keys.jobs)
    assert entry_id.decode() == result.entry_id
    assert decode(fields) == job(1)
    known = client.hget(keys.known, "q1").decode()
    assert known == f"{result.entry_id} {job(1).content_hash}"
    counts = client.hgetall(keys.counts)
    assert counts.pop(b"epoch").isdigit()
    assert counts == {b"enqueued": b"1"}


def test_the_same_call_again_adds_nothing_and_returns_the_same_entries(client, keys):
    """A call whose reply was lost may be repeated as it was."""
    jobs = [job(number) for number in range(300)]
    first = enqueue_jobs(client, keys, jobs)
    again = enqueue_jobs(client, keys, jobs)
    assert [one.entry_id for one in again] == [one.entry_id for one in first]
    assert {one.outcome for one in again} == {Outcome.KNOWN}
    exactly_once(client, keys, 300)


def test_a_known_id_with_other_content_is_a_conflict_and_stays(client, keys):
    """What is in the run is not overwritten; the other jobs of the call are added."""
    (first,) = enqueue_jobs(client, keys, [job(1)])
    results = enqueue_jobs(client, keys, [job(0), job(1, ground_truth="a cat"), job(2)])
    assert [one.outcome for one in results] == [Outcome.ADDED, Outcome.CONFLICT, Outcome.ADDED]
    assert results[1].entry_id == first.entry_id
    assert [decode(fields) for _, fields in client.xrange(keys.jobs)] == [job(1), job(0), job(2)]
    exactly_once(client, keys, 3)


def test_an_id_twice_in_one_call_is_added_once(client, keys):
    """The script sees what it has just added."""
    results = enqueue_jobs(client, keys, [job(1), job(1), job(1, question="Other?")])
    assert [one.outcome for one in results] == [Outcome.ADDED, Outcome.KNOWN, Outcome.CONFLICT]
    exactly_once(client, keys, 1)


def test_an_acknowledged_question_stays_known(client, keys):
    """Entries go when they are done; enqueueing the file again does not bring them back."""
    (first,) = enqueue_jobs(client, keys, [job(1)])
    client.xdel(keys.jobs, first.entry_id)
    (again,) = enqueue_jobs(client, keys, [job(1)])
    assert again == (Outcome.KNOWN, first.entry_id)
    assert client.xlen(keys.jobs) == 0


def test_no_jobs_are_no_call(keys):
    """An empty chunk does not need the server."""
    assert enqueue_jobs(redis.Redis(port=1), keys, []) == []


def test_two_producers_at_once_add_each_question_once(server, client, keys):
    """The script is one step on the server: two producers with one file share the work."""
    jobs = [job(number) for number in range(1000)]
    outcomes: list[Outcome] = []

    def produce() -> None:
        with redis.Redis.from_url(server.url) as mine:
            for start in range(0, 1000, 50):
                results = enqueue_jobs(mine, keys, jobs[start : start + 50])
                outcomes.extend(one.outcome for one in results)

    threads = [threading.Thread(target=produce) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [Outcome.ADDED] * 1000 + [Outcome.KNOWN] * 1000
    exactly_once(client, keys, 1000)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    records=st.lists(
        st.tuples(TEXT.filter(str.strip), TEXT, st.dictionaries(TEXT, TEXT, max_size=2)),
        min_size=1,
        max_size=4,
    ),
    escaped=st.booleans(),
)
def test_text_survives_from_the_file_to_the_worker(client, keys, tmp_path, records, escaped):
    """JSONL, stream, decode: what a worker gets is what the file said, to the code point."""
    client.delete(keys.jobs, keys.known, keys.counts)
    path = tmp_path / "d.jsonl"
    expected = [
        {
            "question_id": f"q{number}",
            "image": "a.jpg",
            "question": question,
            "ground_truth": truth,
            "metadata": metadata,
            "image_data": None,
        }
        for number, (question, truth, metadata) in enumerate(records)
    ]
    said = [{name: one[name] for name in one.keys() - {"image_data"}} for one in expected]
    lines = [json.dumps(one, ensure_ascii=escaped) for one in said]
    path.write_bytes("\n".join(lines).encode())
    assert enqueue_dataset(Dataset(path), keys, client).ok
    stored = [decode(fields).model_dump() for _, fields in client.xrange(keys.jobs)]
    assert stored == expected


def test_the_group_reads_from_the_first_entry(client, keys):
    """Made once, before or after the first job; what was enqueued earlier is not missed."""
    enqueue_jobs(client, keys, [job(1)])
    create_group(client, keys)
    create_group(client, keys)
    ((_, entries),) = client.xreadgroup(GROUP, "w", {keys.jobs: ">"})
    assert len(entries) == 1


def test_a_refusal_for_memory_leaves_no_trace_of_the_call(own_server, keys):
    """Each refused chunk is absent as a whole: stream, known ids and counts agree."""
    with redis.Redis.from_url(own_server.url) as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
        added = 0

        def fill() -> None:
            nonlocal added
            for start in range(0, 100_000, 50):
                enqueue_jobs(client, keys, [job(start + one) for one in range(50)])
                added += 50

        with pytest.raises(redis.OutOfMemoryError):
            fill()
        exactly_once(client, keys, added)
        client.config_set("maxmemory", 0)


def test_a_full_server_is_waited_for_and_nothing_is_lost(own_server, keys):
    """Out of memory is back-pressure: said once, then enqueueing goes on by itself."""
    notes: list[str] = []
    with redis.Redis.from_url(own_server.url) as client, connect(own_server.url) as producing:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
        enqueuer = Enqueuer(producing, keys, note=notes.append)

        def produce() -> None:
            enqueuer.prepare()
            for start in range(0, 5000, 250):
                enqueuer.send([job(start + one) for one in range(250)])

        thread = threading.Thread(target=produce)
        thread.start()
        wait_until(lambda: notes)
        reached = client.xlen(keys.jobs)
        assert reached < 5000
        client.config_set("maxmemory", 0)
        thread.join()
        assert len(notes) == 1
        assert "out of memory" in notes[0]
        exactly_once(client, keys, 5000)


def test_the_backlog_is_never_longer_than_asked(client, keys):
    """`--max-backlog 100` waits for the consumer, says so, and still delivers everything."""
    notes: list[str] = []
    lengths: list[int] = []
    taken: list[bytes] = []
    enqueuer = Enqueuer(client, keys, max_backlog=100, note=notes.append)
    assert enqueuer.chunk_jobs <= 100
    enqueuer.prepare()

    def consume(with_client: redis.Redis) -> None:
        while len(taken) < 300:
            lengths.append(with_client.xlen(keys.jobs))
            read = with_client.xreadgroup(GROUP, "w", {keys.jobs: ">"}, count=60, block=200)
            for entry_id, _ in read[0][1] if read else []:
                taken.append(entry_id)
                with_client.xack(keys.jobs, GROUP, entry_id)
                with_client.xdel(keys.jobs, entry_id)

    enqueuer.send([job(number) for number in range(100)])
    with redis.Redis(connection_pool=client.connection_pool) as other:
        thread = threading.Thread(target=consume, args=(other,))
        thread.start()
        for start in (100, 200):
            enqueuer.send([job(start + one) for one in range(100)])
        thread.join()
    assert max(lengths) <= 100
    assert len(set(taken)) == 300
    assert len(notes) == 1
    assert "--max-backlog 100" in notes[0]


def test_a_restart_of_the_server_is_outlasted(own_server, keys):
    """The server goes away and comes back from its log: every question is there once."""
    notes: list[str] = []
    with connect(own_server.url) as client:
        enqueuer = Enqueuer(client, keys, note=notes.append)
        enqueuer.prepare()
        enqueuer.send([job(number) for number in range(250)])
        own_server.stop()
        thread = threading.Thread(
            target=lambda: enqueuer.send([job(number) for number in range(125, 375)])
        )
        thread.start()
        wait_until(lambda: notes)
        own_server.start()
        thread.join()
        exactly_once(client, keys, 375)
    assert len(notes) == 1
    assert "does not answer" in notes[0]


def test_a_server_that_stays_away_is_an_error(own_server, keys):
    """Patience ends: the error is raised, not waited for."""
    with connect(own_server.url) as client:
        own_server.stop()
        with pytest.raises(redis.ConnectionError):
            Enqueuer(client, keys, patience_s=0.0).send([job(1)])


def test_a_key_of_another_kind_is_an_error_at_once(client, keys):
    """What waiting cannot mend is not waited for, and nothing else is written."""
    client.set(keys.jobs, "mine")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        Enqueuer(client, keys).send([job(1)])
    assert client.exists(keys.known, keys.counts) == 0


def test_a_large_job_is_a_chunk_of_its_own(client, keys, tmp_path):
    """Calls are bounded in bytes as well as in jobs."""
    path = Path(tmp_path / "d.jsonl")
    with path.open("w") as file:
        for number in range(6):
            fields = job(number, question="x" * 700_000).model_dump()
            file.write(json.dumps(fields) + "\n")
    report = enqueue_dataset(Dataset(path), keys, client)
    assert (report.added, report.ok) == (6, True)
    exactly_once(client, keys, 6)
