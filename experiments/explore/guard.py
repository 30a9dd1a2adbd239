"""What the page's server answers at all: requests of this very page, of a size that a click has, and no uploads."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

MOST_BYTES = 2**20
"""Of a request: a prompt that fills a context is a tenth of it."""


class Guard:
    """An ASGI application before another one.

    Where the page is for this machine alone, requests must name this machine as their host: another site's name that is
    made to lead here (DNS rebinding) would let that site's scripts use the page.

    Args:
        host: where the page is served.
    """

    def __init__(self, app: Application, host: str) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        named = name_of(headers.get(b"host", b"").decode("latin-1"))
        if is_loopback(self.host) and not is_loopback(named):
            return await _refuse(send, 403, f"this page is {self.host}'s, not {named!r}'s")
        if scope["path"].rstrip("/").endswith("/upload"):
            return await _refuse(send, 403, "this page takes no files")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MOST_BYTES:
            return await _refuse(send, 413, f"a request may hold {MOST_BYTES} bytes")
        received = 0

        async def counted() -> Message:
            """The next part of a body; one that never said how long it is ends where it is too long."""
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= MOST_BYTES else {"type": "http.disconnect"}

        return await self.app(scope, counted, send)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its own name.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "evil.example", "")]
    [True, True, True, False, False, False]
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def past_proxies(host: str) -> None:
    """Let nothing that this process asks of itself go through a proxy that the environment names: none leads back."""
    for variable in ("no_proxy", "NO_PROXY"):
        known = [name for name in os.environ.get(variable, "").split(",") if name]
        os.environ[variable] = ",".join(dict.fromkeys([*known, "localhost", "127.0.0.1", "::1", host]))


def name_of(host: str) -> str:
    """A Host header without its port."""
    return host[1 : host.find("]")] if host.startswith("[") else host.rsplit(":", 1)[0]


async def _refuse(send: Send, status: int, why: str) -> None:
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": why.encode()})
