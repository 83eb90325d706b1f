"""The source "attributes": a text table with a count, a line of names, and 1 or -1 for each, as CelebA has it."""

from __future__ import annotations

import pandas as pd

from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource
from baseline.data.sources.list_files import read_partition
from baseline.data.sources.place import Evidence, Place, SourceTable

__all__ = ["Attributes"]


class Attributes(AnnotationSource):
    """Attributes as 1 and -1 in a text file."""

    name = "attributes"
    title = "a text file of attributes"
    example = "list_attr_celeba.txt: the number of images, the names of attributes, then 000001.jpg -1 1 1 ..."

    def matches(self, place: Place) -> Evidence | None:
        for path in place.find("*attr*.txt"):
            lines = place.lines(path)
            if len(lines) < 4 or not lines[0].isdigit():
                continue
            names = lines[1].split()
            rows = [line.split() for line in lines[2:]]
            if len(names) < 2 or any(len(row) != len(names) + 1 for row in rows) or not is_signed(rows):
                continue
            splits = read_partition(place)
            items = [
                Annotation(
                    row[0],
                    tuple(name for name, flag in zip(names, row[1:], strict=True) if flag == "1"),
                    splits.get(row[0]),
                )
                for row in rows
            ]
            return self.evidence(place, Annotated(items, [path], place.folder))
        return None

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        source = super().rows(place, evidence)
        source.notes += ["splits from the partition file"] if source.table["split"].notna().any() else []
        return source


def is_signed(rows: list[list[str]]) -> bool:
    return bool(pd.Series([cell for row in rows[:200] for cell in row[1:]]).isin(["1", "-1", "0"]).all())
