"""Recovery from errors during training: divergence, too little memory, and dead worker processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from fastai.learner import Learner

from baseline.errors import TrainingError, first_line
from baseline.parallel.distributed import world_size
from baseline.parallel.memory import named_memory_errors, release_batch
from baseline.recipe.describe import format_lr

if TYPE_CHECKING:
    from baseline.training.state import StageRecord, TrainingRun


class Diverged(Exception):
    """The loss became NaN or infinite, or rose far above chance."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason  # fastai appends text of its own to the message

    def __str__(self) -> str:
        return self.reason


def with_recovery(run: TrainingRun, learner: Learner, number: int, facts: StageRecord, work: Callable[[], Any]) -> Any:
    """Call `work` and return its result; on a recoverable error call it again from the last saved state.

    - Out of memory: halve the batch size and accumulate gradients over the smaller batches.
    - Divergence: halve the learning rate, once per stage.
    - A data-loading worker died: start it again, once per call.

    Raises:
        TrainingError: if memory is too small for two images, or workers die again.
        Diverged: if the loss diverges again at half the learning rate.
    """
    worker_died = False
    while True:
        try:
            with named_memory_errors():
                return work()
        except torch.OutOfMemoryError:
            size = learner.dls.train.bs
            if size <= 2 or world_size() > 1:  # BatchNorm cannot learn from a single image
                message = "Not enough memory for two images at a time. Use a smaller --image-size or another --arch."
                if world_size() > 1:  # the other processes would wait for this one
                    message = f"Not enough memory for {size} images per process. Use a smaller --batch-size."
                raise TrainingError(message) from None
            size = max(2, size // 2)
            run.progress.log(f"stage {number}: out of memory; continuing with batches of {size}, accumulated per step")
            reduce_batch_size(learner, size)
        except Diverged as error:
            if "halved" in facts:
                raise
            lr, facts["halved"] = facts["lr"], str(error)
            facts["lr"] = (lr[0] / 2, lr[1] / 2) if isinstance(lr, tuple) else lr / 2
            position = f"epoch {run.state.epoch}" if run.state and run.state.epoch else "its beginning"
            run.progress.log(
                f"stage {number}: {error}; back to {position}, at half the learning rate, {format_lr(facts['lr'])}"
            )
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            if worker_died or world_size() > 1:
                raise TrainingError(
                    f"Data-loading workers keep dying: {first_line(error)}. They may lack memory; give fewer --workers."
                ) from None
            worker_died = True
            run.progress.log(f"stage {number}: {first_line(error)}; restarting it once")
        release_batch(learner)
        if run.state is not None:
            run.frozen.learn.model.load_state_dict(run.state.weights)


def reduce_batch_size(learner: Learner, size: int) -> None:
    """Replace the Learner's training loader by one with batches of `size`."""
    if size == learner.dls.train.bs:
        return
    loader = learner.dls.train.new(bs=size)
    loader.weights = learner.dls.train.weights
    learner.dls.loaders[0] = loader
