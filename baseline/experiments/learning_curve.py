"""Learning curve experiment: accuracy by the number of training images, and what more of them should gain.

All sizes are evaluated on the same images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from baseline.data.split import split_to_csv
from baseline.errors import DataError, RecipeError, unknown_name
from baseline.evaluation.metric_test import measure_metric
from baseline.experiments.curve_errors import ErrorRates, MetricErrors, error_of
from baseline.experiments.metric_comparison import metric_besides_accuracy, read_split_predictions
from baseline.experiments.power_law import fit_power_law
from baseline.experiments.series import refuse_own_parts
from baseline.experiments.variants import (
    ARCH_INDEPENDENT,
    PROBES,
    VARIANTS,
    prepare_architectures,
    resume_hint_on_interrupt,
)
from baseline.files import to_csv, to_json, write_atomic
from baseline.metrics.registry import find_metric
from baseline.parallel.executor import Job, get_executor
from baseline.progress import ConsoleProgress
from baseline.recipe.choose import choose_recipe
from baseline.runs.folder import create_run_folder, run_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from baseline.experiments.curve_errors import Errors
    from baseline.experiments.power_law import PowerLaw
    from baseline.experiments.variants import Architecture
    from baseline.metrics.registry import Metric
    from baseline.parallel.executor import Executor
    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe

__all__ = ["LearningCurve", "run_learning_curve"]


SMALLEST_SIZE = 5
"""Smallest number of training images per class; the sizes double from it."""

MIN_SIZES = 3
"""Minimum number of sizes that a power law is fitted to."""

MIN_GROUPS = 16
"""Minimum number of groups for an analysis of their redundancy."""

MIN_REDUNDANCY_SEEDS = 5
"""Minimum number of samples that each accuracy in that analysis is averaged over."""

CURVE_VARIANTS = tuple(name for name in VARIANTS if name not in (*ARCH_INDEPENDENT, "tta"))


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy by the number of training images."""

    folder: Path
    """Contains `curve.csv`, `curve.json`, `curve.png`, `curve.html`, `split.csv` and the run folders."""
    split: str
    table: pd.DataFrame
    """One row per training: `variant, size` (images per class), `seed` (of the sample of images), `images` (for
    training), `accuracy` (0-1, without TTA) and `run` (its folder; empty if no network was trained)."""
    fits: dict[str, dict[str, Any]]
    """By variant: `floor, scale, exponent`; `doubled`: number of images, expected accuracy (or the recipe's metric, by
    its name) and interval of the gain, positive where it is an improvement; `checked`: the same with all images, as
    extrapolated from at most half of them (an interval) and as measured. Only `words` where no law can be fitted,
    because the metric is undefined at too many sizes."""
    redundancy: dict[str, Any]
    """If images have groups: accuracies with a fraction of every group's images, and with all images of a fraction of
    the groups."""
    sentences: list[str]
    metric: Metric | None = None
    """The metric that the recipe names, if it is not the accuracy: `table` then has a column of its name, NaN where it
    is undefined, and power laws are fitted to it."""

    def __repr__(self) -> str:
        return f"LearningCurve({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the forecast, the chart, the other sentences, and the page."""
        from baseline.notebook import card
        from baseline.report import figures

        title = f"{curve_title(self)} by training images"
        chart = figures.svg(draw_curve(self), figures.unique_prefix(self.folder), title)
        first, *others = self.sentences
        return card(first, [chart], others, [self.folder / "curve.html", self.folder / "curve.csv"])


