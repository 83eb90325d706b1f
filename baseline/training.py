"""Learner + stages -> history, with the best weights of all stages loaded. Knows losses; knows no files, no photos."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import fastai.callback.all  # noqa: F401  # gives Learner fit_one_cycle and fit_flat_cos
import numpy as np
import pandas as pd
import torch
from fastai import optimizer as optimizers
from fastai.callback.core import Callback, CancelEpochException, CancelFitException, CancelTrainException
from fastai.callback.schedule import LRFinder, ParamScheduler, valley
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner
from fastcore.basics import even_mults
from fastcore.foundation import L

from .chance import restore, states, states_kept
from .checkpoints import Checkpoints
from .data import shared, shrunk
from .errors import OutputError, TrainingError, first_line
from .features import FrozenOutputs
from .planning import SWEEP_STEPS
from .processes import averaged, count, from_first, gathered, rank
from .progress import Bar, Show
from .quick import compiled, quick
from .recipe import OPTIMIZERS, Recipe, course_words, rate_words, trained_words

__all__ = ["History", "find_lr", "train"]

FALLBACK_LR = 1e-3
LOWEST_LR, HIGHEST_LR = 1e-6, 1e-1
OTHER_CHANCE = 1_000_003
HIGHEST_LOSS = 10
"""Times the loss of a guess, from which on training has diverged."""


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


def train(
    learn: Learner,
    recipe: Recipe,
    show: Show | None = None,
    *,
    deadline: float = math.inf,
    kept: Checkpoints | None = None,
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
    each step; a dead reader of photos is replaced, once a stage. If the loss goes wrong again, training ends with the
    best weights so far.

    With `kept`, the state at the end of epochs is written there every now and then, and training goes on from the one
    that is found there: on a CPU to the same numbers, to the last digit.

    An interrupt (`KeyboardInterrupt`) leaves the best weights so far in `learn` and goes on to the caller, with the
    history so far as its `history`.

    Raises:
        RecipeError: if a stage trains more layer groups than the network has.
        TrainingError: if the loss goes wrong before any epoch has ended, the device's memory is too small for batches
            of two photos, or readers of photos die again.
        OutputError: if what `kept` has is damaged, or fits outputs of frozen layers for which there is no room now.
    """
    show = show or Show()
    if rank():
        torch.manual_seed(recipe.seed + OTHER_CHANCE * rank())  # or all would mirror the same photos of their parts
    run = _Run(FrozenOutputs(learn, recipe, show), _Best(learn), _Log(), show, deadline, learn.dls.train.bs, kept)
    try:
        for at in range(run.go_on(), len(recipe.stages) + 1):
            if run.log.epochs and time.perf_counter() > deadline:
                show.say(f"stage {at}: left out, the time is up")
                continue
            if "given_up" in _train_stage(run, at):
                break
            run.frozen.forget(at)
            run.stage_ends(at)
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
    kept: Checkpoints | None
    point: _Point | None = None
    """Where training can go back to, or, after an interrupt, has to go on from."""

    def go_on(self) -> int:
        """The number of the stage to begin with; what was kept is taken up."""
        found = self.kept.state() if self.kept else None
        gathered(None)  # none goes on, and drops what was kept, before all have read it
        if found is None:
            return 1
        state, best = found
        learn = self.frozen.learn
        self.log = _Log(**state["log"])
        self.best.score, self.best.weights = state["score"], best
        self.point = point = _Point(**state["point"])
        learn.model.load_state_dict(point.weights)
        _set_loader(learn.dls.train, point.loaders[0])
        restore(point.random[rank() % len(point.random)])
        for step, values in self.log.told:
            self.show.numbers(step, values)
        at = f" after epoch {point.epoch} of {self.frozen.recipe.stages[point.stage - 1].epochs}" if point.epoch else ""
        stages = len(self.frozen.recipe.stages)
        where = f"in stage {point.stage}{at}" if point.stage <= stages else "after the last stage"
        self.show.say(f"going on {where}, with the best weights of {len(self.log.epochs)} epochs")
        return point.stage

    def stage_ends(self, number: int) -> None:
        """The next stage begins with the weights and random states of now."""
        weights = self.best.weights if self.log.epochs[-1]["best"] else _weights(self.frozen.learn.model)
        self.point = None
        self.keep(
            _Point(
                number + 1,
                0,
                {"seconds": 0},
                weights,
                None,
                gathered(states()),
                (_loader_state(self.frozen.learn.dls.train),),
            )
        )

    def keep(self, point: _Point) -> None:
        """Writes the state, if it is time to."""
        if self.kept is None or rank() or not self.kept.due():
            return
        told = {"steps": self.log.steps, "point": vars(point), "log": vars(self.log), "score": self.best.score}
        spent = sum(facts["seconds"] for facts in [*self.log.stages, point.facts])
        self.kept.keep(told, self.best.weights, spent)
        if self.kept.trouble:
            self.show.say(f"what has been trained cannot be kept ({self.kept.trouble}); training goes on without")


