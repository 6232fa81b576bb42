"""`enqueue_jobs`: jobs onto a run's stream, each id once, through one script.

Knows the stream, the hash of known ids and the counts; refuses to know files. What it does may
be repeated: after a lost reply or a kill, the same call adds only what is not there yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final, NamedTuple, TypeVar, cast

import redis

from halp_producer.job import IMAGE_DATA, Job, hash_fields
from halp_producer.keys import ENQUEUED, EPOCH, GROUP, RunKeys
from halp_producer.outages import is_outage

CHUNK_JOBS: Final = 250
"""Jobs a call. Larger ones were not faster; this one holds the server up for about 3 ms."""

CHUNK_BYTES: Final = 1 << 20
"""Text and images a call, unless a single job has more."""

_SHORTEST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0
_BACKLOG_POLL_S: Final = 0.25
_EPISODE_S: Final = 30.0
"""Waits of one kind that are closer together are one episode, and are spoken of once."""

_PATIENCE_S: Final = 30.0
"""How long a server may be away (a restart, a failover) before enqueueing gives up."""

# KEYS: jobs, known, counts. ARGV: the count of an entry's fields, their names, the name of the one
# that is the id, the counter's name, the epoch's name; then for each job its content hash and its
# fields' values. A last field (the image) that is empty is left out.
# The answer to each job is `+`, `=` or `!` and its entry id. The server asks for memory only before
# a script's first write: XADD comes first, so that a refusal leaves no trace of the chunk.
_SCRIPT: Final = """
local jobs, known, counts = KEYS[1], KEYS[2], KEYS[3]
local width = tonumber(ARGV[1])
local id_field, counter = ARGV[width + 2], ARGV[width + 3]
local add, id_at = {'XADD', jobs, '*'}, nil
for i = 1, width do
  add[2 + 2 * i] = ARGV[1 + i]
  if ARGV[1 + i] == id_field then id_at = i end
end
local answers = {}
for at = width + 5, #ARGV, width + 1 do
  local hash, id = ARGV[at], ARGV[at + id_at]
  local stored = redis.call('HGET', known, id)
  if stored then
    local entry, content = string.match(stored, '^(%S+) (%S+)$')
    answers[#answers + 1] = (content == hash and '=' or '!') .. (entry or '')
  else
    for i = 1, width do add[3 + 2 * i] = ARGV[at + i] end
    local used = ARGV[at + width] == '' and width - 1 or width
    local entry = redis.call(unpack(add, 1, 3 + 2 * used))
    redis.call('HSET', known, id, entry .. ' ' .. hash)
    redis.call('HINCRBY', counts, counter, 1)
    answers[#answers + 1] = '+' .. entry
  end
end
if redis.call('HEXISTS', counts, ARGV[width + 4]) == 0 then
  local now = redis.call('TIME')
  redis.call('HSET', counts, ARGV[width + 4], now[1] .. string.format('%06d', now[2]))
end
return answers
"""


class Outcome(StrEnum):
    """added: it was new. known: it was there, the same. conflict: there, with other content."""

    ADDED = "added"
    KNOWN = "known"
    CONFLICT = "conflict"


_OUTCOMES: Final = {
    ord("+"): Outcome.ADDED,
    ord("="): Outcome.KNOWN,
    ord("!"): Outcome.CONFLICT,
}


class EnqueueResult(NamedTuple):
    """What became of one job, and the stream entry its id has (or had, once acknowledged)."""

    outcome: Outcome
    entry_id: str


def enqueue_jobs(client: redis.Redis, keys: RunKeys, jobs: Sequence[Job]) -> list[EnqueueResult]:
    """Adds the jobs whose ids are new to the run; one result for each job, in order.

    All in one step on the server: pass some hundred at a time. Safe to repeat. Raises what
    redis-py raises; `redis.OutOfMemoryError` then means that none of these jobs was added.
    """
    if not jobs:
        return []
    script = client.register_script(_SCRIPT)
    with_images = any(job.image_data is not None for job in jobs)
    names = [*jobs[0].encode(), *([IMAGE_DATA] if with_images else [])]
    arguments: list[bytes | str | int] = [len(names), *names, "question_id", ENQUEUED, EPOCH]
    for job in jobs:
        fields = job.encode()
        arguments.append(hash_fields(fields, job.image_data))
        # Bytes, since redis-py takes three times as long over text.
        arguments += [value.encode("utf-8") for value in fields.values()]
        if with_images:
            arguments.append(job.image_data or b"")
    answers = cast(list[bytes], script(keys=[keys.jobs, keys.known, keys.counts], args=arguments))
    return [EnqueueResult(_OUTCOMES[one[0]], one[1:].decode("ascii")) for one in answers]


def create_group(client: redis.Redis, keys: RunKeys) -> None:
    """The run's consumer group, from the stream's first entry on; nothing if it is there."""
    try:
        client.xgroup_create(keys.jobs, GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise


Reply = TypeVar("Reply")


class Enqueuer:
    """Enqueues with patience: waits for memory and for room in the stream, outlasts a restart.

    max_backlog: waits while the stream would become longer; None for no bound. Two producers on
        one run may exceed it by a chunk each.
    note: is told, once for each episode, what is being waited for.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: RunKeys,
        *,
        max_backlog: int | None = None,
        note: Callable[[str], None] = lambda _: None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._client, self._keys = client, keys
        self._max_backlog, self._note, self._patience_s = max_backlog, note, patience_s
        self._waited: dict[str, float] = {}
        self.chunk_jobs = min(CHUNK_JOBS, max_backlog or CHUNK_JOBS)

    def prepare(self) -> None:
        """Makes the consumer group, so that status and workers find it. Raises as `send`."""
        self._patiently(lambda: create_group(self._client, self._keys))

    def send(self, jobs: Sequence[Job]) -> list[EnqueueResult]:
        """As `enqueue_jobs`, for at most `chunk_jobs` jobs. Raises what redis-py raises once
        patience is at its end, and at once what waiting cannot mend."""
        self._wait_for_room(len(jobs))
        return self._patiently(lambda: enqueue_jobs(self._client, self._keys, jobs))

    def _wait_for_room(self, count: int) -> None:
        if self._max_backlog is None:
            return
        while True:
            length = self._patiently(lambda: self._client.xlen(self._keys.jobs))
            if length + count <= self._max_backlog:
                return
            self._say(
                "backlog",
                f"{length} jobs are on the stream: waiting for workers to bring it below "
                f"--max-backlog {self._max_backlog}",
            )
            time.sleep(_BACKLOG_POLL_S)

    def _say(self, kind: str, text: str) -> None:
        """Passes on `text` unless a wait of this kind was less than an episode ago."""
        now = time.monotonic()
        if now - self._waited.get(kind, -_EPISODE_S) >= _EPISODE_S:
            self._note(text)
        self._waited[kind] = now

    def _patiently(self, action: Callable[[], Reply]) -> Reply:
        """Out of memory: waits as long as it takes. Server away: waits `patience_s`."""
        pause_s, away_since = _SHORTEST_PAUSE_S, 0.0
        while True:
            try:
                return action()
            except redis.OutOfMemoryError:
                away_since = 0.0
                self._say("memory", "the server is out of memory: waiting for workers to make room")
            except redis.RedisError as error:
                if not is_outage(error):
                    raise
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > self._patience_s:
                    raise
                self._say("away", f"the server does not answer ({error}): trying again")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
