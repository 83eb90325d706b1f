"""Learner + stages -> history, with the best weights of all stages loaded. Knows losses; knows no files, no images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from fastai import optimizer as optimizers
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastcore.basics import even_mults

from baseline.errors import OutputError, TrainingError
from baseline.parallel.distributed import broadcast_from_rank0, rank, world_size
from baseline.progress import Progress
from baseline.recipe.schema import OPTIMIZERS, describe_schedule, describe_trained, format_lr
from baseline.training.callbacks import (
    AccumulateGradients,
    FreezeBatchNorm,
    ProgressCallback,
    ReduceOnPlateau,
    ResizeBatch,
    StepTimer,
    SyncGradients,
)
from baseline.training.frozen import FrozenOutputs
from baseline.training.lr_find import find_lr, sample_batch
from baseline.training.recovery import Diverged, reduce_batch_size, with_recovery
from baseline.training.resume import ResumeCallback
from baseline.training.state import BestWeights, TrainingLog, TrainingRun
from baseline.vision.cpu_speedups import compile_model, optimize_for_cpu
from baseline.vision.dataloaders import shard_loader

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe
    from baseline.training.checkpoint import Checkpoints
    from baseline.training.state import History

__all__ = ["train"]

SHUFFLE_SEED_OFFSET = 1_000_003


def train(
    learn: Learner,
    recipe: Recipe,
    progress: Progress | None = None,
    *,
    deadline: float = math.inf,
    checkpoints: Checkpoints | None = None,
) -> History:
    """Trains the recipe's stages in order and leaves the best weights of all of them in `learn`.

    Best is the highest accuracy (micro F1 with many labels) on the valid split, the lower loss where two are
    equal, over all epochs of all stages: a fine-tune that makes things worse never replaces what was better. Each
    stage is fastai's `fit_one_cycle`, or what else its `schedule` names, with its `optimizer`, which becomes the
    Learner's `opt_func`; a head stage runs on the frozen body's outputs (`freeze = "features"`) or as fastai does it.

    At the `deadline` (seconds of `time.perf_counter`) training ends, in the middle of an epoch if need be, whose
    weights are then looked at like any others; a run whose time is up before its first step makes that one. With a
    `patience`, a stage ends where it no longer gets better.

    What goes wrong is gone back from, to the end of the last epoch: a loss that is no number, or has risen far above
    chance, halves the rate, once a stage; a device whose memory is too small halves the batches and gathers them for
    each step; a dead reader of images is replaced, once a stage. If the loss goes wrong again, training ends with the
    best weights so far.

    With `kept`, the state at the end of epochs is written there every now and then, and training goes on from the one
    that is found there: on a CPU to the same numbers, to the last digit.

    An interrupt (`KeyboardInterrupt`) leaves the best weights so far in `learn` and goes on to the caller, with the
    history so far as its `history`.

    Raises:
        RecipeError: if a stage trains more layer groups than the network has.
        TrainingError: if the loss goes wrong before any epoch has ended, the device's memory is too small for batches
            of two images, or readers of images die again.
        OutputError: if what `kept` has is damaged, or fits outputs of frozen layers for which there is no room now.
    """
    progress = progress or Progress()
    if rank():
        torch.manual_seed(
            recipe.seed + SHUFFLE_SEED_OFFSET * rank()
        )  # or all would mirror the same images of their parts
    run = TrainingRun(
        FrozenOutputs(learn, recipe, progress),
        BestWeights(learn),
        TrainingLog(),
        progress,
        deadline,
        learn.dls.train.bs,
        checkpoints,
    )
    try:
        for at in range(run.resume(), len(recipe.stages) + 1):
            if run.log.epochs and time.perf_counter() > deadline:
                progress.log(f"stage {at}: left out, the time is up")
                continue
            if "given_up" in train_stage(run, at):
                break
            run.frozen.release(at)
            run.end_stage(at)
    except KeyboardInterrupt as interrupt:
        interrupt.history = run.log.history()  # type: ignore[attr-defined]
        raise
    finally:
        run.best.restore()
        learn.opt = None
        learn.model.requires_grad_(True).eval()
    return run.log.history()


def train_stage(run: TrainingRun, number: int) -> dict[str, Any]:
    """Trains it; what the history tells of it."""
    began = time.perf_counter()
    learn, recipe = run.frozen.learn, run.frozen.recipe
    stage, trained = recipe.stages[number - 1], run.frozen.plan.trained_groups(number)
    learn.opt_func = optimizer_function(stage.optimizer)
    trainee = stage_learner(run, number)
    size = run.batch_size if trainee is learn else trainee.dls.train.bs
    if run.state is not None and run.state.epoch:
        facts = dict(run.state.facts)
        reduce_batch_size(trainee, run.state.batch_size)
    else:
        run.state = None
        facts = {key: getattr(stage, key) for key in ("trains", "epochs", "optimizer", "schedule")}
        facts["parameters"] = sum(p.numel() for group in learn.splitter(learn.model)[-trained:] for p in group)
        facts["features_seconds"] = round(time.perf_counter() - began, 2) if trainee is not learn else 0.0
        facts["cached_seconds"] = round(run.frozen.cached_seconds, 2) if trainee is not learn else 0.0
        rate, why = stage.lr, "as given"
        if stage.lr == "find":
            before = time.perf_counter()
            run.progress.log(f"stage {number}: searching the learning rate")
            search = partial(with_recovery, run, trainee, number, facts, lambda: search_lr(run, trainee, number, size))
            found, curve, why = broadcast_from_rank0(search)
            run.log.sweeps += curve.assign(stage=number).to_dict("records")
            rate = found if trainee is not learn or stage.trains == "head" else (found / 10, found)
            facts["lr_find_seconds"] = round(time.perf_counter() - before, 2)
        facts.update(lr=rate, why=why, seconds=0.0)
        what = describe_trained(stage.trains if isinstance(stage.trains, str) else trained)
        words = [what, f"{stage.epochs} epochs", describe_schedule(facts), f"learning rate {format_lr(rate)} ({why})"]
        run.progress.log(f"stage {number}: training {', '.join(filter(None, words))}")
    before, laps = facts["seconds"], StepTimer(facts.get("laps", {}))
    whole = trainee.dls.train
    if world_size() > 1:
        trainee.dls.loaders[0], size = shard_loader(whole, rank(), world_size()), size // world_size()
    try:
        with_recovery(run, trainee, number, facts, lambda: fit_stage(run, trainee, number, facts, laps, size))
    except Diverged as wrong:
        facts["given_up"] = str(wrong)
        if not run.log.epochs:
            raise TrainingError(
                f"Training diverges in stage {number}: {wrong}, at half the rate, {format_lr(facts['lr'])}, too. "
                "Give a lower lr in the recipe, and look at the images."
            ) from None
        run.progress.log(f"stage {number}: {wrong} again; training ends with the best weights so far")
    finally:
        if world_size() > 1:
            whole.rng.setstate(trainee.dls.train.rng.getstate())
            trainee.dls.loaders[0] = whole
    facts["seconds"] = round(before + time.perf_counter() - began, 2)
    facts["laps"] = {name: round(seconds, 4) for name, seconds in laps.seconds.items()}
    run.log.stages.append(facts)
    return facts


def stage_learner(run: TrainingRun, number: int) -> Learner:
    """The layers after the frozen ones, on their outputs, where there is room for these, else the whole network.

    Raises:
        OutputError: if the stage goes on, was on such outputs, and there is no room for them now.
    """
    learn = run.frozen.learn
    kept = len(run.state.optimizer["state"]) if run.state is not None and run.state.optimizer is not None else 0
    if kept == sum(len(group) for group in learn.splitter(learn.model)):
        return learn
    found = run.frozen.learner(number)
    if found is None and kept:
        raise OutputError(
            "What was kept of the run fits outputs of frozen layers, for which there is no room now. Make room on the "
            "cache's disk, give a larger --cache-gb, or remove "
            f"{run.checkpoints and run.checkpoints.folder}, and the run begins anew."
        )
    return found or learn


def search_lr(run: TrainingRun, trainee: Learner, number: int, size: int) -> tuple[float, pd.DataFrame, str]:
    freeze_groups(trainee, run.frozen.plan.trained_groups(number), run.frozen.recipe)
    with trainee.added_cbs(stage_callbacks(run, trainee, number, size)):
        return find_lr(trainee)


def fit_stage(
    run: TrainingRun, trainee: Learner, number: int, facts: dict[str, Any], laps: StepTimer, size: int
) -> None:
    """One cycle, or what else the stage's schedule is, from its beginning or from the point where it stood."""
    stage = run.frozen.recipe.stages[number - 1]
    freeze_groups(trainee, run.frozen.plan.trained_groups(number), run.frozen.recipe)
    done, steps = run.state.epoch if run.state else 0, len(trainee.dls.train) + len(trainee.dls.valid)
    quicker = (
        compile_model(trainee.model)
        if run.frozen.recipe.compile
        else optimize_for_cpu(trainee.model, sample_batch(trainee))
    )
    show = run.progress.bar(f"stage {number}", stage.epochs * steps, "batches")
    with show as bar, trainee.no_bar(), trainee.no_logging(), quicker:
        bar.step(done * steps)
        callbacks = [
            *stage_callbacks(run, trainee, number, size),
            laps,
            ProgressCallback(run, number, facts, bar),
            ResumeCallback(run, number, facts, laps),
        ]
        callbacks += [SyncGradients()] if world_size() > 1 else []
        callbacks += [ReduceOnPlateau(run, number)] if stage.schedule == "plateau" else []
        fit = {"one_cycle": trainee.fit_one_cycle, "flat_cos": trainee.fit_flat_cos}.get(stage.schedule, trainee.fit)
        fit(stage.epochs, group_lrs(trainee, facts["lr"]), cbs=callbacks)


