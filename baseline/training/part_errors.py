"""Errors in transforms, losses, metrics and callbacks of the user's, reported by the name of the part."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

import torch
from fastai.callback.core import TrainEvalCallback
from fastai.learner import Learner, Recorder
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat
from fastai.metrics import accuracy
from sklearn.metrics import f1_score

from baseline.errors import TrainingError, first_line
from baseline.training.frozen import OWN_CALLBACKS, has_own_transforms, loader_transforms
from baseline.training.state import loader_state, set_loader_state
from baseline.vision.augment import OWN_TYPES
from baseline.vision.own_loaders import take_valid_batch
from baseline.vision.own_parts import named_errors, part_name
from baseline.vision.rng import preserve_rng_state

__all__ = ["check_parts", "has_known_loss", "has_own_parts", "named_learner_errors", "recorded_metrics"]


@contextmanager
def named_learner_errors(learn: Learner, where: str) -> Iterator[None]:
    """Turn an error that was raised in a part of the user's into one line that names it; see `named_errors`."""
    parts = [("transform", t) for t in loader_transforms(learn) if type(t) not in OWN_TYPES]
    parts += [("metric", metric) for metric in learn.metrics]
    parts += [("loss_func", learn.loss_func)]
    parts += [("callback", callback) for callback in learn.cbs if not isinstance(callback, OWN_CALLBACKS)]
    dls = learn.dls
    with named_errors(parts, where):
        try:
            yield
        except (ValueError, RuntimeError) as error:
            if "does not require grad" in str(error):
                raise TrainingError(
                    f"{where}: the loss_func {part_name(learn.loss_func)} returned a number without a gradient, from "
                    "which nothing can be learned. Compute it from the outputs, with torch."
                ) from error
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(f"{where}: BatchNorm cannot learn from a batch of one image. Use more.") from error
        finally:
            replaced, learn.dls = learn.dls is not dls, dls
            if replaced and not isinstance(sys.exception(), KeyboardInterrupt | SystemExit):
                raise TrainingError(
                    f"{where}: a callback replaced learn.dls, so that epochs cannot be compared. Pass these "
                    "DataLoaders to a run of their own."
                )


def has_own_parts(learn: Learner) -> bool:
    """Whether loaders, transforms or the loss are not those that `baseline.learner` makes."""
    return has_own_transforms(learn) or not has_known_loss(learn)


def has_known_loss(learn: Learner) -> bool:
    """Whether the loss is one of the recipe's, whose value for random guesses is known."""
    known = isinstance(learn.loss_func, (CrossEntropyLossFlat, BCEWithLogitsLossFlat, FocalLossFlat))
    return known and learn.loss_func.reduction == "mean"


def recorded_metrics(recorder: Recorder, number: int, selected: str) -> dict[str, float]:
    """Return the Learner's metrics of the valid images by column name; a name that is taken gets a number.

    Args:
        number: the stage.
        selected: name of the recipe's metric, which is in the history already if it is fastai's, too.

    Raises:
        TrainingError: if one is not a single number.
    """
    metrics = recorder._valid_mets[1:]
    start = 2 + len(recorder._train_mets)
    values = recorder.log[start : start + len(metrics)]
    if len(values) < len(metrics):  # a callback ended the epoch before they were logged
        values = [metric.value for metric in metrics]
    columns: dict[str, float] = {"valid_loss": 0, f"valid_{selected}": 0}
    for metric, value in zip(metrics, values, strict=True):
        if metric.name == selected and getattr(metric, "func", None) in (accuracy, f1_score):
            continue
        name = " ".join(str(metric.name).split())
        names = (f"valid_{name}{suffix}" for suffix in ("", *(f"_{count}" for count in range(2, 99))))
        try:
            columns[next(column for column in names if column not in columns)] = float(value)
        except (TypeError, ValueError):
            raise TrainingError(
                f"Stage {number}: the metric {metric.name} returned {type(value).__name__} {value!s:.40}; a number "
                "was needed. Return one, or leave the metric out."
            ) from None
    return dict(list(columns.items())[2:])


def check_parts(learn: Learner) -> None:
    """Check a batch of each loader, and the loss of one, before training begins; random states stay as they are.

    Raises:
        TrainingError: if transforms do not make float images N x 3 x H x W, the network does not take them, or the loss
            is not one number.
    """
    if missing := [kind.__name__ for kind in (TrainEvalCallback, Recorder) if not learn._grab_cbs(kind)]:
        raise TrainingError(
            f"The Learner lacks {' and '.join(missing)}, which training needs. Make it with default_cbs=True."
        )
    own = [part_name(t) for t in loader_transforms(learn) if type(t) not in OWN_TYPES]
    made_by = f"the transforms ({', '.join(dict.fromkeys(own))})" if own else "the DataLoaders"
    images = targets = torch.empty(0)
    for name, loader in (("train", learn.dls.train), ("valid", learn.dls.valid)):
        state = loader_state(loader)
        with preserve_rng_state(), named_learner_errors(learn, f"Before stage 1, {name} batch"):
            try:
                batch = (name == "valid" and take_valid_batch(learn.dls)) or loader.one_batch()
            except (TypeError, RuntimeError, ValueError, AttributeError) as error:
                names = {frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)}
                if not own or names.isdisjoint(("fa_collate", "default_collate")):
                    raise
                raise TrainingError(
                    f"Before stage 1: {made_by} make no {name} batch: {first_line(error)}. "
                    "Images of one size and type were expected."
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
    learn.dls.sample = images[:2].as_subclass(torch.Tensor)


def _check_loss(learn: Learner, images: torch.Tensor, targets: torch.Tensor) -> None:
    training, device = learn.model.training, next(learn.model.parameters()).device
    try:
        with torch.no_grad(), preserve_rng_state(), named_learner_errors(learn, "Before stage 1"):
            outputs = _outputs(learn, images.as_subclass(torch.Tensor).to(device))
            loss = learn.loss_func(outputs, targets.as_subclass(torch.Tensor).to(device))
    finally:
        learn.model.train(training)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise TrainingError(
            f"Before stage 1: the loss_func {part_name(learn.loss_func)} returned {_describe(loss)}; one number was "
            "needed, such as the mean over the batch."
        )


def _outputs(learn: Learner, images: torch.Tensor) -> torch.Tensor:
    """Return the network's outputs for a batch.

    Raises:
        TrainingError: if it does not take the images, or returns anything but one number per class.
    """
    needed = (len(images), len(learn.dls.vocab))
    try:
        outputs = learn.model.eval()(images)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        if "out of memory" in str(error):
            raise
        raise TrainingError(
            f"Before stage 1: the network does not take images of {_describe(images)}: {first_line(error)}. Pass "
            "images that it takes, or another network."
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.shape != needed:
        raise TrainingError(
            f"Before stage 1: the network returns {_describe(outputs)}; {needed[0]} x {needed[1]} was needed, one "
            "number per class. Pass a network with that output."
        )
    return outputs


def _describe(value: Any) -> str:
    """Describe a tensor by shape and type, anything else by its type."""
    if isinstance(value, torch.Tensor):
        return f"{' x '.join(map(str, value.shape)) or 'one number'}, {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
