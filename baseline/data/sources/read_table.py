"""Read CSV, TSV and Parquet files into DataFrames, detecting encoding and delimiter and checking memory first."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd

from baseline.errors import DataError
from baseline.system import free_memory_bytes

__all__ = ["ROW_BYTES", "TABLE_SUFFIXES", "cell_to_text", "column_as_text", "detect_text_format", "read_table"]


TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
"""File name endings of the supported tables, in lower case."""


READ_BYTES, ROW_BYTES = 250, 1100
"""Bytes of memory per row when a table is read, and when it becomes an image table, in addition to its text.

The text takes `TEXT_COPIES` times its size on disk. Measured with 300,000 rows of 34 and 434 bytes: 213 and 1,116 bytes
per row when reading, 988 and 1,701 as an image table.
"""

TEXT_COPIES = 2.5
"""Memory that the text of a table takes, as a multiple of its size on disk."""


def read_table(path: Path, row_bytes: int = READ_BYTES) -> pd.DataFrame:
    """Read a table; all values of a CSV or TSV file are text, missing ones are empty.

    UTF-8 with or without a byte-order mark and UTF-16 with one are supported; the delimiter of a .csv file is detected.

    Args:
        row_bytes: maximum bytes of memory that one row of a CSV or TSV file, without its text, will take in total,
            including whatever is made of it later.

    Raises:
        DataError: if the file cannot be read, has another encoding, has no rows, or needs more memory than is free.
    """
    try:
        check_memory(path, row_bytes)
        frame = read_parquet(path) if path.suffix.lower() == ".parquet" else read_text_table(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    if frame.empty:
        raise DataError(f"{path} has a header but no rows. Give a table with one row per image.")
    return frame


def read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError:
        raise DataError(f"{path} needs a Parquet reader: pip install 'fastai-baseline[parquet]'.") from None
    except OSError:
        raise
    except Exception as error:  # pyarrow has exception types of its own
        raise DataError(f"{path} is not a complete Parquet file: {str(error).splitlines()[0][:120]}.") from None


def detect_text_format(path: Path) -> tuple[str, str]:
    """Return the encoding and the delimiter of a text table.

    The delimiter of a .csv file is the one of `, ; tab |` that occurs most often in its header.

    Raises:
        OSError, UnicodeError: if its beginning cannot be read.
    """
    with path.open("rb") as opened:
        start = opened.read(4)
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with path.open(encoding=encoding) as text:
        sample = text.read(1 << 16)
    return encoding, "\t" if path.suffix.lower() == ".tsv" else guess_delimiter(sample)


def read_text_table(path: Path) -> pd.DataFrame:
    try:
        encoding, delimiter = detect_text_format(path)
        return pd.read_csv(
            path,
            sep=delimiter,
            dtype=str,
            keep_default_na=False,
            encoding=encoding,
            skipinitialspace=True,
            index_col=False,
        )
    except UnicodeError as error:
        raise DataError(encoding_message(path, error)) from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty. Give a table with a header and one row per image.") from None
    except (pd.errors.ParserError, csv.Error) as error:
        raise DataError(f"{path} is not a valid table: {' '.join(str(error).split())[:160]}.") from None


def check_memory(path: Path, row_bytes: int) -> None:
    """Raise DataError before a table is read if it needs more memory than is free."""
    if path.suffix.lower() == ".parquet" or (free := free_memory_bytes()) is None:
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        sample = file.read(1 << 16)
    rows = size * max(1, sample.count(b"\n")) // max(1, len(sample))
    needed = rows * row_bytes + int(TEXT_COPIES * size)
    if needed > free:
        raise DataError(
            f"{path} has about {rows:,} rows, which need {needed / 1e9:.1f} GB of memory, but only {free / 1e9:.1f} GB "
            "are free. Give a part of the table, or use a machine with more memory."
        )


def guess_delimiter(sample: str) -> str:
    """Return the delimiter that occurs most often in the header, or a comma if there is none."""
    header = sample.splitlines()[0] if sample.strip() else ""
    return max(",;\t|", key=header.count)


def encoding_message(path: Path, error: UnicodeError) -> str:
    position = ""
    if isinstance(error, UnicodeDecodeError) and error.reason != "truncated data":
        content = path.read_bytes()
        for number, line in enumerate(content.split(b"\n"), 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as line_error:
                position = f" (byte 0x{line[line_error.start]:02x} in line {number})"
                break
    return f"{path} is not UTF-8{position}, and any other encoding would be a guess. Save it as UTF-8."


def cell_to_text(value: Any) -> str:
    """Return a cell's value as text: whole floats without `.0`, missing values as an empty string."""
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def column_as_text(values: pd.Series) -> pd.Series:
    return values.astype(object).map(cell_to_text)
