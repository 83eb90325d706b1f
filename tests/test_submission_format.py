"""Detecting the format of a sample submission, and writing predictions in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from baseline.deploy.kaggle.submission_format import (
    GIVEN,
    ClassNaming,
    SubmissionFormat,
    detect_format,
    format_predictions,
)
from baseline.errors import DataError

CLASSES = ["ants", "bees"]
TABLE = pd.DataFrame({"predicted": ["ants", "bees"], "p_ants": [0.9, 0.2], "p_bees": [0.1, 0.8]})
MULTILABEL = pd.DataFrame({"predicted": ["ants;bees", ""], "p_ants": [0.9, 0.2], "p_bees": [0.7, 0.3]})
NUMBERED = pd.DataFrame({"predicted": ["0", "1"], "p_0": [0.9, 0.2], "p_1": [0.1, 0.8]})


def detect(
    columns: dict[str, list[str]], classes: list[str] = CLASSES, *namings: ClassNaming, **options: Any
) -> SubmissionFormat:
    def iterate() -> Iterator[ClassNaming]:
        yield from namings

    return detect_format(columns, classes, iterate, **options)


@pytest.mark.parametrize(
    ("columns", "requested", "kind", "written"),
    [
        ({"label": ["ants"]}, "auto", "names", {"label": ["ants", "bees"]}),
        ({"label": [""]}, "auto", "names", {"label": ["ants", "bees"]}),
        ({"label": ["foo"]}, "names", "names", {"label": ["ants", "bees"]}),
        ({"label": ["0"]}, "auto", "codes", {"label": ["0", "1"]}),
        ({"label": ["2", "1"]}, "auto", "codes", {"label": ["1", "2"]}),
        ({"label": ["foo"]}, "codes", "codes", {"label": ["0", "1"]}),
        ({"label": ["0.5"]}, "auto", "probabilities", {"label": ["0.1", "0.8"]}),
        ({"label": ["0"]}, "probabilities", "probabilities", {"label": ["0.1", "0.8"]}),
        ({"ants": ["0.5"]}, "auto", "probabilities", {"ants": ["0.9", "0.2"]}),
        ({"has_ants": ["0.5"]}, "auto", "probabilities", {"has_ants": ["0.9", "0.2"]}),
        ({"bees": ["0"], "ants": ["1"]}, "auto", "probabilities", {"bees": ["0.1", "0.8"], "ants": ["0.9", "0.2"]}),
        ({"p_ants": ["1"], "p_bees": ["0"]}, "one-hot", "one-hot", {"p_ants": ["1", "0"], "p_bees": ["0", "1"]}),
        ({"c1": ["1"], "c0": ["0"]}, "auto", "probabilities", {"c0": ["0.9", "0.2"], "c1": ["0.1", "0.8"]}),
        ({"Ants": ["1"], "BEES": ["0"]}, "auto", "probabilities", {"Ants": ["0.9", "0.2"], "BEES": ["0.1", "0.8"]}),
        ({"label": ["bees ants"]}, "auto", "names", {"label": ["ants bees", "bees ants"]}),
    ],
)
def test_the_sample_decides_the_format(columns: Any, requested: str, kind: str, written: Any) -> None:
    submission = detect(columns, requested=requested)
    assert submission.kind == kind and format_predictions(TABLE, submission) == written


@pytest.mark.parametrize(
    ("columns", "kind", "written"),
    [
        ({"label": ["0"]}, "codes", {"label": ["0", "1"]}),
        ({"has_cactus": ["0.5"]}, "probabilities", {"has_cactus": ["0.1", "0.8"]}),
        ({"c0": ["0.1"], "c1": ["0.1"]}, "probabilities", {"c0": ["0.9", "0.2"], "c1": ["0.1", "0.8"]}),
    ],
)
def test_numeric_class_names_need_no_guess(columns: Any, kind: str, written: Any) -> None:
    submission = detect(columns, ["0", "1"])
    assert submission.kind == kind and format_predictions(NUMBERED, submission) == written
    assert "GUESS" not in " ".join(submission.notes)


@pytest.mark.parametrize(
    ("values", "separator", "written"),
    [
        (["bees ants", "ants"], " ", ["ants bees", "bees"]),
        (["bees;ants", ""], ";", ["ants;bees", "bees"]),
        (["bees"], " ", ["ants bees", "bees"]),
        (["0 1", "1"], " ", ["0 1", "1"]),
        (["1|0"], "|", ["0|1", "1"]),
    ],
)
def test_several_labels_of_an_image_are_separated_as_in_the_sample(values: Any, separator: str, written: Any) -> None:
    submission = detect({"tags": values}, multilabel=True)
    assert submission.separator == separator and format_predictions(MULTILABEL, submission) == {"tags": written}


def test_several_labels_of_an_image_are_written_one_hot() -> None:
    submission = detect({"bees": ["0"], "ants": ["1"]}, multilabel=True, requested="one-hot")
    assert format_predictions(MULTILABEL, submission) == {"ants": ["1", "0"], "bees": ["1", "1"]}


def test_codes_come_from_other_namings_and_a_guess_is_marked() -> None:
    reversed_codes = ClassNaming({"ants": "1", "bees": "0"}, "by map.json")
    known = detect({"label": ["0"]}, CLASSES, reversed_codes)
    assert format_predictions(TABLE, known) == {"label": ["1", "0"]} and "by map.json" in known.notes[0]
    assert "ants = 1, bees = 0" in known.notes
    assert "A GUESS" in detect({"label": ["0"]}).notes[0]
    columns = detect({"y_0": ["0.5"], "y_1": ["0.5"]}, CLASSES, reversed_codes)
    assert format_predictions(TABLE, columns) == {"y_0": ["0.1", "0.8"], "y_1": ["0.9", "0.2"]}
    single = detect({"label": ["0.5"]}, CLASSES, reversed_codes)
    assert format_predictions(TABLE, single) == {"label": ["0.9", "0.2"]}


def test_codes_of_the_caller_override_the_sample() -> None:
    reversed_codes, other_codes = (
        ClassNaming(names, GIVEN) for names in ({"ants": "1", "bees": "0"}, {"ants": "7", "bees": "3"})
    )
    assert format_predictions(TABLE, detect({"bees": ["0.5"]}, codes=reversed_codes)) == {"bees": ["0.9", "0.2"]}
    assert format_predictions(TABLE, detect({"label": ["0"]}, codes=other_codes)) == {"label": ["7", "3"]}
    assert format_predictions(TABLE, detect({"label": ["ants"]}, codes=other_codes)) == {"label": ["7", "3"]}
    with pytest.raises(DataError, match="are not classes"):
        detect({"y_0": ["1"], "y_1": ["0"]}, codes=other_codes)


def test_the_opposite_of_a_class_is_not_the_positive_class() -> None:
    submission = detect({"target": ["0.5"]}, ["alpaca", "not_alpaca"])
    assert submission.names == {"alpaca": "target"} and "A GUESS" not in submission.notes[0]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {}, "no column to fill"),
        ({"label": ["wasp"]}, {}, "contains 'wasp', but the run's classes are 'ants', 'bees'"),
        ({"label": ["7"]}, {}, "contains '7'"),
        ({"label": ["ants bees", "ants"]}, {}, "contains 'ants bees'"),
        ({"ants": ["1"], "wasps": ["0"]}, {}, "'wasps' is not a class and 'bees' has no column"),
        ({"ants": ["1"], "bees": ["0"], "usage": [""]}, {}, "'usage' is not a class"),
        ({"ants": ["1"], "bees": ["0"]}, {"requested": "names"}, "shape names needs exactly one"),
        ({"label": ["1"]}, {"requested": "one-hot"}, "needs one for each class"),
        ({"label": ["0.5"]}, {"multilabel": True}, "contains '0.5'"),
        ({"label": ["0.5"]}, {"multilabel": True, "requested": "probabilities"}, "one label per image"),
        ({"label": ["ants"]}, {"requested": "name"}, "Did you mean 'names'"),
    ],
)
def test_a_sample_of_other_classes_is_refused(columns: Any, options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        detect(columns, **options)


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ({"label": ["0", "1"]}, "--shape probabilities writes probabilities"),
        ({"ants": ["1"], "bees": ["0"]}, "contains only 0 and 1, which does not show what is scored"),
    ],
)
def test_an_ambiguous_sample_of_0_and_1_gets_a_hint_and_others_do_not(columns: Any, hint: str) -> None:
    def has_hint(*arguments: Any, **options: Any) -> bool:
        return hint in " ".join(detect(*arguments, **options).notes)

    assert has_hint(columns)
    assert not has_hint(columns, requested="codes" if len(columns) == 1 else "probabilities")
    assert not has_hint({name: ["0.5"] for name in columns})
    if "label" in columns:
        assert not has_hint(columns, ["0", "1"], multilabel=True) and not has_hint(columns, ["ants", "bees", "wasps"])
        assert not has_hint({"label": [""]}) and not has_hint({"label": ["ants"]})


def test_codes_start_at_1_only_if_the_sample_shows_it() -> None:
    assert format_predictions(TABLE, detect({"label": ["1"]})) == {"label": ["0", "1"]}
    assert format_predictions(TABLE, detect({"label": ["1", "2"]})) == {"label": ["1", "2"]}
    with pytest.raises(DataError, match="contains '0', '2'"):
        detect({"label": ["0", "2"]})


def test_a_long_list_of_names_is_abbreviated() -> None:
    classes = [f"class {number}" for number in range(8)]
    notes = detect({"label": ["0"]}, classes).notes
    assert "class 5 = 5, and 2 more" in notes[1] and "more" not in detect({"label": ["0"]}, classes[:6]).notes[1]
    one_hot = {"ants": ["1"], "bees": ["0"]}
    assert detect(one_hot, requested="one-hot").notes[0].startswith("0 or 1 in 2 columns")
    assert detect(one_hot, requested="probabilities").notes[0].startswith("probabilities in 2 columns")
