"""Model folder -> a small web page and an HTTP API that predict photos. Knows requests and a queue; trains nothing.

| address | answers |
|---|---|
| `GET /` | the page; it loads nothing from elsewhere |
| `POST /predict` | JSON; photos come as multipart/form-data or, in base64, as JSON |
| `POST /gradcam` | a JPEG: what in one photo speaks for a class |
| `GET /health`, `GET /openapi.json` | JSON |

A photo goes from the event loop to a thread that decodes it, then waits until the network is free, which takes all that
wait by then, up to a batch: a photo that comes alone is never kept waiting for others. What was sent stays in memory.

Starlette and uvicorn are there because fastai brings them, under FastHTML. FastHTML itself is not used: its pages load
scripts from elsewhere, and it writes a session key into the working folder.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import csv
import ipaddress
import json
import logging
import math
import os
import random
import socket
import webbrowser
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from . import __version__
from .errors import OutputError, first_line, unknown
from .figures import heated
from .gradcam import grad_cam
from .model import Block, Model, load_model
from .pages import rendered
from .photos import fit_photo, open_photo, opened, why_unreadable
from .progress import Show
from .save import judged_split, read_manifest
from .tables import SEPARATOR

__all__ = ["Limits", "application", "serve"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Of PIL, that are read from strangers. Others run programs (EPS), or have been looked at by few."""

EXAMPLES = 8
SHOWN, SMALL = 640, 176
"""Pixels of the longer side of a Grad-CAM and of an example in the page."""

HELD = 16
"""Bodies of the largest size that are held at once, in bytes."""

CONNECTIONS, IDLE_SECONDS = 512, 20

HEADERS = [
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
     b"img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a server takes; what is more is refused in a sentence."""

    megabytes: int = 32
    """Of a request."""
    megapixels: int = 64
    """Millions of pixels of a photo, before it is decoded."""
    photos: int = 64
    """In a request."""
    waiting: int = 256
    """Photos that are not yet answered; then 503 with Retry-After."""
    batch: int = 16
    """Photos that the network sees at once."""
    seconds: float = 30
    """For a request to be sent, and again for its answer."""

    @property
    def bytes(self) -> int:
        return self.megabytes * 1_000_000


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
    show: Show | None = None,
) -> None:
    """Serves the page and the API of a model until SIGINT (Ctrl-C) or SIGTERM.

    Args:
        model: a run folder, or its `model/` alone.
        host: the address to listen at; 127.0.0.1 is this machine alone.
        port: 0 for any that is free; `show` is told which.
        tta: average over the views of the training's evaluation.
        examples: show a few of the run's photos, where they are still there.
        hosts: names by which the server is reached, beside addresses, localhost and the machine's own name.
        browser: open the page in a browser.

    Raises:
        OutputError: if it cannot listen there, or there is no model folder.
        WeightsError: if the model's tensors are damaged.

    >>> serve("runs/mine", port=8080)                                              # doctest: +SKIP
    """
    show = show or Show()
    with _listening(host, port) as listener:
        app = application(model, tta=tta, examples=examples, limits=limits, hosts=(host, *hosts), show=show)
        address = _address(host, listener.getsockname()[1])
        show.say(f"serving: {address} (Ctrl-C stops it)")
        if browser:
            webbrowser.open(address)
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it tells of every form that is damaged
        # `timeout_graceful_shutdown`: what is being answered may end; what is being sent is cut off
        config = uvicorn.Config(
            app, http=_Protocol, ws="none", lifespan="on", log_config=None, log_level="critical", access_log=False,
            server_header=False, limit_concurrency=CONNECTIONS, timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after it has stopped
            uvicorn.Server(config).run([listener])
    show.say("stopped")


def application(
    model: str | Path | Model,
    *,
    tta: bool = False,
    examples: bool = True,
    limits: Limits | None = None,
    hosts: Sequence[str] = (),
    show: Show | None = None,
) -> ASGIApp:
    """What `serve` serves, for an ASGI server of your own.

    >>> app = application("runs/mine")                                             # doctest: +SKIP
    """
    show = show or Show()
    limits = limits or Limits()
    loaded = model if isinstance(model, Model) else load_model(model)
    folder = loaded.folder if isinstance(model, Model) else Path(model).expanduser()
    engine = _Engine(loaded, tta, limits)
    site = _Site(engine, *_run_facts(folder, examples, show))

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
    handlers: dict[Any, Any] = {HTTPException: _refused, ClientDisconnect: _gone, Exception: _failed}
    return _Guard(Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan), engine, hosts)


