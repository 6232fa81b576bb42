"""The whole queue against a model of it: any order of moves, lost replies and lost workers.

HALP_MODEL_EXAMPLES=5000 makes it a hunt: so many examples, other ones each time.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from queue_model import UNREAD, Entry, Hand, LostReplyError, QueueModel
from redis.backoff import NoBackoff
from redis.retry import Retry

from halp_producer import Job
from halp_producer.account import run_account
from halp_producer.activity import WorkerActivity
from halp_producer.balance import imbalances
from halp_producer.enqueue import enqueue_jobs
from halp_producer.keys import DELAYED, DONE, ENQUEUED, EPOCH, FAILED, FAILED_FOR, GROUP, RunKeys
from halp_producer.letters import dead_letters
from halp_producer.moves import cancel_all, cancel_jobs, drop_letters, retry_letters
from halp_producer.results import read_results
from halp_producer.status import UnknownRunError, read_run
from halp_store.features import Receipt, RowKey, StoredRow, _seal_receipt
from halp_worker.consumer import Consumer
from halp_worker.delivery import Delivery, row_key
from halp_worker.fates import Reason, Rejection
from halp_worker.heartbeat import Heartbeat
from halp_worker.retry import LONGEST_DELAY_MS

T = TypeVar("T")
Loss = tuple[int, bool] | None
"""The reply that is lost: after how many requests, and whether the request took effect."""

LEASE_MS = 3_600_000
"""Far above what a test takes: a lease is over when the test says so."""

OLD_MS = 10_000_000
"""Idle time of what the test makes old; above LONGEST_DELAY_MS + LEASE_MS too."""

WORKERS = 3

MOVES: dict[str, int] = {
    **{"enqueue": 10, "retry failed": 4, "drop failed": 2, "cancel": 3, "cancel all": 1},
    **{"read": 8, "work": 24, "begin": 5, "renew": 3, "renew all": 3, "beat": 6},
    **{"ack": 6, "fail": 4, "retry later": 6, "retry soon": 4, "release": 5, "offer": 6},
    **{"leases end": 8, "worker pauses": 8, "become due": 5, "due time lost": 2},
    **{"worker dies": 3, "hand is lost": 2, "flush": 1, "restart": 1},
}
"""What may happen, and how often: most of it is the life of jobs in hands."""

_runs = itertools.count()

workers = st.integers(0, WORKERS - 1)
picks = st.lists(st.integers(0, 5), min_size=1, max_size=3)
"""Which of the things at hand a rule takes, modulo how many there are."""

losses = st.sampled_from(
    [*[None] * 18, *((after, effect) for after in range(3) for effect in (True, False))]
)

questions = st.lists(
    st.tuples(st.integers(0, 29), st.sampled_from([0, 0, 0, 1])), min_size=1, max_size=4
)
"""Number and version of content."""


class LossyClient(redis.Redis):
    """Loses the reply of one request of the next operation, after or before it took effect."""

    lose: Loss = None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.lose is None or not self._counts(args):
            return super().execute_command(*args, **options)
        after, takes_effect = self.lose
        self.lose = (after - 1, takes_effect) if after else None
        if after:
            return super().execute_command(*args, **options)
        if takes_effect:
            super().execute_command(*args, **options)
        raise redis.ConnectionError("the reply is lost")

    def _counts(self, args: Sequence[Any]) -> bool:
        """Whether it is more than the first step of sending a script the server has not seen."""
        if args[0] == "EVALSHA":
            return bool(super().execute_command("SCRIPT EXISTS", args[1])[0])
        return args[0] != "SCRIPT LOAD"


def job_of(number: int, version: int) -> Job:
    return Job(
        question_id=f"q{number}", image="a.png", question=f"Version {version}?", ground_truth="yes"
    )


def proven(rows: Sequence[RowKey]) -> Receipt:
    return _seal_receipt(tuple(StoredRow(key, "seg", row, "") for row, key in enumerate(rows)))


def attempts_of(value: bytes) -> tuple[int, frozenset[str]]:
    """How often work was started, and the places that refused it."""
    started, _, rest = value.decode().partition(" ")
    return int(started), frozenset(filter(None, rest.partition(" ")[2].split()))


def pick(chosen: Sequence[int], things: Sequence[T]) -> list[T]:
    """Without repetition, in the order of the draw."""
    places = dict.fromkeys(one % len(things) for one in chosen) if things else ()
    return [things[one] for one in places]


class QueueMachine(RuleBasedStateMachine):
    """Each rule does the same to the queue and to the model, and compares what they answer."""

    server: ClassVar[Any]
    client: ClassVar[LossyClient]
    restarts_left: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.keys = RunKeys(f"model-{next(_runs)}")
        self.model = QueueModel()
        self.epoch: bytes | None = None
        self.names = itertools.count()
        self.scores = itertools.count(1)
        self.consumers: list[Consumer] = []
        self.hands: list[Hand] = []
        self.deliveries: list[dict[str, Delivery]] = []
        for at in range(WORKERS):
            self._hire(at, f"w{next(self.names)}")

    def _hire(self, at: int, name: str) -> None:
        place = f"place-{at}"
        consumer = Consumer(
            self.client,
            self.keys,
            name=name,
            lease_ms=LEASE_MS,
            place=place,
            sleep=lambda _: None,
        )
        self.consumers[at : at + 1] = [consumer]
        self.hands[at : at + 1] = [Hand(name, place)]
        self.deliveries[at : at + 1] = [{}]

    def _losing(self, loss: Loss, real: Callable[[], T], model: Callable[[], T]) -> tuple[T, T]:
        """Both with the same reply lost."""
        self.client.lose = self.model.lose = loss
        try:
            return real(), model()
        finally:
            self.client.lose = self.model.lose = None

    def _insist(self, loss: Loss, real: Callable[[], T]) -> tuple[T, bool]:
        """As a producer: once more after a lost reply. Also whether it may have run before."""
        self.client.lose = loss
        try:
            return real(), False
        except redis.ConnectionError:
            return real(), True
        finally:
            self.client.lose = None

    @rule(
        what=st.sampled_from([name for name, weight in MOVES.items() for _ in range(weight)]),
        at=workers,
        slots=st.integers(1, 5),
        chosen=picks,
        numbers=questions,
        loss=losses,
    )
    def move(
        self,
        what: str,
        at: int,
        slots: int,
        chosen: list[int],
        numbers: list[tuple[int, int]],
        loss: Loss,
    ) -> None:
        """One rule, since Hypothesis leaves some out of each example and most moves need others."""
        busy = self._busy(at)
        rows = self._rows(busy, chosen)
        moves: dict[str, Callable[[], object]] = {
            "enqueue": lambda: self.enqueue(numbers, loss),
            "retry failed": lambda: self.retry_failed(chosen, loss),
            "drop failed": lambda: self.drop_failed(chosen, loss),
            "cancel": lambda: self.cancel(chosen, numbers, loss),
            "cancel all": self.cancel_everything,
            "read": lambda: self.read(at, slots, loss),
            "work": lambda: self.work(at, slots, loss),
            "begin": lambda: self.begin(busy, pick(chosen, self._seen(busy)), loss),
            "renew": lambda: self.renew(busy, rows, loss),
            "renew all": lambda: self.renew_all(busy, loss),
            "beat": lambda: self.beat(at, loss),
            "ack": lambda: rows and self.ack(busy, rows, loss),
            "fail": lambda: self.fail(busy, rows[:1], loss),
            "retry later": lambda: self.retry(busy, rows[:1], False, loss),
            "retry soon": lambda: self.retry(busy, rows[:1], True, loss),
            "release": lambda: self.release(busy, rows, loss),
            "offer": lambda: self.offer(busy, rows[:1], loss),
            "leases end": lambda: self.leases_end(chosen),
            "worker pauses": lambda: self.worker_pauses(busy),
            "become due": lambda: self.become_due(chosen),
            "due time lost": lambda: self.due_time_lost(chosen[:1]),
            "worker dies": lambda: self.worker_dies(at, same_name=False),
            "hand is lost": lambda: self.worker_dies(at, same_name=True),
            "flush": self.flush,
            "restart": self.restart,
        }
        moves[what]()

    # -- producers -------------------------------------------------------------------------

    @initialize(numbers=questions)
    def start(self, numbers: list[tuple[int, int]]) -> None:
        self.enqueue(numbers, None)
        self.work(0, 2, None)

    def enqueue(self, numbers: list[tuple[int, int]], loss: Loss) -> None:
        """New ids, known ones, and known ones with other content."""
        jobs = [job_of(*one) for one in numbers]
        answers, was_repeated = self._insist(
            loss, lambda: enqueue_jobs(self.client, self.keys, jobs)
        )
        outcomes = self.model.enqueue(
            [row_key(job) for job in jobs], [answer.entry_id for answer in answers]
        )
        if not was_repeated:
            assert [answer.outcome for answer in answers] == outcomes
        epoch = self.client.hget(self.keys.counts, EPOCH)
        assert self.epoch in (None, epoch), "one life of the run, one epoch"
        self.epoch = epoch

    def _letters(self, chosen: list[int]) -> list[str]:
        return pick(chosen, [letter.letter_id for letter in self.model.letters])

    def retry_failed(self, chosen: list[int], loss: Loss) -> None:
        letters = self._letters(chosen)
        moves, was_repeated = self._insist(
            loss, lambda: retry_letters(self.client, self.keys, letters)
        )
        expected = self.model.retry_letters(letters, self._known_entry)
        assert was_repeated or moves == expected

    def _known_entry(self, question_id: str) -> str:
        return self.client.hget(self.keys.known, question_id).decode().partition(" ")[0]

    def drop_failed(self, chosen: list[int], loss: Loss) -> None:
        letters = self._letters(chosen)
        moves, was_repeated = self._insist(
            loss, lambda: drop_letters(self.client, self.keys, letters)
        )
        assert was_repeated or moves == self.model.drop_letters(letters)
        if was_repeated:
            self.model.drop_letters(letters)

    def cancel(self, chosen: list[int], numbers: list[tuple[int, int]], loss: Loss) -> None:
        """Also what is done, failed or was never there. Delayed ones first: they are few."""
        entries = [*self.model.owned(DELAYED), *self._held(), *self.model.owned("")]
        alive = [entry.key.question_id for entry in entries]
        ids = dict.fromkeys([*pick(chosen[:1], alive), f"q{numbers[0][0]}"])
        moves, was_repeated = self._insist(
            loss, lambda: cancel_jobs(self.client, self.keys, list(ids))
        )
        expected = self.model.cancel(list(ids))
        assert was_repeated or moves == expected

    def cancel_everything(self) -> None:
        cancelled = sum(cancel_all(self.client, self.keys))
        ids = [entry.key.question_id for entry in self.model.entries.values()]
        self.model.cancel(ids)
        assert cancelled == len(ids)

    # -- reading ---------------------------------------------------------------------------

    def read(self, at: int, slots: int, loss: Loss) -> None:
        """Which jobs come, in which order, and whom the new owner must fence."""
        consumer, hand = self.consumers[at], self.hands[at]
        got, expected = self._losing(
            loss, lambda: consumer.read(slots, 0), lambda: self.model.read(hand, slots)
        )
        assert [(one.entry_id, one.attempts) for one in got] == [
            (one.entry_id, one.attempts) for one in expected
        ]
        for one, wanted in zip(got, expected, strict=True):
            assert one.key == hand.holds[one.entry_id].key
            assert wanted.fence in ("", one.taken_from), "whoever was at work is named"
            self.deliveries[at].pop(one.entry_id, None)
            self.deliveries[at][one.entry_id] = one

    def work(self, at: int, slots: int, loss: Loss) -> None:
        """As the service does: what was read is begun."""
        before = set(self.hands[at].holds)
        self.read(at, slots, loss)
        seen = [one.entry_id for one in self._seen(at)]
        if fresh := [one for one, name in enumerate(seen) if name not in before]:
            self.begin(at, [self._seen(at)[one] for one in fresh], None)

    # -- holding ---------------------------------------------------------------------------

    def begin(self, at: int, asked: list[Delivery], loss: Loss) -> None:
        consumer, hand = self.consumers[at], self.hands[at]
        begun, expected = self._losing(
            loss,
            lambda: consumer.begin(asked),
            lambda: self.model.begin(hand, [one.entry_id for one in asked]),
        )
        assert [one.entry_id for one in begun.started] == expected
        assert begun.epoch == (self.epoch or b"").decode()
        for one in begun.started:
            started = [hold.started + 0 for hold in hand.holds.values() if hold.key == one.key]
            assert consumer.attempts(one.key) == max(started)

    def renew(self, at: int, rows: list[RowKey], loss: Loss) -> None:
        got, expected = self._losing(
            loss,
            lambda: self.consumers[at].renew(rows),
            lambda: self.model.renew(self.hands[at], rows),
        )
        assert got == expected

    def _rows(self, at: int, chosen: list[int]) -> list[RowKey]:
        """Of what this worker ever had: in hand, finished or lost."""
        return pick(chosen, list(dict.fromkeys(one.key for one in self._seen(at))))

    def _seen(self, at: int) -> list[Delivery]:
        """What it believes to hold first, then what it held; the newest first."""
        newest = list(reversed(self.deliveries[at].values()))
        return sorted(newest, key=lambda one: one.entry_id not in self.hands[at].holds)

    def _busy(self, at: int) -> int:
        """A worker that believes to hold something, or else held something."""
        busy = [one for one in range(WORKERS) if self.hands[one].holds]
        busy = busy or [one for one in range(WORKERS) if self.deliveries[one]]
        return busy[at % len(busy)] if busy else at

    def renew_all(self, at: int, loss: Loss) -> None:
        """What is in hand afterwards is ours; without an answer, nothing is known."""

        def real() -> bool:
            try:
                self.consumers[at].renew_all()
            except redis.ConnectionError:
                return False
            return True

        def model() -> bool:
            try:
                self.model.renew_all(self.hands[at])
            except LostReplyError:
                return False
            return True

        got, expected = self._losing(loss, real, model)
        assert got == expected
        if got:
            owned = {entry.entry_id for entry in self.model.owned(self.hands[at].name)}
            assert set(self.consumers[at]._hand.entries()) <= owned

    def beat(self, at: int, loss: Loss) -> None:
        """Everybody else is taken for gone; who holds anything is not dropped, nor by leaving."""
        self.consumers[at].leave()
        consumer = self.consumers[at]
        heartbeat = Heartbeat(
            self.client,
            self.keys,
            renewals=[consumer.renew_all],
            describe=lambda now_ms: WorkerActivity(
                **dict.fromkeys(("host", "device", "model", "state"), "?"),
                **{"worker": consumer.name, "pid": 1, "started_ms": now_ms, "seen_ms": now_ms},
                place=self.hands[at].place,
            ),
            lease_seconds=1,
            forget_after_seconds=-1,
        )
        self._losing(loss, heartbeat._beat, lambda: self.model.beat(self.hands[at]))

    # -- finishing -------------------------------------------------------------------------

    def ack(self, at: int, rows: list[RowKey], loss: Loss) -> None:
        got, expected = self._losing(
            loss,
            lambda: self.consumers[at].ack(proven(rows)),
            lambda: self.model.ack(self.hands[at], rows),
        )
        assert got == expected

    def fail(self, at: int, rows: list[RowKey], loss: Loss) -> None:
        for row in rows:
            self._fail(at, row, loss)

    def _fail(self, at: int, row: RowKey, loss: Loss) -> None:
        got, expected = self._losing(
            loss,
            lambda: self.consumers[at].fail(row, Rejection(Reason.NOT_FINITE, "?")),
            lambda: self.model.fail(self.hands[at], row, Reason.NOT_FINITE),
        )
        assert got == expected

    def retry(self, at: int, rows: list[RowKey], is_due: bool, loss: Loss) -> None:
        delay_ms = 0 if is_due else LONGEST_DELAY_MS
        self._give_back(
            lambda: sum(self.consumers[at].retry(row, delay_ms) for row in rows),
            lambda: self.model.give_back(self.hands[at], rows, is_due=is_due, started=True),
            *(delay_ms, loss),
        )

    def release(self, at: int, rows: list[RowKey], loss: Loss) -> None:
        self._give_back(
            lambda: self.consumers[at].release(rows),
            lambda: self.model.give_back(self.hands[at], rows, is_due=True, started=False),
            *(0, loss),
        )

    def offer(self, at: int, rows: list[RowKey], loss: Loss) -> None:
        """What one place refuses is for the others."""
        for row in rows:
            got, expected = self._losing(
                loss,
                lambda row=row: self.consumers[at].offer(row),
                lambda row=row: self.model.offer(self.hands[at], row),
            )
            assert got == expected

    def _give_back(
        self,
        real: Callable[[], int],
        model: Callable[[], int],
        delay_ms: int,
        loss: Loss,
    ) -> None:
        before = self._now_ms()
        got, expected = self._losing(loss, real, model)
        assert got == expected
        for entry in self.model.owned(DELAYED):
            if entry.due == UNREAD:
                score = self.client.zscore(self.keys.delayed, entry.entry_id)
                assert score is not None, "a delayed job has a due time"
                earliest, latest = (before, self._now_ms()) if delay_ms else (0, 0)
                assert earliest + delay_ms <= score <= latest + delay_ms
                entry.due = score

    def _now_ms(self) -> int:
        seconds, micros = self.client.time()
        return seconds * 1000 + micros // 1000

    # -- what happens to a fleet -----------------------------------------------------------

    def _held(self) -> list[Entry]:
        return [one for one in self.model.entries.values() if one.owner not in ("", DELAYED)]

    def _age(self, entry: Entry, idle_ms: int = OLD_MS) -> None:
        self.client.xclaim(
            *(self.keys.jobs, GROUP, entry.owner, 0, [entry.entry_id]), idle=idle_ms, justid=True
        )
        entry.is_old = entry.is_old or idle_ms >= OLD_MS

    def leases_end(self, chosen: list[int]) -> None:
        for entry in pick(chosen, self._held()):
            self._age(entry)

    def worker_pauses(self, at: int) -> None:
        """Long enough for all of its leases to end. A delay may take longer than a lease."""
        for entry in self.model.owned(self.hands[self._busy(at)].name):
            self._age(entry)
        for entry in self.model.owned(DELAYED):
            if not entry.is_old:
                self._age(entry, LEASE_MS + 60_000)

    def become_due(self, chosen: list[int]) -> None:
        for entry in pick(
            chosen, [one for one in self.model.owned(DELAYED) if one.due is not None]
        ):
            entry.due, entry.is_due = float(next(self.scores)), True
            self.client.zadd(self.keys.delayed, {entry.entry_id: entry.due})

    def due_time_lost(self, chosen: list[int]) -> None:
        """Something else removed it from the sorted set: it is found by its age."""
        for entry in pick(chosen, self.model.owned(DELAYED)):
            self.client.zrem(self.keys.delayed, entry.entry_id)
            entry.due, entry.is_due = None, False
            self._age(entry)

    def worker_dies(self, at: int, *, same_name: bool) -> None:
        self._hire(at, self.hands[at].name if same_name else f"w{next(self.names)}")

    def flush(self) -> None:
        """The server forgets everything; workers still believe to hold what they held."""
        self.client.flushall()
        time.sleep(0.002)  # so that no entry gets the id of an old one
        self.model.forget()
        self.epoch = None

    def restart(self) -> None:
        if not self.restarts_left:
            return
        self.restarts_left -= 1
        self.server.stop()
        self.server.start()
        self.client.connection_pool.disconnect()

    # -- what holds at every instant -------------------------------------------------------

    @invariant()
    def the_server_has_what_the_model_has(self) -> None:
        entries, letters = self.model.entries, self.model.letters
        pipe = self.client.pipeline()
        pipe.xrange(self.keys.jobs)
        pipe.zrange(self.keys.delayed, 0, -1, withscores=True)
        pipe.hgetall(self.keys.attempts)
        pipe.hgetall(self.keys.known)
        pipe.hgetall(self.keys.counts)
        pipe.hkeys(self.keys.workers)
        stream, delayed, attempts, known, counts, beats = pipe.execute()
        assert [one.decode() for one, _ in stream] == list(entries)
        assert {one.decode(): due for one, due in delayed} == {
            one.entry_id: one.due for one in entries.values() if one.due is not None
        }
        assert {one.decode(): attempts_of(value) for one, value in attempts.items()} == {
            one.entry_id: (one.attempts, one.refused)
            for one in entries.values()
            if one.attempts or one.refused
        }
        assert {one.decode(): tuple(value.decode().split()) for one, value in known.items()} == (
            self.model.known
        )
        numbers = {name.decode(): int(value) for name, value in counts.items()}
        reasons = Counter(f"{FAILED_FOR}{letter.reason}" for letter in letters)
        assert {one: n for one, n in numbers.items() if one.startswith(FAILED_FOR)} == reasons
        assert numbers.get(ENQUEUED, 0) == len(self.model.known)
        assert numbers.get(DONE, 0) == len(self.model.done)
        assert numbers.get(FAILED, 0) == len(letters)
        assert {one.decode() for one in beats} == set(self.model.beats)

    @invariant()
    def every_job_is_pending_for_its_owner(self) -> None:
        pending = (
            self.client.xpending_range(self.keys.jobs, GROUP, "-", "+", 1000)
            if self.model.has_group
            else []
        )
        assert {one["message_id"].decode(): one["consumer"].decode() for one in pending} == {
            one.entry_id: one.owner for one in self.model.entries.values() if one.owner
        }
        for one in pending:
            is_old = one["time_since_delivered"] >= OLD_MS
            assert is_old == self.model.entries[one["message_id"].decode()].is_old

    @invariant()
    def the_letters_say_why(self) -> None:
        found = list(dead_letters(self.client, self.keys))
        assert [(one.question_id, one.reason, one.attempts, one.worker) for one in found] == [
            (one.key.question_id, one.reason, one.attempts, one.worker)
            for one in self.model.letters
        ]
        for one, letter in zip(found, self.model.letters, strict=True):
            letter.letter_id = one.entry_id

    @invariant()
    def a_message_is_there_for_each_job_that_ended_and_for_no_other(self) -> None:
        found = read_results(self.client, self.keys).results
        assert [(one.question_id, one.reason) for one in found] == self.model.ended

    @invariant()
    def the_status_adds_up(self) -> None:
        model = self.model
        try:
            status, books = read_run(self.client, self.keys)
        except UnknownRunError:
            assert not model.has_stream
            assert not model.beats
            return
        assert status.waiting == len(model.owned(""))
        assert status.delayed == len(model.owned(DELAYED))
        held = {one.worker: one.in_flight for one in status.workers if one.in_flight}
        assert held == model.holders()
        assert status.in_flight == sum(held.values())
        assert (status.done, status.failed) == (len(model.done), len(model.letters))
        assert status.failed_by_reason == Counter(letter.reason for letter in model.letters)
        assert status.enqueued == (
            status.waiting + status.delayed + status.in_flight + status.done + status.failed
        )
        orphans = [one for one in model.owned(DELAYED) if one.due is None]
        assert len(imbalances(books)) == bool(orphans)

    @invariant()
    def nobody_believes_to_hold_more_than_the_model_says(self) -> None:
        for consumer, hand in zip(self.consumers, self.hands, strict=True):
            assert list(consumer._hand.entries()) == list(hand.holds)

    @invariant()
    def no_id_is_in_two_places(self) -> None:
        alive = [one.key.question_id for one in self.model.entries.values()]
        failed = [one.key.question_id for one in self.model.letters]
        places = alive + failed + self.model.done
        assert sorted(places) == sorted(self.model.known)

    # -- the end ---------------------------------------------------------------------------

    def teardown(self) -> None:
        """A last worker drains everything; those before it come late and change nothing."""
        for entry in self.model.owned(DELAYED):
            self.client.zadd(self.keys.delayed, {entry.entry_id: 1})  # also what was offered
        for entry in self._held():
            self._age(entry)
        wanted = {one.key for one in self.model.entries.values()}
        last = Consumer(self.client, self.keys, name="last", lease_ms=LEASE_MS)
        drained: list[RowKey] = []
        while deliveries := last.read(4, 0):
            started = last.begin(deliveries).started
            assert started == deliveries
            drained += [one.key for one in started]
            assert last.ack(proven([one.key for one in started])) == len(started)
        assert sorted(drained) == sorted(wanted)
        assert last.remaining() == 0
        self.model.done += [key.question_id for key in drained]
        for consumer, seen in zip(self.consumers, self.deliveries, strict=True):
            for one in seen.values():
                consumer.fail(one.key, Rejection(Reason.NOT_FINITE, "late"))
                assert one.key not in consumer.renew([one.key])
        if self.model.known:
            account = run_account(self.client, self.keys)
            done = set(account.known) - set(account.failed) - account.queued
            assert account.queued == set()
            assert sorted(done) == sorted(self.model.done)
            assert sorted(account.failed) == sorted(
                one.key.question_id for one in self.model.letters
            )
        self.client.delete(*self.client.keys(f"halp:{{{self.keys.run}}}:*") or ["none"])


@pytest.fixture(scope="module")
def own_server(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that may be flushed and restarted."""
    one = type(server)(server.binary, tmp_path_factory.mktemp("server"))
    one.start()
    yield one
    one.stop()


