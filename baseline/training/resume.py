"""TODO."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from fastai.callback.core import Callback, CancelEpochException
from fastcore.foundation import L

from baseline.parallel.distributed import all_gather, rank, world_size
from baseline.training.state import TrainingState, loader_state, set_loader_state
from baseline.vision.network import clone_weights
from baseline.vision.rng import get_rng_state, set_rng_state

if TYPE_CHECKING:
    from baseline.training.callbacks import StepTimer
    from baseline.training.state import TrainingRun


class ResumeCallback(Callback):
    """Skips the epochs that have ended, goes on as at the run's point, and moves the point on after each epoch."""

    order = 90  # after all others have had their say

    def __init__(self, run: TrainingRun, number: int, facts: dict[str, Any], laps: StepTimer) -> None:
        super().__init__()
        self.run, self.number, self.facts, self.laps = run, number, facts, laps
        self.done = run.state.epoch if run.state else 0
        self.before, self.began = facts["seconds"], time.perf_counter()

    def before_epoch(self) -> None:
        if self.epoch < self.done:
            raise CancelEpochException()
        if self.epoch > self.done:
            return
        if self.run.state is None:
            self.run.state = self._now(0, clone_weights(self.run.frozen.learn.model), None)
        else:
            self._go_back(self.run.state)

    def after_fit(self) -> None:
        if self.done == self.n_epoch and self.run.state is not None:
            self._go_back(self.run.state)

    def after_epoch(self) -> None:
        if self.epoch < self.done:
            return
        run = self.run
        best = run.log.epochs[-1]["best"]
        weights = run.best.weights if best else clone_weights(run.frozen.learn.model)
        run.state = self._now(self.epoch + 1, weights, copy_to_device(self.opt.state_dict()))
        run.save(run.state)

    def _now(self, epoch: int, weights: dict[str, torch.Tensor], optimizer: dict[str, Any] | None) -> TrainingState:
        train, own = self.run.frozen.learn.dls.train, self.dls.train
        smooth, scaler = self.recorder.smooth_loss, getattr(self, "scaler", None)
        spent = round(self.before + time.perf_counter() - self.began, 2)
        return TrainingState(
            stage=self.number,
            epoch=epoch,
            facts={**self.facts, "seconds": spent, "laps": dict(self.laps.seconds)},
            weights=weights,
            optimizer=optimizer,
            random=all_gather(get_rng_state()),
            loaders=(loader_state(train), loader_state(own)),
            batch_size=own.bs * world_size(),
            smooth=(smooth.count, smooth.val.detach().clone()),
            scaler=scaler.state_dict() if scaler is not None else None,
        )

    def _go_back(self, point: TrainingState) -> None:
        """Takes up all of the point but its weights, which the network has by now."""
        learn = self.run.frozen.learn
        first = next(learn.model.parameters())
        if point.optimizer is not None:
            found = copy_to_device(point.optimizer, first.device)
            for (parameter, *_), state in zip(self.opt.all_params(), found["state"], strict=True):
                state.update({key: match_strides(value, parameter) for key, value in state.items()})
            self.opt.load_state_dict({**found, "hypers": L(found["hypers"])})
        set_loader_state(learn.dls.train, point.loaders[0])
        set_loader_state(self.dls.train, point.loaders[1])
        set_rng_state(point.random[rank() % len(point.random)])
        smooth = self.recorder.smooth_loss
        smooth.count, smooth.val = point.smooth[0], point.smooth[1].to(first.device)
        if point.scaler and getattr(self, "scaler", None) is not None:
            self.scaler.load_state_dict(point.scaler)


def match_strides(value: Any, like: torch.Tensor) -> Any:
    """A tensor with the strides of another of its shape: sums over it then round as they did."""
    if isinstance(value, torch.Tensor) and value.shape == like.shape:
        return torch.empty_like(like, dtype=value.dtype).copy_(value)
    return value


def copy_to_device(value: Any, device: torch.device | str = "cpu") -> Any:
    """Nested values with their tensors copied to the device."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: copy_to_device(each, device) for key, each in value.items()}
    if isinstance(value, list | tuple | L):
        return [copy_to_device(each, device) for each in value]
    return value
