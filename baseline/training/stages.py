"""Training: run a recipe's stages on a Learner and load the weights of the epoch that is kept.

Learner + stages -> history. This module knows losses and learning rates; it knows no files and no images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from fastai import optimizer as optimizers
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.learner import Learner
from fastai.optimizer import Adam
from fastcore.basics import even_mults
from torch import nn

from baseline.errors import OutputError, TrainingError
from baseline.parallel.distributed import broadcast_from_rank0, rank, world_size
from baseline.progress import Progress
from baseline.recipe.describe import describe_schedule, describe_trained, format_lr
from baseline.recipe.schema import OPTIMIZERS
from baseline.training.callbacks import (
    AccumulateGradients,
    FreezeBatchNorm,
    ProgressCallback,
    ResizeBatch,
)
from baseline.training.cancelled import CompleteRecords, check_epochs, plain_loss, prepare_mixing
from baseline.training.frozen import FrozenOutputs
from baseline.training.lr_find import find_lr, sample_batch
from baseline.training.part_errors import check_parts, has_own_parts, named_learner_errors
from baseline.training.recovery import Diverged, reduce_batch_size, with_recovery
from baseline.training.resume import ResumeCallback
from baseline.training.state import BestWeights, TrainingLog, TrainingRun
from baseline.training.step_timer import StepTimer
from baseline.vision.augment import set_augmentation
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.dataloaders import shard_loader
from baseline.vision.network import is_body_and_head, layer_groups
from baseline.vision.own_loaders import adopt

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe
    from baseline.training.checkpoint import Checkpoints
    from baseline.training.state import History, StageRecord

__all__ = ["train"]

SHUFFLE_SEED_OFFSET = 1_000_003
"""Distance between the random seeds of two training processes."""


def train(
    learn: Learner,
    recipe: Recipe,
    progress: Progress | None = None,
    *,
    deadline: float = math.inf,
    checkpoints: Checkpoints | None = None,
) -> History:
    """Train the recipe's stages in order and load the weights of the epoch that is kept into `learn`.

    Epochs are compared by the recipe's `metric` on the valid split (accuracy by default, micro F1 for multi-label
    recipes), equal ones by the loss. Each stage offers its last epoch if that is within one standard error of its best
    and the learning rate has been annealed to zero, and otherwise its best epoch; it replaces the weights of earlier
    stages only if it is better. The Learner's own metrics are also recorded.

    Each stage runs fastai's `fit_one_cycle`, or what its `schedule` names, with its `optimizer`, unless the Learner has
    an `opt_func` of its own. A stage with frozen layers is trained on their cached outputs (`freeze = "features"`),
    unless something has to see the images of every epoch: augmentation other than flips, mixup, or transforms and
    callbacks of the user's. A message then says so.

    Errors are recovered from, starting again at the end of the last epoch. If the loss becomes NaN or infinite, or
    rises far above chance, the learning rate is halved, once per stage; if it happens again, training ends with the
    weights kept so far. If memory runs out, the batch size is halved and gradients are accumulated. A data-loading
    worker that dies is restarted, once per stage.

    Args:
        learn: a Learner from `baseline.learner`, or any fastai Learner that classifies images.
        recipe: a recipe with every "auto" resolved.
        progress: receives messages, progress bars and metrics.
        deadline: time, in seconds of `time.perf_counter`, at which training ends, in the middle of an epoch if
            necessary; that epoch is then validated like any other. Training always makes at least one step. With a
            `patience` in the recipe, a stage also ends when it stops improving.
        checkpoints: checkpoint store, written from time to time at the end of an epoch. If it holds one, training
            resumes from it: on a CPU with exactly the results of an uninterrupted run.

    Raises:
        RecipeError: if a stage trains more layer groups than the network has.
        TrainingError: if the loss diverges before any epoch has ended, the device's memory is too small for batches
            of two images, or data-loading workers die again.
        OutputError: if the checkpoint is damaged, or was taken on cached features that there is no room for now.
        KeyboardInterrupt: passed on to the caller, with the weights kept so far in `learn` and the history so far as
            its attribute `history`.
    """
    progress = progress or Progress()
    if rank():  # with the same seed, all processes would flip the same images of their parts
        torch.manual_seed(recipe.seed + SHUFFLE_SEED_OFFSET * rank())
    adopt(learn.dls)
    if has_own_parts(learn) and not vars(learn).pop("is_checked", False):
        check_parts(learn)
    if hasattr(learn, "channels_last"):  # now, or the last digit would depend on whether a resumed run trains on
        learn.model.to(memory_format=torch.channels_last)
    frozen = FrozenOutputs(learn, recipe, progress)
    if any(stage.trains == "probe" for stage in recipe.stages):
        from baseline.training.probe import replace_probes

        frozen = replace_probes(frozen)
    run = TrainingRun(frozen, BestWeights(learn), TrainingLog(), progress, deadline, learn.dls.train.bs, checkpoints)
    try:
        for number in range(run.resume(), len(recipe.stages) + 1):
            if run.log.epochs and time.perf_counter() > deadline:
                progress.log(f"stage {number}: skipped, the time is up")
                continue
            with named_learner_errors(learn, f"Stage {number}"):
                if "given_up" in train_stage(run, number):
                    break
            run.frozen.release(number)
            run.end_stage(number)
        check_epochs(run)
    except KeyboardInterrupt as interrupt:
        interrupt.history = run.log.history()  # type: ignore[attr-defined]
        raise
    finally:
        run.best.restore()
        learn.opt = None
        learn.model.requires_grad_(True).train().eval()  # `train` drops what timm's layers cached of other weights
    return run.log.history()


def train_stage(run: TrainingRun, number: int) -> StageRecord:
    """Train one stage and return its history entry."""
    start = time.perf_counter()
    learn, recipe = run.frozen.learn, run.frozen.recipe
    if learn.opt_func is Adam or getattr(learn.opt_func, "from_recipe", False):
        learn.opt_func = optimizer_function(recipe.stages[number - 1].optimizer)
    elif number == 1:
        run.progress.log("the Learner's own opt_func is used in all stages, in place of the recipe's optimizer")
    if number == 1 and learn.wd is not None and recipe_weight_decay(run) not in (None, learn.wd):
        run.progress.log(f"the Learner's own wd = {learn.wd} is used, in place of the recipe's weight_decay")
    if reason := run.frozen.plan.explain(number):
        run.progress.log(f"stage {number}: {reason}")
    set_augmentation(learn.dls.train, recipe.stages[number - 1].augment)
    learner = stage_learner(run, number)
    size = run.batch_size if learner is learn else learner.dls.train.bs
    if run.state is not None and run.state.epoch:
        facts = run.state.facts.copy()
        reduce_batch_size(learner, run.state.batch_size)
    else:
        run.state = None
        facts = begin_stage(run, learner, number, size, start)
    seconds_before, timer = facts["seconds"], StepTimer(facts.get("laps", {}))
    complete_loader = learner.dls.train
    if world_size() > 1:
        learner.dls.loaders[0] = shard_loader(complete_loader, rank(), world_size())
        size = size // world_size()
    try:
        with_recovery(run, learner, number, facts, lambda: fit_stage(run, learner, number, facts, timer, size))
    except Diverged as error:
        facts["given_up"] = str(error)
        if not run.log.epochs:
            raise TrainingError(
                f"Training diverges in stage {number}: {error}, also at half the learning rate "
                f"({format_lr(facts['lr'])}). Use a lower lr in the recipe, and check the images."
            ) from None
        run.progress.log(f"stage {number}: {error} again; training ends with the weights kept so far")
    finally:
        if world_size() > 1:
            complete_loader.rng.setstate(learner.dls.train.rng.getstate())
            learner.dls.loaders[0] = complete_loader
    facts["seconds"] = round(seconds_before + time.perf_counter() - start, 2)
    facts["laps"] = {name: round(seconds, 4) for name, seconds in timer.seconds.items()}
    run.log.stages.append(facts)
    return facts


def begin_stage(run: TrainingRun, learner: Learner, number: int, size: int, start: float) -> StageRecord:
    """Choose the learning rate of a stage that was not started before, and return its history entry so far.

    Args:
        size: images per optimizer step.
        start: time at which the stage began, in seconds of `time.perf_counter`.
    """
    learn, stage = run.frozen.learn, run.frozen.recipe.stages[number - 1]
    trained_groups = run.frozen.plan.trained_groups
    is_cached = learner is not learn
    facts: StageRecord = {
        "trains": stage.trains, "epochs": stage.epochs, "optimizer": stage.optimizer, "schedule": stage.schedule,
    }  # fmt: skip
    groups = layer_groups(learn.model, learn.splitter)[-trained_groups(number) :]
    facts["parameters"] = sum(p.numel() for group in groups for p in group)
    facts["features_seconds"] = round(time.perf_counter() - start, 2) if is_cached else 0.0
    facts["cached_seconds"] = round(run.frozen.cached_seconds, 2) if is_cached else 0.0
    rate: float | tuple[float, float]
    if stage.trains == "probe":
        rate, reason = 0.0, "the head is fitted by logistic regression"
    elif stage.lr == "find":
        search_start = time.perf_counter()
        run.progress.log(f"stage {number}: searching for a learning rate")
        search = partial(with_recovery, run, learner, number, facts, lambda: search_lr(run, learner, number, size))
        suggested, curve, reason = broadcast_from_rank0(search)
        run.log.sweeps += curve.assign(stage=number).to_dict("records")
        rate = suggested if is_cached or stage.trains == "head" else (suggested / 10, suggested)
        facts["lr_find_seconds"] = round(time.perf_counter() - search_start, 2)
    else:
        rate, reason = stage.lr, "as given"
    facts.update({"lr": rate, "why": reason, "seconds": 0.0})
    if stage.trains != "probe" and has_bfloat16_steps(run.frozen.recipe):
        facts["pointwise"] = "bfloat16"
    layers = describe_trained(stage.trains if isinstance(stage.trains, str) else trained_groups(number))
    epochs = "1 epoch" if stage.epochs == 1 else f"{stage.epochs} epochs"
    steps = [epochs, describe_schedule(facts), f"learning rate {format_lr(rate)} ({reason})"]
    parts = [layers, *(steps if stage.trains != "probe" else [])]
    run.progress.log(f"stage {number}: training {', '.join(filter(None, parts))}")
    return facts


def stage_learner(run: TrainingRun, number: int) -> Learner:
    """Return a Learner over the layers after the frozen ones, on cached features, or that of the complete network.

    Raises:
        OutputError: if the stage is resumed from a checkpoint on cached features that there is no room for now.
    """
    learn = run.frozen.learn
    optimizer = run.state.optimizer if run.state is not None else None
    saved_parameters = len(optimizer["state"]) if optimizer is not None else 0
    if saved_parameters == sum(len(group) for group in layer_groups(learn.model, learn.splitter)):
        return learn
    cached_learner = run.frozen.learner(number)
    if cached_learner is None and saved_parameters:
        raise OutputError(
            "This checkpoint was taken on cached features, and the cache no longer has room for them. Free space on "
            "the cache's disk, give a larger --cache-gb, or remove "
            f"{run.checkpoints and run.checkpoints.folder} to start the run from the beginning."
        )
    return cached_learner or learn


def search_lr(run: TrainingRun, learner: Learner, number: int, size: int) -> tuple[float, pd.DataFrame, str]:
    """Run `find_lr` on a stage, with its layers frozen and its callbacks."""
    freeze_groups(learner, run.frozen.plan.trained_groups(number), run.frozen.recipe)
    callbacks = stage_callbacks(run, learner, number, size)
    with learner.added_cbs(callbacks), step_precision(learner.model, run.frozen.recipe):
        return find_lr(learner)


def fit_stage(run: TrainingRun, learner: Learner, number: int, facts: StageRecord, timer: StepTimer, size: int) -> None:
    """Run the stage's schedule, from its beginning or from the saved state."""
    stage = run.frozen.recipe.stages[number - 1]
    freeze_groups(learner, run.frozen.plan.trained_groups(number), run.frozen.recipe)
    steps_per_epoch = len(learner.dls.valid) + (0 if stage.trains == "probe" else len(learner.dls.train))
    completed_epochs = run.state.epoch if run.state else 0
    speedup = optimize_for_cpu(learner.model, sample_batch(learner))
    progress_bar = run.progress.bar(f"stage {number}", stage.epochs * steps_per_epoch, "batches")
    precision = step_precision(learner.model, run.frozen.recipe)
    with progress_bar as bar, learner.no_bar(), learner.no_logging(), precision, speedup:
        bar.step(completed_epochs * steps_per_epoch)
        callbacks = [
            *stage_callbacks(run, learner, number, size),
            timer,
            ProgressCallback(run, number, facts, bar),
            ResumeCallback(run, number, facts, timer),
        ]
        if stage.trains == "probe":
            from baseline.training.probe import SolveHead

            callbacks.append(SolveHead(run, number, facts))
        elif ema := run.frozen.recipe.training.ema:
            from baseline.training.average import AverageWeights

            callbacks.append(AverageWeights(ema, run))
        if world_size() > 1:
            from baseline.parallel.gradients import SyncGradients

            callbacks.append(SyncGradients())
        if stage.schedule == "plateau":
            from baseline.training.plateau import ReduceOnPlateau

            callbacks.append(ReduceOnPlateau(run, number))
        fit = {"one_cycle": learner.fit_one_cycle, "flat_cos": learner.fit_flat_cos}.get(stage.schedule, learner.fit)
        decay = recipe_weight_decay(run) if learner.wd is None else None
        try:
            fit(stage.epochs, group_lrs(learner, facts["lr"]), wd=decay, cbs=callbacks)
        finally:
            learner.loss_func = plain_loss(learner.loss_func)


