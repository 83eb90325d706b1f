"""The source "parquet": images inside Parquet files, as Hugging Face stores datasets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from baseline.data.labels import is_whole_number
from baseline.data.sources.archives import max_unpacked_bytes
from baseline.data.sources.cached_images import cached_images
from baseline.data.sources.columns import find_label_columns
from baseline.data.sources.folders import split_from_name
from baseline.data.sources.label_values import read_label_values
from baseline.data.sources.place import Evidence, Place, Source, SourceTable, make_rows
from baseline.data.sources.read_table import cell_to_text, check_column_count
from baseline.data.sources.tables import check_column_exists
from baseline.errors import DataError, first_line, format_count
from baseline.files import parse_json, to_csv, write_atomic
from baseline.parallel.memory import parquet_text_bytes
from baseline.reading import COPIES, MAX_TABLE_BYTES, check_memory_for, check_regular, read_run_table

__all__ = ["ParquetImages"]


MAX_BATCH_BYTES = 2**28
"""Memory for the rows that are read at once."""


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
            columns = [named] if named else find_label_columns(facts.iloc[:, 1:], (), shard.path.name)[0]
            values = read_label_values(facts[columns[0]], columns[0], place.settings, shard.path.name)
            labels = values.labels
            if names := shard.names.get(columns[0]):
                labels = labels.map(
                    lambda code, names=names: (
                        names[int(code)] if is_whole_number(code) and int(code) < len(names) else code
                    )
                )
            rows = make_rows(facts.iloc[:, 0], labels, shard.split if len(splits) > 1 else None)
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
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        return None
    try:
        check_regular(path, MAX_TABLE_BYTES, copies=0)
        schema = parquet.read_schema(path)
    except (OSError, ArrowException, UnicodeError):
        return None
    check_column_count(path, len(schema))
    image = next(
        (
            field.name
            for field in schema
            if (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
            or (holds_bytes(field.type) and "im" in field.name.lower())
        ),
        None,
    )
    if image is None:
        return None
    features = hugging_face_features(schema.metadata or {})
    listed = {name: feature.get("names") for name, feature in features.items() if isinstance(feature, dict)}
    names = {
        name: classes
        for name, classes in listed.items()
        if isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    }
    return Shard(path, image, names, split_from_name(path.stem) or split_from_name(path.parent.name))


def holds_bytes(kind: Any) -> bool:
    """Return whether a type of Arrow is that of bytes, also where each value is stored once."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def write_shard_images(shard: Shard, log: Callable[[str], None]) -> pd.DataFrame:
    """Write the images of a file into the cache, once, and return their paths, in the first column, and the others."""
    folder = cached_images("parquet", shard.path, lambda work: write_images_of(shard, work), log)
    frame = read_run_table(folder / "images.csv")
    frame[frame.columns[0]] = [str(folder / name) for name in frame.iloc[:, 0]]
    return frame


def write_images_of(shard: Shard, work: Path) -> None:
    """Write the images of a file into a folder, and their names and its other columns as `images.csv`.

    Raises:
        DataError: if it has no rows, a row has no image, or the images are much larger than the file.
    """
    facts: dict[str, list[Any]] = defaultdict(list)
    room = max_unpacked_bytes(shard.path)
    for number, row in enumerate(read_rows(shard)):
        cell = row.pop(shard.image)
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not content or not isinstance(content, bytes):
            raise DataError(f"{shard.path.name} has no image in row {number + 1}. Correct the file.")
        room -= len(content)
        if room < 0:
            raise DataError(f"{shard.path.name} has images of more than 100 times its size. Pass them as files.")
        name = f"{number:07}.{ending_of(content)}"
        (work / name).write_bytes(content)
        facts[shard.image].append(name)  # the column's own cells are not needed
        for column, value in row.items():
            facts[column].append(cell_to_text(value))
    if not facts:
        raise DataError(f"{shard.path.name} has no rows. Pass a file with one row per image.")
    write_atomic(work / "images.csv", to_csv(pd.DataFrame(facts)))


def read_rows(shard: Shard) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, so few at a time that they take less than 256 MB unless a single one is larger.

    Raises:
        DataError: if the file is damaged, holds values that Python has no type for, or needs more memory than is free.
    """
    from pyarrow import ArrowException, parquet

    try:
        check_memory_for(COPIES * parquet_text_bytes(shard.path, without=shard.image), shard.path)
        file = parquet.ParquetFile(shard.path)
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        sizes = [column.total_uncompressed_size for group in groups for column in columns_of_group(group)]
        check_memory_for(largest := max(sizes, default=0), shard.path)  # a value that recurs is stored once
        for batch in file.iter_batches(batch_size=min(256, max(1, MAX_BATCH_BYTES // max(1, largest)))):
            yield from batch.to_pylist()
    except (ArrowException, KeyError, OSError, OverflowError, TypeError, ValueError) as error:  # KeyError: a time zone
        raise DataError(f"{shard.path} cannot be read: {first_line(error)}. Write it again.") from None


def columns_of_group(group: Any) -> list[Any]:
    """Return what a Parquet file says about the columns of a group of its rows."""
    return [group.column(number) for number in range(group.num_columns)]


def ending_of(content: bytes) -> str:
    """Return the ending of an image's file name by its first bytes."""
    starts = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"GIF8": "gif", b"BM": "bmp", b"II*\x00": "tif", b"MM\x00*": "tif"}
    return next((ending for start, ending in starts.items() if content.startswith(start)),
                "webp" if content[8:12] == b"WEBP" else "png")  # fmt: skip
