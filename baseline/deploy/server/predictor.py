"""Decode uploaded images and run the network on them in batches, within the server's limits.

An image is decoded in another process, then waits until the network is idle; all waiting images then run as one batch,
up to a batch: an image that comes alone never waits for others. Uploads stay in memory.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException

from baseline.deploy.server.decoder import Decoded, DecodeJob, DecoderPool, ImageRefused
from baseline.evaluation.gradcam import grad_cam
from baseline.report.figures import overlay_heatmap

if TYPE_CHECKING:
    from baseline.inference.model import Model, PredictionBatch

    Prediction = tuple[PredictionBatch, int]
    """A batch of predictions, and the index of one image in it."""

__all__ = ["THUMBNAIL_SIZE", "Limits", "Predictor", "busy_error"]


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow's formats that are accepted from clients. Others run programs (EPS), or have been reviewed by few."""


DISPLAY_SIZE, EXAMPLE_SIZE, THUMBNAIL_SIZE = 640, 1024, 176
"""Maximum pixels of the longer side of a Grad-CAM image, of an example, and of its thumbnail on the page."""


SMALL_SECONDS = 5
"""Seconds after which an image is decoded again among the large ones, so that others do not wait for it."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server; requests beyond them are refused with a message."""

    megabytes: int = 32
    """Maximum size of a request in MB."""
    megapixels: int = 64
    """Maximum size of an image in millions of pixels, checked before it is decoded."""
    images: int = 64
    """Maximum number of images in a request."""
    waiting: int = 256
    """Maximum number of images that wait for an answer; beyond it, the answer is 503 with Retry-After."""
    batch: int = 16
    """Maximum number of images in a pass of the network."""
    seconds: float = 30
    """Seconds to wait for a request to be sent, and again for its answer."""

    @property
    def bytes(self) -> int:
        """Maximum size of a request in bytes."""
        return self.megabytes * 1_000_000


