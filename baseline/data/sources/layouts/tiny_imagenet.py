"""The source "tinyimagenet": class folders for training, and a text file that names the classes of the valid images."""

from __future__ import annotations

from pathlib import Path

from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource, split_of
from baseline.data.sources.class_folders import generic_names
from baseline.data.sources.folders import split_from_name
from baseline.data.sources.place import Evidence, Place

__all__ = ["TinyImageNet"]


class TinyImageNet(AnnotationSource):
    """Class folders, and a file of annotations for another split."""

    name = "tinyimagenet"
    title = "Tiny ImageNet's folders"
    example = "train/n01443537/images/1.JPEG and val/val_annotations.txt: val_0.JPEG n01443537 0 32 44 62"

    def matches(self, place: Place) -> Evidence | None:
        files = [path for path in place.find("*annotations*.txt") if split_of(path, place) in ("valid", "test")]
        if place.is_file or not files:
            return None
        items, used = [], []
        for path in files:
            lines = [line.split() for line in place.lines(path)]
            if all(len(parts) > 1 for parts in lines) and lines:
                folder = path.parent.relative_to(place.folder).as_posix()
                items += [
                    Annotation(f"{folder}/{image_below(path, parts[0])}", (parts[1],), split_of(path, place))
                    for parts in lines
                ]
                used.append(path)
        for image in place.images:
            relative = Path(place.relative(image)).parts
            if len(relative) > 2 and split_from_name(relative[0]) == "train" and not generic_names([relative[1]]):
                items.append(Annotation("/".join(relative), (relative[1],), "train"))
        if not used or not any(item.split == "train" for item in items):
            return None
        return self.evidence(place, Annotated(items, used, place.folder))


def image_below(path: Path, name: str) -> str:
    """Return the path of an image relative to the file that names it: below `images` if there is such a folder."""
    return f"images/{name}" if (path.parent / "images").is_dir() else name
