"""Learning-rate search: fastai's `lr_find` without its side effects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import CancelFitException
from fastai.callback.schedule import LRFinder, ParamScheduler, valley
from fastai.learner import Learner

from baseline.errors import TrainingError
from baseline.vision.copy_weights import clone_weights
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.rng import preserve_rng_state

__all__ = ["find_lr"]


SWEEP_STEPS = 100
"""Number of steps of a learning-rate search."""


FALLBACK_LR = 1e-3
"""Learning rate where the search finds no valley."""

MIN_LR, MAX_LR = 1e-6, 1e-1
"""Bounds of the learning rate that a search may suggest."""


def find_lr(learn: Learner) -> tuple[float, pd.DataFrame, str]:
    """Run fastai's learning-rate search without its side effects.

    The search takes 100 steps with rates from 1e-7 to 10 and stops early once the loss has risen fourfold. The
    suggested rate is fastai's `valley`, clipped to between 1e-6 and 0.1; where the curve has no valley it is 1e-3.
    Weights, optimizer, loaders and random states are unchanged afterwards, and no file is written.

    Returns:
        The learning rate, the curve (columns `lr, loss`), and where the rate comes from, in words.
    """
    with _preserve_state(learn), learn.no_bar(), learn.no_logging(), optimize_for_cpu(learn.model, sample_batch(learn)):
        learn.fit(SWEEP_STEPS // len(learn.dls.train) + 1, cbs=_LRSweep(num_it=SWEEP_STEPS))
        if not hasattr(learn.recorder, "lrs"):
            raise TrainingError("A callback ended the search for a learning rate before its first step. Set an lr.")
        curve = pd.DataFrame({"lr": learn.recorder.lrs, "loss": [float(loss) for loss in learn.recorder.losses]})
    curve = curve[np.isfinite(curve["loss"])].reset_index(drop=True)
    usable = curve.iloc[SWEEP_STEPS // 10 : -5]
    try:
        rate = float(valley(torch.tensor(usable["lr"].values), torch.tensor(usable["loss"].values), SWEEP_STEPS)[0])
    except (IndexError, RuntimeError, ValueError):
        return FALLBACK_LR, curve, "the default, as the search found no valley"
    if not MIN_LR <= rate <= MAX_LR:
        return min(max(rate, MIN_LR), MAX_LR), curve, f"the search suggested {rate:.1e}, which was clipped"
    return rate, curve, "found by a search of 100 steps"


def sample_batch(learn: Learner) -> torch.Tensor:
    """Return a few network inputs: a validation batch, or what was read of one before training."""
    if (sample := vars(learn.dls).get("sample")) is not None:
        return sample
    with preserve_rng_state():
        return learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)


class _LRSweep(LRFinder):
    """fastai's LRFinder without the file it saves the network to; it also stops at a loss that is not finite."""

    name = "lr_finder"  # by which callbacks that track an epoch know that there is none

    def before_fit(self) -> None:
        ParamScheduler.before_fit(self)
        self.best_loss = float("inf")

    def after_batch(self) -> None:
        ParamScheduler.after_batch(self)
        if not self.training or not self.recorder.smooth_loss.count:  # a callback skipped all batches so far
            return
        loss = float(self.smooth_loss)
        self.best_loss = min(self.best_loss, loss)
        has_risen = self.train_iter > SWEEP_STEPS // 3 and loss > 4 * self.best_loss
        if self.train_iter >= self.num_it or has_risen or not math.isfinite(loss):
            raise CancelFitException()

    def after_fit(self) -> None:
        self.learn.opt.zero_grad()


@contextmanager
def _preserve_state(learn: Learner) -> Iterator[None]:
    """Undo all changes to weights, optimizer, loader and random states on exit."""
    weights = clone_weights(learn.model)
    loader_state = learn.dls.train.rng.getstate()
    try:
        with preserve_rng_state():
            yield
    finally:
        learn.dls.train.rng.setstate(loader_state)
        learn.model.load_state_dict(weights)
        learn.opt = None
