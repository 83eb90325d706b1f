"""Repeated runs: several seeds of one recipe, or all folds of a cross-validation.

Each run has a folder of its own. All results are computed from these folders, so it makes no difference whether a run
was made now or before an interruption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import OutputError, RecipeError, format_count
from baseline.evaluation.metric_test import metric_test
from baseline.experiments.metric_comparison import evaluate_metric, metric_besides_accuracy
from baseline.experiments.series import RunSeries, accuracy_spread, metric_spread, summary_row
from baseline.files import to_csv, to_json, write_atomic
from baseline.progress import ConsoleProgress
from baseline.recipe.choose import starting_recipe
from baseline.recipe.diff import flat_recipe
from baseline.runs.folder import headline_split, read_predictions
from baseline.vision.model_folder import EXPERIMENT_FILES

if TYPE_CHECKING:
    import pandas as pd

    from baseline.evaluation.results import Metrics, SplitMetrics
    from baseline.inference.model import Ensemble, Model
    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe

__all__ = ["FoldRuns", "SeedRuns", "describe_folds", "run_folds", "run_seeds"]


@dataclass(frozen=True)
class SeedRuns:
    """Runs that differ only in their seed."""

    folder: Path
    """Contains a run folder `seed-K` per run, and `seeds.json`."""
    split: str
    runs: list[dict[str, Any]]
    """Each run's `seed`, `folder`, `accuracy` (0-1, with TTA where the headline of the run is), `tta` (whether it is),
    `plain` (accuracy without TTA), `probe` (`split, metric, value` of logistic regression on features, if it stands
    beside the result) and `seconds`."""
    mean: float
    """Mean accuracy, 0-1."""
    sd: float | None
    """Sample standard deviation of the accuracies (divided by n - 1); None for a single run."""
    least: float
    """Lowest accuracy."""
    most: float
    """Highest accuracy."""
    same_images: bool
    """Whether all runs were evaluated on the same images; if not, the spread includes that of the images."""
    metric: dict[str, Any] | None = None
    """`name, mean, sd, least, most` of the metric that the recipe names, if it is not the accuracy; `runs` have it."""


@dataclass(frozen=True)
class FoldRuns:
    """Cross-validation: runs that each have another part of the images as their valid split."""

    folder: Path
    """Contains a run folder `fold-K` per run; `oof.csv`, the out-of-fold prediction table of all images, each predicted
    by the network that did not train on it, with a column `fold`; `folds.json`; and, if there is a test split,
    `predictions.csv`, the predictions of the folds' ensemble on it, from `baseline.evaluation.ensemble.ensemble`."""
    way: str
    """The split: `"kfold:5"`, `"group-kfold:5"`."""
    runs: list[dict[str, Any]]
    """Each run's `fold`, `folder`, `images` (number in its valid split), `accuracy` on them (0-1, with TTA where the
    headline of the run is), `tta` (whether it is), `plain` (accuracy without TTA), `test` (test accuracy, with TTA or
    without as `accuracy`; None without a test split), `probe` (`split, metric, value` of logistic regression on
    features, if it stands beside the result) and `seconds`."""
    mean: float
    """Mean accuracy on the valid splits, 0-1."""
    sd: float
    """Sample standard deviation of these accuracies (divided by n - 1)."""
    least: float
    """Lowest of these accuracies."""
    most: float
    """Highest of these accuracies."""
    metrics: Metrics
    """Metrics as `baseline.evaluate` returns them for a split: `"oof"`, out of fold, and `"test"`, those of the
    ensemble, if there is a test split."""
    tta: dict[str, bool]
    """Whether any of the runs uses TTA, by key of `metrics`."""
    against_best: dict[str, Any] | None
    """Result of `baseline.paired_test` of the best fold on test and the ensemble; None without a test split. Where the
    recipe names a metric, it is of that one, see `metric_test`."""
    metric: dict[str, Any] | None = None
    """`name, mean, sd, least, most` of the metric that the recipe names, if it is not the accuracy; `runs` have it."""

    @property
    def model(self) -> Model | Ensemble:
        """The ensemble of all folds, as `baseline.load` loads the folder."""
        from baseline.inference.model import load

        return load(self.folder)