# ---- listening ------------------------------------------------------------------------------------------------------


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
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


class _Protocol(H11Protocol):
    """uvicorn's HTTP, but a request's head has to be whole in time, not only begun."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        self.conn.receive_data(data)
        self.handle_events()  # stops the clock when a head is whole


class _Guard:
    """Stands before everything: who may ask, how much may be sent, and what browsers are told of every answer.

    A page of another site may make a browser send requests here, and with a name of its own that leads here (DNS
    rebinding) read the answers. So `Host` has to be an address or a name of ours, and `Origin`, if told, the same.
    """

    def __init__(self, app: ASGIApp, engine: _Engine, hosts: Sequence[str]) -> None:
        self.app, self.limits, self.held = app, engine.limits, 0
        own = socket.gethostname().lower()
        given = {name.lower() for name in hosts}
        self.names = {"localhost", own, f"{own}.local"} | given
        self.sites = {name for name in given if name != "localhost" and not _is_address(name)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        if refusal is not None:
            await _as_response(refusal)(scope, receive, answer)
            return
        body = _Body(self, receive)
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
        return place == host.lower() or _name_in(place) in self.sites

    def _is_ours(self, host: str) -> bool:
        name = _name_in(host)
        return name in self.names or name.endswith(".localhost") or _is_address(name)

    def too_large(self) -> HTTPException:
        most = self.limits.megabytes
        return HTTPException(413, f"At most {most} MB may be sent at once. Send fewer or smaller photos.")


def _name_in(host: str) -> str:
    """A host without its port; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


class _Body:
    """The body of one request as it comes in: counted, and in time."""

    def __init__(self, guard: _Guard, receive: Receive) -> None:
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
        if self.guard.held > HELD * self.guard.limits.bytes:
            raise _busy("Too much is being sent at once.", 1)
        return message


# ---- the network and its queue --------------------------------------------------------------------------------------


