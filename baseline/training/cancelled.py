"""What callbacks of the user's cancel: batches without a prediction, epochs without a validation, stages cut short."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler

from baseline.errors import TrainingError
from baseline.training.frozen import OWN_CALLBACKS
from baseline.vision.own_parts import part_name

if TYPE_CHECKING:
    from baseline.progress import Progress
    from baseline.training.state import StageRecord, TrainingLog, TrainingRun

__all__ = [
    "CompleteRecords", "check_epochs", "note_early_end", "note_partial_validation", "plain_loss", "prepare_mixing",
]  # fmt: skip


class CompleteRecords(Callback):
    """Keep fastai's records right where callbacks cancel something.

    fastai computes losses and metrics of a batch without outputs from the batch before, leaves columns out of the log
    of an epoch that was cut short, so that the others move up, and leaves mixup's loss in the place of the Learner's.
    """

    order, remove_on_fetch = 49, True  # before the Recorder

    def before_fit(self) -> None:
        self.last_loss: Any = self.learn.loss
        self.valid_batches = 0
        self.recorder.before_epoch()  # otherwise it fails after a first epoch that is cancelled at once

    def after_batch(self) -> None:
        if self.learn.loss is self.last_loss:
            self.learn.yb = ()
        self.last_loss = self.learn.loss
        self.valid_batches += not self.training and len(self.learn.yb) > 0

    def after_train(self) -> None:
        self.recorder.cancel_train = False

    def after_validate(self) -> None:
        if self.valid_batches:
            self.recorder.cancel_valid, self.valid_batches = False, 0

    def after_cancel_epoch(self) -> None:
        self.learn.loss_func = plain_loss(self.learn.loss_func)


def plain_loss(loss_func: Any) -> Any:
    """Return the loss that fastai's mixing callbacks have replaced and did not put back, or the loss as it is."""
    mixing = getattr(loss_func, "__self__", None)
    return mixing.old_lf if isinstance(mixing, MixHandler) else loss_func


def prepare_mixing(callbacks: Iterable[Callback]) -> None:
    """Let fastai's mixing callbacks bear that a fit is cancelled before its first training batch.

    Raises:
        TrainingError: if there are several, which fastai cannot combine.
    """
    mixing = [callback for callback in callbacks if isinstance(callback, MixHandler)]
    if len(mixing) > 1:
        names = " and ".join(part_name(callback) for callback in mixing)
        raise TrainingError(f"{names} cannot mix the same images. Leave one out, of your cbs or of the recipe.")
    for callback in mixing:
        callback.stack_y = False


def note_partial_validation(progress: Progress, position: str, batches: int, total: int) -> None:
    """Report that a callback left out some of the batches of a validation."""
    if batches < total:
        progress.log(f"  {position}: callbacks left out {total - batches} of {total} batches of its validation")


def note_early_end(log: TrainingLog, progress: Progress, number: int, facts: StageRecord) -> None:
    """Record and report that a callback of the user's ended the stage before its last epoch."""
    recorded = sum(row["stage"] == number for row in log.epochs)
    if recorded < facts["epochs"] and "cut_short" not in facts:
        facts["cut_short"] = f"a callback ended it, with {recorded} of {facts['epochs']} epochs recorded"
        progress.log(f"stage {number}: {facts['cut_short']}")


def check_epochs(run: TrainingRun) -> None:
    """Raise a `TrainingError` if callbacks have left no epoch whose weights could be used."""
    if not run.log.epochs:
        names = ", ".join(part_name(cb) for cb in run.frozen.learn.cbs if not isinstance(cb, OWN_CALLBACKS))
        raise TrainingError(f"No epoch was validated: callbacks ({names}) ended all of them. Let one epoch complete.")
