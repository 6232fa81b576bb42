"""`Guard`: which requests are heard at all, and what every answer forbids the browser.

A page of somebody else, open in the same browser, must neither read nor start anything here: not
by a name that it points at this address (Host), not by fetching or embedding (Sec-Fetch-Site).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Only what this server itself serves, and nothing inline."""

_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_OWN: Final = frozenset({"", "none", "same-origin"})
"""Sec-Fetch-Site of a page of ours, of a person who typed the address, and of no browser at all."""


class Guard:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        """names: host names, lower case, that this server goes by. IP addresses always pass: only a
        name can be pointed elsewhere."""
        self._app, self._names = app, frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # there are no WebSockets here
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        if refusal := self._refusal(scope, headers):
            response = JSONResponse({"error": refusal}, status_code=403)
            await response(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return (
                f"this server does not go by the name {host!r}: use localhost, its IP address, or "
                "the --host that it was started with"
            )
        is_data = scope["path"].startswith("/api/")
        if is_data and headers.get("sec-fetch-site", "") not in _OWN:
            return "another site's page asked for this"
        return None

    def _is_ours(self, host: str) -> bool:
        start, end = ("[", "]") if host.startswith("[") else ("", ":")
        name = host.removeprefix(start).partition(end)[0]
        if name.lower() in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
