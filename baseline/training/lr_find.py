"""TODO."""

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

from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.network import clone_weights
from baseline.vision.rng import preserve_rng_state

__all__ = ["find_lr"]


SWEEP_STEPS = 100
"""Steps of a search for a learning rate."""


FALLBACK_LR = 1e-3

MIN_LR, MAX_LR = 1e-6, 1e-1


def find_lr(learn: Learner) -> tuple[float, pd.DataFrame, str]:
    """fastai's learning-rate search without its side effects: the rate, the curve (`lr, loss`), and a word on it.

    A hundred steps with rates from 1e-7 to 10, stopped once the loss has risen fourfold; the rate is fastai's
    `valley`, held between 1e-6 and 0.1. Weights, optimizer, loaders and random states are as before; no file is
    written. Where the curve shows no valley the rate is 1e-3 and the word says so.
    """
    with _preserve_state(learn), learn.no_bar(), learn.no_logging(), optimize_for_cpu(learn.model, sample_batch(learn)):
        learn.fit(SWEEP_STEPS // len(learn.dls.train) + 1, cbs=_LRSweep(num_it=SWEEP_STEPS))
        curve = pd.DataFrame({"lr": learn.recorder.lrs, "loss": [float(loss) for loss in learn.recorder.losses]})
    curve = curve[np.isfinite(curve["loss"])].reset_index(drop=True)
    usable = curve.iloc[SWEEP_STEPS // 10 : -5]
    try:
        rate = float(valley(torch.tensor(usable["lr"].values), torch.tensor(usable["loss"].values), SWEEP_STEPS)[0])
    except (IndexError, RuntimeError, ValueError):
        return FALLBACK_LR, curve, "the search showed no valley, so this is the default"
    if not MIN_LR <= rate <= MAX_LR:
        return min(max(rate, MIN_LR), MAX_LR), curve, f"the search gave {rate:.1e}, held within bounds"
    return rate, curve, "found by a search of 100 steps"


def sample_batch(learn: Learner) -> torch.Tensor:
    """Some inputs of the network."""
    with preserve_rng_state():
        return learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)


class _LRSweep(LRFinder):
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
def _preserve_state(learn: Learner) -> Iterator[None]:
    """Whatever happens inside to weights, optimizer, loader and random states is undone."""
    weights = clone_weights(learn.model)
    loader_state = learn.dls.train.rng.getstate()
    try:
        with preserve_rng_state():
            yield
    finally:
        learn.dls.train.rng.setstate(loader_state)
        learn.model.load_state_dict(weights)
        learn.opt = None
