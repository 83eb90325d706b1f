"""Image table -> image table in which every image has its split. Knows labels and groups; opens no image.

Ways of splitting (`Recipe.split`), each seeded, each by class as far as its other promise allows:

| way | promise |
|---|---|
| `auto` | what is given stays; groups that were asked for by name are heeded; else by class |
| `provided` | every image has the split that was given with it; only a missing valid split is set aside |
| `random` | by class, whatever was given |
| `group` | no group lies on two sides |
| `kfold:K`, `group-kfold:K` | K parts of all images but the test ones; part number `Recipe.fold` is the valid split |
| `time:COLUMN` | the oldest images train, the newest test |

Copies of one image (`duplicate_id`, from the audit) always lie on one side, except where the split was given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from baseline.data.labels import explode_labels, is_multilabel, rarest_label, split_labels
from baseline.data.sources.match_images import match_rows
from baseline.errors import DataError, unknown_name
from baseline.files import resolve_path

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe

__all__ = ["connected_components", "fold_numbers", "read_split", "resolve_split", "split", "split_to_csv", "unit_ids"]


OTHER_LABELS = "labels as given"
"""The column of all labels of an image, while images of several are split by their rarest one."""


def split(table: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """The table with `train`, `valid` and `test` filled in, as `recipe.split` says; see the module.

    Where no image has a split, `test_share` of all becomes the test split; where there is no valid split,
    `valid_share` of the training images becomes it. Every class keeps a training image. `images_per_class` first thins
    out the training images; the rest of them leaves the table.

    Raises:
        DataError: if no images can be set aside for validation, a column that is asked for is missing, all of a class
            is in one group, or there are more folds than images of a class.

    >>> from baseline import Recipe
    >>> table = pd.DataFrame({"path": [f"{n}.jpg" for n in range(40)], "label": ["ant", "bee"] * 20, "split": None})
    >>> split(table, Recipe()).groupby("split").size().to_dict()
    {'test': 8, 'train': 28, 'valid': 4}
    """
    if recipe.split_file:
        found = read_split(table, resolve_path(recipe.split_file))
    elif is_multilabel(label := table["label"], recipe.labels):
        found = _split_single_label(table.assign(label=rarest_label(label), **{OTHER_LABELS: label}), recipe)
        found = found.assign(label=found[OTHER_LABELS]).drop(columns=OTHER_LABELS)
    else:
        found = _split_single_label(table, recipe)
    return check_splits(found, recipe.labels)


def _split_single_label(table: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """`split` without a split file, by one label an image; where it had others, the column `OTHER_LABELS` has them all."""
    table = table.reset_index(drop=True).copy()
    rng = np.random.default_rng(recipe.seed)
    way, _, argument = recipe.split.partition(":")
    way = resolve_split(table, recipe)[0] if way == "auto" else way
    if way == "provided" and table["split"].isna().all():
        raise DataError("No image has a split of its own. Give --split-col COLUMN, split folders, or another --split.")
    if way in ("random", "group", "time"):
        table["split"] = None
    whole = table["split"].isna().all()
    table["split"] = table["split"].fillna("train").astype(str)
    together = "group" if "group" in way else "duplicate_id"
    units = unit_ids(table, together)
    if way == "time":
        split_by_time(table, units, argument, recipe)
        return subsample(table, recipe.images_per_class, rng) if recipe.images_per_class else table
    if whole and not way.endswith("kfold"):
        hold_out(table, units, "test", recipe.test_share, rng)
    if recipe.images_per_class:
        table = subsample(table, recipe.images_per_class, rng)
        units = unit_ids(table, together)
    if way.endswith("kfold"):
        split_kfold(table, units, int(argument), recipe)
    elif not (table["split"] == "valid").any():
        hold_out(table, units, "valid", recipe.valid_share, rng)
    return table


def resolve_split(table: pd.DataFrame, recipe: Recipe) -> tuple[str, str]:
    """The way of splitting and why: what is given stays; groups asked for by name are heeded; else by class."""
    if recipe.split_file:
        return "auto", f"as {recipe.split_file} has it"
    if recipe.split != "auto":
        return recipe.split, "as given"
    if table["split"].notna().any():
        return "provided", "the images come with splits"
    if recipe.group_col:
        return "group", f"the groups of '{recipe.group_col}' were asked for"
    return "random", "the images come without splits"


def read_split(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """The images that a run's `split.csv` names, with their splits, found by the ends of their paths.

    Images that it does not name leave the table, as those did that the run thinned out or could not read.

    Raises:
        DataError: if the file cannot be read, or names images that are not there or may be several.
    """
    try:
        given = pd.read_csv(file, dtype=str)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())}.") from None
    if missing := {"path", "split"} - set(given.columns):
        raise DataError(f"{file} has no column {', '.join(sorted(missing))}. Give a split.csv that a run wrote.")
    if wrong := set(given["split"]) - {"train", "valid", "test"}:
        raise DataError(f"{file} has splits other than train, valid and test: {', '.join(map(str, wrong))}.")
    rows = match_rows(table["path"], given["path"], str(file))
    known = rows >= 0
    found = table[known].assign(split=given["split"].to_numpy()[rows[known]]).reset_index(drop=True)
    if len(found) > len(given):
        raise DataError(
            f"{file} names {len(given):,} images, and {len(found):,} of these fit. Give the images it is of."
        )
    if len(found) < len(given):
        raise DataError(f"{len(given) - len(found):,} of {len(given):,} images in {file} are not among these images.")
    return found


def unit_ids(table: pd.DataFrame, column: str) -> np.ndarray:
    """A number for each image, the same where images have to stay on one side: copies, and with `"group"` groups.

    Args:
        column: `"group"` or `"duplicate_id"`.

    Raises:
        DataError: if groups are asked for and there are none.
    """
    rows = np.arange(len(table))
    if column == "group":
        if "group" not in table or table["group"].isna().all():
            raise DataError(
                "These images have no groups: nothing tells which belong together. Give --group-col COLUMN."
            )
        alone = table["group"].isna().to_numpy()
        numbers = table["group"].astype(object).where(~alone, "").factorize(sort=True)[0]
        return _join_units(np.where(alone, numbers.max() + 1 + rows, numbers), table)
    return _join_units(rows, table)


def _join_units(units: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """Units that share copies of an image made one."""
    twins = table["duplicate_id"].to_numpy() if "duplicate_id" in table else np.full(len(table), -1)
    linked = np.flatnonzero(twins >= 0)
    if not len(linked):
        return units
    size = int(units.max()) + 1
    return connected_components(units[linked], size + twins[linked], size + int(twins.max()) + 1)[units]


def connected_components(one: np.ndarray, two: np.ndarray, count: int) -> np.ndarray:
    """For each of `count` things the number of the set that links between `one` and `two` put it in."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(one), bool), (one, two)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def _shuffled_rows_by_class(table: pd.DataFrame, rows: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Row numbers among `rows`, one shuffled array per class, in the classes' alphabetical order."""
    for _, members in sorted(table.loc[rows].groupby("label").groups.items()):
        yield rng.permutation(np.asarray(members))


