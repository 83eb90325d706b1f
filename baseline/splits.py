"""Photo table -> photo table in which every photo has its split. Knows labels; opens no photo."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .errors import DataError
from .recipe import Recipe

__all__ = ["split"]


def split(table: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """The table with `train`, `valid` and `test` filled in, by class, seeded by the recipe's `seed`.

    A given split stays. Where no photo has one, `test_share` of each class becomes the test split. Where there is no
    valid split, `valid_share` of each class's training photos becomes it. Every class keeps a training photo.
    `photos_per_class` first thins out the training photos; the rest of them leaves the table.

    Raises:
        DataError: if no class has enough photos to set some aside for validation.

    >>> from baseline import Recipe
    >>> table = pd.DataFrame({"path": [f"{n}.jpg" for n in range(40)], "label": ["ant", "bee"] * 20, "split": None})
    >>> split(table, Recipe()).groupby("split").size().to_dict()
    {'test': 8, 'train': 28, 'valid': 4}
    """
    table = table.reset_index(drop=True).copy()
    rng = np.random.default_rng(recipe.seed)
    whole = table["split"].isna().all()
    table["split"] = table["split"].fillna("train").astype(str)
    if whole:
        _set_aside(table, "test", recipe.test_share, rng)
    if recipe.photos_per_class:
        table = _thinned(table, recipe.photos_per_class, rng)
    if not (table["split"] == "valid").any():
        _set_aside(table, "valid", recipe.valid_share, rng)
    if not (table["split"] == "valid").any():
        raise DataError("No class has three photos, so none can be set aside for validation. Add photos.")
    return table


def _rows_by_class(table: pd.DataFrame, rng: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of the training photos, one shuffled array per class, in the classes' alphabetical order."""
    train = table[table["split"] == "train"]
    return [rng.permutation(np.asarray(rows)) for _, rows in sorted(train.groupby("label").groups.items())]


def _set_aside(table: pd.DataFrame, name: str, share: float, rng: np.random.Generator) -> None:
    """Moves a share of each class's training photos, at least one and never the last, to the split `name`."""
    for rows in _rows_by_class(table, rng):
        count = min(max(1, round(len(rows) * share)), len(rows) - 1)
        table.loc[rows[:count], "split"] = name


def _thinned(table: pd.DataFrame, per_class: int, rng: np.random.Generator) -> pd.DataFrame:
    dropped = [row for rows in _rows_by_class(table, rng) for row in rows[per_class:]]
    return table.drop(index=dropped).reset_index(drop=True)