@dataclass
class _Point:
    """A place that training can go on from: the beginning of a stage, or the end of one of its epochs."""

    stage: int
    epoch: int
    """Epochs of the stage that have ended."""
    facts: dict[str, Any]
    """What the history will tell of the stage, as far as it is known."""
    weights: dict[str, torch.Tensor]
    """Of the whole network."""
    optimizer: dict[str, Any] | None
    random: list[dict[str, Any]]
    """States of each process."""
    loaders: tuple[Any, ...]
    """States of the training loaders of the whole network's Learner and, within a stage, of the stage's."""
    batch_size: int = 0
    smooth: tuple[int, torch.Tensor] = (0, torch.zeros(()))
    """Steps and value of fastai's smoothed loss."""
    scaler: dict[str, Any] | None = None
    """Of float16 training."""


def _train_stage(run: _Run, number: int) -> dict[str, Any]:
    """Trains it; what the history tells of it."""
    began = time.perf_counter()
    learn, recipe = run.frozen.learn, run.frozen.recipe
    stage, trained = recipe.stages[number - 1], run.frozen.plan.trained(number)
    learn.opt_func = _optimizer(stage.optimizer)
    trainee = _trainee(run, number)
    size = run.batch_size if trainee is learn else trainee.dls.train.bs
    if run.point is not None and run.point.epoch:
        facts = dict(run.point.facts)
        _smaller_batches(trainee, run.point.batch_size)
    else:
        run.point = None
        facts = {key: getattr(stage, key) for key in ("trains", "epochs", "optimizer", "schedule")}
        facts["parameters"] = sum(p.numel() for group in learn.splitter(learn.model)[-trained:] for p in group)
        facts["features_seconds"] = round(time.perf_counter() - began, 2) if trainee is not learn else 0.0
        facts["cached_seconds"] = round(run.frozen.saved, 2) if trainee is not learn else 0.0
        rate, why = stage.lr, "as given"
        if stage.lr == "find":
            before = time.perf_counter()
            run.show.say(f"stage {number}: searching the learning rate")
            search = partial(_safely, run, trainee, number, facts, lambda: _search(run, trainee, number, size))
            found, curve, why = from_first(search)
            run.log.sweeps += curve.assign(stage=number).to_dict("records")
            rate = found if trainee is not learn or stage.trains == "head" else (found / 10, found)
            facts["lr_find_seconds"] = round(time.perf_counter() - before, 2)
        facts.update(lr=rate, why=why, seconds=0.0)
        what = trained_words(stage.trains if isinstance(stage.trains, str) else trained)
        words = [what, f"{stage.epochs} epochs", course_words(facts), f"learning rate {rate_words(rate)} ({why})"]
        run.show.say(f"stage {number}: training {', '.join(filter(None, words))}")
    before, laps = facts["seconds"], _Laps(facts.get("laps", {}))
    whole = trainee.dls.train
    if count() > 1:
        trainee.dls.loaders[0], size = shared(whole, rank(), count()), size // count()
    try:
        _safely(run, trainee, number, facts, lambda: _fit(run, trainee, number, facts, laps, size))
    except _Wrong as wrong:
        facts["given_up"] = str(wrong)
        if not run.log.epochs:
            raise TrainingError(
                f"Training diverges in stage {number}: {wrong}, at half the rate, {rate_words(facts['lr'])}, too. "
                "Give a lower lr in the recipe, and look at the photos."
            ) from None
        run.show.say(f"stage {number}: {wrong} again; training ends with the best weights so far")
    finally:
        if count() > 1:
            whole.rng.setstate(trainee.dls.train.rng.getstate())
            trainee.dls.loaders[0] = whole
    facts["seconds"] = round(before + time.perf_counter() - began, 2)
    facts["laps"] = {name: round(seconds, 4) for name, seconds in laps.seconds.items()}
    run.log.stages.append(facts)
    return facts


