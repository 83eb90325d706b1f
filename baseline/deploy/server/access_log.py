"""Measure every request once: a line of the access log, and the metrics that Prometheus reads from `GET /metrics`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from baseline.errors import OutputError, format_count, missing_package, unknown_name
from baseline.terminal import escape_controls

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from baseline.deploy.server.predictor import Predictor

__all__ = ["LOG_FORMATS", "AccessLog", "LogFormat", "ServerMetrics", "check_log_format", "format_record"]


LogFormat = Literal["none", "text", "json"]

LOG_FORMATS = ("none", "text", "json")

MAX_PATH = 200
"""Maximum number of characters of a path in the log; a path is sent by the client."""

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper ends, in seconds, of the classes of the latency histogram."""


def check_log_format(log_format: str) -> None:
    """Raise an OutputError if there is no such format."""
    if log_format not in LOG_FORMATS:
        raise OutputError(unknown_name("log format", log_format, LOG_FORMATS))


def format_record(record: dict[str, Any], log_format: LogFormat) -> str:
    """Return the line of a request.

    >>> record = {"time": "2026-11-29T16:00:00.000Z", "method": "POST", "path": "/predict", "status": 200, "ms": 8.1,
    ...           "bytes": 310, "client": "10.0.0.7", "images": 1}
    >>> format_record(record, "text")
    '2026-11-29T16:00:00.000Z 10.0.0.7 POST /predict 200 8.1 ms 310 bytes 1 image'
    """
    if log_format == "json":
        return json.dumps(record)
    images = format_count(record["images"], "image")
    start = "{time} {client} {method} {path} {status} {ms} ms {bytes} bytes".format(**record)
    return escape_controls(f"{start} {images}")


class AccessLog:
    """The outermost ASGI application: logs and counts every request when its answer has been sent.

    Args:
        app: the application that answers.
        log_format: lines go to standard output.
        paths: paths that the metrics count by name; all others are counted as `other`.
    """

    def __init__(self, app: ASGIApp, log_format: LogFormat, metrics: ServerMetrics, paths: Sequence[str]) -> None:
        self.app, self.log_format, self.metrics, self.paths = app, log_format, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, sent = time.perf_counter(), {"status": 0, "bytes": 0}
        state: dict[str, Any] = scope.setdefault("state", {})

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
            elif scope["method"] != "HEAD":
                sent["bytes"] += len(message.get("body", b""))
            await send(message)

        self.metrics.begin()
        try:
            await self.app(scope, receive, counting_send)
        finally:
            seconds = time.perf_counter() - start
            path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
            record = make_record(seconds, scope.get("client"), scope["method"], path, **sent)
            self.write(record | {"images": state.get("images", 0)})
            name = "/examples" if path.startswith("/examples/") else path
            self.metrics.end(name if name in self.paths else "other", sent["status"], seconds, state)

    def log_invalid(self, client: Any) -> None:
        """Log a request that is not HTTP and was answered with 400, before the application had it."""
        self.write(make_record(0.0, client, "-", "-", 400, 0) | {"images": 0})
        self.metrics.begin()
        self.metrics.end("other", 400, 0.0, {})

    def write(self, record: dict[str, Any]) -> None:
        """Write the line of a request; a reader of the log that has gone does not stop the server."""
        if self.log_format != "none" and sys.stdout is not None:
            with suppress(OSError, ValueError):
                sys.stdout.write(format_record(record, self.log_format) + "\n")
                sys.stdout.flush()


def make_record(seconds: float, client: Any, method: str, path: str, status: int, bytes: int) -> dict[str, Any]:
    """Return what the log says of a request: `time` is when it began, and `bytes` is the size of the answer's body."""
    began = datetime.fromtimestamp(time.time() - seconds, UTC).isoformat(timespec="milliseconds")
    address = "".join(str(client[0]).split())[:MAX_PATH] if client else "-"
    return {
        "time": began.replace("+00:00", "Z"), "method": method[:20], "path": path[:MAX_PATH], "status": status,
        "ms": round(1000 * seconds, 1), "bytes": bytes, "client": address,
    }  # fmt: skip


class ServerMetrics:
    """Counters of a server, as Prometheus reads them; nothing is counted where prometheus-client is not installed."""

    def __init__(self, predictor: Predictor) -> None:
        self.registry: Any = None
        if find_spec("prometheus_client") is None:
            return
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, CPU seconds and open files, on Linux
        labels = ["path", "status"]
        self.requests = Counter("baseline_requests", "Requests by path and status.", labels, registry=registry)
        text = "Seconds until the answer was sent."
        self.seconds = Histogram("baseline_request_seconds", text, ["path"], buckets=BUCKETS, registry=registry)
        self.images = Counter("baseline_images", "Images in all requests.", registry=registry)
        text = "Images that could not be read (invalid), or are unlike the training images (unlike)."
        self.refused = Counter("baseline_images_rejected", text, ["reason"], registry=registry)
        text = "Requests answered with 503, because the server was busy."
        self.busy = Counter("baseline_requests_rejected", text, registry=registry)
        self.in_flight = Gauge("baseline_requests_in_flight", "Requests that are being answered.", registry=registry)
        waiting = Gauge("baseline_images_waiting", "Images that wait for their prediction.", registry=registry)
        waiting.set_function(lambda: predictor.waiting)

    def begin(self) -> None:
        """Count a request that has begun."""
        if self.registry is not None:
            self.in_flight.inc()

    def end(self, path: str, status: int, seconds: float, state: dict[str, Any]) -> None:
        """Count a request that has been answered; `state` has its numbers of `images`, and of `invalid` and `unlike`
        ones."""
        if self.registry is None:
            return
        self.in_flight.dec()
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)
        self.images.inc(state.get("images", 0))
        for reason in ("invalid", "unlike"):
            self.refused.labels(reason).inc(state.get(reason, 0))
        if status == 503:
            self.busy.inc()

    async def respond(self, _: Request) -> Response:
        """Answer `GET /metrics`."""
        if self.registry is None:
            raise HTTPException(501, f"{missing_package('GET /metrics', 'prometheus-client', 'metrics')}.")
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
