"""What a sample submission asks for, and predictions in that shape. Knows columns and values; knows no files.

| the sample, beside its ids, has | and gets | shape |
|---|---|---|
| one column, of class names or empty | the predicted class; several where the sample has several | `quoted_list` |
| one column, of whole numbers that are no class names | the same by the classes' codes | `codes` |
| one column, of numbers such as 0.5, and the run has two classes | the probability of one of them | `probabilities` |
| a column for each class, by name or code, perhaps behind a common beginning | probabilities | `probabilities` |
| the same, where it is wished | 1 for what is predicted, else 0 | `one-hot` |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pandas as pd

from baseline.data.labels import SEPARATOR, split_labels
from baseline.errors import DataError, quoted_list, unknown_name

__all__ = ["FORMATS", "GIVEN", "ClassNaming", "SubmissionFormat", "detect_format", "format_predictions"]


FORMATS = ("auto", "names", "codes", "probabilities", "one-hot")


LABEL_SEPARATORS = (" ", SEPARATOR, ",", "|")
"""That samples put between several labels of an image, the most usual first."""


TRUE_WORDS = ({"0", "1"}, {"false", "true"}, {"no", "yes"}, {"negative", "positive"}, {"absent", "present"})
"""Pairs of classes of which the one later in the alphabet is the one whose probability is meant."""


OWN, GIVEN = "by name", "as --codes says"
"""The sources of what the run itself calls its classes, and of what the caller says they are called."""


DIGITS = 9
"""Of a written probability."""


@dataclass(frozen=True)
class ClassNaming:
    """What each class is called in a sample, and who says so."""

    called: Mapping[str, str]
    source: str

    @property
    def counts(self) -> bool:
        """Whether classes are called by whole numbers."""
        return all(re.fullmatch(r"\d+", word) for word in self.called.values())


@dataclass(frozen=True)
class SubmissionFormat:
    """What is to be written."""

    kind: str
    """One of `FORMATS`."""
    called: Mapping[str, str]
    """What each class is called: its word in a column of labels, or its column."""
    words: list[str] = field(default_factory=list)
    """What was understood, and how."""
    column: str = ""
    """That of labels."""
    separator: str = ""
    """Between the labels of an image that may have several."""
    most: int = 1
    """Labels an image: its most probable classes, where it has one."""


def detect_format(
    columns: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    namings: Callable[[], Iterator[ClassNaming]],
    *,
    given: ClassNaming | None = None,
    many: bool = False,
    wish: str = "auto",
    name: str = "the sample",
) -> SubmissionFormat:
    """The shape that a sample asks for.

    Args:
        columns: its columns but the ids, in order, and their values.
        classes: of the run, in its order.
        namings: what else than by their names classes may be called; asked only if names do not fit.
        given: what they are called, where the caller says so; nothing else is tried then.
        many: whether an image may have several labels.
        wish: one of `FORMATS`.

    Raises:
        DataError: if its columns or values are not those of the classes.

    >>> detect_format({"label": ["ants", "ants"]}, ["ants", "bees"], lambda: iter(())).kind
    'names'
    >>> detect_format({"p_ants": ["0.5"], "p_bees": ["0.5"]}, ["ants", "bees"], lambda: iter(())).kind
    'probabilities'
    """
    if wish not in FORMATS:
        raise DataError(unknown_name("shape", wish, FORMATS))

    def tried() -> Iterator[ClassNaming]:
        return iter([given]) if given else chain([ClassNaming({each: each for each in classes}, OWN)], namings())

    if not columns:
        raise DataError(f"{name} has ids and no column to fill. Give the sample of the competition.")
    if len(columns) > 1:
        return _format_with_class_columns(columns, classes, tried, wish, name)
    return _format_with_one_column(columns, classes, tried, many, wish, name)


def format_predictions(table: pd.DataFrame, shape: SubmissionFormat) -> dict[str, list[str]]:
    """What goes into each column of the sample but the ids, as text.

    Args:
        table: `predicted` and `p_CLASS` for each class, a row for each of the sample's.
    """
    classes = list(shape.called)
    if shape.kind == "probabilities":
        return {column: [_format_number(p) for p in table[f"p_{each}"]] for each, column in shape.called.items()}
    told = _row_classes(table, shape, classes)
    if shape.kind == "one-hot":
        return {column: [str(int(each in row)) for row in told] for each, column in shape.called.items()}
    return {shape.column: [shape.separator.join(shape.called[each] for each in row) for row in told]}


def _row_classes(table: pd.DataFrame, shape: SubmissionFormat, classes: list[str]) -> list[list[str]]:
    """The classes that each row is given; the most probable one where none reaches the threshold."""
    probable = table[[f"p_{each}" for each in classes]].to_numpy()
    if shape.most > 1:
        order = np.argsort(-probable, axis=1, kind="stable")[:, : shape.most]
        return [[classes[place] for place in row] for row in order]
    if not shape.separator and shape.kind != "one-hot":
        return [[label] for label in table["predicted"]]
    best = [classes[place] for place in probable.argmax(1)]
    several = (split_labels(text) if text not in shape.called else [text] for text in table["predicted"])
    return [row or [first] for row, first in zip(several, best, strict=True)]


def _format_number(value: float) -> str:
    return f"{value:.{DIGITS}g}"


def _format_with_class_columns(
    columns: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    tried: Callable[[], Iterator[ClassNaming]],
    wish: str,
    name: str,
) -> SubmissionFormat:
    if wish in ("names", "codes"):
        raise DataError(f"{name} has {len(columns)} columns to fill; shape {wish} needs one. Leave --shape out.")
    for naming in _with_numbered(tried, classes, _without_prefix(columns)):
        if called := _match_class_columns(list(columns), naming):
            break
    else:
        raise DataError(_column_mismatch(columns, classes, name))
    kind = "one-hot" if wish == "one-hot" else "probabilities"
    words = [f"{'0 or 1' if kind == 'one-hot' else 'probabilities'} in {len(columns)} columns, {naming.source}"]
    if naming.source != OWN:
        words.append(_list_names(called))
    if wish == "auto" and {value for values in columns.values() for value in values} <= {"0", "1"}:
        words.append(f"{name} holds 0 and 1, which says nothing of what is judged; --shape one-hot writes these")
    return SubmissionFormat(kind, called, words)


def _match_class_columns(columns: list[str], naming: ClassNaming) -> dict[str, str]:
    """For each class its column, where all columns have the classes' words behind a beginning that they share."""
    for start in range(len(_common_prefix(columns)) + 1):
        for form in (str, _normalize):
            behind = {form(column[start:]): column for column in columns}
            words = {each: form(word) for each, word in naming.called.items()}
            if len(columns) == len(behind) == len(words) and set(behind) == set(words.values()):
                return {each: behind[word] for each, word in words.items()}
    return {}


