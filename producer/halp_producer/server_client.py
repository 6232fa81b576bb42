"""Clients of a server, of the Sentinels' primary and of a cluster: redis-py's own, which name in an
error what the server leaves out (the command of a script, the key). They know since when the
server is silent.
"""

from __future__ import annotations

import re
import time
from typing import Any, Final, cast

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import NoPermissionError, RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from halp_producer.keys import type_of
from halp_producer.outages import is_outage
from halp_producer.server_url import ServerUrl

_NOT_PERMITTED: Final = ("user executing the script can't", "acl failure in script")
_UNKNOWN: Final = ("unknown redis command called", "unknown command called")
"""What 7.0 and later ones say from within a script; in small letters."""

_LINE: Final = re.compile(r"@user_script:(\d+)")
_CALLED: Final = re.compile(r"'([A-Z]{3,})'(?:, '(CONSUMERS|GROUPS|DELCONSUMER|CREATE)')?")
_QUOTED: Final = re.compile(r"the '([^']+)' command")


class _Telling:
    """For a client class to inherit from, before redis-py's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._texts: dict[str, str] = {}
        self._silent_since: float | None = None
        super().__init__(*args, **options)

    @property
    def silent_since(self) -> float | None:
        """When it was first asked in vain, on the monotonic clock; None while it answers. A server
        that says that it cannot at the moment, for it is full, does not."""
        return self._silent_since

    def register_script(self, script: Any) -> Any:
        registered = super().register_script(script)  # type: ignore[misc]
        self._texts[registered.sha] = script
        return registered

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        try:
            reply = super().execute_command(*args, **options)  # type: ignore[misc]
        except RedisClusterException as error:
            raise redis.ConnectionError(str(error)) from error
        except redis.RedisError as error:
            if not is_outage(error):
                self._silent_since = None
            if (explicit := self._explicit(error, args)) is None:
                raise
            raise explicit from None
        self._silent_since = None
        return reply

    def _explicit(self, error: Exception, args: tuple[Any, ...]) -> Exception | None:
        """The same with the command or the keys in it; None where nothing is missing."""
        text = str(error)
        if text.startswith("WRONGTYPE"):
            return redis.ResponseError(f"WRONGTYPE {self._wrong_keys(args)}")
        if isinstance(error, NoPermissionError) or any(
            one in text.lower() for one in _NOT_PERMITTED
        ):
            return NoPermissionError(self._missing_permission(text, args))
        if any(sign in text.lower() for sign in _UNKNOWN):
            return redis.ResponseError(f"unknown command '{self._called(text, args)}'")
        return None

    def _wrong_keys(self, args: tuple[Any, ...]) -> str:
        wrong = []
        keys = _keys_of(args)
        for key in keys:
            try:
                found = super().execute_command("TYPE", key)  # type: ignore[misc]
            except redis.RedisError:
                return f"one of the keys {', '.join(keys)} is of another type"
            name = found.decode() if isinstance(found, bytes) else str(found)
            if name not in ("none", type_of(key)):
                wrong.append(f"the key {key} is a {name}, expected a {type_of(key)}")
        return "; ".join(wrong) or f"one of the keys {', '.join(keys)} is of another type"

    def _missing_permission(self, text: str, args: tuple[Any, ...]) -> str:
        if " key" in text and "command" not in text.partition(" key")[0]:
            return f"a key of {args[0]}: {', '.join(_keys_of(args))}"
        quoted = _QUOTED.search(text)
        return quoted[1].upper() if quoted else self._called(text, args)

    def _called(self, text: str, args: tuple[Any, ...]) -> str:
        """The command that the script called where it failed, or all that it might have."""
        script = self._texts.get(str(args[1]), str(args[1])) if len(args) > 1 else ""
        line, lines = _LINE.search(text), script.splitlines()
        at = lines[int(line[1]) - 1 :][:1] if line else []
        called = _CALLED.findall("".join(at)) or _CALLED.findall(script)
        return ", ".join(sorted({"|".join(filter(None, one)) for one in called})) or str(args[0])


class Client(_Telling, redis.Redis):
    """Of one server, or of whichever the Sentinels call the primary."""


class ClusterClient(_Telling, RedisCluster):
    """Of all primaries of a cluster: each command goes to the one that has the key."""


def client_of(
    place: ServerUrl, retry: Retry, *, timeout_s: float, connect_timeout_s: float
) -> redis.Redis:
    """A client of any kind. The retries are all that is ever repeated. Raises TypeError for options
    that do not fit, and redis.ConnectionError or what redis-py raises where a cluster is away."""
    waits = {"socket_timeout": timeout_s, "socket_connect_timeout": connect_timeout_s}
    tls = {"ssl": True} if place.tls else {}
    options = {**waits, **place.options}
    if place.kind == "single":
        pool = redis.ConnectionPool(retry=retry, **options)
        pool.make_connection()  # an option that does not fit shows here, not at the first command
        client = Client(connection_pool=pool)
        client.auto_close_connection_pool = True
        return client
    if place.kind == "sentinel":
        of_servers = {
            name: value for name, value in place.options.items() if name.startswith("ssl_")
        }
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            place.hosts,
            sentinel_kwargs={
                **dict.fromkeys(waits, connect_timeout_s),
                **({**tls, **of_servers} if place.tls else {}),
                **(place.sentinel_options or {}),
                "retry": Retry(retry._backoff, 0),
            },
        )
        primary = sentinel.master_for(  # type: ignore[no-untyped-call]
            place.service, redis_class=Client, retry=retry, **tls, **options
        )
        return cast("redis.Redis", primary)
    options.pop("db", None)
    try:
        cluster = ClusterClient(
            startup_nodes=[_node(host, port) for host, port in place.hosts],
            retry=retry,
            **tls,
            **options,
        )
    except RedisClusterException as error:
        cause = error.__cause__
        raise (
            cause if isinstance(cause, redis.RedisError) else redis.ConnectionError(str(error))
        ) from None
    return cast("redis.Redis", cluster)  # the same commands, without being its heir


def _node(host: str, port: int) -> ClusterNode:
    return ClusterNode(host, port)  # type: ignore[no-untyped-call]


def silent_seconds(client: redis.Redis) -> float:
    """For how long it has been asked in vain; 0 while it answers, or does not say."""
    since = getattr(client, "silent_since", None)
    return 0.0 if since is None else time.monotonic() - since


def _keys_of(args: tuple[Any, ...]) -> list[str]:
    return [one for one in args if isinstance(one, str) and one.startswith("halp:")]
