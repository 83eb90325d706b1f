"""The source "table": a file with one row per image."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from baseline.data.sources.place import Columns, Evidence, Place, Source, SourceTable, columns_of
from baseline.data.sources.read_table import is_table
from baseline.data.sources.tables import rows_from_table
from baseline.errors import DataError, format_count
from baseline.recipe.schema import DataSettings

__all__ = ["ImageTable", "read_table_source"]


class ImageTable(Source):
    """A table that is given as a file."""

    name = "table"
    example = "train.csv with the columns image and label"

    def matches(self, place: Place) -> Evidence | None:
        return Evidence(0.9, f"a table, {place.path.name}") if place.is_file and is_table(place.path) else None

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        frame = place.table(place.path)
        source = read_table_source(frame, place.path.name, place.folder, columns_of(place.settings), place.settings)
        source.table["label"], note = place.name_codes(source.table["label"], used=(place.path,))
        source.notes += [*note, *place.table_notes(place.path)]
        return source


def read_table_source(
    frame: pd.DataFrame, name: str, folder: Path, columns: Columns, settings: DataSettings | None = None
) -> SourceTable:
    """Read a table with one row per image; relative paths start from the folder."""
    if frame.empty:
        raise DataError(f"{name} has no rows. Pass a table with one row per image.")
    rows = rows_from_table(frame, name, folder, columns, settings)
    return SourceTable(rows.table, f"a table of {format_count(len(frame), 'row')}, {name}", rows.summary, rows.notes)
