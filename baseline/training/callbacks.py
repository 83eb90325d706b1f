"""TODO."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
from fastai.callback.core import Callback, CancelFitException, CancelTrainException
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.callback.training import GradientAccumulation

from baseline.parallel.distributed import all_reduce_mean
from baseline.training.recovery import Diverged
from baseline.training.state import epoch_score
from baseline.vision.augment import resize_batch

if TYPE_CHECKING:
    from baseline.progress import Bar
    from baseline.training.state import TrainingRun

MAX_RELATIVE_LOSS = 10
"""Times the loss of a guess, from which on training has diverged."""


class AccumulateGradients(GradientAccumulation):
    """fastai's, with nothing left over from one epoch for the next."""

    def before_epoch(self) -> None:
        self.count = 0
        self.opt.zero_grad()


class SyncGradients(Callback):
    """All processes learn from the whole batch, of which each has seen its part, and are judged by the same network."""

    def after_backward(self) -> None:
        all_reduce_mean([p.grad for p in self.model.parameters() if p.grad is not None])

    def before_validate(self) -> None:
        all_reduce_mean([value for value in self.model.buffers() if value.is_floating_point()])


class FreezeBatchNorm(Callback):
    """The body's BatchNorm normalises with the statistics it was pretrained with; scale and shift still learn.

    In a short fine-tune on small batches this is worth points: CIFAR-10, 20,000 images, 64 px, one epoch:
    85.5 % against 81.4 % and 82.0 % with moving statistics (3,000 test images, TTA).
    """

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def before_train(self) -> None:
        for layer in self.body.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.eval()


class ReduceOnPlateau(ReduceLROnPlateau):
    """fastai's, which prints; the rate of each epoch is in the history. What the stage has reached before counts."""

    def __init__(self, run: TrainingRun, number: int) -> None:
        super().__init__()
        self.done = run.state.epoch if run.state else 0
        self.before = min((row["valid_loss"] for row in run.log.epochs if row["stage"] == number), default=math.inf)

    def before_fit(self) -> None:
        super().before_fit()
        self.best: float = min(self.best, self.before)

    def after_epoch(self) -> None:
        if self.epoch >= self.done:
            with redirect_stdout(None):
                super().after_epoch()


class StepTimer(Callback):
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


class ResizeBatch(Callback):
    """Training images are made smaller; valid ones are not, so that all stages are judged alike."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def before_batch(self) -> None:
        if self.training:
            self.learn.xb = (resize_batch(self.xb[0], self.size),)


class ProgressCallback(Callback):
    """Moves the bar, writes the history, keeps the best weights, and sees when a stage has to end."""

    order = 60  # after the Recorder, whose values it reads

    def __init__(self, run: TrainingRun, number: int, facts: dict[str, Any], bar: Bar) -> None:
        super().__init__()
        self.number, self.stage, self.bar = number, run.frozen.recipe.stages[number - 1], bar
        self.best, self.log, self.progress, self.deadline = run.best, run.log, run.progress, run.deadline
        self.patience, self.facts = run.frozen.recipe.patience, facts
        self.done = run.state.epoch if run.state else 0
        dls = run.frozen.learn.dls
        self.most = MAX_RELATIVE_LOSS * math.log(2 if dls.multilabel else max(2, len(dls.vocab)))
        self.late = False

    def before_epoch(self) -> None:
        self.began = time.perf_counter()

    def before_batch(self) -> None:
        begun = self.recorder.smooth_loss.count  # without a step there is no loss to tell of
        if self.training and not self.late and (begun or self.log.epochs) and time.perf_counter() > self.deadline:
            self.late = True
            self.facts["cut_short"] = "the time was up"
            self.progress.log(f"stage {self.number}: the time is up after {self.pct_train:.0%} of its training")
            raise CancelTrainException() if begun else CancelFitException()

    def after_batch(self) -> None:
        self.log.steps += self.training
        if not self.training or self.iter % 10:  # on a GPU, to ask for the loss is to wait for it
            self.bar.step()
            return
        loss = self._loss()
        self.bar.step(note=f"loss {loss:.3f}")
        self.progress.numbers(self.log.steps, {"lr": float(self.opt.hypers[-1]["lr"]), "train_loss": loss})

    def _loss(self) -> float:
        mean = self.recorder.smooth_loss.value.detach().clone().reshape(1)
        all_reduce_mean([mean])
        loss = float(mean)
        if not math.isfinite(loss):
            raise Diverged(f"the loss is no number in epoch {self.epoch + 1}")
        if loss > self.most:
            raise Diverged(f"the loss has risen to {loss:.1f} in epoch {self.epoch + 1}")
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
        self.progress.numbers(self.log.steps, told)
        self.progress.log(
            f"  epoch {row['epoch']}/{self.stage.epochs}: loss {train_loss:.3f} train, {valid_loss:.3f} valid; "
            f"{metric} {score:.2%} valid; {row['seconds']:.0f} s"
        )
        if self.late:
            raise CancelFitException()
        scores = [epoch_score(row[f"valid_{metric}"], row["valid_loss"]) for row in self.log.epochs
                  if row["stage"] == self.number]  # fmt: skip
        if 0 < self.patience <= len(scores) - 1 - scores.index(max(scores)) and row["epoch"] < self.stage.epochs:
            self.facts["cut_short"] = f"{self.patience} epochs were no better"
            self.progress.log(f"stage {self.number}: ends, as {self.facts['cut_short']}")
            raise CancelFitException()
