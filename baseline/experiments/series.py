"""A series of runs of one recipe on the same images that differ in one setting, such as the seed or the fold."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.data.prepare import load_images, run_request
from baseline.errors import OutputError, RecipeError
from baseline.experiments.jobs import training_job
from baseline.experiments.metric_comparison import metric_besides_accuracy
from baseline.make import own_kind
from baseline.parallel.distributed import environment_world_size
from baseline.parallel.executor import get_executor
from baseline.progress import Progress
from baseline.recipe.choose import choose_recipe, starting_recipe
from baseline.recipe.diff import diff_recipes, flat_recipe
from baseline.recipe.fields import parse_duration
from baseline.recipe.schema import LEAVES, Recipe
from baseline.report.headline import headline_view, named_headline
from baseline.runs.folder import is_finished, lock_folder, new_run_path, read_manifest, run_name
from baseline.runs.manifest import recipe_from_manifest
from baseline.vision.model_folder import EXPERIMENT_FILES
from baseline.vision.own_parts import ACCEPTED as PARTS
from baseline.vision.own_parts import OwnParts

if TYPE_CHECKING:
    from baseline.parallel.executor import Executor, Job
    from baseline.runs.manifest import Manifest

__all__ = [
    "RunSeries", "accuracy_spread", "metric_spread", "refuse_own_parts", "require_single_process", "summary_row",
]  # fmt: skip


class RunSeries:
    """Runs of one recipe on the same images that differ in one setting, each in a folder of its own."""

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
        if own_kind(images) == "Learner":
            raise RecipeError(f"A Learner trains on, so that {kind}s would not start alike. Pass its DataLoaders.")
        self.executor = get_executor(executor, progress)
        self.parts = OwnParts(**{name: changes[name] for name in PARTS if name in changes})
        self.changes = {name: value for name, value in changes.items() if name not in PARTS}
        self.kind, self.images, self.recipe, self.progress = kind, images, recipe, progress
        chosen, place = choose_recipe(images, recipe)
        self.folder = new_run_path(out, run_name(place, chosen.name))
        self.has_out = out is not None
        self.folders: list[Path] = []
        self.manifests: list[Manifest] = []

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder, and lock it against other runs during the block."""
        with lock_folder(self.folder, named=self.has_out) as self.folder:
            yield

    def run(self, plans: Sequence[dict[str, int]], *, resume: bool) -> None:
        """Make all runs; with `resume`, keep those that are finished."""
        if names := self.parts.names():
            self.progress.log(
                f"{', '.join(names)}: each {self.kind} gets copies, so that none starts with another's state"
            )
        self.folders = [self.folder / f"{self.kind}-{plan[self.kind]}" for plan in plans]
        self._check_folders(resume)
        self.changes |= self._budget_per_run(len(plans))
        if resume and any(is_finished(run) for run in self.folders):
            self._check_same_request(plans)
        remaining = [(number, plan) for number, plan in enumerate(plans) if not is_finished(self.folders[number])]
        for number, plan in enumerate(plans):
            if (number, plan) not in remaining:
                self.progress.log(f"{self._title(number, plan)}: already finished")
        try:
            with self.executor as executor:
                self._run_remaining(remaining, executor)
        except KeyboardInterrupt:
            finished = sum(map(is_finished, self.folders))
            self.progress.log(
                f"interrupted: {finished} of {len(plans)} {self.kind}s are finished; run the same command with "
                f"--out {shlex.quote(str(self.folder))} --resume for the remaining ones"
            )
            raise
        self.manifests = [read_manifest(run) for run in self.folders]
        note_other_devices(self.manifests, self.progress)

    def _run_remaining(self, remaining: Sequence[tuple[int, dict[str, int]]], executor: Executor) -> None:
        if self.changes.get("budget"):
            first = next((run for run in self.folders if is_finished(run)), None)
            if first is None:
                executor.run([self._job(*remaining[0])], 1)
                first, remaining = self.folders[0], remaining[1:]
            self.changes |= self._first_plan(read_manifest(first))
        executor.run([self._job(number, plan) for number, plan in remaining], len(remaining))

    def _job(self, number: int, plan: dict[str, int]) -> Job:
        changes = {**self.changes, **self.parts.copies(), **plan}
        return training_job(self._title(number, plan), self.images, self.recipe, self.folders[number], **changes)

    def _title(self, number: int, plan: dict[str, int]) -> str:
        return f"{self.kind} {plan[self.kind]}, {number + 1} of {len(self.folders)}"

    def _first_plan(self, manifest: Manifest) -> dict[str, Any]:
        """Return the settings that the first run chose to fit its budget.

        All runs use them, because another run might choose others, and runs should differ in one setting only.
        """
        if not self.changes.get("budget"):
            return {}
        resolved = recipe_from_manifest(self.folder, manifest)
        names = {*LEAVES, "augment", "stages"} - {"fold"}
        return {name: resolved.value(name) for name in names}

    def _budget_per_run(self, count: int) -> dict[str, str]:
        budget = self.changes.get("budget", starting_recipe(self.images, self.recipe).training.budget)
        return {"budget": f"{max(1, parse_duration(budget) // count)}s"} if parse_duration(budget) else {}

    def _check_folders(self, resume: bool) -> None:
        """Raise an OutputError if finished runs are in the way."""
        if resume and not self.has_out:
            raise OutputError(f"--resume needs the folder of the {self.kind}s: --out FOLDER.")
        if is_finished(self.folder):
            raise OutputError(f"{self.folder} holds a finished run. Choose another --out, or remove it.")
        finished = [run for run in self.folders if is_finished(run)]
        finished += [self.folder] if (self.folder / EXPERIMENT_FILES[self.kind]).exists() else []
        if finished and not resume:
            raise OutputError(
                f"{finished[0]} holds a finished run. Choose another --out, remove it, or give --resume for the "
                "remaining runs."
            )

    def _check_same_request(self, plans: Sequence[dict[str, int]]) -> None:
        """Raise an OutputError if a finished run was made with other images or another recipe."""
        if own_kind(self.images):
            raise OutputError("Finished runs on DataLoaders cannot be compared with yours. Choose another --out.")
        changes, parts = {**self.changes, **plans[0]}, self.parts.names()
        recipe, table = load_images(self.images, self.recipe, progress=Progress(), **changes)
        first = next(read_manifest(run) for run in self.folders if is_finished(run))
        planned_recipe = recipe.changed(**self._first_plan(first))
        for plan, run in zip(plans, self.folders, strict=True):
            if not is_finished(run):
                continue
            request = read_manifest(run).get("asked")
            if request is None:
                raise OutputError(f"{run} was made by an older version, which did not record its settings. Remove it.")
            # the run that made the plan (it may have been removed) was given the budget, the others the plan
            expected_recipe = recipe if flat_recipe(request["recipe"]).get("budget") else planned_recipe
            expected = run_request(expected_recipe.changed(**plan), table)
            differences = (
                ["images"]
                if request["images"] != expected["images"]
                else list(diff_recipes(request["recipe"], expected["recipe"]))
            )
            differences += ["parts of your own"] if request.get("own_parts", {}) != parts else []
            if differences:
                listing = ", ".join(differences)
                raise OutputError(
                    f"{run} was trained with different settings ({listing}). Use the same, or choose another --out."
                )