def run_learning_curve(
    images: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    sizes: Sequence[int] = (),
    seeds: int = 3,
    variants: Sequence[str] = ("logistic", "groups"),
    out: str | Path | None = None,
    resume: bool = False,
    executor: str = "",
    progress: Progress | None = None,
    **changes: Any,
) -> LearningCurve:
    """Train on increasing numbers of images, and extrapolate what twice as many should gain.

    Training and validation images are subsampled alike, class by class; with the same seed, larger samples contain the
    smaller ones. With all images nothing is sampled, and the seed is that of the training alone.

    Args:
        images, recipe, changes: as for `make_baseline`.
        sizes: training images per class; 5, 10, 20 ... and all if empty.
        seeds: number of samples of images for each size.
        variants: what is trained; the names of `baseline ladder` except for `majority`, `tta` and `zeroshot`.
        out: output folder; `runs/curve-NAME-DATE-TIME` if not given.
        resume: keep the trainings that an interrupted curve in `out` has finished.
        executor: the executor that runs the trainings; see `run_seeds`. Variants that train no network run in this
            process, because their data is in memory.

    Raises:
        RecipeError: if a variant does not exist, there are fewer than three sizes, the recipe has a budget, or
            `executor` does not exist.
        DataError: if there are too few images for three sizes.
        OutputError: if `out` was started before and `resume` is false, or was started with other images or another
            recipe.

    >>> run_learning_curve("images/").sentences[0]                                         # doctest: +SKIP
    'logistic regression on pretrained features: doubling the training images to 4,044 should gain 0.4 to 1.9 points.'
    """
    refuse_own_parts("A learning curve", images, changes)
    if unknown := [name for name in variants if name not in CURVE_VARIANTS]:
        raise RecipeError(unknown_name("variant", unknown[0], CURVE_VARIANTS))
    if sizes and (len(set(sizes)) < MIN_SIZES or min(sizes) < 1):
        raise RecipeError(
            f"--sizes is {', '.join(map(str, sizes))}; a curve needs at least {MIN_SIZES} different sizes of 1 or more "
            "images per class."
        )
    if seeds < 1:
        raise RecipeError(f"--seeds is {seeds}; it must be 1 or more.")
    progress = progress or ConsoleProgress()
    (base_recipe, place), job_executor = choose_recipe(images, recipe), get_executor(executor, progress)
    with create_run_folder(out, f"curve-{run_name(place, base_recipe.name)}") as folder, job_executor:
        architecture = prepare_architectures(images, base_recipe, (), folder, progress, changes, resume=resume)[0]
        with resume_hint_on_interrupt(folder, progress):
            all_sizes = training_sizes(architecture.table, architecture.requested.data.task, sizes)
            plan = CurvePlan(architecture, all_sizes, seeds, tuple(variants), folder, progress)
            curve = plan.run(job_executor)
        write_curve_files(curve)
    return curve


