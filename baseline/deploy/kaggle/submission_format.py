"""Detect the format that a sample submission asks for, and write predictions in it.

| the sample, beside its ids, has | and gets | format |
|---|---|---|
| one column, of class names or empty | the predicted class; several where the sample has several | `names` |
| one column, of whole numbers that are not class names | the same, as the classes' codes | `codes` |
| one column, of numbers such as 0.5, and the run has two classes | the probability of one of them | `probabilities` |
| one column per class, by name or code, possibly after a common prefix | probabilities | `probabilities` |
| the same, if requested | 1 for what is predicted, else 0 | `one-hot` |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pandas as pd

from baseline.data.labels import SEPARATOR, is_whole_number, order_classes, split_labels
from baseline.errors import DataError, quoted_list, unknown_name

__all__ = ["FORMATS", "GIVEN", "ClassNaming", "SubmissionFormat", "detect_format", "format_predictions"]


FORMATS = ("auto", "names", "codes", "probabilities", "one-hot")
"""Formats of a submission; `"auto"` follows the sample."""


LABEL_SEPARATORS = (" ", SEPARATOR, ",", "|")
"""Separators that samples use between several labels of an image, most common first."""


POSITIVE_PAIRS = ({"0", "1"}, {"false", "true"}, {"no", "yes"}, {"negative", "positive"}, {"absent", "present"})
"""Pairs of class names of which the alphabetically later one is the positive class."""


OWN, GIVEN = "by name", "as given by --codes"
"""Sources of a naming: the run's own class names, and the names that the caller gives."""


DIGITS = 9
"""Number of significant digits of a written probability."""


@dataclass(frozen=True)
class ClassNaming:
    """The name of each class in a sample, and where these names come from."""

    names: Mapping[str, str]
    """Maps each class to its name in the sample."""
    source: str

    @property
    def numeric(self) -> bool:
        """Whether the names are whole numbers."""
        return all(re.fullmatch(r"\d+", name) for name in self.names.values())


Namings = Callable[[], Iterator[ClassNaming]]
"""Returns the namings to try, in order."""


@dataclass(frozen=True)
class SubmissionFormat:
    """The format of a submission."""

    kind: str
    """One of `FORMATS`."""
    names: Mapping[str, str]
    """Maps each class to its name in the label column, or to the name of its own column."""
    notes: list[str] = field(default_factory=list)
    """What was detected, and how."""
    column: str = ""
    """Name of the label column."""
    separator: str = ""
    """Separator between the labels of an image that may have several."""
    labels_per_image: int = 1
    """Number of most probable classes to write for an image with a single label."""


def detect_format(
    columns: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    namings: Namings,
    *,
    codes: ClassNaming | None = None,
    multilabel: bool = False,
    requested: str = "auto",
    sample_name: str = "the sample",
) -> SubmissionFormat:
    """Return the format that a sample asks for.

    Args:
        columns: the sample's columns except for the ids, in order, with their values.
        classes: the run's classes, in its order.
        namings: other names that the classes may have; called only if the classes' own names do not match.
        codes: the naming that the caller gives; nothing else is tried then.
        multilabel: whether an image may have several labels.
        requested: one of `FORMATS`.

    Raises:
        DataError: if the columns or values do not match the classes.

    >>> detect_format({"label": ["ants", "ants"]}, ["ants", "bees"], lambda: iter(())).kind
    'names'
    >>> detect_format({"p_ants": ["0.5"], "p_bees": ["0.5"]}, ["ants", "bees"], lambda: iter(())).kind
    'probabilities'
    """
    if requested not in FORMATS:
        raise DataError(unknown_name("shape", requested, FORMATS))

    def candidates() -> Iterator[ClassNaming]:
        return iter([codes]) if codes else chain([ClassNaming({name: name for name in classes}, OWN)], namings())

    if not columns:
        raise DataError(f"{sample_name} has ids but no column to fill. Pass the competition's sample submission.")
    if len(columns) > 1:
        return class_column_format(columns, classes, candidates, requested, sample_name)
    return single_column_format(columns, classes, candidates, multilabel, requested, sample_name)


