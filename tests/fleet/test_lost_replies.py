"""A reply that is lost after its command took effect, each one of them: nothing is lost, doubled,
stranded or counted twice, and a lost reply is not taken for a lost lease."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import signal
import time

import pytest
from proxy import SCRIPTS, Loss, Proxy

from fleet import make_job
from halp_producer import enqueue as enqueue_module
from halp_producer import server as server_module
from halp_producer.balance import imbalances
from halp_producer.dataset import Dataset
from halp_producer.intake import enqueue_dataset
from halp_producer.keys import GROUP
from halp_producer.results import read_results
from halp_producer.status import read_run
from halp_worker import consumer as consumer_module

from .test_crash_points import assert_each_once

pytestmark = pytest.mark.slow

TROUBLE = {0: "POISON retry", 1: "POISON retry", 2: "POISON reject"}
JOBS = [make_job(number, TROUBLE.get(number)) for number in range(7)]
GOOD = [job for job in JOBS if not job.question.startswith("POISON")]

OPTIONS = (
    *("--until-empty", "--batch-size", "2", "--flush-rows", "2"),
    *("--max-attempts", "2", "--retry-ms", "20"),
)

LOSSES = {
    **dict.fromkeys(["HELLO", "CLIENT SETINFO", "CLIENT MAINT_NOTIFICATIONS"], 2),
    **dict.fromkeys(["PING", "INFO", "EXISTS", "XINFO GROUPS", "XGROUP CREATE", "OWN"], 1),
    **dict.fromkeys(["SCRIPT LOAD", "TAKE", "XREADGROUP", "BEGIN", "ACK", "FAIL", "DELAY"], 2),
    "BEAT": 2,
    "RENEW": 3,
    "XLEN": 3,
    **{"LEAVE": 1, "HGET": 1, "EVAL": 1},
}
"""Each command of a worker's life, and how many of its replies are lost, one in each run."""

LOST_TWICE = [
    *({name: (1, 2)} for name in ("TAKE", "XREADGROUP", "BEGIN", "RENEW", "ACK", "FAIL", "DELAY")),
    {"XREADGROUP": (1,), "OWN": (2, 3)},
    {"BEGIN": (1,), "ACK": (1,), "XREADGROUP": (2,), "DELAY": (2,), "FAIL": (2,), "LEAVE": (1,)},
]
"""The reply to the repetition is lost, too."""


@pytest.fixture
def proxy(fleet):
    """Between the workers and the server, which knows none of the scripts yet."""
    fleet.client.script_flush()
    with Proxy(fleet.url) as one:
        yield one


def work(fleet, proxy, *options, url="", is_waiting=False):
    """One worker, by way of the proxy, until nothing is left.

    is_waiting: the last jobs come in the reply to a read that blocks. It waits for the retries.
    """
    late = JOBS[-2:] if is_waiting else []
    fleet.enqueue(*JOBS[: len(JOBS) - len(late)])
    slowly = ("--retry-ms", "1000") if is_waiting else ()
    worker = fleet.start(*OPTIONS, *slowly, *options, url=url or proxy.url)
    while late and "XREADGROUP" not in proxy.asked:
        assert worker.is_alive, fleet.logs()
        time.sleep(0.005)
    fleet.enqueue(*late)
    assert worker.wait() == 0, fleet.logs()


def assert_balance(fleet):
    """All that the run keeps agrees; nothing is waiting, delayed or in flight."""
    status, books = read_run(fleet.client, fleet.keys)
    assert imbalances(books) == (), fleet.logs()
    assert (status.waiting, status.delayed, status.in_flight) == (0, 0, 0), fleet.logs()
    assert (books.due, books.attempts) == (0, 0)
    assert status.enqueued == status.done + status.failed


def assert_as_if_nothing_was_lost(fleet):
    """Rows, letters, attempts, counts on the server and in the worker's own account."""
    store = fleet.stored()
    assert sorted(store) == sorted(job.question_id for job in GOOD), fleet.logs()
    letters = {
        name: (letter["reason"], letter["attempts"]) for name, letter in fleet.letters().items()
    }
    assert letters == {
        "q0": ("url_failed", "2"),
        "q1": ("url_failed", "2"),
        "q2": ("image_missing", "1"),
    }, fleet.logs()
    assert fleet.client.xlen(fleet.keys.failed) == len(letters)
    status = fleet.status()
    assert (status.done, status.failed) == (len(GOOD), len(letters)), fleet.logs()
    assert_balance(fleet)
    said = read_results(fleet.client, fleet.keys).results
    assert sorted(one.question_id for one in said) == sorted(job.question_id for job in JOBS)
    log = fleet.logs()
    assert "was lost" not in log, log
    assert "Tally(done=4, failed=3, already_stored=0, retried=2, released=0," in log, log
    extracted = [line.partition(": ")[2] for line in log.splitlines() if "extracting" in line]
    assert sorted(" ".join(extracted).split()) == sorted(store), "nothing is computed twice"