@dataclass(frozen=True)
class CurvePlan:
    """The trainings of a learning curve."""

    architecture: Architecture
    sizes: list[int]
    """Training images per class; the last size takes all."""
    seeds: int
    variants: tuple[str, ...]
    folder: Path
    progress: Progress

    @property
    def split(self) -> str:
        """Split that all sizes are evaluated on."""
        return "test" if (self.architecture.table["split"] == "test").any() else "valid"

    @property
    def metric(self) -> Metric | None:
        """The metric that the recipe names, if it is not the accuracy."""
        return metric_besides_accuracy({"recipe": self.architecture.recipe.as_dict()})

    @cached_property
    def label(self) -> pd.Series:
        """Label that each image is counted under: its rarest one if it has several."""
        return primary_labels(self.architecture.table, self.architecture.recipe.data.task)

    def run(self, executor: Executor) -> LearningCurve:
        """Run all trainings and fit the power laws."""
        import pandas as pd

        trainings = [
            (variant, size, seed)
            for variant in self.variants
            for size in self.sizes
            for seed in range(self.seeds)
            # probes are deterministic, so on the same images another seed changes nothing
            if not (variant in PROBES and size == self.sizes[-1] and seed)
        ]
        titles = {
            (variant, size, seed): f"{number} of {len(trainings)}: {VARIANTS[variant]}, {size} images per class, "
            f"sample {seed + 1}"
            for number, (variant, size, seed) in enumerate(trainings, 1)
        }
        jobs = (self._job(titles[training], *training) for training in trainings)
        count = sum(variant not in PROBES for variant, _, _ in trainings)
        job_results = {job.description: predictions for job, predictions in executor.as_completed(jobs, count)}
        recipe = self.architecture.recipe
        rows: list[dict[str, Any]] = []
        measured: list[Any] = []
        for variant, size, seed in trainings:
            run = "" if variant in PROBES else str(self._run_folder(variant, size, seed))
            predictions = self._read_predictions(run) if run else job_results[titles[variant, size, seed]]
            hits = (predictions["predicted"] == predictions["label"]).to_numpy()
            metric = self.metric
            measured.append(measure_metric(predictions, metric, recipe.data.task) if metric else hits)
            value = {metric.name: measured[-1].value} if metric else {}
            images = int((self._sample(size, seed)["split"] == "train").sum())
            rows.append({"variant": variant, "size": size, "seed": seed, "images": images,
                         "accuracy": float(hits.mean()), **value, "run": run})  # fmt: skip
        table = pd.DataFrame(rows)
        fits = {
            variant: fit_variant(table[table["variant"] == variant], measured, self.metric) for variant in self.variants
        }
        redundancy = self._measure_redundancy()
        sentences = [f"{VARIANTS[variant]}: {line}" for variant in self.variants for line in fits[variant]["words"]]
        sentences += redundancy.get("words", [])
        return LearningCurve(self.folder, self.split, table, fits, redundancy, sentences, self.metric)

    def _sample(self, size: int, seed: int) -> pd.DataFrame:
        """Return the image table with `size` training images per class, and the same fraction of the validation images.

        All validation images are kept if the curve is evaluated on them. An image with several labels is counted under
        the rarest; every class keeps at least one image.
        """
        import pandas as pd

        from baseline.data.labels import explode_labels

        table, label = self.architecture.table, self.label
        priority = np.random.default_rng(seed).random(len(table))
        rank = table.assign(priority=priority).groupby([label, "split"])["priority"].rank(method="first")
        fraction = size / self.sizes[-1]
        sampled = (table["split"] == "test") | ((table["split"] == "train") & (rank <= size))
        labels = explode_labels(table.loc[table["split"] == "train", "label"], self.architecture.recipe.data.task)
        sampled[pd.Series(priority[labels.index], labels.index).groupby(labels.to_numpy()).idxmin()] = True
        valid = table["split"] == "valid"
        count = valid.groupby(label).transform("sum")
        sampled |= valid & ((rank <= np.ceil(count * fraction)) | (self.split == "valid"))
        return table[sampled]

    def _job(self, title: str, variant: str, size: int, seed: int) -> Job:
        """Return the job that trains a network into its run folder, or that returns a probe's hits."""
        if variant in PROBES:
            return Job(title, lambda progress: self._probe_predictions(variant, self._sample(size, seed)), local=True)
        table, run = self._sample(size, seed), self._run_folder(variant, size, seed)
        split_file = self.folder / "splits" / f"{run.name}.csv"
        write_atomic(split_file, split_to_csv(table))
        # batch size and steps are resolved anew, because they depend on the number of images
        recipe = self.architecture.recipe
        requested = recipe.changed(batch_size=self.architecture.requested.training.batch_size, seed=recipe.seed + seed)
        architecture = dataclasses.replace(self.architecture, table=table, split_file=split_file, requested=requested)
        return architecture.job(title, variant, run)

    def _run_folder(self, variant: str, size: int, seed: int) -> Path:
        return self.folder / variant / f"images-{size}-{seed + 1}"

    def _read_predictions(self, run: str) -> pd.DataFrame:
        """Return a run's predictions of the evaluation images, in the order of their paths."""
        return read_split_predictions(Path(run), self.split, tta=False, metric=self.metric).sort_values("path")

    def _probe_accuracy(self, sample: pd.DataFrame) -> float:
        """Return the accuracy of logistic regression on the sample."""
        predictions = self._probe_predictions("logistic", sample)
        return float((predictions["predicted"] == predictions["label"]).mean())

    def _probe_predictions(self, variant: str, sample: pd.DataFrame) -> pd.DataFrame:
        """Return the predictions of the evaluation images by a probe fitted to the sample, in path order."""
        from baseline.data.labels import classes_in
        from baseline.evaluation.table import prediction_table

        table, recipe = self.architecture.table, self.architecture.recipe
        rows = {name: sample.index[sample["split"] == name].to_numpy() for name in ("train", "valid")}
        evaluated = table[table["split"] == self.split].sort_values("path")
        probe = self.architecture.probe(variant, rows["train"], rows["valid"], evaluated.index.to_numpy())
        threshold = recipe.evaluation.threshold if recipe.data.task == "multilabel" else None
        classes = classes_in(table, recipe.data.task)
        return prediction_table(
            evaluated.reset_index(drop=True), probe.probabilities, probe.probabilities, classes, threshold
        )

    def _measure_redundancy(self) -> dict[str, Any]:
        """Compare a fraction of every group's images with all images of that fraction of the groups.

        The accuracies are those of logistic regression. An image without a group forms its own, as in the split.
        """
        from baseline.data.split import unit_ids

        table = self.architecture.table
        train = table[table["split"] == "train"].assign(label=self.label)
        if "group" not in train or train["group"].isna().all():
            return {}
        train["group"] = unit_ids(train, "group")
        if train["group"].nunique() < MIN_GROUPS or len(train) < 2 * train["group"].nunique():
            return {}
        self.progress.log("groups: training on fewer images of each group, and on fewer groups")
        full_accuracy = self._probe_accuracy(table)
        rows = []
        for fraction in (1 / 2, 1 / 4, 1 / 8):
            accuracies: dict[str, list[float]] = {"of_each": [], "of_them": []}
            for seed in range(max(self.seeds, MIN_REDUNDANCY_SEEDS)):
                priority = np.random.default_rng(seed).random(len(table))
                for name, index in (
                    ("of_each", sample_within_groups(train, priority, fraction)),
                    ("of_them", sample_groups(train, seed, fraction)),
                ):
                    sample = table[table["split"].ne("train") | table.index.isin(index)]
                    accuracies[name].append(self._probe_accuracy(sample))
            rows.append({"share": fraction, **{name: float(np.mean(values)) for name, values in accuracies.items()}})
        result = {"groups": int(train["group"].nunique()), "images": len(train), "all": full_accuracy, "shares": rows}
        return result | {"words": describe_redundancy(result)}


