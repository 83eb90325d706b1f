"""Which columns of a table hold images, labels, groups and splits, by their names and by what they contain."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from functools import lru_cache

import pandas as pd

from baseline.data.sources.folders import IMAGE_SUFFIXES, SPLIT_NAMES
from baseline.data.sources.match_images import ImageFinder
from baseline.data.sources.read_table import cell_to_text, column_as_text
from baseline.errors import DataError, quoted_list

__all__ = ["are_fold_numbers", "find_fold_column", "find_group_column", "find_image_column",
           "find_label_columns", "find_named_column", "find_split_column", "is_flag_column", "read_splits",
           "sample"]  # fmt: skip


IMAGE_COLUMN_NAMES = (
    "path", "image_path", "img_path", "filepath", "file_path", "image", "img", "photo", "picture", "file", "filename",
    "file_name", "image_name", "img_name", "fname", "image_id", "img_id", "photo_id", "id_code", "image_file", "id",
    "name",
)  # fmt: skip
"""Common names of the column of images, in order of preference."""


LABEL_COLUMN_NAMES = (
    "label", "labels", "class", "classes", "class_name", "target", "category", "tag", "tags", "breed", "species",
    "diagnosis", "y", "lbl", "label_name", "class_label", "category_name", "class_id", "label_id", "category_id",
    "choice", "choices", "emotion", "dx", "level", "diagnostic", "pathology", "cls", "disease",
    "finding_labels", "finding", "variety", "attribute_ids", "landmark_id", "ground_truth", "annotation", "annotations",
)  # fmt: skip
"""Common names of the column of labels, in order of preference."""


CLASS_NAME_COLUMNS = ("class_name", "label_name", "category_name", "name", "category", "label", "class", "species_name")
"""Names of a column that gives the name of each class where another column gives its number."""


GROUP_COLUMN_NAMES = (
    "group", "group_id", "groups", "patient", "patient_id", "subject", "subject_id", "person", "photographer",
    "individual", "individual_id", "site", "location", "session", "series", "series_id", "video", "video_id", "track",
    "track_id", "sequence", "sequence_id", "lesion_id", "seq_id", "study_id", "driver", "driver_id",
)  # fmt: skip
"""Common names of the column of groups, in order of preference."""


SPLIT_COLUMN_NAMES = ("split", "set", "subset", "partition", "phase", "usage", "dataset", "dataset_type", "data_set")
"""Common names of the column of splits, in order of preference."""


SPLIT_FLAGS = {"is_valid": "valid", "is_val": "valid", "valid": "valid", "val": "valid", "validation": "valid",
               "is_validation": "valid", "is_test": "test", "test": "test", "is_train": "train"}  # fmt: skip
"""Names of columns of true and false, and the split of the images for which they are true."""


FOLD_COLUMN_NAMES = ("fold", "folds", "kfold", "k_fold", "fold_id", "cv_fold")
"""Names of a column of the numbers of folds."""


SPLIT_VALUES = {
    **SPLIT_NAMES,
    "trn": "train", "trainval": "train",
    "publictest": "valid", "public_test": "valid",
    "privatetest": "test", "private_test": "test", "tst": "test", "evaluation": "test", "eval": "test",
}  # fmt: skip
"""The split for each value of a split column, in lower case."""


NO_LABELS = frozenset(
    ("age", "age_approx", "annotation_id", "annotator", "created_at", "date", "gender", "h", "hash", "height", "idx",
     "image_height", "image_width", "index", "lat", "latitude", "lead_time", "license", "lon", "longitude", "md5", "no",
     "row", "sex", "sha256", "size", "source", "time", "timestamp", "unnamed_0", "updated_at", "url", "w", "width", "x",
     "x1", "x2", "xmax", "xmin", "y", "y1", "y2", "ymax", "ymin")
)  # fmt: skip
"""Names of columns that describe images without being their classes."""


@lru_cache(1000)
def column_key(name: str) -> str:
    """Return a column's name in lower case with `_` between words.

    >>> column_key("PatientID"), column_key(" Finding Labels"), column_key("classId"), column_key("x")
    ('patient_id', 'finding_labels', 'class_id', 'x')
    """
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\W_]+", "_", name).strip("_").lower()


def find_named_column(frame: pd.DataFrame, names: Sequence[str], skip: Sequence[str] = ()) -> str:
    """Return the first column with one of these names, however its words are joined; empty if there is none."""
    by_name = {column_key(str(column)).replace("_", ""): str(column) for column in reversed(frame.columns)}
    keys = [name.replace("_", "") for name in names]
    return next((by_name[key] for key in keys if key in by_name and by_name[key] not in skip), "")


def find_image_column(frame: pd.DataFrame, finder: ImageFinder) -> str | None:
    """Return the column whose values are images, else one that looks like it or has a usual name, else None."""
    named = [column for column in (find_named_column(frame, (name,)) for name in IMAGE_COLUMN_NAMES) if column]
    filled = {column: sample(frame[column]) for column in dict.fromkeys([*named, *frame.columns])}
    shares = {column: finder.share(values) for column, values in filled.items()}
    best = max(shares, key=lambda column: shares[column], default=None)
    if best is not None and shares[best][0]:
        return best
    candidates = [column for column, values in filled.items() if len(values) and looks_like_images(values)]
    return next(iter([*candidates, *named]), None)


def sample(values: pd.Series, count: int = 50) -> pd.Series:
    """Return some values of a column that are not empty: its first ones, which are enough to see what it holds."""
    return values[column_as_text(values.head(4 * count)).reindex(values.index, fill_value="") != ""].head(count)


def looks_like_images(values: pd.Series) -> bool:
    return all(os.path.splitext(cell_to_text(value))[1].lower() in IMAGE_SUFFIXES for value in values)


def find_group_column(frame: pd.DataFrame, skip: Sequence[str]) -> str:
    """Return the column with a usual name of groups; empty if there is none."""
    return find_named_column(frame, GROUP_COLUMN_NAMES, skip)


def find_split_column(frame: pd.DataFrame, skip: Sequence[str]) -> str:
    """Return the column that holds splits, by its name and values, or by its values alone; empty if there is none."""
    rest = [column for column in frame.columns if column not in skip]
    named = [
        find_named_column(frame, (name,), skip) for name in (*SPLIT_COLUMN_NAMES, *FOLD_COLUMN_NAMES, *SPLIT_FLAGS)
    ]
    for column in [name for name in named if name]:
        if splits_by_value(frame[column], column):
            return column
    for column in rest:
        values = set(column_as_text(frame[column]).str.lower()) - {""}
        if values & {"train", "training"} and values <= set(SPLIT_VALUES) and len(values) > 1:
            return column
    return ""


def splits_by_value(values: pd.Series, column: str) -> dict[str, str]:
    """Return the split that each value of a column stands for, in lower case; empty if it is no column of splits."""
    texts, name = set(column_as_text(values).str.lower()) - {""}, column_key(column)
    if texts <= set(SPLIT_VALUES):
        return {text: SPLIT_VALUES[text] for text in texts}
    if name in SPLIT_FLAGS and texts <= {"0", "1", "true", "false", "0.0", "1.0"}:
        split = SPLIT_FLAGS[name]
        on, off = (split, "train") if split != "train" else ("train", "test")
        return {text: on if text in ("1", "true", "1.0") else off for text in texts}
    if name in FOLD_COLUMN_NAMES and are_fold_numbers(texts):
        folds = sorted(texts, key=float)
        test = {text for text in folds if float(text) < 0}
        first = next(text for text in folds if text not in test)
        return {text: "valid" if text == first else "test" if text in test else "train" for text in texts}
    if name in SPLIT_COLUMN_NAMES and texts <= {"0", "1", "2"} and "0" in texts:
        return {text: ("train", "valid", "test")[int(text)] for text in texts}
    return {}


def are_fold_numbers(texts: Collection[str]) -> bool:
    return len(texts) > 1 and all(re.fullmatch(r"-?\d{1,9}(\.0)?", text) for text in texts)


def find_fold_column(frame: pd.DataFrame) -> str:
    """Return the column that holds the numbers of folds, by its name and values; empty if there is none."""
    for name in FOLD_COLUMN_NAMES:
        column = find_named_column(frame, (name,))
        if column and are_fold_numbers(set(column_as_text(frame[column])) - {""}):
            return column
    return ""


def read_splits(frame: pd.DataFrame, column: str, name: str) -> tuple[pd.Series, str]:
    """Return the split of each row, missing where the cell is empty, and a note where the values are numbers.

    Raises:
        DataError: if the column contains anything else than splits.
    """
    lower = column_as_text(frame[column]).str.lower()
    values = splits_by_value(frame[column], column)
    if unknown := sorted(set(lower) - {"", *values, *(SPLIT_VALUES if not values else ())}):
        raise DataError(
            f"The column '{column}' of {name} contains {quoted_list(unknown)}; it must contain train, valid or test."
        )
    splits = lower.map(values or SPLIT_VALUES).astype(object).where(lower != "", None)
    named = {key: value for key, value in values.items() if SPLIT_VALUES.get(key) != value}
    listed = ", ".join(f"{key} is {value}" for key, value in sorted(named.items()))
    if column_key(column) in FOLD_COLUMN_NAMES and values:
        first = next(key for key, value in values.items() if value == "valid")
        folds = sum(value != "test" for value in values.values())
        more = f"--fold K takes another, --split kfold runs all {folds}" if folds > 1 else "the only one"
        return splits, f"fold {first} of '{column}' is the valid split ({more})"
    return splits, f"'{column}': {listed}" if named else ""


def find_label_columns(frame: pd.DataFrame, used: Sequence[str], name: str) -> tuple[list[str], bool]:
    """Return the columns of labels, and whether their names are usual; several are columns of 0 and 1.

    Raises:
        DataError: if it is unclear which column that is.
    """
    if column := find_named_column(frame, LABEL_COLUMN_NAMES, used):
        return [better_named(frame, column, used)], True
    unused = [column for column in frame.columns if column not in used]
    flags = [column for column in unused if is_flag_column(frame[column])]
    if len(flags) >= 2:
        last = unused[-1]
        if not is_exclusive(frame, flags) and last not in flags and is_measurement(frame[last], last):
            raise DataError(
                f"{name} has {len(flags)} columns of 0 and 1 ({quoted_list(flags, 3)}) and one of numbers ('{last}'). "
                f"Pass --label-col {','.join(flags[:2])},... to predict those, or --label-col '{last}' --bins K."
            )
        return flags, is_exclusive(frame, flags)
    if len(unused) > 1:
        unused = [column for column in unused if may_be_label(frame[column], column)]
    if len(unused) == 1:
        if len(frame) >= MIN_ROWS and is_text_of_its_own(frame[unused[0]]):
            raise DataError(
                f"{name} has no column that looks like labels: '{unused[0]}' is different in every row. "
                "Pass --label-col COLUMN."
            )
        return unused, False
    columns = quoted_list(frame.columns, 12)
    raise DataError(f"{name} has no column that looks like labels; its columns: {columns}. Pass --label-col COLUMN.")


def better_named(frame: pd.DataFrame, column: str, used: Sequence[str]) -> str:
    """Return the column of names instead of a column of numbers if each number has one name."""
    codes = column_as_text(frame[column])
    if not codes.str.fullmatch(r"\d+").all():
        return column
    for name in CLASS_NAME_COLUMNS:
        other = find_named_column(frame, (name,), (*used, column))
        if other:
            names = column_as_text(frame[other])
            pairs = pd.DataFrame({"code": codes, "name": names}).drop_duplicates()
            if pairs["code"].is_unique and pairs["name"].is_unique and not names.str.fullmatch(r"[\d.]*").any():
                return other
    return column


MIN_ROWS = 8
"""Number of rows from which texts of which no two are alike cannot be classes."""


def is_text_of_its_own(values: pd.Series) -> bool:
    texts = column_as_text(values)
    return texts.is_unique and not texts.str.fullmatch(r"-?[\d.]+").all()


def is_measurement(values: pd.Series, column: str) -> bool:
    """Whether a column holds many different numbers, and its name does not say that they are no target."""
    texts = column_as_text(values)
    if {*column_key(column).split("_")} & {*NO_LABELS, "id", "ids"}:
        return False
    return bool(texts.str.fullmatch(r"-?\d+(\.\d+)?").all()) and texts.nunique() > 15


def may_be_label(values: pd.Series, column: str) -> bool:
    """Whether a column of an unusual name may hold classes: some values recur, and they are no measurements."""
    texts = column_as_text(values)
    name = column_key(column)
    if name in NO_LABELS or name == "" or texts.nunique() in (0, 1) or texts.is_unique:
        return False
    return not texts.str.fullmatch(r"-?\d+\.\d*[1-9]\d*").any()


FLAG_VALUES = frozenset({"0", "1", "True", "False", "true", "false", "0.0", "1.0"})


def is_flag_column(values: pd.Series) -> bool:
    """Whether a column says yes or no: 0 and 1, -1 and 1, and, among these, empty or -1 for unknown."""
    texts = set(values.map(cell_to_text))
    signed = texts <= {*FLAG_VALUES, "-1", "-1.0", ""} and bool(texts & {"1", "1.0"})
    return texts <= FLAG_VALUES or signed


def is_exclusive(frame: pd.DataFrame, flags: Sequence[str]) -> bool:
    """Whether exactly one of the columns is 1 in each row."""
    yes = frame[list(flags)].map(lambda value: cell_to_text(value).lower() in ("1", "true", "1.0"))
    return bool((yes.sum(axis=1) == 1).all())