def note_other_devices(manifests: Sequence[Manifest], progress: Progress) -> None:
    """Log that the runs were not all trained on the same device with the same number of threads."""
    devices = list(dict.fromkeys(str(manifest.get("device", "")) for manifest in manifests))
    if len(devices) > 1:
        names = "; ".join(devices)
        progress.log(f"the runs were trained on different devices: {names}. The last digits depend on the device")


def refuse_own_parts(what: str, images: Any, changes: Mapping[str, Any]) -> None:
    """Raise a RecipeError if DataLoaders, a Learner or custom parts were passed to something that takes images only."""
    names = [f"your {kind}"] if (kind := own_kind(images)) else [name for name in PARTS if name in changes]
    if names:
        raise RecipeError(f"{what} does not take {' and '.join(names)}. Pass images and fields of the recipe only.")


def require_single_process() -> None:
    """Raise a RecipeError in a distributed process, because all processes would write to the same folders."""
    if environment_world_size() > 1:
        raise RecipeError("Seeds and folds cannot be trained in several processes. Start a single process.")


def summary_row(run: Path, manifest: Manifest, split: str) -> dict[str, Any]:
    """Return a run's folder, the accuracy and the metric that its recipe names, both with TTA where the headline of the
    run is, whether it is, the accuracy without TTA, the logistic regression beside the result, and seconds."""
    metrics, view = manifest["metrics"][split], headline_view(manifest)
    headline, probe = named_headline(manifest, split, view), manifest.get("probe")
    return {
        "folder": str(run),
        "accuracy": metrics[view]["accuracy"],
        "tta": view == "tta",
        "plain": metrics["plain"]["accuracy"],
        **({headline.metric.name: headline.value} if headline else {}),
        **({"probe": {key: probe[key] for key in ("split", "metric", "value")}} if probe else {}),
        "seconds": round(sum(manifest["seconds"].values()), 1),
    }


def accuracy_spread(runs: Sequence[Mapping[str, Any]], name: str = "accuracy") -> dict[str, Any]:
    """Return mean, sample standard deviation, minimum and maximum of the accuracies, or of another metric."""
    values = [run[name] for run in runs if run[name] is not None]
    if not values:
        return dict.fromkeys(("mean", "sd", "least", "most"))
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "least": min(values), "most": max(values)}


def metric_spread(runs: Sequence[Mapping[str, Any]], manifest: Manifest) -> dict[str, Any] | None:
    """Return the name of the metric that the recipe names, if it is not the accuracy, and its spread over the runs."""
    metric = metric_besides_accuracy(manifest)
    return None if metric is None else {"name": metric.name, **accuracy_spread(runs, metric.name)}