def sample_within_groups(train: pd.DataFrame, priority: np.ndarray, fraction: float) -> pd.Index:
    """Return the rows of a fraction of the images of every group, at least one each."""
    rank = train.assign(priority=priority[train.index]).groupby("group")["priority"].rank(method="first")
    count = train.groupby("group")["path"].transform("size")
    return train.index[rank <= np.maximum(1, np.round(count * fraction))]


def sample_groups(train: pd.DataFrame, seed: int, fraction: float) -> pd.Index:
    """Return the rows of all images of a fraction of the groups of each class, at least one group each."""
    rng = np.random.default_rng(seed)
    sampled: set[Any] = set()
    for _, rows in train.groupby("label"):
        groups = rows["group"].unique()
        sampled |= set(rng.permutation(groups)[: max(1, round(len(groups) * fraction))])
    return train.index[train["group"].isin(sampled)]


def describe_redundancy(result: dict[str, Any]) -> list[str]:
    """Return sentences on whether more images of each group or more groups are worth collecting."""
    half = result["shares"][0]
    loss = {name: 100 * (result["all"] - half[name]) for name in ("of_each", "of_them")}
    sentences = [
        f"The {result['images']:,} training images belong to {result['groups']:,} groups. Training on half of each "
        f"group's images costs {loss['of_each']:.1f} points; training on half of the groups costs "
        f"{loss['of_them']:.1f} points."
    ]
    if loss["of_each"] < loss["of_them"] / 3:
        sentences.append("More images of the same groups would gain little; images of new groups would gain more.")
    return sentences


def primary_labels(table: pd.DataFrame, task: str) -> pd.Series:
    """Return the label that each image is counted under: its rarest one if images have several."""
    from baseline.data.labels import rarest_label

    return rarest_label(table["label"]) if task == "multilabel" else table["label"]


