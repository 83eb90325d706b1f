"""TODO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baseline.errors import RecipeError
from baseline.progress import Show
from baseline.recipe.auto import (
    settle_arch,
    settle_batch_size,
    settle_epochs,
    settle_frozen_precision,
    settle_precision,
)
from baseline.recipe.choose import _from_scratch
from baseline.system import _device

if TYPE_CHECKING:
    import pandas as pd

    from baseline.recipe.schema import Recipe
    from baseline.vision.weights import Weights

__all__ = ["settle"]


def settle(
    recipe: Recipe, table: pd.DataFrame, show: Show | None = None
) -> tuple[Recipe, Weights | None, dict[str, str]]:
    """The recipe with every `"auto"` replaced, the weights of its architecture, and the reason for each choice.

    Raises:
        RecipeError: if the architecture does not exist or the precision does not go with the device.
        WeightsError: if the pretrained weights cannot be had.
    """
    from baseline.data.labels import has_many
    from baseline.system import bfloat16_units, has_compiler
    from baseline.vision.weights import find_weights, obtainable

    show = show or Show()
    if recipe.compile and not has_compiler():
        raise RecipeError("--compile needs what torch.compile builds with: a C++ compiler, and Triton where there is a "
                          "GPU. Install it (Debian: g++), or leave --compile out.")  # fmt: skip
    device = _device()
    reasons = {}
    wanted = recipe.arch.split(" or ")[0] if recipe.weights else recipe.arch  # whose file it must be
    looked: list[str] = []

    def within_reach(name: str) -> bool:
        looked.append(name)
        return recipe.scratch or obtainable(name, show)

    arch, reasons["arch"] = settle_arch(wanted, device, within_reach)
    photos = int((table["split"] == "train").sum())
    size, reasons["batch_size"] = settle_batch_size(recipe.batch_size, photos, device)
    precision, reasons["precision"] = settle_precision(recipe.precision, device)
    frozen, reasons["frozen_precision"] = settle_frozen_precision(recipe.frozen_precision, device, bfloat16_units())
    weights = None if recipe.scratch else find_weights(arch, recipe.weights, Show() if arch in looked else show)
    labels = "many" if has_many(table["label"], recipe.labels) else "one"
    settled = recipe.changed(arch=arch, batch_size=size, precision=precision, frozen_precision=frozen, labels=labels)
    if recipe.scratch:
        settled, reasons["stages"] = _from_scratch(settled)
    stages, why = settle_epochs(settled.stages, photos, size)
    if why and not recipe.budget:  # which has its own idea of epochs
        settled, reasons["epochs"] = settled.changed(stages=stages), why
    for key, why in reasons.items():
        if key in ("stages", "epochs"):
            show.say(f"{key}: {why}")
        elif getattr(recipe, key) != getattr(settled, key):
            show.say(f"{key}: {getattr(settled, key)} ({why})")
    return settled, weights, reasons