def _trainee(run: _Run, number: int) -> Learner:
    """The layers after the frozen ones, on their outputs, where there is room for these, else the whole network.

    Raises:
        OutputError: if the stage goes on, was on such outputs, and there is no room for them now.
    """
    learn = run.frozen.learn
    kept = len(run.point.optimizer["state"]) if run.point is not None and run.point.optimizer is not None else 0
    if kept == sum(len(group) for group in learn.splitter(learn.model)):
        return learn
    found = run.frozen.learner(number)
    if found is None and kept:
        raise OutputError(
            "What was kept of the run fits outputs of frozen layers, for which there is no room now. Make room on the "
            "cache's disk, give a larger --cache-gb, or remove "
            f"{run.kept and run.kept.folder}, and the run begins anew."
        )
    return found or learn


def _search(run: _Run, trainee: Learner, number: int, size: int) -> tuple[float, pd.DataFrame, str]:
    _freeze(trainee, run.frozen.plan.trained(number), run.frozen.recipe)
    with trainee.added_cbs(_callbacks(run, trainee, number, size)):
        return find_lr(trainee)


def _fit(run: _Run, trainee: Learner, number: int, facts: dict[str, Any], laps: _Laps, size: int) -> None:
    """One cycle, or what else the stage's schedule is, from its beginning or from the point where it stood."""
    stage = run.frozen.recipe.stages[number - 1]
    _freeze(trainee, run.frozen.plan.trained(number), run.frozen.recipe)
    done, steps = run.point.epoch if run.point else 0, len(trainee.dls.train) + len(trainee.dls.valid)
    quicker = compiled(trainee.model) if run.frozen.recipe.compile else quick(trainee.model, _sample(trainee))
    show = run.show.bar(f"stage {number}", stage.epochs * steps, "batches")
    with show as bar, trainee.no_bar(), trainee.no_logging(), quicker:
        bar.step(done * steps)
        callbacks = [
            *_callbacks(run, trainee, number, size),
            laps,
            _Watch(run, number, facts, bar),
            _Road(run, number, facts, laps),
        ]
        callbacks += [_Together()] if count() > 1 else []
        callbacks += [_Plateau(run, number)] if stage.schedule == "plateau" else []
        fit = {"one_cycle": trainee.fit_one_cycle, "flat_cos": trainee.fit_flat_cos}.get(stage.schedule, trainee.fit)
        fit(stage.epochs, _rates(trainee, facts["lr"]), cbs=callbacks)


def _optimizer(name: str) -> Callable[..., Any]:
    known, settings = OPTIMIZERS[name]
    return partial(getattr(optimizers, known), **settings)