def run_seeds(
    count: int,
    images: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    executor: str = "",
    progress: Progress | None = None,
    **changes: Any,
) -> SeedRuns:
    """Run `make_baseline` with `count` seeds, from `seed` on, into `out/seed-K`, and compute mean and spread.

    The other arguments and errors are those of `make_baseline`. A budget is divided among the runs, and the plan that
    the first run makes for it is used by all. Runs that were finished before an interruption are kept. Transforms,
    callbacks and other custom parts are copied for each run; a Learner is rejected.

    Args:
        resume: continue in `out`: keep the runs that are finished there, and make the remaining ones.
        executor: of the runs: this process, one run after the other, or `"ray"`, several at once; see `--executor` in
            `baseline run --help` and docs/training.md. With the same number of threads per run, results are the same.

    Raises:
        RecipeError: if `count` is less than 1, or `executor` does not exist.
        OutputError: before training, if one of the run folders already holds a finished run or, with `resume`, one of
            another recipe or of other images.

    >>> seeds = run_seeds(5, "images/")                                           # doctest: +SKIP
    >>> seeds.mean, seeds.sd                                                       # doctest: +SKIP
    """
    if count < 1:
        raise RecipeError(f"--seeds must be at least 1, got {count}.")
    base_recipe = starting_recipe(images, recipe)
    first = base_recipe.seed if seed is None else seed
    series = RunSeries("seed", images, recipe, changes, out, progress or ConsoleProgress(), executor)
    with series.lock():
        series.run([{"seed": number} for number in range(first, first + count)], resume=resume)
        split = headline_split(series.manifests[0]["metrics"])
        runs, image_sets = [], set()
        for run, manifest in zip(series.folders, series.manifests, strict=True):
            rows = read_predictions(run, ("path", "split"))
            image_sets.add(frozenset(rows["path"][rows["split"] == split]))
            runs.append({"seed": int(run.name.rpartition("-")[2]), **summary_row(run, manifest, split)})
        result = SeedRuns(
            folder=series.folder,
            split=split,
            runs=runs,
            **accuracy_spread(runs),
            same_images=len(image_sets) == 1,
            metric=metric_spread(runs, series.manifests[0]),
        )
        write_atomic(series.folder / EXPERIMENT_FILES["seed"], to_json(dataclasses.asdict(result)))
        return result


def run_folds(
    images: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    executor: str = "",
    progress: Progress | None = None,
    **changes: Any,
) -> FoldRuns:
    """Run `make_baseline` for each fold, into `out/fold-K`, and evaluate all images out of fold.

    Every image is predicted by the network that did not train on it. Images of a given test split are in no fold; the
    ensemble of the folds predicts them, by the average of calibrated probabilities, as `baseline.load(out)` predicts
    any image.

    Args:
        resume, executor: see `run_seeds`, which also documents the other arguments and errors.
        **changes: as for `make_baseline`; `split`, here or in the recipe, is `"kfold:K"` or `"group-kfold:K"`.

    Raises:
        DataError: before training, if there are more folds than images (or groups) of a class.
        RecipeError: if `split` is not a cross-validation, or a single fold is requested.

    >>> folds = run_folds("images/", split="kfold:5")                             # doctest: +SKIP
    >>> folds.metrics["oof"]["tta"]["accuracy"], folds.sd                          # doctest: +SKIP
    >>> baseline.load(folds.folder).predict("holiday/")                            # doctest: +SKIP
    """
    if "fold" in changes:
        raise RecipeError("fold selects a single fold, and run_folds runs all. Omit it, or use make_baseline.")
    split_changes = {key: changes[key] for key in ("split", "split_file") if key in changes}
    base_recipe = starting_recipe(images, recipe).changed(**split_changes)
    method = base_recipe.split.method
    if "kfold" not in method:
        raise RecipeError(f"split must be kfold:K or group-kfold:K, such as kfold:5; got '{method}'.")
    if base_recipe.split.file:
        raise RecipeError(
            f"Both {base_recipe.split.file} and split {method} define the validation split. Use one of them."
        )
    progress = progress or ConsoleProgress()
    method, numbers = _resolve_folds(images, recipe, progress, changes)
    changes |= {"split": method} | ({} if seed is None else {"seed": seed})
    series = RunSeries("fold", images, recipe, changes, out, progress, executor)
    with series.lock():
        series.run([{"fold": number} for number in numbers], resume=resume)
        runs = []
        for number, run, manifest in zip(numbers, series.folders, series.manifests, strict=True):
            metrics = manifest["metrics"]
            row = summary_row(run, manifest, "valid")
            test = summary_row(run, manifest, "test")["accuracy"] if "test" in metrics else None
            runs.append({"fold": number, "images": metrics["valid"]["images"], **row, "test": test})
        tables = [read_predictions(run) for run in series.folders]
        ensemble_metrics = _evaluate_ensemble(series, tables) if "test" in series.manifests[0]["metrics"] else {}
        oof = _write_out_of_fold(series, numbers, tables)
        has_tta = any(run["tta"] for run in runs)
        against_best = ensemble_metrics.pop("against_best", None)
        result = FoldRuns(
            folder=series.folder,
            way=method,
            runs=runs,
            **accuracy_spread(runs),
            metrics={"oof": oof, **ensemble_metrics},
            tta={"oof": has_tta, "test": has_tta},
            against_best=against_best,
            metric=metric_spread(runs, series.manifests[0]),
        )
        write_atomic(series.folder / EXPERIMENT_FILES["fold"], to_json(dataclasses.asdict(result)))
        return result


