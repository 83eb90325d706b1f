"""Write the HTML report of a run, with its pictures, from the run folder.

Everything is read back from the folder (`manifest.json`, `predictions.csv`, `history.csv`, `lr_find.csv`, `split.csv`,
`audit/`, `model/`), so the report can be written again later or elsewhere and says the same. The model runs once, on
the few images that are shown with a Grad-CAM, and not again for a report that shows the same images. The page contains
its pictures, styles and one small script, and its content security policy tells the browser to load nothing else.
"""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from baseline import __version__
from baseline.data.image import load_image, resize_image
from baseline.data.labels import explode_labels, label_matrix, order_classes
from baseline.errors import DataError, OutputError, format_count, quoted_list
from baseline.evaluation.calibration import BIN_COUNT
from baseline.evaluation.explain import explain
from baseline.evaluation.label_errors import suspect_labels
from baseline.evaluation.metrics import evaluate
from baseline.evaluation.results import SplitMetrics
from baseline.files import MAX_TABLE_BYTES, check_regular, read_json, refuse_damaged, sha256_of, to_csv, write_atomic
from baseline.progress import Progress
from baseline.recipe.describe import describe_schedule, describe_trained, format_lr
from baseline.recipe.diff import flat_recipe
from baseline.report import figures
from baseline.report.figures import THUMBNAIL_SIZE, ThumbnailCache
from baseline.report.headline import named_headline, selection_metric
from baseline.report.html import interval_digits, percent, render
from baseline.runs.folder import headline_split, read_manifest, read_predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from baseline.report.audit_files import FindingRecord
    from baseline.runs.manifest import Manifest

__all__ = ["write_report"]


ERROR_COUNT, CORRECT_COUNT, RANDOM_COUNT, SAMPLE_COUNT = 12, 8, 24, 24
"""Number of images shown: most confident errors, least confident correct predictions (both with Grad-CAM), random
predictions, and training images."""

SUSPECT_COUNT = 12
"""Number of images shown whose label may be wrong."""

PAIR_COUNT = 6
"""Number of pairs of duplicates shown of each kind."""

CONFUSION_COUNT = 15
"""Number of confused pairs of classes in the table."""


REQUIRED_KEYS = ("recipe", "reasons", "metrics", "seconds", "stages", "data", "device", "versions", "finished")


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
        page: dict[str, Any] = {"run": files, "version": __version__}
        images = ThumbnailCache()
        for section in (headline_section, training_section, data_section, quality_section, examples_section):
            page |= section(files, images)
            bar.step()
        page |= time_section(files) | {"missing": images.missing, "requested_count": images.requested_count}
    target = files.folder / "report.html"
    write_atomic(target, render("report", page))
    progress.log(f"report: {target}")
    return target


@dataclass(frozen=True)
class RunFiles:
    """Contents of a run folder."""

    folder: Path
    manifest: Manifest
    predictions: pd.DataFrame
    epochs: pd.DataFrame | None
    """The history; None if it is damaged."""
    sweeps: pd.DataFrame | None
    """None where the folder has no `lr_find.csv`."""
    table: pd.DataFrame
    findings: list[FindingRecord]
    pairs: pd.DataFrame | None

    @property
    def recipe(self) -> dict[str, Any]:
        return flat_recipe(self.manifest["recipe"])

    @property
    def many(self) -> bool:
        """Whether an image may have several labels."""
        return self.recipe.get("task") == "multilabel"

    @cached_property
    def split(self) -> str:
        """The split that the headline number comes from."""
        return headline_split(self.manifest["metrics"])

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The predictions of that split, with a column `right`."""
        rows = self.predictions[self.predictions["split"] == self.split].reset_index(drop=True)
        return rows.copy().assign(  # the copy consolidates a thousand class columns into one block
            right=rows["predicted"] == rows["label"]
        )

    @cached_property
    def numbers(self) -> SplitMetrics:
        """The metrics of `rows`, computed again, because the manifest of an older version may lack some of them."""
        task, metric = self.recipe.get("task", "single"), self.recipe.get("metric", "auto")
        return evaluate(self.rows, task, metric)[self.split]

    @cached_property
    def classes(self) -> list[str]:
        return [name.removeprefix("p_") for name in map(str, self.predictions) if name.startswith("p_")]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probabilities of `rows`, images x classes."""
        return self.rows[[f"p_{name}" for name in self.classes]].to_numpy()


