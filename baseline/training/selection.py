"""The metric that decides which epoch is best, computed from the predictions of the valid images."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from baseline.errors import TrainingError

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
        self.name = ("micro_f1" if multilabel else "accuracy") if metric == "auto" else metric
        self.classes, self.multilabel, self.threshold = classes, multilabel, threshold
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.batches = self.images = self.correct = 0
        self.total_loss = self.total_log_loss = 0.0
        self.hits, self.predicted, self.actual = (torch.zeros(self.classes, dtype=torch.long) for _ in range(3))

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
                "needed, one number per class. Give a network with that output."
            )
        outputs, targets = outputs.detach().as_subclass(torch.Tensor), targets.detach().as_subclass(torch.Tensor)
        self.batches += 1
        self.images += len(targets)
        self.total_loss += loss * len(targets)
        if self.name == "log_loss":  # whatever the loss of training
            log_loss = F.binary_cross_entropy_with_logits if self.multilabel else F.cross_entropy
            self.total_log_loss += float(log_loss(outputs.float(), targets)) * len(targets)
        if self.multilabel:
            decided, truth = outputs.sigmoid() >= self.threshold, targets > 0.5
            self.correct += int((decided == truth).all(1).sum())
            counts = [(decided & truth).sum(0), decided.sum(0), truth.sum(0)]
        else:
            labels = outputs.argmax(1)
            self.correct += int((labels == targets).sum())
            selected = (labels[labels == targets], labels, targets)
            counts = [torch.bincount(rows, minlength=self.classes) for rows in selected]
        for total, count in zip((self.hits, self.predicted, self.actual), counts, strict=True):
            total += count.cpu()

    @property
    def loss(self) -> float:
        """Mean loss per image."""
        return self.total_loss / max(self.images, 1)

    def value(self) -> float:
        """Return the metric over all batches; classes without images are left out of means over the classes."""
        hits, predicted, actual = self.hits.double(), self.predicted.double(), self.actual.double()
        if self.name == "accuracy":
            return self.correct / max(self.images, 1)
        if self.name == "log_loss":
            return self.total_log_loss / max(self.images, 1)
        if self.name == "balanced_accuracy":
            return float((hits / actual)[actual > 0].mean())
        if self.name == "micro_f1":
            return float(2 * hits.sum() / (predicted.sum() + actual.sum()).clamp(min=1))
        counted = predicted + actual > 0
        return float((2 * hits / (predicted + actual))[counted].mean()) if counted.any() else 0.0

    def score(self, value: float) -> float:
        """Return a value of the metric so that higher is better."""
        return -value if self.name == "log_loss" else value
