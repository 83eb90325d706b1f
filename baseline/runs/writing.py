"""TODO."""

from __future__ import annotations

from typing import Any
from pathlib import Path
from baseline.recipe.schema import (Recipe)
from baseline.files import (as_json, write)
from baseline.data.split import (split_csv)
from baseline.system import (versions)
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastai.learner import Learner
    from torch import Tensor
    import pandas as pd
    from baseline.training.state import (History)
    from baseline.vision.weights import (Weights)


GOLDEN_PHOTOS = 4
"""That the model folder keeps, to be checked by."""



def _write_run(
    folder: Path,
    learn: Learner,
    weights: Weights | None,
    table: pd.DataFrame,
    history: History,
    predicted: pd.DataFrame,
    manifest: dict[str, Any],
) -> None:
    fitted = manifest["calibration"].get("temperature")
    _write_training(folder, learn, history, Recipe(**manifest["recipe"]), weights, fitted)
    write(folder / "split.csv", split_csv(table))
    write(folder / "predictions.csv", predicted.to_csv(index=False))
    write(folder / "lr_find.csv", history.sweeps.to_csv(index=False))
    write(folder / "manifest.json", as_json(manifest))



def _write_training(
    folder: Path,
    learn: Learner,
    history: History,
    recipe: Recipe,
    weights: Weights | None,
    temperature: float | None = None,
) -> None:
    from baseline.inference.model_folder import save_network
    from baseline.vision.weights import is_torchvision, normalisation, published

    mean, std = normalisation(recipe.arch)
    facts = {
        "library": "torchvision" if is_torchvision(recipe.arch) else "timm",
        "arch": recipe.arch,
        "head": recipe.head,
        "classes": list(learn.dls.vocab),
        "image_size": recipe.image_size,
        "resize": recipe.resize,
        "mean": mean,
        "std": std,
        "tta": recipe.tta,
        "labels": recipe.labels,
        "threshold": recipe.threshold,
        "temperature": temperature,
        "crop": recipe.augment.crop,
        "precision": recipe.precision,
        "weights_license": published(weights).get("license", "unknown") if weights else None,
        "versions": versions(),
    }
    write(folder / "history.csv", history.epochs.to_csv(index=False))
    save_network(learn.model, facts, folder / "model", _golden(learn, recipe, facts))



def _golden(learn: Learner, recipe: Recipe, facts: dict[str, Any]) -> dict[str, Tensor] | None:
    """What the network makes of a valid photo of each of the first few classes; None if they have gone meanwhile."""
    import numpy as np

    from baseline.inference.model import golden_of
    from baseline.data.image import square

    paths = learn.dls.valid_ds.items.groupby("label").head(1)["path"].head(GOLDEN_PHOTOS)
    try:
        photos = np.stack([square(path, recipe.decoded_size, recipe.resize) for path in paths])
    except OSError:
        return None
    return golden_of(learn.model, facts, photos)
