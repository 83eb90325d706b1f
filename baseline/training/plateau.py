"""The schedule `plateau`: lower learning rates where the validation loss stops falling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastai.callback.core import Callback

if TYPE_CHECKING:
    from baseline.training.state import TrainingRun


class ReduceOnPlateau(Callback):
    """Divide learning rates by 10 after an epoch without a lower validation loss, as fastai's ReduceLROnPlateau does.

    It compares recorded epochs, including those from before an interruption.
    """

    order = 65  # after ProgressCallback, which records them

    def __init__(self, run: TrainingRun, number: int) -> None:
        super().__init__()
        self.completed_epochs = run.state.epoch if run.state else 0
        self.log, self.number = run.log, number

    def after_epoch(self) -> None:
        rows = [row for row in self.log.epochs if row["stage"] == self.number]
        if self.epoch < self.completed_epochs or not rows or rows[-1]["epoch"] != self.epoch + 1:
            return
        *before, loss = [row["valid_loss"] for row in rows]
        if before and loss >= min(before):
            for hypers in self.opt.hypers:
                hypers["lr"] /= 10
