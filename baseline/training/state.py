"""The state that all stages of a training run share: history, kept weights, and where to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

import pandas as pd
import torch
from fastai.learner import Learner

from baseline.parallel.distributed import all_gather, rank
from baseline.vision.copy_weights import clone_weights
from baseline.vision.rng import get_rng_state, set_rng_state

if TYPE_CHECKING:
    from baseline.progress import Progress
    from baseline.training.checkpoint import Checkpoints
    from baseline.training.frozen import FrozenOutputs

__all__ = ["History"]


class StageRecord(TypedDict, total=False):
    """A trained stage, as the manifest describes it. Manifests of older versions lack some fields; variants of the
    ladder that train no network have `trains`, `why`, `seconds` and `parameters` only."""

    trains: str | int | float
    epochs: int
    optimizer: str
    schedule: str
    parameters: int
    """Number of trained parameters."""
    lr: float | tuple[float, float]
    """Learning rate as used; two are those of the first and the last trained layer group."""
    why: str
    """The reason for that rate."""
    pointwise: str
    """`"bfloat16"` if steps computed pointwise convolutions in it; without it they had the recipe's precision."""
    seconds: float
    features_seconds: float
    """Seconds, of all, to compute the outputs of frozen layers."""
    lr_find_seconds: float
    strength: float
    """Inverse penalty (scikit-learn's `C`) of the logistic regression of a probe."""
    cached_seconds: float
    """Seconds that it once took to compute the outputs that were read from the cache; not part of `seconds`."""
    laps: dict[str, float]
    """Seconds by part of a step."""
    halved: str
    """Why the learning rate was halved."""
    cut_short: str
    """Why the stage ended early."""
    given_up: str
    """Why training ended with this stage."""


@dataclass
class History:
    """Record of a training run, by epoch and by stage."""

    epochs: pd.DataFrame
    """One row per epoch: `stage, trains, epoch, lr, train_loss, valid_loss, valid_accuracy, seconds, best`.

    The last row with `best` is the epoch that is kept; earlier ones were kept until then. Instead of the accuracy there
    is the recipe's `metric` (multi-label runs have `valid_micro_f1` by default), and after it each metric of the
    Learner under its own name.
    """
    sweeps: pd.DataFrame
    """One row per step of each learning-rate search: `stage, lr, loss`."""
    stages: list[StageRecord]
    probe: dict[str, torch.Tensor] = field(default_factory=dict)
    """`weight` (classes x features) and `bias` of the first probe, which `logits = features @ weight.T + bias`."""


@dataclass
class TrainingRun:
    """State shared by all stages of one training run."""

    frozen: FrozenOutputs
    best: BestWeights
    log: TrainingLog
    progress: Progress
    deadline: float
    batch_size: int
    checkpoints: Checkpoints | None
    state: TrainingState | None = None
    """The state to return to after an error, or to resume from after an interruption."""

    def resume(self) -> int:
        """Restore the last checkpoint, if there is one, and return the number of the stage to start with."""
        checkpoint = self.checkpoints.load() if self.checkpoints else None
        all_gather(None)  # no process continues, and deletes checkpoints, before all have read them
        if checkpoint is None:
            return 1
        values, best_weights = checkpoint
        learn = self.frozen.learn
        self.log = TrainingLog(**values["log"])
        vars(self.best).update(values["best"], weights=best_weights)
        self.state = state = TrainingState(**values["point"])
        learn.model.load_state_dict(state.weights)
        set_loader_state(learn.dls.train, state.loaders[0])
        set_rng_state(state.random[rank() % len(state.random)])
        for step, metrics in self.log.logged_metrics:
            self.progress.log_metrics(step, metrics)
        stages = self.frozen.recipe.stages
        epoch = f" after epoch {state.epoch} of {stages[state.stage - 1].epochs}" if state.epoch else ""
        position = f"in stage {state.stage}{epoch}" if state.stage <= len(stages) else "after the last stage"
        self.progress.log(f"resuming {position}, with the weights kept from {len(self.log.epochs)} epochs")
        return state.stage

    def end_stage(self, number: int) -> None:
        """Save the state that the next stage starts from: the current weights and random states."""
        row = next((row for row in self.log.epochs[-1:] if row["stage"] == number), {"best": False, "epoch": 0})
        is_best = row["best"] and row["epoch"] == self.frozen.recipe.stages[number - 1].epochs
        weights = self.best.weights if is_best else clone_weights(self.frozen.learn.model)
        self.state = None
        loaders = (loader_state(self.frozen.learn.dls.train),)
        self.save(TrainingState(number + 1, 0, {"seconds": 0}, weights, None, all_gather(get_rng_state()), loaders))

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint of the state if one is due."""
        if self.checkpoints is None or rank() or not self.checkpoints.is_due():
            return
        values = {"point": vars(state), "log": vars(self.log), "best": self.best.to_state()}
        seconds = sum(facts["seconds"] for facts in [*self.log.stages, state.facts])
        self.checkpoints.save(values, self.best.weights, seconds)
        if self.checkpoints.error:
            self.progress.log(
                f"checkpoints cannot be written ({self.checkpoints.error}); training continues without them"
            )


@dataclass
class TrainingState:
    """A state that training can resume from: the start of a stage, or the end of one of its epochs.

    Checkpoints hold these fields under their names.
    """

    stage: int
    epoch: int
    """Number of completed epochs of the stage."""
    facts: StageRecord
    """The history entry of the stage, as far as it is known."""
    weights: dict[str, torch.Tensor]
    """Weights of the complete network."""
    optimizer: dict[str, Any] | None
    random: list[dict[str, Any]]
    """Random states, one entry per process."""
    loaders: tuple[Any, ...]
    """States of the training loaders of the complete network's Learner and, within a stage, of the stage's Learner."""
    batch_size: int = 0
    smooth: tuple[int, torch.Tensor] = (0, torch.zeros(()))
    """Step count and value of fastai's smoothed loss."""
    average: tuple[int, list[torch.Tensor]] | None = None
    """Steps and values of the moving average of the weights that the stage trains."""
    scaler: dict[str, Any] | None = None
    """State of the gradient scaler of float16 training."""


