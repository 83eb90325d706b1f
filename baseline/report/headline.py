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
    "describe_view",
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


def headline_view(manifest: Mapping[str, Any]) -> Literal["plain", "tta"]:
    """Return whether the headline of a run is with test-time augmentation (TTA): unless the valid images lose by it.

    >>> scores = {"plain": {"accuracy": 0.9}, "tta": {"accuracy": 0.8}}
    >>> headline_view({"recipe": {"evaluation": {"tta": ["flip"]}}, "metrics": {"valid": scores}})
    'plain'
    """
    recipe, valid = flat_recipe(manifest["recipe"]), manifest["metrics"].get("valid", {})
    if not recipe.get("tta"):
        return "plain"
    metric = named_metric(manifest) or find_metric("micro_f1" if recipe.get("task") == "multilabel" else "accuracy")
    plain, tta = (valid.get(view, {}).get(metric.name) for view in ("plain", "tta"))
    return "plain" if None not in (plain, tta) and metric.score(tta) < metric.score(plain) else "tta"


def describe_view(manifest: Mapping[str, Any]) -> str:
    """Return why the headline of a run is without TTA although it was used; empty where it is with TTA, or none was.

    >>> describe_view({"recipe": {"evaluation": {"tta": ["flip"]}}, "metrics": {}})
    ''
    """
    if not flat_recipe(manifest["recipe"]).get("tta") or headline_view(manifest) == "tta":
        return ""
    return (
        "The headline is without TTA, which made the validation images worse; predict with --no-tta to get this number."
    )


def headline_sentence(manifest: Mapping[str, Any]) -> str:
    """Return the headline of a run with its split and interval; with several labels per image, the metrics of these."""
    split, view = headline_split(manifest["metrics"]), headline_view(manifest)
    metrics = manifest["metrics"][split]
    headline, scores = named_headline(manifest, split, view), metrics[view]
    low, high = scores["interval"]
    tta = " with TTA" if view == "tta" else ""
    if headline:
        return f"{split} {headline.metric.title}{tta}: {headline}"
    if flat_recipe(manifest["recipe"]).get("task") == "multilabel":
        precision = metrics["tta"]["mean_average_precision"]
        return (
            f"{split}{tta}: micro F1 {scores['micro_f1']:.2%}, macro F1 {scores['macro_f1']:.2%}, mean average "
            f"precision {precision:.2%}; the table counts images whose labels are all correct"
        )
    return f"{split} accuracy{tta}: {scores['accuracy']:.2%} (95% confidence interval {low:.2%} to {high:.2%})"


def headline_of(metric: Metric, scores: Mapping[str, Any]) -> Headline | None:
    """Return a metric from the numbers of one split and view; None if they do not have it."""
    if metric.name not in scores:
        return None
    interval = scores.get("intervals", {}).get(metric.name)
    return Headline(metric, scores[metric.name], tuple(interval) if interval else None)


def selection_metric(column: str) -> Metric:
    """Return the metric of a column of the history, such as `valid_accuracy`."""
    return find_metric(column.removeprefix("valid_"))
