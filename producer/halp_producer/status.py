"""`RunStatus`: where a run stands, all of it at one moment.

Knows the keys of a run and the server's account of consumers; refuses to change anything.
"""

from __future__ import annotations

import json
from typing import Any, Final

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from halp_producer.activity import STOPPED, WorkerActivity
from halp_producer.keys import DONE, ENQUEUED, FAILED, GROUP, RunKeys

ALIVE_S: Final = 30.0
"""A worker that was not seen for longer is not counted as alive; it may still be busy."""


class UnknownRunError(Exception):
    """The server knows nothing of this run."""


class WorkerStatus(BaseModel):
    """One consumer of the run.

    in_flight: jobs it holds. activity: its last heartbeat, None where it never sent one (or one
    that cannot be read). seen_seconds_ago: by the server's clock.
    """

    model_config = ConfigDict(frozen=True)

    worker: str
    alive: bool
    in_flight: int
    seen_seconds_ago: float | None
    activity: WorkerActivity | None


class RunStatus(BaseModel):
    """enqueued = waiting + in_flight + done + failed. rows_per_second: of the workers alive."""

    model_config = ConfigDict(frozen=True)

    run: str
    enqueued: int
    waiting: int
    in_flight: int
    done: int
    failed: int
    rows_per_second: float
    workers: tuple[WorkerStatus, ...]

    @property
    def finished(self) -> bool:
        """Whether every question of the run is done or failed."""
        return self.waiting == self.in_flight == 0


def run_status(client: redis.Redis, keys: RunKeys) -> RunStatus:
    """Reads a run in one transaction. Raises UnknownRunError, and what redis-py raises."""
    with client.pipeline(transaction=True) as pipe:
        pipe.exists(keys.jobs, keys.known, keys.counts, keys.failed, keys.workers)
        pipe.xlen(keys.jobs)
        pipe.xpending(keys.jobs, GROUP)
        pipe.xinfo_consumers(keys.jobs, GROUP)
        pipe.hgetall(keys.counts)
        pipe.hgetall(keys.workers)
        pipe.time()
        replies = pipe.execute(raise_on_error=False)
    present, length, pending, consumers, counts, workers, now = (
        _group_reply(one) for one in replies
    )
    if not present:
        raise UnknownRunError(
            f"no run {keys.run!r} on this server; enqueue something, or pass another --run"
        )
    in_flight = int(pending["pending"]) if pending else 0
    number = {name.decode("utf-8"): int(value) for name, value in counts.items()}
    seconds, micros = now
    found = _workers(consumers or [], workers, 1000 * seconds + micros / 1000)
    return RunStatus(
        run=keys.run,
        enqueued=number.get(ENQUEUED, 0),
        waiting=max(0, length - in_flight),
        in_flight=in_flight,
        done=number.get(DONE, 0),
        failed=number.get(FAILED, 0),
        rows_per_second=sum(
            one.activity.rows_per_second for one in found if one.alive and one.activity
        ),
        workers=found,
    )


def _group_reply(reply: Any) -> Any:
    """None for the error of a stream or group that is not there (yet); other errors are raised."""
    if isinstance(reply, redis.ResponseError) and (
        "NOGROUP" in str(reply) or "no such key" in str(reply)
    ):
        return None
    if isinstance(reply, Exception):
        raise reply
    return reply


def _workers(
    consumers: list[dict[str, Any]], heartbeats: dict[bytes, bytes], now_ms: float
) -> tuple[WorkerStatus, ...]:
    held = {_text(one["name"]): int(one["pending"]) for one in consumers}
    seen = {_text(name): _activity(value) for name, value in heartbeats.items()}
    return tuple(
        _worker(name, held.get(name, 0), seen.get(name), now_ms) for name in sorted(held | seen)
    )


def _worker(
    name: str, in_flight: int, activity: WorkerActivity | None, now_ms: float
) -> WorkerStatus:
    ago = None if activity is None else round(max(0.0, now_ms - activity.seen_ms) / 1000, 3)
    has_left = activity is not None and activity.state == STOPPED
    return WorkerStatus(
        worker=name,
        alive=ago is not None and ago <= ALIVE_S and not has_left,
        in_flight=in_flight,
        seen_seconds_ago=ago,
        activity=activity,
    )


def _activity(value: bytes) -> WorkerActivity | None:
    try:
        return WorkerActivity.model_validate(json.loads(value))
    except (ValidationError, ValueError):
        return None


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
