"""Model folder -> a small web page and an HTTP API that predict images. Knows requests and a queue; trains nothing.

| address | answers |
|---|---|
| `GET /` | the page; it loads nothing from elsewhere |
| `POST /predict` | JSON; images come as multipart/form-data or, in base64, as JSON |
| `POST /gradcam` | a JPEG: what in one image speaks for a class |
| `GET /health`, `GET /openapi.json` | JSON |

An image goes from the event loop to a thread that decodes it, then waits until the network is free, which takes all that
wait by then, up to a batch: an image that comes alone is never kept waiting for others. What was sent stays in memory.

Starlette and uvicorn are there because fastai brings them, under FastHTML. FastHTML itself is not used: its pages load
scripts from elsewhere, and it writes a session key into the working folder.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import csv
import json
import logging
import random
import socket
import webbrowser
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from baseline import __version__
from baseline.data.image import load_image
from baseline.data.labels import SEPARATOR
from baseline.deploy.server.predictor import MAX_EXAMPLES, THUMBNAIL_SIZE, Limits, Predictor, encode_jpeg
from baseline.deploy.server.security import SecurityMiddleware, TimedProtocol, error_response
from baseline.errors import OutputError, first_line, unknown_name
from baseline.inference.model import Model, load_model
from baseline.progress import Progress
from baseline.report.html import render
from baseline.runs.folder import headline_split, read_manifest

__all__ = ["create_app", "serve"]


MAX_CONNECTIONS, IDLE_TIMEOUT_SECONDS = 512, 20


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    tta: bool = False,
    examples: bool = True,
    limits: Limits | None = None,
    hosts: Sequence[str] = (),
    browser: bool = False,
    progress: Progress | None = None,
) -> None:
    """Serves the page and the API of a model until SIGINT (Ctrl-C) or SIGTERM.

    Args:
        model: a run folder, or its `model/` alone.
        host: the address to listen at; 127.0.0.1 is this machine alone.
        port: 0 for any that is free; `show` is told which.
        tta: average over the views of the training's evaluation.
        examples: show a few of the run's images, where they are still there.
        hosts: names by which the server is reached, beside addresses, localhost and the machine's own name.
        browser: open the page in a browser.

    Raises:
        OutputError: if it cannot listen there, or there is no model folder.
        WeightsError: if the model's tensors are damaged.

    >>> serve("runs/mine", port=8080)                                              # doctest: +SKIP
    """
    progress = progress or Progress()
    with _listen(host, port) as listener:
        app = create_app(model, tta=tta, examples=examples, limits=limits, hosts=(host, *hosts), progress=progress)
        address = _address(host, listener.getsockname()[1])
        progress.log(f"serving: {address} (Ctrl-C stops it)")
        if browser:
            webbrowser.open(address)
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it tells of every form that is damaged
        # `timeout_graceful_shutdown`: what is being answered may end; what is being sent is cut off
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
    tta: bool = False,
    examples: bool = True,
    limits: Limits | None = None,
    hosts: Sequence[str] = (),
    progress: Progress | None = None,
) -> ASGIApp:
    """What `serve` serves, for an ASGI server of your own.

    >>> app = create_app("runs/mine")                                             # doctest: +SKIP
    """
    progress = progress or Progress()
    limits = limits or Limits()
    loaded = model if isinstance(model, Model) else load_model(model)
    folder = loaded.folder if isinstance(model, Model) else Path(model).expanduser()
    engine = Predictor(loaded, tta, limits)
    site = _Routes(engine, *_run_summary(folder, examples, progress))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with engine.working():
            yield

    routes = [
        Route("/", site.page),
        Route("/serve.css", site.style),
        Route("/serve.js", site.script),
        Route("/examples/{number:int}", site.example),
        Route("/examples/{number:int}/small", site.small_example),
        Route("/predict", site.predict, methods=["POST"]),
        Route("/gradcam", site.gradcam, methods=["POST"]),
        Route("/health", site.health),
        Route("/openapi.json", site.openapi),
    ]
    handlers: dict[Any, Any] = {HTTPException: _on_http_error, ClientDisconnect: _on_disconnect, Exception: _on_error}
    return SecurityMiddleware(Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan), engine, hosts)


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens: who comes before the model is loaded is answered then."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address, family=family, backlog=1024)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]
        words = f"Cannot listen at {host}, port {port}: {why}."
        raise OutputError(f"{words} Give another --port (0 takes any that is free), or another --host.") from None
    with listener:
        yield listener


def _address(host: str, port: int) -> str:
    if host in ("0.0.0.0", "::", ""):  # everywhere: told is where others of the network find it
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing
            host = probe.getsockname()[0]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _InMemoryFormParser(MultiPartParser):
    """Starlette's, which would put large files into temporary ones."""

    spool_max_size = 0  # of tempfile: never


