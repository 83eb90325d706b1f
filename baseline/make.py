"""`make_baseline`: the pipeline from images to a run folder.

Each step calls the subpackage that does it: `data` reads and splits the images, `vision` makes the DataLoaders and
the Learner, `training` trains the stages, `evaluation` predicts and measures, and `runs` writes the results. The
`report` subpackage adds pages and pictures where it is installed; nothing before it depends on it.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Unpack, cast

from baseline.data.prepare import (
    Prepared,
    count_by_split,
    load_image_table,
    metric_notes,
    prepare_table,
    run_request,
    splits_differ,
)  # fmt: skip
from baseline.errors import OutputError, RecipeError
from baseline.parallel.distributed import broadcast_from_rank0, process_group, rank, world_size
from baseline.progress import ConsoleProgress, Progress, format_duration
from baseline.recipe.choose import apply_changes, choose_recipe
from baseline.recipe.diff import diff_recipes
from baseline.recipe.fields import parse_duration
from baseline.recipe.schema import NO_AUGMENT, Recipe
from baseline.runs.folder import create_run_folder, is_finished, run_name, scratch_folder
from baseline.runs.manifest import build_manifest, describe_device, logger_config, recipe_from_manifest, source_name
from baseline.runs.timing import RunTimer, bottleneck, time_by_part
from baseline.runs.writing import write_fixes, write_run, write_training
from baseline.system import device_type, fast_imports
from baseline.vision.own_parts import OwnParts, part_name
from baseline.vision.resolve import resolve

if TYPE_CHECKING:
    import pandas as pd
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    from baseline.evaluation.results import Metrics
    from baseline.inference.model import Model
    from baseline.recipe.changes import RecipeChanges
    from baseline.runs.manifest import Manifest
    from baseline.runs.probe_reference import ProbeFolds, ProbeReference
    from baseline.training.budget import Estimate
    from baseline.training.state import History
    from baseline.vision.weights import Weights

__all__ = ["Baseline", "make_baseline", "resume"]


@dataclass(frozen=True)
class Baseline:
    """A finished run."""

    learner: Learner
    """The whole network with the weights that were kept, in evaluation mode: a complete fastai Learner."""
    metrics: Metrics
    """By split, plain and with test-time augmentation (TTA); see `baseline.evaluate`."""
    predictions: pd.DataFrame
    """One row per image of the valid and test splits; see `baseline.predict`."""
    history: History
    folder: Path
    """The run folder."""
    recipe: Recipe
    """The recipe as it was run: architecture, batch size, precision, image size, epochs, split, task are resolved."""
    manifest: Manifest
    """The content of `manifest.json`."""
    transforms: tuple[Any, Any] = (None, None)
    """The `item_tfms` and `batch_tfms` that were given."""

    @cached_property
    def model(self) -> Model:
        """The saved model, as `baseline.load` returns it.

        Raises:
            OutputError: if the DataLoaders or the network were the caller's own; `learner` predicts with them.
        """
        from baseline.inference.model import load_model

        return load_model(self.folder, *self.transforms)

    def __repr__(self) -> str:
        return f"Baseline({str(self.folder)!r})"

    def _repr_html_(self) -> str | None:
        """Return what a notebook shows; None, which shows the text, in the other processes of a distributed run."""
        if not (self.manifest and find_spec("baseline.report")):
            return None
        from baseline.report.run_card import run_card

        return run_card(self.folder, self.manifest)

    def predict(self, images: Any, **options: Any) -> pd.DataFrame:
        """Predict images with the saved model; see `baseline.Model.predict`.

        >>> result.predict("holiday/")                                             # doctest: +SKIP
        """
        return self.model.predict(images, **options)


def make_baseline(
    images: str | Path | pd.DataFrame | DataLoaders | Learner | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    item_tfms: Any = None,
    batch_tfms: Any = None,
    loss_func: Any = None,
    metrics: Any = None,
    cbs: Any = None,
    **changes: Unpack[RecipeChanges],
) -> Baseline:
    """Train a baseline on images and return the model, its metrics and the folder that holds them.

    An interrupted or killed run is resumed by the same call with its folder as `out`, and ends with the numbers that it
    would have had (on a CPU with the same number of threads to the last digit); `resume(folder)` is the short form.

    In a distributed run (`torchrun`, `accelerate launch`, `baseline run --processes`) every process trains on its part
    of each batch and predicts its part of the images. The first process writes files and reports progress; in the
    others the result has no metrics and no manifest.

    Args:
        images: anything that `image_table` reads: a folder, a CSV, TSV or Parquet file, a DataFrame, a zip or tar
            archive, the name of a dataset such as `"cifar10"`; or None for the recipe's own dataset. The name of a
            dataset selects the recipe of that name. Or fastai DataLoaders, or a Learner, of your own: they are used as
            they are, and their train and valid images are those of the run.
        recipe: the name of a recipe, a TOML file, a run's manifest.json, or a `Recipe`.
        out: the run folder; by default `runs/NAME-DATE-TIME`, named after the images.
        seed: random seed for splits and training; the recipe's by default.
        progress: where progress goes; the terminal by default, `Progress()` for nowhere.
        item_tfms: transforms of your own, in fastai's meaning, as are the following arguments: run on each image before
            it becomes a square, in training, validation and prediction. See `baseline.dataloaders`.
        batch_tfms: transforms of your own for batches, in place of the recipe's augmentation.
        loss_func: a loss of your own, in place of the recipe's. Probabilities are the softmax of the network's outputs,
            with several labels the sigmoid, whatever the loss.
        metrics: metrics of your own, recorded in the history beside the one that decides which epoch to keep.
        cbs: callbacks of your own; see `baseline.learner`.
        **changes: fields of `Recipe` to change, by flat name (`image_size=128`) or by group, and `preset` (`"quick"`,
            `"standard"`, `"best"`).

    Raises:
        BaselineError: with a one-line message that states the problem, what was expected, and a fix; also if `out`
            holds an unfinished run with another recipe or other images.

    >>> result = make_baseline("images/", preset="quick")                          # doctest: +SKIP
    >>> result.metrics["test"]["tta"]["accuracy"]                                  # doctest: +SKIP
    0.9634
    """
    progress, parts = progress or ConsoleProgress(), OwnParts(item_tfms, batch_tfms, loss_func, metrics, cbs)
    if kind := own_kind(images):
        parts.refuse_beside(kind, changes)
    run_class: type[_Run] = _OwnDataRun if kind else _Run
    repeated = Path(str(recipe)) if images is None and str(recipe).endswith(".json") else None
    chosen, images = choose_recipe(images, recipe)
    chosen, reasons = apply_changes(chosen, seed, dict(changes))
    if chosen.options.loggers:
        from baseline.training.loggers import check_loggers

        check_loggers(chosen.options.loggers)
    with process_group(), ExitStack() as stack:
        if world_size() > 1 and parse_duration(chosen.training.budget):
            raise RecipeError("budget works in a single process only. Leave out budget, or the other processes.")
        if rank() == 0:
            folder = broadcast_from_rank0(
                lambda: stack.enter_context(create_run_folder(out, run_name(images, chosen.name)))
            )
            return run_class(images, chosen, reasons, folder, folder, progress, parts, repeated).run()
        run_folder = broadcast_from_rank0(lambda: Path())
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        return run_class(images, chosen, reasons, scratch, run_folder, Progress(), parts).run()


def resume(run: str | Path, *, progress: Progress | None = None, **changes: Unpack[RecipeChanges]) -> Baseline:
    """Resume an unfinished run from its folder; see `make_baseline`.

    Args:
        **changes: fields of `RunOptions`, which cannot change the result: `loggers`, `cache_gb`, `workers`.

    Raises:
        OutputError: if the folder holds no unfinished run, one that another version began, or one of a DataFrame,
            which has to be passed again.

    >>> resume("runs/mine")                                                        # doctest: +SKIP
    """
    from baseline.training.checkpoint import Checkpoints

    run = Path(run).expanduser()
    checkpoints = Checkpoints(run)
    if not checkpoints.exists:
        state = "holds a finished run" if is_finished(run) else "holds no unfinished run"
        raise OutputError(f"{run} {state}. Pass the folder of a run that was interrupted.")
    saved = checkpoints.read_start()
    images = saved.get("images", saved.get("photos"))
    if images is None:
        raise OutputError(
            f"{run} was started with a table in memory. Call make_baseline with that table and out={str(run)!r}."
        )
    return make_baseline(images, recipe_from_manifest(run, saved["asked"]), out=run, progress=progress, **changes)


class _Run:
    """One run, step by step; `run` goes through all of them in order.

    Args:
        folder: where this process writes; a temporary folder in all processes but the first.
        run_folder: the run folder.
        repeated: the manifest of the run that this one repeats.
    """

    table: pd.DataFrame
    prepared: Prepared
    image_shape: tuple[int, ...] = ()
    """Height and width of the images of the caller's DataLoaders."""

    def __init__(
        self, images: Any, recipe: Recipe, reasons: dict[str, str], folder: Path, run_folder: Path, progress: Progress,
        parts: OwnParts, repeated: Path | None = None,
    ) -> None:  # fmt: skip
        self.images, self.recipe, self.reasons, self.progress = images, recipe, reasons, progress
        self.folder, self.run_folder, self.parts, self.repeated = folder, run_folder, parts, repeated
        self.timer = RunTimer()

    def run(self) -> Baseline:
        """Read, split, train, evaluate and write, in this order."""
        with self.timer.part("data"):
            self._read()
            self.request = run_request(self.recipe, self.table, self.parts.names())
        with fast_imports():
            from baseline.evaluation.calibration import calibration_report
            from baseline.evaluation.metrics import evaluate
            from baseline.evaluation.predict import predict
            from baseline.evaluation.results import flatten_metrics
            from baseline.training.checkpoint import Checkpoints
            from baseline.vision.rng import seed_everything

        self.checkpoints = Checkpoints(self.run_folder)
        with seed_everything(self.recipe.seed), ExitStack() as stack:
            with self.timer.part("audit"):
                self._prepare()
            saved = self._saved_start()
            weights = self._resolve(saved)
            loggers = self._open_loggers(stack)
            with self.timer.part("decoding"):
                learn = self._build_learner(weights)
            estimate = self._estimate(learn)
            reference = self._probe_reference(learn)
            history = self._train(learn, weights, loggers, estimate, saved)
            with self.timer.part("evaluation"):
                how, task = self.recipe.evaluation, self.recipe.data.task
                predictions = predict(
                    learn, self.table, how.tta, progress=self.progress, thresholds=how.thresholds, metric=how.metric,
                    tta_choice=how.tta_choice,
                )  # fmt: skip
                if reason := predictions.attrs["without_tta"]:
                    self.recipe, self.reasons["tta"] = self.recipe.changed(tta=()), reason
                if rank():
                    no_manifest = cast("Manifest", {})
                    return Baseline(
                        learn, {}, predictions, history, self.run_folder, self.recipe, no_manifest, self.transforms
                    )
                metrics = evaluate(predictions, task, how.metric)
                loggers.log_summary(flatten_metrics(metrics))
        manifest = self._manifest(weights, metrics, history, calibration_report(predictions, task), estimate)
        if reference is not None and history.probe:
            manifest = cast("Manifest", {**manifest, **reference.entries(history, predictions)})
        write_run(self.folder, learn, weights, self.table, history, predictions, manifest, self._own_transforms())
        if find_spec("baseline.inference"):
            from baseline.inference.reference import write_reference

            write_reference(self.folder, learn, self.recipe, self.table, predictions)
        self._write_report()
        self.checkpoints.remove()
        return Baseline(learn, metrics, predictions, history, self.folder, self.recipe, manifest, self.transforms)

    @property
    def transforms(self) -> tuple[Any, Any]:
        return self.parts.item_tfms, self.parts.batch_tfms

    def _own_transforms(self) -> list[str]:
        """Names of the user's transforms that images to predict have to go through."""
        return self.parts.prediction_transforms()

    def _read(self) -> None:
        """Read the image table."""
        self.recipe, self.table = load_image_table(self.images, self.recipe, self.reasons, self.progress)
        if self.parts.batch_tfms is not None:
            self.recipe = self.recipe.changed(augment=NO_AUGMENT)
            names = ", ".join(self.parts.names()["batch_tfms"]) or "none"
            self.progress.log(f"batch_tfms: {names}, in place of augmentation")

    def _prepare(self) -> None:
        """Audit and split the images, and write what was found."""
        self.prepared = prepare_table(self.table, self.recipe, self.progress)
        self.recipe, self.table = self.prepared.recipe, self.prepared.table
        self.reasons |= self.prepared.reasons
        write_fixes(self.folder, self.prepared)
        audit = self.prepared.audit
        if audit is not None and len(audit.findings) and find_spec("baseline.report"):
            from baseline.report.audit_files import write_audit

            write_audit(self.folder / "audit", audit)
        if self.repeated is not None and splits_differ(self.repeated, self.recipe, self.table):
            option = f"--split-file {shlex.quote(str(self.repeated.with_name('split.csv')))}"
            self.progress.log(
                f"images or splits differ from {self.repeated.parent}; {option} restores those that still exist"
            )

    def _saved_start(self) -> dict[str, Any] | None:
        """What an interrupted run in the folder was started with, or None for a new run."""
        checkpoints = self.checkpoints
        saved: dict[str, Any] | None = broadcast_from_rank0(
            lambda: checkpoints.verify_start(self.request, self.table) if checkpoints.exists else None
        )
        if saved:
            self.progress.log(f"resuming the run in {self.folder}")
            if (device := saved["device"]) != describe_device():
                self.progress.log(
                    f"the run was started on {device}, and this is {describe_device()}: "
                    "its numbers will differ from those of an uninterrupted run"
                )
            self.timer.began -= saved["spent"]
        return saved

    def _resolve(self, saved: dict[str, Any] | None) -> Weights | None:
        """Replace each `"auto"` of the recipe, fit it to the budget, and find the pretrained weights."""
        from baseline.vision.rng import preserve_rng_state

        with self.timer.part("weights"):
            chosen = self._choose_arch(saved)
            self.recipe, weights, reasons = resolve(self.recipe, self.table, self.progress)
            self.reasons |= reasons | chosen
        budget = self._budget = parse_duration(self.recipe.training.budget)
        if saved:
            self.recipe, self.reasons = _restore_recipe(self.run_folder, saved, self.recipe), saved["reasons"]
        elif budget:
            from baseline.training.budget_plan import plan_for_budget

            with self.timer.part("planning"), preserve_rng_state():
                end, resizable = self.timer.began + budget, "image_size" not in self.reasons
                self.recipe, self.reasons["budget"] = plan_for_budget(
                    self.recipe, self.table, end, resizable, self.progress
                )
        return weights

    def _choose_arch(self, saved: dict[str, Any] | None) -> dict[str, str]:
        """Replace an `arch` that names architectures to compare by the best of them, and return the reason."""
        if self.recipe.model.arch.partition(":")[0] != "probe":
            return {}
        if saved:
            self.recipe = self.recipe.changed(arch=saved["recipe"]["model"]["arch"])
            return {}
        from baseline.training.choose_arch import choose_arch

        self.recipe, reason = broadcast_from_rank0(lambda: choose_arch(self.recipe, self.table, self.progress))
        self.progress.log(f"arch: {self.recipe.model.arch} ({reason})")
        return {"arch": reason}

    def _open_loggers(self, stack: ExitStack) -> Progress:
        names = self.recipe.options.loggers
        if not names or rank():
            return self.progress
        from baseline.training.loggers import open_loggers
        from baseline.vision.rng import preserve_rng_state

        with self.timer.part("logs"), preserve_rng_state():
            config = logger_config(self.recipe, self.images, self.table)
            return stack.enter_context(open_loggers(names, self.folder, config, self.progress))

    def _estimate(self, learn: Learner) -> Estimate | None:
        """How long training and evaluation will take; None if the module that measures it was removed."""
        if not find_spec("baseline.training.budget"):
            return None
        from baseline.training.budget import estimate_run

        with self.timer.part("estimate"):
            estimate = estimate_run(learn, self.recipe, count_by_split(self.table), self.image_shape)
            duration = format_duration(estimate.total)
            self.progress.log(f"training and evaluation will take about {duration} on {describe_device()}")
        return estimate

    def _build_learner(self, weights: Weights | None) -> Learner:
        from baseline.vision.dataloaders import dataloaders
        from baseline.vision.learner import learner

        parts, scratch = self.parts, scratch_folder(self.folder)
        dls = dataloaders(
            self.table, self.recipe, item_tfms=parts.item_tfms, batch_tfms=parts.batch_tfms, path=scratch,
            progress=self.progress,
        )  # fmt: skip
        return learner(
            dls, self.recipe, weights=weights, loss_func=parts.loss_func, metrics=parts.metrics, cbs=parts.cbs,
            path=scratch,
        )  # fmt: skip

    def _probe_reference(self, learn: Learner) -> ProbeReference | ProbeFolds | None:
        """What the result is compared with, if training begins with a probe."""
        if rank() or self.recipe.stages[0].trains != "probe":
            return None
        from baseline.runs.probe_reference import probe_reference

        with self.timer.part("reference"):
            return probe_reference(learn, self.table, self.recipe, self.reasons["split"], self.progress)

    def _train(
        self, learn: Learner, weights: Weights | None, loggers: Progress, estimate: Estimate | None,
        saved: dict[str, Any] | None,
    ) -> History:  # fmt: skip
        from baseline.training.stages import train

        budget, recipe, deadline = self._budget, self.recipe, math.inf
        if budget and estimate:
            from baseline.training.budget_plan import reserve_seconds

            deadline = self.timer.began + budget - reserve_seconds(estimate.evaluation)
        if not saved and rank() == 0:
            start = {"images": source_name(self.images), "asked": self.request, "recipe": recipe.as_dict(),
                     "reasons": self.reasons, "device": describe_device()}  # fmt: skip
            self.checkpoints.start(start, self.table)
        interrupted = _save_on_interrupt(learn, recipe, weights, self.folder, self.progress)
        with self.timer.part("training"), interrupted:
            history = train(learn, recipe, loggers, deadline=deadline, checkpoints=self.checkpoints)
        self.timer.seconds["training"] += saved["spent"] if saved else 0
        return history

    def _manifest(
        self, weights: Weights | None, metrics: Metrics, history: History, calibration: dict[str, Any],
        estimate: Estimate | None,
    ) -> Manifest:  # fmt: skip
        seconds, stages = self.timer.seconds, history.stages
        unreadable = self.prepared.unreadable
        manifest = build_manifest(self.recipe, self.images, self.table, unreadable, weights, metrics, stages, seconds)
        times = time_by_part(seconds, stages)
        bound = bottleneck(times, self.recipe, device_type())
        manifest |= {"asked": self.request, "reasons": self.reasons, "calibration": calibration}
        manifest |= {"time": times, "bound": bound}
        if estimate:
            manifest["estimated_seconds"] = round(estimate.total, 1)
        if self.image_shape:
            manifest["image_shape"] = self.image_shape
        if parts := self.parts.names():
            manifest["own_parts"] = parts
        return manifest

    def _write_report(self) -> None:
        if find_spec("baseline.report"):
            from baseline.report.model_card import write_card
            from baseline.report.page import write_report

            if (self.folder / "model" / "model.json").exists():
                write_card(self.folder, self.progress)
            write_report(self.folder, self.progress)


