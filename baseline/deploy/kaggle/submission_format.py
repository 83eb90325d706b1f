"""What a sample submission asks for, and predictions in that shape. Knows columns and values; knows no files.

| the sample, beside its ids, has | and gets | shape |
|---|---|---|
| one column, of class names or empty | the predicted class; several where the sample has several | `names` |
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

from baseline.data.labels import SEPARATOR, classes_of
from baseline.errors import DataError, names, unknown

__all__ = ["GIVEN", "SHAPES", "Naming", "Shape", "asked_shape", "in_shape"]


SHAPES = ("auto", "names", "codes", "probabilities", "one-hot")


SEPARATORS = (" ", SEPARATOR, ",", "|")
"""That samples put between several labels of a photo, the most usual first."""


YES = ({"0", "1"}, {"false", "true"}, {"no", "yes"}, {"negative", "positive"}, {"absent", "present"})
"""Pairs of classes of which the one later in the alphabet is the one whose probability is meant."""


OWN, GIVEN = "by name", "as --codes says"
"""The sources of what the run itself calls its classes, and of what the caller says they are called."""


DIGITS = 9
"""Of a written probability."""


@dataclass(frozen=True)
class Naming:
    """What each class is called in a sample, and who says so."""

    called: Mapping[str, str]
    source: str

    @property
    def counts(self) -> bool:
        """Whether classes are called by whole numbers."""
        return all(re.fullmatch(r"\d+", word) for word in self.called.values())


@dataclass(frozen=True)
class Shape:
    """What is to be written."""

    kind: str
    """One of `SHAPES`."""
    called: Mapping[str, str]
    """What each class is called: its word in a column of labels, or its column."""
    words: list[str] = field(default_factory=list)
    """What was understood, and how."""
    column: str = ""
    """That of labels."""
    separator: str = ""
    """Between the labels of a photo that may have several."""
    most: int = 1
    """Labels a photo: its most probable classes, where it has one."""


def asked_shape(
    columns: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    namings: Callable[[], Iterator[Naming]],
    *,
    given: Naming | None = None,
    many: bool = False,
    wish: str = "auto",
    name: str = "the sample",
) -> Shape:
    """The shape that a sample asks for.

    Args:
        columns: its columns but the ids, in order, and their values.
        classes: of the run, in its order.
        namings: what else than by their names classes may be called; asked only if names do not fit.
        given: what they are called, where the caller says so; nothing else is tried then.
        many: whether a photo may have several labels.
        wish: one of `SHAPES`.

    Raises:
        DataError: if its columns or values are not those of the classes.

    >>> asked_shape({"label": ["ants", "ants"]}, ["ants", "bees"], lambda: iter(())).kind
    'names'
    >>> asked_shape({"p_ants": ["0.5"], "p_bees": ["0.5"]}, ["ants", "bees"], lambda: iter(())).kind
    'probabilities'
    """
    if wish not in SHAPES:
        raise DataError(unknown("shape", wish, SHAPES))

    def tried() -> Iterator[Naming]:
        return iter([given]) if given else chain([Naming({each: each for each in classes}, OWN)], namings())

    if not columns:
        raise DataError(f"{name} has ids and no column to fill. Give the sample of the competition.")
    if len(columns) > 1:
        return _class_columns(columns, classes, tried, wish, name)
    return _one_column(columns, classes, tried, many, wish, name)


def in_shape(table: pd.DataFrame, shape: Shape) -> dict[str, list[str]]:
    """What goes into each column of the sample but the ids, as text.

    Args:
        table: `predicted` and `p_CLASS` for each class, a row for each of the sample's.
    """
    classes = list(shape.called)
    if shape.kind == "probabilities":
        return {column: [_number(p) for p in table[f"p_{each}"]] for each, column in shape.called.items()}
    told = _told(table, shape, classes)
    if shape.kind == "one-hot":
        return {column: [str(int(each in row)) for row in told] for each, column in shape.called.items()}
    return {shape.column: [shape.separator.join(shape.called[each] for each in row) for row in told]}


def _told(table: pd.DataFrame, shape: Shape, classes: list[str]) -> list[list[str]]:
    """The classes that each row is given; the most probable one where none reaches the threshold."""
    probable = table[[f"p_{each}" for each in classes]].to_numpy()
    if shape.most > 1:
        order = np.argsort(-probable, axis=1, kind="stable")[:, : shape.most]
        return [[classes[place] for place in row] for row in order]
    if not shape.separator and shape.kind != "one-hot":
        return [[label] for label in table["predicted"]]
    best = [classes[place] for place in probable.argmax(1)]
    several = (classes_of(text) if text not in shape.called else [text] for text in table["predicted"])
    return [row or [first] for row, first in zip(several, best, strict=True)]


def _number(value: float) -> str:
    return f"{value:.{DIGITS}g}"


def _class_columns(
    columns: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    tried: Callable[[], Iterator[Naming]],
    wish: str,
    name: str,
) -> Shape:
    if wish in ("names", "codes"):
        raise DataError(f"{name} has {len(columns)} columns to fill; shape {wish} needs one. Leave --shape out.")
    for naming in _or_counted(tried, classes, _without_prefix(columns)):
        if called := _columns_called(list(columns), naming):
            break
    else:
        raise DataError(_columns_differ(columns, classes, name))
    kind = "one-hot" if wish == "one-hot" else "probabilities"
    words = [f"{'0 or 1' if kind == 'one-hot' else 'probabilities'} in {len(columns)} columns, {naming.source}"]
    if naming.source != OWN:
        words.append(_words(called))
    if wish == "auto" and {value for values in columns.values() for value in values} <= {"0", "1"}:
        words.append(f"{name} holds 0 and 1, which says nothing of what is judged; --shape one-hot writes these")
    return Shape(kind, called, words)


def _columns_called(columns: list[str], naming: Naming) -> dict[str, str]:
    """For each class its column, where all columns have the classes' words behind a beginning that they share."""
    for start in range(len(_beginning(columns)) + 1):
        for form in (str, _plain):
            behind = {form(column[start:]): column for column in columns}
            words = {each: form(word) for each, word in naming.called.items()}
            if len(columns) == len(behind) == len(words) and set(behind) == set(words.values()):
                return {each: behind[word] for each, word in words.items()}
    return {}


