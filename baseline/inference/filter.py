"""TODO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from baseline.data.label_fixes import _check
from baseline.data.labels import each_label
from baseline.errors import DataError, names, unknown
from baseline.files import place

if TYPE_CHECKING:
    from baseline.progress import Show
    from baseline.recipe.schema import Recipe

__all__ = ["belonging"]


def belonging(table: pd.DataFrame, recipe: Recipe, show: Show) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The photos that `recipe.keep_model` calls `recipe.keep_if` by at least `recipe.keep_above`, and the others.

    Args:
        table: a photo table of readable photos.

    Returns:
        The photo table without them, and of those that leave it `path, label, probability`, the least probable first.

    Raises:
        DataError: if the model has no such class, a photo cannot be read, or too few photos or classes are left.
        OutputError, WeightsError: if the model cannot be used; see `baseline.load`.
    """
    from baseline.inference.model import load

    model = load(place(recipe.keep_model))
    if recipe.keep_if not in model.classes:
        raise DataError(f"In --keep-model {recipe.keep_model}: {unknown('class', recipe.keep_if, model.classes)}")
    parts: list[np.ndarray] = []
    with show.bar(f"which photos are '{recipe.keep_if}'", len(table), "photos") as bar:
        for block in model.blocks(table["path"]):
            if bad := [(path, why) for path, why in zip(block.photos, block.errors, strict=True) if why]:
                raise DataError(f"Photo {bad[0][0]} cannot be read: {bad[0][1]}. Leave it out.")
            parts.append(block.probabilities[:, model.classes.index(recipe.keep_if)])
            bar.step(len(block.photos))
    probability = np.concatenate(parts)
    kept = probability >= recipe.keep_above
    left = table.loc[~kept, ["path", "label"]].assign(probability=probability[~kept].round(4))
    words = f"{int((~kept).sum()):,} of {len(table):,} photos are not '{recipe.keep_if}' by {recipe.keep_model}"
    show.say(f"kept: {int(kept.sum()):,} photos; {words}, and are left out")
    found = table[kept].reset_index(drop=True)
    if lost := sorted({*each_label(table["label"]).dropna()} - {*each_label(found["label"]).dropna()}):
        raise DataError(f"{words}; none of {names(lost)} is left. Give a lower --keep-above, or another --keep-model.")
    _check(found, recipe.labels, words)
    return found, left.sort_values("probability", kind="stable", ignore_index=True)