class _OwnDataRun(_Run):
    """A run on DataLoaders, or with a Learner, of the caller's."""

    @cached_property
    def dls(self) -> DataLoaders:
        from fastai.learner import Learner

        from baseline.vision.own_loaders import adopt

        return adopt(self.images.dls if isinstance(self.images, Learner) else self.images)

    def _read(self) -> None:
        from baseline.vision.own_loaders import image_shape, own_table

        self.table = own_table(self.dls)
        self.dls.train.rng.seed(self.recipe.seed)
        self.image_shape = image_shape(self.dls)
        (height, width), size = self.image_shape, max(self.image_shape)
        pixels = f"{size} px" if height == width else f"{height} x {width} px (height x width)"
        task = "multilabel" if self.dls.multilabel else "single"
        self.recipe = self.recipe.changed(
            task=task, split="provided", image_size=size, batch_size=max(self.dls.train.bs, 2), augment=NO_AUGMENT,
            audit="none", stages=[dataclasses.replace(stage, image_size=0) for stage in self.recipe.stages],
        )  # fmt: skip
        self.reasons |= dict.fromkeys(("image_size", "batch_size", "split", "augment"), "your own")
        self.reasons["image_size"] = f"your own, {pixels}"
        for line in metric_notes(None, self.recipe, list(map(str, self.dls.vocab))):
            self.progress.log(line)
        self.progress.log(
            f"images: {len(self.table):,} of your DataLoaders, {pixels}, batches of {self.dls.train.bs}; "
            "they replace the recipe's image_size, batch_size, split, augmentation and audit"
        )

    def _prepare(self) -> None:
        self.prepared = Prepared(self.recipe, self.table, self.table[["path", "label"]].iloc[:0].assign(reason=""))

    def _own_transforms(self) -> list[str]:
        return ["those of your DataLoaders"]

    def _resolve(self, saved: dict[str, Any] | None) -> Weights | None:
        from fastai.learner import Learner

        if not isinstance(self.images, Learner):
            return super()._resolve(saved)
        self._budget = parse_duration(self.recipe.training.budget)
        name = getattr(self.images, "arch", type(self.images.model))
        self.recipe = self.recipe.changed(
            arch=part_name(name) if not isinstance(name, str) else name, precision="float32",
            frozen_precision="float32",
        )  # fmt: skip
        self.reasons["arch"] = "the Learner's own network"
        return None

    def _build_learner(self, weights: Weights | None) -> Learner:
        from fastai.learner import Learner

        from baseline.training.part_errors import check_parts
        from baseline.vision.learner import learner

        learn, scratch = self.images, scratch_folder(self.folder)
        if isinstance(learn, Learner):
            learn.path = scratch
        else:
            learn = learner(
                self.dls, self.recipe, weights=weights, loss_func=self.parts.loss_func, metrics=self.parts.metrics,
                cbs=self.parts.cbs, path=scratch, progress=self.progress,
            )  # fmt: skip
        check_parts(learn)
        learn.is_checked = True
        return learn


