"""The source "json": a JSON file with a list of objects, or an object that gives the label of each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from baseline.data.sources.annotations import image_folder
from baseline.data.sources.folders import split_from_name
from baseline.data.sources.place import Evidence, Place, Source, SourceTable, columns_of, foreign_content, named_share
from baseline.data.sources.tables import TableRows, rows_from_table
from baseline.errors import DataError

__all__ = ["JsonRecords"]


class JsonRecords(Source):
    """Records in JSON."""

    name = "json"
    example = 'labels.json: [{"image": "1.jpg", "label": "cat"}, ...] or {"1.jpg": "cat", ...}'

    def matches(self, place: Place) -> Evidence | None:
        found: dict[str | None, tuple[Path, TableRows]] = {}
        for path in place.json_files:
            frame = frame_of(place.json(path))
            if frame is None:
                continue
            folder = image_folder(place, [path])
            try:
                rows = rows_from_table(
                    frame, path.name, folder, columns_of(place.settings), place.settings, place.images
                )
            except DataError:
                continue
            found.setdefault(split_from_name(path.stem), (path, rows))
        if not found:
            return None
        used = (
            [found[split] for split in ("train", "valid", "test") if split in found]
            if "train" in found
            else [next(iter(found.values()))]
        )
        names = " and ".join(place.relative(path) for path, _ in used)
        if names_classes(place, used):
            return None
        share = named_share(place, [path for _, rows in used for path in rows.table["path"]])
        count = sum(rows.listed for _, rows in used)
        total = sum(rows.total for _, rows in used)
        reason = f"{count:,} of {total:,} records name an image"
        return Evidence(0.9 * (0.5 + 0.5 * share), f"JSON records, {names}", reason, used)

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        used: list[tuple[Path, TableRows]] = evidence.found
        tables = []
        for path, rows in used:
            split = split_from_name(path.stem) if len(used) > 1 and rows.table["split"].isna().all() else None
            tables.append(rows.table.assign(split=split) if split else rows.table)
        table = pd.concat(tables, ignore_index=True)
        table["label"], notes = place.name_codes(table["label"], used=tuple(path for path, _ in used))
        names = " and ".join(place.relative(path) for path, _ in used)
        notes = [*(note for _, rows in used for note in rows.notes), *notes]
        return SourceTable(
            table, f"JSON records: {names}, with the images in {place.folder}", used[0][1].summary, notes
        )


def names_classes(place: Place, used: list[tuple[Path, TableRows]]) -> bool:
    """Whether records name the classes of codes, which are images by chance: no label recurs, and images are left."""
    labels = pd.concat([rows.table["label"] for _, rows in used])
    return labels.is_unique and len(labels) < len(place.images)


@foreign_content()
def frame_of(content: Any) -> pd.DataFrame | None:
    """Return a table of a list of flat objects, or of an object of labels by image; None for anything else."""
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if isinstance(content, dict) and len(content) > 1:
        values = list(content.values())
        if all(isinstance(value, str | int | list) for value in values):
            return pd.DataFrame({"image": list(content), "label": values}, dtype=object)
        if all(isinstance(value, dict) for value in values):
            content = [{"image": name, **value} for name, value in content.items()]
    if not isinstance(content, list) or not content or not all(isinstance(record, dict) for record in content):
        return None
    records = [{key: plain_choices(value) for key, value in record.items()} for record in content]
    if any(map(is_nested, (value for record in records for value in record.values()))):
        return None
    return pd.DataFrame(records, dtype=object)


def is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))


def plain_choices(value: Any) -> Any:
    """Return the list in an object that holds nothing else, such as `{"choices": ["cat", "dog"]}`."""
    inner = list(value.values()) if isinstance(value, dict) else []
    return inner[0] if len(inner) == 1 and isinstance(inner[0], list) else value
