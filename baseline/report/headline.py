"""The headline metric of a run: its value, its confidence interval, and both as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from baseline.metrics.registry import Metric, find_metric
from baseline.recipe.diff import flat_recipe
from baseline.runs.folder import headline_split

__all__ = [
    "Headline",
    "describe_headline",
    "describe_split",
    "headline_of",
    "headline_sentence",
    "headline_view",
    "named_headline",
    "named_metric",
    "selection_metric",
]


@dataclass(frozen=True)
class Headline:
    """A metric of one split."""

    metric: Metric
    value: float | None
    """None where it is undefined."""
    interval: tuple[float, float] | None

    def text(self, digits: int = 2) -> str:
        """Return the value with as many decimals as in `Metric.text`."""
        return self.metric.text(self.value, digits)

    def span(self, digits: int = 2) -> str:
        """Return the confidence interval, such as `0.9612 to 0.9810`; empty if there is none."""
        return " to ".join(self.metric.text(end, digits) for end in self.interval or ())

    def __str__(self) -> str:
        return f"{self.text()} (95% confidence interval {self.span()})" if self.interval else self.text()


def named_metric(manifest: Mapping[str, Any]) -> Metric | None:
    """Return the metric that a run's recipe names, with several labels per image micro F1 by default; None for the
    accuracy by default."""
    recipe = flat_recipe(manifest["recipe"])
    name, is_multilabel = recipe.get("metric", "auto"), recipe.get("task") == "multilabel"
    return find_metric(name, multilabel=is_multilabel) if name != "auto" or is_multilabel else None


def named_headline(manifest: Mapping[str, Any], split: str, view: str = "tta") -> Headline | None:
    """Return the metric of `named_metric` on a split; None without one, or if the run did not compute it.

    >>> scores = {"top_3": 0.9, "intervals": {"top_3": (0.8, 0.95)}}
    >>> manifest = {"recipe": {"evaluation": {"metric": "top_3"}}, "metrics": {"test": {"tta": scores}}}
    >>> str(named_headline(manifest, "test"))
    '90.00% (95% confidence interval 80.00% to 95.00%)'
    """
    metric = named_metric(manifest)
    return None if metric is None else headline_of(metric, manifest["metrics"].get(split, {}).get(view, {}))


def headline_view(manifest: Mapping[str, Any]) -> Literal["plain", "tta"]:
    """Return whether a run was evaluated with test-time augmentation (TTA), `"tta"`, or not, `"plain"`."""
    return "tta" if flat_recipe(manifest["recipe"]).get("tta") else "plain"


def describe_split(row: Mapping[Any, Any]) -> str:
    """Return the split of a table's row, and whether its numbers are with TTA.

    >>> describe_split({"split": "test", "tta": True}), describe_split({"split": "test", "tta": False})
    ('test with TTA', 'test')
    """
    return f"{row['split']}{' with TTA' if row['tta'] else ''}"


def headline_sentence(manifest: Mapping[str, Any]) -> str:
    """Return the headline of a run; with several labels per image also the macro F1, and what the table counts."""
    metric, split, view = named_metric(manifest), headline_split(manifest["metrics"]), headline_view(manifest)
    if flat_recipe(manifest["recipe"]).get("task") != "multilabel":
        return describe_headline(manifest)
    scores = manifest["metrics"][split][view]
    macro = f"macro F1 {scores['macro_f1']:.2%}; " if metric and metric.name == "micro_f1" else ""
    return f"{describe_headline(manifest)}; {macro}the table counts images whose labels are all correct"


def describe_headline(manifest: Mapping[str, Any]) -> str:
    """Return the headline of a run with its split and interval.

    >>> scores = {"accuracy": 0.9, "interval": (0.8, 0.95)}
    >>> describe_headline({"recipe": {}, "metrics": {"test": {"plain": scores}}})
    'test accuracy: 90.00% (95% confidence interval 80.00% to 95.00%)'
    """
    split, view = headline_split(manifest["metrics"]), headline_view(manifest)
    scores = manifest["metrics"][split][view]
    accuracy = Headline(find_metric("accuracy"), scores["accuracy"], tuple(scores["interval"]))
    headline = named_headline(manifest, split, view) or accuracy
    return f"{split} {headline.metric.title}{' with TTA' if view == 'tta' else ''}: {headline}"


def headline_of(metric: Metric, scores: Mapping[str, Any]) -> Headline | None:
    """Return a metric from the numbers of one split and view; None if they do not have it."""
    if metric.name not in scores:
        return None
    interval = scores.get("intervals", {}).get(metric.name)
    return Headline(metric, scores[metric.name], tuple(interval) if interval else None)


def selection_metric(column: str) -> Metric:
    """Return the metric of a column of the history, such as `valid_accuracy`."""
    return find_metric(column.removeprefix("valid_"))
