"""TODO."""

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
"""What is told of every image."""


@dataclass
class ScanResult:
    """Of every image, in order."""

    reason: np.ndarray
    bytes: np.ndarray
    width: np.ndarray
    height: np.ndarray
    mode: np.ndarray
    turned: np.ndarray
    frames: np.ndarray
    digest: np.ndarray
    """A hash of the file."""
    hash: np.ndarray
    """The perceptual hash."""
    thumb: np.ndarray
    """N x 192, uint8: 8 x 8 RGB."""

    @classmethod
    def empty(cls, count: int) -> ScanResult:
        text, whole = np.full(count, "", dtype=object), np.zeros(count, np.int32)
        flags, hashes = np.zeros(count, bool), np.zeros(count, np.uint64)
        return cls(
            text, np.zeros(count, np.int64), whole, whole.copy(), text.copy(), flags, whole.copy(), hashes,
            hashes.copy(), np.zeros((count, 192), np.uint8),
        )  # fmt: skip

    def set_record(self, row: int, facts: tuple) -> None:
        self.reason[row], self.bytes[row], self.width[row], self.height[row], self.mode[row] = facts[:5]
        self.turned[row], self.frames[row] = facts[5:7]
        if not facts[0]:
            self.digest[row] = np.frombuffer(facts[7], np.uint64)[0]
            self.hash[row] = np.frombuffer(facts[8], np.uint64)[0]
            self.thumb[row] = np.frombuffer(facts[9], np.uint8)

    def to_columns(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in SCAN_COLUMNS}


def scan_images(paths: Sequence[str], progress: Progress) -> ScanResult:
    seen = ScanResult.empty(len(paths))
    with closing(ScanCache(progress)) as memory, progress.bar("looking at every image", len(paths), "images") as bar:
        unknown = []
        for row, path in enumerate(paths):
            stamp = file_stamp(path)
            if facts := memory.recall(path, stamp):
                seen.set_record(row, facts)
                bar.step()
            else:
                unknown.append((row, path, stamp))
        parts = [unknown[at : at + 64] for at in range(0, len(unknown), 64)]  # one by one, handing over costs too much
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for at in range(0, len(parts), 64):
                for part, looks in zip(parts[at : at + 64], pool.map(scan_batch, parts[at : at + 64]), strict=True):
                    for (row, path, stamp), facts in zip(part, looks, strict=True):
                        seen.set_record(row, facts)
                        memory.keep(path, stamp, facts)
                    bar.step(len(part))
                memory.save()
    return seen


def scan_batch(part: list[tuple[int, str, tuple[int, int]]]) -> list[tuple]:
    return [scan_image(path) for _, path, _ in part]


def file_stamp(path: str) -> tuple[int, int]:
    try:
        found = Path(path).stat()
    except OSError:
        return (-1, -1)
    return found.st_size, found.st_mtime_ns


def scan_image(path: str) -> tuple:
    """Reason, bytes, width, height, mode, turned, frames; then digest, hash and thumbnail of what can be read."""
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
        image.draft("RGB", (64, 64))  # a JPEG is still read to its end, so that a truncated one is found
        small = to_upright_rgb(image)
        if min(small.size) > 128:
            small = small.resize((64, 64), Image.Resampling.BOX)
        thumb = small.resize((8, 8), Image.Resampling.BOX).tobytes()
        look = np.packbits(imagehash.phash(small).hash.reshape(-1)).tobytes()
    except Exception as error:
        return unreadable_record(unreadable_reason(error), size)
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return ("", size, width, height, mode, turned, frames, digest, look, thumb)


def unreadable_record(reason: str, size: int = 0) -> tuple:
    return (reason, size, 0, 0, "", False, 0, b"", b"", b"")


class ScanCache:
    """What was seen of images before, in the cache, each row with its checksum; what is damaged is seen anew."""

    VERSION = 2
    COLUMNS = ", ".join((*SCAN_COLUMNS, "digest", "hash", "thumb", "crc"))

    def __init__(self, progress: Progress) -> None:
        self.base: sqlite3.Connection | None = None
        self.progress = progress
        self.file = cache_home() / f"audit-{self.VERSION}.sqlite"
        try:
            self._open()
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def _open(self) -> None:
        cache_home().mkdir(parents=True, exist_ok=True)
        self.base = sqlite3.connect(self.file, timeout=30)
        columns = f"path TEXT PRIMARY KEY, size INTEGER, time INTEGER, {self.COLUMNS}"
        self.base.execute(f"CREATE TABLE IF NOT EXISTS images ({columns}) WITHOUT ROWID")

    def _give_up(self, error: Exception) -> None:
        """Goes on without the cache; one that is damaged is removed and begun again."""
        base, self.base = self.base, None
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if base is not None and code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            base.close()
            try:
                self.file.unlink()
                self._open()
            except (OSError, sqlite3.Error) as again:
                error, self.base = again, None
            else:
                self.progress.log(f"cache: {self.file} is damaged ({error}); images are looked at again")
                return
        self.progress.log(f"what is seen of the images is not kept for the next time: {cache_home()}: {error}")

    def recall(self, path: str, stamp: tuple[int, int]) -> tuple | None:
        if self.base is None:
            return None
        try:
            found = self.base.execute(
                f"SELECT {self.COLUMNS} FROM images WHERE path = ? AND size = ? AND time = ?",
                (path_to_text(path), *stamp),
            ).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        return found[:-1] if found and found[-1] == record_checksum(path, stamp, found[:-1]) else None

    def keep(self, path: str, stamp: tuple[int, int], facts: tuple) -> None:
        if self.base is None or stamp[0] < 0:
            return
        try:
            row = (path_to_text(path), *stamp, *facts, record_checksum(path, stamp, facts))
            self.base.execute(f"INSERT OR REPLACE INTO images VALUES ({', '.join('?' * len(row))})", row)
        except sqlite3.Error as error:
            self._give_up(error)

    def save(self) -> None:
        if self.base is not None:
            try:
                self.base.commit()
            except sqlite3.Error as error:
                self._give_up(error)

    def close(self) -> None:
        self.save()
        if self.base is not None:
            self.base.close()


def record_checksum(path: str, stamp: tuple[int, int], facts: tuple) -> int:
    told = (path_to_text(path), *stamp, *(int(each) if isinstance(each, bool) else each for each in facts))
    return zlib.crc32(repr(told).encode())


def path_to_text(path: str) -> str | bytes:
    """Names that are no valid text, which SQLite refuses, as their bytes."""
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return os.fsencode(path)
