"""Unpack an archive of images into the cache, once."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from filelock import FileLock

from baseline.data.sources.archives import MAX_FILES, max_unpacked_bytes, report_write_errors, unpack_archive
from baseline.files import cache_home, file_identity, make_cache_folder, write_atomic
from baseline.progress import Progress

__all__ = ["unpack_cached"]


def unpack_cached(archive: Path, progress: Progress) -> Path:
    """Return the folder in the cache with the archive's content; unpack it if it is missing or files have changed."""
    key = f"{archive} {file_identity(archive)}"
    stem = re.sub(r"[^\w.-]", "_", archive.name)[:60]
    folder = cache_home() / "unpacked" / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    size_file = folder.with_name(f"{folder.name}.size")
    if _is_complete(folder, size_file):
        return folder
    with report_write_errors(size_file):
        make_cache_folder(folder.parent)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        lock.acquire()
    try:
        if _is_complete(folder, size_file):  # another process has unpacked it meanwhile
            return folder
        if folder.exists():
            progress.log(f"data: {folder} is incomplete or was changed; unpacking it again")
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        unpack_archive(archive, folder, max_bytes=max_unpacked_bytes(archive), max_files=MAX_FILES, progress=progress)
        with report_write_errors(size_file):
            write_atomic(size_file, _folder_size(folder))
    finally:
        lock.release()
    progress.log(f"data: unpacked {archive} into {folder}")
    return folder


def _is_complete(folder: Path, size_file: Path) -> bool:
    return folder.is_dir() and size_file.is_file() and size_file.read_bytes() == _folder_size(folder)


def _folder_size(folder: Path) -> bytes:
    """Return the number of files below a folder and their total size, as text."""
    sizes = [os.lstat(os.path.join(parent, file)).st_size for parent, _, files in os.walk(folder) for file in files]
    return f"{len(sizes)} files, {sum(sizes)} bytes\n".encode()
