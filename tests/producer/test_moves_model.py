"""Every move in any order, each perhaps twice: a plain model says where each question must be."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from halp_producer.account import run_account
from halp_producer.keys import DELAYED, GROUP
from halp_producer.letters import dead_letters
from halp_producer.moves import cancel_all, cancel_jobs, drop_letters, retry_letters

STEPS = 150


class Model:
    """Question id -> its place, and the same done to a run on a server."""

    def __init__(self, bench, dice: random.Random) -> None:
        self.bench, self.dice = bench, dice
        self.place: dict[str, str] = {}
        self.fresh = 0

    def some(self, *places: str) -> list[str]:
        names = sorted(one for one, place in self.place.items() if place in places)
        return self.dice.sample(names, min(len(names), self.dice.randint(1, 4)))

    def move(self, names: list[str], place: str) -> None:
        self.place.update(dict.fromkeys(names, place))

    def enqueue(self) -> None:
        names = [f"q{self.fresh + number}" for number in range(self.dice.randint(1, 5))]
        self.fresh += len(names)
        self.bench.enqueue(*names)
        self.move(names, "queued")

    def take(self) -> None:
        if self.bench.numbers()[1]:
            self.bench.take(self.dice.randint(1, 3), self.dice.choice(["w1", "w2"]))

    def held(self) -> list[str]:
        """The ids of the entries in the hands of workers."""
        client, keys = self.bench.client, self.bench.keys
        pending = client.xpending_range(keys.jobs, GROUP, "-", "+", 100)
        return [
            one["message_id"].decode() for one in pending if one["consumer"] != DELAYED.encode()
        ]

    def work(self) -> None:
        client, keys = self.bench.client, self.bench.keys
        for entry in self.held()[: self.dice.randint(0, 3)]:
            ((_, fields),) = client.xrange(keys.jobs, entry, entry)
            name = fields[b"question_id"].decode()
            match self.dice.choice(["done", "failed", "delay"]):
                case "done":
                    self.bench.done(entry)
                    self.move([name], "done")
                case "failed":
                    self.bench.fail(entry, self.dice.choice(["image-missing", "malformed"]))
                    self.move([name], "failed")
                case "delay":
                    self.bench.delay(entry)

    def letters(self, names: list[str]) -> list[str]:
        found = dead_letters(self.bench.client, self.bench.keys)
        return [one.entry_id for one in found if one.question_id in names]

    def retry(self) -> None:
        names = self.some("failed")
        for letters in [self.letters(names)] * self.dice.randint(1, 2):
            retry_letters(self.bench.client, self.bench.keys, letters)
        self.move(names, "queued")

    def drop(self) -> None:
        names = self.some("failed")
        for letters in [self.letters(names)] * self.dice.randint(1, 2):
            drop_letters(self.bench.client, self.bench.keys, letters)
        for name in names:
            del self.place[name]

    def cancel(self) -> None:
        names = self.some("queued")
        for _ in range(self.dice.randint(1, 2)):
            cancel_jobs(self.bench.client, self.bench.keys, [*names, *self.some("done")])
        self.move(names, "failed")

    def cancel_all(self) -> None:
        if self.dice.random() < 0.1:
            list(cancel_all(self.bench.client, self.bench.keys))
            self.move([one for one, place in self.place.items() if place == "queued"], "failed")


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_moves_keeps_every_question_in_one_place(bench, client, keys, seed):
    """After each step the sum holds, and each question is where the model has it."""
    model = Model(bench, random.Random(seed))
    model.enqueue()
    for _ in range(STEPS):
        step = model.dice.choice(
            ["enqueue", "take", "take", "work", "work", "retry", "drop", "cancel", "cancel_all"]
        )
        getattr(model, step)()
        assert bench.problems() == (), step
        account = run_account(client, keys)
        expected = {
            place: {name for name, where in model.place.items() if where == place}
            for place in ("queued", "failed")
        }
        reasons = Counter(account.failed.values())
        assert bench.reasons() == reasons, step
        assert account.known.keys() == model.place.keys(), step
        assert (account.queued, set(account.failed)) == (expected["queued"], expected["failed"]), (
            step
        )
