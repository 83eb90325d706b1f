"""Experiments that are several runs: seeds, folds, before and after fixes. Knows `make_baseline` and run folders.

Each run has a folder of its own. What is told of seeds or folds is made from these folders, so that it does not matter
whether a run was made now or before an interrupt.
"""

from __future__ import annotations

import dataclasses
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compare import Comparison, comparison
from .engines import Engine, Job, engine, training
from .errors import OutputError, RecipeError
from .make import Baseline, asked_for, make_baseline, recipe_of, starting_recipe, understand
from .mending import read_fixes
from .processes import named
from .progress import Show, Terminal
from .recipe import Recipe, seconds_in
from .save import (
    EXPERIMENTS,
    as_json,
    differing,
    is_finished,
    judged_split,
    named_folder,
    occupied,
    read_manifest,
    read_predictions,
    write,
)

if TYPE_CHECKING:
    import pandas as pd

    from .model import Ensemble, Model

__all__ = ["Fixed", "Folds", "Seeds", "described_folds", "make_fixed", "make_folds", "make_seeds"]


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
        from .model import load

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
    from .splits import split

    parted = split(table, recipe)
    counts = parted.loc[parted["fold"] >= 0, "fold"].value_counts().sort_index()
    test = int((parted["split"] == "test").sum())
    apart = f"; {test:,} test photos stay apart" if test else ""
    sizes = ", ".join(f"{count:,}" for count in counts)
    return f"folds: {recipe.split}, valid photos {sizes}{apart}; before the audit, which keeps copies on one side"


@dataclass(frozen=True)
class Fixed:
    """A run before fixes of labels and one after them."""

    before: Path
    """The run folder."""
    after: Baseline
    comparison: Comparison
    """Of both, on the test photos, which fixes do not touch (valid, if there is no test split)."""


def make_fixed(
    fixes: Sequence[str | Path],
    photos: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    before: str | Path | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    show: Show | None = None,
    **changes: Any,
) -> Fixed:
    """Trains without and with fixes of labels, and compares both on the same photos.

    The run before them is `before`, or, where the recipe is a finished run's `manifest.json`, that run; then only the
    run after them is trained, into `out`, with that run's splits. Otherwise both are, into `out/before` and
    `out/after`. The other arguments and errors are those of `make_baseline`; fixes are added to those of the recipe.

    Raises:
        DataError: if the fixes do not fit the photos (see `baseline.read_fixes`); before anything is trained.

    >>> make_fixed(["fixes.csv"], recipe="runs/mine/manifest.json").comparison.sentences    # doctest: +SKIP
    """
    _one_process()
    show = show or Terminal()
    if before is None and Path(str(recipe)).name == "manifest.json":
        before = Path(str(recipe)).parent
    chosen, table = understand(photos, recipe, show=Show(), **changes)
    every = [*chosen.fixes, *(str(Path(file).expanduser().absolute()) for file in fixes)]
    every = list(dict.fromkeys(every))
    read_fixes(every, table, chosen.labels)
    if before is not None:
        read_manifest(before)
        changes = {"split_file": str(Path(before).absolute() / "split.csv"), **changes}
        after = make_baseline(photos, recipe, out=out, seed=seed, show=show, **changes, fixes=every)
        return Fixed(Path(before), after, comparison([before, after.folder]))
    with occupied(named_folder(out, chosen.name), named=out is not None) as folder:
        if is_finished(folder / "after"):
            raise OutputError(f"{folder / 'after'} holds a finished run. Choose another --out, or remove it.")
        show.say("before the fixes")
        # of what it returns no more is kept: its network and photos go before the next run needs the room
        before = make_baseline(photos, recipe, out=folder / "before", seed=seed, show=show, **changes).folder
        show.say("after the fixes")
        return make_fixed(fixes, photos, before / "manifest.json", out=folder / "after", show=show)


# ---- several runs ---------------------------------------------------------------------------------------------------