def format_predictions(table: pd.DataFrame, submission: SubmissionFormat) -> dict[str, list[str]]:
    """Return the text for each column of the sample except for the ids.

    Args:
        table: `predicted` and `p_CLASS` for each class, one row per row of the sample.
    """
    classes, names = list(submission.names), submission.names
    if submission.kind == "probabilities":
        return {column: [_format_number(p) for p in table[f"p_{name}"]] for name, column in names.items()}
    rows = row_classes(table, submission, classes)
    if submission.kind == "one-hot":
        return {column: [str(int(name in row)) for row in rows] for name, column in names.items()}
    return {submission.column: [submission.separator.join(names[name] for name in row) for row in rows]}


def row_classes(table: pd.DataFrame, submission: SubmissionFormat, classes: list[str]) -> list[list[str]]:
    """Return the classes to write for each row; the most probable one if none reaches the threshold."""
    probabilities = table[[f"p_{name}" for name in classes]].to_numpy()
    if submission.labels_per_image > 1:
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : submission.labels_per_image]
        return [[classes[index] for index in row] for row in order]
    if not submission.separator and submission.kind != "one-hot":
        return [[label] for label in table["predicted"]]
    best = [classes[index] for index in probabilities.argmax(1)]
    labels = (split_labels(text) if text not in submission.names else [text] for text in table["predicted"])
    return [row or [first] for row, first in zip(labels, best, strict=True)]


def _format_number(value: float) -> str:
    return f"{value:.{DIGITS}g}"


def class_column_format(
    columns: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    candidates: Namings,
    requested: str,
    sample_name: str,
) -> SubmissionFormat:
    """Return the format of a sample with one column per class."""
    if requested in ("names", "codes"):
        raise DataError(
            f"{sample_name} has {len(columns)} columns to fill; shape {requested} needs exactly one. Omit --shape."
        )
    for naming in namings_with_guess(candidates, classes, _without_prefix(columns)):
        if names := match_class_columns(list(columns), naming):
            break
    else:
        raise DataError(_column_mismatch(columns, classes, sample_name))
    kind = "one-hot" if requested == "one-hot" else "probabilities"
    notes = [f"{'0 or 1' if kind == 'one-hot' else 'probabilities'} in {len(columns)} columns, {naming.source}"]
    if naming.source != OWN:
        notes.append(_list_names(names))
    if requested == "auto" and {value for values in columns.values() for value in values} <= {"0", "1"}:
        notes.append(
            f"{sample_name} contains only 0 and 1, which does not show what is scored; --shape one-hot writes 0 and 1"
        )
    return SubmissionFormat(kind, names, notes)


def match_class_columns(columns: list[str], naming: ClassNaming) -> dict[str, str]:
    """Map each class to its column, if the columns are exactly the classes' names after a common prefix; else empty."""
    for start in range(len(common_prefix(columns)) + 1):
        for form in (str, _normalize):
            by_suffix = {form(column[start:]): column for column in columns}
            names = {label: form(name) for label, name in naming.names.items()}
            if len(columns) == len(by_suffix) == len(names) and set(by_suffix) == set(names.values()):
                return {label: by_suffix[name] for label, name in names.items()}
    return {}


def _without_prefix(columns: Mapping[str, Sequence[str]]) -> list[str]:
    start = len(re.sub(r"\d+$", "", common_prefix(list(columns))))
    return [column[start:] for column in columns]


def common_prefix(words: Sequence[str]) -> str:
    """Return the longest prefix that all words share.

    >>> common_prefix(["p_ants", "p_bees"])
    'p_'
    """
    low, high = min(words), max(words)
    return low[: next((index for index, letter in enumerate(low) if letter != high[index]), len(low))]