# -- a worker ------------------------------------------------------------------------------------


def test_the_losses_below_are_of_every_command_a_worker_sends(fleet, proxy):
    """Without a loss, a run sends exactly those, and each often enough to lose so many."""
    work(fleet, proxy, is_waiting=True)
    assert_as_if_nothing_was_lost(fleet)
    seen = {name for name in proxy.seen if not name.endswith(" NOSCRIPT")}
    assert seen == set(LOSSES)
    for name, losses in LOSSES.items():
        assert proxy.seen.count(name) >= losses, name


def test_the_losses_below_are_of_every_script_and_of_every_command_of_the_consumer():
    """Read off the program: a script or a command that is added there has to be added here."""
    # OPEN only reads, and no job here is offered to another host.
    assert set(SCRIPTS) - {"ENQUEUE", "OPEN"} <= set(LOSSES)
    called = {
        call.func.attr
        for call in ast.walk(ast.parse(inspect.getsource(consumer_module)))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and ast.unparse(call.func.value) in ("client", "self._client")
    }
    commands = {name.replace("_", " ").upper() for name in called - {"register_script"}}
    assert {"XREADGROUP", "XLEN", "XINFO GROUPS"} <= commands
    assert commands <= set(LOSSES)


@pytest.mark.parametrize(
    ("name", "occurrence"),
    [(name, which + 1) for name, losses in LOSSES.items() for which in range(losses)],
)
def test_a_lost_reply_changes_nothing(fleet, proxy, name, occurrence):
    """The command took effect, the connection is gone: the same worker finishes the run."""
    proxy.lose({name: (occurrence,)})
    work(fleet, proxy, is_waiting=name == "XREADGROUP")
    assert proxy.lost == [name]
    assert_as_if_nothing_was_lost(fleet)


@pytest.mark.parametrize("plan", LOST_TWICE, ids=lambda plan: "-".join(plan))
def test_replies_that_are_lost_again_and_again_change_nothing(fleet, proxy, plan):
    """A script runs three times, and does what it does once."""
    proxy.lose(plan)
    work(fleet, proxy, is_waiting="XREADGROUP" in plan)
    assert len(proxy.lost) == sum(map(len, plan.values()))
    assert_as_if_nothing_was_lost(fleet)


def test_lost_answers_that_a_script_is_unknown_change_nothing(fleet, proxy):
    """Of each script: that command had no effect, but its client cannot know."""
    plan = {f"{script} NOSCRIPT": (1,) for script in SCRIPTS if script in LOSSES}
    proxy.lose(plan)
    work(fleet, proxy)
    assert sorted(proxy.lost) == sorted(plan)
    assert_as_if_nothing_was_lost(fleet)


def test_replies_that_never_come_end_with_the_timeout(fleet, proxy):
    """The connection stays open and says nothing: as a lost reply, only later."""
    plan = {name: (1,) for name in LOSSES if name in SCRIPTS or name == "XREADGROUP"}
    proxy.lose(plan, Loss.SILENCE)
    work(fleet, proxy, url=f"{proxy.url}?socket_timeout=0.7", is_waiting=True)
    assert sorted(proxy.lost) == sorted(plan)
    assert_as_if_nothing_was_lost(fleet)


# -- leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DELAY", "LEAVE", "ACK", "RENEW"])
def test_a_reply_that_is_lost_while_leaving_changes_nothing(fleet, proxy, wait_until, gate, name):
    """What was only fetched is another worker's at once, without an attempt counted; the batch in
    hand is stored; the group is left."""
    jobs = [make_job(number) for number in range(8)]
    fleet.enqueue(*jobs)
    leaving = fleet.start(*gate.options, "--batch-size", "2", url=proxy.url)
    wait_until(lambda: "extracting 2" in leaving.log.read_text())
    wait_until(lambda: fleet.status().in_flight == 6)
    proxy.lose({name: (1,)})
    leaving.signal(signal.SIGTERM)
    wait_until(lambda: fleet.status().delayed == 4)
    gate.open()
    assert leaving.wait() == 0, fleet.logs()
    assert proxy.lost == [name]
    status, books = read_run(fleet.client, fleet.keys)
    assert (status.done, status.delayed, status.in_flight) == (2, 4, 0), fleet.logs()
    assert books.attempts == 0
    assert "Tally(done=2, failed=0, already_stored=0, retried=0, released=4," in fleet.logs()
    names = {one["name"] for one in fleet.client.xinfo_consumers(fleet.keys.jobs, GROUP)}
    assert names == {b"(delayed)"}
    fleet.finish()
    assert_each_once(fleet, jobs)
    assert_balance(fleet)
    assert "was lost" not in fleet.logs()


