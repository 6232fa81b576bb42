"""`download`: the bytes behind an http(s) URL, in bounded time and memory.

Knows HTTP; does not know images. What may pass (a server that is away, busy or slow) is `Retryable`
at once: the queue waits and repeats; a thread that waits here would keep other jobs waiting.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from http import HTTPStatus
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, LocationParseError

from halp_producer.problem import in_short
from halp_worker.fates import HostPart, Reason, Rejected, Retryable

URL_TIMEOUT_SECONDS: Final = 20.0
"""Without a single byte."""

URL_TOTAL_SECONDS: Final = 120.0
"""For redirects, headers and body together: the largest file allowed, at 2 MiB a second. A server
that sends a byte now and then never runs into the timeout above."""

_PASSING_STATUSES: Final = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)
"""Of the statuses below 500; those from 500 on are the server's trouble and pass, too."""

_PROXY_STATUSES: Final = frozenset(
    {HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED}
)
"""What stands between this host and the network answers these, not the image's server."""

_REACHED: Final = (
    requests.ReadTimeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)
"""Errors of a connection that was there."""

_NEVER: Final = (
    requests.TooManyRedirects,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    LocationParseError,  # a host name that is none
    UnicodeError,  # same
)
"""What is wrong with the URL itself, or with the one it leads to."""


def download(url: str, max_bytes: int) -> bytes:
    """Raises Rejected if this URL can never give a file, Retryable if it may another time."""
    with _Deadline(URL_TOTAL_SECONDS) as deadline:
        try:
            data = _get(url, max_bytes, deadline)
        except _NEVER as error:
            raise Rejected(Reason.URL_FAILED, _failed(url, error)) from None
        except (requests.RequestException, HTTPError, OSError) as error:
            if not deadline.has_passed:
                raise _fate(url, error) from None
        # A connection that was ended looks like the end of a body without a length.
        if deadline.has_passed:
            raise Retryable(
                Reason.URL_FAILED, f"image URL took over {URL_TOTAL_SECONDS:g} s: {in_short(url)}"
            )
        return data


def _fate(url: str, error: Exception) -> Rejected | Retryable:
    message = _failed(url, error)
    if isinstance(error, requests.HTTPError):
        status = error.response.status_code
        part = HostPart.NETWORK if status in _PROXY_STATUSES else None
        if status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _PASSING_STATUSES:
            return Rejected(Reason.URL_FAILED, message, part)
        return Retryable(Reason.URL_FAILED, message, part)
    # A server that answers, if slowly or in part, was reached.
    was_reached = isinstance(error, _REACHED)
    return Retryable(Reason.URL_FAILED, message, None if was_reached else HostPart.NETWORK)


def _failed(url: str, error: Exception) -> str:
    return f"image URL failed: {in_short(url)}: {in_short(str(error))}"


def _get(url: str, max_bytes: int, deadline: _Deadline) -> bytes:
    adapter = _Adapter(deadline)
    with requests.Session() as session:
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        with session.get(url, stream=True, timeout=URL_TIMEOUT_SECONDS) as response:
            response.raise_for_status()
            data = bytearray()
            for part in response.iter_content(1 << 20):
                data += part
                if len(data) > max_bytes:
                    raise Rejected(
                        Reason.IMAGE_TOO_LARGE, f"image is over {max_bytes} bytes: {in_short(url)}"
                    )
            return bytes(data)


class _Deadline:
    """Ends all its connections when the time is over, whatever they are waiting for.

    Timeouts of sockets are for one read each, and a library's one read may be a thousand of the
    socket's. Ends what is done with a connection; does not end a name look-up.
    """

    def __init__(self, seconds: float) -> None:
        self.has_passed = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        with self._lock:
            for one in self._sockets:
                one.close()
            self._sockets.clear()

    def watch(self, connection: socket.socket) -> socket.socket:
        """Gives `connection` back. A duplicate is kept: TLS takes the original apart."""
        with self._lock:
            self._sockets.append(connection.dup())
        if self.has_passed:
            self._end()
        return connection

    def _end(self) -> None:
        self.has_passed = True
        with self._lock:
            for one in self._sockets:
                with contextlib.suppress(OSError):  # the other side may have ended it before
                    one.shutdown(socket.SHUT_RDWR)


class _Adapter(HTTPAdapter):
    """Direct connections and those to a proxy are watched by the deadline. Repeats nothing."""

    def __init__(self, deadline: _Deadline) -> None:
        self._pools = _pools(deadline)
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _pools(deadline: _Deadline) -> dict[str, Any]:
    class Http(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return deadline.watch(super()._new_conn())

    class Https(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return deadline.watch(super()._new_conn())

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = Https

    return {"http": HttpPool, "https": HttpsPool}
