"""`ask`: one question into a run, and how it ended.

Knows the order of things: enqueue, listen to the results stream, and ask for the job itself, which
alone can say that it has ended. Refuses to know the store: of a row it tells where that is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import redis

from halp_producer.enqueue import Outcome, create_group, enqueue_jobs
from halp_producer.job import Job
from halp_producer.keys import RunKeys
from halp_producer.letters import dead_letters
from halp_producer.outages import is_outage
from halp_producer.place import Place, place_of
from halp_producer.results import BEFORE_ALL, Fate, Result, last_result, read_results
from halp_producer.status import RunStatus, run_status

_POLL_MS: Final = 1000
"""How long one read waits for a message: also how often the job itself is asked for."""


class AskError(Exception):
    """The question cannot be asked, or was forgotten meanwhile; the message says what to do."""


def ask(
    client: redis.Redis,
    keys: RunKeys,
    job: Job,
    *,
    timeout_seconds: float,
    note: Callable[[str], None] = lambda _: None,
) -> Result | None:
    """Enqueues the job, unless the run has it, and waits until it has ended; None if it has not
    by then, and stays enqueued.

    note: is told what is being waited for, when that changes.
    Raises AskError, and what redis-py raises where waiting cannot mend it: `OutOfMemoryError` means
    that it was not enqueued.
    """
    deadline = time.monotonic() + timeout_seconds
    after = last_result(client, keys)
    create_group(client, keys)
    (sent,) = enqueue_jobs(client, keys, [job])
    if sent.outcome is Outcome.CONFLICT:
        raise AskError(
            f"{job.question_id!r} is already in run {keys.run} with other content (entry "
            f"{sent.entry_id}); that stays: use another --id or another --run"
        )
    # Known already: it may have ended long ago, and its message still be there.
    wait = _Wait(
        client, keys, job.question_id, BEFORE_ALL if sent.outcome is Outcome.KNOWN else after
    )
    said = ""
    block_ms = 1  # what has ended already is not waited for
    while True:
        left_ms = int(1000 * (deadline - time.monotonic()))
        try:
            if (result := wait.ended(max(1, min(block_ms, left_ms)))) is not None:
                return result
            block_ms = _POLL_MS
            what, waits_for = _waits_for(run_status(client, keys))
        except redis.RedisError as error:
            if left_ms <= 0 or not is_outage(error):
                raise
            what, waits_for = "server", f"the server does not answer ({error}): trying again"
            time.sleep(min(_POLL_MS, left_ms) / 1000)
        if what != said:
            said = what
            note(f"{job.question_id}: {waits_for}")
        if left_ms <= 0:
            return None


class _Wait:
    """Listens for one question."""

    def __init__(self, client: redis.Redis, keys: RunKeys, question_id: str, after: str) -> None:
        self._client, self._keys, self._question_id = client, keys, question_id
        self._after = after
        self._last: Result | None = None

    def ended(self, block_ms: int) -> Result | None:
        """How it ended; None while it is on the stream, whatever was said of an earlier try."""
        self._listen(block_ms)
        place = place_of(self._client, self._keys, self._question_id)
        if place is Place.QUEUED:
            return None
        if place is Place.UNKNOWN:
            raise AskError(
                f"{self._question_id!r} is not in run {self._keys.run} any more: it was dropped, "
                "or the server lost the run; ask again"
            )
        # Its message was written in the same step, so it is there, unless it was trimmed.
        while self._listen(0):
            pass
        return self._last or self._without_message()

    def _listen(self, block_ms: int) -> bool:
        """Takes in the next messages; whether there were any."""
        before = self._after
        found, self._after = read_results(self._client, self._keys, before, block_ms)
        for one in found:
            if one.question_id == self._question_id:
                self._last = one
        return self._after != before

    def _without_message(self) -> Result:
        letters = dead_letters(self._client, self._keys)
        letter = next((one for one in letters if one.question_id == self._question_id), None)
        if letter is None:
            return Result(question_id=self._question_id, fate=Fate.STORED)
        return Result(
            question_id=self._question_id,
            fate=Fate.FAILED,
            reason=letter.reason,
            error=letter.error,
        )


def _waits_for(found: RunStatus) -> tuple[str, str]:
    """For what, and that in words."""
    alive = sum(one.alive for one in found.workers)
    if not alive:
        run = "" if found.run == "default" else f" --run {found.run}"
        return "start", f"no worker is alive; start one: halp-worker run --store STORE{run}"
    workers = f"{alive} worker{' is' if alive == 1 else 's are'} alive"
    others = max(0, found.waiting + found.delayed + found.in_flight - 1)
    return "answer", f"waiting for its answer; {workers}, {others:,} other questions are not done"
