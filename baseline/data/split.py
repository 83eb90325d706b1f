"""Image table -> image table in which every image has a split. Uses labels and groups; opens no image.

Methods (`SplitSettings.method`); all are seeded, and stratified by class as far as their other guarantee allows:

| method | guarantee |
|---|---|
| `auto` | given splits are kept; else groups are kept together if a group column is named; else by class |
| `provided` | every image keeps its given split; only a missing valid split is held out |
| `random` | by class, ignoring given splits |
| `group` | all images of a group are in the same split |
| `kfold:K`, `group-kfold:K` | K folds of all images except the test split; `SplitSettings.fold` is for validation |
| `kfold`, `kfold:COLUMN` | the folds in a column of the table: `fold` or similar, or COLUMN |
| `time:COLUMN` | the oldest images are for training, the newest for testing |

Duplicates of an image (`duplicate_id`, from the audit) always get the same split, except where the split was given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from baseline.data.labels import explode_labels, is_multilabel, order_classes, rarest_label, split_labels
from baseline.errors import DataError, format_count, unknown_name
from baseline.files import resolve_path, to_csv
from baseline.reading import read_run_table

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe

__all__ = [
    "connected_components", "fold_numbers", "given_folds", "kept_splits", "read_split", "resolve_split", "split",
    "split_to_csv", "unit_ids",
]  # fmt: skip


OTHER_LABELS = "labels as given"
"""Column that holds all labels of an image while multi-label images are split by their rarest label."""


def split(table: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """Return the image table with the column `split` filled in (`train`, `valid`, `test`), by `recipe.split.method`.

    The module lists the methods. If no image has a split, `test_fraction` of all images become the test split; if
    there is no valid split, `valid_fraction` of the training images become it. Every class keeps a training image. With
    `images_per_class`, the training images are subsampled first, and the others are dropped from the table.

    Raises:
        DataError: if no images can be held out for validation, a requested column is missing, all images of a class are
            in one group, or there are more folds than images of a class.

    >>> from baseline import Recipe
    >>> table = pd.DataFrame({"path": [f"{n}.jpg" for n in range(40)], "label": ["ant", "bee"] * 20, "split": None})
    >>> split(table, Recipe()).groupby("split").size().to_dict()
    {'test': 8, 'train': 28, 'valid': 4}
    """
    if recipe.split.file:
        result = read_split(table, resolve_path(recipe.split.file))
    elif is_multilabel(label := table["label"], recipe.data.task):
        result = _split_single_label(table.assign(label=rarest_label(label), **{OTHER_LABELS: label}), recipe)
        result = result.assign(label=result[OTHER_LABELS]).drop(columns=OTHER_LABELS)
    else:
        result = _split_single_label(table, recipe)
    return check_splits(result, recipe.data.task)


def _split_single_label(table: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """Split by one label per image, without a split file; `OTHER_LABELS` holds all labels of a multi-label image."""
    table = table.reset_index(drop=True).copy()
    rng = np.random.default_rng(recipe.seed)
    method, _, argument = resolve_split(table, recipe)[0].partition(":")
    if method == "provided" and table["split"].isna().all():
        raise DataError("The images come without splits. Pass --split-col COLUMN, split folders, or another --split.")
    if method in ("random", "group", "time"):
        table["split"] = None
    without_splits = table["split"].isna().all()
    table["split"] = table["split"].fillna("train").astype(str)
    unit_column = "group" if "group" in method else "duplicate_id"
    units = unit_ids(table, unit_column)
    if method == "time":
        split_by_time(table, units, argument, recipe)
        return subsample(table, recipe.data.images_per_class, rng) if recipe.data.images_per_class else table
    if without_splits and not method.endswith("kfold"):
        hold_out(table, units, "test", recipe.split.test_fraction, rng)
    if recipe.data.images_per_class:
        table = subsample(table, recipe.data.images_per_class, rng)
        units = unit_ids(table, unit_column)
    if method.endswith("kfold"):
        if argument.isdecimal():
            split_kfold(table, units, int(argument), recipe)
        else:
            from baseline.data.table_folds import read_folds

            table["fold"] = read_folds(table, argument)
            hold_out_fold(table, recipe.split.fold, argument)
    elif not (table["split"] == "valid").any():
        hold_out(table, units, "valid", recipe.split.valid_fraction, rng)
    return table


def kept_splits(method: str) -> tuple[str, ...]:
    """Return the given splits that a method keeps.

    >>> kept_splits("random"), kept_splits("kfold:5"), kept_splits("auto")
    ((), ('test',), ('train', 'valid', 'test'))
    """
    if "kfold" in method:
        return ("test",)
    return () if method.partition(":")[0] in ("random", "group", "time") else ("train", "valid", "test")


def resolve_split(table: pd.DataFrame, recipe: Recipe) -> tuple[str, str]:
    """Return the split method that `auto` stands for here, and the reason."""
    if recipe.split.file:
        return "auto", f"taken from {recipe.split.file}"
    method, _, argument = recipe.split.method.partition(":")
    if method == "kfold" and (not argument or argument.isdecimal()):
        from baseline.data.table_folds import resolve_folds

        return resolve_folds(table, recipe)
    if recipe.split.method != "auto":
        return recipe.split.method, "as given"
    if table["split"].notna().any():
        return "provided", "the images come with splits"
    if recipe.data.group_col:
        return "group", f"the group column '{recipe.data.group_col}' was given"
    return "random", "the images come without splits"


def given_folds(table: pd.DataFrame, method: str) -> list[int]:
    """Return the numbers of the folds in the column of the method `kfold:COLUMN`; none for another method."""
    name, _, column = method.partition(":")
    if name != "kfold" or column.isdecimal():
        return []
    from baseline.data.table_folds import read_folds

    return list_folds(read_folds(table, column))


def list_folds(folds: np.ndarray) -> list[int]:
    """Return the numbers of the folds, without -1."""
    return [int(fold) for fold in np.unique(folds) if fold >= 0]


def hold_out_fold(table: pd.DataFrame, fold: int, column: str) -> None:
    """Make one fold of the column `fold` the valid split, and all other images that are not for testing train."""
    if fold not in (folds := list_folds(table["fold"].to_numpy())):
        known = ", ".join(map(str, folds))
        raise DataError(
            f"There is no fold {fold} in the column '{column}': it has {known}. Pass --fold with one of them."
        )
    table["split"] = np.where(table["fold"] == fold, "valid", np.where(table["split"] == "test", "test", "train"))


def read_split(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Return the images that a run's `split.csv` names, with their splits, matched by the ends of their paths.

    Images that it does not name are dropped, as are those that the run subsampled away or could not read.

    Raises:
        DataError: if the file cannot be read, or names images that do not exist or match several.
    """
    from baseline.data.sources.match_images import match_rows

    split_table = read_run_table(file)
    if missing := {"path", "split"} - set(split_table.columns):
        raise DataError(f"{file} has no column {', '.join(sorted(missing))}. Pass a split.csv written by a run.")
    if unknown := set(split_table["split"]) - {"train", "valid", "test"}:
        raise DataError(f"{file} has splits other than train, valid and test: {', '.join(map(str, unknown))}.")
    rows = match_rows(table["path"], split_table["path"], str(file))
    known = rows >= 0
    result = table[known].assign(split=split_table["split"].to_numpy()[rows[known]]).reset_index(drop=True)
    count = format_count(len(split_table), "image")
    if len(result) > len(split_table):
        raise DataError(
            f"{file} names {count}, but {len(result):,} of these match. Pass the images that it was made for."
        )
    if len(result) < len(split_table):
        missing_count = len(split_table) - len(result)
        raise DataError(
            f"{missing_count:,} of {count} in {file} not found among these images. "
            "Pass the images that it was made for."
        )
    return result


