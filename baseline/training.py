"""Learner + stages -> history, with the best weights of all stages loaded. Knows losses; knows no files, no photos."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import fastai.callback.all  # noqa: F401  # gives Learner fit_one_cycle and fit_flat_cos
import numpy as np
import pandas as pd
import torch
from fastai import optimizer as optimizers
from fastai.callback.core import Callback, CancelFitException, CancelTrainException
from fastai.callback.schedule import LRFinder, ParamScheduler, valley
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner
from fastcore.basics import even_mults

from .chance import states_kept
from .data import shrunk
from .features import FrozenOutputs
from .planning import SWEEP_STEPS
from .progress import Bar, Show
from .quick import compiled, quick
from .recipe import OPTIMIZERS, Recipe, course_words, rate_words, trained_words

__all__ = ["History", "find_lr", "train"]

FALLBACK_LR = 1e-3
LOWEST_LR, HIGHEST_LR = 1e-6, 1e-1


@dataclass
class History:
    """What training did, epoch by epoch and stage by stage."""

    epochs: pd.DataFrame
    """One row an epoch: `stage, trains, epoch, lr, train_loss, valid_loss, valid_accuracy, seconds, best`; with many
    labels a photo `valid_f1_score` (micro) instead of the accuracy."""
    sweeps: pd.DataFrame
    """One row a step of each learning-rate search: `stage, lr, loss`."""
    stages: list[dict[str, Any]]
    """One entry a stage: `trains`, `epochs`, `optimizer`, `schedule`, `parameters` (trained), `lr` as used, `why`,
    `seconds`, `features_seconds` and `lr_find_seconds` of these, and `cached_seconds`: what the outputs that came from
    the cache once took."""


def train(learn: Learner, recipe: Recipe, show: Show | None = None, *, deadline: float = math.inf) -> History:
    """Trains the recipe's stages in order and leaves the best weights of all of them in `learn`.

    Best is the highest accuracy (micro F1 with many labels) on the valid split, the lower loss where two are
    equal, over all epochs of all stages: a fine-tune that makes things worse never replaces what was better. Each
    stage is fastai's `fit_one_cycle`, or what else its `schedule` names, with its `optimizer`, which becomes the
    Learner's `opt_func`; a head stage runs on the frozen body's outputs (`freeze = "features"`) or as fastai does it.

    At the `deadline` (seconds of `time.perf_counter`) training ends, in the middle of an epoch if need be, whose
    weights are then looked at like any others.

    An interrupt (`KeyboardInterrupt`) leaves the best weights so far in `learn` and goes on to the caller, with the
    history so far as its `history`.

    Raises:
        RecipeError: if a stage trains more layer groups than the network has.
    """
    show = show or Show()
    run = _Run(FrozenOutputs(learn, recipe, show), _Best(learn), _Log(), show, deadline, learn.dls.train.bs)
    try:
        for number in range(1, len(recipe.stages) + 1):
            if run.log.epochs and time.perf_counter() > deadline:
                show.say(f"stage {number}: left out, the time is up")
                continue
            _train_stage(run, number)
            run.frozen.forget(number)
    except KeyboardInterrupt as interrupt:
        interrupt.history = run.log.history()  # type: ignore[attr-defined]
        raise
    finally:
        run.best.restore()
        learn.opt = None
        learn.model.requires_grad_(True).eval()
    return run.log.history()


def find_lr(learn: Learner) -> tuple[float, pd.DataFrame, str]:
    """fastai's learning-rate search without its side effects: the rate, the curve (`lr, loss`), and a word on it.

    A hundred steps with rates from 1e-7 to 10, stopped once the loss has risen fourfold; the rate is fastai's
    `valley`, held between 1e-6 and 0.1. Weights, optimizer, loaders and random states are as before; no file is
    written. Where the curve shows no valley the rate is 1e-3 and the word says so.
    """
    with _as_before(learn), learn.no_bar(), learn.no_logging(), quick(learn.model, _sample(learn)):
        learn.fit(SWEEP_STEPS // len(learn.dls.train) + 1, cbs=_Sweep(num_it=SWEEP_STEPS))
        curve = pd.DataFrame({"lr": learn.recorder.lrs, "loss": [float(loss) for loss in learn.recorder.losses]})
    curve = curve[np.isfinite(curve["loss"])].reset_index(drop=True)
    usable = curve.iloc[SWEEP_STEPS // 10 : -5]
    try:
        rate = float(valley(torch.tensor(usable["lr"].values), torch.tensor(usable["loss"].values), SWEEP_STEPS)[0])
    except (IndexError, RuntimeError, ValueError):
        return FALLBACK_LR, curve, "the search showed no valley, so this is the default"
    if not LOWEST_LR <= rate <= HIGHEST_LR:
        return min(max(rate, LOWEST_LR), HIGHEST_LR), curve, f"the search gave {rate:.1e}, held within bounds"
    return rate, curve, "found by a search of 100 steps"


# ---- one stage ------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """What all stages of one training share."""

    frozen: FrozenOutputs
    best: _Best
    log: _Log
    show: Show
    deadline: float
    batch_size: int


def _train_stage(run: _Run, number: int) -> None:
    began = time.perf_counter()
    learn, recipe = run.frozen.learn, run.frozen.recipe
    stage, trained = recipe.stages[number - 1], run.frozen.plan.trained(number)
    learn.opt_func = _optimizer(stage.optimizer)
    trainee = run.frozen.learner(number) or learn
    size = run.batch_size if trainee is learn else trainee.dls.train.bs
    facts: dict[str, Any] = {key: getattr(stage, key) for key in ("trains", "epochs", "optimizer", "schedule")}
    facts["parameters"] = sum(p.numel() for group in learn.splitter(learn.model)[-trained:] for p in group)
    facts["features_seconds"] = round(time.perf_counter() - began, 2) if trainee is not learn else 0.0
    facts["cached_seconds"] = round(run.frozen.saved, 2) if trainee is not learn else 0.0
    rate, why = stage.lr, "as given"
    if stage.lr == "find":
        before = time.perf_counter()
        run.show.say(f"stage {number}: searching the learning rate")
        found, curve, why = _in_memory(run, trainee, number, lambda: _search(run, trainee, number, size))
        run.log.sweeps.append(curve.assign(stage=number))
        rate = found if trainee is not learn or stage.trains == "head" else (found / 10, found)
        facts["lr_find_seconds"] = round(time.perf_counter() - before, 2)
    facts.update(lr=rate, why=why)
    what = trained_words(stage.trains if isinstance(stage.trains, str) else trained)
    words = [what, f"{stage.epochs} epochs", course_words(facts), f"learning rate {rate_words(rate)} ({why})"]
    run.show.say(f"stage {number}: training {', '.join(filter(None, words))}")
    watch, laps = _in_memory(run, trainee, number, lambda: _fit(run, trainee, number, rate, size))
    facts["seconds"] = round(time.perf_counter() - began, 2)
    if watch.late:
        facts["cut_short"] = "the time was up"
    facts["laps"] = {name: round(seconds, 4) for name, seconds in laps.seconds.items()}
    run.log.stages.append(facts)


def _search(run: _Run, trainee: Learner, number: int, size: int) -> tuple[float, pd.DataFrame, str]:
    _freeze(trainee, run.frozen.plan.trained(number), run.frozen.recipe)
    with trainee.added_cbs(_callbacks(run, trainee, number, size)):
        return find_lr(trainee)


def _fit(run: _Run, trainee: Learner, number: int, rate: Any, size: int) -> tuple[_Watch, _Laps]:
    """One cycle, or what else the stage's schedule is."""
    stage = run.frozen.recipe.stages[number - 1]
    _freeze(trainee, run.frozen.plan.trained(number), run.frozen.recipe)
    steps = stage.epochs * (len(trainee.dls.train) + len(trainee.dls.valid))
    quicker = compiled(trainee.model) if run.frozen.recipe.compile else quick(trainee.model, _sample(trainee))
    with run.show.bar(f"stage {number}", steps, "batches") as bar, trainee.no_bar(), trainee.no_logging(), quicker:
        watch, laps = _Watch(run, number, bar), _Laps()
        callbacks = [*_callbacks(run, trainee, number, size), laps, watch]
        callbacks += [_Plateau()] if stage.schedule == "plateau" else []
        fit = {"one_cycle": trainee.fit_one_cycle, "flat_cos": trainee.fit_flat_cos}.get(stage.schedule, trainee.fit)
        fit(stage.epochs, _rates(trainee, rate), cbs=callbacks)
    return watch, laps


