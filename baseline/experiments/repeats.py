"""Experiments that are several runs: seeds, folds, before and after fixes. Knows `make_baseline` and run folders.

Each run has a folder of its own. What is told of seeds or folds is made from these folders, so that it does not matter
whether a run was made now or before an interrupt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import OutputError, RecipeError
from baseline.experiments.series import RunSeries, accuracy_spread, summary_row
from baseline.files import to_json, write_atomic
from baseline.inference.model_folder import EXPERIMENT_FILES
from baseline.progress import ConsoleProgress
from baseline.recipe.choose import starting_recipe
from baseline.runs.folder import headline_split, read_predictions

if TYPE_CHECKING:
    import pandas as pd

    from baseline.inference.model import Ensemble, Model
    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe

__all__ = ["FoldRuns", "SeedRuns", "describe_folds", "run_folds", "run_seeds"]


@dataclass(frozen=True)
class SeedRuns:
    """Runs that differ by their seed only."""

    folder: Path
    """Holds `seed-K`, a run folder each, and `seeds.json`."""
    split: str
    runs: list[dict[str, Any]]
    """Each run's `seed`, `folder`, `accuracy` (0-1, with test-time augmentation), `plain` (without), `seconds`."""
    mean: float
    """Of the accuracies, 0-1."""
    sd: float | None
    """Standard deviation of one run, n - 1 below the line; None for one run."""
    least: float
    most: float
    same_images: bool
    """Whether all were measured on the same images; if not, the spread holds that of the images, too."""


@dataclass(frozen=True)
class FoldRuns:
    """Runs of which each has another part of the images as its valid split, and what they are together."""

    folder: Path
    """Holds `fold-K`, a run folder each; `oof.csv`, the prediction table of all images, each by the network that did
    not train on it, with a column `fold`; `folds.json`; and, where there is a test split, `predictions.csv`, the table
    of the folds' average on it, as `baseline.averaged` makes it."""
    way: str
    """The split: `"kfold:5"`, `"group-kfold:5"`."""
    runs: list[dict[str, Any]]
    """Each run's `fold`, `folder`, `images` (of its valid split), `accuracy` on them (0-1, with test-time
    augmentation), `plain` (without), `test` (accuracy there; None without a test split), `seconds`."""
    mean: float
    """Of the accuracies on valid, 0-1."""
    sd: float
    """Their standard deviation, n - 1 below the line."""
    least: float
    most: float
    metrics: dict[str, dict[str, Any]]
    """What `baseline.evaluate` tells of a split: `"oof"`, out of fold, and `"test"` of the average, if there is one."""
    against_best: dict[str, Any] | None
    """What `baseline.paired_test` tells of the fold that is best on test and the average; None without a test split."""

    @property
    def model(self) -> Model | Ensemble:
        """What `baseline.load` makes of the folder: all folds together."""
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
    """Runs `make_baseline` with `count` seeds, from `seed` on, into `out/seed-K`, and tells mean and spread.

    The other arguments and errors are those of `make_baseline`; a budget is that of all runs together, and the first
    one's plan is that of all. What was finished before an interrupt stays.

    Args:
        resume: go on in `out`: runs that are finished there are taken as they are, the rest is made.
        executor: what makes the runs: this process, one after the other, or `"ray"`, several at once; see `--on` in
            `baseline run --help` and docs/training.md. With as many threads a run the numbers are the same.

    Raises:
        RecipeError: if `count` is not 1 or more, or `executor` is nothing that makes runs.
        OutputError: before anything is trained, if one of the run folders holds a finished run already, or, with
            `resume`, one of another recipe or of other images.

    >>> found = run_seeds(5, "images/")                                           # doctest: +SKIP
    >>> found.mean, found.sd                                                       # doctest: +SKIP
    """
    if count < 1:
        raise RecipeError(f"--seeds is {count}; 1 or more were needed.")
    chosen = starting_recipe(images, recipe)
    first = chosen.seed if seed is None else seed
    series = RunSeries("seed", images, recipe, changes, out, progress or ConsoleProgress(), executor)
    with series.alone():
        series.make([{"seed": number} for number in range(first, first + count)], resume=resume)
        split = headline_split(series.manifests[0]["metrics"])
        runs, seen = [], set()
        for run, manifest in zip(series.folders, series.manifests, strict=True):
            rows = read_predictions(run, ("path", "split"))
            seen.add(frozenset(rows["path"][rows["split"] == split]))
            runs.append({"seed": int(run.name.rpartition("-")[2]), **summary_row(run, manifest, split)})
        found = SeedRuns(
            folder=series.folder,
            split=split,
            runs=runs,
            **accuracy_spread(runs),
            same_images=len(seen) == 1,
        )
        write_atomic(series.folder / EXPERIMENT_FILES["seed"], to_json(dataclasses.asdict(found)))
        return found


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
    """Runs `make_baseline` for each fold into `out/fold-K`, and tells what they say of all images.

    Every image is predicted by the network that did not train on it. Images that are given as the test split are in no
    fold; they get the average of the folds' calibrated probabilities, as all images do that `baseline.load(out)`
    predicts.

    Args:
        resume, executor: see `run_seeds`, which has the other arguments and errors, too.
        **changes: as for `make_baseline`; `split`, here or in the recipe, is `"kfold:K"` or `"group-kfold:K"`.

    Raises:
        DataError: if there are more folds than images (or groups) of a class; before anything is trained.
        RecipeError: if `split` names no folds, or one fold alone is asked for.

    >>> found = run_folds("images/", split="kfold:5")                             # doctest: +SKIP
    >>> found.metrics["oof"]["tta"]["accuracy"], found.sd                          # doctest: +SKIP
    >>> baseline.load(found.folder).predict("holiday/")                            # doctest: +SKIP
    """
    if "fold" in changes:
        raise RecipeError("fold names one fold, and make_folds runs all. Leave it out, or take make_baseline.")
    given = {key: changes[key] for key in ("split", "split_file") if key in changes}
    asked = starting_recipe(images, recipe).changed(fold=0, **given)
    if "kfold" not in asked.split:
        raise RecipeError(f"split is '{asked.split}'; kfold:K or group-kfold:K was needed, such as kfold:5.")
    if asked.split_file:
        raise RecipeError(f"{asked.split_file} says what is valid, and so does {asked.split}. Give one of them.")
    changes |= {} if seed is None else {"seed": seed}
    series = RunSeries("fold", images, recipe, changes, out, progress or ConsoleProgress(), executor)
    with series.alone():
        series.make([{"fold": number} for number in range(int(asked.split.partition(":")[2]))], resume=resume)
        runs = []
        for number, (run, manifest) in enumerate(zip(series.folders, series.manifests, strict=True)):
            metrics = manifest["metrics"]
            test = metrics["test"]["tta"]["accuracy"] if "test" in metrics else None
            row = summary_row(run, manifest, "valid")
            runs.append({"fold": number, "images": metrics["valid"]["images"], **row, "test": test})
        tables = [read_predictions(run) for run in series.folders]
        together = _evaluate_ensemble(series, tables) if "test" in series.manifests[0]["metrics"] else {}
        against_best = together.pop("against_best", None)
        found = FoldRuns(
            folder=series.folder,
            way=asked.split,
            runs=runs,
            **accuracy_spread(runs),
            metrics={"oof": _write_out_of_fold(series, tables), **together},
            against_best=against_best,
        )
        write_atomic(series.folder / EXPERIMENT_FILES["fold"], to_json(dataclasses.asdict(found)))
        return found


