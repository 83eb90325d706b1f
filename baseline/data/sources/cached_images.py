"""Keep images that were taken out of a file as files in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from baseline.data.sources.archives import report_write_errors
from baseline.errors import OutputError
from baseline.files import atomic_folder, cache_home, file_identity, make_cache_folder

__all__ = ["cached_images"]


def cached_images(kind: str, path: Path, write: Callable[[Path], None]) -> Path:
    """Return the folder in the cache with the images of a file; `write` fills it if the file is new or has changed.

    Args:
        kind: the folder of the cache.
        write: writes the images into a folder.
    """
    key = hashlib.sha256(f"{path} {file_identity(path)}".encode()).hexdigest()[:12]
    folder = cache_home() / kind / f"{path.stem}-{key}"
    if not folder.is_dir():
        with report_write_errors(folder):
            make_cache_folder(folder.parent)
        try:
            with atomic_folder(folder) as work:
                write(work)
        except OutputError:
            if not folder.is_dir():  # otherwise another process has written it meanwhile
                raise
    return folder
