"""The reference beside every result: logistic regression on features of the frozen body.

A run that starts with a probe has that head anyway. The features of the images of its headline split are computed in a
single pass before training changes the body, and cached; the head of the probe is applied to them when training has
ended, also where the run was resumed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from baseline.evaluation.details.named_metric import metric_interval
from baseline.evaluation.difference import difference_interval, match_units
from baseline.evaluation.significance import paired_test
from baseline.evaluation.table import class_columns, group_codes, prediction_table, table_predictions
from baseline.metrics.registry import find_metric
from baseline.runs.folder import headline_split
from baseline.training.frozen import FrozenOutputs, embeddings
from baseline.training.probe import probe_obstacle

if TYPE_CHECKING:
    from fastai.learner import Learner

    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe
    from baseline.training.state import History

__all__ = ["ProbeReference", "probe_reference"]


def probe_reference(learn: Learner, table: pd.DataFrame, recipe: Recipe, progress: Progress) -> ProbeReference | None:
    """Return the reference of a run whose first stage is a probe, or None if gradient descent will train that stage."""
    if probe_obstacle(FrozenOutputs(learn, recipe), 1):
        return None
    return ProbeReference(learn, table, recipe, progress)


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
        is_multilabel = self.recipe.data.task == "multilabel"
        probabilities = (logits.sigmoid() if is_multilabel else logits.softmax(1)).numpy()
        threshold = self.recipe.evaluation.threshold if is_multilabel else None
        return prediction_table(self.rows, probabilities, probabilities, self.classes, threshold)

    def compare(self, history: History, predictions: pd.DataFrame) -> dict[str, Any]:
        """Return the metric of the probe, and by how much the result differs from it.

        Returns:
            `split`, `images`, `seconds` (of features and of the fit), `strength` (scikit-learn's `C`), `metric`, its
            `value` (None if it is undefined) and `own_interval`; if both are defined, `difference` (the result minus
            the probe) and its `interval`; and for the accuracy what `paired_test` returns.
        """
        task, name = self.recipe.data.task, self.recipe.evaluation.metric
        metric = find_metric(name if name != "auto" else "micro_f1" if task == "multilabel" else "accuracy")
        probe = self.predict(history)
        result = predictions[predictions["split"] == self.rows["split"].iloc[0]]
        measured = metric.measure(table_predictions(probe, class_columns(probe), task))
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
