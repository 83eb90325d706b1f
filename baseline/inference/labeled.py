"""Evaluate a model on labeled images that it was not trained on: `Model.evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from baseline.data.labels import explode_labels, order_classes, split_labels
from baseline.data.table import SPLITS, summarize_source, table_from_settings
from baseline.errors import DataError, RecipeError, closest_name, format_count, quoted_list
from baseline.evaluation.calibration import calibrate
from baseline.evaluation.details.named_metric import metric_interval
from baseline.evaluation.metrics import evaluate
from baseline.evaluation.table import class_columns, group_codes, table_predictions
from baseline.metrics.registry import METRICS, check_metric, find_metric
from baseline.progress import Progress
from baseline.recipe.choose import apply_changes, choose_recipe

if TYPE_CHECKING:
    from baseline.inference.model import Ensemble, Model

__all__ = ["Evaluation", "Unknown", "evaluate_model", "read_labeled", "score_metrics"]

Unknown = Literal["error", "drop"]
"""What images do whose labels the model does not know: cause an error, or be left out."""

TOP_K = (3, 5)
"""K of the top-K metrics that are computed where there are more classes than that."""


@dataclass(frozen=True)
class Evaluation:
    """A model's predictions for labeled images, and its metrics there."""

    predictions: pd.DataFrame
    """One row per image: `path`, `label`, `split` (always `"test"`), `group` where there are groups, `predicted`,
    `confidence`, `loss`, and `p_CLASS` for each class: calibrated, as `Model.predict` returns them."""
    metrics: dict[str, Any]
    """`images`, `groups`, `majority`, and what `baseline.evaluate` returns under `"tta"`: by class, confusions, ..."""
    scores: dict[str, dict[str, Any]]
    """By name of each metric that fits the classes: `value` and `interval` (95% confidence interval), None where it
    is undefined."""
    calibration: dict[str, Any]
    """`temperature`, and `ece` and `loss` on these images, each as (before, after) scaling; empty without one."""
    left_out: pd.DataFrame
    """`path`, `label` and `reason` of each image that was left out."""
    notes: list[str]
    """What has to be known about the images, a sentence each: classes without images, images left out."""


def read_labeled(
    images: Any, *, task: str, splits: Sequence[str] = (), progress: Progress | None = None, **settings: Any
) -> pd.DataFrame:
    """Return the image table of labeled images in any form that `make_baseline` reads.

    Args:
        task: the model's, `"single"` or `"multilabel"`.
        splits: only the images of these splits; all by default.
        **settings: fields of `DataSettings`, such as `label_col`.

    Raises:
        DataError: if there are no such images.
    """
    progress = progress or Progress()
    if unknown := [name for name in splits if name not in SPLITS]:
        raise RecipeError(f"There is no split {quoted_list(unknown)}. Known: {', '.join(SPLITS)}.")
    recipe, images = choose_recipe(images, "default")
    recipe, _ = apply_changes(recipe, None, {"preset": "standard", **settings, "task": task})
    table = table_from_settings(images, recipe.data, progress, splits=())
    for line in summarize_source(table):
        progress.log(line)
    if not splits:
        return table
    selected = table[table["split"].isin(splits)].reset_index(drop=True)
    if selected.empty:
        raise DataError(f"None of the {len(table):,} images is in {quoted_list(splits)}. Leave out splits.")
    return selected


