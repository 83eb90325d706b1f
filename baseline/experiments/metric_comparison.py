"""Compares prediction tables by the metric that their recipes name, if it is not the accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from baseline.evaluation.explain import describe_metric_test
from baseline.evaluation.metric_test import measure_metric, metric_test
from baseline.metrics.registry import Metric
from baseline.report.headline import Headline, named_metric
from baseline.runs.folder import read_predictions

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__all__ = [
    "compare_tables",
    "describe_test",
    "evaluate_metric",
    "metric_besides_accuracy",
    "read_split_predictions",
    "without_tta",
]


def metric_besides_accuracy(manifest: Mapping[str, Any]) -> Metric | None:
    """Return the metric that a manifest's recipe names; None if it is the accuracy or there is none."""
    metric = named_metric(manifest)
    return None if metric is None or metric.name == "accuracy" else metric


def evaluate_metric(table: pd.DataFrame, metric: Metric, task: str) -> Headline:
    """Return the metric of a prediction table of one split, with its interval."""
    from baseline.evaluation.details.named_metric import metric_interval
    from baseline.evaluation.table import group_codes

    measured = measure_metric(table, metric, task)
    value = None if np.isnan(measured.value) else measured.value
    return Headline(metric, value, metric_interval(measured, group_codes(table)))


def read_split_predictions(run: Path, split: str, tta: bool, metric: Metric | None = None) -> pd.DataFrame:
    """Return a run's prediction table of one split, with or without TTA, as far as the metric needs it."""
    columns = ("path", "label", "split", "predicted", *(() if tta else ("plain_predicted",)))
    table = read_predictions(run, () if metric else columns)
    table = table[table["split"] == split]
    return table if tta else without_tta(table)


def without_tta(table: pd.DataFrame) -> pd.DataFrame:
    """Return a prediction table with the predictions without TTA in place of those with it.

    Without columns `plain_p_CLASS`, the probabilities are still those with TTA.
    """
    return table.assign(
        **{name.removeprefix("plain_"): table[name] for name in map(str, table) if name.startswith("plain_")}
    )


def compare_tables(one: pd.DataFrame, other: pd.DataFrame, metric: Metric | None, task: str) -> dict[str, Any]:
    """Return the result of `metric_test`, or without a metric of `paired_test`."""
    from baseline.evaluation.significance import paired_test

    return metric_test(one, other, metric, task) if metric else paired_test(one, other)


def describe_test(test: Mapping[str, Any], metric: Metric) -> str:
    """Describe a difference, whether it is better or worse, and whether it is statistically significant."""
    return f"{metric.title} {describe_metric_test(test, metric)}"
