"""Write the page of an evaluation on new labeled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from baseline import __version__
from baseline.evaluation.table import class_columns
from baseline.files import write_atomic
from baseline.metrics.registry import find_metric
from baseline.report import figures
from baseline.report.figures import ThumbnailCache
from baseline.report.html import percent, render

__all__ = ["write_evaluation_page"]

ERROR_COUNT = 24
"""Number of the most confident errors that are shown."""

MIN_CALIBRATION_IMAGES = 200
"""Number of images below which there is no chart of 15 bins: most of them would hold a few images."""


def write_evaluation_page(
    path: Path, images: str, sections: Sequence[Mapping[str, Any]], sentences: Sequence[str]
) -> None:
    """Write the page of one or several models.

    Args:
        images: the name of the images.
        sections: for each model `name`, `headline` (a metric), `evaluation` (see `baseline.inference.labeled`), `own`
            (the result of its run, or None) and `notes`.
        sentences: how the models differ.
    """
    thumbnails = ThumbnailCache()
    models = [
        {**section, "number": number, **model_section(section, number, thumbnails)}
        for number, section in enumerate(sections, 1)
    ]
    values = {"images": images, "models": models, "sentences": sentences, "version": __version__}
    write_atomic(path, render("evaluation", values))


def model_section(section: Mapping[str, Any], number: int, thumbnails: ThumbnailCache) -> dict[str, Any]:
    """Return what the page shows of one model."""
    evaluation, own = section["evaluation"], section["own"]
    table, numbers = evaluation.predictions, evaluation.metrics
    wrong = table[table["predicted"] != table["label"]].sort_values("confidence", ascending=False, kind="stable")
    return {
        "count": len(table),
        "wrong": len(wrong),
        "rows": [metric_row(name, score, own) for name, score in evaluation.scores.items()],
        "classes": numbers.get("classes", {}),
        "confusion": confusion_chart(table, number) if "confused" in numbers else None,
        "reliability": reliability_chart(numbers, number) if len(table) >= MIN_CALIBRATION_IMAGES else None,
        "errors": [error_card(row, thumbnails) for row in wrong.head(ERROR_COUNT).to_dict("records")],
    }


def metric_row(name: str, score: Mapping[str, Any], own: Any) -> dict[str, str]:
    """Return a row of the table of metrics as text."""
    metric = find_metric(name)
    run = own.scores.get(name) if own is not None else None
    row = {
        "title": metric.title,
        "value": metric.text(score["value"]),
        "interval": span_text(metric, score["interval"]),
    }
    row |= {"run": "", "run_interval": "", "change": "", "change_interval": ""}
    if run is not None:
        row |= {"run": metric.text(run["value"]), "run_interval": span_text(metric, run["interval"])}
        if run["difference"] is not None:
            unit, form = (100, "{:+.1f}") if metric.percent else (1, "{:+.4f}")
            low, high = run["difference_interval"]
            row["change"] = form.format(unit * run["difference"])
            row["change_interval"] = f"{form.format(unit * low)} to {form.format(unit * high)}"
    return row


def span_text(metric: Any, interval: Sequence[float] | None) -> str:
    """Return a confidence interval as text; empty if there is none."""
    return " to ".join(metric.text(end) for end in interval or ())


def confusion_chart(table: pd.DataFrame, number: int) -> Markup:
    """Return the confusion matrix as SVG."""
    classes = class_columns(table)
    codes = {name: at for at, name in enumerate(classes)}
    truth, predicted = (table[column].map(codes).to_numpy() for column in ("label", "predicted"))
    matrix = np.bincount(truth * len(classes) + predicted, minlength=len(classes) ** 2).reshape(len(classes), -1)
    description = f"Confusion matrix of {len(classes)} classes: {int(np.trace(matrix)):,} of {len(table):,} correct"
    return Markup(figures.svg(figures.confusion_figure(matrix, classes), f"confusion{number}", description))


def reliability_chart(numbers: Mapping[str, Any], number: int) -> Markup:
    """Return accuracy against confidence as SVG."""
    bins = pd.DataFrame(numbers["reliability"]).dropna(subset="confidence")
    description = f"Accuracy against confidence; on average they differ by {100 * numbers['ece']:.1f} points"
    return Markup(figures.svg(figures.reliability_figure(bins), f"reliability{number}", description))


def error_card(row: Mapping[Any, Any], thumbnails: ThumbnailCache) -> dict[str, Any]:
    """Return what the page shows of a wrong prediction."""
    label, predicted = row["label"] or "no label", row["predicted"] or "no label"
    return {"image": thumbnails.get(row["path"]), "label": label, "predicted": predicted,
            "confidence": percent(row["confidence"]), "path": row["path"]}  # fmt: skip