def unit_ids(table: pd.DataFrame, column: str) -> np.ndarray:
    """Return a number for each image, shared by images that must get the same split: duplicates, and optionally groups.

    Args:
        column: `"group"` (groups and duplicates) or `"duplicate_id"` (duplicates only).

    Raises:
        DataError: if `column` is `"group"` and the images have no groups.
    """
    rows = np.arange(len(table))
    if column == "group":
        if "group" not in table or table["group"].isna().all():
            raise DataError(
                "These images have no groups, so nothing says which belong together. Pass --group-col COLUMN."
            )
        ungrouped = table["group"].isna().to_numpy()
        numbers = table["group"].astype(object).where(~ungrouped, "").factorize(sort=True)[0]
        return _join_units(np.where(ungrouped, numbers.max() + 1 + rows, numbers), table)
    return _join_units(rows, table)


def _join_units(units: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """Merge units that share duplicates of an image."""
    duplicate_id = table["duplicate_id"].to_numpy() if "duplicate_id" in table else np.full(len(table), -1)
    linked = np.flatnonzero(duplicate_id >= 0)
    if not len(linked):
        return units
    size = int(units.max()) + 1
    nodes = size + int(duplicate_id.max()) + 1
    return connected_components(units[linked], size + duplicate_id[linked], nodes)[units]


def connected_components(one: np.ndarray, two: np.ndarray, count: int) -> np.ndarray:
    """Return the component number of each of `count` nodes in the graph with edges between `one` and `two`.

    The numbers are those of `scipy.sparse.csgraph.connected_components`, whose import takes longer than auditing a
    small folder.

    >>> connected_components(np.array([0, 3]), np.array([2, 2]), 5).tolist()
    [0, 1, 0, 0, 2]
    """
    lowest = np.arange(count)
    while (lowest[one] != lowest[two]).any():
        linked, least = lowest.copy(), np.minimum(lowest[one], lowest[two])
        for ends in (one, two):
            np.minimum.at(linked, lowest[ends], least)
        while not np.array_equal(linked, linked[linked]):
            linked = linked[linked]
        lowest = linked[lowest]
    return np.unique(lowest, return_inverse=True)[1]


def _shuffled_rows_by_class(table: pd.DataFrame, rows: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the given row numbers as one shuffled array per class, in alphabetical order of the classes."""
    for _, members in sorted(table.loc[rows].groupby("label").groups.items()):
        yield rng.permutation(np.asarray(members))


def _required_classes(table: pd.DataFrame) -> list[list[str]]:
    """Return for each image the classes, besides its `label`, that must keep a training image: all its other labels."""
    return table[OTHER_LABELS].map(split_labels).tolist() if OTHER_LABELS in table else [[]] * len(table)


def hold_out(table: pd.DataFrame, units: np.ndarray, name: str, share: float, rng: np.random.Generator) -> None:
    """Move a share of each class's training images, at least one and never the last, to the split `name`.

    Units move as a whole, so the share is met only approximately. A unit stays if a class, of any label of its images,
    would lose its last training image.
    """
    train = np.flatnonzero(table["split"] == "train")
    members = pd.Series(train).groupby(units[train]).apply(np.asarray).to_dict()
    label = table["label"].to_numpy()
    remaining = table.loc[train, "label"].value_counts().to_dict()
    goal = {name: max(1, round(count * share)) for name, count in remaining.items()}
    other_labels = _required_classes(table)
    others_remaining = Counter(chain.from_iterable(other_labels[row] for row in train))
    moved: set[int] = set()

    def try_move(unit: int, max_overshoot: float) -> None:
        counts = dict(zip(*np.unique(label[members[unit]], return_counts=True), strict=True))
        if unit in moved or any(
            count >= remaining[name] or count > max_overshoot * goal[name] for name, count in counts.items()
        ):
            return
        other_counts = Counter(chain.from_iterable(other_labels[row] for row in members[unit]))
        if any(count >= others_remaining[name] for name, count in other_counts.items()):
            return
        others_remaining.subtract(other_counts)
        moved.add(unit)
        for name, count in counts.items():
            remaining[name] -= int(count)
            goal[name] -= int(count)

    for rows in _shuffled_rows_by_class(table, train, rng):
        own_label = label[rows[0]]
        initial_goal = goal[own_label]
        for row in rows:
            if goal[own_label] <= 0:
                break
            try_move(int(units[row]), 1.5)
        if goal[own_label] == initial_goal > 0:  # every unit exceeds the share: take the smallest that leaves an image
            for unit in sorted({int(units[row]) for row in rows}, key=lambda unit: len(members[unit])):
                if goal[own_label] == initial_goal:
                    try_move(unit, np.inf)
    table.loc[np.isin(units, list(moved)) & (table["split"] == "train").to_numpy(), "split"] = name


def split_kfold(table: pd.DataFrame, units: np.ndarray, folds: int, recipe: Recipe) -> None:
    """Assign all images except the test split to folds (column `fold`); fold `recipe.split.fold` is for validation."""
    rows = np.flatnonzero(table["split"] != "test")
    grouped = "group" in recipe.split.method
    table["fold"] = -1
    table.loc[rows, "fold"] = fold_numbers(table.loc[rows, "label"], units[rows], folds, recipe.seed, grouped=grouped)
    hold_out_fold(table, recipe.split.fold, recipe.split.method)


def fold_numbers(labels: pd.Series, units: np.ndarray, folds: int, seed: int, *, grouped: bool = False) -> np.ndarray:
    """Return for each image its fold, from 0: stratified by class, with no unit in two folds.

    Args:
        units: from `unit_ids`; images with the same number must be in the same fold.
        grouped: whether units are groups, not only duplicates; the error message says so.

    Raises:
        DataError: if there are more folds than units of a class.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    per_class = pd.Series(units).groupby(labels.to_numpy()).nunique().drop("", errors="ignore")
    if (smallest := int(per_class.min())) < folds:
        count = format_count(smallest, "group" if grouped else "image")
        raise DataError(f"{folds} folds, but class '{per_class.idxmin()}' has only {count}. Pass at most {smallest}.")
    ungrouped = not grouped and len(np.unique(units)) == len(units)
    splitter = (StratifiedKFold if ungrouped else StratifiedGroupKFold)(n_splits=folds, shuffle=True, random_state=seed)
    numbers = np.empty(len(units), int)
    for number, (_, rows) in enumerate(splitter.split(units, labels, None if ungrouped else units)):
        numbers[rows] = number
    return numbers


def split_by_time(table: pd.DataFrame, units: np.ndarray, column: str, recipe: Recipe) -> None:
    """Assign splits by the times in a column; images of the same time get the same split."""
    if column not in table.columns:
        raise DataError(f"{unknown_name('column', column, map(str, table.columns))} Change --split time:COLUMN.")
    own_times = pd.Series(parse_times(table[column], column))
    times = own_times.groupby(units).transform("max").to_numpy()  # duplicates count as the newest of them
    order = np.argsort(times, kind="stable")
    sorted_times = times[order]
    test = len(table) - round(len(table) * recipe.split.test_fraction)
    valid = test - max(1, round(test * recipe.split.valid_fraction))
    edges = [int(np.searchsorted(sorted_times, sorted_times[max(0, row)], "left")) for row in (valid, test)]
    table["split"] = "train"
    table.loc[order[edges[0] : edges[1]], "split"] = "valid"
    table.loc[order[edges[1] :], "split"] = "test"


def parse_times(values: pd.Series, column: str) -> np.ndarray:
    """Return a column as dates or as numbers, whichever it contains.

    Raises:
        DataError: if some values are neither.
    """
    if pd.api.types.is_datetime64_any_dtype(values):
        times = values
    else:
        times = pd.to_numeric(values, errors="coerce").replace([np.inf, -np.inf], np.nan)
        if times.isna().mean() > 0.5:
            times = parse_dates(values, column)
    if (bad := times.isna()).any():
        example = values[bad].iloc[0]
        count = format_count(int(bad.sum()), "value")
        raise DataError(f"{count} of '{column}' cannot be read as a time, first '{example}'. Correct the column.")
    return times.to_numpy()


def parse_dates(values: pd.Series, column: str) -> pd.Series:
    """Parse dates in ISO 8601, else in the only order of day and month that fits all of them."""
    iso = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
    if iso.isna().mean() <= 0.5:
        return iso
    parsed = [pd.to_datetime(values, errors="coerce", utc=True, format=f"%{order}/%Y") for order in ("d/%m", "m/%d")]
    parsed += [pd.to_datetime(values, errors="coerce", utc=True, format="%d.%m.%Y")]
    complete = [dates for dates in parsed if dates.notna().all()]
    if len(complete) == 2 and not complete[0].equals(complete[1]):
        raise DataError(
            f"The dates of '{column}' are ambiguous: '{values.iloc[0]}' may be day/month or month/day. "
            "Write them as 2020-12-31."
        )
    return complete[0] if complete else iso


def subsample(table: pd.DataFrame, per_class: int, rng: np.random.Generator) -> pd.DataFrame:
    """Drop training images beyond `per_class` of each class, but never the last one of a class in any label."""
    train = np.flatnonzero(table["split"] == "train")
    dropped = [row for rows in _shuffled_rows_by_class(table, train, rng) for row in rows[per_class:]]
    other_labels = _required_classes(table)
    covered = set(chain.from_iterable(other_labels[row] for row in set(train) - set(dropped)))
    restored = []
    for row in dropped:
        if not covered.issuperset(other_labels[row]):
            covered.update(other_labels[row])
            restored.append(row)
    return table.drop(index=list(set(dropped) - set(restored))).reset_index(drop=True)


def check_splits(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return the table, or raise DataError if it has no valid split or a class without training images."""
    if not (table["split"] == "valid").any():
        raise DataError(
            "No images can be held out for validation: every class keeps a training image, and duplicates stay "
            "together. Add images."
        )
    single_labels = explode_labels(table["label"], task)
    in_train = (table["split"] == "train")[single_labels.index].to_numpy()
    if missing := order_classes(set(single_labels[~in_train].dropna()) - set(single_labels[in_train])):
        raise DataError(
            f"No training image of '{missing[0]}' is left: all its images are in other splits, as happens where a "
            "class consists of one group or one point in time. Use another --split."
        )
    return table


def split_to_csv(table: pd.DataFrame) -> str:
    """Return the content of a run's `split.csv`: path, label and split of each image, and group and fold if known."""
    optional = [column for column in ("group", "fold") if column in table and table[column].notna().any()]
    return to_csv(table[["path", "label", "split", *optional]])