class Predictor:
    """Predicts the contents of image files: decodes in a few processes, and runs the network in a thread of its own."""

    def __init__(
        self, model: Model, tta: bool, limits: Limits, reject_unlike: float = 0.0, set_threshold: float | None = None
    ) -> None:
        self.reject_unlike, self.set_threshold = reject_unlike, set_threshold
        """Share of images like the valid ones that are rejected as unlike the training images, 0 for none; and the
        threshold of `Reference.set_threshold` for sets of classes, None for no sets."""
        self.model, self.tta, self.limits = model, tta and bool(model.config["tta"]), limits
        self.is_running = False
        """Whether the queue is being processed."""
        self.waiting = 0
        """Number of images that wait for an answer."""
        self.seconds_per_image = 0.05
        """Seconds that the network takes for an image, a moving average."""
        Image.init()
        self.formats = tuple(name for name in FORMATS if name in Image.OPEN)
        self.queue: asyncio.Queue[tuple[np.ndarray, asyncio.Future[Prediction]]] = asyncio.Queue()
        self.decoders = DecoderPool(min(4, os.cpu_count() or 1))
        self.large_decoder = DecoderPool(1)
        self.network = ThreadPoolExecutor(1, "network")
        self.resources = ExitStack()
        self.predict_squares = self.resources.enter_context(model.predictor(tta=self.tta, unlike=reject_unlike > 0))
        self.has_gradcam = self.network.submit(self._warm_up).result()

    @property
    def classes(self) -> list[str]:
        return self.model.classes

    def _warm_up(self) -> bool:
        """Run the first pass, which takes longest, and return whether the network supports Grad-CAM."""
        gray = np.full(self.model.decoded_shape, 127, np.uint8)
        self.predict_squares([gray])
        return grad_cam(self.model.network, self.model.inputs([gray]), [0]) is not None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Process the queue while the context is open."""
        task = asyncio.create_task(self._process_queue())
        self.is_running = True
        task.add_done_callback(lambda _: setattr(self, "is_running", False))
        await asyncio.wrap_future(self.decoders.warm_up())
        try:
            yield
        finally:
            task.cancel()
            self.decoders.close()
            self.large_decoder.close()
            self.network.shutdown(wait=False, cancel_futures=True)
            self.resources.close()

    async def _process_queue(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            while len(batch) < self.limits.batch and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            batch = [(square, future) for square, future in batch if not future.done()]  # without timed-out requests
            if not batch:
                continue
            start = loop.time()
            try:
                block = await loop.run_in_executor(self.network, self.predict_squares, [square for square, _ in batch])
            except Exception as error:
                _set_results(batch, lambda _, error=error: error)
                continue
            _set_results(batch, lambda number, block=block: (block, number))
            self.seconds_per_image += 0.2 * ((loop.time() - start) / len(batch) - self.seconds_per_image)

    @asynccontextmanager
    async def reserve(self, images: int = 1) -> AsyncIterator[None]:
        """Reserve places in the queue for some images, and limit the time for their answer.

        Raises:
            HTTPException: 503 if the queue is full, or the time is up.
        """
        if self.waiting + images > self.limits.waiting:
            raise self.queue_full_error()
        self.waiting += images
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        except TimeoutError:
            raise busy_error(f"There was no answer after {self.limits.seconds:g} s.", self.retry_after) from None
        finally:
            self.waiting -= images

    @property
    def retry_after(self) -> int:
        """Estimated seconds until the images that wait now are done."""
        return max(1, math.ceil(self.waiting * self.seconds_per_image))

    def queue_full_error(self) -> HTTPException:
        return busy_error(f"The queue is full: {self.waiting} of {self.limits.waiting} places.", self.retry_after)

    async def predict(self, content: bytes) -> Prediction:
        """Return a batch of predictions, and the index of this image in it.

        Raises:
            HTTPException: if the image is refused.
        """
        square = await self._decode_square(content)
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((square, future))
        return await future

    async def gradcam(self, content: bytes, class_name: str | None) -> bytes:
        """Return a JPEG of the image with its Grad-CAM for a class; default: the most probable one."""
        square = await self._decode_square(content)
        loop = asyncio.get_running_loop()
        heatmap = await loop.run_in_executor(self.network, self._heatmap, square, class_name)
        shown = await self._decode(content, DISPLAY_SIZE, self.model.config["resize"])
        return await loop.run_in_executor(self.network, self._overlay, shown, heatmap)

    async def _decode_square(self, content: bytes) -> np.ndarray:
        """Return the square that the network takes; transforms of the user's own are applied in this process."""
        if self.model.item_tfms is None:
            return (await self._decode(content, self.model.decoded_size, self.model.config["resize"])).pixels
        image = Image.fromarray((await self._decode(content)).pixels)
        return await asyncio.get_running_loop().run_in_executor(self.network, self.model.load_square, image)

    async def _decode(self, content: bytes, size: int = 0, resize: str = "") -> Decoded:
        """Decode an image in another process; large images share one."""
        job = self._job(min(SMALL_SECONDS, self.limits.seconds), size, resize)
        try:
            decoded = await asyncio.wrap_future(self.decoders.submit(job, content))
            if decoded is None:
                job = replace(job, large=True, seconds=self.limits.seconds)
                decoded = await asyncio.wrap_future(self.large_decoder.submit(job, content))
        except ImageRefused as error:
            raise HTTPException(error.status, str(error)) from None
        if decoded is None:
            message = f"The image is not decoded after {self.limits.seconds:g} s. Send a smaller one."
            raise HTTPException(413, message)
        return decoded

    def _job(self, seconds: float, size: int = 0, resize: str = "") -> DecodeJob:
        max_pixels = self.limits.megapixels * 1_000_000
        return DecodeJob(self.formats, max_pixels, seconds, size, resize, self.model.value_range)

    def encode_again(self, content: bytes, seconds: float) -> tuple[bytes, bytes] | None:
        """Decode an image file, and return it as a PNG of at most `EXAMPLE_SIZE` pixels and as a thumbnail, a JPEG.

        Returns None if it is refused, or not decoded in time.
        """
        job = replace(self._job(seconds, EXAMPLE_SIZE), large=True)
        try:
            decoded = self.decoders.submit(job, content).result()
        except (ImageRefused, MemoryError):
            return None
        if decoded is None:
            return None
        image = Image.fromarray(decoded.pixels)  # pixels only: neither comments nor a place
        buffer = BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        return buffer.getvalue(), encode_jpeg(image)

    def _heatmap(self, square: np.ndarray, class_name: str | None) -> np.ndarray:
        if class_name is None:
            batch = self.predict_squares([square])
            is_single = not self.model.multilabel
            index = self.classes.index(batch.predicted[0]) if is_single else int(batch.probabilities[0].argmax())
        else:
            index = self.classes.index(class_name)
        heatmaps = grad_cam(self.model.network, self.model.inputs([square]), [index])
        assert heatmaps is not None  # `has_gradcam`
        return heatmaps[0]

    def _overlay(self, shown: Decoded, heatmap: np.ndarray) -> bytes:
        overlay = overlay_heatmap(Image.fromarray(shown.pixels), heatmap, DISPLAY_SIZE)
        if self.model.config["resize"] == "squish":
            scale = min(1, DISPLAY_SIZE / max(shown.size))
            width, height = (max(1, round(side * scale)) for side in shown.size)
            overlay = overlay.resize((width, height))
        return encode_jpeg(overlay)


def _set_results(batch: Sequence[tuple[Any, asyncio.Future]], result_of: Any) -> None:
    for number, (_, future) in enumerate(batch):
        if not future.done():
            result = result_of(number)
            future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)


def encode_jpeg(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def busy_error(message: str, seconds: int) -> HTTPException:
    """Return a 503 that asks the client to try again after some seconds."""
    return HTTPException(503, f"{message} Try again in {seconds} s.", {"Retry-After": str(seconds)})
