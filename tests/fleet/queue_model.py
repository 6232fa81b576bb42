"""`QueueModel`: what the queue is to do, in plain Python. No server, no clock, no Lua.

Knows where each job is, whose lease is over, and what each worker believes to hold. A request
whose answer is lost is modelled too: it took effect or not, and the worker does not know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from halp_producer.enqueue import Outcome
from halp_producer.keys import DELAYED
from halp_producer.moves import CANCELLED, Move
from halp_store.features import RowKey

WAITING = ""
"""The owner of what nobody has read yet."""


OFFERED = -1.0
"""The due time of what a place refused."""

UNREAD = -2.0
"""A due time that is the server's to say, until it was asked."""


class LostReplyError(Exception):
    """The answer to a request did not arrive."""


class ForgottenError(Exception):
    """The stream or its group is gone."""


@dataclass
class Entry:
    """A job on the stream. place: its place in it. owner: WAITING, DELAYED or a worker.

    at_work: who started work on it and did not give it back; its next owner must fence that
    worker before anything else. refused: the places that did. due: the server's score of a delayed
    one, None where its sorted set does not have it; is_due: whether that time has come.
    """

    entry_id: str
    key: RowKey
    place: int
    owner: str = WAITING
    due: float | None = None
    is_due: bool = False
    is_old: bool = False
    attempts: int = 0
    at_work: str = ""
    refused: frozenset[str] = frozenset()


@dataclass
class Letter:
    key: RowKey
    reason: str
    attempts: int
    worker: str
    letter_id: str = ""


@dataclass
class Hold:
    """What a worker believes. started: starts of work, as far as it knows."""

    key: RowKey
    started: int
    is_begun: bool = False


@dataclass
class Hand:
    """A worker's. cursor: how far its own list was read; None: to the end."""

    name: str
    place: str = ""
    holds: dict[str, Hold] = field(default_factory=dict)
    cursor: int | None = -1
    has_group: bool = False

    def of(self, keys: Iterable[RowKey]) -> list[str]:
        wanted = set(keys)
        return [one for one, hold in self.holds.items() if hold.key in wanted]


@dataclass(frozen=True)
class Expected:
    """A delivery. fence: the worker it must name, if any."""

    entry_id: str
    attempts: int
    fence: str


