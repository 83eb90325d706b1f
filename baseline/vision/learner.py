"""Recipe + DataLoaders -> a complete fastai Learner. Knows networks and weights; knows no images, no stages.

The network is put together as fastai's `vision_learner` does it, from the same parts (`create_body` or `TimmBody`,
`add_head`, `Learner`), because three things must differ: weights come from a checked file, normalisation belongs to
the weights and not to a list of known names, and timm's layer groups are timm's own instead of two.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.metrics import F1ScoreMulti, accuracy
from fastai.torch_core import default_device

from baseline.vision.network import build_network, device_of
from baseline.vision.weights import find_weights

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe
    from baseline.vision.weights import Weights

__all__ = ["autocast", "learner", "mixed_precision"]


def learner(
    dls: DataLoaders, recipe: Recipe, *, weights: Weights | None = None, path: Path | str | None = None
) -> Learner:
    """A fastai Learner over the recipe's network: pretrained body, fastai's head, discriminative layer groups.

    The body's weights are `weights`, else what `find_weights` finds; with `recipe.scratch` they are random. The
    Learner is on the device of `dls`, in evaluation mode, with all layers trainable until a stage freezes some.

    Raises:
        RecipeError: if the architecture does not exist or has no body that can be cut off.
        WeightsError: if the weights cannot be had or are not of this architecture.
    """
    if weights is None and not recipe.scratch:
        weights = find_weights(recipe.arch, recipe.weights)
    model, splitter = build_network(recipe.arch, len(dls.vocab), weights, recipe.head)
    learn = Learner(
        dls,
        model,
        loss_func=_loss_function(dls, recipe),
        splitter=splitter,
        metrics=F1ScoreMulti(recipe.threshold, average="micro") if recipe.labels == "many" else accuracy,
        path=path,
        cbs=ChannelsLast(),
    )
    if recipe.precision in ("float16", "bfloat16"):
        learn.to_fp16() if recipe.precision == "float16" else learn.to_bf16()
    model.to(default_device()).eval()
    return learn


def _loss_function(dls: DataLoaders, recipe: Recipe) -> Any:
    """Cross-entropy, weighted by how rare a class is where that is wished; for many labels binary cross-entropy."""
    if recipe.labels == "many":
        return BCEWithLogitsLossFlat(thresh=recipe.threshold)
    if recipe.balance != "weights":
        return CrossEntropyLossFlat()
    counts = dls.train_ds.items["label"].value_counts()
    shares = [len(dls.train_ds) / (len(dls.vocab) * counts[name]) for name in dls.vocab]
    return CrossEntropyLossFlat(weight=torch.tensor(shares, dtype=torch.float32, device=default_device()))


def autocast(learn: Learner) -> torch.autocast:
    """The number format that the Learner trains in, for a forward pass outside its loop."""
    mixed = getattr(learn, "mixed_precision", None)
    bfloat16 = mixed is not None and "bf16" in str(mixed.amp_mode).lower()
    name = "float32" if mixed is None else "bfloat16" if bfloat16 else "float16"
    return mixed_precision(name, device_of(learn.model).type)


def mixed_precision(name: str, device: str) -> torch.autocast:
    """Inside, passes run in the format of that name: `"float16"`, `"bfloat16"`, any other is float32."""
    return torch.autocast(
        device, torch.float16 if name == "float16" else torch.bfloat16, enabled=name in ("float16", "bfloat16")
    )
