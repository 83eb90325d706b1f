"""The source "labelme": one JSON file per image with labeled shapes or flags, as LabelMe writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource, split_of
from baseline.data.sources.place import Evidence, Place, foreign_content

__all__ = ["LabelMe"]


class LabelMe(AnnotationSource):
    """Shapes in one JSON file per image."""

    name = "labelme"
    title = "LabelMe's JSON files"
    example = '1.json beside 1.jpg: {"imagePath": "1.jpg", "shapes": [{"label": "cat", "points": ...}]}'

    def matches(self, place: Place) -> Evidence | None:
        files = place.find("*.json")
        if place.is_file or not files or not any(is_labelme(place.json(path)) for path in files[:3]):
            return None
        read = [(path, place.json(path)) for path in files]
        items = [read_shapes(path, content, place) for path, content in read if is_labelme(content)]
        shapes = any(content["shapes"] for _, content in read if is_labelme(content))
        annotated = Annotated(items, [path for path, content in read if is_labelme(content)], place.folder, shapes)
        return self.evidence(place, annotated)


def is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


@foreign_content()
def read_shapes(path: Path, content: dict[str, Any], place: Place) -> Annotation:
    """Return the labels of an image's shapes, or else its flags that are set."""
    labels = [str(shape["label"]) for shape in content["shapes"]]
    labels = labels or [str(name) for name, value in (content.get("flags") or {}).items() if value is True]
    folder = path.parent.relative_to(place.folder)
    name = str(content["imagePath"]).replace("\\", "/")
    return Annotation((folder / name).as_posix(), tuple(dict.fromkeys(labels)), split_of(path, place))
