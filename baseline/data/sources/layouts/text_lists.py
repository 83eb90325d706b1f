"""The source "lists": text files that list images, with their labels or in one file per split.

So come Food-101 (`meta/train.txt`), Oxford-IIIT Pet (`annotations/trainval.txt`), ImageNet (`train.txt`) and others.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from baseline.data.labels import is_whole_number
from baseline.data.sources.annotations import Annotated, Annotation, annotation_evidence, read_annotations
from baseline.data.sources.list_files import MAX_LISTS, ListFile, read_list, read_partition
from baseline.data.sources.match_images import ImageFinder
from baseline.data.sources.place import Evidence, Place, Source, SourceTable
from baseline.errors import quoted_list

__all__ = ["TextLists"]


class TextLists(Source):
    """Text files that list images."""

    name = "lists"
    example = "train.txt and test.txt: cat/1.jpg, or 1.jpg 0, or 1.jpg cat, one image a line"

    def matches(self, place: Place) -> Evidence | None:
        if place.is_file and place.path.suffix.lower() != ".txt":
            return None
        finder = ImageFinder(place.folder, images=place.images if not place.is_file else None)
        files = [listed for path in place.find("*.txt")[:MAX_LISTS] if (listed := read_list(place, path, finder))]
        groups: dict[str, list[ListFile]] = defaultdict(list)
        for listed in files:
            groups[listed.base].append(listed)
        chosen = [choose_files(group) for group in groups.values()]
        flags = [used for used in chosen if used and is_flag_list(used)]
        usable = [used for used in chosen if used and used not in flags and all(list_labels(used))]
        if not usable and len(flags) < 2:
            return None
        if len(flags) > 1:
            used, items = [listed for group in flags for listed in group], annotations_of_flags(flags)
        else:
            used = max(usable, key=lambda group: (len({listed.split for listed in group}), len({*list_labels(group)})))
            used = add_other_splits(used, files)
            items = annotations_of(used, read_partition(place))
        others = sorted({listed.path.name for listed in files} - {listed.path.name for listed in used})
        labels = {item.labels for item in items}
        if len(labels) == len(items) < len(place.images):
            return None  # names of numbered classes
        evidence = annotation_evidence(
            place, "text files that list images", Annotated(items, [x.path for x in used], place.folder)
        )
        if evidence is None:
            return None
        return Evidence(0.97 * evidence.strength, evidence.layout, evidence.reason, (evidence.found, others))

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        annotated, others = evidence.found
        source = read_annotations(place, "text files that list images", annotated)
        source.notes += [f"other lists not used: {quoted_list(others, 3)}"] if others else []
        return source


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
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", text)]


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


def is_flag_list(used: list[ListFile]) -> bool:
    """Whether lists say of each image whether it has one class, by 1 and -1, and 0 where that is unclear."""
    labels = {label for listed in used for label in listed.labels}
    return {"1", "-1"} <= labels <= {"1", "-1", "0"}


def annotations_of_flags(groups: list[list[ListFile]]) -> list[Annotation]:
    """Return the classes of each image from lists of one class each, which their names begin with."""
    labels: dict[str, list[str]] = {}
    splits: dict[str, str | None] = {}
    for group in groups:
        for listed in group:
            for name, flag in zip(listed.names, listed.labels, strict=True):
                labels.setdefault(name, []).extend([listed.base] if flag == "1" else [])
                splits.setdefault(name, listed.split)
    several = len(set(splits.values())) > 1
    return [Annotation(name, tuple(classes), splits[name] if several else None) for name, classes in labels.items()]


def add_other_splits(used: list[ListFile], files: list[ListFile]) -> list[ListFile]:
    """Return the lists with those of other splits that have other names, and no labels but those of the first ones."""
    labels = {label for listed in used for label in listed.labels}
    if not labels or "train" not in {listed.split for listed in used}:
        return used
    for other in files:
        unused = other.split and other.split not in {listed.split for listed in used}
        if unused and other.labels and labels.issuperset(other.labels):
            used = [*used, other]
    return used


def annotations_of(used: list[ListFile], partition: dict[str, str]) -> list[Annotation]:
    """Return the label and split of each image; the partition gives the splits where the lists do not."""
    names = [(name, listed.split) for listed in used for name in listed.names]
    labels = list_labels(used)
    several = len({listed.split for listed in used}) > 1
    return [
        Annotation(name, (label,) if label else (), split if several else partition.get(name))
        for (name, split), label in zip(names, labels, strict=True)
    ]
