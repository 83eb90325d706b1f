"""Turn annotations, such as those of labeling tools, into rows: the name of each image, its labels and its split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from baseline.data.labels import SEPARATOR
from baseline.data.sources.folders import split_from_name
from baseline.data.sources.label_values import join_labels
from baseline.data.sources.match_images import ImageFinder
from baseline.data.sources.place import Evidence, Place, Source, SourceTable, is_test_folder, make_rows, merge_notes
from baseline.data.sources.tables import check_no_repeats, drop_unlabeled, join_repeats, resolve_images
from baseline.errors import format_count, quoted_list

__all__ = ["Annotated", "Annotation", "AnnotationSource", "annotation_evidence", "read_annotations", "split_of"]


@dataclass(frozen=True)
class Annotation:
    """The labels of one image."""

    image: str
    """Its name as the file gives it."""
    labels: tuple[str, ...] = ()
    split: str | None = None


@dataclass
class Annotated:
    """Annotations and where their images are."""

    items: list[Annotation]
    files: list[Path]
    """The files that they come from."""
    folder: Path
    """The folder that the names are relative to."""
    boxes: bool = False
    """Whether the labels are those of boxes or outlines in the images."""


class AnnotationSource(Source):
    """A layout whose files list images and their labels. `matches` collects them and returns `evidence`."""

    title = ""
    """What the files are, as the summary describes them."""

    def evidence(self, place: Place, annotated: Annotated | None) -> Evidence | None:
        """Return evidence for annotations of which the first images exist."""
        return annotation_evidence(place, self.title, annotated)

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        return read_annotations(place, self.title, evidence.found)


def split_of(path: Path, place: Place) -> str | None:
    """Return the split that a file's name, or else the name of its folder in the place, stands for."""
    inside = path.parent != place.folder and place.folder in path.parents
    return split_from_name(path.stem) or (split_from_name(path.parent.name) if inside else None)


def prefix_of(path: Path, place: Place, split: str | None, folder: str = "") -> str:
    """Return what begins the names of the images in the file of a split: its folder, or this one in it, if that has
    images."""
    images = path.parent / folder
    below = split and images != place.folder and any(name.startswith(f"{images}{os.sep}") for name in place.images)
    return f"{images.relative_to(place.folder).as_posix()}/" if below else ""


def annotation_evidence(place: Place, layout: str, annotated: Annotated | None) -> Evidence | None:
    """Return evidence for annotations of which the first images exist."""
    if annotated is None or not annotated.items:
        return None
    finder = finder_of(place, annotated)
    names = pd.Series([item.image for item in annotated.items[:100]], dtype=object)
    share = finder.share(names)[0]
    if share < 0.5:
        return None
    reason = f"{format_count(len(annotated.items), 'image')} listed"
    images = sum(not any(map(is_test_folder, place.relative(path).split("/")[:-1])) for path in place.images)
    coverage = 1.0 if place.is_file else min(1.0, len(annotated.items) / max(1, images))
    return Evidence(share * (0.5 + 0.5 * coverage), f"{layout}, {describe_files(place, annotated)}", reason, annotated)


def describe_files(place: Place, annotated: Annotated) -> str:
    """Return the names of the files that annotations come from, as text."""
    return quoted_list((place.relative(path) for path in annotated.files), 3).replace("'", "")


def finder_of(place: Place, annotated: Annotated, split: str = "") -> ImageFinder:
    prefix = f"{annotated.folder}{os.sep}"
    inside = annotated.folder == place.folder or place.folder in annotated.folder.parents
    images = [path for path in place.images if path.startswith(prefix)] if inside else None
    return ImageFinder(annotated.folder, {"valid": "val"}.get(split, split), images)


def read_annotations(place: Place, layout: str, annotated: Annotated) -> SourceTable:
    """Return the rows of annotations.

    Raises:
        DataError: if images or labels are missing, or an image has two labels in different rows.
    """
    name = annotated.files[0].name
    parts: list[pd.DataFrame] = []
    notes_by_split: dict[str, list[str]] = {}
    splits: Iterable[str | None] = dict.fromkeys(item.split for item in annotated.items)
    for split in splits:
        items = [item for item in annotated.items if item.split == split]
        finder = finder_of(place, annotated, split or split_of(annotated.files[0], place) or "")
        labels = [join_labels(list(item.labels)) for item in items]
        frame = pd.DataFrame({"image": [item.image for item in items], "label": labels})
        frame, paths, missing_notes = resolve_images(frame, "image", finder, name, place.settings.missing)
        parts.append(make_rows(paths, frame["label"].tolist(), split))
        notes_by_split[split or "no split"] = [*finder.notes(), *missing_notes]
    notes = merge_notes(notes_by_split)
    rows = pd.concat(parts, ignore_index=True)
    several = rows["label"].str.contains(SEPARATOR, regex=False).any() or place.settings.task == "multilabel"
    if several:
        rows = join_repeats(rows)
    else:
        rows, empty_notes = drop_unlabeled(rows, "label", name, place.settings.missing)
        notes += empty_notes
    check_no_repeats(rows, name)
    rows["label"], code_notes = place.name_codes(rows["label"], used=tuple(annotated.files))
    notes += ["the labels of an image are the classes of its boxes; the boxes are not used"] if annotated.boxes else []
    files = describe_files(place, annotated)
    unlisted = len(set(place.images) - set(rows["path"])) if not place.is_file else 0
    notes += [f"{format_count(unlisted, 'image')} without a label in {files} ignored"] if unlisted else []
    rows = rows.reset_index(drop=True)
    origin = files if len(annotated.files) == 1 else f"these {len(annotated.files):,} files"
    source = SourceTable(
        rows, f"{layout}: {files}, with the images in {annotated.folder}", f"none; labels from {origin}"
    )
    source.notes = [*dict.fromkeys(notes), *code_notes]
    return source


def image_folder(place: Place, files: Sequence[Path]) -> Path:
    """Return the folder that names are relative to: that of a single file if it has images, else the place."""
    if len(files) == 1 and any(path.startswith(f"{files[0].parent}{os.sep}") for path in place.images):
        return files[0].parent
    return place.folder