def training_sizes(table: pd.DataFrame, task: str, requested: Sequence[int]) -> list[int]:
    """Return the sizes in images per class: those requested, or doubled from `SMALLEST_SIZE`; and all images.

    Raises:
        DataError: if these are fewer than `MIN_SIZES`.
    """
    largest = int(primary_labels(table, task)[table["split"] == "train"].value_counts().max())
    # the last doubled size leaves a visible step to all images
    doubled = [size for size in (SMALLEST_SIZE * 2**power for power in range(40)) if size <= 0.75 * largest]
    sizes = sorted({size for size in requested if size < largest}) if requested else doubled
    if len(sizes) + 1 < MIN_SIZES:
        raise DataError(
            f"The largest class has {largest} training images, which leaves the sizes "
            f"{', '.join(map(str, [*sizes, largest]))}; a curve needs at least {MIN_SIZES}. "
            "Use more images, or other --sizes."
        )
    return [*sizes, largest]


def fit_variant(table: pd.DataFrame, results: Sequence[Any], metric: Metric | None = None) -> dict[str, Any]:
    """Fit the power law of one variant, extrapolate it to twice the images, and check it.

    The check extrapolates from at most half of the images to all, and compares with the measured value.

    Args:
        table: the rows of one variant.
        results: by the table's index, which evaluation images each training predicts correctly; or with a metric, that
            metric, measured.
    """
    column = metric.name if metric else "accuracy"
    defined = table.dropna(subset=column)
    undefined = describe_undefined(table, metric)
    if defined["images"].nunique() < MIN_SIZES:
        return {"words": [f"no forecast: {undefined}, and a power law needs at least {MIN_SIZES} sizes."]}
    law = fit_power_law(defined["images"].to_numpy(), errors_of(defined, results, metric))
    largest = int(defined["images"].max())
    low, high = law.gain(largest, 2 * largest)
    doubled = {"images": 2 * largest, column: error_of(metric, float(law.error(2 * largest)[0])), "gain": (low, high)}
    sentences = [f"doubling the training images to {2 * largest:,} should {describe_doubling(low, high, metric)}."]
    parameters = {name: float(getattr(law, name)[0]) for name in ("floor", "scale", "exponent")}
    forecast = [
        (float(images), *value_interval(law, images, metric)) for images in np.geomspace(largest, 2 * largest, 8)
    ]
    result: dict[str, Any] = {**parameters, "noise": law.noise, "doubled": doubled, "forecast": forecast}
    half = defined[defined["images"] <= largest / 2]
    if half["images"].nunique() >= MIN_SIZES:
        result["checked"], sentence = check_law(defined, half, results, metric)
        sentences.append(sentence)
    return result | {"words": [*sentences, *([f"{undefined}."] if undefined else [])]}


def check_law(
    table: pd.DataFrame, half: pd.DataFrame, results: Sequence[Any], metric: Metric | None
) -> tuple[dict[str, Any], str]:
    """Return how well the law of at most half of the images foretold the result with all, and a sentence about it."""
    largest, column = int(table["images"].max()), metric.name if metric else "accuracy"
    errors = errors_of(half, results, metric)
    law = fit_power_law(half["images"].to_numpy(), errors, same_test=True)
    low, high = value_interval(law, largest, metric, int((table["images"] == largest).sum()), clip=False)
    measured = float(table.loc[table["images"] == largest, column].mean())
    resolution = 0.0 if metric else 1 / errors.images  # an accuracy is a multiple of one image
    inside = low - resolution <= measured <= high + resolution
    checked = {"from": int(half["images"].max()), "foretold": (low, high), "measured": measured, "inside": inside}
    verdict = "inside the interval" if inside else "outside the interval: read the line above with caution"
    show = partial(find_metric("accuracy").text if metric is None else metric.text, digits=1)
    span = f"{show(low).removesuffix('%')} to {show(high)}"
    return checked, (
        f"extrapolated from at most {checked['from']:,} images, the {metric.title if metric else 'accuracy'} with all "
        f"{largest:,} was expected at {span}; measured {show(measured)}, {verdict}."
    )


def errors_of(table: pd.DataFrame, results: Sequence[Any], metric: Metric | None) -> Errors:
    """Return the errors of the trainings in the rows of a table."""
    rows = [results[index] for index in table.index]
    return ErrorRates(np.array(rows)) if metric is None else MetricErrors(rows, metric)


