"""Protect the server: accept requests only by its own names and from its own pages, and bound their size and time."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from h11 import LocalProtocolError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from baseline.deploy.server.access_log import AccessLog
from baseline.deploy.server.predictor import busy_error
from baseline.errors import OutputError

if TYPE_CHECKING:
    from baseline.deploy.server.predictor import Predictor

__all__ = ["SecurityMiddleware", "TimedProtocol", "check_origins", "error_response"]


MAX_BODIES_IN_MEMORY = 16
"""Maximum size of all request bodies in memory together, in multiples of the maximum size of one."""


SECURITY_HEADERS = [
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
     b"img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]  # fmt: skip
"""Headers that are added to every response."""


BUSY = "baseline.busy"
"""Key of a scope, for a request above the limit of connections."""


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP protocol, except that the head of a request must be complete in time, not only begun, and that the
    answer above the limit of connections says when to try again."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.limit_concurrency = None  # uvicorn's own answer above it has no Retry-After
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        limit = self.config.limit_concurrency
        is_full = limit is not None and max(len(self.connections), len(self.tasks)) >= limit
        self.app = mark_busy(self.config.loaded_app) if is_full else self.config.loaded_app
        self.conn.receive_data(data)
        self.handle_events()  # cancels the timeout when a head is complete

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        if isinstance(self.config.app, AccessLog):
            self.config.app.log_invalid(self.client)


def mark_busy(app: Any) -> Any:
    """Return the application for a request above the limit of connections."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, BUSY: True}, receive, send)

    return answer


async def answer_busy(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request above the limit of connections with 503, and close its connection."""
    response = error_response(busy_error("Too many connections are open.", 1))
    response.raw_headers += [*SECURITY_HEADERS, (b"connection", b"close")]
    await response(scope, receive, send)


class SecurityMiddleware:
    """Wraps the application: decides who may send requests and how much, and adds security headers to every response.

    A page of another site can make a browser send requests here, and, with a name of its own that resolves to this
    machine (DNS rebinding), read the answers. So `Host` must be an address or a name of this server, and `Origin`, if
    present, the same, or one of `origins`.
    """

    def __init__(self, app: ASGIApp, predictor: Predictor, hosts: Sequence[str], origins: Sequence[str] = ()) -> None:
        self.origins = [origin.lower() for origin in origins]
        self.app, self.limits = self.with_cors(app), predictor.limits
        self.bytes_in_memory = 0
        """Size of all request bodies in memory."""
        own = socket.gethostname().lower()
        extra = {name.lower() for name in hosts}
        self.names = {"localhost", own, f"{own}.local"} | extra
        self.sites = {name for name in extra if name != "localhost" and not is_ip_address(name)}

    def with_cors(self, app: ASGIApp) -> ASGIApp:
        """Return an application that lets pages of `origins` read its answers (cross-origin resource sharing)."""
        if not self.origins:
            return app
        return CORSMiddleware(
            app, allow_origins=self.origins, allow_methods=["GET", "POST"], allow_headers=["Content-Type"],
            expose_headers=["Retry-After"],
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if BUSY in scope:
            await answer_busy(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            starts = message["type"] == "http.response.start"
            if starts:
                message["headers"] = [*message["headers"], *SECURITY_HEADERS]
            try:
                await send(message)
            except LocalProtocolError:  # uvicorn has answered already
                if starts:
                    logging.getLogger(__name__).warning("a request was refused: it is not valid HTTP")

        error = self._check_headers(Headers(scope=scope))
        if error is not None:
            answer = error_response(error)
            await (answer if error.status_code == 403 else self.with_cors(answer))(scope, receive, send_with_headers)
            return
        body = LimitedBody(self, receive)
        try:
            await self.app(scope, body, send_with_headers)
        finally:
            self.bytes_in_memory -= body.size

    def _check_headers(self, headers: Headers) -> HTTPException | None:
        host = headers.get("host", "")
        if not self._is_own_host(host):
            message = (
                f"This server does not answer to the name {host[:200]!r}. Start it with --allow-host and that name."
            )
            return HTTPException(403, message)
        origin = headers.get("origin")
        if origin is not None and not self._is_own_page(origin, host):
            return HTTPException(403, "Pages of other sites may not use this server, except those of --allow-origin.")
        length = headers.get("content-length", "0")
        fits = re.fullmatch(r"\d{1,18}", length) and int(length) <= self.limits.bytes
        return None if fits else self.too_large_error()

    def _is_own_page(self, origin: str, host: str) -> bool:
        """Whether a page is ours, or of an allowed origin; behind a proxy, it may use one of our names while the proxy
        uses an address."""
        if "*" in self.origins or origin in self.origins:
            return True
        page_host = origin.lower().partition("://")[2]
        return page_host == host.lower() or host_name(page_host) in self.sites

    def _is_own_host(self, host: str) -> bool:
        name = host_name(host)
        return name in self.names or name.endswith(".localhost") or is_ip_address(name)

    def too_large_error(self) -> HTTPException:
        return HTTPException(
            413, f"The maximum size of a request is {self.limits.megabytes} MB. Send fewer or smaller images."
        )


def check_origins(origins: Sequence[str]) -> None:
    """Raise an OutputError if an origin is neither `*` nor a scheme and a host."""
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", origin.lower()):
            raise OutputError(f"'{origin}' is not the origin of a page. Pass scheme and host, such as https://my.site.")


def host_name(host: str) -> str:
    """Return a host without its port, or an empty string if it is invalid.

    >>> host_name("localhost:8000")
    'localhost'
    """
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
    """The body of a request as it arrives, limited in size and time."""

    def __init__(self, middleware: SecurityMiddleware, receive: Receive) -> None:
        self.middleware, self.receive, self.size = middleware, receive, 0
        self.deadline = asyncio.get_running_loop().time() + middleware.limits.seconds

    async def __call__(self) -> Message:
        middleware, limits = self.middleware, self.middleware.limits
        try:
            async with asyncio.timeout_at(self.deadline):
                message = await self.receive()
        except TimeoutError:
            raise HTTPException(408, f"The request was incomplete after {limits.seconds:g} s.") from None
        size = len(message.get("body", b""))
        self.size += size
        middleware.bytes_in_memory += size
        if self.size > limits.bytes:
            raise middleware.too_large_error()
        if middleware.bytes_in_memory > MAX_BODIES_IN_MEMORY * limits.bytes:
            raise busy_error("Too many requests are being sent at once.", 1)
        return message


def error_response(error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
