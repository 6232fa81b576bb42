"""`explained`: what an error of the server or of redis-py means for a person, in a sentence."""

from __future__ import annotations

import re
from typing import Final

import redis
from redis.exceptions import AskError, AuthorizationError, NoPermissionError
from redis.sentinel import MasterNotFoundError

from halp_producer.outages import is_outage
from halp_producer.server_url import redact, without_password


class ServerError(Exception):
    """The server cannot be used; the message says which, why, and what to do."""


class ServerAwayError(ServerError):
    """For now: the same may work later."""


def explained(error: Exception, url: str) -> ServerError:
    """What a redis-py error means for a person."""
    sentence = _sentence(error, url)
    return ServerAwayError(sentence) if is_outage(error) else ServerError(sentence)


def _sentence(error: Exception, url: str) -> str:
    place, text = redact(url), without_password(str(error).rstrip("."), url)
    match error:
        case redis.AuthenticationError():
            return f"{place}: {_not_let_in(text)}"
        case AuthorizationError() | NoPermissionError():
            return f"{place}: this user may not do that: {text}; docs/server.md has the ACL line"
        case redis.BusyLoadingError():
            return f"{place}: the server is still loading its data; try again"
        case redis.ReadOnlyError():
            return f"{place}: the server is a read-only replica; name the primary"
        case redis.OutOfMemoryError():
            return (
                f"{place}: the server is out of memory and refused, nothing of this step was "
                "changed; wait for workers to make room, or raise its maxmemory"
            )
        case MasterNotFoundError():
            return (
                f"{place}: no Sentinel that answers knows a primary of this name that can be "
                f"reached ({_reason(text)}): see `redis-cli -p 26379 sentinel masters`"
            )
        case AskError():
            return f"{place}: the server is one of a cluster: redis+cluster://host:port"
        case redis.ConnectionError() | redis.TimeoutError() | redis.InvalidResponse():
            return _unreachable(url, place, text)
        case _:
            return f"{place}: {_refused(text)}"


def _not_let_in(text: str) -> str:
    if "without any password" in text:
        return "the server has no password for this user: leave it out of the URL"
    if "already authenticated" in text or "required" in text:
        return "the server wants a password: redis://:PASSWORD@host:port"
    return "wrong user name or password"


def _reason(text: str) -> str:
    return "connection refused" if "refused" in text else text[:1].lower() + text[1:]


def _unreachable(url: str, place: str, text: str) -> str:
    small, tls = text.lower(), url.startswith("rediss")
    if "certificate verify failed" in small:
        reason = re.sub(r".*certificate verify failed(: )?|\s*\(_ssl\.c:\d+\)", "", text)
        return (
            f"{place}: the server's certificate is not trusted ({reason or 'verify failed'}): name "
            "the authority that signed it with ?ssl_ca_certs=FILE at the end of the URL"
        )
    if tls and any(sign in small for sign in _NOT_TLS):
        return f"{place}: this port does not speak TLS: use redis:// or the server's TLS port"
    for sign, sentence in _ANSWERS.items():
        if sign in small:
            return f"{place}: {sentence}"
    hint = "start one or pass --redis-url"
    if tls and "timeout" in small:
        hint += ", and redis:// if this port does not speak TLS"
    if not tls and any(sign in small for sign in _HUNG_UP):
        hint += ", rediss:// if this port speaks TLS; it may be another program's"
    return f"no server at {place} ({_reason(text)}): {hint}"


_NOT_TLS: Final = ("wrong version number", "wrong_version_number", "record layer failure")
"""What OpenSSL says to an answer that is not TLS; a server that waits for more says nothing."""

_HUNG_UP: Final = ("closed by server", "reset by peer", "protocol error", "broken pipe")
"""What a plain client sees of a port that expects TLS."""

_WEB: Final = "what answers there is a web server: name the port of Redis or Valkey"
_ANSWERS: Final = {
    **dict.fromkeys(("b'http/", "b'<!doctype", "b'<html"), _WEB),  # as redis-py quotes it
    "number of clients reached": "the server takes no more connections: raise its maxclients",
    "cluster mode is not enabled": "the server is no cluster: use redis:// or rediss://",
    "slots are not covered": "a part of the cluster is away: see `redis-cli --cluster check`",
    "permission denied": "this user of the machine may not open the server's socket",
    "cluster support disabled": "the server is no cluster: use redis:// or rediss://",
}
"""What says more than that there is no server."""


_CODES: Final = {
    "MISCONF": "the server cannot write to its disk and takes no writes until it can (MISCONF): "
    "make room there, see its log",
    "NOREPLICAS": "the server has too few replicas to take writes (NOREPLICAS): start them, or "
    "lower its min-replicas-to-write",
    "LOADING": "the server is still loading its data; try again",
    "READONLY": "the server is a read-only replica; name the primary",
    "MASTERDOWN": "the server is a replica that lost its primary; name the primary",
    "DENIED": "the server takes local connections only (protected mode): give it a password",
}
"""What the first word of a refusal means."""


def _refused(text: str) -> str:
    """For errors that the server answers with."""
    code, _, rest = text.partition(" ")
    if code in _CODES:
        return _CODES[code]
    if code == "WRONGTYPE":
        return (
            f"another program uses the names of this run: {rest}; take another --run, or delete "
            "that key"
        )
    if unknown := re.match(r"unknown command '([^']*)'", text, flags=re.IGNORECASE):
        return _lacks(unknown[1])
    if "DB index is out of range" in text or "invalid DB index" in text:
        return "the server has no database of this number: name one that it has, such as 0"
    if text.startswith(("CLUSTERDOWN", "The cluster is down", "Hash slot not served")):
        return f"a part of the cluster is away ({text}): see `redis-cli --cluster check`"
    return f"the server refused: {text}"


def _lacks(command: str) -> str:
    if command.upper() == "SENTINEL":
        return "what answers there is no Sentinel: name the Sentinels, or use redis://"
    return (
        f"the server does not know the command {command}: expected Redis 7.0.5 or Valkey 8.0.0, or "
        "newer, with no command renamed or disabled"
    )
