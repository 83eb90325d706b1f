"""TODO."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from fastai.learner import Learner

from baseline.errors import TrainingError, first_line
from baseline.parallel.distributed import world_size
from baseline.recipe.schema import format_lr

if TYPE_CHECKING:
    from baseline.training.state import TrainingRun


class Diverged(Exception):
    """The loss has gone wrong."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how  # fastai adds words of its own to the message

    def __str__(self) -> str:
        return self.how


def with_recovery(
    run: TrainingRun, trainee: Learner, number: int, facts: dict[str, Any], work: Callable[[], Any]
) -> Any:
    """The work's result; what can be helped is, and it begins again from the last point."""
    died = False
    while True:
        try:
            return work()
        except torch.OutOfMemoryError:
            size = trainee.dls.train.bs
            if size <= 2 or world_size() > 1:  # of a single image BatchNorm learns nothing
                words = "Memory is too small for two images at a time. Give a smaller --image-size or another --arch."
                if world_size() > 1:  # the others would wait for this one
                    words = f"Memory is too small for {size} images in each process. Give a smaller --batch-size."
                raise TrainingError(words) from None
            size = max(2, size // 2)
            run.progress.log(f"stage {number}: out of memory; batches of {size}, gathered for each step")
            reduce_batch_size(trainee, size)
        except Diverged as wrong:
            if "halved" in facts:
                raise
            whole, facts["halved"] = facts["lr"], str(wrong)
            facts["lr"] = tuple(each / 2 for each in whole) if isinstance(whole, tuple) else whole / 2
            at = f"epoch {run.state.epoch}" if run.state and run.state.epoch else "its beginning"
            run.progress.log(f"stage {number}: {wrong}; back to {at}, at half the rate, {format_lr(facts['lr'])}")
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            if died or world_size() > 1:
                raise TrainingError(
                    f"Readers of images die: {first_line(error)}. Give fewer --workers; they may lack memory."
                ) from None
            died = True
            run.progress.log(f"stage {number}: {first_line(error)}; it is replaced, once")
        if run.state is not None:
            run.frozen.learn.model.load_state_dict(run.state.weights)


def reduce_batch_size(trainee: Learner, size: int) -> None:
    if size == trainee.dls.train.bs:
        return
    smaller = trainee.dls.train.new(bs=size)
    smaller.weights = trainee.dls.train.weights
    trainee.dls.loaders[0] = smaller
