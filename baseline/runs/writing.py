"""Writes the files of a run folder: model, history, splits, predictions, and the manifest last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from baseline.data.split import split_to_csv
from baseline.files import to_csv, to_json, write_atomic
from baseline.recipe.load import recipe_from_dict
from baseline.system import package_versions

if TYPE_CHECKING:
    import pandas as pd
    from fastai.learner import Learner
    from torch import Tensor

    from baseline.data.prepare import Prepared
    from baseline.recipe.schema import Recipe
    from baseline.runs.manifest import Manifest
    from baseline.training.state import History
    from baseline.vision.weights import Weights


GOLDEN_IMAGES = 4
"""Number of images that the model folder keeps to check itself by."""


def write_fixes(folder: Path, prepared: Prepared) -> None:
    """Write the label fixes that were applied, if any."""
    if prepared.fixes is not None:
        write_atomic(folder / "fixes.csv", to_csv(prepared.fixes))


def write_run(
    folder: Path,
    learn: Learner,
    weights: Weights | None,
    table: pd.DataFrame,
    history: History,
    predicted: pd.DataFrame,
    manifest: Manifest,
    transforms: Sequence[str] = (),
) -> None:
    """Write every file of a finished run, the manifest last; `transforms` names the user's that predictions need."""
    temperature = manifest["calibration"].get("temperature")
    recipe = recipe_from_dict(manifest["recipe"])
    if thresholds := predicted.attrs.pop("thresholds", {}):
        manifest["thresholds"] = thresholds
    if cut_points := predicted.attrs.pop("cut_points", []):
        manifest["cut_points"] = cut_points
    decisions = {"thresholds": [*thresholds.values()]} | ({"cut_points": cut_points} if cut_points else {})
    write_training(folder, learn, history, recipe, weights, temperature, transforms, decisions)
    write_atomic(folder / "split.csv", split_to_csv(table))
    write_atomic(folder / "predictions.csv", to_csv(predicted))
    write_atomic(folder / "lr_find.csv", to_csv(history.sweeps))
    write_atomic(folder / "manifest.json", to_json(manifest))


def write_training(
    folder: Path,
    learn: Learner,
    history: History,
    recipe: Recipe,
    weights: Weights | None,
    temperature: float | None = None,
    transforms: Sequence[str] = (),
    decisions: Mapping[str, Any] = MappingProxyType({"thresholds": []}),
) -> None:
    """Write the history and the model folder; `decisions` are its fields `thresholds` and `cut_points`.

    A network that is not one of the architectures that `load` can build gets a file `weights.safetensors` instead.
    """
    from safetensors.torch import save_model

    from baseline.vision.model_folder import save_network
    from baseline.vision.network import features_of, find_head
    from baseline.vision.own_loaders import image_shape, is_own, normalization_of
    from baseline.vision.weights import is_torchvision, normalization, published_info

    write_atomic(folder / "history.csv", to_csv(history.epochs))
    head = vars(learn).get("built_head") or find_head(
        learn.model, recipe.model.arch, len(learn.dls.vocab), recipe.model.head
    )
    if head is None:
        save_model(learn.model, str(folder / "weights.safetensors"))
        return
    mean, std = normalization_of(learn.dls, normalization(recipe.model.arch))
    facts = {
        "library": "torchvision" if is_torchvision(recipe.model.arch) else "timm",
        "arch": recipe.model.arch,
        "head": head,
        "features": features_of(learn.model[0]),
        "classes": [str(name) for name in learn.dls.vocab],
        "image_size": recipe.model.image_size,
        "resize": recipe.model.resize,
        "value_range": recipe.data.value_range,
        "mean": mean,
        "std": std,
        "tta": recipe.evaluation.tta,
        "task": recipe.data.task,
        "threshold": recipe.evaluation.threshold,
        **decisions,
        "temperature": temperature,
        "crop": recipe.augment.crop,
        "precision": recipe.model.precision,
        "weights_license": published_info(weights).get("license", "unknown") if weights else None,
        "versions": package_versions(),
    } | ({"transforms": [*transforms]} if transforms else {})
    if is_own(learn.dls):
        facts["image_shape"] = image_shape(learn.dls)
    save_network(learn.model, facts, folder / "model", _golden_tensors(learn, recipe, facts))


def _golden_tensors(learn: Learner, recipe: Recipe, facts: dict[str, Any]) -> dict[str, Tensor] | None:
    """Outputs of the network for one valid image of each of the first few classes; None if these images are gone."""
    import numpy as np

    from baseline.data.image import load_square
    from baseline.evaluation.golden import golden_outputs
    from baseline.vision.own_loaders import is_own, own_table

    rows = own_table(learn.dls).query("split == 'valid'") if is_own(learn.dls) else learn.dls.valid_ds.items
    paths = rows.groupby("label").head(1)["path"].head(GOLDEN_IMAGES)
    try:
        spec = recipe.decoded_size, recipe.model.resize, recipe.data.value_range
        images = np.stack([load_square(path, *spec) for path in paths])
    except OSError:
        return None
    return golden_outputs(learn.model, facts, images)