def has_bfloat16_steps(recipe: Recipe) -> bool:
    """Whether steps compute pointwise convolutions in bfloat16: where frozen layers do, unless layers freeze as in
    fastai."""
    is_bfloat16 = recipe.model.frozen_precision == "bfloat16" and recipe.training.freeze != "fastai"
    return is_bfloat16 and find_spec("baseline.vision.pointwise") is not None


def step_precision(model: nn.Module, recipe: Recipe) -> AbstractContextManager[None]:
    """Return a context, to be entered before the CPU speedups, for the precision of a step's pointwise convolutions."""
    if not has_bfloat16_steps(recipe):
        return nullcontext()
    from baseline.vision.pointwise import bfloat16_pointwise

    return bfloat16_pointwise(model)


def recipe_weight_decay(run: TrainingRun) -> float | None:
    """Return the recipe's weight decay, or None for that of the optimizer."""
    weight_decay = run.frozen.recipe.training.weight_decay
    return None if weight_decay == "auto" else weight_decay


def optimizer_function(name: str) -> Callable[..., Any]:
    """Return fastai's optimizer of that name with its settings."""
    function, settings = OPTIMIZERS[name]
    optimizer = partial(getattr(optimizers, function), **settings)
    optimizer.from_recipe = True  # type: ignore[attr-defined]
    return optimizer