def _without_prefix(columns: Mapping[str, Sequence[str]]) -> list[str]:
    start = len(re.sub(r"\d+$", "", _common_prefix(list(columns))))
    return [column[start:] for column in columns]


def _common_prefix(words: Sequence[str]) -> str:
    """What all words begin with."""
    low, high = min(words), max(words)
    return low[: next((place for place, letter in enumerate(low) if letter != high[place]), len(low))]


def _column_mismatch(columns: Mapping[str, Sequence[str]], classes: Sequence[str], name: str) -> str:
    known = {_normalize(each) for each in classes}
    strange = [each for each in columns if not any(_normalize(each).endswith(word) for word in known)]
    lacking = [each for each in classes if not any(_normalize(column).endswith(_normalize(each)) for column in columns)]
    found = [f"{quoted_list(strange, 3)} {'are' if len(strange) > 1 else 'is'} no class of the run"] if strange else []
    found += (
        [f"{quoted_list(lacking, 3)} of the run {'have' if len(lacking) > 1 else 'has'} no column"] if lacking else []
    )
    found = found or [f"{len(columns)} columns do not fit {len(classes)} classes one to one"]
    return f"In {name} {', and '.join(found)}. Its classes: {quoted_list(classes, 8)}. Give --codes CLASS=COLUMN,..."


def _format_with_one_column(
    columns: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    tried: Callable[[], Iterator[ClassNaming]],
    many: bool,
    wish: str,
    name: str,
) -> SubmissionFormat:
    [(column, values)] = columns.items()
    seen = {value.strip() for value in values} - {""}
    if wish == "one-hot":
        raise DataError(f"{name} has one column to fill, '{column}'; shape one-hot needs one for each class.")
    if wish == "probabilities":
        return _probability_format(column, classes, tried, many, name)
    for naming in _with_numbered(tried, classes, _tokens(seen, many)):
        cut = _split_values(seen, set(naming.called.values()), many) if _is_allowed(naming, wish) else None
        if cut is not None:
            hint = wish == "auto" and not many and len(classes) == 2 and bool(seen) and seen <= {"0", "1"}
            return _label_format(
                column, naming, *cut, many, ["--shape probabilities writes probabilities"] if hint else []
            )
    numbers = all(map(_is_probability, seen)) and not all(each.isdecimal() for each in seen)
    if wish == "auto" and len(classes) == 2 and not many and numbers:
        return _probability_format(column, classes, tried, many, name)
    first = next(tried())
    if wish != "auto" or first.source == GIVEN:  # at its word
        allowed = (each for each in tried() if each.source == GIVEN or _is_allowed(each, wish))
        naming = next(chain(allowed, _numbered_naming(classes, ["0"])))
        return _label_format(
            column, naming, "", 1, many, [f"though {name} holds {quoted_list(sorted(seen), 2)}"] if seen else []
        )
    raise DataError(
        f"The column '{column}' of {name} holds {quoted_list(sorted(seen - set(classes)), 3)}, and the run's classes are "
        f"{quoted_list(classes, 8)}. Give --codes CLASS=WORD,... to say what they are called there, or --shape."
    )


