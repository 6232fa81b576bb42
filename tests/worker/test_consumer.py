"""The consumer on real servers: what it reads first, and what it may finish."""

from __future__ import annotations

import threading

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from halp_producer.keys import GROUP
from halp_producer.results import MAX_ANSWER_BYTES, RESULTS_KEPT, Fate, Result, read_results
from halp_producer.server import connect_exact
from halp_store.features import Receipt, StoredRow, _seal_receipt
from halp_worker import consumer as consumer_module
from halp_worker.consumer import Consumer
from halp_worker.delivery import row_key
from halp_worker.fates import Reason, Rejection

from .conftest import make_job


@pytest.fixture
def member(server, client, keys):
    """`member(name)`: a consumer of the run with connections of its own."""
    made = []

    def make(name="w1", lease_ms=60_000):
        connection = connect_exact(server.url)
        made.append(connection)
        return Consumer(connection, keys, name=name, lease_ms=lease_ms, sleep=lambda seconds: None)

    yield make
    for connection in made:
        connection.close()


def proven(*jobs):
    """A receipt as the writer would make it."""
    return _seal_receipt(
        tuple(StoredRow(row_key(job), "seg", row, f"Yes {row}.") for row, job in enumerate(jobs))
    )


def counts(client, keys):
    return {name.decode(): int(value) for name, value in client.hgetall(keys.counts).items()}


def ids(deliveries):
    return [delivery.job.question_id for delivery in deliveries]


def test_jobs_enqueued_before_the_first_worker_are_read(member, enqueue):
    """The group starts at 0."""
    enqueue(make_job(1), make_job(2))
    assert ids(member().read(10, 0)) == ["q1", "q2"]


def test_only_free_slots_are_filled(member, enqueue):
    """What a worker cannot hold stays for others."""
    enqueue(*(make_job(n) for n in range(5)))
    one = member()
    assert len(one.read(2, 0)) == 2
    assert one.read(0, 0) == []
    assert one.in_hand == 2
    assert len(member("w2").read(10, 0)) == 3


def test_an_acknowledged_job_is_gone_and_counted(member, enqueue, client, keys):
    """Acknowledge and delete: the stream's length is what is left."""
    enqueue(make_job(1), make_job(2))
    one = member()
    one.read(10, 0)
    assert one.ack(proven(make_job(1))) == 1
    assert client.xlen(keys.jobs) == 1
    assert counts(client, keys)["done"] == 1
    assert one.in_hand == 1
    assert one.remaining() == 1


def test_ack_takes_nothing_but_a_receipt(member):
    """And nobody but the store's writer makes one."""
    with pytest.raises(TypeError, match="committed write"):
        Receipt(stored=(StoredRow(row_key(make_job(1)), "seg", 0, "Yes."),))
    with pytest.raises(AttributeError):
        member().ack([row_key(make_job(1))])


def test_a_receipt_for_other_content_acknowledges_nothing(member, enqueue, client, keys):
    """The row that is proven must be this job's, not only its id's."""
    enqueue(make_job(1))
    one = member()
    one.read(10, 0)
    assert one.ack(proven(make_job(1, question="Another?"))) == 0
    assert client.xlen(keys.jobs) == 1


def test_jobs_a_lost_reply_left_behind_come_first(member, enqueue):
    """Own pending entries (`0`) before new ones (`>`): else they would be stranded."""
    enqueue(make_job(1), make_job(2))
    member("w1").read(1, 0)  # this reply is lost with its consumer
    again = member("w1")
    assert ids(again.read(10, 0)) == ["q1"]
    assert ids(again.read(10, 0)) == ["q2"]


def test_a_reply_that_is_lost_in_the_middle_of_work_comes_back(member, enqueue, monkeypatch):
    """The server has handed the jobs out, the worker never saw them: its own list has them."""
    enqueue(make_job(1))
    one = member()
    assert ids(one.read(1, 0)) == ["q1"]
    assert one.read(1, 0) == [], "its own list has been read to the end"
    enqueue(make_job(2), make_job(3))
    with monkeypatch.context() as patch:
        deliver = one._take

        def lose(**arguments):
            deliver(**arguments)
            raise redis.ConnectionError("the reply is lost")

        patch.setattr(one, "_take", lose)
        assert one.read(1, 0) == []
    assert ids(one.read(5, 0)) == ["q2"], "before anything new, and without what is in hand"
    assert ids(one.read(5, 0)) == ["q3"]
    assert one.in_hand == 3