async def _read_images(request: Request, limits: Limits) -> tuple[list[tuple[str, bytes]], Mapping[str, Any]]:
    """Images with their names, and whatever else was sent with them."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images, fields = await _images_from_form(request, limits)
    elif kind == "application/json":
        images, fields = await asyncio.to_thread(_images_from_json, await request.body())
    else:
        raise HTTPException(415, f"multipart/form-data or application/json was needed, not {kind[:100]!r}.")
    if not images:
        raise HTTPException(422, 'There is no image in the request. Send files, or base64 as "image" in JSON.')
    if len(images) > (most := min(limits.images, limits.waiting)):
        raise HTTPException(413, f"At most {most} images may be sent at once, not {len(images)}.")
    return images, fields


async def _images_from_form(request: Request, limits: Limits) -> tuple[list[tuple[str, bytes]], Mapping[str, Any]]:
    form = _InMemoryFormParser(request.headers, request.stream(), max_files=limits.images, max_fields=16)
    try:
        sent = (await form.parse()).multi_items()
    except MultiPartException as error:
        raise HTTPException(400, f"The form cannot be read: {first_line(Exception(error.message))}.") from None
    files = [each for _, each in sent if isinstance(each, UploadFile)]
    return [(each.filename or "", await each.read()) for each in files], {
        name: value for name, value in sent if isinstance(value, str)
    }


def _images_from_json(body: bytes) -> tuple[list[tuple[str, bytes]], Mapping[str, Any]]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"The body is no JSON: {first_line(error)}.") from None
    if not isinstance(given, dict):
        raise HTTPException(422, 'JSON such as {"image": "BASE64"} was needed.')
    images = given.get("images", [given["image"]] if "image" in given else [])
    if not isinstance(images, list) or not all(isinstance(each, str) for each in images):
        raise HTTPException(422, '"image" has to be text in base64, "images" a list of such texts.')
    return [("", _decode_base64(each)) for each in images], given


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.rpartition("base64,")[2].split()), validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(422, "An image is no base64.") from None


class _Routes:
    """The addresses."""

    def __init__(self, engine: Predictor, number: Mapping[str, Any], examples: Sequence[tuple[Path, str]]) -> None:
        self.engine, self.examples = engine, examples
        facts = engine.model.config
        page = {
            "facts": facts, "classes": engine.classes, "many": engine.model.multilabel, "has_maps": engine.has_maps,
            "views": facts["tta"] if engine.tta else [], "number": number, "examples": [label for _, label in examples],
            "limits": engine.limits, "version": __version__,
        }  # fmt: skip
        style, script = (files("baseline.report") / "templates" / name for name in ("serve.css", "serve.js"))
        colours = files("baseline.report") / "templates" / "colours.css"
        self.page = _static_response("text/html", render("serve", page))
        self.style = _static_response("text/css", colours.read_text("utf-8") + style.read_text("utf-8"))
        self.script = _static_response("text/javascript", script.read_text("utf-8"))
        self.openapi = _static_response("application/json", json.dumps(_openapi_schema(engine)))

    async def predict(self, request: Request) -> Response:
        engine = self.engine
        top = request.query_params.get("top", str(len(engine.classes)))
        if not (top.isdecimal() and len(top) < 9 and int(top) > 0):
            raise HTTPException(422, "top has to be a whole number from 1 on.")
        if engine.waiting >= engine.limits.waiting:
            raise engine.full()
        images, _ = await _read_images(request, engine.limits)
        async with engine.place(len(images)):
            found = await asyncio.gather(*(self._told(name, content, int(top)) for name, content in images))
        errors = [each for _, each in found if each is not None]
        if len(errors) == len(found):
            raise errors[0]
        return JSONResponse({"predictions": [each for each, _ in found]})

    async def _told(self, name: str, content: bytes, top: int) -> tuple[dict[str, Any], HTTPException | None]:
        """What is told of one image, and why it was refused, if it was."""
        engine = self.engine
        try:
            block, number = await engine.predict(content)
        except HTTPException as error:
            return {"name": name, "error": error.detail}, error
        by_class = zip(engine.classes, block.probabilities[number].tolist(), strict=True)
        first = sorted(by_class, key=lambda each: -each[1])[:top]
        predicted: Any = block.predicted[number]
        if engine.model.multilabel:
            predicted = predicted.split(SEPARATOR) if predicted else []
        return {
            "name": name,
            "predicted": predicted,
            "confidence": round(float(block.confidence[number]), 6),
            "probabilities": {name: round(value, 6) for name, value in first},
        }, None

    async def gradcam(self, request: Request) -> Response:
        engine = self.engine
        if not engine.has_maps:
            facts = engine.model.config
            words = f"There is no Grad-CAM for {facts['arch']} at {facts['image_size']} pixels"
            raise HTTPException(404, f"{words}: its last layers keep no map of places.")
        if engine.waiting >= engine.limits.waiting:
            raise engine.full()
        images, fields = await _read_images(request, engine.limits)
        name = fields.get("class")
        if name is not None and name not in engine.classes:
            raise HTTPException(422, unknown_name("class", str(name)[:100], engine.classes))
        if len(images) > 1:
            raise HTTPException(422, f"One image was needed, not {len(images)}.")
        async with engine.place():
            return Response(await engine.look(images[0][1], name), media_type="image/jpeg")

    async def health(self, _: Request) -> Response:
        engine = self.engine
        told = {"status": "ok", "version": __version__, "model": engine.model.identity, "waiting": engine.waiting}
        return JSONResponse(told)

    async def example(self, request: Request) -> Response:
        path = self._example(request)
        return Response(await self._read(path.read_bytes), media_type="application/octet-stream")

    async def small_example(self, request: Request) -> Response:
        path = self._example(request)
        return Response(await self._read(partial(_small_image, path)), media_type="image/jpeg")

    def _example(self, request: Request) -> Path:
        number = request.path_params["number"]
        if number >= len(self.examples):
            raise HTTPException(404, "There is no such example.")
        return self.examples[number][0]

    async def _read(self, read: Any) -> bytes:
        try:
            return await asyncio.get_running_loop().run_in_executor(self.engine.readers, read)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what PIL says of damaged files
            raise HTTPException(404, "The example is no longer there.") from None


def _static_response(kind: str, content: str) -> Any:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


def _small_image(path: Path) -> bytes:
    image = load_image(path, THUMBNAIL_SIZE)
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    return encode_jpeg(image)


async def _on_http_error(_: Request, error: HTTPException) -> Response:
    return error_response(error)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return error_response(HTTPException(400, "The request broke off."))


async def _on_error(_: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return error_response(HTTPException(500, "This failed here; the server's own output says why."))


def _run_summary(folder: Path, examples: bool, progress: Progress) -> tuple[dict[str, Any], list[tuple[Path, str]]]:
    """The number of the run and some of its images with their labels; nothing where the folder is a model's alone."""
    if not (folder / "manifest.json").exists():
        return {}, []
    try:
        metrics = read_manifest(folder)["metrics"]
        split = headline_split(metrics)
        found = metrics[split]["tta"]
        low, high = found["interval"]
        number = {"split": split, "accuracy": float(found["accuracy"]), "interval": (float(low), float(high))}
        return number, _find_examples(folder / "split.csv", split) if examples else []
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        progress.log(f"the page goes without the run's numbers and images: {first_line(error)}")
        return {}, []


