"""A probe stage: the head becomes penalized logistic regression on the features of the frozen body.

The features of all images are computed in one pass, or read from the cache, and the head is fitted to them directly
instead of being trained by gradient descent over batches. BatchNorm and the linear layer of the recipe's head hold the
solution exactly, so that later stages fine-tune from it. Starting a fine-tune from such a head follows Kumar et al.
2022, https://arxiv.org/abs/2202.10054.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback, CancelTrainException
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from torch import Tensor, nn

from baseline.data.labels import rarest_label
from baseline.data.split import fold_numbers, unit_ids
from baseline.errors import TrainingError, format_count
from baseline.parallel.distributed import broadcast_from_rank0
from baseline.recipe.schema import HEAD_STAGE
from baseline.training.frozen import FrozenOutputs
from baseline.training.logistic import Problem, Solution, fit_logistic, search_strength
from baseline.training.selection import SelectionMetric
from baseline.vision.learner import balanced_weights
from baseline.vision.own_parts import part_name

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe
    from baseline.training.state import StageRecord, TrainingRun

__all__ = ["SolveHead", "replace_probes"]

MIN_VALID_IMAGES = 200
"""Number of valid images below which the penalty is chosen by cross-validation on the training images."""

FOLDS = 5

SEARCH_IMAGES = 10_000
"""Maximum number of training images that the penalty is chosen with."""


def replace_probes(frozen: FrozenOutputs) -> FrozenOutputs:
    """Return outputs for the recipe with stages that train the head by steps in place of probes that are not possible.

    A message says why. A probe needs a linear head, a cross-entropy loss, and room for the features of all images.
    """
    recipe, stages = frozen.recipe, list(frozen.recipe.stages)
    images, batch_size = len(frozen.rows["train"]), frozen.learn.dls.train.bs
    for number, stage in enumerate(stages, 1):
        if stage.trains == "probe" and (obstacle := probe_obstacle(frozen, number)):
            epochs = HEAD_STAGE.epochs_of(images, batch_size)
            stages[number - 1] = dataclasses.replace(stage, trains="head", epochs=epochs)
            frozen.progress.log(f"stage {number}: {obstacle}, so the head is trained by gradient descent")
    if tuple(stages) == recipe.stages:
        return frozen
    return FrozenOutputs(frozen.learn, recipe.changed(stages=tuple(stages)), frozen.progress)


def probe_obstacle(frozen: FrozenOutputs, number: int) -> str:
    """Return why the stage cannot solve for the head; empty if it can."""
    plan, loss = frozen.plan, frozen.learn.loss_func
    if frozen.recipe.training.freeze != "features":
        return f"freeze is '{frozen.recipe.training.freeze}'"
    if not isinstance(loss, CrossEntropyLossFlat | BCEWithLogitsLossFlat):
        return f"the loss is {part_name(loss)}"
    if not plan.cut(number):
        return "the network has no layers before its head that could be frozen"
    try:
        head_layers(nn.Sequential(*plan.layers[plan.cut(number) :]))
    except TrainingError as error:
        return str(error)
    return "" if number in plan.stages else "there is no room for the features of all images"


class SolveHead(Callback):
    """Solve for the head where an epoch would be trained; its validation follows as usual."""

    order = -90  # before the callbacks that prepare a training epoch

    def __init__(self, run: TrainingRun, number: int, facts: StageRecord) -> None:
        super().__init__()
        self.training_run, self.number, self.facts = run, number, facts

    def before_train(self) -> None:
        start = time.perf_counter()
        if message := ignored_parts(self.training_run, self.number):
            self.training_run.progress.log(f"stage {self.number}: {message}")
        solution, message = broadcast_from_rank0(self.solve)
        install(solution, self.learn.model)
        log = self.training_run.log
        log.probe = log.probe or {"weight": solution.weight / solution.scale, "bias": solution.bias_of_features}
        smooth = self.recorder.smooth_loss  # as after one step with the loss of the solution
        smooth.count, smooth.val = 1, torch.tensor(solution.loss * (1 - smooth.beta))
        self.opt.set_hyper("lr", 0.0)
        self.facts["strength"] = solution.strength
        seconds = time.perf_counter() - start
        self.training_run.progress.log(f"stage {self.number}: logistic regression on {message}; {seconds:.0f} s")
        raise CancelTrainException()

    def solve(self) -> tuple[Solution, str]:
        """Return the solution, and a text with the images, the strength of the fit and how it was chosen."""
        frozen, device = self.training_run.frozen, self.dls.device
        cut, view = frozen.plan.stages[self.number]
        train, valid = frozen.outputs["train", cut, view], frozen.outputs["valid", cut, frozen.plan.full_view]
        images = len(frozen.targets["train"])
        views = len(train) // images
        is_balanced = frozen.recipe.training.class_balance != "none"  # a sampler has the same effect as weights
        weights = balanced_weights(frozen.learn.dls) if is_balanced else None
        targets = {split: values.to(device) for split, values in frozen.targets.items()}
        problem = Problem(
            train.to(device), targets["train"].repeat(views, *[1] * (targets["train"].ndim - 1)),
            len(frozen.learn.dls.vocab), weights, frozen.recipe.training.label_smoothing,
            has_intercept(self.learn.model),
        )  # fmt: skip
        held_out = Problem(valid.to(device), targets["valid"], problem.classes, problem.class_weights)
        first = torch.arange(images)[:: -(-images // SEARCH_IMAGES)]
        subset = torch.cat([first + view * images for view in range(views)])
        folds, how = [(problem.rows(subset) if len(first) < images else problem, held_out)], "valid images"
        rows = frozen.rows["train"].iloc[first.numpy()].reset_index(drop=True)
        if len(valid) < MIN_VALID_IMAGES and (numbers := probe_folds(rows, frozen)).max() > 0:
            numbers = np.tile(numbers, views)
            count, how = int(numbers.max()) + 1, f"{numbers.max() + 1}-fold cross-validation"
            parts = [(torch.from_numpy(subset.numpy()[numbers != n]), numbers == n) for n in range(count)]
            folds = [(problem.rows(fit), problem.rows(subset[torch.from_numpy(out)])) for fit, out in parts]
        strength, start_solution = search_strength(folds, partial(held_out_score, frozen.recipe))
        solution = fit_logistic(problem, strength, start_solution)
        fitted = f"{format_count(images, 'image')}{' and their flips' if views > 1 else ''}"
        return solution, f"{train.shape[1]:,} features of {fitted}, C = {strength:g} by {how}"


def probe_folds(rows: pd.DataFrame, frozen: FrozenOutputs, least: int = 2) -> np.ndarray:
    """Return the fold of each image, with duplicates and groups in one fold.

    Classes that fill fewer than `least` folds have the number -1: they are fitted to in every fold and never held out.
    If they leave fewer than two classes, all images have it.

    Args:
        rows: images with the index 0, 1, 2, ...
    """
    grouped = "group" in frozen.recipe.split.method
    labels = rarest_label(rows["label"]) if frozen.learn.dls.multilabel else rows["label"]
    units = unit_ids(rows, "group" if grouped else "duplicate_id")
    used = ~np.isin(units, units[pd.Series(units).groupby(labels.to_numpy()).transform("nunique") < least])
    sizes = pd.Series(units[used]).groupby(labels[used].to_numpy()).nunique()
    folds = np.full(len(rows), -1)
    if sizes.min() >= least and (len(sizes) > 1 or used.all()):
        count = min(FOLDS, int(sizes.min()))
        folds[used] = fold_numbers(labels[used], units[used], count, frozen.recipe.seed, grouped=grouped)
    return folds


def held_out_score(recipe: Recipe, logits: Tensor, rows: Problem) -> tuple[float, float]:
    """Return the recipe's metric of held-out images, if it names one, and their negative loss."""
    evaluation, loss = recipe.evaluation, float(rows.loss(logits)) / len(logits)
    if evaluation.metric == "auto":
        return 0.0, -loss
    metric = SelectionMetric(
        evaluation.metric, rows.classes, multilabel=rows.targets.ndim == 2, threshold=evaluation.threshold
    )
    metric.add(logits, rows.targets, loss)
    return metric.score(metric.value()), -loss


