"""Evaluate a model on labeled images that it was not trained on: `Model.evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from baseline.data.labels import SEPARATOR, explode_labels, order_classes, split_labels
from baseline.data.table import SPLITS, summarize_source, table_from_settings
from baseline.errors import DataError, RecipeError, closest_name, format_count, quoted_list
from baseline.evaluation.calibration import calibrate
from baseline.evaluation.details.named_metric import metric_interval
from baseline.evaluation.intervals import wilson_interval
from baseline.evaluation.metrics import evaluate
from baseline.evaluation.table import class_columns, group_codes, probability_matrix, table_predictions
from baseline.inference import DEFAULT_TTA
from baseline.inference.batch import resolve_sets
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
    unlike: dict[str, Any]
    """With `reject_unlike`: `rate`, `rejected` (number of images), `accuracy` of the others with its `interval`, and if
    there are images of unknown labels, `unknown`: their number, `rejected`, and `auroc` against known ones."""
    sets: dict[str, Any]
    """With `coverage`: `coverage` (as asked), `covered` (fraction of images whose set contains the label) with its
    `interval`, `mean_size`, and `single` (fraction of sets of one class)."""
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
    tta: bool = DEFAULT_TTA,
    unknown: Unknown = "error",
    metric: str = "auto",
    reject_unlike: float = 0.0,
    coverage: float = 0.0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict the images of a table and measure the predictions.

    Args:
        table: an image table; see `read_labeled`.
        tta: average over the views of the run's evaluation (test-time augmentation).
        metric: a metric to add, such as `"top_2"`; the others are computed in any case.
        reject_unlike: share of images like the valid ones that are rejected as unlike the training images; the
            predictions get a column `unlike`. 0 for none.
        coverage: rate at which sets of classes are to contain the true one; the predictions get a column `set`.

    Raises:
        DataError: if labels are unknown, or no image is left.
        RecipeError: if the metric does not exist or fit the classes, or the model has too few valid images for
            `reject_unlike` or `coverage`.
        OutputError: if the model folder has no `reference.safetensors` for these two.

    >>> evaluate_model(model, read_labeled("new/", task="single")).scores["accuracy"]        # doctest: +SKIP
    {'value': 0.91, 'interval': (0.87, 0.94)}
    """
    progress, task = progress or Progress(), "multilabel" if model.multilabel else "single"
    names = fitting_metrics(model.classes, task, metric)
    threshold = resolve_sets(model, coverage, tta, progress) if coverage else 0.0
    if reject_unlike:
        model.reference.check_rate(reject_unlike)
    known, unknown_rows = split_unknown(table, model, unknown)
    predict = partial(predict_labeled, model, tta=tta, batch_size=batch_size, unlike=reject_unlike > 0)
    predictions, unreadable = predict(known, progress=progress)
    if predictions.empty:
        raise DataError(f"None of the {len(known):,} images can be read, first {unreadable['reason'].iloc[0]}.")
    left_out = pd.concat([unknown_rows, unreadable], ignore_index=True)
    notes = [*describe_left_out(left_out, len(table)), *describe_missing(predictions, model.classes, task)]
    unlike: dict[str, Any] = {}
    sets: dict[str, Any] = {}
    if reject_unlike:
        others = predict(unknown_rows, progress=progress)[0]["unlike"] if len(unknown_rows) else None
        unlike = measure_rejection(predictions, others, reject_unlike)
        notes.append(describe_rejection(unlike, len(predictions)))
    if coverage:
        predictions, sets = add_sets(predictions, model.classes, threshold, coverage)
        notes.append(describe_sets(sets))
    for note in notes:
        progress.log(note)
    numbers = evaluate(predictions, task)["test"]
    metrics: dict[str, Any] = {key: value for key, value in numbers.items() if key != "tta"} | dict(numbers["tta"])
    scores = score_metrics(predictions, task, names)
    calibration = measure_calibration(model, predictions)
    return Evaluation(predictions, metrics, scores, calibration, left_out, unlike, sets, notes)


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
    model: Model | Ensemble, table: pd.DataFrame, *, tta: bool, batch_size: int, unlike: bool, progress: Progress
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the prediction table of the readable images, and `path`, `label` and `reason` of the others.

    Images of labels that the model does not know get an empty loss.
    """
    batches = []
    options: dict[str, Any] = {"tta": tta, "batch_size": batch_size, "unlike": unlike}
    with progress.bar("predicting", len(table), "images") as bar:
        for batch in model.predict_batches(table["path"], optimize=len(table) >= batch_size, **options):
            batches.append(batch)
            bar.step(len(batch.images))
    errors = np.array([error for batch in batches for error in batch.errors], object)
    readable = errors == ""
    columns = ["path", "label", *(["group"] if "group" in table and table["group"].notna().any() else [])]
    rows = table.loc[readable, columns].reset_index(drop=True)
    rows.insert(2, "split", "test")
    predicted = np.array([label for batch in batches for label in batch.predicted], object)[readable]
    probabilities = np.concatenate([batch.probabilities for batch in batches])[readable]
    rows = rows.assign(predicted=predicted, confidence=0.0, loss=0.0)
    if unlike:
        rows["unlike"] = np.concatenate([batch.unlike for batch in batches])[readable]
    by_class = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in model.classes])
    result = pd.concat([rows, by_class], axis=1)
    unreadable = table.loc[~readable, ["path", "label"]].assign(reason=[f"unreadable: {e}" for e in errors[~readable]])
    if result.empty or not (model.multilabel or {*result["label"]} <= {*model.classes}):
        return result, unreadable
    # fills in confidence and loss; the temperature was applied already
    return calibrate(result, 1.0, "multilabel" if model.multilabel else "single"), unreadable


def measure_rejection(predictions: pd.DataFrame, unknown: pd.Series | None, rate: float) -> dict[str, Any]:
    """Return what rejecting images as unlike the training images does; see `Evaluation.unlike`."""
    rejected = (predictions["unlike"] > 1 - rate).to_numpy(bool)
    accepted = predictions[~rejected]
    result: dict[str, Any] = {"rate": rate, "rejected": int(rejected.sum()), "accuracy": None, "interval": None}
    if len(accepted):
        hits = int((accepted["predicted"] == accepted["label"]).sum())
        result |= {"accuracy": hits / len(accepted), "interval": wilson_interval(hits, len(accepted))}
    if unknown is not None and len(unknown):
        result["unknown"] = {
            "images": len(unknown),
            "rejected": int((unknown > 1 - rate).sum()),
            "auroc": auroc(predictions["unlike"].to_numpy(float), unknown.to_numpy(float)),
        }
    return result


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Return the probability that an unknown image has a higher value than a known image; ties count half.

    >>> auroc(np.array([0.1, 0.5]), np.array([0.5, 0.9]))
    0.875
    """
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(unknown, known).statistic / (len(unknown) * len(known)))


