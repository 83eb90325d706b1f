"""Write the HTML report of a run, with its pictures, from the run folder.

Everything is read back from the folder (`manifest.json`, `predictions.csv`, `history.csv`, `lr_find.csv`, `split.csv`,
`audit/`, `model/`), so the report can be written again later or elsewhere and says the same. The model runs once, on
the few images that are shown with a Grad-CAM, and not again for a report that shows the same images. The page contains
its pictures, styles and one small script, and its content security policy tells the browser to load nothing else.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from baseline import __version__
from baseline.data.labels import explode_labels, order_classes
from baseline.errors import format_count
from baseline.evaluation.calibration import BIN_COUNT
from baseline.evaluation.explain import describe_references, explain
from baseline.evaluation.label_errors import suspect_labels
from baseline.files import refuse_damaged, to_csv, write_atomic
from baseline.progress import Progress
from baseline.recipe.describe import describe_schedule, describe_trained, format_lr
from baseline.report import figures
from baseline.report.advice import TRUSTED_ACCURACY, advise
from baseline.report.cards import gradcam_maps, image_card, pair_cards, prediction_card, save_sheet, suspect_card
from baseline.report.figures import ThumbnailCache
from baseline.report.headline import headline_view, named_headline, selection_metric
from baseline.report.html import interval_digits, render
from baseline.report.run_files import RunFiles, read_run, selection_column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]


ERROR_COUNT, CORRECT_COUNT, RANDOM_COUNT, SAMPLE_COUNT = 12, 8, 24, 10
"""Number of images shown: most confident errors, least confident correct predictions (both with Grad-CAM), random
predictions, and training images."""

MIN_RANDOM_IMAGES = 100
"""Number of evaluated images below which no random predictions are shown: the others already show many of them."""

MIN_BINNED_IMAGES = 200
"""Number of predictions below which confidence is not compared with accuracy in bins, which would be nearly empty."""

FIRST_ERRORS = 8
"""Number of errors that are shown before a fold, where they have heatmaps; without, twice as many fit."""

SUSPECT_COUNT = 12
"""Number of images shown whose label may be wrong."""

CONFUSION_COUNT = 15
"""Number of confused pairs of classes in the table."""


POINTS_PER_INCH, POINTS_PER_REM = 72, 15
"""A chart is shown so wide that its letters of 11 points are nearly as large as the page's."""


def write_report(run: str | Path, progress: Progress | None = None) -> Path:
    """Write `report.html` and its pictures (PNG) into the folder of a finished run, and return the page's path.

    Images that are no longer where they were are shown as gray boxes, and the page says so.

    Raises:
        OutputError: if the folder holds no finished run, a newer version wrote it, or it cannot be written.
        DataError: if its prediction table lacks columns or holds values that are not numbers.

    >>> write_report("runs/cifar10-20261122-101500")                               # doctest: +SKIP
    PosixPath('runs/cifar10-20261122-101500/report.html')
    """
    with refuse_damaged(Path(run)):
        return _write_page(read_run(Path(run)), progress or Progress())


def _write_page(files: RunFiles, progress: Progress) -> Path:
    if files.epochs is None:
        progress.log(f"{files.folder / 'history.csv'} is damaged: the training curves are left out")
    with progress.bar("writing the report", 5, "parts") as bar:
        page: dict[str, Any] = {"run": files, "version": __version__, "advice": advise(files)}
        images = ThumbnailCache()
        for section in (headline_section, training_section, data_section, quality_section, examples_section):
            page |= section(files, images)
            bar.step()
        page |= time_section(files) | {"missing": images.missing, "requested_count": images.requested_count}
    target = files.folder / "report.html"
    write_atomic(target, render("report", page))
    progress.log(f"report: {target}")
    return target


def save_figure(run: RunFiles, name: str, figure: Figure, description: str) -> Markup:
    """Save the figure as a PNG in the run folder, and return it as SVG for the page."""
    save_picture(run, name, figure)
    return chart(figure, name, description)


def save_picture(run: RunFiles, name: str, *row: Figure) -> None:
    """Save the figures side by side as a PNG in the run folder."""
    write_atomic(run.folder / f"{name}.png", figures.png(*row))


