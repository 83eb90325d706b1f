"""The metric that decides which epoch is kept, computed from the predictions of the valid images."""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import torch

from baseline.errors import TrainingError
from baseline.metrics.predictions import Predictions, Ranks, Sums
from baseline.metrics.registry import find_metric

__all__ = ["SelectionMetric"]


class SelectionMetric:
    """A metric and the mean loss of an epoch's valid images, batch by batch.

    Args:
        metric: the recipe's `metric`; `"auto"` is accuracy, and with several labels per image micro F1.
        classes: number of classes.
        multilabel: whether an image may have several labels.
        threshold: probability from which a label counts as predicted, for several labels.

    >>> metric = SelectionMetric("auto", 2, multilabel=False)
    >>> metric.add(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]), loss=0.5)
    >>> metric.name, metric.value()
    ('accuracy', 0.5)
    """

    def __init__(self, metric: str, classes: int, *, multilabel: bool, threshold: float = 0.5) -> None:
        self.metric = find_metric(metric, multilabel=multilabel)
        self.name, self.score, self.text = self.metric.name, self.metric.score, self.metric.text
        self.classes, self.multilabel, self.threshold = classes, multilabel, threshold
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.images, self.total_loss = 0, 0.0
        self.batches: list[tuple[np.ndarray, ...]] = []

    def add(self, outputs: torch.Tensor, targets: torch.Tensor, loss: float) -> None:
        """Add a batch.

        Args:
            outputs: logits, N x classes.
            targets: class indices, N, or with several labels 0 or 1, N x classes.
            loss: mean loss of the batch.

        Raises:
            TrainingError: if the outputs are not logits of all classes.
        """
        if not isinstance(outputs, torch.Tensor) or outputs.shape != (len(targets), self.classes):
            shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise TrainingError(
                f"The network's output for {len(targets)} images is {shape}; {(len(targets), self.classes)} was "
                "needed, one number per class. Pass a network with that output."
            )
        outputs, targets = outputs.detach().as_subclass(torch.Tensor), targets.detach().as_subclass(torch.Tensor)
        self.images += len(targets)
        self.total_loss += loss * len(targets)
        if self.multilabel:
            batch = [targets > 0.5, outputs.sigmoid() >= self.threshold]
        else:
            batch = [targets, outputs.argmax(1)]
        if self.metric.probabilities:
            logits = outputs.cpu().double()
            batch.append(logits.sigmoid() if self.multilabel else logits.softmax(1))
        self.batches.append(tuple(part.cpu().numpy() for part in batch))

    @property
    def batch_count(self) -> int:
        """Number of batches added."""
        return len(self.batches)

    @property
    def loss(self) -> float:
        """Mean loss per image."""
        return self.total_loss / max(self.images, 1)

    def value(self) -> float:
        """Return the metric over all batches; NaN where it is undefined."""
        return self._measure().value if self.images else math.nan

    def standard_error(self) -> float:
        """Return the standard error of the metric; NaN where it is undefined."""
        if not self.images or find_spec("baseline.metrics.standard_error") is None:
            return math.nan
        from baseline.metrics.standard_error import standard_error

        return standard_error(self._measure())

    def _measure(self) -> Sums | Ranks:
        truth, predicted, *probabilities = (np.concatenate(parts) for parts in zip(*self.batches, strict=True))
        return self.metric.measure(Predictions(truth, predicted, *(probabilities or [np.empty((0, self.classes))])))