# -- taking over ---------------------------------------------------------------------------------


@pytest.fixture
def zombie(fleet, wait_until):
    """It sleeps with a segment staged, just before it publishes it; its lease is over."""
    fleet.enqueue(*GOOD)
    one = fleet.start("--until-empty", "--flush-rows", "4", "--at", "publish:before:1:STOP")
    wait_until(lambda: one.is_stopped)
    wait_until(
        lambda: all(
            entry["time_since_delivered"] > 300
            for entry in fleet.client.xpending_range(fleet.keys.jobs, GROUP, "-", "+", 10)
        )
    )
    return one


def assert_it_wakes_in_vain(fleet, zombie):
    """What it staged is never published."""
    assert sorted(fleet.stored()) == sorted(job.question_id for job in GOOD), fleet.logs()
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() == 0, fleet.logs()
    assert_each_once(fleet, GOOD)
    assert_balance(fleet)


def test_a_takeover_whose_reply_is_lost_still_fences(fleet, proxy, zombie):
    """The jobs are found on the own list, and so is whom they were taken from."""
    proxy.lose({"TAKE": (1,)})
    heir = fleet.start("--until-empty", "--lease-seconds", "0.3", url=proxy.url)
    assert heir.wait() == 0, fleet.logs()
    assert proxy.lost == ["TAKE"]
    assert_it_wakes_in_vain(fleet, zombie)


def test_an_heir_that_dies_before_it_fences_leaves_that_to_the_next(fleet, zombie):
    """Whom jobs were taken from is known to the server until work on them starts again."""
    heir = fleet.start("--until-empty", "--lease-seconds", "0.3", "--at", "read:after:1:KILL")
    assert heir.wait() == -signal.SIGKILL
    fleet.finish()
    assert_it_wakes_in_vain(fleet, zombie)


# -- the producer --------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    """Thirty questions."""
    lines = [
        {"question_id": f"q{n}", "image": "a.png", "question": f"{n}?", "ground_truth": "yes"}
        for n in range(30)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Dataset(path)


@pytest.mark.parametrize("how", ["connect", "connect_exact"])
def test_every_reply_to_the_producer_may_be_lost(server, client, run, dataset, monkeypatch, how):
    """Each in turn, in a run of its own; then two in a row: every question once, in order."""
    monkeypatch.setattr(enqueue_module, "CHUNK_JOBS", 10)

    def enqueue(name, *numbers):
        client.script_flush()
        keys = enqueue_module.RunKeys(f"{run}-{name}")
        with Proxy(server.url) as proxy, getattr(server_module, how)(proxy.url) as through:
            proxy.lose_numbers(*numbers)
            before = len(proxy.seen)
            report = enqueue_dataset(dataset, keys, through, max_backlog=1000)
            assert len(proxy.lost) == len(numbers)
            seen = proxy.seen[before:]
        assert report.added + report.known == 30
        assert report.ok
        ids = [fields[b"question_id"].decode() for _, fields in client.xrange(keys.jobs)]
        assert ids == [f"q{n}" for n in range(30)]
        status, books = read_run(client, keys)
        assert imbalances(books) == ()
        assert (status.enqueued, status.waiting) == (30, 30)
        return seen

    seen = enqueue("whole")
    assert {"XGROUP CREATE", "XLEN", "ENQUEUE", "ENQUEUE NOSCRIPT", "SCRIPT LOAD"} <= set(seen)
    for number in range(1, len(seen) + 1):
        enqueue(f"without-{number}", number)
        enqueue(f"without-{number}-twice", number, number + 1)


def test_the_proxy_loses_the_reply_and_not_the_command(server, client, run):
    """The seam itself: the effect is there, the connection is not, and other replies arrive."""
    with Proxy(server.url) as proxy, server_module.connect_exact(proxy.url) as through:
        proxy.lose({"SET": (2,)})
        through.set(run, "1")
        with contextlib.suppress(server_module.redis.ConnectionError):
            through.set(run, "2")
            pytest.fail("the reply should have been lost")
        assert client.get(run) == through.get(run) == b"2"
        assert proxy.lost == ["SET"]
    client.delete(run)