def read_run(folder: Path) -> RunFiles:
    """Read the folder of a finished run.

    Raises:
        OutputError: if the folder holds no finished run, or a file of it cannot be read.
        DataError: if its prediction table is invalid.
    """
    manifest = read_manifest(folder)
    if missing := [key for key in REQUIRED_KEYS if key not in manifest]:
        raise OutputError(
            f"{folder / 'manifest.json'} lacks {quoted_list(missing)}. Pass the folder of a finished run."
        )
    findings, pairs = folder / "audit" / "findings.json", folder / "audit" / "pairs.csv"
    run = RunFiles(
        folder,
        manifest,
        read_predictions(folder),
        read_history(folder / "history.csv"),
        read_run_table(folder / "lr_find.csv") if (folder / "lr_find.csv").exists() else None,
        read_run_table(folder / "split.csv", as_text=True),
        read_json(findings)["findings"] if findings.exists() else [],
        read_run_table(pairs, as_text=True) if pairs.exists() else None,
    )
    if run.rows.empty:
        raise DataError(f"{folder / 'predictions.csv'} has no row of the split '{run.split}'. Run it again.")
    used = pd.concat([run.rows["label"], run.rows["predicted"]])
    if unknown := order_classes({*explode_labels(used, run.recipe.get("task", "single")).dropna()} - {*run.classes}):
        raise DataError(
            f"{folder / 'predictions.csv'} has labels without a column p_LABEL: {quoted_list(unknown)}. Run it again."
        )
    return run


def read_run_table(path: Path, as_text: bool = False) -> pd.DataFrame:
    """Read a table of the run folder; with `as_text` values are kept as text, so that a class may be called NA."""
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False} if as_text else {}
    try:
        check_regular(path, MAX_TABLE_BYTES)
        return pd.read_csv(path, **options)
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}. Pass the folder of a finished run.") from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:120]
        raise OutputError(f"{path} is not a complete table: {reason}. Run it again.") from None


def read_history(path: Path) -> pd.DataFrame | None:
    """Read the epochs of a run; None if the file is missing or is not what the run wrote."""
    try:
        epochs = read_run_table(path)
    except OutputError:
        return None
    numbers = {"epoch", "stage", "lr", "train_loss", "valid_loss"}
    is_complete = numbers | {"best"} <= {*epochs} and selection_column(epochs) and epochs["best"].dtype == bool
    return epochs if is_complete and len(epochs) else None


def selection_column(epochs: pd.DataFrame) -> str:
    """Return the column of the metric that selected the best epoch: the first after the loss."""
    return next((name for name in map(str, epochs) if name.startswith("valid_") and name != "valid_loss"), "")


@dataclass(frozen=True)
class ImageCard:
    """An image as the page shows it."""

    image: Image.Image | None
    alt: str
    """Alternative text for screen readers."""
    caption: list[str]
    """Lines below the image."""
    path: str
    wrong: bool = False
    heatmap: Image.Image | None = None
    """The image with its Grad-CAM laid over it."""
    heatmap_alt: str = ""


def save_sheet(run: RunFiles, name: str, cards: Sequence[ImageCard]) -> None:
    """Save the cards as a picture in the run folder; a Grad-CAM is next to its image."""
    images = []
    for card in cards:
        images.append((card.image, "\n".join(card.caption)))
        if card.heatmap is not None:
            images.append((card.heatmap, ""))
    if images:
        write_atomic(run.folder / f"{name}.png", figures.image_sheet(images))


def save_figure(run: RunFiles, name: str, figure: Figure, description: str) -> Markup:
    """Save the figure as a PNG in the run folder, and return it as SVG for the page."""
    write_atomic(run.folder / f"{name}.png", figures.png(figure))
    return Markup(figures.svg(figure, name, description))  # matplotlib and `svg` escape all text in it


def headline_section(run: RunFiles, _: ThumbnailCache) -> dict[str, Any]:
    """Return the headline number, its interval, and the numbers to compare it with."""
    kind: Literal["plain", "tta"] = "tta" if run.recipe["tta"] else "plain"
    metrics = run.manifest["metrics"][run.split][kind]
    low, high = metrics["interval"]
    return {
        "title": page_title(run),
        "metrics": metrics,
        "headline": named_headline(run.manifest, run.split, kind),
        "digits": interval_digits(metrics["interval"]),
        "half": (high - low) / 2,
        "kind": kind,
        "images": len(run.rows),
        "sentences": explain(run.numbers)[1:],  # the first repeats the headline
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
        "training": None if run.epochs is None else save_training_figure(run, run.epochs),
        "search": None,
    }
    if run.sweeps is not None:
        searched = [f"stage {n}: {format_lr(stages[n - 1]['lr'])}" for n in sorted(run.sweeps["stage"].unique())]
        description = f"Loss against learning rate; used: {', '.join(searched) or 'the rates of the recipe'}"
        figure = figures.lr_find_figure(run.sweeps, stages)
        context["search"] = save_figure(run, "lr_find", figure, description)
    return context


