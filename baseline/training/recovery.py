"""TODO."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from fastai.learner import Learner

from baseline.errors import TrainingError, first_line
from baseline.parallel.distributed import count
from baseline.recipe.schema import rate_words

if TYPE_CHECKING:
    from baseline.training.state import _Run


class _Wrong(Exception):
    """The loss has gone wrong."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how  # fastai adds words of its own to the message

    def __str__(self) -> str:
        return self.how


def _safely(run: _Run, trainee: Learner, number: int, facts: dict[str, Any], work: Callable[[], Any]) -> Any:
    """The work's result; what can be helped is, and it begins again from the last point."""
    died = False
    while True:
        try:
            return work()
        except torch.OutOfMemoryError:
            size = trainee.dls.train.bs
            if size <= 2 or count() > 1:  # of a single photo BatchNorm learns nothing
                words = "Memory is too small for two photos at a time. Give a smaller --image-size or another --arch."
                if count() > 1:  # the others would wait for this one
                    words = f"Memory is too small for {size} photos in each process. Give a smaller --batch-size."
                raise TrainingError(words) from None
            size = max(2, size // 2)
            run.show.say(f"stage {number}: out of memory; batches of {size}, gathered for each step")
            _smaller_batches(trainee, size)
        except _Wrong as wrong:
            if "halved" in facts:
                raise
            whole, facts["halved"] = facts["lr"], str(wrong)
            facts["lr"] = tuple(each / 2 for each in whole) if isinstance(whole, tuple) else whole / 2
            at = f"epoch {run.point.epoch}" if run.point and run.point.epoch else "its beginning"
            run.show.say(f"stage {number}: {wrong}; back to {at}, at half the rate, {rate_words(facts['lr'])}")
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            if died or count() > 1:
                raise TrainingError(
                    f"Readers of photos die: {first_line(error)}. Give fewer --workers; they may lack memory."
                ) from None
            died = True
            run.show.say(f"stage {number}: {first_line(error)}; it is replaced, once")
        if run.point is not None:
            run.frozen.learn.model.load_state_dict(run.point.weights)


def _smaller_batches(trainee: Learner, size: int) -> None:
    if size == trainee.dls.train.bs:
        return
    smaller = trainee.dls.train.new(bs=size)
    smaller.weights = trainee.dls.train.weights
    trainee.dls.loaders[0] = smaller
