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

from baseline.data.labels import label_matrix
from baseline.data.table_folds import describe_probe_folds
from baseline.evaluation.cut_points import with_cut_points
from baseline.evaluation.details.named_metric import metric_interval
from baseline.evaluation.metric_test import metric_test
from baseline.evaluation.significance import paired_test
from baseline.evaluation.table import class_columns, group_codes, prediction_table, table_predictions
from baseline.evaluation.thresholds import choose_thresholds
from baseline.metrics.registry import find_metric
from baseline.runs.folder import headline_split
from baseline.training.frozen import FrozenOutputs, embeddings, timed_embeddings
from baseline.training.logistic import Problem, fit_logistic, search_strength
from baseline.training.probe import has_intercept, held_out_score, probe_folds, probe_obstacle
from baseline.vision.dataloaders import encode_targets
from baseline.vision.learner import balanced_weights

if TYPE_CHECKING:
    from fastai.learner import Learner

    from baseline.data.labels import Threshold
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


def probe_predictions(
    rows: pd.DataFrame, logits: torch.Tensor, classes: list[str], recipe: Recipe, *, fit_decisions: bool = False
) -> pd.DataFrame:
    """Return the prediction table of logits, rows x classes, without calibration.

    Args:
        fit_decisions: fit thresholds or cut points on the valid rows, as a run does.
    """
    threshold: Threshold | None = None
    if is_multilabel := recipe.data.task == "multilabel":
        threshold = recipe.evaluation.threshold
    probabilities = (logits.sigmoid() if is_multilabel else logits.softmax(1)).numpy()
    valid = (rows["split"] == "valid").to_numpy()
    if fit_decisions and threshold == 0.5 and valid.any():
        truth = label_matrix(rows["label"][valid], classes)
        threshold = choose_thresholds(probabilities[valid], truth, recipe.evaluation.metric)
    table = prediction_table(rows, probabilities, probabilities, classes, threshold)
    has_cut_points = fit_decisions and not is_multilabel
    return with_cut_points(table, probabilities, recipe.evaluation.metric) if has_cut_points else table


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
        how, self.recipe, self.classes = recipe.evaluation, recipe, [str(name) for name in learn.dls.vocab]
        self.split = headline_split(dict.fromkeys(table["split"]))
        is_multilabel = recipe.data.task == "multilabel"
        has_decisions = is_multilabel or find_metric(how.metric).has_cut_points(len(self.classes))
        self.fit_decisions = has_decisions and how.thresholds == "auto"
        splits = {self.split, *(["valid"] if self.fit_decisions else [])}
        self.rows = table[table["split"].isin(splits)].reset_index(drop=True)
        views = tuple(view for view in how.tta if view == "flip")
        self.features = timed_embeddings(learn, self.rows, recipe, views, progress)[0]

    def predict(self, history: History, *, tta: bool) -> pd.DataFrame:
        """Return the prediction table of the probe on the images of the headline, without calibration."""
        features = self.features.mean(0) if tta else self.features[0]
        weight, bias = (history.probe[name].cpu().double() for name in ("weight", "bias"))
        logits = F.linear(torch.from_numpy(features).double(), weight, bias)
        table = probe_predictions(self.rows, logits, self.classes, self.recipe, fit_decisions=self.fit_decisions)
        return table[table["split"] == self.split].reset_index(drop=True)

    def entries(self, history: History, predictions: pd.DataFrame) -> dict[str, Any]:
        """Return what the manifest says."""
        return {"probe": self.compare(history, predictions)}

    def compare(self, history: History, predictions: pd.DataFrame) -> dict[str, Any]:
        """Return the metric of the probe, and by how much the result differs from it.

        Returns:
            `split`, `images`, `kept` (whether the result is the probe, as fine-tuning was not better on the valid
            images), `seconds` (of features and of the fit), `strength` (scikit-learn's `C`), `metric`, its
            `value` (None if it is undefined) and `own_interval`; and if both are defined, what `paired_test`, or for
            other metrics than the accuracy `metric_test`, returns for the result compared with the probe.
        """
        task, result = self.recipe.data.task, predictions[predictions["split"] == self.split]
        best = [row["trains"] for row in history.epochs.to_dict("records") if row["best"]]
        is_kept = best[-1:] == ["probe"]
        probe = result if is_kept else self.predict(history, tta=not predictions.attrs["without_tta"])
        metric, measured = measure_probe(probe, self.recipe)
        stage = next(stage for stage in history.stages if stage["trains"] == "probe")
        is_accuracy = metric.name == "accuracy"
        test = paired_test(probe, result) if is_accuracy else metric_test(probe, result, metric, task)
        return {
            **test, "kept": is_kept, "images": len(probe), "split": self.split, "metric": metric.name,
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
        if folds.min() < 0:
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