@pytest.fixture
def machine(own_server: Any) -> Iterator[QueueMachine]:
    """For moves in an order that chance seldom finds; each is compared with the model."""
    with lossy_client(own_server) as client:
        QueueMachine.server, QueueMachine.client = own_server, client
        one = QueueMachine()
        yield one
        one.teardown()


def lossy_client(server: Any) -> LossyClient:
    return LossyClient.from_url(server.url, retry=Retry(NoBackoff(), 0))


def test_who_was_at_work_is_named_however_many_hands_a_job_went_through(machine):
    """Whoever has it next fences that worker, not the one in between, which never began."""
    machine.enqueue([(0, 0)], None)
    machine.work(0, 1, None)
    machine.worker_pauses(0)
    machine.read(1, 1, None)
    machine.leases_end([0])
    machine.read(2, 1, None)
    assert [one.taken_from for one in machine.deliveries[2].values()] == ["w0"]


def test_who_was_at_work_is_named_though_the_reply_was_lost(machine):
    """The job is on our own list then, as if nobody else had ever had it."""
    machine.read(1, 1, None)
    machine.enqueue([(0, 0)], None)
    machine.work(0, 1, None)
    machine.worker_pauses(0)
    machine.read(1, 1, (0, True))
    assert machine.deliveries[1] == {}
    machine.read(1, 1, None)
    assert [one.taken_from for one in machine.deliveries[1].values()] == ["w0"]


