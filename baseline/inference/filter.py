"""Keep only the images that a second model assigns to a class, such as photos among scans."""

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
    """Split a table into the images to which `recipe.keep_model` gives the class `recipe.keep_if` with a probability of
    at least `recipe.keep_above`, and the others.

    Args:
        table: an image table of readable images.

    Returns:
        The table of the images to keep, and `path`, `label` and `probability` of the others, the least probable first.

    Raises:
        DataError: if the model has no such class, an image cannot be read, or too few images or classes are left.
        OutputError, WeightsError: if the model cannot be used; see `baseline.load`.
    """
    from baseline.inference.model import load

    model = load(resolve_path(recipe.keep_model))
    if recipe.keep_if not in model.classes:
        raise DataError(f"In --keep-model {recipe.keep_model}: {unknown_name('class', recipe.keep_if, model.classes)}")
    parts: list[np.ndarray] = []
    with progress.bar(f"finding images of '{recipe.keep_if}'", len(table), "images") as bar:
        for batch in model.predict_batches(table["path"]):
            if bad := [(path, error) for path, error in zip(batch.images, batch.errors, strict=True) if error]:
                raise DataError(f"Image {bad[0][0]} cannot be read: {bad[0][1]}. Leave it out.")
            parts.append(batch.probabilities[:, model.classes.index(recipe.keep_if)])
            bar.step(len(batch.images))
    probability = np.concatenate(parts)
    matches = probability >= recipe.keep_above
    removed = table.loc[~matches, ["path", "label"]].assign(probability=probability[~matches].round(4))
    count = int((~matches).sum())
    verb = "is" if count == 1 else "are"
    summary = f"{count:,} of {len(table):,} images {verb} not '{recipe.keep_if}' according to {recipe.keep_model}"
    progress.log(f"{summary} and {verb} left out; {int(matches.sum()):,} kept")
    filtered = table[matches].reset_index(drop=True)
    if lost := sorted({*explode_labels(table["label"]).dropna()} - {*explode_labels(filtered["label"]).dropna()}):
        raise DataError(
            f"{summary}; none of {quoted_list(lost)} is left. Give a lower --keep-above, or another --keep-model."
        )
    _check_labels(filtered, recipe.labels, summary)
    return filtered, removed.sort_values("probability", kind="stable", ignore_index=True)