def ignored_parts(run: TrainingRun, number: int) -> str:
    """Return a text about what a probe stage uses only in validation, if at all, or an empty one."""
    training, stage = run.frozen.recipe.training, run.frozen.recipe.stages[number - 1]
    names = [*(run.frozen.recipe.augment.changing() if stage.augment else ()), *run.frozen.plan.own_parts]
    names += [name for name in ("mixup", "cutmix", "ema") if getattr(training, name)]
    if not names:
        return ""
    return f"{', '.join(names)}: not used by the probe beyond their effect on validation images"


def head_layers(model: nn.Module) -> tuple[nn.BatchNorm1d | None, nn.Linear]:
    """Return the layers that hold a solution: a linear layer, and BatchNorm before it if there is one.

    Raises:
        TrainingError: if the model, which follows the frozen layers, has others.
    """
    layers = [module for module in model.modules() if not isinstance(module, nn.Sequential | nn.Dropout | nn.Identity)]
    match layers:
        case [nn.BatchNorm1d(affine=True, track_running_stats=True) as norm, nn.Linear() as linear]:
            return norm, linear
        case [nn.Linear(bias=Tensor()) as linear]:
            return None, linear
    names = ", ".join(type(layer).__name__ for layer in layers[:6]) or "no layers"
    raise TrainingError(f"the head is not one linear layer: it has {names}")


def has_intercept(model: nn.Module) -> bool:
    """Whether the head can hold an intercept for each class: a linear layer without bias has BatchNorm's shifts only,
    one per feature."""
    _, linear = head_layers(model)
    return linear.bias is not None or linear.out_features <= linear.in_features


@torch.no_grad()
def install(solution: Solution, model: nn.Module) -> None:
    """Copy a solution into the head."""
    norm, linear = head_layers(model)
    weight, bias = solution.weight, solution.bias
    if norm is None:
        weight, bias = weight / solution.scale, solution.bias_of_features
    else:
        norm.load_state_dict({
            "running_mean": solution.mean, "running_var": solution.scale**2 - norm.eps,
            "weight": torch.ones_like(norm.weight), "bias": torch.zeros_like(norm.bias),
            "num_batches_tracked": torch.tensor(1),
        })  # fmt: skip
    linear.weight.copy_(weight)
    if linear.bias is not None:
        linear.bias.copy_(bias)
    elif norm is not None and bias.any():
        norm.bias.copy_(torch.linalg.pinv(weight.cpu().double()) @ bias.cpu().double())
