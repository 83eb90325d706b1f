"""A finished run as a card in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baseline.evaluation.explain import describe_references, explain
from baseline.notebook import card, interval_chart, score_intervals
from baseline.recipe.diff import flat_recipe
from baseline.report.headline import headline_sentence, headline_view

__all__ = ["run_card"]


def run_card(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Return the headline of a run, its accuracies with their intervals, what they mean, and a link to the report."""
    metrics = manifest["metrics"]
    numbers = list(metrics.values())[-1]
    rows = score_intervals(metrics, bool(flat_recipe(manifest["recipe"]).get("tta")))
    chart = interval_chart(rows, "accuracy by split, with 95% confidence intervals")
    view = headline_view(manifest)
    sentences = [*describe_references(manifest), *explain(numbers, view)]
    title = headline_sentence(manifest)
    return card(title, [chart], sentences, [folder / "report.html", folder / "predictions.csv"])