def _without_prefix(columns: Mapping[str, Sequence[str]]) -> list[str]:
    start = len(re.sub(r"\d+$", "", _beginning(list(columns))))
    return [column[start:] for column in columns]


def _beginning(words: Sequence[str]) -> str:
    """What all words begin with."""
    low, high = min(words), max(words)
    return low[: next((place for place, letter in enumerate(low) if letter != high[place]), len(low))]


def _columns_differ(columns: Mapping[str, Sequence[str]], classes: Sequence[str], name: str) -> str:
    known = {_plain(each) for each in classes}
    strange = [each for each in columns if not any(_plain(each).endswith(word) for word in known)]
    lacking = [each for each in classes if not any(_plain(column).endswith(_plain(each)) for column in columns)]
    found = [f"{names(strange, 3)} {'are' if len(strange) > 1 else 'is'} no class of the run"] if strange else []
    found += [f"{names(lacking, 3)} of the run {'have' if len(lacking) > 1 else 'has'} no column"] if lacking else []
    found = found or [f"{len(columns)} columns do not fit {len(classes)} classes one to one"]
    return f"In {name} {', and '.join(found)}. Its classes: {names(classes, 8)}. Give --codes CLASS=COLUMN,..."


def _one_column(
    columns: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    tried: Callable[[], Iterator[Naming]],
    many: bool,
    wish: str,
    name: str,
) -> Shape:
    [(column, values)] = columns.items()
    seen = {value.strip() for value in values} - {""}
    if wish == "one-hot":
        raise DataError(f"{name} has one column to fill, '{column}'; shape one-hot needs one for each class.")
    if wish == "probabilities":
        return _single_probability(column, classes, tried, many, name)
    for naming in _or_counted(tried, classes, _tokens(seen, many)):
        cut = _cut(seen, set(naming.called.values()), many) if _allowed(naming, wish) else None
        if cut is not None:
            hint = wish == "auto" and not many and len(classes) == 2 and bool(seen) and seen <= {"0", "1"}
            return _labels(column, naming, *cut, many, ["--shape probabilities writes probabilities"] if hint else [])
    numbers = all(map(_is_share, seen)) and not all(each.isdecimal() for each in seen)
    if wish == "auto" and len(classes) == 2 and not many and numbers:
        return _single_probability(column, classes, tried, many, name)
    first = next(tried())
    if wish != "auto" or first.source == GIVEN:  # at its word
        allowed = (each for each in tried() if each.source == GIVEN or _allowed(each, wish))
        naming = next(chain(allowed, _counted(classes, ["0"])))
        return _labels(column, naming, "", 1, many, [f"though {name} holds {names(sorted(seen), 2)}"] if seen else [])
    raise DataError(
        f"The column '{column}' of {name} holds {names(sorted(seen - set(classes)), 3)}, and the run's classes are "
        f"{names(classes, 8)}. Give --codes CLASS=WORD,... to say what they are called there, or --shape."
    )


def _allowed(naming: Naming, wish: str) -> bool:
    return wish == "auto" or naming.counts == (wish == "codes") or (wish == "names" and naming.source == OWN)


