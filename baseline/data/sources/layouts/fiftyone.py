"""The source "fiftyone": FiftyOne's export of image classification, a folder `data` and `labels.json`."""

from __future__ import annotations

from typing import Any

from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource, image_folder, prefix_of, split_of
from baseline.data.sources.place import Evidence, Place, foreign_content

__all__ = ["FiftyOne"]


class FiftyOne(AnnotationSource):
    """Classes and a label for each image in JSON."""

    name = "fiftyone"
    title = "a FiftyOne export"
    example = 'labels.json: {"classes": ["cat", "dog"], "labels": {"1": 0, "2": 1}}, beside data/1.jpg'

    def matches(self, place: Place) -> Evidence | None:
        files = [path for path in place.json_files if is_fiftyone(place.json(path))]
        if not files:
            return None
        items = []
        for path in files:
            content = place.json(path)
            split = split_of(path, place) if len(files) > 1 else None
            prefix = prefix_of(path, place, split, "data")
            for name, label in content["labels"].items():
                items.append(Annotation(f"{prefix}{name}", label_names(label, content["classes"]), split))
        folder = image_folder(place, files)
        return self.evidence(place, Annotated(items, files, folder))


def is_fiftyone(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("classes"), list)
        and isinstance(content.get("labels"), dict)
        and bool(content["labels"])
    )


@foreign_content()
def label_names(label: Any, classes: list[Any]) -> tuple[str, ...]:
    """Return the classes of a label, which is a number, a name, an object with a label, or a list of these."""
    if label is None:
        return ()
    if isinstance(label, list):
        return tuple(name for item in label for name in label_names(item, classes))
    if isinstance(label, dict):
        return label_names(label.get("label"), classes)
    return (str(classes[label]),) if type(label) is int and 0 <= label < len(classes) else (str(label),)