def _column_mismatch(columns: Mapping[str, Sequence[str]], classes: Sequence[str], sample_name: str) -> str:
    known = {_normalize(name) for name in classes}
    unknown = [column for column in columns if not any(_normalize(column).endswith(name) for name in known)]
    missing = [name for name in classes if not any(_normalize(column).endswith(_normalize(name)) for column in columns)]
    reasons = []
    if unknown:
        reasons.append(f"{quoted_list(unknown, 3)} {'are not classes' if len(unknown) > 1 else 'is not a class'}")
    if missing:
        reasons.append(f"{quoted_list(missing, 3)} {'have' if len(missing) > 1 else 'has'} no column")
    reasons = reasons or [f"{len(columns)} columns do not match {len(classes)} classes one to one"]
    return (
        f"In {sample_name}, {' and '.join(reasons)}. The run's classes: {quoted_list(classes, 8)}. "
        "Pass --codes CLASS=COLUMN,..."
    )


def single_column_format(
    columns: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    candidates: Namings,
    multilabel: bool,
    requested: str,
    sample_name: str,
) -> SubmissionFormat:
    """Return the format of a sample with one column to fill."""
    [(column, values)] = columns.items()
    examples = {value.strip() for value in values} - {""}
    if requested == "one-hot":
        raise DataError(f"{sample_name} has one column to fill, '{column}'; shape one-hot needs one for each class.")
    if requested == "probabilities":
        return probability_format(column, classes, candidates, multilabel, sample_name)
    for naming in namings_with_guess(candidates, classes, _tokens(examples, multilabel)):
        split = split_values(examples, set(naming.names.values()), multilabel) if _allows(naming, requested) else None
        if split is not None:
            hint = requested == "auto" and not multilabel and len(classes) == 2 and examples and examples <= {"0", "1"}
            return label_format(
                column, naming, *split, multilabel, ["--shape probabilities writes probabilities"] if hint else []
            )
    fractions = all(map(_is_probability, examples)) and not all(value.isdecimal() for value in examples)
    if requested == "auto" and len(classes) == 2 and not multilabel and fractions:
        return probability_format(column, classes, candidates, multilabel, sample_name)
    first = next(candidates())
    if requested != "auto" or first.source == GIVEN:  # explicit requests override the sample's values
        allowed = (naming for naming in candidates() if naming.source == GIVEN or _allows(naming, requested))
        naming = next(chain(allowed, numbered_naming(classes, ["0"])))
        hints = [f"although {sample_name} contains {quoted_list(order_classes(examples), 2)}"] if examples else []
        return label_format(column, naming, "", 1, multilabel, hints)
    unknown = quoted_list(order_classes(examples - set(classes)), 3)
    raise DataError(
        f"Column '{column}' of {sample_name} contains {unknown}, but the run's classes "
        f"are {quoted_list(classes, 8)}. Pass --codes CLASS=NAME,... with their names there, or --shape."
    )


def _allows(naming: ClassNaming, requested: str) -> bool:
    """Whether a naming can be used for the requested format."""
    if requested == "auto" or (requested == "names" and naming.source == OWN):
        return True
    return naming.numeric == (requested == "codes")


def split_values(values: set[str], names: set[str], multilabel: bool) -> tuple[str, int] | None:
    """Return the separator between the names in each value, and how many there are for single-label images.

    None if the values consist of anything else than the names.
    """
    for separator in ("", *LABEL_SEPARATORS):
        rows = [value.split(separator) if separator else [value] for value in values]
        if all(part in names for row in rows for part in row):
            counts = {len(row) for row in rows} or {1}
            return (separator, 1) if multilabel else (separator, max(counts)) if len(counts) == 1 else None
    return None


def label_format(
    column: str, naming: ClassNaming, separator: str, labels_per_image: int, multilabel: bool, hints: list[str]
) -> SubmissionFormat:
    """Return the format of a column of labels."""
    kind = "codes" if naming.numeric else "names"
    notes = [f"{'codes' if kind == 'codes' else 'class names'} in '{column}', {naming.source}"]
    notes += [_list_names(naming.names)] if naming.source != OWN else []
    if labels_per_image > 1:
        notes.append(f"the {labels_per_image} most probable classes of each image, as in the sample")
    if multilabel:
        separator = separator or (" " if not any(" " in name for name in naming.names.values()) else SEPARATOR)
        notes.append(
            f"several labels separated by {separator!r}; the most probable one where none reaches the threshold"
        )
    return SubmissionFormat(kind, naming.names, [*notes, *hints], column, separator, labels_per_image)