@dataclass
class TrainingLog:
    """Epochs, stages and logged metrics so far."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    """Number of training batches so far."""
    sweeps: list[dict[str, Any]] = field(default_factory=list)
    stages: list[StageRecord] = field(default_factory=list)
    logged_metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """Metrics of each epoch, with the step at which they were sent to the loggers."""
    probe: dict[str, torch.Tensor] = field(default_factory=dict)

    def history(self) -> History:
        sweeps = pd.DataFrame(self.sweeps, columns=["stage", "lr", "loss"])
        return History(pd.DataFrame(self.epochs), sweeps, self.stages, self.probe)


def epoch_score(metric: float, loss: float) -> tuple[float, float]:
    """Return the value that epochs are ranked by: the higher metric, then the lower loss."""
    return metric, -loss if math.isfinite(loss) else -math.inf


TIE_TOLERANCE = 1e-9
"""Difference up to which two values of a metric count as equal: n - 1 of n images is one standard error below n of n,
and only rounding would decide."""


class BestWeights:
    """A copy of the complete network's weights from the epoch that is kept."""

    def __init__(self, learn: Learner) -> None:
        self.model = learn.model
        self.weights: dict[str, torch.Tensor] = {}
        self.score: tuple[float, ...] | None = None
        self.stage = 0
        self.earlier: tuple[float, ...] | None = None
        """Score of the epoch kept from earlier stages."""

    def offer(self, metric: float, loss: float, images: int, stage: int = 0, tolerance: float = math.nan) -> bool:
        """Copy the current weights if this epoch is to be kept; return whether it is.

        An epoch that was validated on fewer images than another is never kept instead of it.

        Args:
            metric: higher is better.
            loss: mean loss, which decides between equal metrics.
            tolerance: how far the metric may be below that of another epoch of the same stage; NaN if it has to be
                better.
        """
        score = (images, *epoch_score(metric, loss))
        if stage != self.stage:
            self.stage, self.earlier = stage, self.score
        is_better = self.score is None or score > self.score
        is_close = self.score is not None and (images, metric + tolerance + TIE_TOLERANCE) >= self.score[:2]
        if not is_better and not (is_close and (self.earlier is None or score > self.earlier)):
            return False
        self.score = score
        self.weights = clone_weights(self.model)
        return True

    def to_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the weights."""
        return {name: value for name, value in vars(self).items() if name not in ("model", "weights")}

    def restore(self) -> None:
        """Load the kept weights into the network."""
        if self.weights:
            self.model.load_state_dict(self.weights)


def loader_state(loader: Any) -> tuple[Any, bool]:
    """Return the loader's random state, and whether it has read an item to learn its types.

    That first item may have consumed random numbers.
    """
    return loader.rng.getstate(), "_types" in vars(loader)


def set_loader_state(loader: Any, state: tuple[Any, bool]) -> None:
    """Restore what `loader_state` returned."""
    if state[1] and "_types" not in vars(loader):
        loader._one_pass()
    loader.rng.setstate(state[0])