def stage_callbacks(run: TrainingRun, learner: Learner, number: int, size: int) -> list[Callback]:
    """Return the callbacks for frozen BatchNorm, smaller images, mixup, and batches smaller than `size`."""
    learn, recipe = run.frozen.learn, run.frozen.recipe
    stage = recipe.stages[number - 1]
    callbacks: list[Callback] = [CompleteRecords()]
    if stage.batch_norm == "frozen" and not (stage.trains == "head" and recipe.training.freeze == "fastai"):
        callbacks.append(FreezeBatchNorm(learn.model[0] if is_body_and_head(learn.model) else learn.model))
    if learner is learn and stage.image_size:
        callbacks.append(ResizeBatch(stage.image_size))
    if stage.trains != "probe":
        callbacks += [MixUp(recipe.training.mixup)] if recipe.training.mixup else []
        callbacks += [CutMix(recipe.training.cutmix)] if recipe.training.cutmix else []
    if learner.dls.train.bs < size:
        callbacks.append(AccumulateGradients(size))
    prepare_mixing([*learner.cbs, *callbacks])
    return callbacks


def group_lrs(learner: Learner, lr: Any) -> Any:
    """Return a single rate, or for a pair of rates one per layer group, geometrically spaced over the trained ones."""
    if not isinstance(lr, tuple):
        return lr
    groups, frozen = len(learner.opt.param_lists), learner.opt.frozen_idx
    return [lr[0]] * frozen + list(even_mults(*lr, groups - frozen))


def freeze_groups(learner: Learner, trained_groups: int, recipe: Recipe) -> None:
    """Create a fresh optimizer and freeze all but the last `trained_groups` layer groups (fastai's `freeze_to`).

    fastai would keep training BatchNorm in frozen groups, so that gradients run through the complete body; here it is
    frozen, unless the recipe has `freeze = "fastai"`. Gradients of an earlier stage are removed, since fastai's
    optimizer applies weight decay to every parameter that has one, frozen or not.
    """
    learner.model.zero_grad(set_to_none=True)
    train_bn, learner.train_bn = learner.train_bn, learner.train_bn and recipe.training.freeze == "fastai"
    learner.create_opt()
    learner.train_bn = train_bn
    groups = len(learner.opt.param_lists)
    learner.freeze_to(groups - min(trained_groups, groups))