class _Wrong(Exception):
    """The loss has gone wrong."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how  # fastai adds words of its own to the message

    def __str__(self) -> str:
        return self.how


def _safely(run: _Run, trainee: Learner, number: int, facts: dict[str, Any], work: Callable[[], Any]) -> Any:
    """The work's result; what can be helped is, and it begins again from the last point."""
    died = False
    while True:
        try:
            return work()
        except torch.OutOfMemoryError:
            size = trainee.dls.train.bs
            if size <= 2 or count() > 1:  # of a single photo BatchNorm learns nothing
                words = "Memory is too small for two photos at a time. Give a smaller --image-size or another --arch."
                if count() > 1:  # the others would wait for this one
                    words = f"Memory is too small for {size} photos in each process. Give a smaller --batch-size."
                raise TrainingError(words) from None
            size = max(2, size // 2)
            run.show.say(f"stage {number}: out of memory; batches of {size}, gathered for each step")
            _smaller_batches(trainee, size)
        except _Wrong as wrong:
            if "halved" in facts:
                raise
            whole, facts["halved"] = facts["lr"], str(wrong)
            facts["lr"] = tuple(each / 2 for each in whole) if isinstance(whole, tuple) else whole / 2
            at = f"epoch {run.point.epoch}" if run.point and run.point.epoch else "its beginning"
            run.show.say(f"stage {number}: {wrong}; back to {at}, at half the rate, {rate_words(facts['lr'])}")
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            if died or count() > 1:
                raise TrainingError(
                    f"Readers of photos die: {first_line(error)}. Give fewer --workers; they may lack memory."
                ) from None
            died = True
            run.show.say(f"stage {number}: {first_line(error)}; it is replaced, once")
        if run.point is not None:
            run.frozen.learn.model.load_state_dict(run.point.weights)


def _smaller_batches(trainee: Learner, size: int) -> None:
    if size == trainee.dls.train.bs:
        return
    smaller = trainee.dls.train.new(bs=size)
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
        found.append(_Gathered(size))
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
    sweeps: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    told: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """The numbers of each epoch and the step at which loggers were told of it."""

    def history(self) -> History:
        return History(
            pd.DataFrame(self.epochs), pd.DataFrame(self.sweeps, columns=["stage", "lr", "loss"]), self.stages
        )


def _score(metric: float, loss: float) -> tuple[float, float]:
    """What epochs are compared by: the metric, then the loss."""
    return metric, -loss if math.isfinite(loss) else -math.inf


class _Best:
    """A copy of the whole network's weights from its best epoch."""

    def __init__(self, learn: Learner) -> None:
        self.model = learn.model
        self.score: tuple[float, float] | None = None
        self.weights: dict[str, torch.Tensor] = {}

    def offer(self, metric: float, loss: float) -> bool:
        """Keeps the weights as they are now if they are the best so far."""
        score = _score(metric, loss)
        if self.score is not None and score <= self.score:
            return False
        self.score = score
        self.weights = _weights(self.model)
        return True

    def restore(self) -> None:
        if self.weights:
            self.model.load_state_dict(self.weights)


class _Gathered(GradientAccumulation):
    """fastai's, with nothing left over from one epoch for the next."""

    def before_epoch(self) -> None:
        self.count = 0
        self.opt.zero_grad()


class _Together(Callback):
    """All processes learn from the whole batch, of which each has seen its part, and are judged by the same network."""

    def after_backward(self) -> None:
        averaged([p.grad for p in self.model.parameters() if p.grad is not None])

    def before_validate(self) -> None:
        averaged([value for value in self.model.buffers() if value.is_floating_point()])


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
    """fastai's, which prints; the rate of each epoch is in the history. What the stage has reached before counts."""

    def __init__(self, run: _Run, number: int) -> None:
        super().__init__()
        self.done = run.point.epoch if run.point else 0
        self.before = min((row["valid_loss"] for row in run.log.epochs if row["stage"] == number), default=math.inf)

    def before_fit(self) -> None:
        super().before_fit()
        self.best: float = min(self.best, self.before)

    def after_epoch(self) -> None:
        if self.epoch >= self.done:
            with redirect_stdout(None):
                super().after_epoch()


class _Road(Callback):
    """Skips the epochs that have ended, goes on as at the run's point, and moves the point on after each epoch."""

    order = 90  # after all others have had their say

    def __init__(self, run: _Run, number: int, facts: dict[str, Any], laps: _Laps) -> None:
        super().__init__()
        self.whole, self.number, self.facts, self.laps = run, number, facts, laps
        self.done = run.point.epoch if run.point else 0
        self.before, self.began = facts["seconds"], time.perf_counter()

    def before_epoch(self) -> None:
        if self.epoch < self.done:
            raise CancelEpochException()
        if self.epoch > self.done:
            return
        if self.whole.point is None:
            self.whole.point = self._now(0, _weights(self.whole.frozen.learn.model), None)
        else:
            self._go_back(self.whole.point)

    def after_fit(self) -> None:
        if self.done == self.n_epoch and self.whole.point is not None:
            self._go_back(self.whole.point)

    def after_epoch(self) -> None:
        if self.epoch < self.done:
            return
        run = self.whole
        best = run.log.epochs[-1]["best"]
        weights = run.best.weights if best else _weights(run.frozen.learn.model)
        run.point = self._now(self.epoch + 1, weights, _copied(self.opt.state_dict()))
        run.keep(run.point)

    def _now(self, epoch: int, weights: dict[str, torch.Tensor], optimizer: dict[str, Any] | None) -> _Point:
        train, own = self.whole.frozen.learn.dls.train, self.dls.train
        smooth, scaler = self.recorder.smooth_loss, getattr(self, "scaler", None)
        spent = round(self.before + time.perf_counter() - self.began, 2)
        return _Point(
            stage=self.number,
            epoch=epoch,
            facts={**self.facts, "seconds": spent, "laps": dict(self.laps.seconds)},
            weights=weights,
            optimizer=optimizer,
            random=gathered(states()),
            loaders=(_loader_state(train), _loader_state(own)),
            batch_size=own.bs * count(),
            smooth=(smooth.count, smooth.val.detach().clone()),
            scaler=scaler.state_dict() if scaler is not None else None,
        )

    def _go_back(self, point: _Point) -> None:
        """Takes up all of the point but its weights, which the network has by now."""
        learn = self.whole.frozen.learn
        first = next(learn.model.parameters())
        if point.optimizer is not None:
            found = _copied(point.optimizer, first.device)
            for (parameter, *_), state in zip(self.opt.all_params(), found["state"], strict=True):
                state.update({key: _laid_out(value, parameter) for key, value in state.items()})
            self.opt.load_state_dict({**found, "hypers": L(found["hypers"])})
        _set_loader(learn.dls.train, point.loaders[0])
        _set_loader(self.dls.train, point.loaders[1])
        restore(point.random[rank() % len(point.random)])
        smooth = self.recorder.smooth_loss
        smooth.count, smooth.val = point.smooth[0], point.smooth[1].to(first.device)
        if point.scaler and getattr(self, "scaler", None) is not None:
            self.scaler.load_state_dict(point.scaler)


def _laid_out(value: Any, like: torch.Tensor) -> Any:
    """A tensor with the strides of another of its shape: sums over it then round as they did."""
    if isinstance(value, torch.Tensor) and value.shape == like.shape:
        return torch.empty_like(like, dtype=value.dtype).copy_(value)
    return value


def _loader_state(loader: Any) -> tuple[Any, bool]:
    """Its own random state, and whether it has looked at an item to learn its types, which may have taken chance."""
    return loader.rng.getstate(), "_types" in vars(loader)


def _set_loader(loader: Any, state: tuple[Any, bool]) -> None:
    if state[1] and "_types" not in vars(loader):
        loader._one_pass()
    loader.rng.setstate(state[0])


def _copied(value: Any, device: torch.device | str = "cpu") -> Any:
    """Nested values with their tensors copied to the device."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: _copied(each, device) for key, each in value.items()}
    if isinstance(value, list | tuple | L):
        return [_copied(each, device) for each in value]
    return value


class _Laps(Callback):
    """Seconds by part of the loop. On a GPU, which is not waited for, parts are told apart only roughly."""

    order = -100  # before all others, whose time then counts as the part's that they follow

    def __init__(self, before: Mapping[str, float]) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(("loading", "forward", "backward", "step", "validation"), 0.0) | dict(before)

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
    """Moves the bar, writes the history, keeps the best weights, and sees when a stage has to end."""

    order = 60  # after the Recorder, whose values it reads

    def __init__(self, run: _Run, number: int, facts: dict[str, Any], bar: Bar) -> None:
        super().__init__()
        self.number, self.stage, self.bar = number, run.frozen.recipe.stages[number - 1], bar
        self.best, self.log, self.show, self.deadline = run.best, run.log, run.show, run.deadline
        self.patience, self.facts = run.frozen.recipe.patience, facts
        self.done = run.point.epoch if run.point else 0
        dls = run.frozen.learn.dls
        self.most = HIGHEST_LOSS * math.log(2 if dls.many else max(2, len(dls.vocab)))
        self.late = False

    def before_epoch(self) -> None:
        self.began = time.perf_counter()

    def before_batch(self) -> None:
        begun = self.recorder.smooth_loss.count  # without a step there is no loss to tell of
        if self.training and not self.late and (begun or self.log.epochs) and time.perf_counter() > self.deadline:
            self.late = True
            self.facts["cut_short"] = "the time was up"
            self.show.say(f"stage {self.number}: the time is up after {self.pct_train:.0%} of its training")
            raise CancelTrainException() if begun else CancelFitException()

    def after_batch(self) -> None:
        self.log.steps += self.training
        if not self.training or self.iter % 10:  # on a GPU, to ask for the loss is to wait for it
            self.bar.step()
            return
        loss = self._loss()
        self.bar.step(note=f"loss {loss:.3f}")
        self.show.numbers(self.log.steps, {"lr": float(self.opt.hypers[-1]["lr"]), "train_loss": loss})

    def _loss(self) -> float:
        mean = self.recorder.smooth_loss.value.detach().clone().reshape(1)
        averaged([mean])
        loss = float(mean)
        if not math.isfinite(loss):
            raise _Wrong(f"the loss is no number in epoch {self.epoch + 1}")
        if loss > self.most:
            raise _Wrong(f"the loss has risen to {loss:.1f} in epoch {self.epoch + 1}")
        return loss

    def after_epoch(self) -> None:
        if self.epoch < self.done:
            return
        train_loss = self._loss()  # which fastai leaves out of its log of a cancelled epoch
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
        told["epoch"] = len(self.log.epochs)
        self.log.told.append((self.log.steps, told))
        self.show.numbers(self.log.steps, told)
        self.show.say(
            f"  epoch {row['epoch']}/{self.stage.epochs}: loss {train_loss:.3f} train, {valid_loss:.3f} valid; "
            f"{metric} {score:.2%} valid; {row['seconds']:.0f} s"
        )
        if self.late:
            raise CancelFitException()
        scores = [_score(row[f"valid_{metric}"], row["valid_loss"]) for row in self.log.epochs
                  if row["stage"] == self.number]  # fmt: skip
        if 0 < self.patience <= len(scores) - 1 - scores.index(max(scores)) and row["epoch"] < self.stage.epochs:
            self.facts["cut_short"] = f"{self.patience} epochs were no better"
            self.show.say(f"stage {self.number}: ends, as {self.facts['cut_short']}")
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
