"""Mean average precision over the K most probable classes of each image."""

from __future__ import annotations

import numpy as np

from baseline.metrics.predictions import Predictions, Sums, mean_of
from baseline.metrics.probability.top_k import label_ranks

__all__ = ["map_at_k"]


def map_at_k(predictions: Predictions, k: int) -> Sums:
    """Mean over the images of the average precision of the K most probable classes; ties go to the earlier class.

    With one label per image that is 1 divided by the rank of the label, or 0 beyond K. With several labels the
    precisions at the labels among the K are added and divided by the number of labels, K at most; images without
    labels count as 0.
    """
    if not predictions.multilabel:
        ranks = label_ranks(predictions)
        return mean_of(np.where(ranks < k, 1 / (1 + ranks), 0))
    order = np.argsort(-predictions.probabilities, axis=1, kind="stable")[:, :k]
    hits = np.take_along_axis(predictions.truth, order, axis=1)
    precision = hits.cumsum(1) / np.arange(1, k + 1)
    labels = np.clip(predictions.truth.sum(1), 1, k)
    return mean_of((precision * hits).sum(1) / labels)
