"""The source "coco": JSON in the format of COCO, as iNaturalist, Roboflow and many labeling tools write it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from baseline.data.sources.annotations import (
    Annotated,
    Annotation,
    annotation_evidence,
    image_folder,
    read_annotations,
    split_of,
)
from baseline.data.sources.place import Evidence, Place, Source, SourceTable, foreign_content

__all__ = ["Coco"]


class Coco(Source):
    """Images, annotations and categories in JSON."""

    name = "coco"
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
            folder = path.parent.relative_to(place.folder).as_posix() if len(used) > 1 else "."
            below = [name for name in place.images if name.startswith(f"{path.parent}/")] if folder != "." else []
            items += read_coco(content, split, f"{folder}/" if below else "")
            boxes = boxes or any(isinstance(a, dict) and a.get("bbox") for a in content["annotations"][:50])
        folder_of = image_folder(place, used) if len(used) == 1 else place.folder
        return annotation_evidence(place, "COCO JSON", Annotated(items, used, folder_of, boxes))

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        return read_annotations(place, "COCO JSON", evidence.found)


def is_coco(content: Any) -> bool:
    keys = ("images", "annotations", "categories")
    return isinstance(content, dict) and all(isinstance(content.get(key), list) and content[key] for key in keys)


@foreign_content()
def read_coco(content: Any, split: str | None, folder: str) -> list[Annotation]:
    """Return the categories of each image; images that are not in the annotations have none."""
    names = {category["id"]: str(category.get("name", category["id"])) for category in content["categories"]}
    labels: dict[Any, set[str]] = defaultdict(set)
    for annotation in content["annotations"]:
        if annotation.get("category_id") in names:
            labels[annotation.get("image_id")].add(names[annotation["category_id"]])
    return [
        Annotation(folder + str(Path(str(image["file_name"]))), tuple(sorted(labels[image["id"]])), split)
        for image in content["images"]
        if "file_name" in image
    ]
