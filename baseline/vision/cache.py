"""A cache on disk for arrays that are expensive to compute, such as decoded images and cached features.

An entry is a folder with `data`, one array that can be memory-mapped, and `facts.json`: its shape, the checksum of
every block of `BLOCK_BYTES`, and its key. `facts.json` is written last: an entry without it is incomplete, such as that
of an interrupted run. Checksums are verified whenever an entry is opened; a damaged entry is computed again.
This module knows files and checksums; it knows no images and no networks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from baseline.files import cache_home, make_cache_folder, parse_json
from baseline.progress import Progress
from baseline.reading import read_text
from baseline.system import lock_file

__all__ = ["ArrayCache"]


FORMAT = 1
"""Version of the entry layout; part of the key."""

BLOCK_BYTES = 2**24
"""Number of bytes per checksum."""

MIN_FREE_BYTES = 10**9
"""Number of bytes to leave free on the disk."""


class ArrayCache:
    """Arrays by key; the least recently used are removed to make room for new ones.

    Nothing is stored if the folder is not writable or full, which is logged once, or if `max_gb` is 0.

    Args:
        max_gb: maximum size of all entries, in 10^9 bytes; 0 disables the cache.
        progress: receives messages.
        folder: defaults to `arrays` in the root of the cache.
    """

    def __init__(self, max_gb: float, progress: Progress | None = None, folder: Path | None = None) -> None:
        self.max_bytes = int(max_gb * 1e9)
        self.progress = progress or Progress()
        self.folder = folder or cache_home() / "arrays"
        self.warned = False
        self._allocated: set[Path] = set()

    def get(self, key: Mapping[str, Any]) -> np.ndarray | None:
        """Return the array of the key, verified and memory-mapped, or None if it is missing or damaged.

        Changes to the array are not written to the file.
        """
        folder = self.entry_path(key)
        if not self.has(key):
            return None
        try:
            facts = parse_json(read_text(folder / "facts.json"))
            array = np.memmap(folder / "data", facts["dtype"], "c", shape=tuple(facts["shape"]))
            is_intact = facts["checksums"] == block_checksums(array)
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            is_intact = False
        if not is_intact:
            self.progress.log(f"cache: {folder} is damaged; it is removed and computed again")
            shutil.rmtree(folder, ignore_errors=True)
            return None
        self._touch(folder)
        return array

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether there is an entry for the key; it is not verified."""
        return bool(self.max_bytes) and all((self.entry_path(key) / file).is_file() for file in ("facts.json", "data"))

    @contextmanager
    def lock(self, key: Mapping[str, Any]) -> Iterator[None]:
        """Keep other runs from computing the entry at the same time; waits for a run that is computing it now."""
        if not self.max_bytes or not self._writable():
            yield
            return
        note = "cache: another run is computing the same entry; waiting for it"
        with lock_file(self.entry_path(key).with_suffix(".lock"), wait=lambda: self.progress.log(note)):
            try:
                yield
            finally:
                while self._allocated:  # what an interrupted run has not committed
                    shutil.rmtree(self._allocated.pop(), ignore_errors=True)

    def allocate(self, key: Mapping[str, Any], shape: tuple[int, ...], dtype: Any) -> np.ndarray | None:
        """Return an array in a file, to be filled and then passed to `commit`; None if there is no room for it."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not size or not self.max_bytes or not self._writable() or not self._make_room(size):
            return None
        folder = self.entry_path(key)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self._allocated.add(folder)
            reserve_file(folder / "data", size)
            return np.memmap(folder / "data", dtype, "r+", shape=shape)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            self._warn_once(f"no room for {_format_size(size)} in {self.folder}: {error.strerror}")
            return None

    def compute_seconds(self, key: Mapping[str, Any]) -> float:
        """Return the seconds that the entry took to compute; 0 if unknown."""
        try:
            return float(parse_json(read_text(self.entry_path(key) / "facts.json")).get("seconds", 0))
        except (OSError, ValueError, TypeError, AttributeError):
            return 0.0

    def commit(self, key: Mapping[str, Any], array: np.ndarray, seconds: float = 0.0) -> None:
        """Store a filled array from `allocate` under its key, with the seconds it took to compute."""
        folder = self.entry_path(key)  # which Windows does not rename, nor remove, while its data is mapped
        facts = {"shape": array.shape, "dtype": str(array.dtype), "checksums": block_checksums(array), "key": key,
                 "seconds": round(seconds, 2)}  # fmt: skip
        try:
            (folder / "facts.part").write_text(json.dumps(facts, default=str), encoding="utf-8")
            (folder / "facts.part").replace(folder / "facts.json")
            self._allocated.discard(folder)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)  # on POSIX a mapped file stays readable until it is unmapped
            self._warn_once(f"{self.folder} cannot be written: {error.strerror}")

    def could_fit(self, size: int) -> bool:
        """Whether there would be room for `size` bytes if all other entries were removed."""
        if size > self.max_bytes or not self._writable():
            return False
        return size <= shutil.disk_usage(self.folder).free - MIN_FREE_BYTES + sum(s for _, s, _ in self._entries())

    def entry_path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps({"format": FORMAT, **key}, sort_keys=True, default=str)
        return self.folder / f"{key['what']}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def _writable(self) -> bool:
        try:
            make_cache_folder(self.folder)
        except OSError as error:
            self._warn_once(f"{self.folder} cannot be created: {error.strerror}")
            return False
        if not os.access(self.folder, os.W_OK):
            self._warn_once(f"{self.folder} cannot be written")
            return False
        return True

    def _make_room(self, size: int) -> bool:
        """Remove the least recently used entries until there is room for `size` bytes; return whether there is."""
        entries = sorted(self._entries())
        used = sum(size for _, size, _ in entries)
        free = shutil.disk_usage(self.folder).free - MIN_FREE_BYTES
        if size > min(self.max_bytes, free + used):
            limit = "--cache-gb" if size > self.max_bytes else "the free space on its disk"
            self._warn_once(f"{_format_size(size)} exceed {limit}")
            return False
        for _, entry_size, folder in entries:
            if used + size <= self.max_bytes and size <= free:
                break
            shutil.rmtree(folder, ignore_errors=True)
            used, free = used - entry_size, free + entry_size
        return True

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield time of last use, size in bytes and folder of all entries that no other run is working on."""
        for folder in self.folder.iterdir():
            is_complete = (folder / "facts.json").is_file()
            if folder.suffix == ".lock" or (not is_complete and is_locked(folder.with_suffix(".lock"))):
                continue
            try:
                size = sum(file.stat().st_size for file in folder.iterdir())
                yield folder.stat().st_mtime, size, folder
            except OSError:  # just removed by another run
                continue

    def _touch(self, folder: Path) -> None:
        try:
            os.utime(folder)
        except OSError:  # the cache is read-only
            return

    def _warn_once(self, reason: str) -> None:
        if not self.warned:
            self.progress.log(f"cache: {reason}; nothing more is stored")
        self.warned = True


def reserve_file(path: Path, size: int) -> None:
    """Create a file of `size` bytes with its disk space allocated: a full disk is an error now, not a crash later."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def block_checksums(array: np.ndarray) -> list[int]:
    """Return the CRC-32 of every block of the array."""
    data = array.reshape(-1).view(np.uint8)
    blocks = [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(zlib.crc32, blocks))


def is_locked(lock: Path) -> bool:
    """Whether another run holds the lock."""
    try:
        with lock_file(lock):
            return False
    except OSError:
        return True


def _format_size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