def probability_format(
    column: str, classes: Sequence[str], candidates: Namings, multilabel: bool, sample_name: str
) -> SubmissionFormat:
    """Return the format of a single column for the probability of one of two classes."""
    if len(classes) != 2 or multilabel:
        plural = "" if len(classes) == 1 else "es"
        raise DataError(
            f"{sample_name} has a single column, '{column}', and a probability in it needs two classes and one label "
            f"per image; the run has {len(classes)} class{plural}"
            f"{' and several labels per image' if multilabel else ''}. "
            "Pass --shape names or --shape codes."
        )
    positive, reason = positive_class(column, classes, candidates)
    return SubmissionFormat(
        "probabilities", {positive: column}, [f"the probability of '{positive}' in '{column}', {reason}"]
    )


def positive_class(column: str, classes: Sequence[str], candidates: Namings) -> tuple[str, str]:
    """Return which of two classes the probability is for, and how that was decided."""
    coded = [(label, naming.source) for naming in candidates() for label, name in naming.names.items() if name == "1"]
    if explicit := [label for label, source in coded if source == GIVEN]:
        return explicit[0], f"whose code is 1 {GIVEN}"
    bare = re.sub(r"^(is|has|p|prob|probability|label|target|class)_", "", _normalize(column))
    if matches := [label for label in classes if _normalize(label) == bare]:
        return matches[0], "which the column is named after"
    low, high = sorted(classes, key=_normalize)
    if {_normalize(low), _normalize(high)} in POSITIVE_PAIRS:
        return high, "by the classes' names"
    for label, other in ((low, high), (high, low)):
        if re.fullmatch(r"(not|no|non|without)_?" + re.escape(_normalize(label)), _normalize(other)):
            return label, f"as '{other}' is its opposite"
    if coded:
        return coded[0][0], f"whose code is 1 {coded[0][1]}"
    guess = "the later one in the alphabet, A GUESS: nothing here decides; use --codes CLASS=1,CLASS=0"
    return order_classes(classes)[-1], guess


def numbered_naming(classes: Sequence[str], names: Sequence[str]) -> Iterator[ClassNaming]:
    """Yield a naming by alphabetical position, if all names are whole numbers in that range."""
    if not names or not all(map(is_whole_number, names)):
        return
    numbers = {int(name) for name in names}
    first = int(0 not in numbers and len(classes) in numbers)
    if max(numbers) < len(classes) + first:
        source = "by alphabetical order, A GUESS: nothing here decides; use --codes CLASS=0,CLASS=1,..."
        yield ClassNaming({label: str(number) for number, label in enumerate(order_classes(classes), first)}, source)


def namings_with_guess(candidates: Namings, classes: Sequence[str], names: Sequence[str]) -> Iterator[ClassNaming]:
    """Yield the candidates, and then a guess by alphabetical position unless the caller gives the names."""
    for naming in candidates():
        yield naming
        if naming.source == GIVEN:
            return
    yield from numbered_naming(classes, names)


def _tokens(values: set[str], multilabel: bool) -> list[str]:
    """Return the words of the values, split at the first separator that occurs."""
    separator = next((mark for mark in LABEL_SEPARATORS if any(mark in value for value in values)), None)
    return [part for value in values for part in (value.split(separator) if separator and multilabel else [value])]


def _is_probability(value: str) -> bool:
    try:
        return 0 <= float(value) <= 1
    except ValueError:
        return False


def _normalize(word: str) -> str:
    return re.sub(r"[\W_]+", "_", word.strip().lower()).strip("_")


def _list_names(names: Mapping[str, str], limit: int = 6) -> str:
    pairs = [f"{label} = {name}" for label, name in names.items()]
    return ", ".join(pairs[:limit]) + (f", and {len(pairs) - limit} more" if len(pairs) > limit else "")
