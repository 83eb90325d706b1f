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

__all__ = ["read_folds", "resolve_folds"]


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