def describe_folds(table: pd.DataFrame, recipe: Recipe) -> str:
    """Describe the folds of a recipe in one line, before the audit adds duplicates that have to stay together.

    >>> import pandas as pd
    >>> from baseline import Recipe
    >>> rows = {"path": [f"{n}.jpg" for n in range(10)], "label": ["ant", "bee"] * 5, "split": None}
    >>> describe_folds(pd.DataFrame(rows), Recipe().changed(split="kfold:4"))
    'folds: kfold:4, validation images 3, 3, 2, 2; before the audit, which keeps duplicates in one fold'
    """
    from baseline.data.split import resolve_split, split

    split_table = split(table, recipe)
    method = recipe.split.method
    counts = split_table.loc[split_table["fold"] >= 0, "fold"].value_counts().sort_index()
    test = int((split_table["split"] == "test").sum())
    test_part = f"; {test:,} test images are in no fold" if test else ""
    if in_none := int(((split_table["fold"] < 0) & (split_table["split"] == "train")).sum()):
        test_part += f"; {format_count(in_none, 'image')} in no fold always trained on"
    sizes = ", ".join(f"{count:,}" for count in counts)
    folds = f"folds: {method}, validation images {sizes}{test_part}"
    if not method.partition(":")[2].isdecimal():
        return folds
    reason = resolve_split(table, recipe)[1].removeprefix("as given")
    folds += reason if "not used" in reason else ""
    return f"{folds}; before the audit, which keeps duplicates in one fold"


def _resolve_folds(images: Any, recipe: Any, progress: Progress, changes: dict[str, Any]) -> tuple[str, list[int]]:
    """Return the split method for these images, and the numbers of its folds."""
    from baseline.data.prepare import load_images
    from baseline.data.split import given_folds

    resolved, table = load_images(images, recipe, progress=progress, **changes)
    method = resolved.split.method
    return method, given_folds(table, method) or list(range(int(method.partition(":")[2])))


def _write_out_of_fold(series: RunSeries, numbers: Sequence[int], tables: Sequence[pd.DataFrame]) -> SplitMetrics:
    """Write the predictions of each fold's validation images as one table, and return its metrics."""
    import pandas as pd

    from baseline.evaluation.metrics import evaluate

    valid_tables = [
        table[table["split"] == "valid"].assign(fold=fold) for fold, table in zip(numbers, tables, strict=True)
    ]
    rows = pd.concat(valid_tables, ignore_index=True)
    if (repeated := rows["path"].duplicated()).any():
        raise OutputError(
            f"{rows['path'][repeated].iloc[0]} is in two folds of {series.folder}, because not the same images were "
            "readable when these were made. Choose another --out."
        )
    write_atomic(series.folder / "oof.csv", to_csv(rows))
    recipe = flat_recipe(series.manifests[0]["recipe"])
    return evaluate(rows, recipe["task"], recipe.get("metric", "auto"))["valid"]


def _evaluate_ensemble(series: RunSeries, tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """Write the ensemble's predictions of the test images; return its metrics and its test against the best fold."""
    from baseline.evaluation.ensemble import ensemble
    from baseline.evaluation.metrics import evaluate
    from baseline.evaluation.significance import paired_test

    recipe = flat_recipe(series.manifests[0]["recipe"])
    test_tables = [table[table["split"] == "test"] for table in tables]
    temperatures = [manifest["calibration"].get("temperature") for manifest in series.manifests]
    thresholds = [manifest.get("thresholds", recipe["threshold"]) for manifest in series.manifests]
    cut_points = [manifest.get("cut_points", []) for manifest in series.manifests]
    predictions = ensemble(test_tables, temperatures, recipe["task"], thresholds, cut_points)
    write_atomic(series.folder / "predictions.csv", to_csv(predictions))
    metrics = evaluate(predictions, recipe["task"], recipe.get("metric", "auto"))["test"]
    if metric := metric_besides_accuracy(series.manifests[0]):
        scores = [metric.score(evaluate_metric(table, metric, recipe["task"]).value) for table in test_tables]
        best = test_tables[scores.index(max(scores))]
        return {"test": metrics, "against_best": metric_test(best, predictions, metric, recipe["task"]) or None}
    best = max(test_tables, key=lambda table: (table["predicted"] == table["label"]).mean())
    return {"test": metrics, "against_best": paired_test(best, predictions)}
