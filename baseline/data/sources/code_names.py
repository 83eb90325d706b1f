"""Class names for numeric class codes, from the files beside a table or its images that name them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from baseline.data.labels import SEPARATOR, is_whole_number
from baseline.data.sources.folders import has_image_name
from baseline.data.sources.list_files import without_header
from baseline.data.sources.read_table import column_as_text, read_header
from baseline.errors import DataError

if TYPE_CHECKING:
    from baseline.data.sources.place import Place

__all__ = ["name_codes"]


LIST_FILES = ("classes.txt", "class_names.txt", "classnames.txt", "labels.txt", "names.txt", "categories.txt",
              "*mapping.txt", "*.names", "*categor*.txt", "*class*.txt")  # fmt: skip
JSON_FILES = ("*label*.json", "*class*.json", "*map*.json", "*name*.json", "*categor*.json", "*cat*.json")
TABLE_FILES = ("*label*.csv", "*class*.csv", "*name*.csv", "*map*.csv", "*categor*.csv", "*meta*.csv")


def name_codes(
    labels: pd.Series, place: Place, *, strict: bool = False, used: tuple[Path, ...] = ()
) -> tuple[pd.Series, list[str]]:
    """Return the labels with names instead of codes where a file gives a name for each, and a note that says so.

    Args:
        strict: only use a file that names exactly these codes.
        used: tables that the labels come from.
    """
    codes = {code for label in labels for code in label.split(SEPARATOR) if code}
    if not codes or not all(map(is_whole_number, codes)):
        return labels, []
    for path, names in mappings(place, codes, used):
        exact = set(names) == codes
        if codes <= set(names) and (exact or not strict) and len({names[code] for code in codes}) == len(codes):
            named = labels.map(lambda label, names=names: SEPARATOR.join(sorted(names[c] for c in split_codes(label))))
            return named, [f"class names from {path.name}"]
    return labels, []


def is_numeric(text: str) -> bool:
    return bool(re.fullmatch(r"[\d.]+", text))


def split_codes(label: str) -> list[str]:
    return [code for code in label.split(SEPARATOR) if code]


def mappings(place: Place, codes: set[str], used: tuple[Path, ...]) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the files that may name codes, with the name of each code."""
    for path in place.find(*JSON_FILES):
        if path not in used and (names := names_from_json(place.json(path), codes)):
            yield path, names
    for path in place.find(*LIST_FILES):
        if path not in used and (names := names_from_lines(place.lines(path), codes)):
            yield path, names
    for path in place.find(*TABLE_FILES):
        if path not in used and (names := names_from_table(place, path)):
            yield path, names


def names_from_json(content: Any, codes: set[str]) -> dict[str, str]:
    if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
        return {str(key): value.strip() for key, value in content.items()}
    if isinstance(content, dict) and all(type(value) is int for value in content.values()):
        return {str(value): str(key).strip() for key, value in content.items()}
    if isinstance(content, list) and all(isinstance(value, str) for value in content):
        return number_names([value.strip() for value in content], codes)
    return {}


def names_from_lines(lines: list[str], codes: set[str]) -> dict[str, str]:
    """Return names from lines that are names, or a code and a name."""
    lines = without_header(lines)
    reverse = [re.fullmatch(r"(\D.*?)[\s,;:=]+(\d+)", line) for line in lines]
    if lines and all(reverse):
        coded = [(pair[2], pair[1].strip()) for pair in reverse if pair]
        rows = number_names([name for _, name in coded], codes)
        return dict(coded) if len({code for code, _ in coded}) == len(coded) else rows
    pairs = [re.fullmatch(r"(\d+)[\s,;:=]+(.*\D.*)", line) for line in lines]
    if lines and all(pairs):
        names = {pair[1]: pair[2].strip() for pair in pairs if pair}
        points = {code: name.split()[0] for code, name in names.items()}
        if all(is_whole_number(point) and 32 < int(point) < 127 for point in points.values()):
            return {code: chr(int(point)) for code, point in points.items()}  # ASCII, as EMNIST has it
        return names
    return number_names(lines, codes)


def number_names(names: list[str], codes: set[str]) -> dict[str, str]:
    """Return the names by their number, from 0 or 1, whichever is certain; empty if neither is."""
    numbers = {int(code) for code in codes}
    first = 0 if 0 in numbers else 1
    if first == 1 and max(numbers) != len(names):
        return {}
    return {str(number): name for number, name in enumerate(names, first)} if max(numbers) < len(names) + first else {}


def names_from_table(place: Place, path: Path) -> dict[str, str]:
    """Return the names in a small table of a column of codes and a column of names."""
    if not 2 <= len(read_header(path)) <= 6:
        return {}
    try:
        frame = place.table(path)
    except DataError:
        return {}
    columns = [column_as_text(frame[column]) for column in frame.columns]
    unique = [column for column in columns if column.is_unique and (column != "").all()]
    codes = [column for column in unique if column.map(is_whole_number).all()]
    texts = [column for column in unique if not column.map(lambda text: has_image_name(text) or is_numeric(text)).any()]
    return dict(zip(codes[0], texts[0], strict=True)) if len(codes) == 1 and texts else {}
