"""`RunStatus`: where a run stands, all of it at one moment.

Knows the keys of a run and the server's account of consumers; refuses to change anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple, cast

import redis
from pydantic import BaseModel, ConfigDict

from halp_producer.activity import STOPPED, WorkerActivity, read_activity
from halp_producer.balance import Books
from halp_producer.keys import DELAYED, DONE, ENQUEUED, FAILED, FAILED_FOR, GROUP, RunKeys

ALIVE_S: Final = 30.0
"""A worker that was not seen for longer is not counted as alive; it may still be busy."""


# A script, since a full server refuses transactions, even those that only read.
_READ: Final = """#!lua flags=no-writes
-- KEYS: jobs, known, counts, failed, workers, delayed, attempts. ARGV: group.
local jobs, known, counts, failed, workers, delayed, attempts = unpack(KEYS)
local function of_group(...)
  local reply = redis.pcall(...)
  if reply.err == nil then return reply end
  if string.find(reply.err, 'NOGROUP') or string.find(reply.err, 'no such key') then
    return {}  -- the stream or its group is not there (yet)
  end
  error(reply)
end
local consumers = {}
for _, one in ipairs(of_group('XINFO', 'CONSUMERS', jobs, ARGV[1])) do
  local said = {}
  for i = 1, #one, 2 do said[one[i]] = one[i + 1] end
  table.insert(consumers, said['name'])
  table.insert(consumers, tostring(said['pending']))
end
return {
  redis.call('EXISTS', jobs, known, counts, failed, workers),
  {
    redis.call('XLEN', jobs), of_group('XPENDING', jobs, ARGV[1])[1] or 0,
    redis.call('ZCARD', delayed), redis.call('XLEN', failed), redis.call('HLEN', known),
    redis.call('HLEN', attempts),
  },
  consumers, redis.call('HGETALL', counts), redis.call('HGETALL', workers), redis.call('TIME'),
}
"""


_TIME: Final = """#!lua flags=no-writes
-- KEYS: any of the run, so that the server that has it answers.
return redis.call('TIME')
"""


class UnknownRunError(Exception):
    """The server knows nothing of this run."""


class WorkerStatus(BaseModel):
    """One consumer of the run.

    in_flight: jobs it holds. activity: its last heartbeat, None where it never sent one (or one
    that cannot be read). seen_seconds_ago: by the server's clock; None too for a time that this
    clock has not reached, which an older version wrote by its own.
    """

    model_config = ConfigDict(frozen=True)

    worker: str
    alive: bool
    in_flight: int
    seen_seconds_ago: float | None
    activity: WorkerActivity | None


class RunStatus(BaseModel):
    """enqueued = waiting + delayed + in_flight + done + failed. delayed: they wait for another try.
    failed_by_reason: `failed` by the reason of each letter, most frequent first; what was failed
    by a version without these counts is left out. rows_per_second: of the workers alive."""

    model_config = ConfigDict(frozen=True)

    run: str
    enqueued: int
    waiting: int
    delayed: int
    in_flight: int
    done: int
    failed: int
    failed_by_reason: dict[str, int]
    rows_per_second: float
    workers: tuple[WorkerStatus, ...]

    @property
    def finished(self) -> bool:
        """Whether every question of the run is done or failed."""
        return self.waiting == self.delayed == self.in_flight == 0


class RunReading(NamedTuple):
    """A run's status and the numbers behind it, of one moment."""

    status: RunStatus
    books: Books


def run_status(client: redis.Redis, keys: RunKeys) -> RunStatus:
    """Where a run stands, read in one step, also of a full server. Raises UnknownRunError, and what
    redis-py raises."""
    return read_run(client, keys).status


def server_ms(client: redis.Redis, keys: RunKeys) -> int:
    """Unix time in ms by the clock of the server that has the run. Raises what redis-py raises."""
    now = cast("list[bytes]", client.register_script(_TIME)(keys=[keys.workers]))
    seconds, micros = map(int, now)
    return 1000 * seconds + micros // 1000


def require_run(client: redis.Redis, keys: RunKeys) -> None:
    """Raises UnknownRunError where the server has nothing of the run."""
    if not client.exists(*_present(keys)):
        raise _unknown(keys)


def read_run(client: redis.Redis, keys: RunKeys) -> RunReading:
    """As `run_status`, with the numbers to check it by."""
    script = client.register_script(_READ)
    names = [*_present(keys), keys.delayed, keys.attempts]
    present, numbers, consumers, counts, workers, now = cast(
        "tuple[int, list[int], list[bytes], list[bytes], list[bytes], list[bytes]]",
        script(keys=names, args=[GROUP]),
    )
    if not present:
        raise _unknown(keys)
    length, pending, due, letters, known, attempts = numbers
    held = {_text(name): int(number) for name, number in _pairs(consumers)}
    delayed = held.pop(DELAYED, 0)
    number = {_text(name): int(value) for name, value in _pairs(counts)}
    reasons = Counter(
        {name[len(FAILED_FOR) :]: n for name, n in number.items() if name.startswith(FAILED_FOR)}
    )
    books = Books(
        enqueued=number.get(ENQUEUED, 0),
        done=number.get(DONE, 0),
        failed=number.get(FAILED, 0),
        reasons=reasons.total(),
        stream=length,
        pending=pending,
        delayed=delayed,
        due=due,
        letters=letters,
        known=known,
        attempts=attempts,
    )
    seconds, micros = map(int, now)
    found = _workers(held, dict(_pairs(workers)), 1000 * seconds + micros / 1000)
    return RunReading(_status(keys.run, books, reasons, found), books)


def _status(
    run: str, books: Books, reasons: Counter[str], workers: tuple[WorkerStatus, ...]
) -> RunStatus:
    return RunStatus(
        run=run,
        enqueued=books.enqueued,
        waiting=max(0, books.stream - books.pending),
        delayed=books.delayed,
        in_flight=books.pending - books.delayed,
        done=books.done,
        failed=books.failed,
        failed_by_reason=dict(sorted((+reasons).items(), key=lambda one: (-one[1], one[0]))),
        rows_per_second=sum(
            one.activity.rows_per_second for one in workers if one.alive and one.activity
        ),
        workers=workers,
    )


def _present(keys: RunKeys) -> tuple[str, ...]:
    return keys.jobs, keys.known, keys.counts, keys.failed, keys.workers


def _unknown(keys: RunKeys) -> UnknownRunError:
    return UnknownRunError(
        f"no run {keys.run!r} on this server; enqueue something, or pass another --run"
    )


def _pairs(flat: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _workers(
    held: dict[str, int], heartbeats: dict[bytes, bytes], now_ms: float
) -> tuple[WorkerStatus, ...]:
    seen = {_text(name): read_activity(value) for name, value in heartbeats.items()}
    return tuple(
        _worker(name, held.get(name, 0), seen.get(name), now_ms) for name in sorted(held | seen)
    )


def _worker(
    name: str, in_flight: int, activity: WorkerActivity | None, now_ms: float
) -> WorkerStatus:
    ago = None if activity is None else (now_ms - activity.seen_ms) / 1000
    if ago is not None:
        ago = None if ago < -ALIVE_S else round(max(0.0, ago), 3)
    has_left = activity is not None and activity.state == STOPPED
    return WorkerStatus(
        worker=name,
        alive=ago is not None and ago <= ALIVE_S and not has_left,
        in_flight=in_flight,
        seen_seconds_ago=ago,
        activity=activity,
    )


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
