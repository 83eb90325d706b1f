"""Chooses an architecture by probes: logistic regression on the features of each, compared on the validation images."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from baseline.errors import RecipeError, quoted_list
from baseline.metrics.registry import find_metric
from baseline.progress import Progress, format_duration
from baseline.recipe.schema import Stage
from baseline.training.stages import train
from baseline.training.state import epoch_score
from baseline.vision.dataloaders import dataloaders
from baseline.vision.learner import learner
from baseline.vision.resolve import resolve
from baseline.vision.rng import seed_everything
from baseline.vision.weights import offline_weights

if TYPE_CHECKING:
    import pandas as pd

    from baseline.recipe.schema import Recipe

__all__ = ["choose_arch"]

CANDIDATES = (
    "tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2", "mobilenet_v2", "mobilenet_v3_large",
    "squeezenet1_1", "resnet18", "resnet34", "resnet50", "efficientnet_b0", "convnext_nano.in12k_ft_in1k",
    "convnext_tiny.in12k_ft_in1k",
)  # fmt: skip
"""Architectures that `probe` compares where their weights are on this machine."""


def choose_arch(recipe: Recipe, table: pd.DataFrame, progress: Progress) -> tuple[Recipe, str]:
    """Return the recipe with the architecture whose probe is best on the validation images, and the reason.

    The recipe's `arch` is `"probe"`, for all `CANDIDATES` whose weights are on this machine, or `"probe:NAME,NAME"`,
    for those, which are downloaded if necessary. Features of the winner stay in the cache for training.

    Raises:
        RecipeError: if there are no weights to compare, or the recipe names a weights file, which fits only one.
    """
    if recipe.model.weights or not recipe.model.pretrained:
        raise RecipeError(
            "arch is 'probe', which compares pretrained weights: leave out --weights and --no-pretrained."
        )
    names = [name.strip() for name in recipe.model.arch.partition(":")[2].split(",") if name.strip()]
    names = names or [name for name in CANDIDATES if next(offline_weights(name), None)]
    if not names:
        raise RecipeError(
            f"arch is 'probe', and this machine has weights of none of {quoted_list(CANDIDATES)}. Name architectures "
            "to download, such as --arch probe:resnet18,resnet50."
        )
    if len(names) == 1:
        return recipe.changed(arch=names[0]), "the only one to compare; --arch probe:NAME,NAME downloads others"
    start, scores, texts = time.perf_counter(), {}, {}
    for name in names:
        began = time.perf_counter()
        epoch = probe_epoch(recipe.changed(arch=name), table, progress)
        column = next(key for key in epoch if key.startswith("valid_") and key != "valid_loss")
        metric = find_metric(column.removeprefix("valid_"))
        scores[name] = epoch_score(metric.score(epoch[column]), epoch["valid_loss"])
        texts[name] = f"{name} {metric.text(epoch[column], 1)}"
        progress.log(f"probe of {texts[name]} valid; {format_duration(time.perf_counter() - began)}")
    seconds = format_duration(time.perf_counter() - start)
    reason = f"the best of {len(names)} by their probes on valid, in {seconds}: {', '.join(texts.values())}"
    return recipe.changed(arch=max(scores, key=lambda name: scores[name])), reason


def probe_epoch(recipe: Recipe, table: pd.DataFrame, progress: Progress) -> dict[str, float]:
    """Return the epoch of a probe in the history: `valid_loss` and the recipe's metric."""
    resolved, weights, _ = resolve(recipe.changed(stages=(Stage("probe"),), head="linear"), table)
    with seed_everything(recipe.seed):
        learn = learner(dataloaders(table, resolved, progress=progress), resolved, weights=weights)
        return {str(name): value for name, value in train(learn, resolved).epochs.iloc[-1].items()}