def test_own_pending_jobs_are_read_in_pages_and_never_twice(member, enqueue):
    """More of them than slots: a cursor walks the list, what is in hand is passed over."""
    enqueue(*(make_job(n) for n in range(7)))
    member("w1").read(7, 0)
    again = member("w1")
    seen = [name for _ in range(6) for name in ids(again.read(2, 0))]
    assert sorted(seen) == [f"q{n}" for n in range(7)]


def test_a_dead_workers_jobs_are_taken_over_after_the_lease(
    member, enqueue, client, keys, wait_until
):
    """And acknowledged by the one who has them now."""
    enqueue(make_job(1))
    member("dead").read(10, 0)
    heir = member("heir", lease_ms=1)
    wait_until(lambda: ids(heir.read(10, 0)) == ["q1"])
    assert heir.ack(proven(make_job(1))) == 1
    assert client.xlen(keys.jobs) == 0


def test_a_job_within_its_lease_is_left_alone(member, enqueue):
    """Nothing is reclaimed early."""
    enqueue(make_job(1))
    member("busy").read(10, 0)
    assert member("other").read(10, 0) == []


def test_renewal_keeps_a_job_and_does_not_count_as_a_delivery(member, enqueue, client, keys):
    """XCLAIM JUSTID: idle time back to zero, delivery count untouched."""
    enqueue(make_job(1))
    one = member("w1", lease_ms=600_000)
    ((entry_id, _),) = client.xrange(keys.jobs)
    one.read(10, 0)
    client.xclaim(keys.jobs, GROUP, "w1", 0, [entry_id], idle=300_000, justid=True)
    one.renew_all()
    entry = pending(client, keys)
    assert entry["time_since_delivered"] < 200_000
    assert entry["times_delivered"] == 1


def test_a_lease_that_was_lost_is_neither_renewed_nor_acknowledged(
    member, enqueue, client, keys, caplog, wait_until
):
    """The new owner's entry is not touched by the late worker."""
    enqueue(make_job(1))
    late = member("late")
    late.read(10, 0)
    heir = member("heir", lease_ms=1)
    wait_until(lambda: ids(heir.read(10, 0)) == ["q1"])
    assert late.ack(proven(make_job(1))) == 0
    assert pending(client, keys)["consumer"] == b"heir"
    assert client.xlen(keys.jobs) == 1
    assert "lease of" in caplog.text
    assert heir.ack(proven(make_job(1))) == 1
    assert counts(client, keys)["done"] == 1


def test_what_renewal_finds_lost_leaves_the_hand(member, enqueue, wait_until):
    """Renewing never steals a job back."""
    enqueue(make_job(1))
    late = member("late")
    late.read(10, 0)
    heir = member("heir", lease_ms=1)
    wait_until(lambda: ids(heir.read(10, 0)) == ["q1"])
    late.renew_all()
    assert late.in_hand == 0
    assert heir.in_hand == 1


def test_what_cannot_be_finished_is_renewed_however_long_it_is_held(server, client, keys, enqueue):
    """While the store is away, no row in hand is another worker's after --max-job-seconds."""
    enqueue(make_job(1))
    now = [0.0]
    with connect_exact(server.url) as connection:
        consumer = Consumer(
            connection, keys, name="w1", lease_ms=1, max_job_seconds=10, clock=lambda: now[0]
        )
        consumer.read(10, 0)
        now[0] = 11.0
        consumer.keeps_all = True
        consumer.renew_all()
        assert consumer.in_hand == 1
        consumer.keeps_all = False
        consumer.renew_all()
        assert consumer.in_hand == 0


