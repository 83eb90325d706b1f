"""Resolving every "auto" of a recipe for the images and the machine at hand."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from baseline.progress import Progress
from baseline.recipe.auto import (
    GPU_ARCHS,
    resolve_arch,
    resolve_batch_size,
    resolve_epochs,
    resolve_frozen_precision,
    resolve_image_size,
    resolve_precision,
)
from baseline.recipe.choose import scratch_stages
from baseline.system import bfloat16_instructions, device_type, fast_imports, is_intel_cpu

if TYPE_CHECKING:
    import pandas as pd

    from baseline.recipe.schema import Recipe
    from baseline.vision.weights import Weights

__all__ = ["resolve"]


def resolve(
    recipe: Recipe, table: pd.DataFrame, progress: Progress | None = None
) -> tuple[Recipe, Weights | None, dict[str, str]]:
    """Resolve the settings that depend on the device and the number of images, find the weights, and give the reasons.

    Args:
        recipe: the recipe.
        table: an image table in which every image has a split.
        progress: receives a message for each choice.

    Returns:
        The resolved recipe, its weights (None if not pretrained), and the reason for each choice by field.

    Raises:
        RecipeError: if the architecture does not exist or the device does not support the precision.
        WeightsError: if the pretrained weights are not available.
    """
    from baseline.data.labels import is_multilabel
    from baseline.vision.weights import find_weights, is_obtainable

    progress = progress or Progress()
    device, model, reasons = device_type(), recipe.model, {}
    requested = model.arch.split(" or ")[0] if model.weights else model.arch  # a file fits only one
    checked: list[str] = []

    def has_weights(name: str) -> bool:
        checked.append(name)
        # without pretrained weights, ConvNeXt needs long schedules
        return is_obtainable(name, progress) if model.pretrained else name != GPU_ARCHS[0]

    arch, reasons["arch"] = resolve_arch(requested, device, has_weights)
    images = int((table["split"] == "train").sum())
    size, reasons["batch_size"] = resolve_batch_size(recipe.training.batch_size, images, device)
    precision, reasons["precision"] = resolve_precision(recipe.model.precision, device)
    frozen, reasons["frozen_precision"] = resolve_frozen_precision(
        recipe.model.frozen_precision, device, bfloat16_instructions(), is_intel_cpu()
    )
    weights = None
    if model.pretrained:
        weights = find_weights(arch, model.weights, Progress() if arch in checked else progress)
    task = "multilabel" if is_multilabel(table["label"], recipe.data.task) else "single"
    resolved = recipe.changed(arch=arch, batch_size=size, precision=precision, frozen_precision=frozen, task=task)
    if not recipe.model.pretrained:
        resolved, reasons["stages"] = scratch_stages(resolved)
    resolved, reasons["image_size"] = resolve_image_sizes(resolved, math.inf if recipe.training.budget else images)
    stages, reason = resolve_epochs(resolved.stages, images, size)
    if reason and not recipe.training.budget:  # a budget sets the epochs itself
        resolved, reasons["epochs"] = resolved.changed(stages=stages), reason
    reasons = {key: reason for key, reason in reasons.items() if reason}
    for key, reason in reasons.items():
        if key in ("stages", "epochs"):
            progress.log(f"{key}: {reason}")
        elif recipe.value(key) != resolved.value(key) or key == "image_size":
            progress.log(f"{key}: {resolved.value(key)} ({reason})")
    return resolved, weights, reasons


def resolve_image_sizes(recipe: Recipe, images: float = math.inf) -> tuple[Recipe, str]:
    """Return the recipe with image sizes that its architecture accepts, the nearest ones, and the reason if any differ.

    Args:
        images: number of training images; if they are few, the size is the recipe's `small_set_size` if it has one.

    Raises:
        RecipeError: if the architecture's features cannot be pooled, or it accepts no images at all.
    """
    with fast_imports():
        from baseline.vision.sizes import nearest_size, size_problem

    arch, pretrained = recipe.model.arch, recipe.model.pretrained
    requested, few = resolve_image_size(recipe.model.image_size, recipe.model.small_set_size, images)
    size = nearest_size(arch, requested, pretrained=pretrained)
    reasons = [] if size == requested else [f"not {requested}: {size_problem(arch, requested, pretrained=pretrained)}"]
    stages = []
    for number, stage in enumerate(recipe.stages, 1):
        smaller = min(stage.image_size, size)
        accepted = nearest_size(arch, smaller, within=size) if smaller else 0
        if accepted != stage.image_size:
            problem = size_problem(arch, size, stage_size=smaller) or f"images have {size} pixels"
            reasons.append(f"stage {number}: {accepted}, not {stage.image_size}: {problem}")
        stages.append(dataclasses.replace(stage, image_size=accepted))
    texts = [few, f"{arch}: {'; '.join(reasons)}" if reasons else ""]
    return recipe.changed(image_size=size, stages=tuple(stages)), "; ".join(filter(None, texts))