def _required_classes(table: pd.DataFrame) -> list[list[str]]:
    """For each image the classes of which a training image has to stay beside that of its label: all of several."""
    return table[OTHER_LABELS].map(split_labels).tolist() if OTHER_LABELS in table else [[]] * len(table)


def hold_out(table: pd.DataFrame, units: np.ndarray, name: str, share: float, rng: np.random.Generator) -> None:
    """Moves a share of each class's training images, at least one and never the last, to the split `name`.

    Whole units move, so that a share is met only about; a unit that would take a class's last training image stays,
    and of several labels each counts.
    """
    train = np.flatnonzero(table["split"] == "train")
    members = pd.Series(train).groupby(units[train]).apply(np.asarray).to_dict()
    label = table["label"].to_numpy()
    left = table.loc[train, "label"].value_counts().to_dict()
    goal = {each: max(1, round(count * share)) for each, count in left.items()}
    others = _required_classes(table)
    others_left = Counter(chain.from_iterable(others[row] for row in train))
    moved: set[int] = set()

    def move(unit: int, at_most: float) -> None:
        taken = dict(zip(*np.unique(label[members[unit]], return_counts=True), strict=True))
        if unit in moved or any(count >= left[each] or count > at_most * goal[each] for each, count in taken.items()):
            return
        gone = Counter(chain.from_iterable(others[row] for row in members[unit]))
        if any(count >= others_left[each] for each, count in gone.items()):
            return
        others_left.subtract(gone)
        moved.add(unit)
        for each, count in taken.items():
            left[each] -= int(count)
            goal[each] -= int(count)

    for rows in _shuffled_rows_by_class(table, train, rng):
        mine = label[rows[0]]
        before = goal[mine]
        for row in rows:
            if goal[mine] <= 0:
                break
            move(int(units[row]), 1.5)
        if goal[mine] == before > 0:  # every unit is more than the share: the smallest that leaves some, then
            for unit in sorted({int(units[row]) for row in rows}, key=lambda unit: len(members[unit])):
                if goal[mine] == before:
                    move(unit, np.inf)
    table.loc[np.isin(units, list(moved)) & (table["split"] == "train").to_numpy(), "split"] = name


def split_kfold(table: pd.DataFrame, units: np.ndarray, folds: int, recipe: Recipe) -> None:
    """Training and valid images in `folds` parts, in the column `fold`; part `recipe.fold` becomes the valid split."""
    rows = np.flatnonzero(table["split"] != "test")
    grouped = "group" in recipe.split
    table["fold"] = -1
    table.loc[rows, "fold"] = fold_numbers(table.loc[rows, "label"], units[rows], folds, recipe.seed, grouped=grouped)
    table.loc[rows, "split"] = np.where(table.loc[rows, "fold"] == recipe.fold, "valid", "train")


