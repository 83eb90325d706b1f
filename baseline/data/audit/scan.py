"""Decode every image of a table once and record its size, color mode, hashes and thumbnail, or why it is unreadable.

The records are cached in an SQLite file in the cache folder, by the path of the image and its `file_stamp`.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from baseline.data.image import (
    formats,
    open_image,
    read_image_bytes,
    reserve_for_file,
    reserve_for_image,
    to_upright_rgb,
    unreadable_reason,
)
from baseline.files import SURROGATE, cache_home, file_identity, make_cache_folder

if TYPE_CHECKING:
    from PIL import Image

    from baseline.progress import Progress


class ScanRecord(NamedTuple):
    """What is known of an image after it was decoded once."""

    reason: str
    """Why it cannot be read; empty if it can, and all further fields are filled in."""
    bytes: int = 0
    width: int = 0
    height: int = 0
    mode: str = ""
    turned: bool = False
    """Whether its EXIF orientation is not upright."""
    frames: int = 0
    flaw: str = ""
    """`"blank"` (one color) or `"cut off"` (a part is missing); empty if neither is known."""
    color_profile: str = ""
    """Name of its color profile, if that is not sRGB."""
    value_kind: str = ""
    """`"integer"` or `"float"` if it has more than 8 bits and its file does not declare their range."""
    value_low: float = 0.0
    """The 0.1th percentile of its values, if it has a `value_kind`."""
    value_high: float = 0.0
    """The 99.9th percentile."""
    digest: Any = b""
    """Hash of the file's content."""
    hash: Any = b""
    """Perceptual hash of the image."""
    thumb: Any = b""
    """An RGB thumbnail of 8 x 8 pixels."""


SCAN_COLUMNS = ScanRecord._fields[:-3]
"""Columns of the image table that a scan fills in."""


NO_FACTS = ("", "", "", 0.0, 0.0)
"""What `formats.describe` would return for an image without flaws, in sRGB and of 8 bits."""


@dataclass
class ScanResult:
    """One record per image, in the order of the table."""

    columns: dict[str, np.ndarray]
    """An array per field of `SCAN_COLUMNS`."""
    digest: np.ndarray
    hash: np.ndarray
    thumb: np.ndarray
    """N x 192, uint8."""

    @classmethod
    def empty(cls, count: int) -> ScanResult:
        """Return a result for `count` images of which nothing is known yet."""
        defaults = ScanRecord("")[: len(SCAN_COLUMNS)]
        columns = {
            name: np.full(count, value, object if isinstance(value, str) else type(value))
            for name, value in zip(SCAN_COLUMNS, defaults, strict=True)
        }
        hashes = np.zeros((2, count), np.uint64)
        return cls(columns, hashes[0], hashes[1], np.zeros((count, 192), np.uint8))

    def set_record(self, row: int, record: tuple) -> None:
        """Fill in one image from a `ScanRecord`."""
        for array, value in zip(self.columns.values(), record[:-3], strict=True):
            array[row] = value
        if not record[0]:
            self.digest[row], self.hash[row] = (np.frombuffer(value, np.uint64)[0] for value in record[-3:-1])
            self.thumb[row] = np.frombuffer(record[-1], np.uint8)


def scan_images(paths: Sequence[str], progress: Progress) -> ScanResult:
    """Scan all images, in parallel threads; unchanged images that were scanned before are taken from the cache."""
    result = ScanResult.empty(len(paths))
    with closing(ScanCache(progress)) as cache, progress.bar("scanning images", len(paths), "images") as bar:
        pending = []
        for row, path in enumerate(paths):
            stamp = file_stamp(path)
            if record := cache.get(path, stamp):
                result.set_record(row, record)
                bar.step()
            else:
                pending.append((row, path, stamp))
        batches = [pending[start : start + 64] for start in range(0, len(pending), 64)]  # one future per image is slow
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(batches), 64):
                group = batches[start : start + 64]
                for batch, records in zip(group, pool.map(scan_batch, group), strict=True):
                    for (row, path, stamp), record in zip(batch, records, strict=True):
                        result.set_record(row, record)
                        cache.put(path, stamp, record)
                    bar.step(len(batch))
                cache.commit()
    return result


def scan_batch(batch: list[tuple[int, str, tuple[int, int]]]) -> list[tuple]:
    """Scan the images of a batch of (row, path, stamp)."""
    return [scan_image(path) for _, path, _ in batch]


def file_stamp(path: str) -> tuple[int, int]:
    """Return a file's size and a hash of what changes when it is replaced, or (-1, -1) if it cannot be examined."""
    try:
        size, *others = file_identity(path).split()
    except OSError:
        return (-1, -1)
    return int(size), int.from_bytes(hashlib.blake2b(" ".join(others).encode(), digest_size=7).digest())


def scan_image(path: str) -> ScanRecord:
    """Decode an image and return its record."""
    size = 0
    with reserve_for_file(path):
        try:
            content = read_image_bytes(path)
            size = len(content)
            return scan_content(content)
        except Exception as error:
            return ScanRecord(unreadable_reason(error), size)


