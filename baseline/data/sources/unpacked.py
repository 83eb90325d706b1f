"""Unpack an archive of images into the cache, once."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from baseline.data.sources.archives import MAX_FILES, max_unpacked_bytes, unpack_archive
from baseline.data.sources.cached_images import fill_once
from baseline.files import cache_home, file_identity
from baseline.progress import Progress

__all__ = ["unpack_cached"]


def unpack_cached(archive: Path, progress: Progress) -> Path:
    """Return the folder in the cache with the archive's content; unpack it if it is missing or files have changed."""

    def unpack(folder: Path) -> None:
        unpack_archive(archive, folder, max_bytes=max_unpacked_bytes(archive), max_files=MAX_FILES, progress=progress)

    key = f"{archive} {file_identity(archive)}"
    stem = re.sub(r"[^\w.-]", "_", archive.name)[:60]
    folder = cache_home() / "unpacked" / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if fill_once(folder, unpack, lambda line: progress.log(f"data: {line}")):
        progress.log(f"data: unpacked {archive} into {folder}")
    return folder