def describe_rejection(unlike: Mapping[str, Any], images: int) -> str:
    """Return a sentence about the images that were rejected."""
    text = f"unlike the training images: {unlike['rejected']:,} of {format_count(images, 'image')} rejected"
    if unlike["accuracy"] is not None:
        low, high = unlike["interval"]
        text += f"; accuracy of the others {unlike['accuracy']:.1%} (95% confidence interval {low:.1%} to {high:.1%})"
    if unknown := unlike.get("unknown"):
        count = f"{unknown['rejected']:,} of {unknown['images']:,}"
        text += f"; of images with unknown labels {count}, AUROC {unknown['auroc']:.3f}"
    return text


def add_sets(
    predictions: pd.DataFrame, classes: Sequence[str], threshold: float, coverage: float
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the predictions with a column `set`, and how often the sets contain the label; see `Evaluation.sets`."""
    from baseline.inference.reference import class_sets

    sets = class_sets(probability_matrix(predictions, [*classes]), threshold, classes)
    hits = sum(label in names for label, names in zip(predictions["label"], sets, strict=True))
    sizes = np.array([len(names) for names in sets])
    report = {"coverage": coverage, "covered": hits / len(sets), "interval": wilson_interval(hits, len(sets))}
    report |= {"mean_size": float(sizes.mean()), "single": float((sizes == 1).mean())}
    joined = [SEPARATOR.join(names) for names in sets]
    position = list(predictions.columns).index("loss") + 1
    result = predictions.copy()
    result.insert(position, "set", joined)
    return result, report


def describe_sets(sets: Mapping[str, Any]) -> str:
    """Return a sentence about how often sets of classes contain the label."""
    low, high = sets["interval"]
    return (
        f"sets for a coverage of {100 * sets['coverage']:.4g}% contain the label of {sets['covered']:.1%} of images "
        f"(95% confidence interval {low:.1%} to {high:.1%}); {sets['mean_size']:.2f} classes on average, one class in "
        f"{sets['single']:.1%}"
    )


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
