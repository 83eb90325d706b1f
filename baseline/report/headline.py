"""The headline metric of a run: its value, its confidence interval, and both as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baseline.metrics.registry import Metric, find_metric
from baseline.recipe.diff import flat_recipe

__all__ = ["Headline", "headline_of", "named_headline", "named_metric", "selection_metric"]


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
    """Return the metric that a run's recipe names; None if it names none."""
    recipe = flat_recipe(manifest["recipe"])
    name = recipe.get("metric", "auto")
    return None if name == "auto" else find_metric(name)


def named_headline(manifest: Mapping[str, Any], split: str, view: str = "tta") -> Headline | None:
    """Return the metric that a run's recipe names on a split; None without one, or if the run did not compute it.

    >>> scores = {"top_3": 0.9, "intervals": {"top_3": (0.8, 0.95)}}
    >>> manifest = {"recipe": {"evaluation": {"metric": "top_3"}}, "metrics": {"test": {"tta": scores}}}
    >>> str(named_headline(manifest, "test"))
    '90.00% (95% confidence interval 80.00% to 95.00%)'
    """
    metric = named_metric(manifest)
    return None if metric is None else headline_of(metric, manifest["metrics"].get(split, {}).get(view, {}))


def headline_of(metric: Metric, scores: Mapping[str, Any]) -> Headline | None:
    """Return a metric from the numbers of one split and view; None if they do not have it."""
    if metric.name not in scores:
        return None
    interval = scores.get("intervals", {}).get(metric.name)
    return Headline(metric, scores[metric.name], tuple(interval) if interval else None)


def selection_metric(column: str) -> Metric:
    """Return the metric of a column of the history, such as `valid_accuracy`."""
    return find_metric(column.removeprefix("valid_"))
