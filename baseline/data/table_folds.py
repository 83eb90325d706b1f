"""Folds that a table gives in a column of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from baseline.data.labels import order_classes
from baseline.data.sources.columns import are_fold_numbers, find_fold_column
from baseline.data.sources.read_table import column_as_text
from baseline.data.split import list_folds
from baseline.errors import DataError, unknown_name

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe

__all__ = ["describe_probe_folds", "read_folds", "resolve_folds"]

MAX_PROBE_FOLD_IMAGES = 300
"""Number of images below which a run that fits the head alone is cross-validated as well.

A fifth of them, the test split, has 60 images at most: an accuracy of 90 % has an interval of 15 points there, and of 7
on all images. Their features take a few seconds.
"""


def resolve_folds(table: pd.DataFrame, recipe: Recipe) -> tuple[str, str]:
    """Return the method that `kfold` and `kfold:K` stand for: the folds that the images come with, if they have K."""
    column = find_fold_column(table.drop(columns="fold", errors="ignore"))
    wanted = recipe.split.method.partition(":")[2]
    if not column and not wanted:
        raise DataError(
            f"The images come without folds to take fold {recipe.split.fold} of. "
            "Pass --split kfold:K for K folds, or --split kfold:COLUMN."
        )
    if not column:
        return recipe.split.method, "as given"
    name, count = column.removesuffix("_"), len(list_folds(read_folds(table, column)))
    if wanted and count != int(wanted):
        return recipe.split.method, f"as given; the column '{name}' has {count} folds, which are not used"
    return f"kfold:{name}", f"the images come with {count} folds, in the column '{name}'"


def read_folds(table: pd.DataFrame, column: str) -> np.ndarray:
    """Return the fold of each image that a column gives, -1 for none.

    Whole numbers stay as they are, and those below 0 are no folds; other texts are numbered from 0 in their order.

    Raises:
        DataError: if there is no such column, or it has less than two folds.
    """
    known = [name for name in (column, f"{column}_") if name in table.columns]
    if not known:
        raise DataError(f"{unknown_name('column', column, map(str, table.columns))} Change --split kfold:COLUMN.")
    texts = column_as_text(table[known[-1]])
    if are_fold_numbers(set(texts) - {""}):
        folds = np.array([int(float(text)) if text else -1 for text in texts])
    else:
        numbers = {text: number for number, text in enumerate(order_classes(set(texts) - {""}))}
        folds = np.array([numbers.get(text, -1) for text in texts])
    folds = np.where((folds < 0) | (table["split"] == "test").to_numpy(), -1, folds)
    if len(list_folds(folds)) < 2:
        raise DataError(f"The column '{column}' has less than two folds. Pass --split kfold:K for K folds.")
    return folds


def describe_probe_folds(recipe: Recipe, images: int, reason: str) -> str:
    """Return the line about the cross-validation beside the result; empty for a run that has none.

    Args:
        recipe: with the split resolved.
        reason: of the split, see `resolve_split`.
    """
    is_probe = [stage.trains for stage in recipe.stages] == ["probe"] and not recipe.data.images_per_class
    is_open = recipe.split.method in ("random", "group") and reason != "as given"
    if not (is_probe and is_open and images < MAX_PROBE_FOLD_IMAGES):
        return ""
    return (
        f"cross-validation also evaluates all {images:,} images, as the test split is small; it takes seconds, because "
        f"only the head is fitted. --split {recipe.split.method} evaluates the test split only."
    )
