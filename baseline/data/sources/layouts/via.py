"""The source "via": attributes of images or of their regions, in the JSON of the VGG Image Annotator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource, image_folder, prefix_of, split_of
from baseline.data.sources.place import Evidence, Place, foreign_content

__all__ = ["Via"]


class Via(AnnotationSource):
    """Attributes of images and regions in JSON."""

    name = "via"
    title = "a VIA export"
    example = 'via_export.json: {"1.jpg900": {"filename": "1.jpg", "regions": [], "file_attributes": {"kind": "cat"}}}'

    def matches(self, place: Place) -> Evidence | None:
        items, files, regions = [], [], False
        for path in place.json_files:
            if entries := entries_of(place.json(path)):
                split = split_of(path, place)
                prefix = prefix_of(path, place, split)
                items += [Annotation(f"{prefix}{name}", labels, split) for name, labels in read_entries(entries)]
                files.append(path)
                regions = regions or not any(entry.get("file_attributes") for entry in entries)
        if not files:
            return None
        folder = image_folder(place, files)
        return self.evidence(place, Annotated(items, files, folder, regions))


def entries_of(content: Any) -> list[dict[str, Any]]:
    """Return the entries of the images in an export or a project; none if it is neither."""
    images = content.get("_via_img_metadata", content) if isinstance(content, dict) else {}
    entries = list(images.values()) if isinstance(images, dict) else []
    known = all(isinstance(entry, dict) and {"filename", "regions"} <= set(entry) for entry in entries)
    return entries if known else []


@foreign_content()
def read_entries(entries: list[dict[str, Any]]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the name and the labels of each image: the values of its own attributes, or of those of its regions."""
    read = []
    for entry in entries:
        regions = entry["regions"].values() if isinstance(entry["regions"], dict) else entry["regions"]
        attributes = [entry.get("file_attributes") or {}]
        if not any(attributes):
            attributes = [region["region_attributes"] for region in regions]
        labels = [label for values in attributes for label in chosen_values(values)]
        read.append((str(entry["filename"]), tuple(dict.fromkeys(labels))))
    return read


def chosen_values(attributes: dict[str, Any]) -> Iterator[str]:
    """Yield the values of attributes: texts, and the names that a set of check boxes has as true."""
    for value in attributes.values():
        if isinstance(value, dict):
            yield from (str(name) for name, chosen in value.items() if chosen)
        elif str(value):
            yield str(value)