def test_a_rejected_job_moves_to_the_failed_stream_with_its_reason(member, enqueue, client, keys):
    """All of the job, and why, who and when."""
    enqueue(make_job(1), make_job(2))
    one = member()
    one.read(10, 0)
    rejection = Rejection(Reason.IMAGE_MISSING, "image not found: a.png")
    assert one.fail(row_key(make_job(1)), rejection) == 1
    ((_, letter),) = client.xrange(keys.failed)
    assert letter[b"question_id"] == b"q1"
    assert letter[b"reason"] == b"image_missing"
    assert letter[b"error"] == b"image not found: a.png"
    assert letter[b"worker"] == b"w1"
    assert int(letter[b"failed_ms"]) > 1_600_000_000_000
    assert client.xlen(keys.jobs) == 1
    assert counts(client, keys)["failed"] == 1


def test_what_ended_a_job_says_so_on_the_results_stream(member, enqueue, client, keys):
    """In the same step: where the row is and what was answered, or why there is none."""
    enqueue(make_job(1), make_job(2), make_job(3))
    one = member()
    one.read(10, 0)
    one.ack(proven(make_job(2), make_job(1)))
    one.fail(row_key(make_job(3)), Rejection(Reason.IMAGE_MISSING, "not there: " + "é" * 4000))
    first, second, third = read_results(client, keys).results
    stored = Result(question_id="q1", fate=Fate.STORED, answer="Yes 1.", segment="seg", row=1)
    assert first == stored
    assert second == Result(
        question_id="q2", fate=Fate.STORED, answer="Yes 0.", segment="seg", row=0
    )
    assert (third.question_id, third.fate, third.reason) == ("q3", Fate.FAILED, "image_missing")
    assert third.error.startswith("not there: ééé")
    assert third.error.endswith("é...")
    assert len(third.error.encode()) <= MAX_ANSWER_BYTES
    assert (third.answer, third.segment, third.row) == (None, None, None)


def test_the_message_has_the_risk_and_the_finish_reason_of_the_row(member, enqueue, client, keys):
    """What the receipt knows of them."""
    enqueue(make_job(1))
    one = member()
    one.read(10, 0)
    row = StoredRow(row_key(make_job(1)), "seg", 0, "", finish_reason="abstained", risk=0.75)
    one.ack(_seal_receipt((row,)))
    (found,) = read_results(client, keys).results
    assert (found.answer, found.finish_reason, found.risk) == ("", "abstained", 0.75)


def test_nothing_is_said_of_an_entry_that_was_no_longer_ours(
    member, enqueue, client, keys, wait_until
):
    """Neither by an acknowledgement nor by a failure that came late, nor twice after a lost
    reply."""
    enqueue(make_job(1))
    late = member("late")
    late.read(10, 0)
    heir = member("heir", lease_ms=1)
    wait_until(lambda: ids(heir.read(10, 0)) == ["q1"])
    late.ack(proven(make_job(1)))
    assert read_results(client, keys).results == []
    acknowledge, replies = heir._ack, iter([redis.ConnectionError("the reply is lost")])

    def lose(**arguments):
        reply = acknowledge(**arguments)
        if (lost := next(replies, None)) is not None:
            raise lost
        return reply

    heir._ack = lose
    assert heir.ack(proven(make_job(1))) == 1
    assert next(replies, "both were sent") == "both were sent"
    assert [one.question_id for one in read_results(client, keys).results] == ["q1"]


def test_the_results_stream_is_bounded_on_a_full_server_too(member, enqueue, client, keys):
    """The oldest messages go, a node of the stream at a time; jobs end as ever."""
    pipe = client.pipeline()
    for number in range(RESULTS_KEPT + 500):
        pipe.xadd(keys.results, {"question_id": f"old{number}", "fate": "stored"})
    pipe.execute()
    enqueue(make_job(1), make_job(2))
    one = member()
    one.read(10, 0)
    client.config_set("maxmemory", 1)
    try:
        assert one.ack(proven(make_job(1), make_job(2))) == 2
    finally:
        client.config_set("maxmemory", 0)
    assert RESULTS_KEPT <= client.xlen(keys.results) <= RESULTS_KEPT + 100
    assert client.xrevrange(keys.results, count=1)[0][1][b"question_id"] == b"q2"


