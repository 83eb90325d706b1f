"""Find images in folders: one folder per class, with or without folders per split above them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from baseline.data.sources.read_table import TABLE_SUFFIXES
from baseline.errors import DataError, quoted_list

__all__ = [
    "IMAGE_SUFFIXES",
    "SPLIT_NAMES",
    "class_rows",
    "describe_layout",
    "enter_single_folder",
    "find_class_parents",
    "find_tables",
    "folder_notes",
    "has_image_name",
    "images_below",
]


IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
     ".webp"}
)  # fmt: skip
"""File name endings of images, in lower case; names are compared without regard to case."""


SPLIT_NAMES = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The split for each name of a folder or value of a split column, in lower case."""


def enter_single_folder(folder: Path) -> Path:
    """Descend while a folder contains nothing but another folder, because archives often wrap their content in one."""
    entries = [path for path in list_entries(folder) if not path.name.startswith((".", "__MACOSX"))]
    while len(entries) == 1 and entries[0].is_dir() and entries[0].name.lower() not in SPLIT_NAMES:
        below = list_entries(entries[0])
        if not any(path.is_dir() or path.suffix.lower() in TABLE_SUFFIXES for path in below):
            break
        folder, entries = entries[0], [path for path in below if not path.name.startswith(".")]
    return folder


def find_class_parents(folder: Path) -> list[tuple[Path, str | None]]:
    """Return the folders that contain class folders, with their split (None if there are no splits).

    Raises:
        DataError: if there are only folders of valid and test images.
    """
    splits = [(path, split_from_name(path)) for path in subfolders(folder)]
    if any(split == "train" for _, split in splits):
        return [(enter_single_folder(path), split) for path, split in splits if split]
    if splits and all(split for _, split in splits):
        names = quoted_list(path.name for path, _ in splits)
        raise DataError(f"{folder} contains {names} and no training images. Add a folder train.")
    return [(folder, None)]


def split_from_name(folder: Path) -> str | None:
    """Return the split of a folder of class folders, from its name or a part of it, as in `test_set` or `seg_train`."""
    parts = [folder.name.lower(), *re.split(r"[\W_]+", folder.name.lower())]
    split = next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), None)
    return split if split and subfolders(folder) else None


def class_rows(parents: list[tuple[Path, str | None]]) -> pd.DataFrame:
    """Return one row of path, label, split and group per image below the class folders."""
    rows = [
        (path, class_folder.name, split, None)
        for parent, split in parents
        for class_folder in subfolders(parent)
        for path in images_below(class_folder)
    ]
    return pd.DataFrame(rows, columns=["path", "label", "split", "group"])


def describe_layout(folder: Path, parents: list[tuple[Path, str | None]]) -> str:
    if parents[0][1] is None:
        return f"one folder per class, {folder}"
    return f"one folder per class in {quoted_list(parent.name for parent, _ in parents)}, {folder}"


def folder_notes(folder: Path, parents: list[tuple[Path, str | None]], tables: list[Path]) -> list[str]:
    """Return sentences about everything in the folder that is ignored, and about empty class folders."""
    notes = []
    if tables:
        names = quoted_list(table.name for table in tables)
        notes.append(f"{names} {'is' if len(tables) == 1 else 'are'} not read; name the file to use its columns")
    if parents[0][1] is not None:
        used = {parent.relative_to(folder).parts[0] for parent, _ in parents}
        unused = [path.name for path in subfolders(folder) if path.name not in used]
        if ignored := [name for name in unused if next(images_below(folder / name), None)]:
            notes.append(f"images in {quoted_list(ignored, 3)} are ignored, as the name is not that of a split")
    if loose := sum(is_image_file(path) for parent, _ in parents for path in list_entries(parent)):
        notes.append(f"{loose:,} {'image' if loose == 1 else 'images'} outside of class folders ignored")
    class_folders = [path for parent, _ in parents for path in subfolders(parent)]
    if empty := [path.name for path in class_folders if next(images_below(path), None) is None]:
        notes.append(f"no images in {quoted_list(empty, 3)}")
    if others := [path.name for parent, _ in parents for path in non_image_files(parent)]:
        notes.append(
            f"{len(others):,} other {'file' if len(others) == 1 else 'files'} ignored: {quoted_list(others, 3)}"
        )
    return notes


def non_image_files(parent: Path) -> Iterator[Path]:
    """Yield the visible files in the class folders that are not images."""
    for class_folder in subfolders(parent):
        for path in list_entries(class_folder):
            if not is_image_file(path) and not path.name.startswith(".") and path.is_file():
                yield path


def is_image_file(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def find_tables(folder: Path) -> list[Path]:
    """Return the table files at the top of a folder that may describe its images."""
    skipped = ("sample_submission", "submission", "test")
    tables = [path for path in list_entries(folder) if path.is_file() and path.name.lower().endswith(TABLE_SUFFIXES)]
    return [path for path in tables if not path.stem.lower().startswith((*skipped, "."))]


def subfolders(folder: Path) -> list[Path]:
    return [path for path in list_entries(folder) if path.is_dir() and not path.name.startswith(".")]


def list_entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None


def images_below(folder: Path) -> Iterator[str]:
    """Yield the paths of all images in a folder and its subfolders, in order, without hidden ones.

    Links are followed, but every folder is entered only once, and none above `folder`, so that loops of links end.

    Raises:
        DataError: for a folder that cannot be read, and for a name that is not valid UTF-8.
    """

    def raise_unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}. Change its permissions, or move it away.")

    visited = {str(path) for path in Path(os.path.realpath(folder)).parents}
    for current, folders, files in os.walk(folder, onerror=raise_unreadable, followlinks=True):
        real = os.path.realpath(current)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            if has_image_name(file):
                path = os.path.join(current, file)
                if not path.isprintable() and any("\ud800" <= character <= "\udfff" for character in path):
                    raise DataError(f"The name {path!a} is not valid UTF-8. Rename the file.")
                yield path


def has_image_name(name: str) -> bool:
    """Return whether a name, with or without folders, has the suffix of an image and no hidden part.

    >>> has_image_name("ants/01.JPG"), has_image_name("__MACOSX/._01.jpg"), has_image_name("labels.csv")
    (True, False, False)
    """
    hidden = any(part.startswith(".") and part != "." for part in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
