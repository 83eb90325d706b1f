"""The source "yolo": images with text files of boxes, and a `data.yaml` that names the classes, as for Ultralytics."""

from __future__ import annotations

import os
from itertools import accumulate
from pathlib import Path
from typing import Any

from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource
from baseline.data.sources.folders import split_from_name
from baseline.data.sources.place import Evidence, Place
from baseline.files import MAX_TOML_BYTES
from baseline.reading import read_text

__all__ = ["Yolo"]


MAX_DEPTH = 100
"""Maximum depth of a YAML file: PyYAML 6.0.2 crashes where lists are nested 100,000 deep."""


class Yolo(AnnotationSource):
    """Boxes in one text file per image."""

    name = "yolo"
    title = "YOLO text files"
    example = "data.yaml with names: [cat, dog], images/train/1.jpg and labels/train/1.txt: 0 0.5 0.5 0.2 0.2"

    def matches(self, place: Place) -> Evidence | None:
        for path in place.find("*.yaml", "*.yml"):
            names = class_names(path)
            if names:
                items = [item for image in place.images if (item := read_image(place, image, names))]
                if len(items) >= 0.5 * len(place.images):
                    return self.evidence(place, Annotated(items, [path], place.folder, True))
        return None


def class_names(path: Path) -> dict[str, str]:
    """Return the names of the classes by their number; empty if the file has none.

    All values are read as text: a class may be named `yes` or `2020-01-01`, and a list of aliases is not expanded.
    """
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        text = read_text(path, MAX_TOML_BYTES)
        depths = accumulate(map(depth_change, yaml.parse(text, loader)))
        content: Any = None if any(depth > MAX_DEPTH for depth in depths) else yaml.load(text, loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    names = content.get("names") if isinstance(content, dict) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names if isinstance(names, dict) else {}
    return {str(number): name for number, name in names.items()} if all(map(is_text, names.values())) else {}


def depth_change(event: Any) -> int:
    """Return 1 for a YAML event that opens a list or a mapping, and -1 for one that closes it."""
    import yaml

    return isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def read_image(place: Place, image: str, names: dict[str, str]) -> Annotation | None:
    """Return the classes of the boxes of an image; None if it has no file of boxes."""
    relative = place.relative(image)
    stem = os.path.splitext(relative)[0]
    parts = stem.split("/")
    candidates = [
        stem,
        *("/".join([*parts[:k], "labels", *parts[k + 1 :]]) for k, part in enumerate(parts) if part == "images"),
    ]
    file = next((file for name in candidates if (file := place.folder / f"{name}.txt").is_file()), None)
    if file is None:
        return None
    numbers = dict.fromkeys(line.split()[0] for line in place.lines(file))
    split = next(filter(None, map(split_from_name, parts[:-1])), None)
    return Annotation(relative, tuple(names.get(number, number) for number in numbers), split)
