"""Text files that list images, one a line, with or without their labels, and those that give the split of each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from baseline.data.sources.folders import SPLIT_NAMES, split_from_name
from baseline.data.sources.match_images import ImageFinder
from baseline.data.sources.place import Place

__all__ = ["MAX_LISTS", "ListFile", "read_list", "read_list_splits", "read_partition", "without_header"]


MAX_LISTS = 200
"""Number of text files that are looked at."""

SPLIT_WORDS = r"(train|trainval|training|valid|val|validation|test|testing|trn|tst|dev)"


@dataclass
class ListFile:
    """A text file that lists images."""

    path: Path
    names: list[str]
    labels: list[str]
    """The rest of each line; empty if the lines are names only."""
    split: str | None

    @property
    def base(self) -> str:
        """The file's name without split and number, by which files of one division are recognized."""
        stem = re.sub(r"(?i)(?<![a-z])" + SPLIT_WORDS + r"(?![a-z])|(?i:train|test)(?=Images)|\d+$", "", self.path.stem)
        return stem.strip("_- .")


def read_list(place: Place, path: Path, finder: ImageFinder) -> ListFile | None:
    """Read a text file as a list of images; None if it is none."""
    lines = without_header([line for line in place.lines(path) if not line.startswith("#")])
    if len(lines) < 2 or re.search(r"(?i)partition|split", path.stem):
        return None
    for pattern in (r"(?P<name>.+)()", r"(?P<name>\S+?)[\s,;]+(.+)", r"(?P<name>[^,;\t]+)[,;\t]\s*(.+)"):
        pairs = [re.fullmatch(pattern, line) for line in lines]
        sample = [match["name"] for match in pairs[:30] if match]
        if all(pairs) and finder.share(pd.Series(sample, dtype=object))[0] > 0.9:
            names, labels = ([match[group] for match in pairs if match] for group in (1, 2))
            labels = labels if any(labels) else []
            return ListFile(path, names, first_numbers(labels), split_of_list(path))
    return None


def without_header(lines: list[str]) -> list[str]:
    """Return the lines after a first one that counts the others and a second one that names the columns.

    >>> without_header(["2", "image_name  label", "1.jpg  3", "2.jpg  4"]), without_header(["1.jpg 3", "2.jpg 4"])
    (['1.jpg  3', '2.jpg  4'], ['1.jpg 3', '2.jpg 4'])
    """
    return lines[2:] if len(lines) > 2 and lines[0] == str(len(lines) - 2) else lines


def split_of_list(path: Path) -> str | None:
    stem = re.sub(r"(?i)trainval", "train", path.stem)
    return split_from_name(stem)


def first_numbers(labels: list[str]) -> list[str]:
    """Return the first number of each label if all of them are numbers, as in `Abyssinian_1 1 1 1`."""
    if labels and all(re.fullmatch(r"-?\d+([\s,;]+-?\d+)*", label) for label in labels):
        return [re.split(r"[\s,;]", label)[0] for label in labels]
    return labels


def read_list_splits(place: Place, paths: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the split of each image from the files that only list names, one per split, and the names of the files.

    Nothing is returned unless they name most of the images in `paths`, and none in two splits.
    """
    finder = ImageFinder(place.folder, images=place.images)
    splits: dict[str, str] = {}
    files: list[str] = []
    for path in place.find("*.txt")[:MAX_LISTS]:
        listed = read_list(place, path, finder) if split_of_list(path) else None
        if listed is None or listed.labels or listed.split is None:
            continue
        found = {image for name in listed.names if (image := finder.find(name))}
        if found.isdisjoint(splits):
            splits |= dict.fromkeys(found, listed.split)
            files.append(path.name)
    usable = len(set(splits.values())) > 1 and sum(path in splits for path in paths) > 0.5 * len(paths)
    return (splits, files) if usable else ({}, [])


def read_partition(place: Place) -> dict[str, str]:
    """Return the split of each image from a file of names and splits, or of 0, 1 and 2; empty if there is none."""
    by_text = {**SPLIT_NAMES, "0": "train", "1": "valid", "2": "test"}
    for path in place.find("*partition*.txt"):
        pairs = [line.split() for line in without_header(place.lines(path))]
        if pairs and all(len(pair) == 2 and pair[1].lower() in by_text for pair in pairs):
            return {name: by_text[text.lower()] for name, text in pairs}
    return {}
