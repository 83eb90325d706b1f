"""Decode uploaded images and run the network on them in batches, within the server's limits.

An image is decoded in a thread, then waits until the network is idle; all waiting images then run as one batch, up to
a batch: an image that comes alone never waits for others. Uploads stay in memory.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException

from baseline.data.image import load_image, open_image, resize_image, unreadable_reason
from baseline.evaluation.gradcam import grad_cam
from baseline.report.figures import overlay_heatmap
from baseline.system import return_free_memory

if TYPE_CHECKING:
    from baseline.inference.model import Model, PredictionBatch

    Prediction = tuple[PredictionBatch, int]
    """A batch of predictions, and the index of one image in it."""

Decoded = TypeVar("Decoded")

__all__ = ["THUMBNAIL_SIZE", "Limits", "Predictor", "busy_error"]


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow's formats that are accepted from clients. Others run programs (EPS), or have been reviewed by few."""


DISPLAY_SIZE, EXAMPLE_SIZE, THUMBNAIL_SIZE = 640, 1024, 176
"""Maximum pixels of the longer side of a Grad-CAM image, of an example, and of its thumbnail on the page."""


LARGE_PIXELS, JPEG_FACTOR = 4_000_000, 8
"""Pixels above which images are decoded one at a time, so that others do not wait for them, and how many times more a
JPEG may have, which is decoded at a fraction of its size."""


CHUNK_BYTES = 4096
"""Bytes of a file that are decoded at once: Pillow lets no other thread run meanwhile, and a kilobyte can unpack to a
megabyte."""


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
    """Predicts the contents of image files: decodes in a few threads, and runs the network in a thread of its own."""

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
        self.readers = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "reader")
        self.large_reader = ThreadPoolExecutor(1, "large-reader")
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
        try:
            yield
        finally:
            task.cancel()
            for pool in (self.readers, self.large_reader, self.network):
                pool.shutdown(wait=False, cancel_futures=True)
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
        square = await self._decode(self._decode_square, content)
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((square, future))
        return await future

    async def gradcam(self, content: bytes, class_name: str | None) -> bytes:
        """Return a JPEG of the image with its Grad-CAM for a class; default: the most probable one."""
        square = await self._decode(self._decode_square, content)
        loop = asyncio.get_running_loop()
        heatmap = await loop.run_in_executor(self.network, self._heatmap, square, class_name)
        return await self._decode(self._overlay, content, heatmap)

    async def _decode(self, decode: Callable[..., Decoded], content: bytes, *arguments: Any) -> Decoded:
        """Call `decode` in a thread; large images share one, which gives their memory back."""
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(self.readers, self._is_large, content):
            return await loop.run_in_executor(self.readers, decode, content, *arguments)
        try:
            return await loop.run_in_executor(self.large_reader, decode, content, *arguments)
        finally:
            self.large_reader.submit(return_free_memory)

    def _is_large(self, content: bytes) -> bool:
        image = self._open(content)
        return image.width * image.height > LARGE_PIXELS * (JPEG_FACTOR if image.format == "JPEG" else 1)

    def encode_again(self, content: bytes) -> tuple[bytes, bytes]:
        """Decode an image file, and return it as a PNG of at most `EXAMPLE_SIZE` pixels and as a thumbnail, a JPEG.

        Raises:
            HTTPException: if the image is refused.
        """
        image = self._open(content)
        try:
            image = load_image(image, EXAMPLE_SIZE, self.model.value_range)
        except Exception as error:
            raise HTTPException(422, f"The image is damaged: {unreadable_reason(error)}.") from None
        image.thumbnail((EXAMPLE_SIZE, EXAMPLE_SIZE))
        image = Image.fromarray(np.asarray(image))  # pixels only: neither comments nor a place
        buffer = BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        return buffer.getvalue(), encode_jpeg(image)

    def _open(self, content: bytes) -> Image.Image:
        if not content:
            raise HTTPException(422, "The file is empty.")
        max_pixels = self.limits.megapixels * 1_000_000
        try:
            image = open_image(content, self.formats)
        except Image.DecompressionBombError as error:
            raise HTTPException(
                413, f"The image is too large: {unreadable_reason(error)}. Send a smaller one."
            ) from None
        except MemoryError:
            raise
        except Exception:
            message = f"This is not an image in a supported format: {', '.join(self.formats)}."
            raise HTTPException(415, message) from None
        image.__dict__["decodermaxblock"] = CHUNK_BYTES
        width, height = image.size
        if width * height > max_pixels:
            message = f"The image has {width:,} x {height:,} pixels; the maximum is {max_pixels:,}. Send a smaller one."
            raise HTTPException(413, message)
        return image

    def _decode_square(self, content: bytes) -> np.ndarray:
        image = self._open(content)
        try:
            return self.model.load_square(image)
        except Exception as error:
            raise HTTPException(422, f"The image is damaged: {unreadable_reason(error)}.") from None

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

    def _overlay(self, content: bytes, heatmap: np.ndarray) -> bytes:
        image = load_image(self._open(content), DISPLAY_SIZE, self.model.value_range)
        resize = self.model.config["resize"]
        overlay = overlay_heatmap(resize_image(image, DISPLAY_SIZE, resize), heatmap, DISPLAY_SIZE)
        if resize == "squish":
            image.thumbnail((DISPLAY_SIZE, DISPLAY_SIZE))
            overlay = overlay.resize(image.size)
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
