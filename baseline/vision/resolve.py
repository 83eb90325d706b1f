"""Resolving every "auto" of a recipe for the images and the machine at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baseline.errors import RecipeError
from baseline.progress import Progress
from baseline.recipe.auto import (
    resolve_arch,
    resolve_batch_size,
    resolve_epochs,
    resolve_frozen_precision,
    resolve_precision,
)
from baseline.recipe.choose import _scratch_stages
from baseline.system import device_type

if TYPE_CHECKING:
    import pandas as pd

    from baseline.recipe.schema import Recipe
    from baseline.vision.weights import Weights

__all__ = ["resolve"]


def resolve(
    recipe: Recipe, table: pd.DataFrame, progress: Progress | None = None
) -> tuple[Recipe, Weights | None, dict[str, str]]:
    """Replace every `"auto"` in a recipe, find the weights of its architecture, and give the reasons.

    Args:
        recipe: the recipe.
        table: an image table in which every image has a split.
        progress: receives a message for each choice.

    Returns:
        The resolved recipe, its weights (None with `recipe.scratch`), and the reason for each choice by field.

    Raises:
        RecipeError: if the architecture does not exist or the device does not support the precision.
        WeightsError: if the pretrained weights are not available.
    """
    from baseline.data.labels import is_multilabel
    from baseline.system import bfloat16_instructions, has_compiler
    from baseline.vision.weights import find_weights, is_obtainable

    progress = progress or Progress()
    if recipe.compile and not has_compiler():
        raise RecipeError(
            "--compile needs what torch.compile builds with: a C++ compiler, and Triton on a GPU. Install it "
            "(Debian: g++), or leave out --compile."
        )
    device = device_type()
    reasons = {}
    requested = recipe.arch.split(" or ")[0] if recipe.weights else recipe.arch  # a file fits only one
    checked: list[str] = []

    def has_weights(name: str) -> bool:
        checked.append(name)
        return recipe.scratch or is_obtainable(name, progress)

    arch, reasons["arch"] = resolve_arch(requested, device, has_weights)
    images = int((table["split"] == "train").sum())
    size, reasons["batch_size"] = resolve_batch_size(recipe.batch_size, images, device)
    precision, reasons["precision"] = resolve_precision(recipe.precision, device)
    frozen, reasons["frozen_precision"] = resolve_frozen_precision(
        recipe.frozen_precision, device, bfloat16_instructions()
    )
    weights = (
        None if recipe.scratch else find_weights(arch, recipe.weights, Progress() if arch in checked else progress)
    )
    labels = "many" if is_multilabel(table["label"], recipe.labels) else "one"
    resolved = recipe.changed(arch=arch, batch_size=size, precision=precision, frozen_precision=frozen, labels=labels)
    if recipe.scratch:
        resolved, reasons["stages"] = _scratch_stages(resolved)
    stages, reason = resolve_epochs(resolved.stages, images, size)
    if reason and not recipe.budget:  # a budget sets the epochs itself
        resolved, reasons["epochs"] = resolved.changed(stages=stages), reason
    for key, reason in reasons.items():
        if key in ("stages", "epochs"):
            progress.log(f"{key}: {reason}")
        elif getattr(recipe, key) != getattr(resolved, key):
            progress.log(f"{key}: {getattr(resolved, key)} ({reason})")
    return resolved, weights, reasons