class QueueModel:
    def __init__(self) -> None:
        self.places = 0
        self.lose: tuple[int, bool] | None = None
        """The reply to lose: after how many requests, and whether the request takes effect."""
        self.forget()

    def forget(self) -> None:
        """The server lost everything."""
        self.entries: dict[str, Entry] = {}
        self.known: dict[str, tuple[str, str]] = {}
        self.letters: list[Letter] = []
        self.done: list[str] = []
        self.ended: list[tuple[str, str | None]] = []  # with the reason of what failed
        self.beats: dict[str, str] = {}  # worker -> its place
        self.has_stream = self.has_group = False

    # -- the line to the server ------------------------------------------------------------

    def _request(self, effect: Callable[[], Any]) -> Any:
        if self.lose is None:
            return effect()
        after, takes_effect = self.lose
        self.lose = (after - 1, takes_effect) if after else None
        if after:
            return effect()
        if takes_effect:
            effect()
        raise LostReplyError

    def _persist(self, hand: Hand, effect: Callable[[], Any]) -> tuple[Any, bool]:
        try:
            return self._request(effect), False
        except LostReplyError:
            hand.cursor = -1
            return effect(), True

    # -- where jobs are --------------------------------------------------------------------

    def owned(self, owner: str) -> list[Entry]:
        """In the order of the stream."""
        return [one for one in self.entries.values() if one.owner == owner]

    def holders(self) -> dict[str, int]:
        """Workers with what they hold: how many."""
        names = [one.owner for one in self.entries.values() if one.owner not in (WAITING, DELAYED)]
        return {name: names.count(name) for name in names}

    def _mine(self, hand: Hand, entry_ids: Iterable[str]) -> list[Entry]:
        found = (self.entries.get(one) for one in entry_ids)
        return [one for one in found if one is not None and one.owner == hand.name]

    def _letter(self, entry: Entry, reason: str, worker: str) -> None:
        self.letters.append(Letter(entry.key, reason, entry.attempts, worker))
        self.ended.append((entry.key.question_id, reason))
        del self.entries[entry.entry_id]

    def _add(self, entry_id: str, key: RowKey) -> None:
        self.places += 1
        self.entries[entry_id] = Entry(entry_id, key, self.places)
        self.known[key.question_id] = (entry_id, key.content_hash)
        self.has_stream = True

    # -- producers -------------------------------------------------------------------------

    def enqueue(self, rows: Sequence[RowKey], entry_ids: Sequence[str]) -> list[Outcome]:
        """entry_ids: what the server called them."""
        outcomes = []
        for key, entry_id in zip(rows, entry_ids, strict=True):
            if key.question_id not in self.known:
                self._add(entry_id, key)
                outcomes.append(Outcome.ADDED)
                continue
            known_id, content = self.known[key.question_id]
            assert known_id == entry_id, "an id keeps its entry"
            outcomes.append(Outcome.KNOWN if content == key.content_hash else Outcome.CONFLICT)
        return outcomes

    def _post(self, letter_id: str) -> Letter | None:
        return next((one for one in self.letters if one.letter_id == letter_id), None)

    def retry_letters(
        self, letter_ids: Sequence[str], entry_id_of: Callable[[str], str]
    ) -> list[Move]:
        moves = []
        for letter_id in letter_ids:
            letter = self._post(letter_id)
            if letter is not None:
                self.letters.remove(letter)
                self._add(entry_id_of(letter.key.question_id), letter.key)
            moves.append(Move.MOVED if letter else Move.GONE)
        return moves

    def drop_letters(self, letter_ids: Sequence[str]) -> list[Move]:
        moves = []
        for letter_id in letter_ids:
            letter = self._post(letter_id)
            if letter is not None:
                self.letters.remove(letter)
                del self.known[letter.key.question_id]
            moves.append(Move.MOVED if letter else Move.GONE)
        return moves

    def cancel(self, question_ids: Sequence[str]) -> list[Move]:
        moves = []
        for question_id in question_ids:
            entry_id, _ = self.known.get(question_id, ("", ""))
            entry = self.entries.get(entry_id)
            if entry is not None:
                holder = "" if entry.owner == DELAYED else entry.owner
                self._letter(entry, CANCELLED, holder)
            moves.append(Move.MOVED if entry else Move.GONE if entry_id else Move.UNKNOWN)
        return moves

    # -- reading ---------------------------------------------------------------------------

    def read(self, hand: Hand, slots: int) -> list[Expected]:
        """Own lost ones, then due delayed ones and those whose lease is over, then new ones."""
        try:
            self._join(hand)
            found = self._read_own(hand, slots) or self._take_next(hand, slots)
        except LostReplyError:
            hand.cursor = -1
            return []
        except ForgottenError:
            hand.cursor, hand.has_group = -1, False
            return []
        return [self._deliver(hand, one) for one in found]

    def _join(self, hand: Hand) -> None:
        if hand.has_group:
            return
        has_group = self._request(lambda: self.has_stream) and self._request(lambda: self.has_group)
        if not has_group:
            self._request(self.create_group)
        hand.has_group = True

    def create_group(self) -> None:
        self.has_stream = self.has_group = True

    def _deliver(self, hand: Hand, entry: Entry) -> Expected:
        """Whoever gets it fences the one who was at work."""
        fence = "" if entry.at_work == hand.name else entry.at_work
        hand.holds[entry.entry_id] = Hold(entry.key, entry.attempts)
        return Expected(entry.entry_id, entry.attempts, fence)

    def _fresh(self, hand: Hand, found: Sequence[Entry]) -> list[Entry]:
        """What is in hand is known already, unless another worked on it in between."""
        holds = hand.holds
        return [
            one
            for one in found
            if one.entry_id not in holds or holds[one.entry_id].started != one.attempts
        ]

    def _read_own(self, hand: Hand, slots: int) -> list[Entry]:
        while hand.cursor is not None:
            page = self._request(lambda: self._own_page(hand, slots))
            hand.cursor = page[-1].place if page else None
            if fresh := self._fresh(hand, page):
                return fresh
        return []

    def _own_page(self, hand: Hand, slots: int) -> list[Entry]:
        self._need_group()
        assert hand.cursor is not None
        page = [one for one in self.owned(hand.name) if one.place > hand.cursor][:slots]
        for one in page:
            one.is_old = False
        return page

    def _take_next(self, hand: Hand, slots: int) -> list[Entry]:
        return self._fresh(hand, self._request(lambda: self._take(hand, slots)))

    def is_open(self, entry_id: str, place: str) -> bool:
        """Whether a worker of another place has not refused it."""
        entry = self.entries.get(entry_id)
        refused = entry.refused if entry else frozenset()
        return any(one != place and one not in refused for one in self.beats.values())

    def _take(self, hand: Hand, slots: int) -> list[Entry]:
        self._need_group()
        delayed = [one for one in self.owned(DELAYED) if one.due is not None and one.is_due]
        due = [one for one in delayed if one.due != OFFERED]
        due.sort(key=lambda one: (one.due, one.entry_id))
        offered = [one for one in delayed if one.due == OFFERED]
        due += [
            one
            for one in sorted(offered, key=lambda one: one.entry_id)
            if hand.place not in one.refused or not self.is_open(one.entry_id, hand.place)
        ]
        taken = due[:slots]
        for owner in sorted({DELAYED, *self.holders()}):
            over = [one for one in self.owned(owner) if one.is_old and one not in taken]
            taken += over[: slots - len(taken)]
        taken = taken or self.owned(WAITING)[:slots]
        for one in taken:
            one.owner, one.is_old, one.due, one.is_due = hand.name, False, None, False
        return taken

    def _need_group(self) -> None:
        if not self.has_group:
            raise ForgottenError

    # -- holding ---------------------------------------------------------------------------

    def begin(self, hand: Hand, entry_ids: Sequence[str]) -> list[str]:
        """Those that are started: of what is in hand, what is still ours."""
        asked = [one for one in entry_ids if one in hand.holds]
        attempts = {one: hand.holds[one].started + (not hand.holds[one].is_begun) for one in asked}

        def effect() -> list[str]:
            ours = self._mine(hand, asked)
            for entry in ours:
                entry.is_old, entry.at_work = False, hand.name
                entry.attempts = attempts[entry.entry_id]
            return [entry.entry_id for entry in ours]

        ours, _ = self._persist(hand, effect)
        for one in asked:
            if one in ours:
                hand.holds[one].started, hand.holds[one].is_begun = attempts[one], True
            else:
                hand.holds.pop(one, None)
        return [one for one in entry_ids if one in ours]

    def renew(self, hand: Hand, rows: Iterable[RowKey]) -> set[RowKey]:
        wanted = set(rows)
        if asked := hand.of(wanted):
            ours, _ = self._persist(hand, lambda: self._refresh(hand, asked))
            self._keep(hand, asked, ours)
        return {hold.key for hold in hand.holds.values() if hold.key in wanted}

    def renew_all(self, hand: Hand) -> None:
        """Raises LostReplyError."""
        if asked := list(hand.holds):
            self._keep(hand, asked, self._request(lambda: self._refresh(hand, asked)))

    def _refresh(self, hand: Hand, entry_ids: Sequence[str]) -> list[str]:
        ours = self._mine(hand, entry_ids)
        for entry in ours:
            entry.is_old = False
        return [entry.entry_id for entry in ours]

    def _keep(self, hand: Hand, asked: Iterable[str], ours: Iterable[str]) -> None:
        for one in set(asked).difference(ours):
            del hand.holds[one]

    def beat(self, hand: Hand) -> None:
        """Everybody else who holds nothing is taken for gone."""
        with contextlib.suppress(LostReplyError):
            self.renew_all(hand)

        def effect() -> None:
            holders = self.holders()
            self.beats = {name: place for name, place in self.beats.items() if name in holders}
            self.beats[hand.name] = hand.place

        with contextlib.suppress(LostReplyError):
            self._request(effect)

    # -- finishing -------------------------------------------------------------------------

    def _finish(self, hand: Hand, entry_ids: Sequence[str], move: Callable[[Entry], None]) -> int:
        """How many were ours; after a lost reply nobody can say, and all are taken for it."""
        if not entry_ids:
            return 0

        def effect() -> int:
            ours = self._mine(hand, entry_ids)
            for entry in ours:
                move(entry)
            return len(ours)

        finished, was_repeated = self._persist(hand, effect)
        for one in entry_ids:
            hand.holds.pop(one)
        return len(entry_ids) if was_repeated else finished

    def ack(self, hand: Hand, rows: Iterable[RowKey]) -> int:
        def move(entry: Entry) -> None:
            self.done.append(entry.key.question_id)
            self.ended.append((entry.key.question_id, None))
            del self.entries[entry.entry_id]

        return self._finish(hand, hand.of(rows), move)

    def fail(self, hand: Hand, row: RowKey, reason: str) -> int:
        return sum(
            self._finish(hand, [one], lambda entry: self._letter(entry, reason, hand.name))
            for one in hand.of([row])
        )

    def offer(self, hand: Hand, row: RowKey) -> int:
        """For other places, if there is one that has not refused it; work did not happen."""
        held = hand.of([row])
        if not held:
            return 0
        asked, _ = self._persist(
            hand, lambda: [one for one in held if self.is_open(one, hand.place)]
        )

        def move(entry: Entry) -> None:
            hold = hand.holds[entry.entry_id]
            entry.owner, entry.due, entry.is_due = DELAYED, OFFERED, True
            entry.is_old, entry.at_work = False, ""
            entry.attempts = hold.started - hold.is_begun
            entry.refused |= {hand.place}

        return self._finish(hand, asked, move)

    def give_back(self, hand: Hand, rows: Iterable[RowKey], *, is_due: bool, started: bool) -> int:
        """started: work ended; else it did not happen, and does not count."""

        def move(entry: Entry) -> None:
            hold = hand.holds[entry.entry_id]
            entry.owner, entry.due, entry.is_due = DELAYED, UNREAD, is_due
            entry.is_old, entry.at_work = False, ""
            entry.attempts = hold.started - (hold.is_begun and not started)

        return self._finish(hand, hand.of(rows), move)