def value_interval(
    law: PowerLaw, images: float, metric: Metric | None, trainings: int = 1, *, clip: bool = True
) -> tuple[float, float]:
    """Return the 95% confidence interval of the accuracy or the metric, within its range if `clip`."""
    low, high = sorted(error_of(metric, bound) for bound in law.prediction_interval(images, trainings))
    if not clip:
        return low, high
    highest = 1.0 if metric is None or metric.higher_is_better else np.inf
    lowest = -1.0 if metric is not None and metric.ordered else 0.0
    return float(np.clip(low, lowest, highest)), float(np.clip(high, lowest, highest))


def describe_doubling(low: float, high: float, metric: Metric | None) -> str:
    """Return what an interval of a decrease in error means for the metric.

    >>> describe_doubling(0.004, 0.019, None), describe_doubling(0.004, 0.019, find_metric("log_loss"))
    ('gain 0.4 to 1.9 points', 'lower the log loss by 0.004 to 0.019')
    >>> describe_doubling(0.004, 0.019, find_metric("macro_f1"))
    'raise the macro F1 by 0.4 to 1.9 points'
    """
    points = f"{100 * low:.1f} to {100 * high:.1f} points"
    if metric is None:
        return f"gain {points}"
    verb = "raise" if metric.higher_is_better else "lower"
    return f"{verb} the {metric.title} by {points if metric.percent else f'{low:.3f} to {high:.3f}'}"


def describe_undefined(table: pd.DataFrame, metric: Metric | None) -> str:
    """Return how many trainings have no value of the metric, which the power law leaves out; empty if all have one."""
    count = int(table[metric.name].isna().sum()) if metric else 0
    return f"{metric.title if metric else ''} is undefined in {count} of {len(table)} trainings" if count else ""


def write_curve_files(curve: LearningCurve) -> None:
    """Write the table, the figure and the page of a learning curve into its folder."""
    from markupsafe import Markup

    from baseline.report import figures
    from baseline.report.html import render

    metric = curve.metric or find_metric("accuracy")
    figure, title = draw_curve(curve), curve_title(curve)
    contents = {"split": curve.split, "sentences": curve.sentences, "fits": curve.fits, "redundancy": curve.redundancy}
    sizes = curve.table.groupby(["variant", "images"], sort=False)[metric.name].agg(["count", "mean", "min", "max"])
    page = {
        "curve": curve,
        "metric": metric,
        "drawing": Markup(figures.svg(figure, "curve", f"{title} by training images")),
        "title": title,
        "variants": VARIANTS,
        "rows": sizes.reset_index().to_dict("records"),
    }
    write_atomic(curve.folder / "curve.csv", to_csv(curve.table))
    write_atomic(curve.folder / "curve.json", to_json(contents))
    write_atomic(curve.folder / "curve.png", figures.png(figure))
    write_atomic(curve.folder / "curve.html", render("curve", page))


def curve_title(curve: LearningCurve) -> str:
    """Return the title of the metric with a capital letter."""
    title = (curve.metric or find_metric("accuracy")).title
    return title[:1].upper() + title[1:]


def draw_curve(curve: LearningCurve) -> Figure:
    """Return the figure of a learning curve."""
    from baseline.report.figures import curve_figure

    fitted = {variant: fit for variant, fit in curve.fits.items() if "forecast" in fit}
    lines = {variant: curve_points(curve, variant) for variant in fitted}
    names = {variant: VARIANTS[variant] for variant in curve.fits}
    bands = {variant: np.array(fit["forecast"]).T for variant, fit in fitted.items()}
    return curve_figure(curve.table, lines, names, bands, curve.metric or find_metric("accuracy"))


def curve_points(curve: LearningCurve, variant: str) -> np.ndarray:
    """Return the power law as numbers of images and values of the metric, up to twice the images (2 x points)."""
    fit = curve.fits[variant]
    images = np.geomspace(curve.table["images"].min(), fit["doubled"]["images"], 60)
    errors = fit["floor"] + fit["scale"] * images ** -fit["exponent"]
    return np.stack([images, [error_of(curve.metric, error) for error in errors]])
