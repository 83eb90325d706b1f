"""Read CSV, TSV and Parquet files into DataFrames, detecting encoding and delimiter and checking memory first."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from baseline.errors import DataError, first_line, missing_package
from baseline.files import parse_json
from baseline.parallel.memory import estimate_rows
from baseline.reading import MAX_TABLE_BYTES, check_regular, read_lines
from baseline.system import free_memory_bytes

__all__ = [
    "MAX_HEADER",
    "ROW_BYTES",
    "TABLE_SUFFIXES",
    "cell_to_text",
    "column_as_text",
    "detect_text_format",
    "is_table",
    "read_header",
    "read_table",
]


TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".xlsx", ".jsonl", ".ndjson")
"""File name endings of the supported tables, in lower case."""


READ_BYTES, ROW_BYTES = 250, 1100
"""Bytes of memory per row when a table is read, and when it becomes an image table, in addition to its text.

The text takes `TEXT_COPIES` times its size on disk. Measured with 300,000 rows of 34 and 434 bytes: 213 and 1,116 bytes
per row when reading, 988 and 1,701 as an image table.
"""

TEXT_COPIES = 2.5
"""Memory that the text of a table takes, as a multiple of its size on disk."""


MAX_COLUMNS, MAX_HEADER = 20_000, 1 << 22
"""Maximum number of columns of a table, and of characters that are read to count them."""


def is_table(path: str | Path) -> bool:
    """Whether a file's name has the ending of a table.

    >>> is_table("LABELS.CSV"), is_table("labels.txt")
    (True, False)
    """
    return str(path).lower().endswith(TABLE_SUFFIXES)


def read_header(path: Path) -> list[str]:
    """Return the column names of a CSV or TSV file without reading the rest; none if that is impossible."""
    try:
        encoding, delimiter = detect_text_format(path)
        with path.open(encoding=encoding, newline="") as file:
            return next(csv.reader(file, delimiter=delimiter), [])
    except (OSError, UnicodeError, csv.Error, DataError):
        return []


def read_table(path: Path, row_bytes: int = READ_BYTES, encoding: str = "") -> pd.DataFrame:
    """Read a table; all values of a CSV or TSV file are text, missing ones are empty.

    UTF-8 with or without a byte-order mark and UTF-16 with one are supported, and cp1252 where the text is plausible:
    `attrs["encoding"]` then names it. The delimiter of a .csv file is detected.

    Args:
        row_bytes: maximum bytes of memory that one row of a CSV or TSV file, without its text, will take in total,
            including whatever is made of it later.
        encoding: of a CSV or TSV file; detected if empty.

    Raises:
        DataError: if the file cannot be read, has another encoding, has no rows, or needs more memory than is free.
    """
    try:
        check_regular(path, MAX_TABLE_BYTES)
        check_table_size(path, row_bytes)
        suffix = path.suffix.lower()
        readers = {".parquet": read_parquet, ".xlsx": read_excel, ".jsonl": read_json_lines, ".ndjson": read_json_lines}
        frame = readers[suffix](path) if suffix in readers else read_text_table(path, encoding)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    check_column_count(path, len(frame.columns))
    if frame.empty:
        raise DataError(f"{path} has a header but no rows. Pass a table with one row per image.")
    return frame


def read_parquet(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)  # text that is not UTF-8 is an error only when it is used
        return frame.astype({name: object for name, kind in frame.dtypes.items() if isinstance(kind, pd.StringDtype)})
    except ImportError:
        raise DataError(f"{missing_package(str(path), 'a Parquet reader', 'parquet', 'pyarrow')}.") from None
    except OSError:
        raise
    except Exception as error:  # pyarrow has exception types of its own
        raise DataError(f"{path} is not a complete Parquet file: {str(error).splitlines()[0][:120]}.") from None


def read_excel(path: Path) -> pd.DataFrame:
    """Read the first sheet of an Excel file; all values are text."""
    try:
        import openpyxl
    except ImportError:
        raise DataError(f"{missing_package(str(path), 'openpyxl', 'xlsx')}, or save its sheet as CSV.") from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        header, *rows = [row for row in book.worksheets[0].values if any(cell is not None for cell in row)] or [()]
    except OSError:
        raise
    except Exception as error:  # openpyxl raises whatever zipfile and its XML parser raise
        raise DataError(
            f"{path} is damaged or not an Excel file ({first_line(error)}). Save it again as .xlsx or .csv."
        ) from None
    columns = [cell_to_text(name) or f"column {number}" for number, name in enumerate(header, 1)]
    frame = pd.DataFrame([[cell_to_text(cell) for cell in row] for row in rows], columns=columns, dtype=object)
    if len(book.worksheets) > 1:
        frame.attrs["note"] = f"only the first sheet of {path.name} is read, '{book.worksheets[0].title}'"
    return frame


def read_json_lines(path: Path) -> pd.DataFrame:
    """Read a file with one JSON object per line."""
    try:
        records = [parse_json(line) for line in read_lines(path, MAX_TABLE_BYTES)]
        if not all(isinstance(record, dict) for record in records):
            raise ValueError("a line is not an object")
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON lines: {error}. Write one object per line.") from None
    return pd.DataFrame(records, dtype=object)


def detect_text_format(path: Path, encoding: str = "") -> tuple[str, str]:
    """Return the encoding, unless it is given, and the delimiter of a text table.

    The delimiter of a .csv file is the one of `, ; tab |` that occurs most often in its header.

    Raises:
        OSError, UnicodeError: if its beginning cannot be read.
        DataError: if it is no text, or has more than `MAX_COLUMNS` columns.
    """
    check_regular(path, MAX_TABLE_BYTES, copies=0)
    with path.open("rb") as opened:
        start = opened.read(4)
    encoding = encoding or "utf-16" if encoding or start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with path.open(encoding=encoding) as text:
        sample = text.read(1 << 16)
        sample += "" if "\n" in sample else text.readline(MAX_HEADER)
    if "\0" in sample or ("\n" not in sample and len(sample) > MAX_HEADER):
        raise DataError(f"{path} is not a text table: it has a null byte, or no line. Pass a table with a header.")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else guess_delimiter(sample)
    check_column_count(path, sample.partition("\n")[0].count(delimiter) + 1)
    return encoding, delimiter


def check_column_count(path: Path, columns: int) -> None:
    """Raise DataError if a table has more columns than are read; the time to read them grows with their square."""
    if columns > MAX_COLUMNS:
        raise DataError(
            f"{path} has {columns:,} columns, and at most {MAX_COLUMNS:,} are read. Pass a table with a row per image."
        )


def read_text_table(path: Path, encoding: str = "") -> pd.DataFrame:
    try:
        detected, delimiter = detect_text_format(path, encoding)
        return pd.read_csv(
            path,
            sep=delimiter,
            dtype=str,
            keep_default_na=False,
            encoding=detected,
            skipinitialspace=True,
            index_col=False,
        )
    except LookupError:
        raise DataError(f"There is no encoding '{encoding}'. Pass --encoding utf-8, cp1252, shift_jis, ...") from None
    except UnicodeError as error:
        if encoding:
            raise DataError(f"{path} is not {encoding}: {first_line(error)}. Use another --encoding.") from None
        if is_plausible_cp1252(path):
            frame = read_text_table(path, "cp1252")
            frame.attrs["note"] = f"{path.name} is not UTF-8; read as cp1252, which is a guess (--encoding sets it)"
            return frame
        raise DataError(encoding_message(path, error)) from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty. Pass a table with a header and one row per image.") from None
    except (pd.errors.ParserError, csv.Error) as error:
        raise DataError(f"{path} is not a valid table: {' '.join(str(error).split())[:160]}.") from None


def is_plausible_cp1252(path: Path) -> bool:
    """Whether a file reads as text in cp1252: single accented letters and signs among ASCII, as in the West."""
    try:
        text = path.read_bytes().decode("cp1252")
    except UnicodeDecodeError:
        return False
    foreign = re.findall(r"[^\x00-\x7f]+", text)
    letters = sum(character.isalpha() for character in text)
    usual = all(len(run) <= 2 and all(c.isalpha() or c in "°²³µ€–—‘’“”«»·´ºª®©…§½¼£" for c in run) for run in foreign)
    return usual and "\x00" not in text and sum(map(len, foreign)) <= 0.2 * letters


def check_table_size(path: Path, row_bytes: int) -> None:
    """Raise DataError before a table is read if it needs more memory than is free."""
    rows, size = estimate_rows(path)
    needed = rows * row_bytes + int(TEXT_COPIES * size)
    if (free := free_memory_bytes()) is not None and needed > free:
        raise DataError(
            f"{path} has about {rows:,} rows, which need {needed / 1e9:.1f} GB of memory, but only {free / 1e9:.1f} GB "
            "are free. Pass a part of the table, or use a machine with more memory."
        )


def guess_delimiter(sample: str) -> str:
    """Return the delimiter that occurs most often in the header, or a comma if there is none."""
    return max(",;\t|", key=(sample.splitlines()[0] if sample.strip() else "").count)


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
    return (
        f"{path} is not UTF-8{position}, and any other encoding would be a guess. Save it as UTF-8, or give --encoding."
    )


def cell_to_text(value: Any) -> str:
    """Return a cell's value as text: whole floats without `.0`, missing values as an empty string."""
    if isinstance(value, list | tuple | np.ndarray):
        return json.dumps([cell_to_text(item) for item in value], ensure_ascii=False)
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def column_as_text(values: pd.Series) -> pd.Series:
    return values.astype(object).map(cell_to_text)