def describe_folds(table: pd.DataFrame, recipe: Recipe) -> str:
    """The folds that a recipe makes of the images, in words, as far as no copies have to stay together.

    >>> import pandas as pd
    >>> rows = {"path": [f"{n}.jpg" for n in range(10)], "label": ["ant", "bee"] * 5, "split": None}
    >>> describe_folds(pd.DataFrame(rows), Recipe(split="kfold:4"))
    'folds: kfold:4, valid images 3, 3, 2, 2; before the audit, which keeps copies on one side'
    """
    from baseline.data.split import split

    parted = split(table, recipe)
    counts = parted.loc[parted["fold"] >= 0, "fold"].value_counts().sort_index()
    test = int((parted["split"] == "test").sum())
    apart = f"; {test:,} test images stay apart" if test else ""
    sizes = ", ".join(f"{count:,}" for count in counts)
    return f"folds: {recipe.split}, valid images {sizes}{apart}; before the audit, which keeps copies on one side"


def _write_out_of_fold(series: RunSeries, tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """Writes the predictions of each fold's valid images as one table, and measures it."""
    import pandas as pd

    from baseline.evaluation.metrics import evaluate

    parts = [table[table["split"] == "valid"].assign(fold=fold) for fold, table in enumerate(tables)]
    rows = pd.concat(parts, ignore_index=True)
    if (twice := rows["path"].duplicated()).any():
        raise OutputError(
            f"{rows['path'][twice].iloc[0]} is in two folds of {series.folder}: other images could be read when the "
            "one was made than when the other was. Choose another --out."
        )
    write_atomic(series.folder / "oof.csv", rows.to_csv(index=False))
    return evaluate(rows, series.manifests[0]["recipe"]["labels"])["valid"]


def _evaluate_ensemble(series: RunSeries, tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """Writes what the folds' average predicts of the test images, measures it, and compares it with the best fold."""
    from baseline.evaluation.ensemble import ensemble
    from baseline.evaluation.metrics import evaluate
    from baseline.evaluation.significance import paired_test

    recipe = series.manifests[0]["recipe"]
    rows = [table[table["split"] == "test"] for table in tables]
    temperatures = [manifest["calibration"].get("temperature") for manifest in series.manifests]
    together = ensemble(rows, temperatures, recipe["labels"], recipe["threshold"])
    write_atomic(series.folder / "predictions.csv", together.to_csv(index=False))
    best = max(rows, key=lambda each: (each["predicted"] == each["label"]).mean())
    return {"test": evaluate(together, recipe["labels"])["test"], "against_best": paired_test(best, together)}