def chart(figure: Figure, name: str, description: str) -> Markup:
    """Return the figure as SVG for the page."""
    return Markup(figures.svg(figure, name, description))  # matplotlib and `svg` escape all text in it


def headline_section(run: RunFiles, _: ThumbnailCache) -> dict[str, Any]:
    """Return the headline number, its interval, and the numbers to compare it with."""
    kind = headline_view(run.manifest)
    metrics = run.manifest["metrics"][run.split][kind]
    return {
        "title": page_title(run),
        "metrics": metrics,
        "headline": named_headline(run.manifest, run.split, kind),
        "digits": interval_digits(metrics["interval"]),
        "kind": kind,
        "images": len(run.rows),
        "sentences": explain(run.numbers)[1:],  # the first repeats the headline
        "references": describe_references(run.manifest),
        "numbers": [
            (split, views, numbers["images"], numbers[views])
            for split, numbers in run.manifest["metrics"].items()
            for views in (("plain", "tta") if run.recipe["tta"] else ("plain",))
        ],
    }


def page_title(run: RunFiles) -> str:
    """Return the recipe's title where it belongs to one dataset, else the name of the image source."""
    images = run.manifest.get("images")
    if run.recipe.get("data") or not images:
        return run.recipe["title"] or run.recipe["name"]
    return Path(images.rpartition(":")[2]).stem


def training_section(run: RunFiles, _: ThumbnailCache) -> dict[str, Any]:
    """Return the recipe with its reasons, the stages, and the training curves."""
    stages = run.manifest["stages"]
    reasons = run.manifest["reasons"]
    hidden = {"stages", "presets", "expected", "title"}
    shown = {key: value for key, value in run.recipe.items() if key not in hidden and value not in ("", {}, [], None)}
    settings = [(key, format_setting(value), reasons.get(key, "")) for key, value in shown.items()]
    settings += [(key, "", reason) for key, reason in reasons.items() if key not in shown]
    context = {
        "settings": settings,
        "stages": [
            {
                **stage,
                "rate": format_lr(stage["lr"]),
                "trained": describe_trained(stage["trains"]),
                "course": describe_schedule(stage),
            }
            for stage in stages
        ],
        "weights": run.manifest.get("weights"),
        "damaged": run.epochs is None,
        "curves": [],
        "epoch": None,
        "searches": [],
    }
    if run.epochs is not None:
        context |= {"epoch": describe_epoch(run.epochs)} if len(run.epochs) == 1 else {"curves": training_charts(run)}
    if run.sweeps is not None and len(run.sweeps):
        context["searches"] = search_charts(run, run.sweeps, stages)
    return context


def search_charts(run: RunFiles, sweeps: pd.DataFrame, stages: list[Any]) -> list[Markup]:
    """Save the picture of the learning rate searches, and return a chart of each."""
    numbers = sorted(sweeps["stage"].unique())
    searches = {number: figures.lr_find_figure(sweeps[sweeps["stage"] == number], stages) for number in numbers}
    save_picture(run, "lr_find", *searches.values())
    charts = []
    for number, figure in searches.items():
        used = f"; used: {format_lr(stages[number - 1]['lr'])}" if number <= len(stages) else ""
        charts.append(chart(figure, f"lr_find_{number}", f"Loss against learning rate in stage {number}{used}"))
    return charts


def describe_epoch(epochs: pd.DataFrame) -> str:
    """Describe the only epoch of a run."""
    row, metric = epochs.iloc[0], selection_column(epochs)
    value = selection_metric(metric).text(row[metric])
    return (
        f"The run has a single epoch: loss {row['train_loss']:.3f} on the training images and {row['valid_loss']:.3f} "
        f"on the validation images, where {selection_metric(metric).title} is {value}."
    )