def save_training_figure(run: RunFiles, epochs: pd.DataFrame) -> Markup:
    """Save and return the training curves."""
    metric = selection_column(epochs)
    name, count = metric.removeprefix("valid_").replace("_", " "), format_count(len(epochs), "epoch")
    description = f"Losses, {name} and learning rate over {count}"
    for row in epochs[epochs["best"]].iloc[-1:].to_dict("records"):
        value = selection_metric(metric).text(row[metric])
        description += (
            f"; the best was epoch {row['epoch']} of stage {row['stage']} with {value} on the validation split"
        )
    return save_figure(run, "training", figures.training_figure(epochs), description)


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


def pair_cards(
    pairs: pd.DataFrame, images: ThumbnailCache
) -> Iterable[tuple[str, int, list[tuple[ImageCard, ImageCard]]]]:
    """Yield for each kind of pair its title, the number of pairs, and the cards of the first of them."""
    near = pairs[pairs["kind"] == "near"].sort_values("distance", key=lambda bits: bits.astype(int), kind="stable")
    kinds = {
        "Leaks: duplicates across splits": pairs[pairs["leak"] == "True"],
        "Conflicts: duplicates with different labels": pairs[pairs["conflict"] == "True"],
        "Near-duplicates": near,
    }
    for title, rows in kinds.items():
        if len(rows):
            cards = [
                (
                    image_card(images, row["path"], row["label"], "an image of", row["split"]),
                    image_card(images, row["other"], row["other_label"], "its duplicate, labeled", row["other_split"]),
                )
                for row in rows.head(PAIR_COUNT).to_dict("records")
            ]
            yield title, len(rows), cards


def image_card(images: ThumbnailCache, path: str, label: str, prefix: str, split: str = "") -> ImageCard:
    """Return the card of an image with its label; `prefix` is the alternative text before the label."""
    caption = [label or "no label", *([split] if split else [])]
    return ImageCard(images.get(path), f"{prefix} {label or 'no label'}", caption, path)


