"""Folders in the cache with images that were taken out of an archive, a table or a dataset."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from baseline.data.sources.archives import report_write_errors
from baseline.files import atomic_folder, cache_home, file_identity, make_cache_folder, write_atomic
from baseline.system import lock_file

__all__ = ["cached_images", "fill_once"]


def cached_images(kind: str, path: Path, write: Callable[[Path], None], log: Callable[[str], None]) -> Path:
    """Return the folder in the cache with the images of a file; `write` fills it if the file is new or has changed.

    Args:
        kind: the folder of the cache.
        write: writes the images into a folder.
        log: called with a line if the images are written again.
    """

    def fill(folder: Path) -> None:
        with atomic_folder(folder) as work:
            write(work)

    key = hashlib.sha256(f"{path} {file_identity(path)}".encode()).hexdigest()[:12]
    folder = cache_home() / kind / f"{path.stem}-{key}"
    fill_once(folder, fill, log)
    return folder


def fill_once(folder: Path, fill: Callable[[Path], None], log: Callable[[str], None]) -> bool:
    """Fill a folder of the cache if it is missing or its files have changed, and return whether it was filled.

    Threads and processes that do so at the same time wait for the first.

    Args:
        fill: makes the folder, completely or not at all.
        log: called with a line if files have changed.

    Raises:
        OutputError: if the cache cannot be written.
    """
    size_file = folder.with_name(f"{folder.name}.size")
    if _is_complete(folder, size_file):
        return False
    with report_write_errors(size_file):
        make_cache_folder(folder.parent)
        locked = ExitStack()
        locked.enter_context(lock_file(folder.with_name(f"{folder.name}.lock"), wait=lambda: None))
    with locked:
        if _is_complete(folder, size_file):  # another process has filled it meanwhile
            return False
        if folder.exists():
            log(f"{folder} is incomplete or was changed; writing it again")
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*"):  # of a run that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        fill(folder)
        with report_write_errors(size_file):
            write_atomic(size_file, _folder_size(folder))
    return True


def _is_complete(folder: Path, size_file: Path) -> bool:
    return folder.is_dir() and size_file.is_file() and size_file.read_bytes() == _folder_size(folder)


def _folder_size(folder: Path) -> bytes:
    """Return the number of files below a folder and their total size, as text."""
    sizes = [os.lstat(os.path.join(parent, file)).st_size for parent, _, files in os.walk(folder) for file in files]
    return f"{len(sizes)} files, {sum(sizes)} bytes\n".encode()