class _Series:
    """Runs of one recipe on the same photos that differ in one thing, each in a folder of its own."""

    def __init__(
        self,
        kind: str,
        photos: Any,
        recipe: str | Path | Recipe,
        changes: Mapping[str, Any],
        out: str | Path | None,
        show: Show,
        on: str,
    ) -> None:
        _one_process()
        self.workers = engine(on, show)
        self.kind, self.photos, self.recipe, self.changes, self.show = kind, photos, recipe, dict(changes), show
        name = starting_recipe(photos, recipe).name
        self.folder = named_folder(out, name)
        self.given = out is not None
        self.folders: list[Path] = []
        self.manifests: list[dict[str, Any]] = []

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, the folder is there and no other run's."""
        with occupied(self.folder, named=self.given) as self.folder:
            yield

    def make(self, plans: Sequence[dict[str, int]], *, resume: bool) -> None:
        """Makes each run, or, with `resume`, takes it as it is where it is finished."""
        self.folders = [self.folder / f"{self.kind}-{plan[self.kind]}" for plan in plans]
        self._refuse(resume)
        self.changes |= self._share_of_budget(len(plans))
        if resume and any(is_finished(run) for run in self.folders):
            self._refuse_others(plans)
        rest = [(number, plan) for number, plan in enumerate(plans) if not is_finished(self.folders[number])]
        for number, plan in enumerate(plans):
            if (number, plan) not in rest:
                self.show.say(f"{self._words(number, plan)}: finished before")
        try:
            with self.workers as workers:
                self._make(rest, workers)
        except KeyboardInterrupt:
            done = sum(map(is_finished, self.folders))
            self.show.say(
                f"interrupted: {done} of {len(plans)} {self.kind}s are finished; the same command with "
                f"--out {shlex.quote(str(self.folder))} --resume makes the rest"
            )
            raise
        self.manifests = [read_manifest(run) for run in self.folders]

    def _make(self, rest: Sequence[tuple[int, dict[str, int]]], workers: Engine) -> None:
        if self.changes.get("budget"):
            done = next((run for run in self.folders if is_finished(run)), None)
            if done is None:
                workers.all([self._job(*rest[0])], 1)
                done, rest = self.folders[0], rest[1:]
            self.changes |= self._planned(read_manifest(done))
        workers.all([self._job(*each) for each in rest], len(rest))

    def _job(self, number: int, plan: dict[str, int]) -> Job:
        changes = {**self.changes, **plan}
        return training(self._words(number, plan), self.photos, self.recipe, self.folders[number], **changes)

    def _words(self, number: int, plan: dict[str, int]) -> str:
        return f"{self.kind} {plan[self.kind]}, {number + 1} of {len(self.folders)}"

    def _planned(self, first: dict[str, Any]) -> dict[str, Any]:
        """The plan that the first run fitted to its time, and another might not: one thing is to differ."""
        if not self.changes.get("budget"):
            return {}
        settled = recipe_of(self.folder, first)
        names = {each.name for each in dataclasses.fields(Recipe)} - {"preset", "presets", "seed", "fold"}
        return {name: getattr(settled, name) for name in names}

    def _share_of_budget(self, count: int) -> dict[str, str]:
        budget = self.changes.get("budget", starting_recipe(self.photos, self.recipe).budget)
        return {"budget": f"{max(1, seconds_in(budget) // count)}s"} if seconds_in(budget) else {}

    def _refuse(self, resume: bool) -> None:
        if resume and not self.given:
            raise OutputError(f"--resume goes on in a folder of {self.kind}s. Give it with --out.")
        if is_finished(self.folder):
            raise OutputError(f"{self.folder} holds a finished run. Choose another --out, or remove it.")
        done = [run for run in self.folders if is_finished(run)]
        done += [self.folder] if (self.folder / EXPERIMENTS[self.kind]).exists() else []
        if done and not resume:
            raise OutputError(
                f"{done[0]} holds a finished run. Choose another --out, remove it, or give --resume to make the rest."
            )

    def _refuse_others(self, plans: Sequence[dict[str, int]]) -> None:
        """Refuses to go on with runs that were asked for something else."""
        changes = {**self.changes, **plans[0]}
        recipe, table = understand(self.photos, self.recipe, show=Show(), **changes)
        planned = recipe.changed(**self._planned(next(read_manifest(run) for run in self.folders if is_finished(run))))
        for plan, run in zip(plans, self.folders, strict=True):
            if not is_finished(run):
                continue
            begun = read_manifest(run).get("asked")
            if begun is None:
                raise OutputError(f"{run} does not tell what it was asked for; an older version made it. Remove it.")
            # the run that made the plan, which may have been removed, was asked for the budget, the others for the plan
            meant = recipe if begun["recipe"].get("budget") else planned
            wanted = asked_for(meant.changed(**plan), table)
            other = (
                ["photos"]
                if begun["photos"] != wanted["photos"]
                else list(differing(begun["recipe"], wanted["recipe"]))
            )
            if other:
                raise OutputError(
                    f"{run} was made with other {', '.join(other)}. Give the same as then, or choose another --out."
                )


def _one_process() -> None:
    """Sees that this process is no one of several, which would all write the same folders."""
    if named() > 1:
        raise RecipeError("Several processes go with a single run, and these are several runs. Start one process.")


def _row(run: Path, manifest: Mapping[str, Any], split: str) -> dict[str, Any]:
    numbers = manifest["metrics"][split]
    return {
        "folder": str(run),
        "accuracy": numbers["tta"]["accuracy"],
        "plain": numbers["plain"]["accuracy"],
        "seconds": round(sum(manifest["seconds"].values()), 1),
    }


def _spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [run["accuracy"] for run in runs]
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "least": min(values), "most": max(values)}


# ---- what folds are together ----------------------------------------------------------------------------------------


def _out_of_fold(series: _Series, tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """Writes the predictions of each fold's valid photos as one table, and measures it."""
    import pandas as pd

    from .metrics import measure

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
    from .metrics import averaged, measure, same_or_not

    recipe = series.manifests[0]["recipe"]
    rows = [table[table["split"] == "test"] for table in tables]
    temperatures = [manifest["calibration"].get("temperature") for manifest in series.manifests]
    together = averaged(rows, temperatures, recipe["labels"], recipe["threshold"])
    write(series.folder / "predictions.csv", together.to_csv(index=False))
    best = max(rows, key=lambda each: (each["predicted"] == each["label"]).mean())
    return {"test": measure(together, recipe["labels"])["test"], "against_best": same_or_not(best, together)}
