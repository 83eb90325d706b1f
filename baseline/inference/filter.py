"""Keep only the images that a second model assigns to a class, such as photographs among scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from baseline.data.label_fixes import check_table_after
from baseline.data.labels import explode_labels, order_classes
from baseline.errors import DataError, quoted_list, unknown_name
from baseline.files import resolve_path
from baseline.progress import Progress

__all__ = ["filter_by_model"]


def filter_by_model(
    table: pd.DataFrame,
    model: str | Path,
    keep: str,
    above: float = 0.5,
    *,
    task: str = "auto",
    progress: Progress | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split a table into the images that a second model assigns to one of its classes, and the others.

    Args:
        table: an image table of readable images.
        model: the run or model folder of the second model.
        keep: one of its classes.
        above: minimum calibrated probability of that class, 0 to 1.
        task: the task of the table; see `baseline.image_table`.

    Returns:
        The table of the images to keep, and `path`, `label` and `probability` of the others, the least probable first.

    Raises:
        DataError: if the model has no such class, an image cannot be read, or too few images or classes are left.
        OutputError, WeightsError: if the model cannot be used; see `baseline.load`.

    >>> kept, left_out = filter_by_model(table, "runs/skyline-or-not", "skyline")  # doctest: +SKIP
    """  # fmt: skip
    from baseline.inference.model import load

    progress = progress or Progress()
    network = load(resolve_path(str(model)))
    if keep not in network.classes:
        raise DataError(f"In {model}: {unknown_name('class', keep, network.classes)}")
    parts: list[np.ndarray] = []
    with progress.bar(f"finding images of '{keep}'", len(table), "images") as bar:
        for batch in network.predict_batches(table["path"]):
            if bad := [(path, error) for path, error in zip(batch.images, batch.errors, strict=True) if error]:
                raise DataError(f"Image {bad[0][0]} cannot be read: {bad[0][1]}. Leave it out.")
            parts.append(batch.probabilities[:, network.classes.index(keep)])
            bar.step(len(batch.images))
    probability = np.concatenate(parts)
    matches = probability >= above
    removed = table.loc[~matches, ["path", "label"]].assign(probability=probability[~matches].round(4))
    count = int((~matches).sum())
    verb = "is" if count == 1 else "are"
    summary = f"{count:,} of {len(table):,} images {verb} not '{keep}' according to {model}"
    progress.log(f"{summary} and {verb} left out; {int(matches.sum()):,} kept")
    filtered = table[matches].reset_index(drop=True)
    if lost := order_classes(
        {*explode_labels(table["label"]).dropna()} - {*explode_labels(filtered["label"]).dropna()}
    ):
        raise DataError(f"{summary}; none of {quoted_list(lost)} is left. Use a lower `above`, or another model.")
    check_table_after(filtered, task, summary)
    return filtered, removed.sort_values("probability", kind="stable", ignore_index=True)
