"""TODO."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd

from baseline.errors import DataError
from baseline.system import free_memory_bytes

__all__ = ["ROW_BYTES", "TABLE_SUFFIXES", "detect_text_format", "read_table"]


TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")

READ_BYTES, ROW_BYTES = 250, 1100
"""Of memory that a row of a table takes when it is read, and when it becomes rows of images; beside its text, which
takes `TEXT_COPIES` times what it has on disk (300,000 rows of 34 and 434 bytes: 213 and 1,116; 988 and 1,701)."""

TEXT_COPIES = 2.5


def read_table(path: Path, row_bytes: int = READ_BYTES) -> pd.DataFrame:
    """The file's rows, every value of a CSV or TSV as text, missing ones empty.

    UTF-8 with and without a byte-order mark and UTF-16 with one are read; the delimiter of a .csv is looked for.

    Args:
        row_bytes: what a row of a CSV or TSV takes of memory at most, beside its text, in all that will be made of it.

    Raises:
        DataError: if it cannot be read, is in another encoding, has no rows, or needs more memory than there is.
    """
    try:
        _check_size(path, row_bytes)
        frame = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    if frame.empty:
        raise DataError(f"{path} has a header but no rows. Give a table with one row an image.")
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError:
        raise DataError(f"{path} needs a Parquet reader: pip install 'fastai-baseline[parquet]'.") from None
    except OSError:
        raise
    except Exception as error:  # pyarrow's own kinds
        raise DataError(f"{path} is no whole Parquet file: {str(error).splitlines()[0][:120]}.") from None


def detect_text_format(path: Path) -> tuple[str, str]:
    """The encoding of a table of text, and its delimiter: in a .csv the one of `, ; tab |` that its header has most of.

    Raises:
        OSError, UnicodeError: if its beginning cannot be read.
    """
    with path.open("rb") as opened:
        start = opened.read(4)
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with path.open(encoding=encoding) as text:
        sample = text.read(1 << 16)
    return encoding, "\t" if path.suffix.lower() == ".tsv" else _guess_delimiter(sample)


def _read_text(path: Path) -> pd.DataFrame:
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
        raise DataError(_encoding_error(path, error)) from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty. Give a table with a header and one row an image.") from None
    except (pd.errors.ParserError, csv.Error) as error:
        raise DataError(f"{path} is no table: {' '.join(str(error).split())[:160]}.") from None


def _check_size(path: Path, row_bytes: int) -> None:
    """An error where there is less memory than the table will take, before it takes it."""
    if path.suffix.lower() == ".parquet" or (free := free_memory_bytes()) is None:
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        sample = file.read(1 << 16)
    rows = size * max(1, sample.count(b"\n")) // max(1, len(sample))
    needed = rows * row_bytes + int(TEXT_COPIES * size)
    if needed > free:
        raise DataError(
            f"{path} has about {rows:,} rows, which take {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
            "free. Give a part of it, or a machine with more."
        )


def _guess_delimiter(sample: str) -> str:
    """The one that the header has most of; a comma where it has none."""
    header = sample.splitlines()[0] if sample.strip() else ""
    return max(",;\t|", key=header.count)


def _encoding_error(path: Path, error: UnicodeError) -> str:
    where = ""
    if isinstance(error, UnicodeDecodeError) and error.reason != "truncated data":
        content = path.read_bytes()
        for number, line in enumerate(content.split(b"\n"), 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as wrong:
                where = f" (byte 0x{line[wrong.start]:02x} in line {number})"
                break
    return f"{path} is not UTF-8{where}, and any other encoding would be a guess. Save it as UTF-8."


def _to_text(value: Any) -> str:
    """Text of a value: whole floats without their zero, nothing for what is missing."""
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def column_as_text(values: pd.Series) -> pd.Series:
    return values.astype(object).map(_to_text)
