"""Serve a model as a small web page and an HTTP API.

| address | answer |
|---|---|
| `GET /` | the page, which loads nothing from other servers |
| `POST /predict` | JSON; images are sent as multipart/form-data or, in base64, as JSON |
| `POST /gradcam` | a JPEG: which parts of an image speak for a class |
| `GET /health`, `GET /ready`, `GET /openapi.json` | JSON |
| `GET /metrics` | counters for Prometheus |

Starlette and uvicorn are installed with fastai, which needs them for FastHTML. FastHTML itself is not used: its pages
load scripts from other servers, and it writes a session key into the working directory.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import socket
import webbrowser
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from baseline import __version__
from baseline.data.labels import SEPARATOR
from baseline.deploy.server.access_log import AccessLog, LogFormat, ServerMetrics, check_log_format
from baseline.deploy.server.examples import Example, run_summary
from baseline.deploy.server.openapi import openapi_schema
from baseline.deploy.server.predictor import Limits, Predictor, busy_error
from baseline.deploy.server.security import SecurityMiddleware, TimedProtocol, check_origins, error_response
from baseline.errors import OutputError, first_line, unknown_name
from baseline.files import parse_json
from baseline.inference import DEFAULT_TTA
from baseline.inference.batch import resolve_sets
from baseline.inference.model import Model, load_model
from baseline.inference.reference import class_sets
from baseline.progress import Progress
from baseline.report.html import render

__all__ = ["create_app", "serve"]


MAX_CONNECTIONS, IDLE_TIMEOUT_SECONDS = 512, 20
"""Maximum number of open connections, and seconds after which an idle one is closed."""


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    tta: bool = DEFAULT_TTA,
    reject_unlike: float = 0.0,
    coverage: float = 0.0,
    examples: bool = True,
    limits: Limits | None = None,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    log_format: LogFormat = "none",
    browser: bool = False,
    progress: Progress | None = None,
) -> None:
    """Serve the page and the API of a model until SIGINT (Ctrl-C) or SIGTERM.

    Args:
        model: a run folder, or its `model/` alone.
        host: the address to listen on; 127.0.0.1 is reachable from this machine only.
        port: the port; 0 for any free one, which `progress` reports.
        tta: average over the views of the run's evaluation (test-time augmentation, TTA).
        reject_unlike: add to each answer how `unlike` the training images the image is (0 to 1), and whether it is
            `rejected`: this share of the run's valid images would be. 0 for neither.
        coverage: add to each answer a `set` of classes that contains the true one at this rate; 0 for none.
        examples: show some of the images in the run's image folder, decoded and encoded again.
        hosts: names of the server, in addition to addresses, localhost and the machine's own name.
        origins: other sites whose pages may use the server, such as `https://my.site`; `*` for all.
        log_format: `"text"` or `"json"` writes a line to standard output for every request.
        browser: open the page in a browser.

    Raises:
        OutputError: if the server cannot listen there, there is no model folder, or an origin is invalid.
        RecipeError: if the run has too few valid images for `reject_unlike` or `coverage`.
        WeightsError: if the model's tensors are damaged.

    >>> serve("runs/mine", port=8080)                                              # doctest: +SKIP
    """
    progress = progress or Progress()
    with listen(host, port) as listener:
        app = create_app(
            model, tta=tta, reject_unlike=reject_unlike, coverage=coverage, examples=examples, limits=limits,
            hosts=(host, *hosts), origins=origins, log_format=log_format, progress=progress,
        )  # fmt: skip
        url = server_url(host, listener.getsockname()[1])
        progress.log(f"serving: {url} (press Ctrl-C to stop)")
        if browser:
            webbrowser.open(url)
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs every damaged form
        # timeout_graceful_shutdown: answers in progress are completed, uploads in progress are cut off
        config = uvicorn.Config(
            app, http=TimedProtocol, ws="none", lifespan="on", log_config=None, log_level="critical", access_log=False,
            server_header=False, limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=IDLE_TIMEOUT_SECONDS,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after it has stopped
            uvicorn.Server(config).run([listener])
    progress.log("stopped")


def create_app(
    model: str | Path | Model,
    *,
    tta: bool = DEFAULT_TTA,
    reject_unlike: float = 0.0,
    coverage: float = 0.0,
    examples: bool = True,
    limits: Limits | None = None,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    log_format: LogFormat = "none",
    progress: Progress | None = None,
) -> ASGIApp:
    """Return the application that `serve` runs, for an ASGI server of your own.

    >>> app = create_app("runs/mine")                                             # doctest: +SKIP
    """
    progress = progress or Progress()
    limits = limits or Limits()
    check_log_format(log_format)
    check_origins(origins)
    loaded = model if isinstance(model, Model) else load_model(model)
    folder = loaded.folder if isinstance(model, Model) else Path(model).expanduser()
    if reject_unlike:
        loaded.reference.check_rate(reject_unlike)
    set_threshold = resolve_sets(loaded, coverage, tta, progress) if coverage else None
    predictor = Predictor(loaded, tta, limits, reject_unlike, set_threshold)
    metrics = ServerMetrics(predictor)
    handlers = Routes(predictor, *run_summary(folder, predictor, examples, progress))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with predictor.running():
            yield

    routes = [
        Route("/", handlers.page),
        Route("/serve.css", handlers.style),
        Route("/serve.js", handlers.script),
        Route("/examples/{number}", handlers.example),
        Route("/examples/{number}/small", handlers.small_example),
        Route("/predict", handlers.predict, methods=["POST"]),
        Route("/gradcam", handlers.gradcam, methods=["POST"]),
        Route("/health", handlers.health),
        Route("/ready", handlers.ready),
        Route("/metrics", metrics.respond),
        Route("/openapi.json", handlers.openapi),
    ]
    on_exception: dict[Any, Any] = {
        HTTPException: _on_http_error,
        ClientDisconnect: _on_disconnect,
        MemoryError: _on_memory_error,
        Exception: _on_error,
    }
    app = Starlette(routes=routes, exception_handlers=on_exception, lifespan=lifespan)
    protected = SecurityMiddleware(app, predictor, hosts, origins)
    return AccessLog(protected, log_format, metrics, [*(route.path for route in routes), "/examples"])


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a listening socket; requests that arrive before the model is loaded are answered afterwards."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address, family=family, backlog=1024)
    except (OSError, UnicodeError) as error:  # a name that is longer than names of hosts are is a UnicodeError
        reason = (getattr(error, "strerror", None) or first_line(error)).partition(" (while")[0]
        message = f"Cannot listen on {host}, port {port}: {reason}."
        raise OutputError(f"{message} Use another --port (0 for any free one), or another --host.") from None
    with listener:
        yield listener


def server_url(host: str, port: int) -> str:
    """Return the URL of the server; if it listens on all addresses, the one that others in the network can use."""
    if host in ("0.0.0.0", "::", ""):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing
            host = probe.getsockname()[0]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


MAX_FORM_END = 512
"""Bytes at the end of a form in which its last boundary, of at most 70 bytes, has to be."""


class InMemoryFormParser(MultiPartParser):
    """Starlette's form parser, which would otherwise put large files into temporary ones."""

    spool_max_size = 0  # for tempfile: never