def _cut(seen: set[str], known: set[str], many: bool) -> tuple[str, int] | None:
    """What lies between the words of each value, and how many it has where a photo has one label; None: other words."""
    for separator in ("", *SEPARATORS):
        rows = [value.split(separator) if separator else [value] for value in seen]
        if all(part in known for row in rows for part in row):
            sizes = {len(row) for row in rows} or {1}
            return (separator, 1) if many else (separator, max(sizes)) if len(sizes) == 1 else None
    return None


def _labels(column: str, naming: Naming, separator: str, most: int, many: bool, hints: list[str]) -> Shape:
    kind = "codes" if naming.counts else "names"
    words = [f"{'codes' if kind == 'codes' else 'class names'} in '{column}', {naming.source}"]
    words += [_words(naming.called)] if naming.source != OWN else []
    if most > 1:
        words.append(f"the {most} most probable classes of a photo, as the sample has so many")
    if many:
        separator = separator or (" " if not any(" " in word for word in naming.called.values()) else SEPARATOR)
        words.append(f"several with {separator!r} between; where none is likely enough, the likeliest")
    return Shape(kind, naming.called, [*words, *hints], column, separator, most)


def _single_probability(
    column: str, classes: Sequence[str], tried: Callable[[], Iterator[Naming]], many: bool, name: str
) -> Shape:
    if len(classes) != 2 or many:
        raise DataError(
            f"{name} has one column, '{column}', for a probability, which goes with two classes and one label a photo; "
            f"the run has {len(classes)}{' and several a photo' if many else ''}. Give --shape names or --shape codes."
        )
    chosen, source = _positive(column, classes, tried)
    return Shape("probabilities", {chosen: column}, [f"the probability of '{chosen}' in '{column}', {source}"])


def _positive(column: str, classes: Sequence[str], tried: Callable[[], Iterator[Naming]]) -> tuple[str, str]:
    """The one of two classes whose probability is meant, and how that was decided."""
    coded = [(each, naming.source) for naming in tried() for each, word in naming.called.items() if word == "1"]
    if given := [each for each, source in coded if source == GIVEN]:
        return given[0], f"whose code is 1 {GIVEN}"
    bare = re.sub(r"^(is|has|p|prob|probability|label|target|class)_", "", _plain(column))
    if named := [each for each in classes if _plain(each) == bare]:
        return named[0], "which the column is named after"
    low, high = sorted(classes, key=_plain)
    if {_plain(low), _plain(high)} in YES:
        return high, "by the classes' names"
    for each, other in ((low, high), (high, low)):
        if re.fullmatch(r"(not|no|non|without)_?" + re.escape(_plain(each)), _plain(other)):
            return each, f"as '{other}' is its opposite"
    if coded:
        return coded[0][0], f"whose code is 1 {coded[0][1]}"
    return max(classes), "the later in the alphabet, A GUESS: nothing here tells which; --codes CLASS=1,CLASS=0 does"


def _counted(classes: Sequence[str], words: Sequence[str]) -> Iterator[Naming]:
    """Classes called by their place in the alphabet, where all words are whole numbers in that range."""
    if not words or not all(re.fullmatch(r"\d+", word) for word in words):
        return
    numbers = {int(word) for word in words}
    first = int(0 not in numbers and len(classes) in numbers)
    if max(numbers) < len(classes) + first:
        source = "by alphabetical order, A GUESS: nothing here tells it; --codes CLASS=0,CLASS=1,... does"
        yield Naming({each: str(place) for place, each in enumerate(sorted(classes), first)}, source)


def _or_counted(
    tried: Callable[[], Iterator[Naming]], classes: Sequence[str], words: Sequence[str]
) -> Iterator[Naming]:
    """The namings that are tried, and then a guess, where the caller says nothing."""
    for naming in tried():
        yield naming
        if naming.source == GIVEN:
            return
    yield from _counted(classes, words)


def _tokens(seen: set[str], many: bool) -> list[str]:
    """The words of the values, cut at the first separator that they have."""
    cut = next((each for each in SEPARATORS if any(each in value for value in seen)), None)
    return [part for value in seen for part in (value.split(cut) if cut and many else [value])]


def _is_share(value: str) -> bool:
    try:
        return 0 <= float(value) <= 1
    except ValueError:
        return False


def _plain(word: str) -> str:
    return re.sub(r"[\W_]+", "_", word.strip().lower()).strip("_")


def _words(called: Mapping[str, str], limit: int = 6) -> str:
    listed = [f"{each} = {word}" for each, word in called.items()]
    return ", ".join(listed[:limit]) + (f", and {len(listed) - limit} more" if len(listed) > limit else "")
