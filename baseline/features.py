"""A frozen body's outputs, computed once, and the Learner that trains a head on them. Knows no stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import Learner
from torch import nn

from .data import SliceDL, Slices, split_loader
from .learners import autocast
from .progress import Bar, Show

__all__ = ["cut_at_head", "features", "head_learner"]


def head_learner(learn: Learner, views: tuple[str, ...] = (), show: Show | None = None) -> Learner:
    """A Learner that trains only the head of `learn`, on outputs of its body that are computed once.

    The head's layers are those of `learn` themselves: what this Learner learns, `learn` knows. The body is in
    evaluation mode, so it is truly frozen, BatchNorm statistics included, unlike after fastai's `freeze`. Training
    photos are not augmented but for `views`, which are added to them.

    Args:
        views: `("flip",)` adds the mirrored training photos.
    """
    show = show or Show()
    body, head = cut_at_head(learn.model)
    flips = [False, True] if "flip" in views else [False]
    loaders = {name: split_loader(learn.dls, ds.items, name) for name, ds in _sets(learn.dls)}
    total = len(flips) * len(learn.dls.train_ds) + len(learn.dls.valid_ds)
    with show.bar("features of the frozen body", total, "photos") as bar:
        train = [features(learn, body, loaders["train"], flip=flip, bar=bar) for flip in flips]
        valid = features(learn, body, loaders["valid"], bar=bar)
    size = learn.dls.train.bs
    if len(learn.dls.train_ds) >= 100 * size:  # a step on features costs so little that its overhead counts
        size *= 4
    fit = _loader(
        [torch.cat(parts) for parts in zip(*train, strict=True)], learn, bs=size, shuffle=True, drop_last=True
    )
    if learn.dls.train.weights is not None:
        fit.weights = np.tile(learn.dls.train.weights, len(flips))
    dls = DataLoaders(fit, _loader(valid, learn, bs=max(size, 1024)))
    return Learner(
        dls, head, loss_func=learn.loss_func, opt_func=learn.opt_func, metrics=learn.metrics, path=learn.path
    )


def cut_at_head(model: nn.Sequential) -> tuple[nn.Module, nn.Sequential]:
    """The body with the pooling that follows it, and the layers that have something to learn.

    The parts share their layers with `model`; one after the other they compute what it computes.
    """
    head = list(model[1].children())
    first = next(number for number, layer in enumerate(head) if any(True for _ in layer.parameters()))
    return nn.Sequential(model[0], *head[:first]), nn.Sequential(*head[first:])


@torch.no_grad()
def features(
    learn: Learner, body: nn.Module, loader: TfmdDL, *, flip: bool = False, bar: Bar | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `body` makes of every photo of `loader`, mirrored left to right or not: N x F float32, and N targets."""
    body.eval()
    outputs, targets = [], []
    for photos, labels in loader:
        photos = photos.flip(-1) if flip else photos
        with autocast(learn):
            outputs.append(body(photos.contiguous(memory_format=torch.channels_last)).float().as_subclass(torch.Tensor))
        targets.append(labels.as_subclass(torch.Tensor))
        if bar:
            bar.step(len(labels))
    return torch.cat(outputs), torch.cat(targets)


def _sets(dls: DataLoaders) -> list[tuple[str, Any]]:
    return [("train", dls.train_ds), ("valid", dls.valid_ds)]


def _loader(pair: list[torch.Tensor] | tuple[torch.Tensor, ...], learn: Learner, **options: object) -> SliceDL:
    inputs, targets = pair
    slices = Slices(inputs, torch.arange(len(inputs), device=inputs.device), targets, torch.Tensor)
    return SliceDL(slices, num_workers=0, device=learn.dls.device, **options)