async def read_images(request: Request, limits: Limits) -> tuple[list[tuple[str, bytes]], Mapping[str, Any]]:
    """Return the images of a request with their names, and its other fields.

    Raises:
        HTTPException: if the request is malformed, or contains no image or too many.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        images, fields = await _images_from_form(request, limits)
    elif content_type == "application/json":
        images, fields = await asyncio.to_thread(_images_from_json, await request.body())
    else:
        raise HTTPException(
            415, f"The content type must be multipart/form-data or application/json, not {content_type[:100]!r}."
        )
    if not images:
        raise HTTPException(422, 'There is no image in the request. Send files, or base64 as "image" in JSON.')
    request.state.images = len(images)
    if len(images) > (max_images := min(limits.images, limits.waiting)):
        plural = "" if max_images == 1 else "s"
        raise HTTPException(413, f"At most {max_images} image{plural} can be sent at once, not {len(images)}.")
    return images, fields


async def _images_from_form(request: Request, limits: Limits) -> tuple[list[tuple[str, bytes]], Mapping[str, Any]]:
    end = bytearray()

    async def stream() -> AsyncGenerator[bytes]:
        async for chunk in request.stream():
            end.extend(chunk)
            del end[:-MAX_FORM_END]
            yield chunk

    form = InMemoryFormParser(request.headers, stream(), max_files=limits.images, max_fields=16)
    try:
        items = (await form.parse()).multi_items()
        boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"")
        if b"--" + boundary + b"--" not in end:
            raise MultiPartException("it is cut, and its end is missing")
    except (MultiPartException, FormParserError) as error:  # Starlette before 1.0 lets the latter through
        reason = first_line(Exception(getattr(error, "message", error)))
        raise HTTPException(400, f"The form cannot be read: {reason}.") from None
    uploads = [value for _, value in items if isinstance(value, UploadFile)]
    images = [(upload.filename or "", await upload.read()) for upload in uploads]
    return images, {name: value for name, value in items if isinstance(value, str)}


MAX_JSON_MARKS = 10_000
"""Maximum number of commas and colons in JSON; a request of the most images has a few hundred."""


MAX_ESCAPED, MIN_ESCAPES = 1 / 16, 1000
"""Maximum share of characters in JSON that are escaped, such as the slashes of base64, and how many always may be."""


def check_json(body: bytes) -> None:
    """Raise an error for JSON that takes long to parse, and does not need to: meanwhile the server does nothing else.

    Raises:
        HTTPException: if it has more values, or more escaped characters, than images need.
    """
    if sum(body.count(mark) for mark in (b",", b":")) > MAX_JSON_MARKS:
        raise HTTPException(413, f"The JSON has more than {MAX_JSON_MARKS:,} values. Send images only.")
    if body.count(b"\\") > max(MIN_ESCAPES, len(body) * MAX_ESCAPED):
        raise HTTPException(413, "The JSON has too many escaped characters. Send base64 as it is.")


def _images_from_json(body: bytes) -> tuple[list[tuple[str, bytes]], Mapping[str, Any]]:
    check_json(body)
    try:
        fields = parse_json(body)
    except ValueError as error:
        raise HTTPException(400, f"The body is not valid JSON: {first_line(error)}.") from None
    if not isinstance(fields, dict):
        raise HTTPException(422, 'The JSON must be an object such as {"image": "BASE64"}.')
    images = fields.get("images", [fields["image"]] if "image" in fields else [])
    if not isinstance(images, list) or not all(isinstance(text, str) for text in images):
        raise HTTPException(422, '"image" must be a base64 string, and "images" a list of such strings.')
    return [("", _decode_base64(text)) for text in images], fields


def _decode_base64(text: str) -> bytes:
    try:
        content = text.rpartition("base64,")[2].encode("ascii").translate(None, b" \t\r\n")
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(422, "An image is not valid base64.") from None


class Routes:
    """Request handlers of all addresses."""

    def __init__(self, predictor: Predictor, headline: str, examples: Sequence[Example]) -> None:
        self.predictor, self.examples = predictor, examples
        facts = predictor.model.config
        context = {
            "facts": facts, "classes": predictor.classes, "multilabel": predictor.model.multilabel,
            "has_gradcam": predictor.has_gradcam, "views": facts["tta"] if predictor.tta else [], "headline": headline,
            "examples": [example.label for example in examples], "limits": predictor.limits, "version": __version__,
        }  # fmt: skip
        style, script = (files("baseline.report") / "templates" / name for name in ("serve.css", "serve.js"))
        colors = files("baseline.report") / "templates" / "colors.css"
        self.page = _static_response("text/html", render("serve", context))
        self.style = _static_response("text/css", colors.read_text("utf-8") + style.read_text("utf-8"))
        self.script = _static_response("text/javascript", script.read_text("utf-8"))
        self.openapi = _static_response("application/json", json.dumps(openapi_schema(predictor)))

    async def predict(self, request: Request) -> Response:
        predictor = self.predictor
        top = request.query_params.get("top", str(len(predictor.classes)))
        if not (top.isdecimal() and len(top) < 9 and int(top) > 0):
            raise HTTPException(422, "top must be a positive whole number.")
        if predictor.waiting >= predictor.limits.waiting:
            raise predictor.queue_full_error()
        images, _ = await read_images(request, predictor.limits)
        async with predictor.reserve(len(images)):
            results = await asyncio.gather(*(self._predict_one(name, content, int(top)) for name, content in images))
        errors = [error for _, error in results if error is not None]
        request.state.invalid = len(errors)
        request.state.unlike = sum(prediction.get("rejected", False) for prediction, _ in results)
        if len(errors) == len(results):
            raise errors[0]
        return JSONResponse({"tta": predictor.tta, "predictions": [prediction for prediction, _ in results]})

    async def _predict_one(self, name: str, content: bytes, top: int) -> tuple[dict[str, Any], HTTPException | None]:
        """Return the JSON for one image, and the error if it was refused."""
        predictor = self.predictor
        try:
            block, index = await predictor.predict(content)
        except HTTPException as error:
            return {"name": name, "error": error.detail}, error
        by_class = zip(predictor.classes, block.probabilities[index].tolist(), strict=True)
        most_probable = sorted(by_class, key=lambda pair: -pair[1])[:top]
        predicted: Any = block.predicted[index]
        if predictor.model.multilabel:
            predicted = predicted.split(SEPARATOR) if predicted else []
        measured: dict[str, Any] = {}
        if block.unlike is not None:
            unlike = float(block.unlike[index])
            measured = {"unlike": round(unlike, 6), "rejected": unlike > 1 - predictor.reject_unlike}
        if predictor.set_threshold is not None:
            row = block.probabilities[index : index + 1]
            measured["set"] = class_sets(row, predictor.set_threshold, predictor.classes)[0]
        return {
            "name": name,
            "predicted": predicted,
            "confidence": round(float(block.confidence[index]), 6),
            **measured,
            "probabilities": {label: round(value, 6) for label, value in most_probable},
        }, None

    async def gradcam(self, request: Request) -> Response:
        predictor = self.predictor
        if not predictor.has_gradcam:
            facts = predictor.model.config
            message = f"Grad-CAM is not available for {facts['arch']} at {facts['image_size']} pixels"
            raise HTTPException(404, f"{message}: its last layers have no spatial feature map.")
        if predictor.waiting >= predictor.limits.waiting:
            raise predictor.queue_full_error()
        images, fields = await read_images(request, predictor.limits)
        name = fields.get("class")
        if name is not None and name not in predictor.classes:
            raise HTTPException(422, unknown_name("class", str(name)[:100], predictor.classes))
        if len(images) > 1:
            raise HTTPException(422, f"Send exactly one image, not {len(images)}.")
        async with predictor.reserve():
            return Response(await predictor.gradcam(images[0][1], name), media_type="image/jpeg")

    async def health(self, _: Request) -> Response:
        predictor = self.predictor
        return JSONResponse(
            {
                "status": "ok",
                "version": __version__,
                "model": predictor.model.identity,
                "waiting": predictor.waiting,
            }
        )

    async def ready(self, _: Request) -> Response:
        predictor = self.predictor
        if not predictor.is_running:
            raise busy_error("The server is stopping.", 1)
        if predictor.waiting >= predictor.limits.waiting:
            raise predictor.queue_full_error()
        return JSONResponse({"status": "ready", "waiting": predictor.waiting})

    async def example(self, request: Request) -> Response:
        return Response(self._example(request).image, media_type="image/png")

    async def small_example(self, request: Request) -> Response:
        return Response(self._example(request).small, media_type="image/jpeg")

    def _example(self, request: Request) -> Example:
        numbers = {str(number): example for number, example in enumerate(self.examples)}
        if (number := request.path_params["number"]) not in numbers:
            raise HTTPException(404, "There is no such example.")
        return numbers[number]


def _static_response(media_type: str, content: str) -> Any:
    async def respond(_: Request) -> Response:
        return Response(content, media_type=media_type)

    return respond


async def _on_http_error(_: Request, error: HTTPException) -> Response:
    return error_response(error)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return error_response(HTTPException(400, "The connection was closed before the request was complete."))


async def _on_memory_error(_: Request, __: Exception) -> Response:
    return error_response(busy_error("The server has too little memory for the image.", 1))


async def _on_error(_: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return error_response(HTTPException(500, "The request failed on the server; see the server's output."))
