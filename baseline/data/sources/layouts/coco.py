"""The source "coco": JSON in the format of COCO, as iNaturalist, Roboflow and many labeling tools write it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from baseline.data.labels import order_classes
from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource, image_folder, prefix_of, split_of
from baseline.data.sources.columns import column_key
from baseline.data.sources.place import Evidence, Place, foreign_content

__all__ = ["Coco"]


class Coco(AnnotationSource):
    """Images, annotations and categories in JSON."""

    name = "coco"
    title = "COCO JSON"
    example = (
        "train.json: {images: [{id, file_name}], annotations: [{image_id, category_id}], categories: [{id, name}]}"
    )

    def matches(self, place: Place) -> Evidence | None:
        files = [path for path in place.json_files if is_coco(place.json(path))]
        if not files:
            return None
        own = {split_of(path, place): path for path in reversed(files)}
        used = [own[split] for split in ("train", "valid", "test") if split in own] if "train" in own else files[:1]
        items, boxes = [], False
        for path in used:
            content = place.json(path)
            split = split_of(path, place) if len(used) > 1 else None
            items += read_coco(content, split, prefix_of(path, place, split))
            boxes = boxes or any(isinstance(a, dict) and a.get("bbox") for a in content["annotations"][:50])
        folder_of = image_folder(place, used)
        return self.evidence(place, Annotated(items, used, folder_of, boxes))


def is_coco(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and all(isinstance(content.get(key), list) and content[key] for key in ("images", "annotations"))
        and isinstance(content.get("categories", []), list)
    )


@foreign_content()
def read_coco(content: Any, split: str | None, folder: str) -> list[Annotation]:
    """Return the categories of each image; images that are not in the annotations have none.

    Keys may be written as `imageId` for `image_id`, images and categories may have `image_id` and `category_id` for
    `id`, and an annotation may have a list of `labelId` where there are no names of categories.
    """
    names = {}
    for category in map(with_plain_keys, content.get("categories", [])):
        number = first_of(category, "id", "category_id")
        names[number] = str(first_of(category, *NAME_KEYS, default=number))
    labels: dict[Any, set[str]] = defaultdict(set)
    for annotation in map(with_plain_keys, content["annotations"]):
        numbers = first_of(annotation, "category_id", "label_id", "category_ids", "label_ids", default=[])
        for number in numbers if isinstance(numbers, list) else [numbers]:
            if number in names or not names:
                labels[annotation.get("image_id")].add(names.get(number, str(number)))
    items = []
    for image in map(with_plain_keys, content["images"]):
        number = first_of(image, "id", "image_id")
        name = str(first_of(image, "file_name", "filename", "path", default=number))
        items.append(Annotation(folder + str(Path(name)), tuple(order_classes(labels[number])), split))
    return items


NAME_KEYS = ("name", "category_name", "scientific_name", "title", "label")
"""Keys of the name of a category."""


def with_plain_keys(record: dict[str, Any]) -> dict[str, Any]:
    """Return an object with keys such as `image_id` for `imageId`."""
    return {column_key(key): value for key, value in record.items()}


def first_of(record: dict[str, Any], *keys: str, default: Any = None) -> Any:
    """Return the value of the first key that an object has."""
    return next((record[key] for key in keys if key in record), default)