def own_kind(images: Any) -> str:
    """Return `"Learner"` or `"DataLoaders"` if the images are one of fastai's, else an empty text.

    fastai is loaded already if they are.
    """
    for module, name in (("fastai.learner", "Learner"), ("fastai.data.core", "DataLoaders")):
        if module in sys.modules and isinstance(images, getattr(sys.modules[module], name)):
            return name
    return ""


def _restore_recipe(run: Path, saved: dict[str, Any], recipe: Recipe) -> Recipe:
    """Return the original recipe of an unfinished run, with the `options` of the new call.

    Raises:
        OutputError: if this machine resolves the recipe differently.
    """
    from baseline.training.checkpoint import describe_differences

    restored = recipe_from_manifest(run, saved).changed(options=recipe.options)
    if not recipe.training.budget and (differences := diff_recipes(restored.as_dict(), recipe.as_dict())):
        raise OutputError(
            f"The unfinished run was resolved differently: {describe_differences(differences)}. Resume it where it was "
            "started, choose another out, or remove it."
        )
    return restored


@contextmanager
def _save_on_interrupt(
    learn: Learner, recipe: Recipe, weights: Weights | None, folder: Path, progress: Progress
) -> Iterator[None]:
    """On Ctrl-C, write the finished epochs and the weights kept so far, and let the interrupt pass."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        history = getattr(interrupt, "history", None)
        if history is not None and len(history.epochs):
            write_training(folder, learn, history, recipe, weights)
            count = len(history.epochs)
            progress.log(f"interrupted: the weights kept from {count} finished epochs are in {folder / 'model'}")
        if not progress.part_of_series:
            progress.log(f"to resume: baseline run {shlex.quote(str(folder))} --resume")
        raise
