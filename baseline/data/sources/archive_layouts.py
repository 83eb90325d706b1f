"""Turn the layouts that public datasets come in (rows of big PNGs, lists of names) into SPLIT/CLASS/FILE folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baseline.errors import DataError
from baseline.progress import Progress

__all__ = ["ArchiveLayout", "Sheets", "layout_moves", "write_sheet_images"]


@dataclass(frozen=True)
class Sheets:
    """Images stored as the rows of a few big PNGs: each row is one image of `side` x `side` RGB pixels (H x W x 3)."""

    side: int
    train: tuple[str, ...]
    train_labels: str
    test: tuple[str, ...]
    test_labels: str

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all required files."""
        return (*self.train, self.train_labels, *self.test, self.test_labels)


@dataclass(frozen=True)
class ArchiveLayout:
    """Where the images are in an archive that is not laid out as train/CLASS and test/CLASS.

    Either `folders`, in which every class has a folder, or `lists`: text files with an image's name as the first word
    of each line, where `images` is the pattern of its file; the class is the name up to the last `_`.
    """

    folders: tuple[str, str] = ("", "")  # of train and test
    classes: tuple[str, ...] = ()  # names of the folders, in the order of the dataset's classes
    lists: tuple[str, str] = ("", "")  # of train and test
    images: str = ""  # such as images/{}.jpg

    @property
    def required(self) -> tuple[str, ...]:
        """Paths that must exist in the archive."""
        return tuple(f"{folder}/{name}" for folder in self.folders for name in self.classes) + tuple(
            filter(None, self.lists)
        )


def write_sheet_images(sheets: Sheets, classes: Sequence[str], folder: Path, out: Path, progress: Progress) -> None:
    """Write the sheets in `folder` as `out`/train/CLASS/NNNN.png and `out`/test/CLASS/NNNN.png.

    NNNN counts the images of a class in the order of the sheets.

    Raises:
        DataError: if a file is damaged, or labels and images do not match.
    """
    train, test = (read_sheet_labels(classes, folder / file) for file in (sheets.train_labels, sheets.test_labels))
    workers = min(8, os.cpu_count() or 1)
    with progress.bar("writing images", len(train) + len(test), "images") as bar, ThreadPoolExecutor(workers) as pool:
        for split, files, labels in (("train", sheets.train, train), ("test", sheets.test, test)):
            paths = make_image_paths(classes, out / split, labels)
            for file in files:
                images = read_sheet(folder / file, sheets.side, len(paths))
                sheet_paths, paths = paths[: len(images)], paths[len(images) :]
                batches = [slice(i, i + 250) for i in range(0, len(images), 250)]
                for count in pool.map(save_images, [sheet_paths[b] for b in batches], [images[b] for b in batches]):
                    bar.step(count)
            if paths:
                raise DataError(f"{folder} has {len(paths):,} more labels than images in {split}.")


def read_sheet_labels(classes: Sequence[str], file: Path) -> list[int]:
    try:
        labels = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(labels, list) or not all(type(n) is int and 0 <= n < len(classes) for n in labels):
        raise DataError(f"{file} must be a list of class numbers from 0 to {len(classes) - 1}.")
    return labels


def make_image_paths(classes: Sequence[str], folder: Path, labels: Sequence[int]) -> list[Path]:
    """Return the file of each image, in the order of `labels`, and create the class folders."""
    for name in classes:
        (folder / name).mkdir(parents=True)
    counts = [0] * len(classes)
    paths = []
    for label in labels:
        paths.append(folder / classes[label] / f"{counts[label]:04d}.png")
        counts[label] += 1
    return paths


def read_sheet(file: Path, side: int, max_images: int) -> Any:
    """Return one sheet as a uint8 array (N, side, side, 3). Its size is checked before it is decoded."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file, formats=["PNG"]) as sheet:
            if sheet.mode != "RGB" or sheet.width != side * side or sheet.height > max_images:
                required = f"RGB of {side * side} x at most {max_images} (one row per label)"
                raise DataError(f"{file} is {sheet.mode} of {sheet.width} x {sheet.height}; required: {required}.")
            return np.asarray(sheet).reshape(-1, side, side, 3)
    except (SyntaxError, ValueError, OSError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} cannot be read as a PNG: {error}.") from error


def save_images(paths: Sequence[Path], images: Any) -> int:
    """Save images as PNG files, and return how many."""
    from PIL import Image

    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path, format="PNG", compress_level=1)
    return len(paths)


def layout_moves(
    layout: ArchiveLayout, classes: Sequence[str], title: str, folder: Path
) -> Iterator[tuple[Path, Path]]:
    """Yield the path of each image of an unpacked archive, and its new path SPLIT/CLASS/NAME.

    Raises:
        DataError: if a list names a file that does not exist or does not belong to the dataset.
    """
    for split, subfolder, list_file in zip(("train", "test"), layout.folders, layout.lists, strict=True):
        for label, class_folder in zip(classes, layout.classes, strict=False):
            for image in (folder / subfolder / class_folder).iterdir():
                yield image, Path(split, label, image.name)
        for line in (folder / list_file).read_text("utf-8").splitlines() if list_file else ():
            if line and not line.startswith("#"):
                name = line.split()[0]
                label, image = name.rpartition("_")[0], folder / layout.images.format(name)
                if label not in classes or "/" in name or not image.is_file():  # a / could lead out of the folder
                    raise DataError(f"{list_file} names {name}, which does not exist or is not an image of {title}.")
                yield image, Path(split, label, image.name)
