"""TODO."""

from __future__ import annotations

import dataclasses
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.data.prepare import load_images, run_request
from baseline.errors import OutputError, RecipeError
from baseline.experiments.jobs import training_job
from baseline.inference.model_folder import EXPERIMENT_FILES
from baseline.parallel.distributed import environment_world_size
from baseline.parallel.executor import get_executor
from baseline.progress import Progress
from baseline.recipe.choose import starting_recipe
from baseline.recipe.diff import diff_recipes
from baseline.recipe.schema import Recipe, parse_duration
from baseline.runs.folder import is_finished, lock_folder, new_run_path, read_manifest
from baseline.runs.manifest import recipe_from_manifest

if TYPE_CHECKING:
    from baseline.parallel.executor import Executor, Job


class RunSeries:
    """Runs of one recipe on the same images that differ in one thing, each in a folder of its own."""

    def __init__(
        self,
        kind: str,
        images: Any,
        recipe: str | Path | Recipe,
        changes: Mapping[str, Any],
        out: str | Path | None,
        progress: Progress,
        executor: str,
    ) -> None:
        require_single_process()
        self.workers = get_executor(executor, progress)
        self.kind, self.images, self.recipe, self.changes, self.progress = kind, images, recipe, dict(changes), progress
        name = starting_recipe(images, recipe).name
        self.folder = new_run_path(out, name)
        self.given = out is not None
        self.folders: list[Path] = []
        self.manifests: list[dict[str, Any]] = []

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, the folder is there and no other run's."""
        with lock_folder(self.folder, named=self.given) as self.folder:
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
                self.progress.log(f"{self._words(number, plan)}: finished before")
        try:
            with self.workers as workers:
                self._make(rest, workers)
        except KeyboardInterrupt:
            done = sum(map(is_finished, self.folders))
            self.progress.log(
                f"interrupted: {done} of {len(plans)} {self.kind}s are finished; the same command with "
                f"--out {shlex.quote(str(self.folder))} --resume makes the rest"
            )
            raise
        self.manifests = [read_manifest(run) for run in self.folders]

    def _make(self, rest: Sequence[tuple[int, dict[str, int]]], workers: Executor) -> None:
        if self.changes.get("budget"):
            done = next((run for run in self.folders if is_finished(run)), None)
            if done is None:
                workers.run([self._job(*rest[0])], 1)
                done, rest = self.folders[0], rest[1:]
            self.changes |= self._planned(read_manifest(done))
        workers.run([self._job(*each) for each in rest], len(rest))

    def _job(self, number: int, plan: dict[str, int]) -> Job:
        changes = {**self.changes, **plan}
        return training_job(self._words(number, plan), self.images, self.recipe, self.folders[number], **changes)

    def _words(self, number: int, plan: dict[str, int]) -> str:
        return f"{self.kind} {plan[self.kind]}, {number + 1} of {len(self.folders)}"

    def _planned(self, first: dict[str, Any]) -> dict[str, Any]:
        """The plan that the first run fitted to its time, and another might not: one thing is to differ."""
        if not self.changes.get("budget"):
            return {}
        settled = recipe_from_manifest(self.folder, first)
        names = {each.name for each in dataclasses.fields(Recipe)} - {"preset", "presets", "seed", "fold"}
        return {name: getattr(settled, name) for name in names}

    def _share_of_budget(self, count: int) -> dict[str, str]:
        budget = self.changes.get("budget", starting_recipe(self.images, self.recipe).budget)
        return {"budget": f"{max(1, parse_duration(budget) // count)}s"} if parse_duration(budget) else {}

    def _refuse(self, resume: bool) -> None:
        if resume and not self.given:
            raise OutputError(f"--resume goes on in a folder of {self.kind}s. Give it with --out.")
        if is_finished(self.folder):
            raise OutputError(f"{self.folder} holds a finished run. Choose another --out, or remove it.")
        done = [run for run in self.folders if is_finished(run)]
        done += [self.folder] if (self.folder / EXPERIMENT_FILES[self.kind]).exists() else []
        if done and not resume:
            raise OutputError(
                f"{done[0]} holds a finished run. Choose another --out, remove it, or give --resume to make the rest."
            )

    def _refuse_others(self, plans: Sequence[dict[str, int]]) -> None:
        """Refuses to go on with runs that were asked for something else."""
        changes = {**self.changes, **plans[0]}
        recipe, table = load_images(self.images, self.recipe, progress=Progress(), **changes)
        planned = recipe.changed(**self._planned(next(read_manifest(run) for run in self.folders if is_finished(run))))
        for plan, run in zip(plans, self.folders, strict=True):
            if not is_finished(run):
                continue
            begun = read_manifest(run).get("asked")
            if begun is None:
                raise OutputError(f"{run} does not tell what it was asked for; an older version made it. Remove it.")
            # the run that made the plan, which may have been removed, was asked for the budget, the others for the plan
            meant = recipe if begun["recipe"].get("budget") else planned
            wanted = run_request(meant.changed(**plan), table)
            other = (
                ["images"]
                if begun["images"] != wanted["images"]
                else list(diff_recipes(begun["recipe"], wanted["recipe"]))
            )
            if other:
                raise OutputError(
                    f"{run} was made with other {', '.join(other)}. Give the same as then, or choose another --out."
                )


def require_single_process() -> None:
    """Sees that this process is no one of several, which would all write the same folders."""
    if environment_world_size() > 1:
        raise RecipeError("Several processes go with a single run, and these are several runs. Start one process.")


def summary_row(run: Path, manifest: Mapping[str, Any], split: str) -> dict[str, Any]:
    numbers = manifest["metrics"][split]
    return {
        "folder": str(run),
        "accuracy": numbers["tta"]["accuracy"],
        "plain": numbers["plain"]["accuracy"],
        "seconds": round(sum(manifest["seconds"].values()), 1),
    }


def accuracy_spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [run["accuracy"] for run in runs]
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "least": min(values), "most": max(values)}