def training_charts(run: RunFiles) -> list[Markup]:
    """Save the picture of the training curves, and return a chart of each curve."""
    epochs = run.epochs
    if epochs is None:
        return []
    metric = selection_column(epochs)
    name, count = metric.removeprefix("valid_").replace("_", " "), format_count(len(epochs), "epoch")
    best = ""
    for row in epochs[epochs["best"]].iloc[-1:].to_dict("records"):
        value = selection_metric(metric).text(row[metric])
        best = f"; epoch {row['epoch']} of stage {row['stage']} is kept, with {value} on the validation split"
    descriptions = {"loss": "Losses", "metric": name.capitalize(), "rate": "Learning rate"}
    panels = {panel: figures.training_figure(epochs, panel) for panel in descriptions}
    save_picture(run, "training", *panels.values())
    return [
        chart(panels[panel], f"training_{panel}", f"{title} over {count}{best}")
        for panel, title in descriptions.items()
    ]


def format_setting(value: Any) -> str:
    """Format a recipe's value for people: lists with commas, yes and no."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {format_setting(item)}" for key, item in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(format_setting, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def data_section(run: RunFiles, images: ThumbnailCache) -> dict[str, Any]:
    """Return class counts, the findings of the audit, some training images, and pairs of duplicates."""
    labels = explode_labels(run.table["label"], run.recipe.get("task", "single"))  # a row per label, indexed by image
    table = run.table.drop(columns="label").join(labels)
    counts = pd.crosstab(table["label"], table["split"])
    counts = counts[[split for split in ("train", "valid", "test") if split in counts]]
    smallest, largest = counts.sum(axis=1).min(), counts.sum(axis=1).max()
    description = f"Images of {len(counts)} classes by split; class sizes range from {smallest:,} to {largest:,}"
    sample = [image_card(images, row["path"], row["label"], "a training image of") for row in sample_images(run)]
    save_sheet(run, "sample", sample)
    return {
        "counts": counts,
        "totals": run.table["split"].value_counts(),
        "class_counts": save_figure(run, "classes", figures.counts_figure(counts), description),
        "findings": run.findings,
        "left_out": run.manifest["data"].get("left_out", []),
        "sample": sample,
        "pairs": [] if run.pairs is None else list(pair_cards(run.pairs, images)),
    }


def sample_images(run: RunFiles) -> list[dict[Any, Any]]:
    """Return rows of training images from as many classes as there is room for, the same number from each."""
    rows = run.table[run.table["split"] == "train"]
    labels = rows["label"].unique()
    classes = order_classes(np.random.default_rng(0).permutation(labels)[:SAMPLE_COUNT])
    per_class = max(1, min(4, SAMPLE_COUNT // max(1, len(classes))))
    shuffled = rows[rows["label"].isin(classes)].groupby("label").sample(frac=1, random_state=0)
    sample = shuffled.groupby("label").head(per_class)
    numbers = {name: number for number, name in enumerate(classes)}
    return sample.sort_values("label", key=lambda labels: labels.map(numbers), kind="stable").to_dict("records")


def quality_section(run: RunFiles, _: ThumbnailCache) -> dict[str, Any]:
    """Return the confusions, the metrics by class, and the calibration."""
    tta = run.numbers["tta"]
    context: dict[str, Any] = {
        "confusion": None,
        "confused": tta.get("confused", [])[:CONFUSION_COUNT],
        "temperature": run.manifest.get("calibration", {}).get(run.split, {}).get("words", ""),
        **calibration_section(run),
    }
    matrix = None if run.many else count_confusions(run)
    top_errors = [""] * len(run.classes)
    if matrix is not None:
        correct = int(np.trace(matrix))
        description = f"Confusion matrix of {len(run.classes)} classes: {correct:,} of {matrix.sum():,} images correct"
        for pair in context["confused"][:1]:
            description += (
                f"; the most frequent confusion is {pair['label']} predicted as {pair['predicted']} ({pair['images']})"
            )
        figure = figures.confusion_figure(matrix, run.classes)
        context["confusion"] = save_figure(run, "confusion", figure, description)
        counts = pd.DataFrame(matrix, columns=run.classes)
        counts.insert(0, "truth / predicted", run.classes)
        write_atomic(run.folder / "confusion.csv", to_csv(counts))
        context["matrix_width"] = round(figure.get_size_inches()[0] * POINTS_PER_INCH / POINTS_PER_REM, 1)
        wrong = matrix - np.diag(matrix.diagonal())
        top_errors = [f"{run.classes[row.argmax()]} ({row.max()})" if row.any() else "" for row in wrong]
    classes = zip(tta["classes"].items(), top_errors, strict=True)
    context["thresholds"], context["cut_points"] = (run.manifest.get(key) for key in ("thresholds", "cut_points"))
    return context | {"per_class": [{"name": name, "top_error": error, **row} for (name, row), error in classes]}


def calibration_section(run: RunFiles) -> dict[str, Any]:
    """Return confidence and accuracy: in bins where there are enough predictions, else on average."""
    bins = pd.DataFrame(run.numbers["tta"]["reliability"]).dropna(subset="confidence")
    count, ece = int(bins["images"].sum()), run.numbers["tta"]["ece"]
    confidence, accuracy = (
        float(np.average(bins[name], weights=bins["images"])) for name in ("confidence", "accuracy")
    )
    description = f"Accuracy against confidence in {BIN_COUNT} bins; on average they differ by {100 * ece:.1f} points"
    is_binned = count >= MIN_BINNED_IMAGES
    return {
        "bins": bins.to_dict("records"),
        "ece": ece,
        "count_predictions": count,
        "confidence": confidence,
        "decisions_correct": accuracy,
        "reliability": save_figure(run, "reliability", figures.reliability_figure(bins), description)
        if is_binned
        else None,
    }


def count_confusions(run: RunFiles) -> np.ndarray:
    """Return the confusion matrix, truth x prediction, without more memory than classes x classes."""
    codes = {name: number for number, name in enumerate(run.classes)}
    truth, predicted = (run.rows[column].map(codes).to_numpy() for column in ("label", "predicted"))
    count = len(codes)
    return np.bincount(truth * count + predicted, minlength=count * count).reshape(count, count)


def examples_section(run: RunFiles, images: ThumbnailCache) -> dict[str, Any]:
    """Return the most confident errors and least confident correct predictions with Grad-CAM, and random ones."""
    rows = run.rows
    errors = rows[~rows["right"]].sort_values("confidence", ascending=False, kind="stable").head(ERROR_COUNT)
    correct = rows[rows["right"]].sort_values("confidence", kind="stable").head(CORRECT_COUNT)
    shown = pd.concat([errors, correct])
    heatmaps, no_gradcam = gradcam_maps(run, shown, images)
    cards = [
        prediction_card(run, images, row, heatmap)
        for row, heatmap in zip(shown.to_dict("records"), heatmaps, strict=True)
    ]
    count = min(RANDOM_COUNT, len(rows)) if len(rows) >= MIN_RANDOM_IMAGES else 0
    random = rows.sample(count, random_state=int(run.recipe.get("seed", 0)) % 2**32)
    suspects = pd.DataFrame() if run.many else suspect_labels(run.predictions)
    sheets = {
        "errors": cards[: len(errors)],
        "hits": cards[len(errors) :],
        "random": [prediction_card(run, images, row, None) for row in random.to_dict("records")],
        "suspects": [suspect_card(images, row) for row in suspects.head(SUSPECT_COUNT).to_dict("records")],
    }
    for name, sheet in sheets.items():
        save_sheet(run, name, sheet)
    if len(suspects):
        write_atomic(run.folder / "suspected_labels.csv", to_csv(suspects))
    first = FIRST_ERRORS if no_gradcam == "" else 2 * FIRST_ERRORS
    return {
        **sheets,
        "error_count": int((~rows["right"]).sum()),
        "first_errors": first,
        "no_gradcam": no_gradcam,
        "suspected": len(suspects),
        "is_weak": run.numbers["tta"]["accuracy"] < TRUSTED_ACCURACY,
        "held_out": len(run.predictions),
    }


def time_section(run: RunFiles) -> dict[str, Any]:
    """Return the seconds by part of the run, and the command that repeats it."""
    seconds = dict(run.manifest.get("time") or run.manifest["seconds"])
    seconds = {name: value for name, value in seconds.items() if value >= 0.005}
    description = "Seconds by part: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    return {
        "seconds": seconds,
        "total": sum(run.manifest["seconds"].values()),
        "time_chart": save_figure(run, "time", figures.time_figure(seconds), description),
        "command": f"baseline run {shlex.quote(str(run.folder / 'manifest.json'))}",
    }
