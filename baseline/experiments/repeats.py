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
from baseline.experiments.series import _row, _Series, _spread
from baseline.files import as_json, write
from baseline.inference.model_folder import EXPERIMENTS
from baseline.progress import Terminal
from baseline.recipe.choose import starting_recipe
from baseline.runs.folder import judged_split, read_predictions

if TYPE_CHECKING:
    import pandas as pd

    from baseline.inference.model import Ensemble, Model
    from baseline.progress import Show
    from baseline.recipe.schema import Recipe

__all__ = ["Folds", "Seeds", "described_folds", "make_folds", "make_seeds"]


@dataclass(frozen=True)
class Seeds:
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
    same_photos: bool
    """Whether all were measured on the same photos; if not, the spread holds that of the photos, too."""


@dataclass(frozen=True)
class Folds:
    """Runs of which each has another part of the photos as its valid split, and what they are together."""

    folder: Path
    """Holds `fold-K`, a run folder each; `oof.csv`, the prediction table of all photos, each by the network that did
    not train on it, with a column `fold`; `folds.json`; and, where there is a test split, `predictions.csv`, the table
    of the folds' average on it, as `baseline.averaged` makes it."""
    way: str
    """The split: `"kfold:5"`, `"group-kfold:5"`."""
    runs: list[dict[str, Any]]
    """Each run's `fold`, `folder`, `photos` (of its valid split), `accuracy` on them (0-1, with test-time
    augmentation), `plain` (without), `test` (accuracy there; None without a test split), `seconds`."""
    mean: float
    """Of the accuracies on valid, 0-1."""
    sd: float
    """Their standard deviation, n - 1 below the line."""
    least: float
    most: float
    metrics: dict[str, dict[str, Any]]
    """What `baseline.measure` tells of a split: `"oof"`, out of fold, and `"test"` of the average, if there is one."""
    against_best: dict[str, Any] | None
    """What `baseline.same_or_not` tells of the fold that is best on test and the average; None without a test split."""

    @property
    def model(self) -> Model | Ensemble:
        """What `baseline.load` makes of the folder: all folds together."""
        from baseline.inference.model import load

        return load(self.folder)


def make_seeds(
    count: int,
    photos: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    on: str = "",
    show: Show | None = None,
    **changes: Any,
) -> Seeds:
    """Runs `make_baseline` with `count` seeds, from `seed` on, into `out/seed-K`, and tells mean and spread.

    The other arguments and errors are those of `make_baseline`; a budget is that of all runs together, and the first
    one's plan is that of all. What was finished before an interrupt stays.

    Args:
        resume: go on in `out`: runs that are finished there are taken as they are, the rest is made.
        on: what makes the runs: this process, one after the other, or `"ray"`, several at once; see `--on` in
            `baseline run --help` and docs/training.md. With as many threads a run the numbers are the same.

    Raises:
        RecipeError: if `count` is not 1 or more, or `on` is nothing that makes runs.
        OutputError: before anything is trained, if one of the run folders holds a finished run already, or, with
            `resume`, one of another recipe or of other photos.

    >>> found = make_seeds(5, "photos/")                                           # doctest: +SKIP
    >>> found.mean, found.sd                                                       # doctest: +SKIP
    """
    if count < 1:
        raise RecipeError(f"--seeds is {count}; 1 or more were needed.")
    chosen = starting_recipe(photos, recipe)
    first = chosen.seed if seed is None else seed
    series = _Series("seed", photos, recipe, changes, out, show or Terminal(), on)
    with series.alone():
        series.make([{"seed": number} for number in range(first, first + count)], resume=resume)
        split = judged_split(series.manifests[0]["metrics"])
        runs, seen = [], set()
        for run, manifest in zip(series.folders, series.manifests, strict=True):
            rows = read_predictions(run, ("path", "split"))
            seen.add(frozenset(rows["path"][rows["split"] == split]))
            runs.append({"seed": int(run.name.rpartition("-")[2]), **_row(run, manifest, split)})
        found = Seeds(
            folder=series.folder,
            split=split,
            runs=runs,
            **_spread(runs),
            same_photos=len(seen) == 1,
        )
        write(series.folder / EXPERIMENTS["seed"], as_json(dataclasses.asdict(found)))
        return found


