"""TODO."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

from baseline.data.sources.archives import Members, is_archive
from baseline.data.sources.folders import has_image_name, images_below
from baseline.data.sources.read_table import TABLE_SUFFIXES
from baseline.data.sources.tables import listed_images
from baseline.errors import DataError
from baseline.files import resolve_path
from baseline.progress import Progress

__all__ = ["list_images"]


def list_images(
    words: Sequence[str], column: str = "", lines: Iterable[bytes] = (), progress: Progress | None = None
) -> tuple[Iterable[Any], int]:
    """The paths that a user's words name, in their order, and how many; 0 where that is not known.

    Args:
        words: images, folders (with all below), zip and tar archives, patterns such as `'shots/*.jpg'`, tables with a
            column of paths, which are looked for beside the table, or `-` for `lines`.
        column: the column of paths in tables; looked for where empty.

    Raises:
        DataError: for a word that names nothing, a table without such a column, and an archive that is damaged, leads
            out of its folder or is a bomb.
    """
    progress = progress or Progress()
    parts: list[Iterable[Any]] = []
    total = 0
    for word in words:
        found = [] if word == "-" else _from_word(word, column, progress)
        parts += found or [_from_lines(lines)]
        total += sum(map(len, found))
    return chain.from_iterable(parts), 0 if "-" in words else total


def _from_lines(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        if path := line.rstrip(b"\r\n"):
            yield os.fsdecode(path)


def _from_word(word: str, column: str, progress: Progress) -> list[list[str] | Members]:
    resolve_path(word)
    path = Path(word).expanduser()
    if path.is_dir():
        if not (found := list(images_below(path))):
            raise DataError(f"{path} holds no images. Give a folder of images.")
        return [found]
    if not path.exists():
        fitting = sorted(glob(str(path), recursive=True))  # noqa: PTH207  # that of a Path takes no absolute pattern
        found = [each for each in fitting if Path(each).is_file()]
        if not found:
            raise DataError(f"There is no image, folder or table {word}, and no file fits it as a pattern.")
        return [_from_archive(each, progress) if is_archive(each) else [each] for each in found]
    if is_archive(path):
        return [_from_archive(path, progress)]
    return [listed_images(path, column) if path.suffix.lower() in TABLE_SUFFIXES else [str(path)]]


def _from_archive(archive: str | Path, progress: Progress) -> Members:
    if not len(found := Members(Path(archive), has_image_name, progress)):
        raise DataError(f"{archive} holds no images. Give an archive of images.")
    return found
