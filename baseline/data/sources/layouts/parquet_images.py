"""The source "parquet": images inside Parquet files, as Hugging Face stores datasets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from baseline.data.sources.cached_images import cached_images
from baseline.data.sources.columns import find_label_columns
from baseline.data.sources.folders import split_from_name
from baseline.data.sources.label_values import read_label_values
from baseline.data.sources.place import Evidence, Place, Source, SourceTable, make_rows
from baseline.data.sources.read_table import cell_to_text
from baseline.data.sources.tables import check_column_exists
from baseline.errors import DataError, format_count
from baseline.files import parse_json, to_csv, write_atomic

__all__ = ["ParquetImages"]


@dataclass
class Shard:
    """A Parquet file with images."""

    path: Path
    image: str
    names: dict[str, list[str]]
    """The names of the classes, by column."""
    split: str | None


def hugging_face_features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Return what Hugging Face's library wrote about the columns; empty if it did not."""
    try:
        value: Any = parse_json(metadata.get(b"huggingface", b"{}"))
        features = value["info"]["features"]
    except (ValueError, LookupError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


class ParquetImages(Source):
    """Images as bytes in Parquet files."""

    name = "parquet"
    example = "data/train-00000-of-00001.parquet with the columns image (bytes) and label"

    def matches(self, place: Place) -> Evidence | None:
        shards = [shard for path in place.find("*.parquet") if (shard := read_schema(path))]
        if not shards:
            return None
        names = ", ".join(place.relative(shard.path) for shard in shards[:3])
        return Evidence(1.0, f"images inside {names}", f"column '{shards[0].image}' holds images", shards)

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        shards: list[Shard] = evidence.found
        splits = {shard.split for shard in shards}
        tables, summary = [], ""
        notes: list[str] = []
        for shard in shards:
            facts = write_shard_images(shard, notes.append)
            named = place.settings.label_col
            check_column_exists(facts, named, shard.path.name, "label")
            columns = [named] if named else find_label_columns(facts.drop(columns="file"), (), shard.path.name)[0]
            values = read_label_values(facts[columns[0]], columns[0], place.settings, shard.path.name)
            labels = values.labels
            if names := shard.names.get(columns[0]):
                labels = labels.map(
                    lambda code, names=names: names[int(code)] if code.isdigit() and int(code) < len(names) else code
                )
            rows = make_rows(facts["file"], labels, shard.split if len(splits) > 1 else None)
            tables.append(rows[(labels != "") & (labels != "-1")])
            summary = f"labels from '{columns[0]}'"
        table = pd.concat(tables, ignore_index=True)
        left_out = sum(map(len, tables)) - len(table)
        notes += [f"{format_count(left_out, 'row')} without a label left out"] if left_out else []
        return SourceTable(
            table,
            f"images inside {format_count(len(shards), 'Parquet file')} in {place.path}",
            f"images inside, {summary}",
            notes,
        )


def read_schema(path: Path) -> Shard | None:
    """Return where the images of a Parquet file are; None if it has none or cannot be read."""
    try:
        from pyarrow import ArrowException, parquet
        from pyarrow.types import is_binary, is_struct
    except ImportError:
        return None
    try:
        schema = parquet.read_schema(path)
    except (OSError, ArrowException):
        return None
    image = next(
        (
            field.name
            for field in schema
            if (is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
            or (is_binary(field.type) and "im" in field.name.lower())
        ),
        None,
    )
    if image is None:
        return None
    features = hugging_face_features(schema.metadata or {})
    names = {
        name: list(feature["names"])
        for name, feature in features.items()
        if isinstance(feature, dict) and "names" in feature
    }
    return Shard(path, image, names, split_from_name(path.stem) or split_from_name(path.parent.name))


def write_shard_images(shard: Shard, log: Callable[[str], None]) -> pd.DataFrame:
    """Write the images of a file into the cache, once, and return its other columns with the column `file`."""
    folder = cached_images("parquet", shard.path, lambda work: write_images_of(shard, work), log)
    frame = pd.read_csv(folder / "images.csv", dtype=str, keep_default_na=False)
    return frame.assign(file=[str(folder / name) for name in frame["file"]])


def write_images_of(shard: Shard, work: Path) -> None:
    """Write the images of a file into a folder, and its other columns as `images.csv`."""
    facts: dict[str, list[Any]] = defaultdict(list)
    for number, row in enumerate(read_rows(shard)):
        cell = row.pop(shard.image)
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not content:
            raise DataError(f"{shard.path.name} has no image in row {number + 1}. Correct the file.")
        name = f"{number:07}.{ending_of(content)}"
        (work / name).write_bytes(content)
        facts["file"].append(name)
        for column, value in row.items():
            facts[column].append(cell_to_text(value))
    write_atomic(work / "images.csv", to_csv(pd.DataFrame(facts)))


def read_rows(shard: Shard) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(shard.path).iter_batches(batch_size=256):
        yield from batch.to_pylist()


def ending_of(content: bytes) -> str:
    """Return the ending of an image's file name by its first bytes."""
    starts = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"GIF8": "gif", b"BM": "bmp", b"II*\x00": "tif", b"MM\x00*": "tif"}
    return next((ending for start, ending in starts.items() if content.startswith(start)),
                "webp" if content[8:12] == b"WEBP" else "png")  # fmt: skip