def scan_content(content: bytes) -> ScanRecord:
    """Decode the content of an image file and return its record."""
    from PIL.Image import Resampling

    image = open_image(content)
    (width, height), mode = image.size, image.mode
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception:  # a frame after the first, which is not used, is damaged
        image, frames = open_image(content), 1
    image.draft("RGB", (64, 64))  # a JPEG is still read to its end, so that a truncated one is detected
    with reserve_for_image(image):
        image = image if formats is None else formats.as_samples(image)
        turned = image.getexif().get(0x0112, 1) not in (0, 1)
        small = to_upright_rgb(image, "image")
        facts = NO_FACTS if formats is None else formats.describe(image, small, content)
    if min(small.size) > 128:
        small = small.resize((64, 64), Resampling.BOX)
    digest = hashlib.blake2b(content, digest_size=8).digest()
    perceptual_hash = np.packbits(perceptual_bits(small)).tobytes()
    thumb = small.resize((8, 8), Resampling.BOX).tobytes()
    return ScanRecord._make(
        ("", len(content), width, height, mode, turned, frames, *facts, digest, perceptual_hash, thumb)
    )


def perceptual_bits(image: Image.Image) -> np.ndarray:
    """Return the 64 bits of `imagehash.phash`, whose import of scipy takes longer than scanning a small folder.

    Each bit tells whether one of the 8 x 8 lowest frequencies of the gray image, 32 x 32 pixels, is above their median.
    """
    from PIL.Image import Resampling

    gray = image.convert("L").resize((32, 32), Resampling.LANCZOS)
    lowest = cosine_transform(cosine_transform(np.asarray(gray, float)).T).T[:8, :8]
    return (lowest > np.median(lowest)).reshape(-1)


def cosine_transform(values: np.ndarray) -> np.ndarray:
    """Return the type-II discrete cosine transform of each column."""
    count = len(values)
    spectrum = np.fft.rfft(np.concatenate([values, values[::-1]]), axis=0)[:count]
    return (spectrum * np.exp(-0.5j * np.pi * np.arange(count) / count)[:, None]).real


class ScanCache:
    """SQLite cache of scan records, each with a checksum; a damaged record counts as missing.

    Errors of the database are logged, and the scan continues without the cache.
    """

    VERSION = 3
    COLUMNS = ", ".join((*SCAN_COLUMNS, "digest", "hash", "thumb", "crc"))

    def __init__(self, progress: Progress) -> None:
        self.connection: sqlite3.Connection | None = None
        self.progress = progress
        self.file = cache_home() / f"audit-{self.VERSION}.sqlite"
        try:
            self._open()
        except (OSError, sqlite3.Error) as error:
            self._recover(error)

    def _open(self) -> None:
        make_cache_folder(cache_home())
        self.connection = sqlite3.connect(self.file, timeout=30)
        columns = f"path TEXT PRIMARY KEY, size INTEGER, time INTEGER, {self.COLUMNS}"
        self.connection.execute(f"CREATE TABLE IF NOT EXISTS images ({columns}) WITHOUT ROWID")

    def _recover(self, error: Exception) -> None:
        """Replace a damaged cache by an empty one; after any other error continue without a cache."""
        connection, self.connection = self.connection, None
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if connection is not None and code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            connection.close()
            try:
                self.file.unlink()
                self._open()
            except (OSError, sqlite3.Error) as second_error:
                error, self.connection = second_error, None
            else:
                self.progress.log(f"cache: {self.file} was damaged ({error}) and removed; images are scanned again")
                return
        self.progress.log(f"cache: results of the scan cannot be cached in {cache_home()}: {error}")

    def get(self, path: str, stamp: tuple[int, int]) -> tuple | None:
        """Return the record of an unchanged image, or None."""
        if self.connection is None:
            return None
        try:
            row = self.connection.execute(
                f"SELECT {self.COLUMNS} FROM images WHERE path = ? AND size = ? AND time = ?",
                (path_to_text(path), *stamp),
            ).fetchone()
        except sqlite3.Error as error:
            self._recover(error)
            return None
        return row[:-1] if row and row[-1] == record_checksum(path, stamp, row[:-1]) else None

    def put(self, path: str, stamp: tuple[int, int], record: tuple) -> None:
        """Store the record of an image, unless its file could not be examined, or a package to read it is missing."""
        if self.connection is None or stamp[0] < 0 or "pip install" in record[0]:
            return
        try:
            row = (path_to_text(path), *stamp, *record, record_checksum(path, stamp, record))
            self.connection.execute(f"INSERT OR REPLACE INTO images VALUES ({', '.join('?' * len(row))})", row)
        except sqlite3.Error as error:
            self._recover(error)

    def commit(self) -> None:
        if self.connection is not None:
            try:
                self.connection.commit()
            except sqlite3.Error as error:
                self._recover(error)

    def close(self) -> None:
        self.commit()
        if self.connection is not None:
            self.connection.close()


def record_checksum(path: str, stamp: tuple[int, int], record: tuple) -> int:
    """Return the CRC-32 of a record with its key; SQLite returns booleans as integers, so they are hashed as such."""
    values = (path_to_text(path), *stamp, *(int(value) if isinstance(value, bool) else value for value in record))
    return zlib.crc32(repr(values).encode())


def path_to_text(path: str) -> str | bytes:
    """Return the path, or its bytes if it is not valid Unicode text, which SQLite refuses."""
    return path if path.isascii() or not SURROGATE.search(path) else os.fsencode(path)
