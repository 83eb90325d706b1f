"""The source "cub": the text files of Caltech-UCSD Birds, which number images and classes and give the split."""

from __future__ import annotations

from pathlib import Path

from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource
from baseline.data.sources.place import Evidence, Place

__all__ = ["Cub"]


class Cub(AnnotationSource):
    """Numbered images, their classes and splits in text files."""

    name = "cub"
    title = "CUB's text files"
    example = "images.txt, image_class_labels.txt, classes.txt and train_test_split.txt beside images/"

    def matches(self, place: Place) -> Evidence | None:
        for path in place.find("images.txt"):
            labels_file = path.with_name("image_class_labels.txt")
            if not labels_file.is_file():
                continue
            names, labels = (numbered(place, file) for file in (path, labels_file))
            classes = numbered(place, path.with_name("classes.txt"))
            splits = numbered(place, path.with_name("train_test_split.txt"))
            by_number = {"1": "train", "0": "test"}
            items = [
                Annotation(
                    name,
                    (classes.get(labels.get(number, ""), labels.get(number, "")),),
                    by_number.get(splits.get(number, "")),
                )
                for number, name in names.items()
            ]
            files = [path, labels_file, *([path.with_name("train_test_split.txt")] if splits else [])]
            images = path.parent / "images"
            folder = images if images.is_dir() else path.parent
            if evidence := self.evidence(place, Annotated(items, files, folder)):
                return evidence
        return None


def numbered(place: Place, path: Path) -> dict[str, str]:
    """Return the lines of a file `NUMBER TEXT` by their number."""
    pairs = [line.split(maxsplit=1) for line in place.lines(path)] if path.is_file() else []
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
