"""TODO."""

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
    """The recipe with every `"auto"` replaced, the weights of its architecture, and the reason for each choice.

    Raises:
        RecipeError: if the architecture does not exist or the precision does not go with the device.
        WeightsError: if the pretrained weights cannot be had.
    """
    from baseline.data.labels import is_multilabel
    from baseline.system import bfloat16_instructions, has_compiler
    from baseline.vision.weights import find_weights, is_obtainable

    progress = progress or Progress()
    if recipe.compile and not has_compiler():
        raise RecipeError("--compile needs what torch.compile builds with: a C++ compiler, and Triton where there is a "
                          "GPU. Install it (Debian: g++), or leave --compile out.")  # fmt: skip
    device = device_type()
    reasons = {}
    wanted = recipe.arch.split(" or ")[0] if recipe.weights else recipe.arch  # whose file it must be
    looked: list[str] = []

    def within_reach(name: str) -> bool:
        looked.append(name)
        return recipe.scratch or is_obtainable(name, progress)

    arch, reasons["arch"] = resolve_arch(wanted, device, within_reach)
    images = int((table["split"] == "train").sum())
    size, reasons["batch_size"] = resolve_batch_size(recipe.batch_size, images, device)
    precision, reasons["precision"] = resolve_precision(recipe.precision, device)
    frozen, reasons["frozen_precision"] = resolve_frozen_precision(
        recipe.frozen_precision, device, bfloat16_instructions()
    )
    weights = None if recipe.scratch else find_weights(arch, recipe.weights, Progress() if arch in looked else progress)
    labels = "many" if is_multilabel(table["label"], recipe.labels) else "one"
    settled = recipe.changed(arch=arch, batch_size=size, precision=precision, frozen_precision=frozen, labels=labels)
    if recipe.scratch:
        settled, reasons["stages"] = _scratch_stages(settled)
    stages, why = resolve_epochs(settled.stages, images, size)
    if why and not recipe.budget:  # which has its own idea of epochs
        settled, reasons["epochs"] = settled.changed(stages=stages), why
    for key, why in reasons.items():
        if key in ("stages", "epochs"):
            progress.log(f"{key}: {why}")
        elif getattr(recipe, key) != getattr(settled, key):
            progress.log(f"{key}: {getattr(settled, key)} ({why})")
    return settled, weights, reasons
