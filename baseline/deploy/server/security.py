"""TODO."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from baseline.deploy.server.predictor import busy_error

if TYPE_CHECKING:
    from baseline.deploy.server.predictor import Predictor


MAX_BODIES_IN_MEMORY = 16
"""Bodies of the largest size that are held at once, in bytes."""


SECURITY_HEADERS = [
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
     b"img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]  # fmt: skip


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP, but a request's head has to be whole in time, not only begun."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        self.conn.receive_data(data)
        self.handle_events()  # stops the clock when a head is whole


class SecurityMiddleware:
    """Stands before everything: who may ask, how much may be sent, and what browsers are told of every answer.

    A page of another site may make a browser send requests here, and with a name of its own that leads here (DNS
    rebinding) read the answers. So `Host` has to be an address or a name of ours, and `Origin`, if told, the same.
    """

    def __init__(self, app: ASGIApp, engine: Predictor, hosts: Sequence[str]) -> None:
        self.app, self.limits, self.held = app, engine.limits, 0
        own = socket.gethostname().lower()
        given = {name.lower() for name in hosts}
        self.names = {"localhost", own, f"{own}.local"} | given
        self.sites = {name for name in given if name != "localhost" and not is_ip_address(name)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *SECURITY_HEADERS]
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        if refusal is not None:
            await error_response(refusal)(scope, receive, answer)
            return
        body = LimitedBody(self, receive)
        try:
            await self.app(scope, body, answer)
        finally:
            self.held -= body.size

    def _refusal(self, headers: Headers) -> HTTPException | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            words = f"This server does not answer to the name {host[:200]!r}. Start it with --allow-host and that name."
            return HTTPException(403, words)
        origin = headers.get("origin")
        if origin is not None and not self._is_own_page(origin, host):
            return HTTPException(403, "Pages of other sites may not use this server.")
        length = headers.get("content-length", "0")
        return self.too_large() if not length.isdecimal() or int(length) > self.limits.bytes else None

    def _is_own_page(self, origin: str, host: str) -> bool:
        """Behind a proxy, a page may come by a name of ours while the proxy asks by an address."""
        place = origin.lower().partition("://")[2]
        return place == host.lower() or host_name(place) in self.sites

    def _is_ours(self, host: str) -> bool:
        name = host_name(host)
        return name in self.names or name.endswith(".localhost") or is_ip_address(name)

    def too_large(self) -> HTTPException:
        most = self.limits.megabytes
        return HTTPException(413, f"At most {most} MB may be sent at once. Send fewer or smaller images.")


def host_name(host: str) -> str:
    """A host without its port; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_ip_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


class LimitedBody:
    """The body of one request as it comes in: counted, and in time."""

    def __init__(self, guard: SecurityMiddleware, receive: Receive) -> None:
        self.guard, self.receive, self.size = guard, receive, 0
        self.until = asyncio.get_running_loop().time() + guard.limits.seconds

    async def __call__(self) -> Message:
        try:
            async with asyncio.timeout_at(self.until):
                message = await self.receive()
        except TimeoutError:
            raise HTTPException(408, f"The request was not whole after {self.guard.limits.seconds:g} s.") from None
        size = len(message.get("body", b""))
        self.size += size
        self.guard.held += size
        if self.size > self.guard.limits.bytes:
            raise self.guard.too_large()
        if self.guard.held > MAX_BODIES_IN_MEMORY * self.guard.limits.bytes:
            raise busy_error("Too much is being sent at once.", 1)
        return message


def error_response(error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