def _optimizer(name: str) -> Callable[..., Any]:
    known, settings = OPTIMIZERS[name]
    return partial(getattr(optimizers, known), **settings)


def _in_memory(run: _Run, trainee: Learner, number: int, work: Callable[[], Any]) -> Any:
    """The work's result; where the device's memory is too small for it, batches are halved and it begins anew."""
    before = _weights(trainee.model)
    while True:
        try:
            return work()
        except torch.OutOfMemoryError:
            size = trainee.dls.train.bs
            if size < 2:
                raise
        run.show.say(f"stage {number}: out of memory; batches of {size // 2}, gathered for each step")
        run.log.epochs = [row for row in run.log.epochs if row["stage"] != number]
        trainee.model.load_state_dict(before)
        smaller = trainee.dls.train.new(bs=size // 2)
        smaller.weights = trainee.dls.train.weights
        trainee.dls.loaders[0] = smaller


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _sample(learn: Learner) -> torch.Tensor:
    """Some inputs of the network."""
    with states_kept():
        return learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)


def _callbacks(run: _Run, trainee: Learner, number: int, size: int) -> list[Callback]:
    """What a stage wants done in its loop: still statistics, smaller photos, batches gathered to the size wished."""
    learn, recipe = run.frozen.learn, run.frozen.recipe
    stage = recipe.stages[number - 1]
    found: list[Callback] = []
    if stage.batch_norm == "still" and not (stage.trains == "head" and recipe.freeze == "fastai"):
        found.append(_StillBatchNorm(learn.model[0]))
    if trainee is learn and stage.image_size:
        found.append(_Smaller(stage.image_size))
    if trainee.dls.train.bs < size:
        found.append(GradientAccumulation(size))
    return found