def quality_section(run: RunFiles, _: ThumbnailCache) -> dict[str, Any]:
    """Return the confusions, the metrics by class, and the calibration."""
    tta = run.numbers["tta"]
    bins = pd.DataFrame(tta["reliability"]).dropna(subset="confidence")
    description = (
        f"Accuracy against confidence in {BIN_COUNT} bins; on average they differ by {100 * tta['ece']:.1f} points"
    )
    context: dict[str, Any] = {
        "confusion": None,
        "confused": tta.get("confused", [])[:CONFUSION_COUNT],
        "large": len(run.classes) > figures.MAX_NAMED_CLASSES,
        "bins": bins.to_dict("records"),
        "ece": tta["ece"],
        "overconfidence": float(np.average(bins["confidence"] - bins["accuracy"], weights=bins["images"])),
        "temperature": run.manifest.get("calibration", {}).get(run.split, {}).get("words", ""),
        "reliability": save_figure(run, "reliability", figures.reliability_figure(bins), description),
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
        wrong = matrix - np.diag(matrix.diagonal())
        top_errors = [f"{run.classes[row.argmax()]} ({row.max()})" if row.any() else "" for row in wrong]
    classes = zip(tta["classes"].items(), top_errors, strict=True)
    context["thresholds"] = run.manifest.get("thresholds", {})
    return context | {"per_class": [{"name": name, "top_error": error, **row} for (name, row), error in classes]}


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
    random = rows.sample(min(RANDOM_COUNT, len(rows)), random_state=int(run.recipe.get("seed", 0)) % 2**32)
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
    return {**sheets, "no_gradcam": no_gradcam, "suspected": len(suspects), "held_out": len(run.predictions)}


def suspect_card(images: ThumbnailCache, row: dict[Any, Any]) -> ImageCard:
    """Return the card of an image whose label may be wrong."""
    probability = percent(row["suggested_probability"])
    caption = [f"label: {row['label']}", f"suggested: {row['suggested']} ({probability})", row["split"]]
    alt = f"an image labeled {row['label']}, possibly of {row['suggested']}"
    return ImageCard(images.get(row["path"]), alt, caption, row["path"], wrong=True)


def prediction_card(
    run: RunFiles, images: ThumbnailCache, row: dict[Any, Any], heatmap: np.ndarray | None
) -> ImageCard:
    """Return the card of a prediction, with its Grad-CAM where there is one."""
    truth, predicted = row["label"] or "no label", row["predicted"] or "no label"
    confidence = percent(row["confidence"])
    image = images.get(row["path"])
    overlay = None
    if heatmap is not None and (original := images.read(row["path"], THUMBNAIL_SIZE)) is not None:
        square = resize_image(original, THUMBNAIL_SIZE, run.recipe["resize"])
        overlay = figures.overlay_heatmap(square, heatmap, THUMBNAIL_SIZE)
    alt = f"an image of {truth}, predicted {predicted} with confidence {confidence}"
    caption = [f"truth: {truth}", f"predicted: {predicted}", f"confidence: {confidence}"]
    explained = run.classes[gradcam_class(run, row)]
    heatmap_alt = f"Grad-CAM: the evidence for {explained} in it"
    return ImageCard(image, alt, caption, row["path"], not row["right"], overlay, heatmap_alt)


def gradcam_class(run: RunFiles, row: dict[Any, Any]) -> int:
    """Return the class whose evidence a Grad-CAM shows: the predicted one.

    With many labels, it is the most confident wrong decision or, where all are correct, the least confident one.
    """
    if not run.many:
        return run.classes.index(row["predicted"])
    probabilities = np.array([row[f"p_{name}"] for name in run.classes])
    truth, predicted = (label_matrix(pd.Series([row[column]]), run.classes)[0] for column in ("label", "predicted"))
    confidence = np.where(predicted, probabilities, 1 - probabilities)
    wrong = truth != predicted
    return int(np.where(wrong, confidence, -1).argmax() if wrong.any() else confidence.argmin())


def gradcam_maps(run: RunFiles, shown: pd.DataFrame, images: ThumbnailCache) -> tuple[list[np.ndarray | None], str]:
    """Return the Grad-CAM heatmap of each image, or None for it, and the reason where there are none at all.

    The heatmaps are cached in `gradcam.npz`, so that writing the report again needs no network and a tenth of the
    memory.
    """
    heatmaps: list[np.ndarray | None] = [None] * len(shown)
    rows = shown.to_dict("records")
    readable = [at for at, row in enumerate(rows) if images.get(row["path"]) is not None]
    if not readable:
        return heatmaps, "the images are no longer available"
    if not (run.folder / "model" / "model.json").exists():
        return heatmaps, "the run folder has no model"
    paths, classes = [rows[at]["path"] for at in readable], [gradcam_class(run, rows[at]) for at in readable]
    key = json.dumps([sha256_of(run.folder / "model" / "model.safetensors"), paths, classes])
    maps = load_saved_maps(run.folder / "gradcam.npz", key)
    if maps is None:
        maps, facts = compute_maps(run, paths, classes)
        if facts.get("transforms"):
            return heatmaps, "not available where images go through transforms of your own"
        if maps is None:
            where = f"{facts['arch']} at {facts['image_size']} pixels"
            return heatmaps, f"not available for {where}, whose last layers keep no spatial map"
        buffer = io.BytesIO()
        np.savez_compressed(buffer, key=key, places=maps)
        write_atomic(run.folder / "gradcam.npz", buffer.getvalue())
    for at, heatmap in zip(readable, maps, strict=True):
        heatmaps[at] = heatmap
    return heatmaps, ""


def load_saved_maps(path: Path, key: str) -> np.ndarray | None:
    """Return the heatmaps of an earlier report if they are of the same network, images and classes, else None."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            return saved["places"] if str(saved["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def compute_maps(
    run: RunFiles, paths: Sequence[str], classes: Sequence[int]
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return the Grad-CAM heatmaps of the images for these classes, and the facts of the network."""
    import torch

    from baseline.evaluation.gradcam import grad_cam
    from baseline.vision.model_folder import load_network
    from baseline.vision.rng import preserve_rng_state

    with preserve_rng_state():  # building a network draws random weights before it loads its own
        model, facts = load_network(run.folder)
    if facts.get("transforms"):  # which a model folder cannot hold
        return None, facts
    size, resize = facts["image_size"], facts["resize"]
    squares = [resize_image(load_image(path, size, facts["value_range"]), size, resize) for path in paths]
    inputs = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(facts[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return grad_cam(model, (inputs - mean) / std, classes), facts


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
