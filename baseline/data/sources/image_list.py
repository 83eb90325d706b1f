"""List the images that command-line arguments name: files, folders, archives, patterns, tables or standard input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

from baseline.data.sources.archives import Members, is_archive
from baseline.data.sources.folders import describe_skipped, has_image_name, images_below
from baseline.data.sources.read_table import TABLE_SUFFIXES
from baseline.data.sources.tables import read_image_paths
from baseline.errors import DataError, format_count, similar_path
from baseline.files import resolve_path
from baseline.progress import Progress

__all__ = ["list_images"]


MAX_LINE = 65_536
"""Maximum number of bytes of a line of standard input, which is a path."""


def list_images(
    sources: Sequence[str], column: str = "", lines: Iterable[bytes] = (), progress: Progress | None = None
) -> tuple[Iterable[Any], int]:
    """Return the images that the sources name, in order, and their number, which is 0 if it is unknown.

    Args:
        sources: images, folders (including subfolders), zip and tar archives, patterns such as `'shots/*.jpg'`, tables
            with a column of paths, which are relative to the table, or `-` for `lines`.
        column: the column of paths in tables; detected if empty.
        lines: paths, one per line, such as standard input.

    Raises:
        DataError: for a source that names nothing, a table without such a column, and an archive that is damaged,
            contains members outside its folder or is a zip bomb.
    """
    progress = progress or Progress()
    parts: list[Iterable[Any]] = []
    total = 0
    for source in sources:
        images = [] if source == "-" else images_of_source(source, column, progress)
        parts += images or [paths_of_lines(lines)]
        total += sum(map(len, images))
    return chain.from_iterable(parts), 0 if "-" in sources else total


def paths_of_lines(lines: Iterable[bytes]) -> Iterator[str]:
    readline = getattr(lines, "readline", None)  # of a file, whose line may have no end
    for line in iter(partial(readline, MAX_LINE + 1), b"") if readline else lines:
        if len(line) > MAX_LINE:
            raise DataError(f"A line of standard input has more than {MAX_LINE:,} bytes. Pass one path per line.")
        if path := line.rstrip(b"\r\n"):
            yield os.fsdecode(path)


def images_of_source(source: str, column: str, progress: Progress) -> list[list[str] | Members]:
    resolve_path(source)
    path = Path(source).expanduser()
    if path.is_dir():
        skipped: list[str] = []
        images = list(images_below(path, skipped))
        if not images:
            found = f" ({describe_skipped(skipped)})" if skipped else ""
            raise DataError(f"{path} contains no images{found}. Pass a folder of images.")
        if skipped:
            progress.log(f"{path}: {format_count(len(images), 'image')}; {describe_skipped(skipped)}")
        return [images]
    if not path.exists():
        matches = sorted(glob(str(path), recursive=True))  # noqa: PTH207  # Path.glob accepts no absolute pattern
        files = [match for match in matches if Path(match).is_file()]
        if not files:
            raise DataError(
                f"There is no image, folder or table {source}, and it matches no file as a pattern."
                f"{similar_path(source) or ' Check the path.'}"
            )
        return [images_of_archive(file, progress) if is_archive(file) else [file] for file in files]
    if is_archive(path):
        return [images_of_archive(path, progress)]
    return [read_image_paths(path, column) if path.suffix.lower() in TABLE_SUFFIXES else [str(path)]]


def images_of_archive(archive: str | Path, progress: Progress) -> Members:
    if not len(images := Members(Path(archive), has_image_name, progress)):
        raise DataError(f"{archive} contains no images. Pass an archive of images.")
    if images.other_names:
        progress.log(f"{archive}: {format_count(len(images), 'image')}; {describe_skipped(images.other_names)}")
    return images
