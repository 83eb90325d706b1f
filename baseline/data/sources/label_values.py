"""What the cells of a label column mean: one label or several, numbers that are classes or measurements."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd

from baseline.data.labels import SEPARATOR
from baseline.data.sources.columns import column_key
from baseline.data.sources.read_table import cell_to_text, column_as_text
from baseline.errors import DataError, format_count, quoted_list
from baseline.files import parse_json
from baseline.recipe.schema import DataSettings

__all__ = ["LabelValues", "find_delimiter", "join_flags", "read_label_values"]


DELIMITERS = {"|": "|", ",": "a comma", ";": ";", " ": "a space"}
"""Delimiters between labels that are looked for, with their names in messages."""


SEVERAL_NAMES = frozenset(
    (
        "attribute_ids",
        "attributes",
        "categories",
        "classes",
        "finding_labels",
        "findings",
        "keywords",
        "labels",
        "tags",
        "targets",
    )
)
"""Names of columns that usually hold several labels per image."""


CLASS_NAMES = frozenset(
    ("category", "category_id", "class", "class_id", "classes", "cls", "grade", "id", "label", "label_id", "labels",
     "level", "species", "stage", "target", "y")
)  # fmt: skip
"""Names of columns whose numbers are usually classes."""


MAX_GRADES = 15
"""Number of distinct numbers up to which a column is taken as classes, such as ordered grades."""


BOXES = r"[^\d\s]\S*( -?\d+(\.\d+)?){4}( [^\d\s]\S*( -?\d+(\.\d+)?){4})*"
"""A class and the four numbers of a box, once or more often."""


@dataclass
class LabelValues:
    """The label of each row, and what was decided about them."""

    labels: pd.Series
    summary: str = ""
    """A phrase for the summary, such as `several per image, separated by a space`; empty for plain labels."""
    notes: list[str] = field(default_factory=list)


def read_label_values(values: pd.Series, column: str, settings: DataSettings, name: str) -> LabelValues:
    """Return the labels in a column; those of an image with several are joined by `;` in alphabetical order.

    Whole floats lose their `.0`, booleans are `false` and `true`. Rows without a label stay empty.

    Args:
        settings: `label_delim`, `task` and `bins` are used.
        name: the table's name in messages.

    Raises:
        DataError: for a column of measurements, unless `bins` says how many classes to make of them.
    """
    labels = simplify(column_as_text(values))
    if settings.bins:
        return bin_values(labels, column, settings.bins, name)
    if labels.str.match(LIST).any() and all(parse_list(text) is not None for text in labels[labels.str.match(LIST)]):
        return LabelValues(labels.map(labels_in_list), "several per image, in lists")
    filled = labels[labels != ""]
    if len(filled) and filled.str.fullmatch(BOXES).all():
        boxes = labels.map(lambda text: join_labels(text.split()[::5]))
        return LabelValues(boxes, "the classes of boxes; the boxes are not used")
    found = find_delimiter(labels, column)
    if settings.label_delim:
        if not labels.str.contains(settings.label_delim, regex=False).any():
            message = f"No label in '{column}' of {name} contains {settings.label_delim!r}."
            raise DataError(f"{message} Use another --label-delim, or leave it out.")
        delimiter = settings.label_delim
    elif settings.task == "single":
        looks = f"'{column}' looks like several labels separated by {DELIMITERS.get(found, found)}, but is read as one"
        return LabelValues(labels, notes=[looks] if found else [])
    elif labels.str.contains(SEPARATOR, regex=False).any():
        delimiter = SEPARATOR
    else:
        delimiter = found
    if not delimiter:
        refuse_measurements(labels, column, name)
        return LabelValues(labels)
    delimiter_name = DELIMITERS.get(delimiter, repr(delimiter))
    summary = "" if delimiter == SEPARATOR else f"several per image, separated by {delimiter_name}"
    summary += "" if settings.label_delim or not summary else "; --task single reads each cell as one label"
    return LabelValues(labels.map(lambda text: join_labels(text.split(delimiter))), summary)


def simplify(labels: pd.Series) -> pd.Series:
    """Return whole floats without `.0`, and booleans as `false` and `true`."""
    filled = labels[labels != ""]
    if len(filled) and filled.str.fullmatch(r"-?\d+(\.0+)?").all():
        return labels.str.replace(r"\.0+$", "", regex=True)
    return labels.str.lower() if set(filled.str.lower()) <= {"true", "false"} else labels


def join_labels(parts: list[str]) -> str:
    return SEPARATOR.join(sorted({part.strip() for part in parts} - {""}))


LIST = r"^\[.*\]$|^\{.*\}$"
"""A list or an object in JSON or Python."""


def parse_list(text: str) -> list[str] | None:
    """Return the items of a list as JSON or Python writes it, or of the list in an object; None if it is none.

    >>> parse_list('["b", "a"]'), parse_list("['a']"), parse_list('{"choices": ["a", "b"]}'), parse_list("[a")
    (['b', 'a'], ['a'], ['a', 'b'], None)
    """
    for parse in (parse_json, ast.literal_eval):
        try:
            items = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nested too deeply
            continue
        items = next(iter(items.values()), []) if isinstance(items, dict) else items
        return [cell_to_text(item) for item in (items if isinstance(items, list | tuple | set) else [items])]
    return None


def labels_in_list(text: str) -> str:
    items = parse_list(text) if re.match(LIST, text) else None
    return join_labels([text] if items is None else items)


def find_delimiter(labels: pd.Series, column: str) -> str:
    """Return the delimiter between several labels in a cell; empty if each cell holds one label.

    The parts must recur alone or in other combinations, most of them where the column's name says that there are
    several, all of them otherwise; for a space, there must be clearly more combinations than parts as well.

    >>> find_delimiter(pd.Series(["a b", "b", "a"]), "tags"), find_delimiter(pd.Series(["red fox", "lynx"]), "tags")
    (' ', '')
    """
    texts = sorted(set(labels) - {""})
    several_named = column_key(column) in SEVERAL_NAMES
    for delimiter in DELIMITERS:
        combinations = [{part.strip() for part in text.split(delimiter)} - {""} for text in texts]
        if not any(len(parts) > 1 for parts in combinations):
            continue
        if delimiter == "|":
            return delimiter
        counts = Counter(part for parts in combinations for part in parts)
        alone = {next(iter(parts)) for parts in combinations if len(parts) == 1}
        recurring = sum(counts[part] > 1 or part in alone for part in counts) / len(counts)
        codes = all(part.isdigit() for part in counts)
        in_several = sum(count > 1 for count in counts.values())
        if codes and delimiter in " ,":
            return delimiter
        enough = recurring >= 0.5 if several_named else recurring == 1 and bool(alone)
        if delimiter == " " and not several_named:
            enough = enough and len(texts) >= 1.5 * len(counts)
        if enough and in_several:
            return delimiter
    return ""


def refuse_measurements(labels: pd.Series, column: str, name: str) -> None:
    """Raise DataError if the column holds measurements rather than classes."""
    filled = labels[labels != ""]
    if not len(filled) or not filled.str.fullmatch(r"-?\d+(\.\d+)?([eE]-?\d+)?").all():
        return
    distinct, rows = filled.nunique(), len(filled)
    whole = bool(filled.str.fullmatch(r"-?\d+").all())
    usual = column_key(column) in CLASS_NAMES or column_key(column).endswith(("_id", "_class", "_label"))
    limit = max(MAX_GRADES, rows // 2) if whole and usual else MAX_GRADES
    if distinct <= limit or (whole and column_key(column) == "id"):
        return
    numbers = filled.astype(float)
    raise DataError(
        f"Column '{column}' of {name} holds {distinct:,} different numbers ({numbers.min():g} to {numbers.max():g}): "
        "that is regression, and baseline only classifies. Pass --bins K for K classes of them, or --label-col COLUMN."
    )


def bin_values(labels: pd.Series, column: str, bins: int, name: str) -> LabelValues:
    """Return ranges of numbers with about equally many images as labels, such as `20 to 35`."""
    numbers = pd.to_numeric(labels.where(labels != ""), errors="coerce")
    if (wrong := numbers.isna() & (labels != "")).any():
        texts = quoted_list(labels[wrong].unique(), 3)
        raise DataError(f"--bins needs numbers, and '{column}' of {name} holds {texts}. Leave --bins out.")
    edges = np.unique(np.quantile(numbers.dropna(), np.linspace(0, 1, bins + 1)))
    if len(edges) < 3:
        raise DataError(f"'{column}' of {name} has too few different numbers for {bins} bins. Leave --bins out.")
    numbers_of = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
    names = np.array([f"{low:g} to {high:g}" for low, high in pairwise(edges)], dtype=object)
    binned = pd.Series(names[numbers_of], index=labels.index).where(numbers.notna(), "")
    short = f"; only {len(names)}, because numbers repeat" if len(names) < bins else ""
    return LabelValues(binned, f"in {bins} bins of about equal size{short}")


def join_flags(frame: pd.DataFrame, columns: list[str]) -> tuple[pd.Series, list[str]]:
    """Return the names of the columns that are 1 in each row, joined if there are several, and notes."""
    texts = frame[columns].map(lambda value: cell_to_text(value).lower().removesuffix(".0"))
    flags = texts.isin(["1", "true"])
    order = sorted(columns)
    labels = flags[order].apply(lambda row: SEPARATOR.join(c for c, on in zip(order, row, strict=True) if on), axis=1)
    values = set(np.unique(texts.to_numpy().astype(str)))
    notes = []
    if "-1" in values and values & {"0", ""}:
        notes.append(f"{format_count(int((texts == '-1').sum().sum()), 'cell')} of -1 (uncertain) read as no")
    if "" in values:
        notes.append(f"{format_count(int((texts == '').sum().sum()), 'empty cell')} read as no")
    return labels, notes
