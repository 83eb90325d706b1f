"""The source "createml": JSON with the boxes or the label of each image, as for Apple's Create ML."""

from __future__ import annotations

from typing import Any

from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource, image_folder, prefix_of, split_of
from baseline.data.sources.place import Evidence, Place, foreign_content

__all__ = ["CreateMl"]


class CreateMl(AnnotationSource):
    """Boxes of each image in JSON."""

    name = "createml"
    title = "Create ML's JSON"
    example = 'annotations.json: [{"image": "1.jpg", "annotations": [{"label": "cat", "coordinates": {...}}]}]'

    def matches(self, place: Place) -> Evidence | None:
        items, files = [], []
        for path in place.json_files:
            if is_createml(content := place.json(path)):
                split = split_of(path, place)
                prefix = prefix_of(path, place, split)
                items += [Annotation(f"{prefix}{name}", labels, split) for name, labels in read_boxes(content)]
                files.append(path)
        if not files:
            return None
        folder = image_folder(place, files)
        prefixed = folder == place.folder
        items = items if prefixed else [Annotation(item.image.rpartition("/")[2], item.labels) for item in items]
        return self.evidence(place, Annotated(items, files, folder, True))


def is_createml(content: Any) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(record, dict) and isinstance(record.get("annotations"), list) for record in content)
        and all("image" in record or "imagefilename" in record for record in content)
    )


@foreign_content()
def read_boxes(content: list[dict[str, Any]]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the name of each image and the labels of its boxes."""
    return [
        (
            str(record.get("image", record.get("imagefilename"))),
            tuple(dict.fromkeys(str(box["label"]) for box in record["annotations"])),
        )
        for record in content
    ]