class _Engine:
    """Photos' bytes -> predictions. Decodes in a few threads, and runs the network in one of its own."""

    def __init__(self, model: Model, tta: bool, limits: Limits) -> None:
        self.model, self.tta, self.limits = model, tta and bool(model.facts["tta"]), limits
        self.waiting = 0
        """Photos that are not yet answered."""
        self.pace = 0.05
        """Seconds that a photo takes the network."""
        Image.init()
        self.formats = tuple(name for name in FORMATS if name in Image.OPEN)
        self.queue: asyncio.Queue[tuple[np.ndarray, asyncio.Future[tuple[Block, int]]]] = asyncio.Queue()
        self.readers = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "reader")
        self.network = ThreadPoolExecutor(1, "network")
        self.open = ExitStack()
        self.predicted = self.open.enter_context(model.ready(tta=self.tta))
        self.has_maps = self.network.submit(self._warmed).result()

    def _warmed(self) -> bool:
        """The first pass takes longest; and whether Grad-CAM is to be had."""
        grey = np.full(self.model.shape, 127, np.uint8)
        self.predicted([grey])
        return grad_cam(self.model.network, self.model.inputs([grey]), [0]) is not None

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._batches())
        try:
            yield
        finally:
            task.cancel()
            for pool in (self.readers, self.network):
                pool.shutdown(wait=False, cancel_futures=True)
            self.open.close()

    async def _batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            while len(batch) < self.limits.batch and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            batch = [(square, future) for square, future in batch if not future.done()]  # whose time is not yet up
            if not batch:
                continue
            began = loop.time()
            try:
                block = await loop.run_in_executor(self.network, self.predicted, [square for square, _ in batch])
            except Exception as error:
                _settle(batch, lambda _, error=error: error)
                continue
            _settle(batch, lambda number, block=block: (block, number))
            self.pace += 0.2 * ((loop.time() - began) / len(batch) - self.pace)

    @asynccontextmanager
    async def place(self, photos: int = 1) -> AsyncIterator[None]:
        """Room for so many photos, and time for their answer."""
        if self.waiting + photos > self.limits.waiting:
            raise self.full()
        self.waiting += photos
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        except TimeoutError:
            raise _busy(f"There was no answer after {self.limits.seconds:g} s.", self.delay) from None
        finally:
            self.waiting -= photos

    @property
    def delay(self) -> int:
        """Seconds until what waits now may be done."""
        return max(1, math.ceil(self.waiting * self.pace))

    def full(self) -> HTTPException:
        return _busy(f"The queue is full: {self.waiting} of {self.limits.waiting} places.", self.delay)

    async def predict(self, content: bytes) -> tuple[Block, int]:
        """A block, and which of it this photo is."""
        loop = asyncio.get_running_loop()
        square = await loop.run_in_executor(self.readers, self._square, content)
        future: asyncio.Future[tuple[Block, int]] = loop.create_future()
        self.queue.put_nowait((square, future))
        return await future

    async def look(self, content: bytes, name: str | None) -> bytes:
        """A JPEG of the photo with its Grad-CAM for a class; for the most probable one, if none is named."""
        loop = asyncio.get_running_loop()
        square = await loop.run_in_executor(self.readers, self._square, content)
        places = await loop.run_in_executor(self.network, self._places, square, name)
        return await loop.run_in_executor(self.readers, self._laid_over, content, places)

    def _photo(self, content: bytes) -> Image.Image:
        if not content:
            raise HTTPException(422, "The file is empty.")
        most = self.limits.megapixels * 1_000_000
        try:
            image = opened(content, self.formats)
        except Image.DecompressionBombError:
            raise HTTPException(413, f"The photo has more than {most:,} pixels. Send a smaller one.") from None
        except Exception:
            words = f"This is no photo, or none of a kind that is read here: {', '.join(self.formats)}."
            raise HTTPException(415, words) from None
        width, height = image.size
        if width * height > most:
            words = f"The photo has {width:,} x {height:,} pixels, at most {most:,} are taken. Send a smaller one."
            raise HTTPException(413, words)
        return image

    def _square(self, content: bytes) -> np.ndarray:
        image = self._photo(content)
        try:
            return self.model.square(image)
        except Exception as error:
            raise HTTPException(422, f"The photo is damaged: {why_unreadable(error)}.") from None

    def _places(self, square: np.ndarray, name: str | None) -> np.ndarray:
        asked = int(self.predicted([square]).probabilities[0].argmax()) if name is None else self.classes.index(name)
        places = grad_cam(self.model.network, self.model.inputs([square]), [asked])
        assert places is not None  # `has_maps`
        return places[0]

    def _laid_over(self, content: bytes, places: np.ndarray) -> bytes:
        photo, resize = open_photo(self._photo(content), SHOWN), self.model.facts["resize"]
        looked = heated(fit_photo(photo, SHOWN, resize), places, SHOWN)
        if resize == "squish":
            photo.thumbnail((SHOWN, SHOWN))
            looked = looked.resize(photo.size)
        return _jpeg(looked)

    @property
    def classes(self) -> list[str]:
        return self.model.classes


def _settle(batch: Sequence[tuple[Any, asyncio.Future]], answer: Any) -> None:
    for number, (_, future) in enumerate(batch):
        if not future.done():
            found = answer(number)
            future.set_exception(found) if isinstance(found, Exception) else future.set_result(found)