def optimizer_function(name: str) -> Callable[..., Any]:
    known, settings = OPTIMIZERS[name]
    return partial(getattr(optimizers, known), **settings)


def stage_callbacks(run: TrainingRun, trainee: Learner, number: int, size: int) -> list[Callback]:
    """What a stage wants done in its loop: still statistics, smaller images, batches gathered to the size wished."""
    learn, recipe = run.frozen.learn, run.frozen.recipe
    stage = recipe.stages[number - 1]
    found: list[Callback] = []
    if stage.batch_norm == "still" and not (stage.trains == "head" and recipe.freeze == "fastai"):
        found.append(FreezeBatchNorm(learn.model[0]))
    if trainee is learn and stage.image_size:
        found.append(ResizeBatch(stage.image_size))
    if trainee.dls.train.bs < size:
        found.append(AccumulateGradients(size))
    return found


def group_lrs(trainee: Learner, rate: Any) -> Any:
    """One rate, or a rate for each layer group: from the first to the last that is trained, evenly multiplied."""
    if not isinstance(rate, tuple):
        return rate
    groups = len(trainee.opt.param_lists)
    frozen = trainee.opt.frozen_idx
    return [rate[0]] * frozen + list(even_mults(*rate, groups - frozen))


def freeze_groups(trainee: Learner, last: int, recipe: Recipe) -> None:
    """A fresh optimizer, with the layer groups before so many last ones frozen (fastai's `freeze_to`).

    fastai would keep BatchNorm learning in frozen groups, so that gradients run through the whole body; ours are
    still, unless the recipe asks for fastai's way.
    """
    trainee.train_bn = recipe.freeze == "fastai"
    trainee.create_opt()
    groups = len(trainee.opt.param_lists)
    trainee.freeze_to(groups - min(last, groups))
