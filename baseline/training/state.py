"""TODO."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from fastai.learner import Learner

from baseline.parallel.distributed import all_gather, rank
from baseline.vision.network import clone_weights
from baseline.vision.rng import get_rng_state, set_rng_state

if TYPE_CHECKING:
    from baseline.progress import Progress
    from baseline.training.checkpoint import Checkpoints
    from baseline.training.frozen import FrozenOutputs

__all__ = ["History"]


@dataclass
class History:
    """What training did, epoch by epoch and stage by stage."""

    epochs: pd.DataFrame
    """One row an epoch: `stage, trains, epoch, lr, train_loss, valid_loss, valid_accuracy, seconds, best`; with many
    labels an image `valid_f1_score` (micro) instead of the accuracy."""
    sweeps: pd.DataFrame
    """One row a step of each learning-rate search: `stage, lr, loss`."""
    stages: list[dict[str, Any]]
    """One entry a stage: `trains`, `epochs`, `optimizer`, `schedule`, `parameters` (trained), `lr` as used, `why`,
    `seconds`, `features_seconds` and `lr_find_seconds` of these, and `cached_seconds`: what the outputs that came from
    the cache once took."""


@dataclass
class TrainingRun:
    """What all stages of one training share."""

    frozen: FrozenOutputs
    best: BestWeights
    log: TrainingLog
    progress: Progress
    deadline: float
    batch_size: int
    checkpoints: Checkpoints | None
    state: TrainingState | None = None
    """Where training can go back to, or, after an interrupt, has to go on from."""

    def resume(self) -> int:
        """The number of the stage to begin with; what was kept is taken up."""
        found = self.checkpoints.load() if self.checkpoints else None
        all_gather(None)  # none goes on, and drops what was kept, before all have read it
        if found is None:
            return 1
        state, best = found
        learn = self.frozen.learn
        self.log = TrainingLog(**state["log"])
        self.best.score, self.best.weights = state["score"], best
        self.state = point = TrainingState(**state["point"])
        learn.model.load_state_dict(point.weights)
        set_loader_state(learn.dls.train, point.loaders[0])
        set_rng_state(point.random[rank() % len(point.random)])
        for step, values in self.log.told:
            self.progress.numbers(step, values)
        at = f" after epoch {point.epoch} of {self.frozen.recipe.stages[point.stage - 1].epochs}" if point.epoch else ""
        stages = len(self.frozen.recipe.stages)
        where = f"in stage {point.stage}{at}" if point.stage <= stages else "after the last stage"
        self.progress.log(f"going on {where}, with the best weights of {len(self.log.epochs)} epochs")
        return point.stage

    def end_stage(self, number: int) -> None:
        """The next stage begins with the weights and random states of now."""
        weights = self.best.weights if self.log.epochs[-1]["best"] else clone_weights(self.frozen.learn.model)
        self.state = None
        self.save(
            TrainingState(
                number + 1,
                0,
                {"seconds": 0},
                weights,
                None,
                all_gather(get_rng_state()),
                (loader_state(self.frozen.learn.dls.train),),
            )
        )

    def save(self, point: TrainingState) -> None:
        """Writes the state, if it is time to."""
        if self.checkpoints is None or rank() or not self.checkpoints.is_due():
            return
        told = {"steps": self.log.steps, "point": vars(point), "log": vars(self.log), "score": self.best.score}
        spent = sum(facts["seconds"] for facts in [*self.log.stages, point.facts])
        self.checkpoints.save(told, self.best.weights, spent)
        if self.checkpoints.error:
            self.progress.log(
                f"what has been trained cannot be kept ({self.checkpoints.error}); training goes on without"
            )


@dataclass
class TrainingState:
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


@dataclass
class TrainingLog:
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


def epoch_score(metric: float, loss: float) -> tuple[float, float]:
    """What epochs are compared by: the metric, then the loss."""
    return metric, -loss if math.isfinite(loss) else -math.inf


class BestWeights:
    """A copy of the whole network's weights from its best epoch."""

    def __init__(self, learn: Learner) -> None:
        self.model = learn.model
        self.score: tuple[float, float] | None = None
        self.weights: dict[str, torch.Tensor] = {}

    def offer(self, metric: float, loss: float) -> bool:
        """Keeps the weights as they are now if they are the best so far."""
        score = epoch_score(metric, loss)
        if self.score is not None and score <= self.score:
            return False
        self.score = score
        self.weights = clone_weights(self.model)
        return True

    def restore(self) -> None:
        if self.weights:
            self.model.load_state_dict(self.weights)


def loader_state(loader: Any) -> tuple[Any, bool]:
    """Its own random state, and whether it has looked at an item to learn its types, which may have taken chance."""
    return loader.rng.getstate(), "_types" in vars(loader)


def set_loader_state(loader: Any, state: tuple[Any, bool]) -> None:
    if state[1] and "_types" not in vars(loader):
        loader._one_pass()
    loader.rng.setstate(state[0])
