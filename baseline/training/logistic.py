"""Penalized logistic regression: features and targets -> weights and intercepts.

The objective is scikit-learn's: `strength` (its `C`) times the sum of the losses, plus half the squared weights of the
standardized features; intercepts are not penalized. L-BFGS minimizes it over all rows at once, on the features' device.
Losses are float64, and so are the products of features and weights unless there are many: in float32, whose rounding
hides small differences of the loss, the search may end far from the minimum. Probabilities differ from those of
scikit-learn's `LogisticRegression` by less than 0.0002 (`tests/test_probe.py`), and with products in float32 by up to
0.0015 (52,000 rows of 80 features of very different scales, strength 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Problem", "Solution", "fit_logistic", "mean_loss", "search_strength"]

STRENGTHS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
"""Strengths to choose from, the largest penalty first."""

BATCH_ROWS = 65_536
"""Number of rows per matrix product, which bounds the memory for logits."""

PRECISE_VALUES = 4_000_000
"""Maximum number of values, rows times features, that are multiplied in float64; with more, the fit would take 4 to 5
times as long as in float32."""

MAX_ITERATIONS = 1000

GRADIENT_TOLERANCE = 1e-6
"""Largest component of the gradient, per row, at which a fit ends."""

SEARCH_TOLERANCE = 1e-4
"""The same while strengths are compared."""


@dataclass(frozen=True)
class Problem:
    """What logistic regression is fitted to."""

    features: Tensor
    """N x F."""
    targets: Tensor
    """Class indices, N, int64 (a softmax over the classes), or 0 and 1, N x classes, float32 (a sigmoid for each)."""
    classes: int
    class_weights: Tensor | None = None
    """Weight of each class in the loss, of its positive targets where there are several labels."""
    label_smoothing: float = 0.0
    intercept: bool = True

    @cached_property
    def scaling(self) -> tuple[Tensor, Tensor]:
        """The mean of each feature and `sqrt(variance + 1e-5)`, by which BatchNorm divides."""
        variance, mean = torch.var_mean(self.features.float(), 0, correction=0)
        return mean, (variance + 1e-5).sqrt()

    @property
    def is_binary(self) -> bool:
        """Whether one sigmoid decides between two classes, which scikit-learn penalizes less than a softmax of two."""
        return self.targets.ndim == 1 and self.classes == 2 and not self.label_smoothing

    def rows(self, index: Tensor) -> Problem:
        """Return the problem of some of the rows."""
        return replace(self, features=self.features[index], targets=self.targets[index])

    def loss(self, logits: Tensor, begin: int = 0) -> Tensor:
        """Return the sum of the losses of the rows from `begin` on that `logits`, rows x classes, belong to."""
        targets = self.targets[begin : begin + len(logits)]
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        if targets.ndim == 2:
            targets = targets.to(logits.dtype)
            return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
        return F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class Solution:
    """Fitted weights: `logits = ((features - mean) / scale) @ weight.T + bias`."""

    weight: Tensor
    """Classes x F. Of two classes, the second row is the negative of the first."""
    bias: Tensor
    mean: Tensor
    scale: Tensor
    strength: float
    loss: float
    """Mean loss of the rows, without the penalty."""

    @property
    def bias_of_features(self) -> Tensor:
        """The bias for features that are not standardized."""
        return self.bias - (self.weight / self.scale) @ self.mean

    def logits(self, features: Tensor) -> Tensor:
        """Return N x classes, float32."""
        return F.linear(features.float(), self.weight / self.scale, self.bias_of_features)


def fit_logistic(
    problem: Problem, strength: float, start: Solution | None = None, *, tolerance: float = GRADIENT_TOLERANCE
) -> Solution:
    """Minimize the objective.

    Args:
        strength: inverse of the penalty, scikit-learn's `C`.
        start: a solution of a similar problem to start from.
        tolerance: largest component of the gradient, per row, at which the fit ends.
    """
    count, width = problem.features.shape
    device = problem.features.device
    precise = torch.float if device.type == "mps" else torch.double  # which Apple's GPUs do not have
    mean, scale = (value.to(precise) for value in problem.scaling)
    if problem.features.numel() <= PRECISE_VALUES:
        problem = replace(problem, features=problem.features.to(precise))
    outputs = 1 if problem.is_binary else problem.classes
    weight = torch.zeros(outputs, width, device=device, dtype=precise, requires_grad=True)
    bias = torch.zeros(outputs, device=device, dtype=precise, requires_grad=problem.intercept)
    if start is not None:
        weight.data, bias.data = (
            (value[1:] - value[:1] if problem.is_binary else value).to(precise, copy=True)
            for value in (start.weight, start.bias)
        )
    optimizer = torch.optim.LBFGS(
        [weight, bias] if problem.intercept else [weight], max_iter=MAX_ITERATIONS, max_eval=2 * MAX_ITERATIONS,
        history_size=20, tolerance_grad=tolerance, tolerance_change=1e-9, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        optimizer.zero_grad()
        scaled = weight / scale
        offset = bias - scaled @ mean
        loss, gradients = _loss_and_gradients(problem, scaled.detach(), offset.detach())
        penalty = weight.square().sum() / (2 * strength * count)
        torch.autograd.backward([scaled, offset, penalty], [*gradients, None])
        return loss + penalty.detach()

    with torch.enable_grad():
        optimizer.step(objective)
    mean, scale, weight, bias = (value.detach().float() for value in (mean, scale, weight, bias))
    if problem.is_binary:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    elif problem.targets.ndim == 1:
        bias = bias - bias.mean()  # a softmax ignores what all classes have in common
    solution = Solution(weight, bias, mean, scale, strength, 0.0)
    return replace(solution, loss=mean_loss(problem, solution))


def _loss_and_gradients(problem: Problem, weight: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the mean loss of all rows, and its gradients by the weights and biases on features as they are."""
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    count = len(problem.features)
    total = torch.zeros((), dtype=weight.dtype, device=weight.device)
    for begin in range(0, count, BATCH_ROWS):
        rows = problem.features[begin : begin + BATCH_ROWS]
        rows = rows if rows.dtype == weight.dtype else rows.float()
        logits = F.linear(rows, weight.to(rows.dtype), bias.to(rows.dtype)).to(weight.dtype)
        if problem.is_binary:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        loss = problem.loss(logits, begin) / count
        loss.backward()
        total += loss.detach()
    assert weight.grad is not None and bias.grad is not None
    return total, (weight.grad, bias.grad)


