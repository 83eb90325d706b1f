"""The reference beside every result: logistic regression on features of the frozen body.

A run that starts with a probe has that head anyway. The features of the images of its headline split are computed in a
single pass before training changes the body, and cached; the head of the probe is applied to them when training has
ended, also where the run was resumed.

A run of few images that ends with the probe leaves the body as it is. Its head is cross-validated on all images.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from baseline.data.table_folds import describe_probe_folds
from baseline.evaluation.details.named_metric import metric_interval
from baseline.evaluation.difference import difference_interval, match_units
from baseline.evaluation.significance import paired_test
from baseline.evaluation.table import class_columns, group_codes, prediction_table, table_predictions
from baseline.metrics.registry import find_metric
from baseline.runs.folder import headline_split
from baseline.training.frozen import FrozenOutputs, embeddings
from baseline.training.logistic import Problem, fit_logistic, search_strength
from baseline.training.probe import has_intercept, held_out_score, probe_folds, probe_obstacle
from baseline.vision.dataloaders import encode_targets
from baseline.vision.learner import balanced_weights

if TYPE_CHECKING:
    from fastai.learner import Learner

    from baseline.metrics.predictions import Ranks, Sums
    from baseline.metrics.registry import Metric
    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe
    from baseline.training.state import History

__all__ = ["ProbeFolds", "ProbeReference", "cross_validated_logits", "probe_reference"]

LEAST_FOLDS = 3
"""Number of folds that are needed: one to evaluate, and two to choose the penalty with."""


def probe_reference(
    learn: Learner, table: pd.DataFrame, recipe: Recipe, split_reason: str, progress: Progress
) -> ProbeReference | ProbeFolds | None:
    """Return what stands beside the result of a run whose first stage is a probe; None if gradient descent trains it.

    A run that goes on is compared with the probe. One that ends with it is cross-validated if it has few images.
    """
    line = describe_probe_folds(recipe, len(table), split_reason)
    if len(recipe.stages) == 1 and not line:
        return None
    frozen = FrozenOutputs(learn, recipe, progress)
    if probe_obstacle(frozen, 1):
        return None
    return ProbeFolds(frozen, table, line) if line else ProbeReference(learn, table, recipe, progress)


def probe_predictions(rows: pd.DataFrame, logits: torch.Tensor, classes: list[str], recipe: Recipe) -> pd.DataFrame:
    """Return the prediction table of logits, rows x classes, without calibration."""
    is_multilabel = recipe.data.task == "multilabel"
    probabilities = (logits.sigmoid() if is_multilabel else logits.softmax(1)).numpy()
    threshold = recipe.evaluation.threshold if is_multilabel else None
    return prediction_table(rows, probabilities, probabilities, classes, threshold)


def measure_probe(predictions: pd.DataFrame, recipe: Recipe) -> tuple[Metric, Sums | Ranks]:
    """Return the metric of the recipe, or the accuracy (micro F1 for several labels), and what it is here."""
    task, name = recipe.data.task, recipe.evaluation.metric
    metric = find_metric(name if name != "auto" else "micro_f1" if task == "multilabel" else "accuracy")
    return metric, metric.measure(table_predictions(predictions, class_columns(predictions), task))


class ProbeReference:
    """Features of the images of the headline split, to be made before training changes the body.

    Args:
        learn: a Learner from `baseline.learner`, over DataLoaders of this table, not trained yet.
        recipe: the recipe that it was made from, with every "auto" resolved.
    """

    def __init__(self, learn: Learner, table: pd.DataFrame, recipe: Recipe, progress: Progress) -> None:
        self.rows = table[table["split"] == headline_split(dict.fromkeys(table["split"]))].reset_index(drop=True)
        self.recipe, self.classes = recipe, [str(name) for name in learn.dls.vocab]
        views = tuple(view for view in recipe.evaluation.tta if view == "flip")
        self.features = embeddings(learn, self.rows, recipe, views, progress)

    def predict(self, history: History) -> pd.DataFrame:
        """Return the prediction table of the probe, without calibration."""
        weight, bias = (history.probe[name].cpu().double() for name in ("weight", "bias"))
        logits = F.linear(torch.from_numpy(self.features).double(), weight, bias)
        return probe_predictions(self.rows, logits, self.classes, self.recipe)

    def entries(self, history: History, predictions: pd.DataFrame) -> dict[str, Any]:
        """Return what the manifest says."""
        return {"probe": self.compare(history, predictions)}

    def compare(self, history: History, predictions: pd.DataFrame) -> dict[str, Any]:
        """Return the metric of the probe, and by how much the result differs from it.

        Returns:
            `split`, `images`, `seconds` (of features and of the fit), `strength` (scikit-learn's `C`), `metric`, its
            `value` (None if it is undefined) and `own_interval`; if both are defined, `difference` (the result minus
            the probe) and its `interval`; and for the accuracy what `paired_test` returns.
        """
        task, probe = self.recipe.data.task, self.predict(history)
        metric, measured = measure_probe(probe, self.recipe)
        result = predictions[predictions["split"] == self.rows["split"].iloc[0]]
        stage = next(stage for stage in history.stages if stage["trains"] == "probe")
        test: dict[str, Any] = {}
        if metric.name == "accuracy":
            test = paired_test(probe, result)
        else:
            units = match_units(probe, result, pd.Index(probe["path"]).get_indexer(result["path"]))
            if (change := difference_interval((probe, result), metric, task, units)) is not None:
                test["difference"], test["interval"] = change
        return {
            **test, "images": len(probe), "split": str(self.rows["split"].iloc[0]), "metric": metric.name,
            "value": None if np.isnan(measured.value) else measured.value,
            "own_interval": metric_interval(measured, group_codes(probe)), "strength": stage["strength"],
            "seconds": round(stage["seconds"] + stage["cached_seconds"], 2),
        }  # fmt: skip


class ProbeFolds:
    """The out-of-fold metric of the head of a run whose only stage is a probe.

    Args:
        frozen: of the run's Learner, over DataLoaders of this table.
        line: what to say before the features are computed.
    """

    def __init__(self, frozen: FrozenOutputs, table: pd.DataFrame, line: str) -> None:
        self.numbers: dict[str, Any] = {}
        learn, recipe, progress, layers = frozen.learn, frozen.recipe, frozen.progress, frozen.plan.layers
        rows, start = table.reset_index(drop=True), time.perf_counter()
        folds = probe_folds(rows, frozen, LEAST_FOLDS)
        if folds is None:
            progress.log(f"not cross-validated: a class has fewer than {LEAST_FOLDS} images")
            return
        progress.log(line)
        features = torch.from_numpy(embeddings(learn, rows, recipe, (), progress))
        weights = balanced_weights(learn.dls) if recipe.training.class_balance != "none" else None
        problem = Problem(
            features.to(learn.dls.device), encode_targets(learn.dls, rows).to(learn.dls.device), len(learn.dls.vocab),
            weights, recipe.training.label_smoothing, has_intercept(nn.Sequential(*layers[frozen.plan.cut(1) :])),
        )  # fmt: skip
        logits = cross_validated_logits(problem, folds, recipe).cpu().double()
        predictions = probe_predictions(rows, logits, list(map(str, learn.dls.vocab)), recipe)
        metric, measured = measure_probe(predictions, recipe)
        self.numbers = {
            "folds": int(folds.max()) + 1, "images": len(rows), "metric": metric.name,
            "value": None if np.isnan(measured.value) else measured.value,
            "own_interval": metric_interval(measured, group_codes(predictions)),
            "seconds": round(time.perf_counter() - start, 2),
        }  # fmt: skip

    def entries(self, _history: History, _predictions: pd.DataFrame) -> dict[str, Any]:
        """Return what the manifest says: `folds` (their number), `images`, `metric`, its `value`, `own_interval` and
        `seconds`, without test-time augmentation and calibration."""
        return {"folds": self.numbers} if self.numbers else {}


def cross_validated_logits(problem: Problem, folds: np.ndarray, recipe: Recipe) -> torch.Tensor:
    """Return the logits of all rows, N x classes, each from a fit to the other folds, which also choose its penalty."""
    numbers = torch.from_numpy(folds)
    logits = torch.empty(len(folds), problem.classes, device=problem.features.device)
    for number in range(int(folds.max()) + 1):
        inner = [
            (problem.rows((numbers != number) & (numbers != other)), problem.rows(numbers == other))
            for other in range(int(folds.max()) + 1)
            if other != number
        ]
        strength, start = search_strength(inner, partial(held_out_score, recipe))
        fitted = fit_logistic(problem.rows(numbers != number), strength, start)
        logits[numbers == number] = fitted.logits(problem.features[numbers == number])
    return logits
