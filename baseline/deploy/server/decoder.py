"""Decode images of clients in processes of their own, so that one that is damaged, large or slow delays no other.

A process that takes too long is ended. It reads jobs and writes answers as lengths, a JSON header and bytes; nothing is
pickled. The server starts one with `python -c`, and more as soon as several images arrive at once.
"""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from baseline.data.image import load_image, open_image, resize_image, unreadable_reason
from baseline.errors import BaselineError
from baseline.system import return_free_memory

__all__ = ["DecodeJob", "Decoded", "DecoderPool", "ImageRefused", "main"]


LARGE_PIXELS, JPEG_FACTOR = 4_000_000, 8
"""Pixels above which an image is large, and how many times more a JPEG may have, which is decoded at a fraction of its
size."""


LARGE_SCANNED_PIXELS = 10 * JPEG_FACTOR * LARGE_PIXELS
"""Pixels times scans above which a JPEG is large; an ordinary progressive one has about 10 scans."""


LENGTHS = struct.Struct(">IQ")
"""Lengths of the JSON header and of the bytes of a message."""


Message = tuple[dict[str, Any], bytes]
"""A JSON header and bytes."""


@dataclass(frozen=True)
class DecodeJob:
    """How an image is decoded, and its limits."""

    formats: tuple[str, ...]
    """Pillow's formats that are accepted."""
    max_pixels: int
    """Maximum number of pixels."""
    seconds: float
    """Seconds after which the process is ended."""
    size: int = 0
    """Pixels of the sides of the square, or of the longer side without `resize`; 0 for those of the image."""
    resize: str = ""
    """How the image is made square; see `resize_image`. Empty to keep its shape."""
    value_range: Any = ()
    """See `load_image`."""
    large: bool = False
    """Whether to decode a large image, too."""


class Decoded(NamedTuple):
    """A decoded image."""

    pixels: np.ndarray
    """H x W x 3, uint8."""
    size: tuple[int, int]
    """Width and height before it was resized."""


class ImageRefused(BaselineError, ValueError):
    """An image cannot be decoded within the limits; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class DecoderEnded(Exception):
    """The process that decoded an image ended by itself, or was ended by the system."""


class DecoderPool:
    """Threads, of which each has a process that decodes images."""

    def __init__(self, count: int) -> None:
        self.processes: dict[int, Decoder] = {}
        """The decoder of each thread."""
        self.is_closed = False
        self.threads = ThreadPoolExecutor(count, "decoder", initializer=self._start)

    def warm_up(self) -> Future[Any]:
        """Start one process, and return a future that is done when it is ready."""
        return self.threads.submit(int)

    def submit(self, job: DecodeJob, content: bytes) -> Future[Decoded | None]:
        """Decode an image in one of the processes; see `_decode`."""
        return self.threads.submit(self._decode, job, content)

    def close(self) -> None:
        """End the processes, whatever they do."""
        self.is_closed = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        for decoder in [*self.processes.values()]:
            decoder.process.kill()

    def _start(self) -> None:
        if not self.is_closed:
            self.processes[threading.get_ident()] = decoder = Decoder()
            if self.is_closed:  # since it was started
                decoder.close()

    def _decode(self, job: DecodeJob, content: bytes) -> Decoded | None:
        """Return the decoded image; None if it is large and the job does not include these, or if the time is up.

        If the process ends, the image is decoded again in a new one: the system may have ended the first for a reason
        that has nothing to do with the image.

        Raises:
            ImageRefused: if it cannot be decoded.
            MemoryError: if memory is short, or the process cannot be started.
        """
        for _ in range(2):
            if not self.processes[threading.get_ident()].is_running:
                self._start()
            decoder = self.processes[threading.get_ident()]
            try:
                with suppress(DecoderEnded):
                    return decoder.ask(job, content)
            finally:
                if not decoder.is_running:
                    decoder.close()
                    self._start()
        raise ImageRefused(422, "The image cannot be decoded: it ended the process that decoded it.")


class Decoder:
    """A process that decodes one image after the other."""

    def __init__(self) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from baseline.deploy.server.decoder import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.is_ready, self.is_late = read_message(self.stdout) is not None, False

    @property
    def is_running(self) -> bool:
        return self.is_ready and not self.is_late and self.process.poll() is None

    def ask(self, job: DecodeJob, content: bytes) -> Decoded | None:
        if not self.is_ready:
            raise MemoryError
        timer = threading.Timer(job.seconds, self._end)
        timer.start()
        answer = None
        with suppress(OSError, ValueError):  # it has ended, or its pipes were closed
            write_message(self.stdin, asdict(job), content)
            answer = read_message(self.stdout)
        timer.cancel()
        timer.join()
        if answer is not None:
            return read_answer(*answer)
        if not self.is_late:
            self.process.wait()
            raise DecoderEnded
        return None

    def _end(self) -> None:
        self.is_late = True
        self.process.kill()

    def close(self) -> None:
        """End the process and close its pipes."""
        self.process.kill()
        with suppress(OSError):
            self.stdin.close()
        self.stdout.close()
        self.process.wait()


def read_answer(header: Mapping[str, Any], pixels: bytes) -> Decoded | None:
    """Return what a process answers; see `DecoderPool`."""
    if "error" in header:
        raise ImageRefused(header["status"], header["error"])
    if header.get("is_short_of_memory"):
        raise MemoryError
    if header.get("is_large"):
        return None
    width, height = header["size"]
    return Decoded(np.frombuffer(pixels, np.uint8).reshape(*header["shape"], 3), (width, height))


def write_message(file: IO[bytes], header: Mapping[str, Any], content: bytes = b"") -> None:
    text = json.dumps(header).encode()
    file.write(LENGTHS.pack(len(text), len(content)) + text)
    file.write(content)
    file.flush()


def read_message(file: IO[bytes]) -> Message | None:
    """Return the next message; None at the end of the file."""
    head = file.read(LENGTHS.size)
    if len(head) < LENGTHS.size:
        return None
    text, content = (file.read(length) for length in LENGTHS.unpack(head))
    return json.loads(text), content


# ---- in the process -------------------------------------------------------------------------------------------------


def main() -> None:
    """Decode the images that arrive on standard input until its end."""
    jobs, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a message of a library would be read as an answer
    Image.init()
    write_message(answers, {})
    while (message := read_message(jobs)) is not None:
        job, content = DecodeJob(**message[0]), message[1]
        _limit_time(job.seconds + 1)
        write_message(answers, *answer(job, content))
        _limit_time(0)
        del message, content
        if job.large:
            return_free_memory()


def _limit_time(seconds: float) -> None:
    """End this process after so many seconds, even if the server was killed; 0 for no limit."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, seconds)