def _find_examples(path: Path, split: str) -> list[tuple[Path, str]]:
    """A few images of the split that are still there, of as many classes as there is room for."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(Path(row["path"]), row["label"]) for row in csv.DictReader(file) if row["split"] == split]
    random.Random(0).shuffle(rows)
    seen: dict[str, int] = {}
    turns = []
    for each, label in rows:
        seen[label] = seen.get(label, 0) + 1
        turns.append((seen[label], each, label))
    there = ((each, label) for _, each, label in sorted(turns, key=lambda turn: turn[0])[:200] if each.is_file())
    return [found for _, found in zip(range(MAX_EXAMPLES), there, strict=False)]


def _openapi_schema(engine: Predictor) -> dict[str, Any]:
    """The API in the words of OpenAPI 3.1."""
    words = {"type": "string"}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    binary = {"type": "string", "format": "binary"}
    text = {"type": "string", "contentEncoding": "base64"}
    predicted = {"type": "array", "items": words} if engine.model.multilabel else words
    asked = {"class": {**words, "description": "The class that is asked about; the most probable one if not given."}}

    def body(form: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        kinds = {"multipart/form-data": form, "application/json": data}
        content = {kind: {"schema": {"type": "object", "properties": each}} for kind, each in kinds.items()}
        return {"required": True, "content": content}

    def answers(kind: str, schema: dict[str, Any], what: str, errors: Mapping[int, str]) -> dict[str, Any]:
        told = {"200": {"description": what, "content": {kind: {"schema": schema}}}}
        refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        return told | {str(code): {"description": why, "content": refused} for code, why in errors.items()}

    prediction = {
        "type": "object",
        "properties": {
            "name": {**words, "description": "The file's name, as it was sent."},
            "predicted": predicted,
            "confidence": {**share, "description": "Calibrated, if the run was."},
            "probabilities": {"type": "object", "additionalProperties": share, "description": "Highest first."},
            "error": {**words, "description": "Why this image was refused; nothing else is told of it."},
        },
    }
    every = {"type": "object", "properties": {"predictions": {"type": "array", "items": prediction}}}
    top = {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1},
           "description": "Tells so many of the most probable classes; all if not given."}  # fmt: skip
    several = {"type": "array", "items": text, "maxItems": engine.limits.images}
    return {
        "openapi": "3.1.0",
        "info": {"title": "baseline", "version": __version__, "description": "Predicts the classes of images."},
        "paths": {
            "/predict": {"post": {
                "summary": "Predicts images. If some of several are refused, they have an `error`; if all are, that is "
                           "the answer.",
                "parameters": [top],
                "requestBody": body({"image": {"type": "array", "items": binary}}, {"image": text, "images": several}),
                "responses": answers("application/json", every, "A prediction for each image, in order.", ERROR_MESSAGES),
            }},
            "/gradcam": {"post": {
                "summary": "Shows what in one image speaks for a class (Grad-CAM).",
                "requestBody": body({"image": binary, **asked}, {"image": text, **asked}),
                "responses": answers("image/jpeg", binary, "The image, yellow where it speaks most for it.",
                                     {**ERROR_MESSAGES, 404: "The network has no map of places."}),
            }},
            "/health": {"get": {
                "summary": "Whether the server answers.",
                "responses": answers("application/json", {"type": "object"}, "It does.", {}),
            }},
        },
        "components": {"schemas": {"Error": {"type": "object", "required": ["error"], "properties": {"error": words}}}},
    }  # fmt: skip


ERROR_MESSAGES = {
    400: "The request cannot be read.",
    403: "It came by a strange name, or from another site's page.",
    408: "It was not whole in time.",
    413: "Too many bytes, pixels or images.",
    415: "It, or a file in it, is of another kind than can be read.",
    422: "What it says cannot be, or an image is damaged.",
    503: "Too many images are waiting; Retry-After tells for how many seconds.",
}