def make_folds(
    photos: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    on: str = "",
    show: Show | None = None,
    **changes: Any,
) -> Folds:
    """Runs `make_baseline` for each fold into `out/fold-K`, and tells what they say of all photos.

    Every photo is predicted by the network that did not train on it. Photos that are given as the test split are in no
    fold; they get the average of the folds' calibrated probabilities, as all photos do that `baseline.load(out)`
    predicts.

    Args:
        resume, on: see `make_seeds`, which has the other arguments and errors, too.
        **changes: as for `make_baseline`; `split`, here or in the recipe, is `"kfold:K"` or `"group-kfold:K"`.

    Raises:
        DataError: if there are more folds than photos (or groups) of a class; before anything is trained.
        RecipeError: if `split` names no folds, or one fold alone is asked for.

    >>> found = make_folds("photos/", split="kfold:5")                             # doctest: +SKIP
    >>> found.metrics["oof"]["tta"]["accuracy"], found.sd                          # doctest: +SKIP
    >>> baseline.load(found.folder).predict("holiday/")                            # doctest: +SKIP
    """
    if "fold" in changes:
        raise RecipeError("fold names one fold, and make_folds runs all. Leave it out, or take make_baseline.")
    given = {key: changes[key] for key in ("split", "split_file") if key in changes}
    asked = starting_recipe(photos, recipe).changed(fold=0, **given)
    if "kfold" not in asked.split:
        raise RecipeError(f"split is '{asked.split}'; kfold:K or group-kfold:K was needed, such as kfold:5.")
    if asked.split_file:
        raise RecipeError(f"{asked.split_file} says what is valid, and so does {asked.split}. Give one of them.")
    changes |= {} if seed is None else {"seed": seed}
    series = _Series("fold", photos, recipe, changes, out, show or Terminal(), on)
    with series.alone():
        series.make([{"fold": number} for number in range(int(asked.split.partition(":")[2]))], resume=resume)
        runs = []
        for number, (run, manifest) in enumerate(zip(series.folders, series.manifests, strict=True)):
            metrics = manifest["metrics"]
            test = metrics["test"]["tta"]["accuracy"] if "test" in metrics else None
            row = _row(run, manifest, "valid")
            runs.append({"fold": number, "photos": metrics["valid"]["photos"], **row, "test": test})
        tables = [read_predictions(run) for run in series.folders]
        together = _on_test(series, tables) if "test" in series.manifests[0]["metrics"] else {}
        against_best = together.pop("against_best", None)
        found = Folds(
            folder=series.folder,
            way=asked.split,
            runs=runs,
            **_spread(runs),
            metrics={"oof": _out_of_fold(series, tables), **together},
            against_best=against_best,
        )
        write(series.folder / EXPERIMENTS["fold"], as_json(dataclasses.asdict(found)))
        return found


def described_folds(table: pd.DataFrame, recipe: Recipe) -> str:
    """The folds that a recipe makes of the photos, in words, as far as no copies have to stay together.

    >>> import pandas as pd
    >>> rows = {"path": [f"{n}.jpg" for n in range(10)], "label": ["ant", "bee"] * 5, "split": None}
    >>> described_folds(pd.DataFrame(rows), Recipe(split="kfold:4"))
    'folds: kfold:4, valid photos 3, 3, 2, 2; before the audit, which keeps copies on one side'
    """
    from baseline.data.split import split

    parted = split(table, recipe)
    counts = parted.loc[parted["fold"] >= 0, "fold"].value_counts().sort_index()
    test = int((parted["split"] == "test").sum())
    apart = f"; {test:,} test photos stay apart" if test else ""
    sizes = ", ".join(f"{count:,}" for count in counts)
    return f"folds: {recipe.split}, valid photos {sizes}{apart}; before the audit, which keeps copies on one side"


def _out_of_fold(series: _Series, tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """Writes the predictions of each fold's valid photos as one table, and measures it."""
    import pandas as pd

    from baseline.evaluation.metrics import measure

    parts = [table[table["split"] == "valid"].assign(fold=fold) for fold, table in enumerate(tables)]
    rows = pd.concat(parts, ignore_index=True)
    if (twice := rows["path"].duplicated()).any():
        raise OutputError(
            f"{rows['path'][twice].iloc[0]} is in two folds of {series.folder}: other photos could be read when the "
            "one was made than when the other was. Choose another --out."
        )
    write(series.folder / "oof.csv", rows.to_csv(index=False))
    return measure(rows, series.manifests[0]["recipe"]["labels"])["valid"]


def _on_test(series: _Series, tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """Writes what the folds' average predicts of the test photos, measures it, and compares it with the best fold."""
    from baseline.evaluation.ensemble import averaged
    from baseline.evaluation.metrics import measure
    from baseline.evaluation.significance import same_or_not

    recipe = series.manifests[0]["recipe"]
    rows = [table[table["split"] == "test"] for table in tables]
    temperatures = [manifest["calibration"].get("temperature") for manifest in series.manifests]
    together = averaged(rows, temperatures, recipe["labels"], recipe["threshold"])
    write(series.folder / "predictions.csv", together.to_csv(index=False))
    best = max(rows, key=lambda each: (each["predicted"] == each["label"]).mean())
    return {"test": measure(together, recipe["labels"])["test"], "against_best": same_or_not(best, together)}