def test_a_job_that_another_worked_on_in_between_is_delivered_anew(machine):
    """A worker that slept through its loss must not take it for what it has in hand."""
    machine.enqueue([(0, 0)], None)
    machine.work(0, 1, None)
    machine.worker_pauses(0)
    machine.work(1, 1, None)
    machine.worker_pauses(1)
    machine.read(0, 1, None)
    (again,) = machine.deliveries[0].values()
    assert (again.attempts, again.taken_from) == (2, "w1")


def test_an_old_delivery_does_not_turn_attempts_back(machine):
    """The number is that of the newest delivery in hand."""
    machine.enqueue([(0, 0)], None)
    machine.read(0, 1, None)
    old = list(machine.deliveries[0].values())
    machine.leases_end([0])
    machine.work(1, 1, None)
    machine.worker_pauses(1)
    machine.read(0, 1, None)
    machine.begin(0, old, None)
    machine.the_server_has_what_the_model_has()
    assert machine.consumers[0].attempts(old[0].key) == 2


def test_what_is_not_in_hand_is_not_begun(machine):
    """It may be ours through a reply that was lost: then it comes once more, and is begun then."""
    machine.enqueue([(0, 0)], None)
    machine.read(0, 1, None)
    machine.read(0, 1, None)
    old = list(machine.deliveries[0].values())
    machine.leases_end([0])
    machine.work(1, 1, None)
    machine.renew_all(0, None)
    machine.leases_end([0])
    machine.read(0, 1, (0, True))
    machine.begin(0, old, None)
    machine.the_server_has_what_the_model_has()
    machine.read(0, 1, None)


def play(machine: type[QueueMachine], server: Any, examples: int) -> None:
    hunt = int(os.environ.get("HALP_MODEL_EXAMPLES", "0"))
    with lossy_client(server) as client:
        machine.server, machine.client = server, client
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=hunt or examples,
                stateful_step_count=40,
                derandomize=not hunt,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_the_queue_does_what_its_model_does(own_server):
    """Whatever happens in whatever order, each job is in one place and has one owner."""
    play(QueueMachine, own_server, 150)


class RestartedQueueMachine(QueueMachine):
    restarts_left = 2


def test_a_restarted_server_goes_on_where_it_was(own_server):
    """With its append-only file, nothing but connections is lost."""
    play(RestartedQueueMachine, own_server, 4)
