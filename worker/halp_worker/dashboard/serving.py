"""`serve_dashboard`: the page, from the first request until a signal."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn

from halp_worker.dashboard.catalogue import Catalogue
from halp_worker.dashboard.fleet import Fleet
from halp_worker.dashboard.pages import build_app
from halp_worker.dashboard.pictures import Pictures
from halp_worker.fates import FatalError

_LOCAL_NAMES: Final = ("localhost",)
_GRACE_S: Final = 1
"""For answers that are under way when it is told to stop."""


@dataclass(frozen=True)
class DashboardSettings:
    """What `halp-worker dashboard` was told. image_root: None shows no pictures."""

    store: str
    image_root: Path | None
    run: str
    redis_url: str
    host: str
    port: int
    allow_remote: bool


def serve_dashboard(settings: DashboardSettings, ready: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT, then returns at once. `ready` is told the page's address.

    Only from the main thread. Raises FatalError or StoreError with a message.
    """
    told = threading.Event()
    with served(settings) as address:
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, lambda *_: told.set())
        ready(address)
        told.wait()


@contextmanager
def served(settings: DashboardSettings) -> Iterator[str]:
    """Serves the page on threads until the end of the `with` block; gives its address.

    Raises FatalError or StoreError with a message.
    """
    _check_reach(settings)
    fleet = Fleet(settings.run, settings.redis_url)
    catalogue = Catalogue(settings.store)
    app = build_app(fleet, catalogue, Pictures(settings.image_root), _names(settings))
    # On a thread: uvicorn in the main one ends the process by the signal, not with code 0.
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=_GRACE_S,
        )
    )
    with ExitStack() as stack:
        listening = stack.enter_context(_listen(settings.host, settings.port))
        stack.enter_context(fleet.watched())
        stack.enter_context(catalogue.followed())
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listening]}, name="halp-pages", daemon=True
        )
        thread.start()
        try:
            yield _address(settings.host, listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(2 * _GRACE_S)


def _check_reach(settings: DashboardSettings) -> None:
    if settings.allow_remote or _is_loopback(settings.host):
        return
    raise FatalError(
        f"--host {settings.host} is more than this machine: the dashboard has no password, and "
        "anyone who reaches it sees questions, answers and pictures; add --allow-remote if that is "
        "meant, or leave --host out and come by ssh -L"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in _LOCAL_NAMES


def _names(settings: DashboardSettings) -> set[str]:
    names = {*_LOCAL_NAMES, settings.host.lower()}
    return names | {socket.gethostname().lower()} if settings.allow_remote else names


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FatalError(
            f"the dashboard cannot be served at {host}:{port}: {reason[:1].lower()}{reason[1:]}; "
            "pass another --port (0 for any that is free), or another --host"
        ) from None


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
