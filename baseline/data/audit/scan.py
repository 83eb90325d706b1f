"""Decode every image of a table once and record its size, color mode, hashes and thumbnail, or why it is unreadable.

The records are cached in an SQLite file in the cache folder, by path, size and modification time of the image.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from baseline.data.image import open_image, read_image_bytes, to_upright_rgb, unreadable_reason
from baseline.files import cache_home

if TYPE_CHECKING:
    from baseline.progress import Progress


SCAN_COLUMNS = ("reason", "bytes", "width", "height", "mode", "turned", "frames")
"""Columns of the image table that a scan fills in."""


@dataclass
class ScanResult:
    """One record per image, in the order of the table, as one array per field; see `scan_image`."""

    reason: np.ndarray
    bytes: np.ndarray
    width: np.ndarray
    height: np.ndarray
    mode: np.ndarray
    turned: np.ndarray
    frames: np.ndarray
    digest: np.ndarray
    """Hash of the file's content."""
    hash: np.ndarray
    """Perceptual hash of the image."""
    thumb: np.ndarray
    """N x 192, uint8: an RGB thumbnail of 8 x 8 pixels."""

    @classmethod
    def empty(cls, count: int) -> ScanResult:
        """Return a result for `count` images of which nothing is known yet."""
        text, integers = np.full(count, "", dtype=object), np.zeros(count, np.int32)
        flags, hashes = np.zeros(count, bool), np.zeros(count, np.uint64)
        return cls(
            text, np.zeros(count, np.int64), integers, integers.copy(), text.copy(), flags, integers.copy(), hashes,
            hashes.copy(), np.zeros((count, 192), np.uint8),
        )  # fmt: skip

    def set_record(self, row: int, record: tuple) -> None:
        """Fill in one image from a record of `scan_image`."""
        self.reason[row], self.bytes[row], self.width[row], self.height[row], self.mode[row] = record[:5]
        self.turned[row], self.frames[row] = record[5:7]
        if not record[0]:
            self.digest[row] = np.frombuffer(record[7], np.uint64)[0]
            self.hash[row] = np.frombuffer(record[8], np.uint64)[0]
            self.thumb[row] = np.frombuffer(record[9], np.uint8)

    def to_columns(self) -> dict[str, Any]:
        """Return the arrays of `SCAN_COLUMNS` by name."""
        return {key: getattr(self, key) for key in SCAN_COLUMNS}


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
    """Return a file's size and modification time (ns), or (-1, -1) if it cannot be examined."""
    try:
        status = Path(path).stat()
    except OSError:
        return (-1, -1)
    return status.st_size, status.st_mtime_ns


def scan_image(path: str) -> tuple:
    """Decode an image and return its record.

    The record holds reason, bytes, width, height, mode, turned, frames, digest, hash and thumbnail. Of an unreadable
    image the reason says why, and the last three are empty.
    """
    import imagehash
    from PIL import Image

    try:
        content = read_image_bytes(path)
    except OSError as error:
        return unreadable_record(unreadable_reason(error))
    size = len(content)
    try:
        image = open_image(content)
        width, height = image.size
        mode = image.mode
        turned = image.getexif().get(0x0112, 1) not in (0, 1)
        frames = getattr(image, "n_frames", 1)
        image.draft("RGB", (64, 64))  # a JPEG is still read to its end, so that a truncated one is detected
        small = to_upright_rgb(image)
        if min(small.size) > 128:
            small = small.resize((64, 64), Image.Resampling.BOX)
        thumb = small.resize((8, 8), Image.Resampling.BOX).tobytes()
        perceptual_hash = np.packbits(imagehash.phash(small).hash.reshape(-1)).tobytes()
    except Exception as error:
        return unreadable_record(unreadable_reason(error), size)
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return ("", size, width, height, mode, turned, frames, digest, perceptual_hash, thumb)


def unreadable_record(reason: str, size: int = 0) -> tuple:
    """Return the record of an image that cannot be read."""
    return (reason, size, 0, 0, "", False, 0, b"", b"", b"")


class ScanCache:
    """SQLite cache of scan records, each with a checksum; a damaged record counts as missing.

    Errors of the database are logged, and the scan continues without the cache.
    """

    VERSION = 2
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
        cache_home().mkdir(parents=True, exist_ok=True)
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
        """Store the record of an image, unless its file could not be examined."""
        if self.connection is None or stamp[0] < 0:
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
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return os.fsencode(path)
