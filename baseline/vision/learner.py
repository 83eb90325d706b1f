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
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat
from fastai.metrics import F1ScoreMulti, accuracy
from fastai.torch_core import default_device

from baseline.data.labels import class_weights
from baseline.progress import Progress
from baseline.vision.bodies import device_of
from baseline.vision.network import build_network
from baseline.vision.own_loaders import add_normalization, adopt, image_shape, is_own, own_table
from baseline.vision.own_parts import OwnParts
from baseline.vision.weights import find_weights, normalization

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe
    from baseline.vision.weights import Weights

__all__ = ["autocast", "balanced_weights", "learner", "mixed_precision"]


def learner(
    dls: DataLoaders,
    recipe: Recipe,
    *,
    weights: Weights | None = None,
    loss_func: Any = None,
    metrics: Any = None,
    cbs: Any = None,
    path: Path | str | None = None,
    progress: Progress | None = None,
) -> Learner:
    """Return a fastai Learner over the recipe's network: pretrained body, fastai's head, layer groups.

    The Learner is on fastai's default device, in evaluation mode, with all layers trainable until a stage freezes some.

    Args:
        dls: the DataLoaders, from `baseline.dataloaders`, or your own. If the weights are pretrained, `Normalize` with
            their statistics is added to your own where it is missing, as `vision_learner` does.
        recipe: a recipe with every "auto" resolved.
        weights: weights of the body; defaults to those of `find_weights`, or random ones with `pretrained=False`.
        loss_func: a loss of your own in place of the recipe's.
        metrics: a metric, or several, of your own, beside the one that the recipe selects epochs by.
        cbs: callbacks of your own. One that has the attribute `cacheable = True` also runs where a stage trains on
            cached features; with any other, stages train on images.
        path: folder that the Learner may write to.
        progress: receives messages.

    Raises:
        RecipeError: if the architecture does not exist or its head cannot be cut off.
        WeightsError: if the weights are not available or belong to another architecture.
    """
    parts = OwnParts(loss_func=loss_func, metrics=metrics, cbs=cbs)
    if weights is None and recipe.model.pretrained:
        weights = find_weights(recipe.model.arch, recipe.model.weights)
    size = recipe.model.image_size
    if is_own(adopt(dls)):
        size = max(image_shape(dls))
        if recipe.model.pretrained:
            add_normalization(dls, *normalization(recipe.model.arch), progress or Progress())
    model, splitter = build_network(
        recipe.model.arch,
        len(dls.vocab),
        weights,
        recipe.model.head,
        image_size=size,
        dynamic=any(stage.image_size not in (0, size) for stage in recipe.stages),
    )
    learn = Learner(
        dls,
        model,
        loss_func=loss_func or _loss_function(dls, recipe),
        splitter=splitter,
        metrics=_default_metric(recipe) if metrics is None else parts.metrics,
        path=path,
        cbs=[ChannelsLast(), *(parts.cbs or ())],
    )
    learn.built_head = recipe.model.head  # that `build_network` can build again
    if recipe.model.precision in ("float16", "bfloat16"):
        learn.to_fp16() if recipe.model.precision == "float16" else learn.to_bf16()
    model.to(default_device()).eval()
    return learn


def balanced_weights(dls: DataLoaders) -> torch.Tensor:
    """Return a weight per class for the loss, from the training images of the DataLoaders; see `class_weights`."""
    labels = (own_table(dls).query("split == 'train'") if is_own(dls) else dls.train_ds.items)["label"]
    values = class_weights(labels, [str(name) for name in dls.vocab], multilabel=dls.multilabel)
    return torch.tensor(values, dtype=torch.float32, device=default_device())


def _loss_function(dls: DataLoaders, recipe: Recipe) -> Any:
    """Return the recipe's loss, with class weights if it has them; with several labels binary cross-entropy."""
    weights = balanced_weights(dls) if recipe.training.class_balance == "weights" else None
    if dls.multilabel:
        return BCEWithLogitsLossFlat(thresh=recipe.evaluation.threshold, pos_weight=weights)
    if recipe.training.loss == "focal":
        return FocalLossFlat(weight=weights)
    return CrossEntropyLossFlat(weight=weights, label_smoothing=recipe.training.label_smoothing)


def _default_metric(recipe: Recipe) -> Any:
    if recipe.data.task != "multilabel":
        return accuracy
    metric = F1ScoreMulti(recipe.evaluation.threshold, average="micro")
    metric.name = "micro_f1"
    return metric


def autocast(learn: Learner) -> torch.autocast:
    """Return an autocast context with the precision that the Learner trains in, for passes outside its loop."""
    callback = getattr(learn, "mixed_precision", None)
    is_bfloat16 = callback is not None and "bf16" in str(callback.amp_mode).lower()
    name = "float32" if callback is None else "bfloat16" if is_bfloat16 else "float16"
    return mixed_precision(name, device_of(learn.model).type)


def mixed_precision(name: str, device: str) -> torch.autocast:
    """Return an autocast context for `"float16"` or `"bfloat16"`; any other name means float32.

    On devices other than CPUs and CUDA's it is float32, as fastai trains there, whatever the name.
    """
    known = device in ("cpu", "cuda")  # torch 2.4 raises an error for Apple's GPUs, even for float32
    dtype = torch.float16 if name == "float16" else torch.bfloat16
    return torch.autocast(device if known else "cpu", dtype, enabled=known and name in ("float16", "bfloat16"))
