"""TODO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from baseline.data.label_fixes import _check_labels
from baseline.data.labels import explode_labels
from baseline.errors import DataError, quoted_list, unknown_name
from baseline.files import resolve_path

if TYPE_CHECKING:
    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe

__all__ = ["filter_by_model"]


def filter_by_model(table: pd.DataFrame, recipe: Recipe, progress: Progress) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The images that `recipe.keep_model` calls `recipe.keep_if` by at least `recipe.keep_above`, and the others.

    Args:
        table: an image table of readable images.

    Returns:
        The image table without them, and of those that leave it `path, label, probability`, the least probable first.

    Raises:
        DataError: if the model has no such class, an image cannot be read, or too few images or classes are left.
        OutputError, WeightsError: if the model cannot be used; see `baseline.load`.
    """
    from baseline.inference.model import load

    model = load(resolve_path(recipe.keep_model))
    if recipe.keep_if not in model.classes:
        raise DataError(f"In --keep-model {recipe.keep_model}: {unknown_name('class', recipe.keep_if, model.classes)}")
    parts: list[np.ndarray] = []
    with progress.bar(f"which images are '{recipe.keep_if}'", len(table), "images") as bar:
        for block in model.predict_batches(table["path"]):
            if bad := [(path, why) for path, why in zip(block.images, block.errors, strict=True) if why]:
                raise DataError(f"Image {bad[0][0]} cannot be read: {bad[0][1]}. Leave it out.")
            parts.append(block.probabilities[:, model.classes.index(recipe.keep_if)])
            bar.step(len(block.images))
    probability = np.concatenate(parts)
    kept = probability >= recipe.keep_above
    left = table.loc[~kept, ["path", "label"]].assign(probability=probability[~kept].round(4))
    words = f"{int((~kept).sum()):,} of {len(table):,} images are not '{recipe.keep_if}' by {recipe.keep_model}"
    progress.log(f"kept: {int(kept.sum()):,} images; {words}, and are left out")
    found = table[kept].reset_index(drop=True)
    if lost := sorted({*explode_labels(table["label"]).dropna()} - {*explode_labels(found["label"]).dropna()}):
        raise DataError(
            f"{words}; none of {quoted_list(lost)} is left. Give a lower --keep-above, or another --keep-model."
        )
    _check_labels(found, recipe.labels, words)
    return found, left.sort_values("probability", kind="stable", ignore_index=True)
