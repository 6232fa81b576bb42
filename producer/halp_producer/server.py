"""Connections to the server: finite, explained, and without passwords in what they say.

Knows timeouts and versions; refuses to know runs and jobs. `connect` is for short requests that are
safe to repeat; `connect_exact` never repeats anything.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from halp_producer.server_client import client_of, silent_seconds
from halp_producer.server_errors import ServerAwayError, ServerError, explained
from halp_producer.server_url import UrlError, read_url, redact, without_password

__all__ = [
    "DEFAULT_URL",
    "REQUEST_TIMEOUT_S",
    "ServerAwayError",
    "ServerError",
    "advice",
    "connect",
    "connect_exact",
    "connect_patiently",
    "explained",
    "redact",
    "silent_seconds",
    "without_password",
]

DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"

CONNECT_TIMEOUT_S: Final = 5.0
"""Beyond any network a queue should be used over."""

REQUEST_TIMEOUT_S: Final = 20.0
"""Longer than a server stalls for a slow disk, shorter than a person waits."""

PATIENCE_S: Final = 60.0
"""How long a worker waits for the server at its start: a server that restarts is back by then."""

_REQUEST_RETRIES: Final = 3
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_MIN_REDIS: Final = (7, 0, 5)
"""XINFO GROUPS got its exact lag, and XAUTOCLAIM its fixes, with 7.0.5."""

_MIN_VALKEY: Final = (8, 0, 0)


def connect(url: str) -> redis.Redis:
    """A client that answered and is new enough. Raises ServerError.

    Requests time out after REQUEST_TIMEOUT_S and are tried again a few times: only for what may
    happen twice. Replies are bytes.
    """
    _probe(url)
    patient = Retry(ExponentialBackoff(cap=1.0, base=0.05), _REQUEST_RETRIES)
    return _client(url, patient, REQUEST_TIMEOUT_S)


def connect_exact(url: str) -> redis.Redis:
    """As `connect`, but every command is sent at most once: after an error the caller knows that
    it may have taken effect, and a success is that of the only try."""
    _probe(url)
    return _client(url, Retry(NoBackoff(), 0), REQUEST_TIMEOUT_S)


def connect_patiently(
    url: str,
    note: Callable[[str], None],
    *,
    patience_s: float = PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> redis.Redis:
    """As `connect_exact`, but waits for a server that is away. Raises ServerError: at once for what
    waiting does not mend, ServerAwayError in the end.

    note: is told what is waited for.
    """
    deadline, pause = clock() + patience_s, _FIRST_PAUSE_S
    while True:
        try:
            return connect_exact(url)
        except ServerAwayError as error:
            left = deadline - clock()
            if left <= 0:
                raise
            note(f"{error}; waiting for it, {left:.0f} s at most")
        sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _ping(client: redis.Redis) -> None:
    try:
        client.ping()
    except redis.ResponseError as error:
        if not str(error).startswith("MISCONF"):  # then it answers, and can be read
            raise


def _probe(url: str) -> None:
    probe = _client(url, Retry(NoBackoff(), 0), REQUEST_TIMEOUT_S)
    try:
        _ping(probe)
        _require_version(probe, url)
    except redis.RedisError as error:
        raise explained(error, url) from None
    except UnicodeError:  # of a host's name
        raise _unreadable(url, "the host cannot be read") from None
    finally:
        probe.close()


def advice(client: redis.Redis) -> list[str]:
    """What about the server's settings can lose jobs, in sentences. Silent where it may not ask."""
    try:
        memory: dict[str, Any] = dict(client.info("memory"))
        persistence: dict[str, Any] = dict(client.info("persistence"))
    except redis.RedisError:
        return []
    sentences = []
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    # The keys of a run have no time to live, so that only these policies can delete them.
    if int(memory.get("maxmemory", 0)) > 0 and policy.startswith("allkeys-"):
        sentences.append(
            f"the server's maxmemory-policy is {policy}: it may delete jobs when memory is full; "
            "set it to noeviction"
        )
    if str(persistence.get("aof_enabled", "1")) == "0":
        sentences.append(
            "the server keeps no log of its writes (appendonly no): a restart of it forgets the "
            "queue, or what came since its last snapshot; what is stored stays, enqueue again"
        )
    return sentences


def _client(url: str, retry: Retry, timeout_s: float) -> redis.Redis:
    try:
        return client_of(
            read_url(url), retry, timeout_s=timeout_s, connect_timeout_s=CONNECT_TIMEOUT_S
        )
    except redis.RedisError as error:  # of a cluster, which is asked for its nodes
        raise explained(error, url) from None
    except UrlError as error:
        raise _unreadable(url, str(error)) from None
    except (ValueError, TypeError):
        # The cause may quote a part of the password.
        raise _unreadable(url, "an argument does not fit") from None


def _unreadable(url: str, reason: str) -> ServerError:
    return ServerError(
        f"cannot read the server's URL {redact(url)} ({reason}): expected "
        "redis://[[user]:password@]host:port/database, or another form of docs/server.md"
    )


def _require_version(client: redis.Redis, url: str) -> None:
    try:
        server: dict[str, Any] = dict(client.info("server"))
    except redis.ResponseError:  # INFO may be forbidden; then the server speaks for itself later
        return
    if server.get("redis_mode") == "sentinel" or server.get("server_mode") == "sentinel":
        raise ServerError(
            f"{redact(url)}: what answers there is a Sentinel: redis+sentinel://host:port/service"
        )
    name, least = ("valkey", _MIN_VALKEY) if "valkey_version" in server else ("redis", _MIN_REDIS)
    version = str(server.get(f"{name}_version", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers and numbers < least:
        raise ServerError(
            f"{redact(url)}: the server is {name} {version}; "
            "expected Redis 7.0.5 or Valkey 8.0.0, or newer"
        )