@pytest.mark.parametrize(
    "fields",
    [
        {"v": "99", "question_id": "x"},
        {"v": "1", "question_id": "x"},
        {"v": "1", "question_id": b"\xff", "image": "a", "question": "q", "ground_truth": ""},
        {"nonsense": "1"},
    ],
)
def test_an_entry_that_is_not_a_job_is_rejected_and_harms_no_neighbour(
    member, enqueue, client, keys, fields
):
    """Another version, missing fields, broken bytes."""
    enqueue(make_job(1))
    client.xadd(keys.jobs, fields)
    enqueue(make_job(2))
    assert ids(member().read(10, 0)) == ["q1", "q2"]
    ((_, letter),) = client.xrange(keys.failed)
    assert letter[b"reason"] == b"malformed"
    (said,) = read_results(client, keys).results
    assert (said.fate, said.reason) == (Fate.FAILED, "malformed")


def test_finishing_goes_on_when_the_server_is_full(member, enqueue, client, keys):
    """maxmemory with noeviction stops enqueueing, never reading, acknowledging or rejecting."""
    member("first").read(1, 0)
    enqueue(make_job(1), make_job(2))
    one = member()
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("x", "y")
        assert len(one.read(10, 0)) == 2
        assert one.ack(proven(make_job(1))) == 1
        assert one.fail(row_key(make_job(2)), Rejection(Reason.IMAGE_MISSING, "gone")) == 1
    finally:
        client.config_set("maxmemory", 0)
    found = counts(client, keys)
    del found["epoch"]
    assert found == {"enqueued": 2, "done": 1, "failed": 1, "failed:image_missing": 1}
    assert [one.fate for one in read_results(client, keys).results] == [Fate.STORED, Fate.FAILED]


def test_a_flushed_server_is_joined_again(member, enqueue, client, keys):
    """The stream and its group vanish; the next reads start them again."""
    enqueue(make_job(1))
    one = member()
    one.read(10, 0)
    client.delete(keys.jobs, keys.known, keys.counts)
    assert one.read(10, 0) == []
    assert one.ack(proven(make_job(1))) == 0, "nothing of ours is there to acknowledge"
    enqueue(make_job(1))
    found = [name for _ in range(4) for name in ids(one.read(10, 0))]
    assert found == ["q1"]


def test_a_server_that_is_away_is_waited_for(keys, caplog):
    """A read gives nothing and pauses, longer each time, up to a limit."""
    url = "redis://127.0.0.1:9/0"
    pauses = []
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as away:
        one = Consumer(away, keys, name="w", lease_ms=1000, sleep=pauses.append)
        for _ in range(8):
            assert one.read(1, 0) == []
    assert pauses == sorted(pauses)
    assert pauses[0] == consumer_module.FIRST_PAUSE_SECONDS
    assert pauses[-1] == consumer_module.LONGEST_PAUSE_SECONDS
    assert "server not available" in caplog.text


def test_a_blocked_read_wakes_up_for_a_new_job(member, enqueue):
    """Work that arrives while waiting is taken at once."""
    one = member()
    one.read(1, 0)
    timer = threading.Timer(0.02, enqueue, [make_job(1)])
    timer.start()
    assert ids(one.read(1, 20_000)) == ["q1"]
    timer.join()


def pending(client, keys):
    (entry,) = client.xpending_range(keys.jobs, GROUP, "-", "+", 10)
    return entry


@pytest.mark.parametrize("command", ["xpending", "xclaim", "time"])
def test_a_command_that_is_forbidden_is_no_lost_lease(server, keys, enqueue, client, command):
    """The worker stops with the name of the command; what it holds stays as it is."""
    enqueue(make_job(1))
    client.execute_command("ACL", "SETUSER", "u", "reset", "on", ">p", "~*", "+@all")
    try:
        with connect_exact(server.url.replace("//", "//u:p@")) as connection:
            one = Consumer(connection, keys, name="w1", lease_ms=60_000)
            (delivery,) = one.read(1, 0)
            client.execute_command("ACL", "SETUSER", "u", f"-{command}")
            with pytest.raises(redis.exceptions.NoPermissionError, match=command.upper()):
                one.retry(delivery.key, 1000)
            assert one.in_hand == 1
            client.execute_command("ACL", "SETUSER", "u", f"+{command}")
            assert one.retry(delivery.key, 1000) == 1
    finally:
        client.execute_command("ACL", "DELUSER", "u")
