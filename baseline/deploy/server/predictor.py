"""TODO."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException

from baseline.data.image import load_image, open_image, resize_image, unreadable_reason
from baseline.evaluation.gradcam import grad_cam
from baseline.report.figures import overlay_heatmap

if TYPE_CHECKING:
    from baseline.inference.model import Model, PredictionBatch

__all__ = ["Limits"]


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Of PIL, that are read from strangers. Others run programs (EPS), or have been looked at by few."""


MAX_EXAMPLES = 8

DISPLAY_SIZE, THUMBNAIL_SIZE = 640, 176
"""Pixels of the longer side of a Grad-CAM and of an example in the page."""


@dataclass(frozen=True)
class Limits:
    """What a server takes; what is more is refused in a sentence."""

    megabytes: int = 32
    """Of a request."""
    megapixels: int = 64
    """Millions of pixels of an image, before it is decoded."""
    images: int = 64
    """In a request."""
    waiting: int = 256
    """Images that are not yet answered; then 503 with Retry-After."""
    batch: int = 16
    """Images that the network sees at once."""
    seconds: float = 30
    """For a request to be sent, and again for its answer."""

    @property
    def bytes(self) -> int:
        return self.megabytes * 1_000_000


class Predictor:
    """Images' bytes -> predictions. Decodes in a few threads, and runs the network in one of its own."""

    def __init__(self, model: Model, tta: bool, limits: Limits) -> None:
        self.model, self.tta, self.limits = model, tta and bool(model.config["tta"]), limits
        self.waiting = 0
        """Images that are not yet answered."""
        self.pace = 0.05
        """Seconds that an image takes the network."""
        Image.init()
        self.formats = tuple(name for name in FORMATS if name in Image.OPEN)
        self.queue: asyncio.Queue[tuple[np.ndarray, asyncio.Future[tuple[PredictionBatch, int]]]] = asyncio.Queue()
        self.readers = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "reader")
        self.network = ThreadPoolExecutor(1, "network")
        self.open = ExitStack()
        self.predicted = self.open.enter_context(model.predictor(tta=self.tta))
        self.has_maps = self.network.submit(self._warmed).result()

    def _warmed(self) -> bool:
        """The first pass takes longest; and whether Grad-CAM is to be had."""
        grey = np.full(self.model.decoded_shape, 127, np.uint8)
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
                _set_results(batch, lambda _, error=error: error)
                continue
            _set_results(batch, lambda number, block=block: (block, number))
            self.pace += 0.2 * ((loop.time() - began) / len(batch) - self.pace)

    @asynccontextmanager
    async def place(self, images: int = 1) -> AsyncIterator[None]:
        """Room for so many images, and time for their answer."""
        if self.waiting + images > self.limits.waiting:
            raise self.full()
        self.waiting += images
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        except TimeoutError:
            raise busy_error(f"There was no answer after {self.limits.seconds:g} s.", self.delay) from None
        finally:
            self.waiting -= images

    @property
    def delay(self) -> int:
        """Seconds until what waits now may be done."""
        return max(1, math.ceil(self.waiting * self.pace))

    def full(self) -> HTTPException:
        return busy_error(f"The queue is full: {self.waiting} of {self.limits.waiting} places.", self.delay)

    async def predict(self, content: bytes) -> tuple[PredictionBatch, int]:
        """A block, and which of it this image is."""
        loop = asyncio.get_running_loop()
        square = await loop.run_in_executor(self.readers, self._square, content)
        future: asyncio.Future[tuple[PredictionBatch, int]] = loop.create_future()
        self.queue.put_nowait((square, future))
        return await future

    async def look(self, content: bytes, name: str | None) -> bytes:
        """A JPEG of the image with its Grad-CAM for a class; for the most probable one, if none is named."""
        loop = asyncio.get_running_loop()
        square = await loop.run_in_executor(self.readers, self._square, content)
        places = await loop.run_in_executor(self.network, self._places, square, name)
        return await loop.run_in_executor(self.readers, self._laid_over, content, places)

    def _image(self, content: bytes) -> Image.Image:
        if not content:
            raise HTTPException(422, "The file is empty.")
        most = self.limits.megapixels * 1_000_000
        try:
            image = open_image(content, self.formats)
        except Image.DecompressionBombError:
            raise HTTPException(413, f"The image has more than {most:,} pixels. Send a smaller one.") from None
        except Exception:
            words = f"This is no image, or none of a kind that is read here: {', '.join(self.formats)}."
            raise HTTPException(415, words) from None
        width, height = image.size
        if width * height > most:
            words = f"The image has {width:,} x {height:,} pixels, at most {most:,} are taken. Send a smaller one."
            raise HTTPException(413, words)
        return image

    def _square(self, content: bytes) -> np.ndarray:
        image = self._image(content)
        try:
            return self.model.load_square(image)
        except Exception as error:
            raise HTTPException(422, f"The image is damaged: {unreadable_reason(error)}.") from None

    def _places(self, square: np.ndarray, name: str | None) -> np.ndarray:
        asked = int(self.predicted([square]).probabilities[0].argmax()) if name is None else self.classes.index(name)
        places = grad_cam(self.model.network, self.model.inputs([square]), [asked])
        assert places is not None  # `has_maps`
        return places[0]

    def _laid_over(self, content: bytes, places: np.ndarray) -> bytes:
        image, resize = load_image(self._image(content), DISPLAY_SIZE), self.model.config["resize"]
        looked = overlay_heatmap(resize_image(image, DISPLAY_SIZE, resize), places, DISPLAY_SIZE)
        if resize == "squish":
            image.thumbnail((DISPLAY_SIZE, DISPLAY_SIZE))
            looked = looked.resize(image.size)
        return encode_jpeg(looked)

    @property
    def classes(self) -> list[str]:
        return self.model.classes


def _set_results(batch: Sequence[tuple[Any, asyncio.Future]], answer: Any) -> None:
    for number, (_, future) in enumerate(batch):
        if not future.done():
            found = answer(number)
            future.set_exception(found) if isinstance(found, Exception) else future.set_result(found)


def encode_jpeg(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def busy_error(words: str, seconds: int) -> HTTPException:
    return HTTPException(503, f"{words} Try again in {seconds} s.", {"Retry-After": str(seconds)})
