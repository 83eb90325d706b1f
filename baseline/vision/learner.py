"""The fastai Learner of a recipe.

Recipe + DataLoaders -> Learner. The network is assembled like in fastai's `vision_learner`, from the same parts
(`create_body` or `TimmBody`, `add_head`, `Learner`). `vision_learner` itself is not used because three things must
differ: weights come from a verified file, normalization belongs to the weights instead of a list of known names, and
timm networks have timm's own layer groups instead of two.
This module knows networks and weights; it knows no images and no stages.
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
    """Return a fastai Learner over the recipe's network: pretrained body, fastai's head, layer groups.

    The Learner is on fastai's default device, in evaluation mode, with all layers trainable until a stage freezes some.

    Args:
        dls: the DataLoaders, from `baseline.dataloaders`.
        recipe: a recipe with every "auto" resolved.
        weights: weights of the body; defaults to those of `find_weights`, or random ones with `pretrained=False`.
        path: folder that the Learner may write to.

    Raises:
        RecipeError: if the architecture does not exist or its head cannot be cut off.
        WeightsError: if the weights are not available or belong to another architecture.
    """
    if weights is None and recipe.model.pretrained:
        weights = find_weights(recipe.model.arch, recipe.model.weights)
    model, splitter = build_network(recipe.model.arch, len(dls.vocab), weights, recipe.model.head)
    learn = Learner(
        dls,
        model,
        loss_func=_loss_function(dls, recipe),
        splitter=splitter,
        metrics=F1ScoreMulti(recipe.evaluation.threshold, average="micro")
        if recipe.data.task == "multilabel"
        else accuracy,
        path=path,
        cbs=ChannelsLast(),
    )
    if recipe.model.precision in ("float16", "bfloat16"):
        learn.to_fp16() if recipe.model.precision == "float16" else learn.to_bf16()
    model.to(default_device()).eval()
    return learn


def _loss_function(dls: DataLoaders, recipe: Recipe) -> Any:
    """Return cross-entropy, with class weights if the recipe has them; for multi-label recipes the binary one."""
    if recipe.data.task == "multilabel":
        return BCEWithLogitsLossFlat(thresh=recipe.evaluation.threshold)
    if recipe.training.class_balance != "weights":
        return CrossEntropyLossFlat()
    counts = dls.train_ds.items["label"].value_counts()
    class_weights = [len(dls.train_ds) / (len(dls.vocab) * counts[name]) for name in dls.vocab]
    return CrossEntropyLossFlat(weight=torch.tensor(class_weights, dtype=torch.float32, device=default_device()))


def autocast(learn: Learner) -> torch.autocast:
    """Return an autocast context with the precision that the Learner trains in, for passes outside its loop."""
    callback = getattr(learn, "mixed_precision", None)
    is_bfloat16 = callback is not None and "bf16" in str(callback.amp_mode).lower()
    name = "float32" if callback is None else "bfloat16" if is_bfloat16 else "float16"
    return mixed_precision(name, device_of(learn.model).type)


def mixed_precision(name: str, device: str) -> torch.autocast:
    """Return an autocast context for `"float16"` or `"bfloat16"`; any other name means float32."""
    return torch.autocast(
        device, torch.float16 if name == "float16" else torch.bfloat16, enabled=name in ("float16", "bfloat16")
    )
