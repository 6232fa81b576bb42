"""`ServerUrl`: which server a URL names, of which kind, and how it is shown without its password.

Knows text; refuses to know connections. Every form is read, and refused, here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.connection import parse_url

_PORTS: Final = {"sentinel": 26379, "cluster": 6379}
"""Where a host of these kinds listens if its port is not named."""

_ARGUMENTS: Final = {
    *("db", "username", "password", "client_name", "protocol", "health_check_interval"),
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive"),
    *("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password"),
    *("ssl_cert_reqs", "ssl_check_hostname"),
}
"""Those of redis-py that change neither how often a command is sent nor what a reply is."""

_OF_SENTINELS: Final = {"sentinel_username", "sentinel_password"}
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SECONDS: Final = ("socket_timeout", "socket_connect_timeout")
_LONGEST_SECONDS: Final = 1_000_000
"""Of a timeout: the system takes no number that is much larger."""

_HOST: Final = r"([^:/?,]*|\[[0-9a-fA-F:.]+\])(:\d+)?"
_PLACE: Final = re.compile(rf"{_HOST}(,{_HOST})*([/?].*)?")
"""Hosts, ports and the rest of a URL without user and password."""

_PASSWORD: Final = re.compile(r"([?&]\w*password=)([^&]*)", re.IGNORECASE)


class UrlError(ValueError):
    """The URL names no server; the message says what is wrong, and quotes no password."""


@dataclass(frozen=True)
class ServerUrl:
    """kind: `single`, `sentinel` or `cluster`. options: as redis-py's connections take them,
    without host and port where there are `hosts`. service: what the Sentinels call the server."""

    kind: str
    options: dict[str, Any]
    hosts: tuple[tuple[str, int], ...] = ()
    tls: bool = False
    service: str = ""
    sentinel_options: dict[str, Any] | None = None


def read_url(url: str) -> ServerUrl:
    """What the URL says. Raises UrlError."""
    parts = re.fullmatch(r"(rediss?|unix)(\+(?:sentinel|cluster))?://([^/?#]*)([^?#]*)(\?.*)?", url)
    if parts is None:
        raise UrlError("that is no form of a server's URL")
    scheme, kind, netloc, path, query = (part or "" for part in parts.groups())
    arguments = _arguments(query, kind, tls=scheme == "rediss")
    if not kind or scheme == "unix":
        if kind:
            raise UrlError("a socket is no place of a Sentinel or a cluster")
        return ServerUrl("single", _single(scheme, netloc, path, url))
    secret, at, hosts = netloc.rpartition("@")
    if not hosts or not all(hosts.split(",")):
        raise UrlError("a host is missing")
    service, database = _service(path) if kind == "+sentinel" else ("", path)
    if kind == "+cluster" and path not in ("", "/", "/0"):
        raise UrlError("a cluster has no databases")
    passed = "&".join(one for one in query[1:].split("&") if not one.startswith("sentinel_"))
    read = [
        _single(
            scheme,
            f"{secret}{at}{host}",
            database,
            f"{scheme}://{secret}{at}{host}{database}?{passed}",
        )
        for host in hosts.split(",")
    ]
    options = {
        name: value
        for name, value in read[0].items()
        if name not in ("host", "port", "connection_class")
    }
    port = _PORTS[kind[1:]]
    return ServerUrl(
        kind=kind[1:],
        options=options,
        hosts=tuple((one.get("host", ""), one.get("port", port)) for one in read),
        tls=scheme == "rediss",
        service=service,
        sentinel_options={
            name.removeprefix("sentinel_"): value
            for name, value in arguments.items()
            if name in _OF_SENTINELS
        },
    )


def _single(scheme: str, netloc: str, path: str, url: str) -> dict[str, Any]:
    """The options of one server."""
    try:
        port = urlsplit(url).port
        options = dict(parse_url(url))  # type: ignore[no-untyped-call]
    except (ValueError, TypeError):
        raise UrlError("host, port or an argument cannot be read") from None
    if scheme == "unix":
        if not options.get("path"):
            raise UrlError("the path of the socket is missing")
        return options
    if port == 0:
        raise UrlError("no server has port 0")
    if not re.fullmatch(r"/?|/\d{1,9}", path):
        raise UrlError("the database is a number")
    return options


def _service(path: str) -> tuple[str, str]:
    """The name of the service, and the database as a path."""
    parts = re.fullmatch(r"/([^/]+)(/\d{1,9})?/?", path)
    if parts is None:
        raise UrlError("expected redis+sentinel://host:port,host:port/service/database")
    return unquote(parts[1]), parts[2] or ""


def _arguments(query: str, kind: str, *, tls: bool) -> dict[str, str]:
    """Those after the question mark, each known and of its kind."""
    if "@" in query:
        raise UrlError("user and password must be URL-encoded")  # it may be a part of one
    known = _ARGUMENTS | (_OF_SENTINELS if kind == "+sentinel" else set())
    arguments = dict(parse_qsl(query[1:], keep_blank_values=True))
    for name, value in arguments.items():
        if name not in known:
            raise UrlError(f"unknown argument {name[:40]!r}")
        if name.startswith("ssl_") and not tls:
            raise UrlError(f"{name} is for rediss:// alone")
        if name in _FILES and not Path(value).is_file():
            raise UrlError(f"{name} names {value!r}, and there is no such file")
        if name in _SECONDS and not _is_duration(value):
            raise UrlError(f"{name} is a number of seconds above 0, up to {_LONGEST_SECONDS:,}")
        if name == "db" and not re.fullmatch(r"\d{1,9}", value):
            raise UrlError("the database is a number")
        if name == "db" and kind == "+cluster" and int(value):
            raise UrlError("a cluster has no databases")
        if name == "protocol" and value not in ("2", "3"):
            raise UrlError("protocol is 2 or 3")
    return arguments


def _is_duration(value: str) -> bool:
    try:
        return 0 < float(value) <= _LONGEST_SECONDS
    except ValueError:
        return False


def redact(url: str) -> str:
    """`url` with its passwords as `***`, whatever is wrong with it otherwise."""
    scheme, slashes, rest = url.partition("//") if "//" in url else ("", "", url)
    # The last @ of all, not of the host part: a password with an unescaped / is still one.
    secret, at, place = rest.rpartition("@")
    user = secret.partition(":")[0]
    if not at and not _PLACE.fullmatch(place):
        place = "***"  # perhaps a password whose @ was forgotten
    hidden = f"{user}:***@" if ":" in secret else f"{secret}@" if at else ""
    return _PASSWORD.sub(r"\1***", f"{scheme}{slashes}{hidden}{place}")


def without_password(text: str, url: str) -> str:
    """`text` with no password of `url` in it, should a library or a server ever quote one."""
    secret = url.partition("//")[2].rpartition("@")[0].partition(":")[2]
    asked = [password for _, password in _PASSWORD.findall(url)]
    for password in {secret, *asked} - {""}:
        for form in {password, unquote(password)}:
            text = text.replace(form, "***")
    return text
