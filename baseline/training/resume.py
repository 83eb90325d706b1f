"""The callback that resumes a stage in the middle, and records after each epoch where it could resume."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from fastai.callback.core import Callback, CancelEpochException
from fastcore.foundation import L

from baseline.parallel.distributed import all_gather, rank, world_size
from baseline.training.frozen import OWN_CALLBACKS
from baseline.training.state import TrainingState, loader_state, set_loader_state
from baseline.vision.copy_weights import clone_weights
from baseline.vision.rng import get_rng_state, set_rng_state

if TYPE_CHECKING:
    from baseline.training.state import StageRecord, TrainingRun
    from baseline.training.step_timer import StepTimer


class ResumeCallback(Callback):
    """Skip completed epochs, restore the saved state, and save a new one after each epoch."""

    order = 90  # after all other callbacks

    def __init__(self, run: TrainingRun, number: int, facts: StageRecord, timer: StepTimer) -> None:
        super().__init__()
        self.training_run, self.number, self.facts, self.timer = run, number, facts, timer
        self.completed_epochs = run.state.epoch if run.state else 0
        self.seconds_before, self.start = facts["seconds"], time.perf_counter()

    def before_fit(self) -> None:
        self._enable_own_callbacks(not self.completed_epochs)
        run = self.training_run
        if run.state is None:
            run.state = self._current_state(0, clone_weights(run.frozen.learn.model), None)
        else:
            self._restore(run.state)

    def _enable_own_callbacks(self, enabled: bool) -> None:
        """Let the user's callbacks see no epoch that is skipped: it has no metrics that they could read."""
        for callback in self.learn.cbs:
            if not isinstance(callback, OWN_CALLBACKS) and not type(callback).__module__.startswith("baseline."):
                callback.run = enabled

    def before_epoch(self) -> None:
        if self.epoch < self.completed_epochs:
            raise CancelEpochException()

    def after_epoch(self) -> None:
        if self.epoch < self.completed_epochs:
            self._enable_own_callbacks(self.epoch + 1 == self.completed_epochs)
            return
        run = self.training_run
        last = [row for row in run.log.epochs[-1:] if (row["stage"], row["epoch"]) == (self.number, self.epoch + 1)]
        is_best = any(row["best"] for row in last)
        is_averaged = hasattr(self.learn, "average_weights")  # the kept weights are then not those of training
        weights = run.best.weights if is_best and not is_averaged else clone_weights(run.frozen.learn.model)
        run.state = self._current_state(self.epoch + 1, weights, copy_to_device(self.opt.state_dict()))
        run.save(run.state)

    def _current_state(
        self, epoch: int, weights: dict[str, torch.Tensor], optimizer: dict[str, Any] | None
    ) -> TrainingState:
        averaging = getattr(self.learn, "average_weights", None)
        network_loader, stage_loader = self.training_run.frozen.learn.dls.train, self.dls.train
        smooth_loss, scaler = self.recorder.smooth_loss, getattr(self, "scaler", None)
        seconds = round(self.seconds_before + time.perf_counter() - self.start, 2)
        return TrainingState(
            stage=self.number,
            epoch=epoch,
            facts={**self.facts, "seconds": seconds, "laps": dict(self.timer.seconds)},
            weights=weights,
            optimizer=optimizer,
            random=all_gather(get_rng_state()),
            loaders=(loader_state(network_loader), loader_state(stage_loader)),
            batch_size=stage_loader.bs * world_size(),
            smooth=(smooth_loss.count, smooth_loss.val.detach().clone()),
            average=averaging and (averaging.steps, [value.cpu().clone() for value in averaging.average]),
            scaler=scaler.state_dict() if scaler is not None else None,
        )

    def _restore(self, state: TrainingState) -> None:
        """Restore everything but the weights, which the network already has."""
        learn = self.training_run.frozen.learn
        device = next(learn.model.parameters()).device
        if state.optimizer is not None:
            optimizer = copy_to_device(state.optimizer, device)
            for (parameter, *_), values in zip(self.opt.all_params(), optimizer["state"], strict=True):
                values.update({key: match_strides(value, parameter) for key, value in values.items()})
            self.opt.load_state_dict({**optimizer, "hypers": L(optimizer["hypers"])})
        set_loader_state(learn.dls.train, state.loaders[0])
        set_loader_state(self.dls.train, state.loaders[1])
        set_rng_state(state.random[rank() % len(state.random)])
        smooth_loss = self.recorder.smooth_loss
        smooth_loss.count, smooth_loss.val = state.smooth[0], state.smooth[1].to(device)
        if state.scaler and getattr(self, "scaler", None) is not None:
            self.scaler.load_state_dict(state.scaler)


def match_strides(value: Any, like: torch.Tensor) -> Any:
    """Return a tensor of the same shape as `like` with its strides, so that sums over it round the same."""
    if isinstance(value, torch.Tensor) and value.shape == like.shape:
        return torch.empty_like(like, dtype=value.dtype).copy_(value)
    return value


def copy_to_device(value: Any, device: torch.device | str = "cpu") -> Any:
    """Copy the tensors in nested values to the device."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: copy_to_device(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple | L):
        return [copy_to_device(item, device) for item in value]
    return value