def _jpeg(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# ---- what is sent ---------------------------------------------------------------------------------------------------


class _Form(MultiPartParser):
    """Starlette's, which would put large files into temporary ones."""

    spool_max_size = 0  # of tempfile: never


async def _sent(request: Request, limits: Limits) -> tuple[list[tuple[str, bytes]], Mapping[str, Any]]:
    """Photos with their names, and whatever else was sent with them."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        photos, fields = await _from_form(request, limits)
    elif kind == "application/json":
        photos, fields = await asyncio.to_thread(_from_json, await request.body())
    else:
        raise HTTPException(415, f"multipart/form-data or application/json was needed, not {kind[:100]!r}.")
    if not photos:
        raise HTTPException(422, 'There is no photo in the request. Send files, or base64 as "photo" in JSON.')
    if len(photos) > (most := min(limits.photos, limits.waiting)):
        raise HTTPException(413, f"At most {most} photos may be sent at once, not {len(photos)}.")
    return photos, fields


async def _from_form(request: Request, limits: Limits) -> tuple[list[tuple[str, bytes]], Mapping[str, Any]]:
    form = _Form(request.headers, request.stream(), max_files=limits.photos, max_fields=16)
    try:
        sent = (await form.parse()).multi_items()
    except MultiPartException as error:
        raise HTTPException(400, f"The form cannot be read: {first_line(Exception(error.message))}.") from None
    files = [each for _, each in sent if isinstance(each, UploadFile)]
    return [(each.filename or "", await each.read()) for each in files], {
        name: value for name, value in sent if isinstance(value, str)
    }


def _from_json(body: bytes) -> tuple[list[tuple[str, bytes]], Mapping[str, Any]]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"The body is no JSON: {first_line(error)}.") from None
    if not isinstance(given, dict):
        raise HTTPException(422, 'JSON such as {"photo": "BASE64"} was needed.')
    photos = given.get("photos", [given["photo"]] if "photo" in given else [])
    if not isinstance(photos, list) or not all(isinstance(each, str) for each in photos):
        raise HTTPException(422, '"photo" has to be text in base64, "photos" a list of such texts.')
    return [("", _from_base64(each)) for each in photos], given


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.rpartition("base64,")[2].split()), validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(422, "A photo is no base64.") from None


# ---- what is answered -----------------------------------------------------------------------------------------------


class _Site:
    """The addresses."""

    def __init__(self, engine: _Engine, number: Mapping[str, Any], examples: Sequence[tuple[Path, str]]) -> None:
        self.engine, self.examples = engine, examples
        facts = engine.model.facts
        page = {
            "facts": facts, "classes": engine.classes, "many": engine.model.many, "has_maps": engine.has_maps,
            "views": facts["tta"] if engine.tta else [], "number": number, "examples": [label for _, label in examples],
            "limits": engine.limits, "version": __version__,
        }  # fmt: skip
        style, script = (files("baseline") / "templates" / name for name in ("serve.css", "serve.js"))
        colours = files("baseline") / "templates" / "colours.css"
        self.page = _fixed("text/html", rendered("serve", page))
        self.style = _fixed("text/css", colours.read_text("utf-8") + style.read_text("utf-8"))
        self.script = _fixed("text/javascript", script.read_text("utf-8"))
        self.openapi = _fixed("application/json", json.dumps(_openapi(engine)))

    async def predict(self, request: Request) -> Response:
        engine = self.engine
        top = request.query_params.get("top", str(len(engine.classes)))
        if not (top.isdecimal() and len(top) < 9 and int(top) > 0):
            raise HTTPException(422, "top has to be a whole number from 1 on.")
        if engine.waiting >= engine.limits.waiting:
            raise engine.full()
        photos, _ = await _sent(request, engine.limits)
        async with engine.place(len(photos)):
            found = await asyncio.gather(*(self._told(name, content, int(top)) for name, content in photos))
        errors = [each for _, each in found if each is not None]
        if len(errors) == len(found):
            raise errors[0]
        return JSONResponse({"predictions": [each for each, _ in found]})

    async def _told(self, name: str, content: bytes, top: int) -> tuple[dict[str, Any], HTTPException | None]:
        """What is told of one photo, and why it was refused, if it was."""
        engine = self.engine
        try:
            block, number = await engine.predict(content)
        except HTTPException as error:
            return {"name": name, "error": error.detail}, error
        by_class = zip(engine.classes, block.probabilities[number].tolist(), strict=True)
        first = sorted(by_class, key=lambda each: -each[1])[:top]
        predicted: Any = block.predicted[number]
        if engine.model.many:
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
            facts = engine.model.facts
            words = f"There is no Grad-CAM for {facts['arch']} at {facts['image_size']} pixels"
            raise HTTPException(404, f"{words}: its last layers keep no map of places.")
        if engine.waiting >= engine.limits.waiting:
            raise engine.full()
        photos, fields = await _sent(request, engine.limits)
        name = fields.get("class")
        if name is not None and name not in engine.classes:
            raise HTTPException(422, unknown("class", str(name)[:100], engine.classes))
        if len(photos) > 1:
            raise HTTPException(422, f"One photo was needed, not {len(photos)}.")
        async with engine.place():
            return Response(await engine.look(photos[0][1], name), media_type="image/jpeg")

    async def health(self, _: Request) -> Response:
        engine = self.engine
        told = {"status": "ok", "version": __version__, "model": engine.model.identity, "waiting": engine.waiting}
        return JSONResponse(told)

    async def example(self, request: Request) -> Response:
        path = self._example(request)
        return Response(await self._read(path.read_bytes), media_type="application/octet-stream")

    async def small_example(self, request: Request) -> Response:
        path = self._example(request)
        return Response(await self._read(partial(_small, path)), media_type="image/jpeg")

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


def _fixed(kind: str, content: str) -> Any:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


def _small(path: Path) -> bytes:
    image = open_photo(path, SMALL)
    image.thumbnail((SMALL, SMALL))
    return _jpeg(image)


def _as_response(error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _refused(_: Request, error: HTTPException) -> Response:
    return _as_response(error)


async def _gone(_: Request, __: Exception) -> Response:
    return _as_response(HTTPException(400, "The request broke off."))


async def _failed(_: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return _as_response(HTTPException(500, "This failed here; the server's own output says why."))


def _busy(words: str, seconds: int) -> HTTPException:
    return HTTPException(503, f"{words} Try again in {seconds} s.", {"Retry-After": str(seconds)})


def _run_facts(folder: Path, examples: bool, show: Show) -> tuple[dict[str, Any], list[tuple[Path, str]]]:
    """The number of the run and some of its photos with their labels; nothing where the folder is a model's alone."""
    if not (folder / "manifest.json").exists():
        return {}, []
    try:
        metrics = read_manifest(folder)["metrics"]
        split = judged_split(metrics)
        found = metrics[split]["tta"]
        low, high = found["interval"]
        number = {"split": split, "accuracy": float(found["accuracy"]), "interval": (float(low), float(high))}
        return number, _examples(folder / "split.csv", split) if examples else []
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        show.say(f"the page goes without the run's numbers and photos: {first_line(error)}")
        return {}, []


def _examples(path: Path, split: str) -> list[tuple[Path, str]]:
    """A few photos of the split that are still there, of as many classes as there is room for."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(Path(row["path"]), row["label"]) for row in csv.DictReader(file) if row["split"] == split]
    random.Random(0).shuffle(rows)
    seen: dict[str, int] = {}
    turns = []
    for each, label in rows:
        seen[label] = seen.get(label, 0) + 1
        turns.append((seen[label], each, label))
    there = ((each, label) for _, each, label in sorted(turns, key=lambda turn: turn[0])[:200] if each.is_file())
    return [found for _, found in zip(range(EXAMPLES), there, strict=False)]


def _openapi(engine: _Engine) -> dict[str, Any]:
    """The API in the words of OpenAPI 3.1."""
    words = {"type": "string"}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    binary = {"type": "string", "format": "binary"}
    text = {"type": "string", "contentEncoding": "base64"}
    predicted = {"type": "array", "items": words} if engine.model.many else words
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
            "error": {**words, "description": "Why this photo was refused; nothing else is told of it."},
        },
    }
    every = {"type": "object", "properties": {"predictions": {"type": "array", "items": prediction}}}
    top = {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1},
           "description": "Tells so many of the most probable classes; all if not given."}  # fmt: skip
    several = {"type": "array", "items": text, "maxItems": engine.limits.photos}
    return {
        "openapi": "3.1.0",
        "info": {"title": "baseline", "version": __version__, "description": "Predicts the classes of photos."},
        "paths": {
            "/predict": {"post": {
                "summary": "Predicts photos. If some of several are refused, they have an `error`; if all are, that is "
                           "the answer.",
                "parameters": [top],
                "requestBody": body({"photo": {"type": "array", "items": binary}}, {"photo": text, "photos": several}),
                "responses": answers("application/json", every, "A prediction for each photo, in order.", WHY),
            }},
            "/gradcam": {"post": {
                "summary": "Shows what in one photo speaks for a class (Grad-CAM).",
                "requestBody": body({"photo": binary, **asked}, {"photo": text, **asked}),
                "responses": answers("image/jpeg", binary, "The photo, yellow where it speaks most for it.",
                                     {**WHY, 404: "The network has no map of places."}),
            }},
            "/health": {"get": {
                "summary": "Whether the server answers.",
                "responses": answers("application/json", {"type": "object"}, "It does.", {}),
            }},
        },
        "components": {"schemas": {"Error": {"type": "object", "required": ["error"], "properties": {"error": words}}}},
    }  # fmt: skip


WHY = {
    400: "The request cannot be read.",
    403: "It came by a strange name, or from another site's page.",
    408: "It was not whole in time.",
    413: "Too many bytes, pixels or photos.",
    415: "It, or a file in it, is of another kind than can be read.",
    422: "What it says cannot be, or a photo is damaged.",
    503: "Too many photos are waiting; Retry-After tells for how many seconds.",
}
