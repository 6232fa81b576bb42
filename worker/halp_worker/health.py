"""`check_health`: whether a worker of this host still asks for work (a container's health check).

Judges by the last read that the server answered, not by the heartbeat: a thread may beat on while
the loop hangs. Knows the heartbeats on the server; loads nothing heavy. Does not guarantee that the
worker makes progress, only that its loop goes round. A worker that waits for its store is healthy
while it tries: to restart it would lose the rows that it keeps.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

import redis

from halp_producer.activity import STOPPED, STORE_AWAY, WorkerActivity, read_activity
from halp_producer.keys import RunKeys
from halp_producer.server import ServerError, connect, explained
from halp_producer.status import server_ms


@dataclass(frozen=True)
class HealthReport:
    """sentence: which worker, when, and what to do if not ok."""

    ok: bool
    sentence: str


def health(
    run: str, redis_url: str, max_age_seconds: float, *, host: str | None = None
) -> HealthReport:
    """Asks the server; not ok where it does not answer. host: None, this machine's name.

    Raises ValueError for a name that no run can have.
    """
    keys = RunKeys(run)
    try:
        with connect(redis_url) as client:
            return check_health(
                client,
                keys,
                host=host or socket.gethostname(),
                max_age_seconds=max_age_seconds,
                now_ms=server_ms(client, keys),
            )
    except ServerError as error:
        return HealthReport(ok=False, sentence=str(error))
    except redis.RedisError as error:
        return HealthReport(ok=False, sentence=str(explained(error, redis_url)))


def check_health(
    client: redis.Redis, keys: RunKeys, *, host: str, max_age_seconds: float, now_ms: int
) -> HealthReport:
    """Whether some worker of `host` that has not left polled within `max_age_seconds`.

    now_ms: Unix ms by the server's clock, which is the one of the heartbeats.
    max_age_seconds: above the longest batch and commit, in which a worker does not poll.
    """
    heartbeats: Any = client.hgetall(keys.workers)
    here = [one for one in map(read_activity, heartbeats.values()) if one and one.host == host]
    if not here:
        return HealthReport(
            ok=False,
            sentence=f"run {keys.run}: no worker of host {host} is known "
            f"({len(heartbeats)} elsewhere); start one, or pass another --run",
        )
    # The one to speak of: of those that have not left, the one that polled last.
    best = max(here, key=lambda one: (one.state != STOPPED, one.polled_ms, one.seen_ms))
    return _judge(best, max_age_seconds, now_ms)


def _judge(one: WorkerActivity, max_age_seconds: float, now_ms: int) -> HealthReport:
    if one.state == STOPPED:
        return HealthReport(
            ok=False,
            sentence=f"worker {one.worker} stopped {_ago(one.seen_ms, now_ms)} and no other runs "
            "on this host; start it again if work is left",
        )
    if one.polled_ms == 0:
        return HealthReport(
            ok=False,
            sentence=f"worker {one.worker} started {_ago(one.started_ms, now_ms)} and has not "
            f"asked for work yet (it is {one.state}); if this lasts, see its log",
        )
    sentence = f"worker {one.worker} last asked for work {_ago(one.polled_ms, now_ms)}"
    if one.state == STORE_AWAY:
        sentence = (
            f"worker {one.worker} keeps its rows until it can write to {one.store or 'its store'}, "
            f"which it last tried {_ago(one.polled_ms, now_ms)}"
        )
    if now_ms - one.polled_ms <= 1000 * max_age_seconds:
        return HealthReport(ok=True, sentence=sentence)
    return HealthReport(
        ok=False,
        sentence=f"{sentence}, {max_age_seconds:g} s are allowed (it is {one.state}, heartbeat "
        f"{_ago(one.seen_ms, now_ms)}); see its log, and restart it if it hangs",
    )


def _ago(then_ms: int, now_ms: int) -> str:
    return f"{max(0, now_ms - then_ms) / 1000:.1f} s ago"