@torch.no_grad()
def mean_loss(problem: Problem, solution: Solution) -> float:
    """Return the mean loss of a solution on the rows of a problem."""
    batches = range(0, len(problem.features), BATCH_ROWS)
    losses = (problem.loss(solution.logits(problem.features[n : n + BATCH_ROWS]), n) for n in batches)
    return float(sum(losses)) / len(problem.features)


Score = Callable[[Tensor, Problem], tuple[float, float]]
"""Function from the logits of held-out rows, and those rows, to a value that is higher for better logits."""


def search_strength(folds: Sequence[tuple[Problem, Problem]], score: Score) -> tuple[float, Solution]:
    """Return the strength with the highest score, averaged over the folds, and its solution of the first fold.

    Strengths are tried from the largest penalty on; the search ends after two without a higher score.

    Args:
        folds: pairs of rows to fit and rows held out.
    """
    starts: Sequence[Solution | None] = [None] * len(folds)
    best: tuple[float, Solution]
    best_score, without_gain = (-math.inf, -math.inf), 0
    for strength in STRENGTHS:
        solutions = [
            fit_logistic(fitted, strength, start, tolerance=SEARCH_TOLERANCE)
            for (fitted, _), start in zip(folds, starts, strict=True)
        ]
        starts = solutions
        scores = [
            score(solution.logits(held_out.features), held_out)
            for (_, held_out), solution in zip(folds, solutions, strict=True)
        ]
        mean = sum(metric for metric, _ in scores) / len(folds), sum(loss for _, loss in scores) / len(folds)
        if strength == STRENGTHS[0] or mean > best_score:
            best, best_score, without_gain = (strength, solutions[0]), mean, 0
        elif (without_gain := without_gain + 1) == 2:
            break
    return best