def answer(job: DecodeJob, content: bytes) -> Message:
    """Return the answer to a job: the image, that it is large, or what is wrong with it."""
    try:
        image = open_accepted(job, content)
        if not job.large and is_large(image):
            return {"is_large": True}, b""
        decoded = decode_image(job, image)
    except ImageRefused as error:
        return {"status": error.status, "error": str(error)}, b""
    except MemoryError:
        return {"is_short_of_memory": True}, b""
    return {"size": decoded.size, "shape": decoded.pixels.shape[:2]}, decoded.pixels.tobytes()


def open_accepted(job: DecodeJob, content: bytes) -> Image.Image:
    """Open an image within the limits of a job; it is not decoded yet."""
    if not content:
        raise ImageRefused(422, "The file is empty.")
    try:
        image = open_image(content, tuple(job.formats))
    except Image.DecompressionBombError as error:
        raise ImageRefused(413, f"The image is too large: {unreadable_reason(error)}. Send a smaller one.") from None
    except MemoryError:
        raise
    except Exception:
        message = f"This is not an image in a supported format: {', '.join(job.formats)}."
        raise ImageRefused(415, message) from None
    width, height = image.size
    if width * height > job.max_pixels:
        message = f"The image has {width:,} x {height:,} pixels; the maximum is {job.max_pixels:,}. Send a smaller one."
        raise ImageRefused(413, message)
    return image


def is_large(image: Image.Image) -> bool:
    """Return whether an opened image takes long to decode: by its pixels, and a JPEG by its scans, too."""
    pixels = image.width * image.height
    if image.format == "JPEG" and pixels * image.info.get("scans", 1) > LARGE_SCANNED_PIXELS:
        return True
    return pixels > LARGE_PIXELS * (JPEG_FACTOR if image.format == "JPEG" else 1)


def decode_image(job: DecodeJob, image: Image.Image) -> Decoded:
    """Decode and resize an image."""
    try:
        image = load_image(image, job.size, job.value_range)
        size = image.size
        if job.resize:
            image = resize_image(image, job.size, job.resize)
        elif job.size:
            image.thumbnail((job.size, job.size))
        return Decoded(np.asarray(image), size)
    except Exception as error:
        raise ImageRefused(422, f"The image is damaged: {unreadable_reason(error)}.") from None
