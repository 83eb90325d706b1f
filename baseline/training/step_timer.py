"""The callback that measures how long each part of a training step takes."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fastai.callback.core import Callback

from baseline.system import wait_for_gpu
from baseline.vision.bodies import device_of

__all__ = ["StepTimer"]


class StepTimer(Callback):
    """Measure the seconds spent in each part of the loop.

    A GPU is waited for at the end of a step only: loading is told apart from the step, and the parts of the step from
    each other only roughly.
    """

    order = -100  # before all others, so that their time counts towards the part they follow

    def __init__(self, seconds: Mapping[str, float]) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(("loading", "forward", "backward", "step", "validation"), 0.0) | dict(seconds)

    def before_fit(self) -> None:
        self.last = time.perf_counter()

    def _add_time(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part if self.training else "validation"] += now - self.last
        self.last = now

    def before_batch(self) -> None:
        self._add_time("loading")

    def after_loss(self) -> None:
        self._add_time("forward")

    def after_backward(self) -> None:
        self._add_time("backward")

    def after_batch(self) -> None:
        wait_for_gpu(device_of(self.model).type)  # fastai's Recorder does so next, which would count as loading
        self._add_time("step")

    def after_validate(self) -> None:
        self._add_time("validation")
