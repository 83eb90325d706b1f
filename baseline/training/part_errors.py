"""Errors in transforms, losses, metrics and callbacks of the user's, reported by the name of the part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat

from baseline.errors import TrainingError, first_line
from baseline.training.frozen import OWN_CALLBACKS, has_own_transforms, loader_transforms
from baseline.training.state import loader_state, set_loader_state
from baseline.vision.augment import OWN_TYPES
from baseline.vision.own_parts import named_errors, part_name
from baseline.vision.rng import preserve_rng_state

__all__ = ["check_parts", "has_own_parts", "named_learner_errors"]


@contextmanager
def named_learner_errors(learn: Learner, where: str) -> Iterator[None]:
    """Turn an error that was raised in a part of the user's into one line that names it; see `named_errors`."""
    parts = [("transform", t) for t in loader_transforms(learn) if not isinstance(t, OWN_TYPES)]
    parts += [("metric", metric) for metric in learn.metrics]
    parts += [("loss_func", learn.loss_func)]
    parts += [("callback", callback) for callback in learn.cbs if not isinstance(callback, OWN_CALLBACKS)]
    with named_errors(parts, where):
        yield


def has_own_parts(learn: Learner) -> bool:
    """Whether loaders, transforms or the loss are not those that `baseline.learner` makes."""
    is_known_loss = isinstance(learn.loss_func, (CrossEntropyLossFlat, BCEWithLogitsLossFlat, FocalLossFlat))
    return has_own_transforms(learn) or not is_known_loss


def check_parts(learn: Learner) -> None:
    """Check a batch of each loader, and the loss of one, before training begins; random states stay as they are.

    Raises:
        TrainingError: if transforms do not make float images N x 3 x H x W, the network does not take them, or the loss
            is not one number.
    """
    own = [part_name(t) for t in loader_transforms(learn) if not isinstance(t, OWN_TYPES)]
    made_by = f"the transforms ({', '.join(dict.fromkeys(own))})" if own else "the DataLoaders"
    images = targets = torch.empty(0)
    for name, loader in (("train", learn.dls.train), ("valid", learn.dls.valid)):
        state = loader_state(loader)
        with preserve_rng_state(), named_learner_errors(learn, f"Before stage 1, {name} batch"):
            try:
                batch = loader.one_batch()
            except (TypeError, RuntimeError, ValueError, AttributeError) as error:
                if not own or not is_in_collation(error.__traceback__):
                    raise
                raise TrainingError(
                    f"Before stage 1: {made_by} make no {name} batch: {first_line(error)}. "
                    "Expected were images of one size and type."
                ) from error
        set_loader_state(loader, state)
        images, targets = batch[0], batch[-1]
        are_images = isinstance(images, torch.Tensor) and images.ndim == 4 and images.is_floating_point()
        if not are_images or len(images) != len(targets):
            raise TrainingError(
                f"Before stage 1: {made_by} make {name} batches of {_describe(images)}; float images "
                f"{len(targets)} x 3 x H x W were needed."
            )
    _check_loss(learn, images, targets)


def is_in_collation(traceback: TracebackType | None) -> bool:
    """Whether an error was raised while items were put together into a batch."""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name in ("fa_collate", "default_collate"):
            return True
        traceback = traceback.tb_next
    return False


def _check_loss(learn: Learner, images: torch.Tensor, targets: torch.Tensor) -> None:
    training, device = learn.model.training, next(learn.model.parameters()).device
    try:
        with torch.no_grad(), preserve_rng_state(), named_learner_errors(learn, "Before stage 1"):
            outputs = learn.model.eval()(images.as_subclass(torch.Tensor).to(device))
            loss = learn.loss_func(outputs, targets.as_subclass(torch.Tensor).to(device))
    finally:
        learn.model.train(training)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise TrainingError(
            f"Before stage 1: the loss_func {part_name(learn.loss_func)} returned {_describe(loss)}; one number was "
            "needed, such as the mean over the batch."
        )


def _describe(value: Any) -> str:
    """Describe a tensor by shape and type, anything else by its type."""
    if isinstance(value, torch.Tensor):
        return f"{' x '.join(map(str, value.shape)) or 'one number'}, {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