def _rates(trainee: Learner, rate: Any) -> Any:
    """One rate, or a rate for each layer group: from the first to the last that is trained, evenly multiplied."""
    if not isinstance(rate, tuple):
        return rate
    groups = len(trainee.opt.param_lists)
    frozen = trainee.opt.frozen_idx
    return [rate[0]] * frozen + list(even_mults(*rate, groups - frozen))


def _freeze(trainee: Learner, last: int, recipe: Recipe) -> None:
    """A fresh optimizer, with the layer groups before so many last ones frozen (fastai's `freeze_to`).

    fastai would keep BatchNorm learning in frozen groups, so that gradients run through the whole body; ours are
    still, unless the recipe asks for fastai's way.
    """
    trainee.train_bn = recipe.freeze == "fastai"
    trainee.create_opt()
    groups = len(trainee.opt.param_lists)
    trainee.freeze_to(groups - min(last, groups))


@dataclass
class _Log:
    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    """Training batches so far."""
    sweeps: list[pd.DataFrame] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)

    def history(self) -> History:
        columns = ["stage", "lr", "loss"]
        sweeps = pd.concat(self.sweeps, ignore_index=True)[columns] if self.sweeps else pd.DataFrame(columns=columns)
        return History(pd.DataFrame(self.epochs), sweeps, self.stages)


class _Best:
    """A copy of the whole network's weights from its best epoch."""

    def __init__(self, learn: Learner) -> None:
        self.model = learn.model
        self.score: tuple[float, float] | None = None
        self.weights: dict[str, torch.Tensor] = {}

    def offer(self, metric: float, loss: float) -> bool:
        """Keeps the weights as they are now if they are the best so far."""
        score = (metric, -loss if math.isfinite(loss) else -math.inf)
        if self.score is not None and score <= self.score:
            return False
        self.score = score
        self.weights = _weights(self.model)
        return True

    def restore(self) -> None:
        if self.weights:
            self.model.load_state_dict(self.weights)


class _StillBatchNorm(Callback):
    """The body's BatchNorm normalises with the statistics it was pretrained with; scale and shift still learn.

    In a short fine-tune on small batches this is worth points: CIFAR-10, 20,000 photos, 64 px, one epoch:
    85.5 % against 81.4 % and 82.0 % with moving statistics (3,000 test photos, TTA).
    """

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def before_train(self) -> None:
        for layer in self.body.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.eval()


class _Plateau(ReduceLROnPlateau):
    """fastai's, which prints; the rate of each epoch is in the history."""

    def after_epoch(self) -> None:
        with redirect_stdout(None):
            super().after_epoch()


