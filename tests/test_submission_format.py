"""What samples ask for, and predictions in that shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from baseline import DataError
from baseline.deploy.kaggle.submission_format import (
    GIVEN,
    ClassNaming,
    SubmissionFormat,
    detect_format,
    format_predictions,
)

CLASSES = ["ants", "bees"]
TABLE = pd.DataFrame({"predicted": ["ants", "bees"], "p_ants": [0.9, 0.2], "p_bees": [0.1, 0.8]})
FLAGS = pd.DataFrame({"predicted": ["ants;bees", ""], "p_ants": [0.9, 0.2], "p_bees": [0.7, 0.3]})
NUMBERED = pd.DataFrame({"predicted": ["0", "1"], "p_0": [0.9, 0.2], "p_1": [0.1, 0.8]})


def asked(
    columns: dict[str, list[str]], classes: list[str] = CLASSES, *namings: ClassNaming, **more: Any
) -> SubmissionFormat:
    def each() -> Iterator[ClassNaming]:
        yield from namings

    return detect_format(columns, classes, each, **more)


@pytest.mark.parametrize(
    ("columns", "wish", "kind", "written"),
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
def test_the_sample_decides_the_shape(columns: Any, wish: str, kind: str, written: Any) -> None:
    shape = asked(columns, wish=wish)
    assert shape.kind == kind and format_predictions(TABLE, shape) == written


@pytest.mark.parametrize(
    ("columns", "kind", "written"),
    [
        ({"label": ["0"]}, "codes", {"label": ["0", "1"]}),
        ({"has_cactus": ["0.5"]}, "probabilities", {"has_cactus": ["0.1", "0.8"]}),
        ({"c0": ["0.1"], "c1": ["0.1"]}, "probabilities", {"c0": ["0.9", "0.2"], "c1": ["0.1", "0.8"]}),
    ],
)
def test_classes_that_are_codes_themselves_need_no_guess(columns: Any, kind: str, written: Any) -> None:
    shape = asked(columns, ["0", "1"])
    assert shape.kind == kind and format_predictions(NUMBERED, shape) == written
    assert "GUESS" not in " ".join(shape.words)


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
def test_several_labels_a_image_go_as_the_sample_has_them(values: Any, separator: str, written: Any) -> None:
    shape = asked({"tags": values}, many=True)
    assert shape.separator == separator and format_predictions(FLAGS, shape) == {"tags": written}


def test_flags_of_several_labels_stand_in_their_columns() -> None:
    shape = asked({"bees": ["0"], "ants": ["1"]}, many=True, wish="one-hot")
    assert format_predictions(FLAGS, shape) == {"ants": ["1", "0"], "bees": ["1", "1"]}


def test_codes_come_from_who_knows_them_and_a_guess_is_called_one() -> None:
    turned = ClassNaming({"ants": "1", "bees": "0"}, "by map.json")
    known = asked({"label": ["0"]}, CLASSES, turned)
    assert format_predictions(TABLE, known) == {"label": ["1", "0"]} and "by map.json" in known.words[0]
    assert "ants = 1, bees = 0" in known.words
    assert "A GUESS" in asked({"label": ["0"]}).words[0]
    columns = asked({"y_0": ["0.5"], "y_1": ["0.5"]}, CLASSES, turned)
    assert format_predictions(TABLE, columns) == {"y_0": ["0.1", "0.8"], "y_1": ["0.9", "0.2"]}
    single = asked({"label": ["0.5"]}, CLASSES, turned)
    assert format_predictions(TABLE, single) == {"label": ["0.9", "0.2"]}


def test_what_the_caller_says_is_taken_at_its_word() -> None:
    turned, others = (ClassNaming(called, GIVEN) for called in ({"ants": "1", "bees": "0"}, {"ants": "7", "bees": "3"}))
    assert format_predictions(TABLE, asked({"bees": ["0.5"]}, given=turned)) == {"bees": ["0.9", "0.2"]}
    assert format_predictions(TABLE, asked({"label": ["0"]}, given=others)) == {"label": ["7", "3"]}
    assert format_predictions(TABLE, asked({"label": ["ants"]}, given=others)) == {"label": ["7", "3"]}
    with pytest.raises(DataError, match="no class of the run"):
        asked({"y_0": ["1"], "y_1": ["0"]}, given=others)


def test_the_opposite_of_a_class_is_not_what_is_meant() -> None:
    shape = asked({"target": ["0.5"]}, ["alpaca", "not_alpaca"])
    assert shape.called == {"alpaca": "target"} and "A GUESS" not in shape.words[0]


@pytest.mark.parametrize(
    ("columns", "more", "words"),
    [
        ({}, {}, "no column to fill"),
        ({"label": ["wasp"]}, {}, "holds 'wasp', and the run's classes are 'ants', 'bees'"),
        ({"label": ["7"]}, {}, "holds '7'"),
        ({"label": ["ants bees", "ants"]}, {}, "holds 'ants bees'"),
        ({"ants": ["1"], "wasps": ["0"]}, {}, "'wasps' is no class of the run, and 'bees' of the run has no column"),
        ({"ants": ["1"], "bees": ["0"], "usage": [""]}, {}, "'usage' is no class of the run"),
        ({"ants": ["1"], "bees": ["0"]}, {"wish": "names"}, "shape names needs one"),
        ({"label": ["1"]}, {"wish": "one-hot"}, "needs one for each class"),
        ({"label": ["0.5"]}, {"many": True}, "holds '0.5'"),
        ({"label": ["0.5"]}, {"many": True, "wish": "probabilities"}, "one label an image"),
        ({"label": ["ants"]}, {"wish": "name"}, "Did you mean 'names'"),
    ],
)
def test_a_sample_of_other_classes_is_refused(columns: Any, more: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        asked(columns, **more)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": ["0", "1"]}, "--shape probabilities writes probabilities"),
        ({"ants": ["1"], "bees": ["0"]}, "holds 0 and 1, which says nothing of what is judged"),
    ],
)
def test_what_a_sample_of_0_and_1_leaves_open_is_told_and_nothing_else_is(columns: Any, words: str) -> None:
    def told(*given: Any, **options: Any) -> bool:
        return words in " ".join(asked(*given, **options).words)

    assert told(columns)
    assert not told(columns, wish="codes" if len(columns) == 1 else "probabilities")
    assert not told({name: ["0.5"] for name in columns})
    if "label" in columns:
        assert not told(columns, ["0", "1"], many=True) and not told(columns, ["ants", "bees", "wasps"])
        assert not told({"label": [""]}) and not told({"label": ["ants"]})


def test_codes_begin_at_1_only_where_the_sample_shows_it() -> None:
    assert format_predictions(TABLE, asked({"label": ["1"]})) == {"label": ["0", "1"]}
    assert format_predictions(TABLE, asked({"label": ["1", "2"]})) == {"label": ["1", "2"]}
    with pytest.raises(DataError, match="holds '0', '2'"):
        asked({"label": ["0", "2"]})


def test_many_words_for_classes_are_told_in_part() -> None:
    classes = [f"class {number}" for number in range(8)]
    words = asked({"label": ["0"]}, classes).words
    assert "class 5 = 5, and 2 more" in words[1] and "more" not in asked({"label": ["0"]}, classes[:6]).words[1]
    one_hot = {"ants": ["1"], "bees": ["0"]}
    assert asked(one_hot, wish="one-hot").words[0].startswith("0 or 1 in 2 columns")
    assert asked(one_hot, wish="probabilities").words[0].startswith("probabilities in 2 columns")
