"""TODO."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from baseline.data.sources.read_table import TABLE_SUFFIXES
from baseline.errors import DataError, quoted_list

__all__ = ["IMAGE_SUFFIXES", "SPLIT_NAMES", "has_image_name", "images_below"]


IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
     ".webp"}
)  # fmt: skip
"""Names with these endings, in either case, are images."""


SPLIT_NAMES = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What folders and the values of a split column are called, in lower case."""


def enter_single_folder(folder: Path) -> Path:
    """The folder itself, or the only thing it holds where that is a folder: archives often pack one."""
    inner = [each for each in list_entries(folder) if not each.name.startswith((".", "__MACOSX"))]
    while len(inner) == 1 and inner[0].is_dir() and inner[0].name.lower() not in SPLIT_NAMES:
        below = list_entries(inner[0])
        if not any(each.is_dir() or each.suffix.lower() in TABLE_SUFFIXES for each in below):
            break
        folder, inner = inner[0], [each for each in below if not each.name.startswith(".")]
    return folder


def find_class_parents(folder: Path) -> list[tuple[Path, str | None]]:
    """The folders that hold class folders, each with its split."""
    named = [(each, split_from_name(each)) for each in subfolders(folder)]
    if any(split == "train" for _, split in named):
        return [(enter_single_folder(each), split) for each, split in named if split]
    if named and all(split for _, split in named):
        found = quoted_list(each.name for each, _ in named)
        raise DataError(f"{folder} holds {found} and no training images. Add a folder train.")
    return [(folder, None)]


def split_from_name(folder: Path) -> str | None:
    """The split that a folder of class folders is for, by its name or a part of it, as `test_set` and `seg_train`."""
    parts = [folder.name.lower(), *re.split(r"[\W_]+", folder.name.lower())]
    split = next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), None)
    return split if split and subfolders(folder) else None


def class_rows(parts: list[tuple[Path, str | None]]) -> pd.DataFrame:
    rows = [
        (path, class_folder.name, split, None)
        for part, split in parts
        for class_folder in subfolders(part)
        for path in images_below(class_folder)
    ]
    return pd.DataFrame(rows, columns=["path", "label", "split", "group"])


def describe_layout(folder: Path, parts: list[tuple[Path, str | None]]) -> str:
    if parts[0][1] is None:
        return f"one folder per class, {folder}"
    return f"one folder per class in {quoted_list(part.name for part, _ in parts)}, {folder}"


def folder_notes(folder: Path, parts: list[tuple[Path, str | None]], tables: list[Path]) -> list[str]:
    found = (
        [f"{quoted_list(each.name for each in tables)} is not read; name the file to use its columns"] if tables else []
    )
    if parts[0][1] is not None:
        used = {part.relative_to(folder).parts[0] for part, _ in parts}
        aside = [each.name for each in subfolders(folder) if each.name not in used]
        if aside := [name for name in aside if next(images_below(folder / name), None)]:
            found.append(f"images in {quoted_list(aside, 3)} are left alone: no split is named so")
    if loose := sum(is_image_file(each) for part, _ in parts for each in list_entries(part)):
        found.append(f"{loose:,} images outside of class folders are left alone")
    if empty := [each.name for part, _ in parts for each in subfolders(part) if next(images_below(each), None) is None]:
        found.append(f"no images in {quoted_list(empty, 3)}")
    other = [each.name for part, _ in parts for each in _unexpected_files(part)]
    if other:
        found.append(f"{len(other):,} files of other kinds are passed over: {quoted_list(other, 3)}")
    return found


def _unexpected_files(part: Path) -> Iterator[Path]:
    for class_folder in subfolders(part):
        for each in list_entries(class_folder):
            if not is_image_file(each) and not each.name.startswith(".") and each.is_file():
                yield each


def is_image_file(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def find_tables(folder: Path) -> list[Path]:
    """Table files at the top of a folder that may say something of images."""
    skipped = ("sample_submission", "submission", "test")
    found = [each for each in list_entries(folder) if each.is_file() and each.name.lower().endswith(TABLE_SUFFIXES)]
    return [each for each in found if not each.stem.lower().startswith((*skipped, "."))]


def subfolders(folder: Path) -> list[Path]:
    return [each for each in list_entries(folder) if each.is_dir() and not each.name.startswith(".")]


def list_entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None


def images_below(folder: Path) -> Iterator[str]:
    """Every image in a folder and the folders below, in order. Hidden ones are passed over, links followed once.

    A folder that a link leads back to is entered once only, and one above `folder` not at all, so a loop of links ends.

    Raises:
        DataError: for a folder that cannot be read and a name that is no text.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}. Change its rights, or move it away.")

    seen = {str(each) for each in Path(os.path.realpath(folder)).parents}
    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for file in sorted(files):
            if has_image_name(file):
                path = os.path.join(here, file)
                if not path.isprintable() and any("\ud800" <= each <= "\udfff" for each in path):
                    raise DataError(f"The name {path!a} is no text in UTF-8. Rename it.")
                yield path


def has_image_name(name: str) -> bool:
    """Whether a name, with folders or without, is that of an image: by its ending; hidden ones are passed over.

    >>> has_image_name("ants/01.JPG"), has_image_name("__MACOSX/._01.jpg"), has_image_name("labels.csv")
    (True, False, False)
    """
    hidden = any(part.startswith(".") and part != "." for part in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
