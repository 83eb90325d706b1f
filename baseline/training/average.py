"""A moving average of the weights (EMA), kept during training and used instead of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from fastai.callback.core import Callback

if TYPE_CHECKING:
    from baseline.training.state import TrainingRun


class AverageWeights(Callback):
    """Keep an exponential moving average (EMA) of the trained weights, and validate and save it instead of them.

    The decay is lower at first, (1 + steps) / (10 + steps), so that the average forgets the start. BatchNorm statistics
    are the network's own.
    """

    order = 70  # after ProgressCallback has kept the averaged weights, before ResumeCallback saves those of training

    def __init__(self, decay: float, run: TrainingRun) -> None:
        super().__init__()
        self.decay, self.training_run = decay, run
        self.average: list[torch.Tensor] = []
        self.trained: list[torch.Tensor] = []

    def before_fit(self) -> None:
        state, parameters = self.training_run.state, [*self.model.parameters()]
        self.steps, saved = (state.average if state is not None else None) or (0, None)
        self.average = [
            p.detach().clone() if saved is None else saved[number].to(p.device, copy=True)
            for number, p in enumerate(parameters)
        ]

    def after_step(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [*self.model.parameters()], 1 - decay)

    def before_validate(self) -> None:
        if not self.trained:  # a callback may validate once more
            self.trained = [p.detach().clone() for p in self.model.parameters()]
            self._load(self.average)

    def after_epoch(self) -> None:
        if self.trained:
            self._load(self.trained)
            self.trained = []

    def after_fit(self) -> None:
        if self.average:  # otherwise a callback ended the fit before it began
            self._load(self.average)
        self.trained = []

    @torch.no_grad()
    def _load(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.model.parameters(), values, strict=True):
            parameter.copy_(value)