def evaluate_model(
    model: Model | Ensemble,
    table: pd.DataFrame,
    *,
    tta: bool = True,
    unknown: Unknown = "error",
    metric: str = "auto",
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict the images of a table and measure the predictions.

    Args:
        table: an image table; see `read_labeled`.
        tta: average over the views of the run's evaluation (test-time augmentation).
        unknown: what images do whose labels the model does not know.
        metric: a metric to add, such as `"top_2"`; the others are computed in any case.

    Raises:
        DataError: if labels are unknown, or no image is left.
        RecipeError: if the metric does not exist or fit the classes.

    >>> evaluate_model(model, read_labeled("new/", task="single")).scores["accuracy"]        # doctest: +SKIP
    {'value': 0.91, 'interval': (0.87, 0.94)}
    """
    progress, task = progress or Progress(), "multilabel" if model.multilabel else "single"
    names = fitting_metrics(model.classes, task, metric)
    known, unknown_rows = split_unknown(table, model, unknown)
    predictions, unreadable = predict_labeled(model, known, tta, batch_size, progress)
    left_out = pd.concat([unknown_rows, unreadable], ignore_index=True)
    notes = [*describe_left_out(left_out, len(table)), *describe_missing(predictions, model.classes, task)]
    for note in notes:
        progress.log(note)
    numbers = evaluate(predictions, task)["test"]
    metrics: dict[str, Any] = {key: value for key, value in numbers.items() if key != "tta"} | dict(numbers["tta"])
    scores = score_metrics(predictions, task, names)
    return Evaluation(predictions, metrics, scores, measure_calibration(model, predictions), left_out, notes)


def fitting_metrics(classes: Sequence[str], task: str, extra: str = "auto") -> list[str]:
    """Return the names of the metrics that fit the classes, and of one more.

    Raises:
        RecipeError: if the extra one does not exist or fit.

    >>> fitting_metrics(["0", "1"], "single")[-2:], fitting_metrics(list("abcd"), "multilabel", "map_at_2")[-2:]
    (['average_precision', 'quadratic_kappa'], ['map_at_3', 'map_at_2'])
    """
    multilabel = task == "multilabel"
    names = [f"{metric.name[:-1]}{k}" if metric.name.endswith("_k") else metric.name for metric in METRICS
             for k in (TOP_K if metric.name.endswith("_k") else (0,))]  # fmt: skip
    fitting = [name for name in names if fits(name, classes, multilabel=multilabel)]
    if extra == "auto":
        return fitting
    try:
        check_metric(extra, classes, multilabel=multilabel)
    except KeyError:
        raise RecipeError(f"{closest_name('metric', extra, names)} Known: {', '.join(names)}.") from None
    return list(dict.fromkeys([*fitting, extra]))


def fits(metric: str, classes: Sequence[str], *, multilabel: bool) -> bool:
    """Whether a metric can be computed for these classes."""
    try:
        check_metric(metric, classes, multilabel=multilabel)
    except RecipeError:
        return False
    return True


def split_unknown(table: pd.DataFrame, model: Model | Ensemble, unknown: Unknown) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split a table into the images whose labels the model knows, and the others with the reason.

    Raises:
        DataError: if there are others and `unknown` is `"error"`, or all are.
    """
    if unknown not in ("error", "drop"):
        raise DataError(f"unknown is {unknown!r}. Pass 'error' or 'drop'.")
    labels = table["label"].map(split_labels) if model.multilabel else table["label"].map(lambda label: [label])
    names = labels.map(lambda labels: [name for name in labels if name not in model.classes])
    is_unknown = names.map(bool).to_numpy(bool)
    counts = names.explode().dropna().value_counts()
    if len(counts) and (unknown == "error" or is_unknown.all()):
        listed = ", ".join(f"'{name}' ({format_count(count, 'image')})" for name, count in counts.head(5).items())
        more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
        hint = "" if is_unknown.all() else " Rename them, or pass --unknown drop to leave these images out."
        raise DataError(
            f"The model does not know {listed}{more}. Its classes: {quoted_list(model.classes, 12)}."
            f"{hint or ' Pass images of these.'}"
        )
    others = table.loc[is_unknown, ["path", "label"]].assign(reason="a label that the model does not know")
    return table[~is_unknown].reset_index(drop=True), others.reset_index(drop=True)


def predict_labeled(
    model: Model | Ensemble, table: pd.DataFrame, tta: bool, batch_size: int, progress: Progress
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the prediction table of the readable images, and `path`, `label` and `reason` of the others.

    Raises:
        DataError: if no image can be read.
    """
    batches = []
    with progress.bar("predicting", len(table), "images") as bar:
        for batch in model.predict_batches(
            table["path"], tta=tta, batch_size=batch_size, optimize=len(table) >= batch_size
        ):
            batches.append(batch)
            bar.step(len(batch.images))
    errors = np.array([error for batch in batches for error in batch.errors], object)
    readable = errors == ""
    if not readable.any():
        raise DataError(f"None of the {len(table):,} images can be read, first {table['path'].iloc[0]}: {errors[0]}.")
    columns = ["path", "label", *(["group"] if "group" in table and table["group"].notna().any() else [])]
    rows = table.loc[readable, columns].reset_index(drop=True)
    rows.insert(2, "split", "test")
    predicted = np.array([label for batch in batches for label in batch.predicted], object)[readable]
    probabilities = np.concatenate([batch.probabilities for batch in batches])[readable]
    rows = rows.assign(predicted=predicted, confidence=0.0, loss=0.0)
    by_class = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in model.classes])
    result = pd.concat([rows, by_class], axis=1)
    unreadable = table.loc[~readable, ["path", "label"]].assign(reason=[f"unreadable: {e}" for e in errors[~readable]])
    # fills in confidence and loss; the temperature was applied already
    return calibrate(result, 1.0, "multilabel" if model.multilabel else "single"), unreadable


def describe_left_out(left_out: pd.DataFrame, images: int) -> Iterator[str]:
    """Yield a sentence for each reason why images were left out."""
    for reason, rows in left_out.groupby(left_out["reason"].str.split(":").str[0], sort=False):
        first = f"{Path(rows['path'].iloc[0]).name} ('{rows['label'].iloc[0]}')"
        yield f"left out: {len(rows):,} of {format_count(images, 'image')}: {reason}, first {first}"


def describe_missing(predictions: pd.DataFrame, classes: Sequence[str], task: str) -> Iterator[str]:
    """Yield a sentence about the classes without images, if there are any."""
    present = {*explode_labels(predictions["label"], task).dropna()}
    if missing := order_classes({*classes} - present):
        one = len(missing) == 1
        subject, them = ("its recall is", "it") if one else ("their recall is", "them")
        yield f"no image of {quoted_list(missing)}: {subject} undefined, and means over the classes leave {them} out"


def score_metrics(predictions: pd.DataFrame, task: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the value and the 95% confidence interval of each metric of a prediction table, None if undefined."""
    arrays, groups = table_predictions(predictions, class_columns(predictions), task), group_codes(predictions)
    scores = {}
    for name in names:
        metric = find_metric(name)
        if metric.probabilities and not arrays.has_probabilities:
            continue
        measured = metric.measure(arrays)
        value = None if np.isnan(measured.value) else float(measured.value)
        scores[name] = {"value": value, "interval": metric_interval(measured, groups)}
    return scores


def measure_calibration(model: Model | Ensemble, predictions: pd.DataFrame) -> dict[str, Any]:
    """Return the model's temperature, and calibration error and log loss before and after scaling with it."""
    temperature = model.members[0].config["temperature"]
    if len(model.members) > 1 or not temperature:
        return {}
    task = "multilabel" if model.multilabel else "single"
    plain = calibrate(predictions, 1 / temperature, task)
    before, after = (evaluate(table, task)["test"]["tta"] for table in (plain, predictions))
    report: Mapping[str, Any] = {name: (before[name], after[name]) for name in ("ece", "loss")}
    return {"temperature": temperature, **report}
