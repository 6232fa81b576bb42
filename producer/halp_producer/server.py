"""Connections to the server: finite, explained, and without passwords in what they say.

Knows URLs, timeouts and versions; refuses to know runs and jobs. `connect` is for short requests
that are safe to repeat; `connect_exact` never repeats anything.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import unquote

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"

CONNECT_TIMEOUT_S: Final = 5.0
"""Beyond any network a queue should be used over."""

REQUEST_TIMEOUT_S: Final = 20.0
"""Longer than a server stalls for a slow disk, shorter than a person waits."""

_REQUEST_RETRIES: Final = 3
_MIN_REDIS: Final = (7, 0, 5)
"""XINFO GROUPS got its exact lag, and XAUTOCLAIM its fixes, with 7.0.5."""

_MIN_VALKEY: Final = (8, 0, 0)

_PLACE: Final = re.compile(r"([^:/?]*|\[[0-9a-fA-F:.]+\])(:\d+)?([/?].*)?")
"""Host, port and the rest of a URL without user and password."""


class ServerError(Exception):
    """The server cannot be used; the message says which, why, and what to do."""


def redact(url: str) -> str:
    """`url` with its password as `***`, whatever is wrong with it otherwise."""
    scheme, slashes, rest = url.partition("//") if "//" in url else ("", "", url)
    # The last @ of all, not of the host part: a password with an unescaped / is still one.
    secret, at, place = rest.rpartition("@")
    user = secret.partition(":")[0]
    if not at and not _PLACE.fullmatch(place):
        place = "***"  # perhaps a password whose @ was forgotten
    hidden = f"{user}:***@" if ":" in secret else f"{secret}@" if at else ""
    shown = f"{scheme}{slashes}{hidden}{place}"
    return re.sub(r"([?&]password=)[^&]*", r"\1***", shown, flags=re.IGNORECASE)


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


def _probe(url: str) -> None:
    probe = _client(url, Retry(NoBackoff(), 0), REQUEST_TIMEOUT_S)
    try:
        probe.ping()
        _require_version(probe, url)
    except redis.RedisError as error:
        raise explained(error, url) from None
    finally:
        probe.close()


def advice(client: redis.Redis) -> list[str]:
    """What about the server's settings can lose jobs, in sentences. Silent where it may not ask."""
    try:
        memory: dict[str, Any] = dict(client.info("memory"))
        persistence: dict[str, Any] = dict(client.info("persistence"))
    except redis.ResponseError:
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


def explained(error: Exception, url: str) -> ServerError:
    """What a redis-py error means for a person."""
    place, text = redact(url), without_password(str(error).rstrip("."), url)
    match error:
        case redis.AuthenticationError() if "already authenticated" in text or "required" in text:
            return ServerError(f"{place}: the server wants a password: redis://:PASSWORD@host:port")
        case redis.AuthenticationError():
            return ServerError(f"{place}: wrong user name or password")
        case redis.exceptions.AuthorizationError() | redis.exceptions.NoPermissionError():
            return ServerError(f"{place}: this user may not do that: {text}")
        case redis.BusyLoadingError():
            return ServerError(f"{place}: the server is still loading its data; try again")
        case redis.ReadOnlyError():
            return ServerError(f"{place}: the server is a read-only replica; name the primary")
        case redis.OutOfMemoryError():
            return ServerError(
                f"{place}: the server is out of memory and refused, nothing of this step was "
                "changed; wait for workers to make room, or raise its maxmemory"
            )
        case redis.ConnectionError() | redis.TimeoutError() | redis.InvalidResponse():
            return ServerError(_unreachable(url, place, text))
        case _:
            return ServerError(f"{place}: {_refused(text)}")


def _unreachable(url: str, place: str, text: str) -> str:
    tls = url.startswith("rediss:")
    if "certificate verify failed" in text.lower():
        reason = re.sub(r".*certificate verify failed(: )?|\s*\(_ssl\.c:\d+\)", "", text)
        return (
            f"{place}: the server's certificate is not trusted ({reason or 'verify failed'}): name "
            "the authority that signed it with ?ssl_ca_certs=FILE at the end of the URL"
        )
    if tls and any(sign in text.lower() for sign in _NOT_TLS):
        return f"{place}: this port does not speak TLS: use redis:// or the server's TLS port"
    refused = "refused" in text
    reason = "connection refused" if refused else text[:1].lower() + text[1:]
    hint = "start one or pass --redis-url"
    if tls and "timeout" in text.lower():
        hint += ", and redis:// if this port does not speak TLS"
    if not tls and any(sign in text.lower() for sign in _HUNG_UP):
        hint += ", and rediss:// if this port speaks TLS"
    return f"no server at {place} ({reason}): {hint}"


_NOT_TLS: Final = ("wrong version number", "wrong_version_number", "record layer failure")
"""What OpenSSL says to an answer that is not TLS; a server that waits for more says nothing."""

_HUNG_UP: Final = ("closed by server", "reset by peer", "protocol error", "broken pipe")
"""What a plain client sees of a port that expects TLS."""


def _refused(text: str) -> str:
    """For errors that the server answers with."""
    match text.partition(" ")[0]:
        case "MISCONF":
            return (
                "the server cannot write to its disk and takes no writes until it can (MISCONF): "
                "make room there, see its log"
            )
        case "NOREPLICAS":
            return (
                "the server has too few replicas to take writes (NOREPLICAS): start them, or lower "
                "its min-replicas-to-write"
            )
        case "LOADING":
            return "the server is still loading its data; try again"
        case "READONLY":
            return "the server is a read-only replica; name the primary"
        case "MASTERDOWN":
            return "the server is a replica that lost its primary; name the primary"
        case _:
            return f"the server refused: {text}"


def without_password(text: str, url: str) -> str:
    """`text` with no password of `url` in it, should a library or a server ever quote one."""
    secret = url.partition("//")[2].rpartition("@")[0].partition(":")[2]
    asked = re.findall(r"[?&]password=([^&]*)", url, flags=re.IGNORECASE)
    for one in {secret, *asked} - {""}:
        for form in {one, unquote(one)}:
            text = text.replace(form, "***")
    return text


def _client(url: str, retry: Retry, timeout_s: float) -> redis.Redis:
    try:
        return redis.Redis.from_url(
            url,
            retry=retry,
            socket_timeout=timeout_s,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
        )
    except (ValueError, TypeError):
        # The cause may quote a part of the password.
        raise ServerError(
            f"cannot read the server's URL {redact(url)}: expected "
            "redis://[[user]:password@]host:port/database, or rediss:// or unix://"
        ) from None


def _require_version(client: redis.Redis, url: str) -> None:
    try:
        server: dict[str, Any] = dict(client.info("server"))
    except redis.ResponseError:  # INFO may be forbidden; then the server speaks for itself later
        return
    name, least = ("valkey", _MIN_VALKEY) if "valkey_version" in server else ("redis", _MIN_REDIS)
    version = str(server.get(f"{name}_version", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers and numbers < least:
        raise ServerError(
            f"{redact(url)}: the server is {name} {version}; "
            "expected Redis 7.0.5 or Valkey 8.0.0, or newer"
        )