def _is_allowed(naming: ClassNaming, wish: str) -> bool:
    return wish == "auto" or naming.counts == (wish == "codes") or (wish == "names" and naming.source == OWN)


def _split_values(seen: set[str], known: set[str], many: bool) -> tuple[str, int] | None:
    """What lies between the words of each value, and how many it has where an image has one label; None: other words."""
    for separator in ("", *LABEL_SEPARATORS):
        rows = [value.split(separator) if separator else [value] for value in seen]
        if all(part in known for row in rows for part in row):
            sizes = {len(row) for row in rows} or {1}
            return (separator, 1) if many else (separator, max(sizes)) if len(sizes) == 1 else None
    return None


def _label_format(
    column: str, naming: ClassNaming, separator: str, most: int, many: bool, hints: list[str]
) -> SubmissionFormat:
    kind = "codes" if naming.counts else "names"
    words = [f"{'codes' if kind == 'codes' else 'class names'} in '{column}', {naming.source}"]
    words += [_list_names(naming.called)] if naming.source != OWN else []
    if most > 1:
        words.append(f"the {most} most probable classes of an image, as the sample has so many")
    if many:
        separator = separator or (" " if not any(" " in word for word in naming.called.values()) else SEPARATOR)
        words.append(f"several with {separator!r} between; where none is likely enough, the likeliest")
    return SubmissionFormat(kind, naming.called, [*words, *hints], column, separator, most)


def _probability_format(
    column: str, classes: Sequence[str], tried: Callable[[], Iterator[ClassNaming]], many: bool, name: str
) -> SubmissionFormat:
    if len(classes) != 2 or many:
        raise DataError(
            f"{name} has one column, '{column}', for a probability, which goes with two classes and one label an image; "
            f"the run has {len(classes)}{' and several an image' if many else ''}. Give --shape names or --shape codes."
        )
    chosen, source = _positive_class(column, classes, tried)
    return SubmissionFormat(
        "probabilities", {chosen: column}, [f"the probability of '{chosen}' in '{column}', {source}"]
    )


def _positive_class(column: str, classes: Sequence[str], tried: Callable[[], Iterator[ClassNaming]]) -> tuple[str, str]:
    """The one of two classes whose probability is meant, and how that was decided."""
    coded = [(each, naming.source) for naming in tried() for each, word in naming.called.items() if word == "1"]
    if given := [each for each, source in coded if source == GIVEN]:
        return given[0], f"whose code is 1 {GIVEN}"
    bare = re.sub(r"^(is|has|p|prob|probability|label|target|class)_", "", _normalize(column))
    if named := [each for each in classes if _normalize(each) == bare]:
        return named[0], "which the column is named after"
    low, high = sorted(classes, key=_normalize)
    if {_normalize(low), _normalize(high)} in TRUE_WORDS:
        return high, "by the classes' names"
    for each, other in ((low, high), (high, low)):
        if re.fullmatch(r"(not|no|non|without)_?" + re.escape(_normalize(each)), _normalize(other)):
            return each, f"as '{other}' is its opposite"
    if coded:
        return coded[0][0], f"whose code is 1 {coded[0][1]}"
    return max(classes), "the later in the alphabet, A GUESS: nothing here tells which; --codes CLASS=1,CLASS=0 does"


def _numbered_naming(classes: Sequence[str], words: Sequence[str]) -> Iterator[ClassNaming]:
    """Classes called by their place in the alphabet, where all words are whole numbers in that range."""
    if not words or not all(re.fullmatch(r"\d+", word) for word in words):
        return
    numbers = {int(word) for word in words}
    first = int(0 not in numbers and len(classes) in numbers)
    if max(numbers) < len(classes) + first:
        source = "by alphabetical order, A GUESS: nothing here tells it; --codes CLASS=0,CLASS=1,... does"
        yield ClassNaming({each: str(place) for place, each in enumerate(sorted(classes), first)}, source)


def _with_numbered(
    tried: Callable[[], Iterator[ClassNaming]], classes: Sequence[str], words: Sequence[str]
) -> Iterator[ClassNaming]:
    """The namings that are tried, and then a guess, where the caller says nothing."""
    for naming in tried():
        yield naming
        if naming.source == GIVEN:
            return
    yield from _numbered_naming(classes, words)


def _tokens(seen: set[str], many: bool) -> list[str]:
    """The words of the values, cut at the first separator that they have."""
    cut = next((each for each in LABEL_SEPARATORS if any(each in value for value in seen)), None)
    return [part for value in seen for part in (value.split(cut) if cut and many else [value])]


def _is_probability(value: str) -> bool:
    try:
        return 0 <= float(value) <= 1
    except ValueError:
        return False


def _normalize(word: str) -> str:
    return re.sub(r"[\W_]+", "_", word.strip().lower()).strip("_")


def _list_names(called: Mapping[str, str], limit: int = 6) -> str:
    listed = [f"{each} = {word}" for each, word in called.items()]
    return ", ".join(listed[:limit]) + (f", and {len(listed) - limit} more" if len(listed) > limit else "")
