"""The source "lists": text files that list images, with their labels or in one file per split.

So come Food-101 (`meta/train.txt`), Oxford-IIIT Pet (`annotations/trainval.txt`), ImageNet (`train.txt`) and others.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from baseline.data.labels import is_whole_number
from baseline.data.sources.annotations import Annotated, Annotation, annotation_evidence, read_annotations
from baseline.data.sources.folders import split_from_name
from baseline.data.sources.match_images import ImageFinder
from baseline.data.sources.place import Evidence, Place, Source, SourceTable
from baseline.errors import quoted_list

__all__ = ["TextLists"]


SPLIT_WORDS = r"(train|trainval|training|valid|val|validation|test|testing|trn|tst|dev)"

MAX_FILES = 200


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


class TextLists(Source):
    """Text files that list images."""

    name = "lists"
    example = "train.txt and test.txt: cat/1.jpg, or 1.jpg 0, or 1.jpg cat, one image a line"

    def matches(self, place: Place) -> Evidence | None:
        if place.is_file and place.path.suffix.lower() != ".txt":
            return None
        finder = ImageFinder(place.folder, images=place.images if not place.is_file else None)
        files = [listed for path in place.find("*.txt")[:MAX_FILES] if (listed := read_list(place, path, finder))]
        groups: dict[str, list[ListFile]] = defaultdict(list)
        for listed in files:
            groups[listed.base].append(listed)
        usable = [used for group in groups.values() if (used := choose_files(group))]
        if not usable:
            return None
        used = max(usable, key=lambda group: (len({listed.split for listed in group}), len(set(list_labels(group)))))
        others = sorted({listed.path.name for listed in files} - {listed.path.name for listed in used})
        items = annotations_of(used)
        labels = list_labels(used)
        if len(set(labels)) == len(labels) < len(place.images):
            return None  # names of numbered classes
        evidence = annotation_evidence(
            place, "text files that list images", Annotated(items, [x.path for x in used], place.folder)
        )
        if evidence is None:
            return None
        return Evidence(0.97 * evidence.strength, evidence.form, evidence.reason, (evidence.found, others))

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        annotated, others = evidence.found
        source = read_annotations(place, "text files that list images", annotated)
        source.notes += [f"other lists not used: {quoted_list(others, 3)}"] if others else []
        return source


def read_list(place: Place, path: Path, finder: ImageFinder) -> ListFile | None:
    """Read a text file as a list of images; None if it is none."""
    lines = [line for line in place.lines(path) if not line.startswith("#")]
    if len(lines) < 2 or re.search(r"(?i)partition|split", path.stem):
        return None
    for pattern in (r"(?P<name>.+)()", r"(?P<name>\S+)[\s,;]+(.+)", r"(?P<name>[^,;\t]+)[,;\t]\s*(.+)"):
        pairs = [re.fullmatch(pattern, line) for line in lines]
        sample = [match["name"] for match in pairs[:30] if match]
        if all(pairs) and finder.share(pd.Series(sample, dtype=object))[0] > 0.9:
            names, labels = ([match[group] for match in pairs if match] for group in (1, 2))
            labels = labels if any(labels) else []
            return ListFile(path, names, first_numbers(labels), split_of_list(path))
    return None


def split_of_list(path: Path) -> str | None:
    stem = re.sub(r"(?i)trainval", "train", path.stem)
    return split_from_name(stem)


def first_numbers(labels: list[str]) -> list[str]:
    """Return the first number of each label if all of them are numbers, as in `Abyssinian_1 1 1 1`."""
    if labels and all(re.fullmatch(r"-?\d+(\s+-?\d+)*", label) for label in labels):
        return [label.split()[0] for label in labels]
    return labels


def choose_files(group: list[ListFile]) -> list[ListFile]:
    """Return the lists of a group that belong together: one per split, the first of several, none named twice."""
    used: dict[str | None, ListFile] = {}
    by_name = sorted(group, key=lambda listed: ("trainval" in listed.path.stem.lower(), natural(listed.path.stem)))
    for listed in by_name:
        used.setdefault(listed.split, listed)
    if "train" not in used:
        return [used[None]] if None in used and used[None].labels else []
    return [used[split] for split in ("train", "valid", "test") if split in used]


def natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def list_labels(used: list[ListFile]) -> list[str]:
    """Return the labels of all images in some lists: those that the lines give, or the names of folders."""
    labels = [
        label for listed in used for label in (listed.labels or [Path(name).parent.name for name in listed.names])
    ]
    names = [name for listed in used for name in listed.names]
    if all(map(is_whole_number, labels)):
        prefixes = [re.sub(r"_?\d+(\.\w+)?$", "", Path(name).name) for name in names]
        pairs = set(zip(labels, prefixes, strict=True))
        if len(pairs) == len(set(labels)) == len(set(prefixes)) > 1 and all(prefixes):
            return prefixes
        folders = [Path(name).parent.name for name in names]
        if len(set(zip(labels, folders, strict=True))) == len(set(labels)) == len(set(folders)) and all(folders):
            return folders
    return labels


def annotations_of(used: list[ListFile]) -> list[Annotation]:
    names = [(name, listed.split) for listed in used for name in listed.names]
    labels = list_labels(used)
    splits = {listed.split for listed in used}
    return [
        Annotation(name, (label,) if label else (), split if len(splits) > 1 else None)
        for (name, split), label in zip(names, labels, strict=True)
    ]
