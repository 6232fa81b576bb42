"""A real S3 server on loopback, and a proxy before it that loses, refuses and delays."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import boto3

START_SECONDS = 30
POLL_SECONDS = 0.01  # the proxy ends that fast
INVALID = b"<Error><Code>InvalidRequest</Code><Message>no</Message></Error>"
CONFLICT = b"<Error><Code>ConditionalRequestConflict</Code><Message>again</Message></Error>"
EXISTS = b"<Error><Code>PreconditionFailed</Code><Message>is there</Message></Error>"
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
DOWN = b"<Error><Code>SlowDown</Code><Message>later</Message></Error>"
ANSWERS = {"400": INVALID, "403": DENIED, "409": CONFLICT, "412": EXISTS, "503": DOWN}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Its endpoint. A process of its own: its threads and warnings are not ours. It ends with
    this one, too, however that ends."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        # It prints its port once it listens.
        ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        port = process.stdout.readline().strip() if ready else ""
        if not port:
            raise RuntimeError("the S3 server does not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _serve() -> None:
    """Until stdin ends. Moto's server looks whether a key exists and then puts it, in a thread per
    request: two could both win. S3 promises that one does, so here puts go one after the other."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer
    from moto.s3.responses import S3Response

    put, lock = S3Response.put_object, threading.Lock()

    def put_alone(self: S3Response) -> object:
        with lock:
            return put(self)

    S3Response.put_object = put_alone
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()


def make_bucket(endpoint: str, name: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket=name)
    client.close()


Fault = Callable[[str, str], str | None]
"""(method, path with query) -> "lose" the reply, a status of `ANSWERS`, a "stale" listing, or
None."""


class Proxy:
    """Forwards to `endpoint`; asks `fault` before each request. A context manager."""

    def __init__(self, endpoint: str) -> None:  # noqa: C901 - a class lies in it
        self.fault: Fault = lambda method, path: None
        self.seen: list[tuple[str, str]] = []
        self._listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        self._lock = threading.Lock()
        target = urlsplit(endpoint).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a body after its headers would wait 40 ms

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with proxy._lock:
                    proxy.seen.append((self.command, self.path))
                    fault = proxy.fault(self.command, self.path)
                if text := ANSWERS.get(fault or ""):
                    return self._answer(int(fault), [("Content-Type", "application/xml")], text)
                is_listing = "list-type" in parse_qs(urlsplit(self.path).query)
                if fault == "stale" and self.path in proxy._listings:
                    return self._answer(*proxy._listings[self.path])
                status, headers, answer = self._forward(body)
                if is_listing:
                    proxy._listings.setdefault(self.path, (status, headers, answer))
                if fault == "lose":
                    self.close_connection = True
                    return self.connection.shutdown(socket.SHUT_RDWR)
                return self._answer(status, headers, answer)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle  # noqa: N815 - its names

            def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                connection = http.client.HTTPConnection(target, timeout=30)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers))
                    reply = connection.getresponse()
                    return reply.status, reply.getheaders(), reply.read()
                finally:
                    connection.close()

            def _answer(self, status: int, headers: list[tuple[str, str]], text: bytes) -> None:
                self.send_response_only(status)
                length = str(len(text))
                for name, value in headers:
                    if name.lower() == "content-length" and self.command == "HEAD":
                        length = value
                    elif name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), daemon=True
        )

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


if __name__ == "__main__":
    _serve()