class _Laps(Callback):
    """Seconds by part of the loop. On a GPU, which is not waited for, parts are told apart only roughly."""

    order = -100  # before all others, whose time then counts as the part's that they follow

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(("loading", "forward", "backward", "step", "validation"), 0.0)

    def before_fit(self) -> None:
        self.last = time.perf_counter()

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name if self.training else "validation"] += now - self.last
        self.last = now

    def before_batch(self) -> None:
        self._lap("loading")

    def after_loss(self) -> None:
        self._lap("forward")

    def after_backward(self) -> None:
        self._lap("backward")

    def after_batch(self) -> None:
        self._lap("step")

    def after_validate(self) -> None:
        self._lap("validation")


class _Smaller(Callback):
    """Training photos are made smaller; valid ones are not, so that all stages are judged alike."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def before_batch(self) -> None:
        if self.training:
            self.learn.xb = (shrunk(self.xb[0], self.size),)


class _Watch(Callback):
    """Moves the bar, writes the history, and keeps the best weights."""

    order = 60  # after the Recorder, whose values it reads

    def __init__(self, run: _Run, number: int, bar: Bar) -> None:
        super().__init__()
        self.number, self.stage, self.bar = number, run.frozen.recipe.stages[number - 1], bar
        self.best, self.log, self.show, self.deadline = run.best, run.log, run.show, run.deadline
        self.late = False

    def before_epoch(self) -> None:
        self.began = time.perf_counter()

    def before_batch(self) -> None:
        if self.training and not self.late and time.perf_counter() > self.deadline:
            self.late = True
            self.show.say(f"stage {self.number}: the time is up after {self.pct_train:.0%} of its training")
            raise CancelTrainException()

    def after_batch(self) -> None:
        self.log.steps += self.training
        if not self.training or self.iter % 10:  # on a GPU, to ask for the loss is to wait for it
            self.bar.step()
            return
        loss = float(self.recorder.smooth_loss.value)
        self.bar.step(note=f"loss {loss:.3f}")
        self.show.numbers(self.log.steps, {"lr": float(self.opt.hypers[-1]["lr"]), "train_loss": loss})

    def after_epoch(self) -> None:
        train_loss = float(self.recorder.smooth_loss.value)  # which fastai leaves out of its log of a cancelled epoch
        valid_loss, score = (float(value) for value in self.recorder.log[-3:-1])
        metric = self.recorder.metric_names[3]
        row = {
            "stage": self.number,
            "trains": self.stage.trains,
            "epoch": self.epoch + 1,
            "lr": float(self.opt.hypers[-1]["lr"]),
            "train_loss": train_loss,
            "valid_loss": valid_loss,
            f"valid_{metric}": score,
            "seconds": round(time.perf_counter() - self.began, 2),
        }
        self.log.epochs.append({**row, "best": self.best.offer(score, valid_loss)})
        told = {name: value for name, value in row.items() if name != "trains"}
        self.show.numbers(self.log.steps, {**told, "epoch": len(self.log.epochs)})
        self.show.say(
            f"  epoch {row['epoch']}/{self.stage.epochs}: loss {train_loss:.3f} train, {valid_loss:.3f} valid; "
            f"{metric} {score:.2%} valid; {row['seconds']:.0f} s"
        )
        if self.late:
            raise CancelFitException()


# ---- the search for a learning rate, without traces -----------------------------------------------------------------


class _Sweep(LRFinder):
    """fastai's LRFinder without the file it saves the network to, and with losses that are no numbers as an end."""

    def before_fit(self) -> None:
        ParamScheduler.before_fit(self)
        self.best_loss = float("inf")

    def after_batch(self) -> None:
        ParamScheduler.after_batch(self)
        if not self.training:
            return
        loss = float(self.smooth_loss)
        self.best_loss = min(self.best_loss, loss)
        risen = self.train_iter > SWEEP_STEPS // 3 and loss > 4 * self.best_loss
        if self.train_iter >= self.num_it or risen or not math.isfinite(loss):
            raise CancelFitException()

    def after_fit(self) -> None:
        self.learn.opt.zero_grad()


@contextmanager
def _as_before(learn: Learner) -> Iterator[None]:
    """Whatever happens inside to weights, optimizer, loader and random states is undone."""
    weights = _weights(learn.model)
    loader_state = learn.dls.train.rng.getstate()
    try:
        with states_kept():
            yield
    finally:
        learn.dls.train.rng.setstate(loader_state)
        learn.model.load_state_dict(weights)
        learn.opt = None