def fold_numbers(labels: pd.Series, units: np.ndarray, folds: int, seed: int, *, grouped: bool = False) -> np.ndarray:
    """For each image the part, from 0, that it lies in: by class, and no unit in two parts.

    Args:
        units: of `unit_ids`: the same number where images have to stay on one side.
        grouped: units are groups, not copies; for the words of the error.

    Raises:
        DataError: if there are more folds than units of a class.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    per_class = pd.Series(units).groupby(labels.to_numpy()).nunique().drop("", errors="ignore")
    if (smallest := int(per_class.min())) < folds:
        what = "groups" if grouped else "images"
        raise DataError(
            f"{folds} folds, but class '{per_class.idxmin()}' has {smallest} {what} only. Give at most {smallest}."
        )
    plain = not grouped and len(np.unique(units)) == len(units)
    parts = (StratifiedKFold if plain else StratifiedGroupKFold)(n_splits=folds, shuffle=True, random_state=seed)
    numbers = np.empty(len(units), int)
    for number, (_, part) in enumerate(parts.split(units, labels, None if plain else units)):
        numbers[part] = number
    return numbers


def split_by_time(table: pd.DataFrame, units: np.ndarray, column: str, recipe: Recipe) -> None:
    if column not in table.columns:
        raise DataError(f"{unknown_name('column', column, map(str, table.columns))} Change --split time:COLUMN.")
    own = pd.Series(parse_times(table[column], column))
    times = own.groupby(units).transform("max").to_numpy()  # of copies the newest counts
    order = np.argsort(times, kind="stable")
    ranked = times[order]
    test = len(table) - round(len(table) * recipe.test_share)
    valid = test - max(1, round(test * recipe.valid_share))
    edges = [int(np.searchsorted(ranked, ranked[max(0, at)], "left")) for at in (valid, test)]
    table["split"] = "train"
    table.loc[order[edges[0] : edges[1]], "split"] = "valid"
    table.loc[order[edges[1] :], "split"] = "test"


def parse_times(values: pd.Series, column: str) -> np.ndarray:
    if pd.api.types.is_datetime64_any_dtype(values):
        times = values
    else:
        times = pd.to_numeric(values, errors="coerce").replace([np.inf, -np.inf], np.nan)
        if times.isna().mean() > 0.5:
            times = parse_dates(values, column)
    if (bad := times.isna()).any():
        example = values[bad].iloc[0]
        raise DataError(f"{int(bad.sum()):,} values of '{column}' are no times, first '{example}'. Mend them.")
    return times.to_numpy()


def parse_dates(values: pd.Series, column: str) -> pd.Series:
    """Dates as ISO 8601 writes them, else in the one order of day and month that fits them all."""
    iso = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
    if iso.isna().mean() <= 0.5:
        return iso
    ways = [pd.to_datetime(values, errors="coerce", utc=True, format=f"%{order}/%Y") for order in ("d/%m", "m/%d")]
    ways += [pd.to_datetime(values, errors="coerce", utc=True, format="%d.%m.%Y")]
    whole = [way for way in ways if way.notna().all()]
    if len(whole) == 2 and not whole[0].equals(whole[1]):
        raise DataError(
            f"The dates of '{column}' fit day/month and month/day, as '{values.iloc[0]}'. Write 2020-12-31."
        )
    return whole[0] if whole else iso


def subsample(table: pd.DataFrame, per_class: int, rng: np.random.Generator) -> pd.DataFrame:
    train = np.flatnonzero(table["split"] == "train")
    dropped = [row for rows in _shuffled_rows_by_class(table, train, rng) for row in rows[per_class:]]
    others = _required_classes(table)
    there = set(chain.from_iterable(others[row] for row in set(train) - set(dropped)))
    back = []
    for row in dropped:
        if not there.issuperset(others[row]):
            there.update(others[row])
            back.append(row)
    return table.drop(index=list(set(dropped) - set(back))).reset_index(drop=True)


def check_splits(table: pd.DataFrame, labels: str) -> pd.DataFrame:
    """Refuses what cannot be trained and validated."""
    if not (table["split"] == "valid").any():
        raise DataError(
            "No images can be set aside for validation: every class keeps one, and copies stay together. Add images."
        )
    each = explode_labels(table["label"], labels)
    trains = (table["split"] == "train")[each.index].to_numpy()
    if lost := sorted(set(each[~trains].dropna()) - set(each[trains])):
        raise DataError(
            f"No training image of '{lost[0]}' is left: all of it lies on the other side of the split, as where a "
            "class is one group only or one time. Give another --split."
        )
    return table


def split_to_csv(table: pd.DataFrame) -> str:
    """What `split.csv` of a run folder says: path, label and split of each image, and groups and folds if known."""
    known = [column for column in ("group", "fold") if column in table and table[column].notna().any()]
    return table[["path", "label", "split", *known]].to_csv(index=False)
