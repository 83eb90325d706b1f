"""Arrays computed once and kept in files for the next run. Knows files and checksums; knows no images, no networks.

An entry is a folder with `data`, one array that can be mapped into memory, and `facts.json`: its shape, the checksum of
every block of `BLOCK_BYTES`, and its key. A folder gets its name when it is whole; what a killed run left has another
one. Checksums are compared whenever an entry is opened: what does not agree is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from baseline.errors import missing_image
from baseline.files import cache_home
from baseline.progress import Progress

__all__ = ["ArrayCache", "file_fingerprint"]


FORMAT = 1

BLOCK_BYTES = 2**24

MIN_FREE_BYTES = 10**9
"""What stays free on the disk."""


class ArrayCache:
    """Arrays by key, at most `most_gb` in all (10^9 bytes); the longest unused are removed for new ones.

    Where the folder cannot be written, is full, or `most_gb` is 0, nothing is kept, and the reason is said once.

    Args:
        most_gb: 0 keeps nothing.
        folder: `arrays` in the cache's root if not given.
    """

    def __init__(self, max_gb: float, progress: Progress | None = None, folder: Path | None = None) -> None:
        self.max_bytes = int(max_gb * 1e9)
        self.progress = progress or Progress()
        self.folder = folder or cache_home() / "arrays"
        self.warned = False

    def get(self, key: Mapping[str, Any]) -> np.ndarray | None:
        """The array of that key, checked and mapped into memory; changes to it are never written. None if it is not
        there, or damaged."""
        folder = self.entry_path(key)
        if not self.has(key):
            return None
        try:
            facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
            array = np.memmap(folder / "data", facts["dtype"], "c", shape=tuple(facts["shape"]))
            whole = facts["checksums"] == block_checksums(array)
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            self.progress.log(f"cache: {folder} is damaged; it is removed, and computed again")
            shutil.rmtree(folder, ignore_errors=True)
            return None
        self._touch(folder)
        return array

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether there is something of that key, without looking at it."""
        return bool(self.max_bytes) and (self.entry_path(key) / "facts.json").is_file()

    @contextmanager
    def lock(self, key: Mapping[str, Any]) -> Iterator[None]:
        """Inside, no other run makes what this key stands for; first its work is waited for, where one does."""
        if not self.max_bytes or not self._writable():
            yield
            return
        lock = FileLock(f"{self.entry_path(key)}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.progress.log("cache: another run is computing the same; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def allocate(self, key: Mapping[str, Any], shape: tuple[int, ...], dtype: Any) -> np.ndarray | None:
        """An array of that shape in a file, to be filled and then handed to `keep`; None where there is no room."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not size or not self.max_bytes or not self._writable() or not self._make_room(size):
            return None
        part = self._part(key)
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            reserve_file(part / "data", size)
            return np.memmap(part / "data", dtype, "r+", shape=shape)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            self._say_once(f"{self.folder} took no {_format_size(size)}: {error.strerror}")
            return None

    def compute_seconds(self, key: Mapping[str, Any]) -> float:
        """How long what is kept of that key took to make; 0 where that is not known."""
        try:
            return float(
                json.loads((self.entry_path(key) / "facts.json").read_text(encoding="utf-8")).get("seconds", 0)
            )
        except (OSError, ValueError, TypeError, AttributeError):
            return 0.0

    def commit(self, key: Mapping[str, Any], array: np.ndarray, seconds: float = 0.0) -> None:
        """Gives a filled array of `room`, which took so many seconds, its name, so that it is found from now on."""
        part, folder = self._part(key), self.entry_path(key)
        facts = {"shape": array.shape, "dtype": str(array.dtype), "checksums": block_checksums(array), "key": key,
                 "seconds": round(seconds, 2)}  # fmt: skip
        try:
            (part / "facts.json").write_text(json.dumps(facts, default=str), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)  # what is mapped stays readable until it is let go
            self._say_once(f"{self.folder} cannot be written: {error.strerror}")

    def could_fit(self, size: int) -> bool:
        """Whether there would be room for so many bytes once everything else is removed."""
        if size > self.max_bytes or not self._writable():
            return False
        return size <= shutil.disk_usage(self.folder).free - MIN_FREE_BYTES + sum(s for _, s, _ in self._entries())

    def entry_path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps({"format": FORMAT, **key}, sort_keys=True, default=str)
        return self.folder / f"{key['what']}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def _part(self, key: Mapping[str, Any]) -> Path:
        return self.entry_path(key).with_suffix(".part")

    def _writable(self) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._say_once(f"{self.folder} cannot be made: {error.strerror}")
            return False
        if not os.access(self.folder, os.W_OK):
            self._say_once(f"{self.folder} cannot be written")
            return False
        return True

    def _make_room(self, size: int) -> bool:
        """Removes what was longest unused until there is room for `size` bytes; False where that cannot be."""
        entries = sorted(self._entries())
        kept = sum(size for _, size, _ in entries)
        free = shutil.disk_usage(self.folder).free - MIN_FREE_BYTES
        if size > min(self.max_bytes, free + kept):
            limit = "--cache-gb" if size > self.max_bytes else "what is free on its disk"
            self._say_once(f"{_format_size(size)} are more than {limit}")
            return False
        for _, bytes_there, folder in entries:
            if kept + size <= self.max_bytes and size <= free:
                break
            shutil.rmtree(folder, ignore_errors=True)
            kept, free = kept - bytes_there, free + bytes_there
        return True

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """When last used, bytes, and folder of everything here that no other run is working on."""
        for folder in self.folder.iterdir():
            if folder.suffix == ".lock" or (folder.suffix == ".part" and is_locked(folder.with_suffix(".lock"))):
                continue
            try:
                size = sum(file.stat().st_size for file in folder.iterdir())
                yield folder.stat().st_mtime, size, folder
            except OSError:  # another run has just removed it
                continue

    def _touch(self, folder: Path) -> None:
        try:
            os.utime(folder)
        except OSError:  # a cache that can only be read
            return

    def _say_once(self, words: str) -> None:
        if not self.warned:
            self.progress.log(f"cache: {words}; nothing more is kept there")
        self.warned = True


def file_fingerprint(paths: Iterable[str]) -> str:
    """A hash of paths, sizes and times of change of these files, in their order.

    Raises:
        DataError: if one has gone.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = Path(path).stat()
        except FileNotFoundError as error:
            raise missing_image(error) from None
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def reserve_file(path: Path, size: int) -> None:
    """A file of that size, with its place on the disk: a full disk is an error now, and not a crash later."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def block_checksums(array: np.ndarray) -> list[int]:
    whole = array.reshape(-1).view(np.uint8)
    blocks = [whole[start : start + BLOCK_BYTES] for start in range(0, len(whole), BLOCK_BYTES)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(zlib.crc32, blocks))


def is_locked(lock: Path) -> bool:
    """Whether another run holds the lock."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    held.release()
    return False


def _format_size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
