"""`make_baseline`: the rooms, called once each, in order. Knows their order; does none of their work."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from baseline.data.prepare import count_by_split, load_image_table, prepare_table, run_request, splits_differ
from baseline.errors import OutputError, RecipeError
from baseline.parallel.distributed import broadcast_from_rank0, process_group, rank, world_size
from baseline.progress import ConsoleProgress, Progress, format_duration
from baseline.recipe.choose import apply_changes, choose_recipe
from baseline.recipe.diff import diff_recipes
from baseline.recipe.schema import Recipe, parse_duration
from baseline.runs.folder import create_run_folder, is_finished
from baseline.runs.manifest import build_manifest, describe_device, logger_config, recipe_from_manifest, source_name
from baseline.runs.timing import RunTimer, bottleneck, time_by_part
from baseline.runs.writing import write_run, write_training
from baseline.system import device_type
from baseline.training.budget import plan_for_budget, reserve_seconds
from baseline.training.loggers import check_loggers, flatten_metrics, open_loggers
from baseline.vision.resolve import resolve

if TYPE_CHECKING:
    import pandas as pd
    from fastai.learner import Learner

    from baseline.inference.model import Model
    from baseline.training.state import History
    from baseline.vision.weights import Weights

__all__ = ["Baseline", "make_baseline", "resume"]


@dataclass(frozen=True)
class Baseline:
    """A finished run."""

    learner: Learner
    """The whole network with its best weights, in evaluation mode: a complete fastai Learner."""
    metrics: dict[str, dict[str, Any]]
    """By split, plain and with test-time augmentation; see `baseline.evaluate`."""
    predictions: pd.DataFrame
    """One row an image of the valid and test splits; see `baseline.predict`."""
    history: History
    folder: Path
    """Where everything was written."""
    recipe: Recipe
    """With every `"auto"` settled."""
    manifest: dict[str, Any]
    """What `manifest.json` says."""

    @cached_property
    def model(self) -> Model:
        """What `baseline.load` makes of the run folder."""
        from baseline.inference.model import load_model

        return load_model(self.folder)

    def predict(self, images: Any, **options: Any) -> pd.DataFrame:
        """Predictions for images: `baseline.Model.predict` of the saved model, with its options.

        >>> done.predict("holiday/")                                               # doctest: +SKIP
        """
        return self.model.predict(images, **options)


def make_baseline(
    images: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Baseline:
    """Trains a baseline on images and returns the model, its numbers and the folder that holds them.

    A run that was interrupted, or killed, goes on when it is called again in the same way with its folder as `out`, and
    ends with the numbers that it would have had (on a CPU to the last digit); `resume(folder)` is short for that.

    In a process of several (`torchrun`, `accelerate launch`, `baseline run --processes`) it trains with the others:
    each sees its part of every batch, and of the images that are predicted. The first one writes and tells; in the
    others the result has no metrics and no manifest.

    Args:
        images: what `image_table` takes: a folder, a CSV, TSV or Parquet file, a DataFrame, a zip or tar, the name of
            a data set such as `"cifar10"`; or None to use the recipe's own data set. The name of a data set brings
            the recipe of that name.
        recipe: the name of a recipe, a TOML file, a run's manifest.json, or a `Recipe`.
        out: the run folder; `runs/NAME-DATE-TIME` if not given.
        seed: of splits and training; the recipe's if not given.
        show: where progress goes; the terminal if not given, `Progress()` for nowhere.
        **changes: fields of `Recipe` to change, and `preset` (`"quick"`, `"standard"`, `"best"`).

    Raises:
        BaselineError: with one line that says what is, what was needed and what to do; also if `out` holds an
            unfinished run of another recipe or of other images.

    >>> done = make_baseline("images/", preset="quick")                            # doctest: +SKIP
    >>> done.metrics["test"]["tta"]["accuracy"]                                    # doctest: +SKIP
    0.9634
    """
    progress = progress or ConsoleProgress()
    again = Path(str(recipe)) if images is None and str(recipe).endswith(".json") else None
    chosen, images = choose_recipe(images, recipe)
    chosen, reasons = apply_changes(chosen, seed, changes)
    check_loggers(chosen.log)
    with process_group(), ExitStack() as stack:
        if world_size() > 1 and parse_duration(chosen.budget):
            raise RecipeError("A budget goes with one process. Leave out --budget, or --processes.")
        if rank() == 0:
            folder = broadcast_from_rank0(lambda: stack.enter_context(create_run_folder(out, chosen.name)))
            return _run(images, chosen, reasons, folder, folder, progress, again)
        whole = broadcast_from_rank0(lambda: Path())
        own = Path(stack.enter_context(TemporaryDirectory()))
        return _run(images, chosen, reasons, own, whole, Progress())


def resume(run: str | Path, *, progress: Progress | None = None, **changes: Any) -> Baseline:
    """Goes on with an unfinished run, by what its folder tells of it; see `make_baseline`.

    Args:
        **changes: fields of `Recipe` that change no number and may be others now: `log`, `cache_gb`, `workers`.

    Raises:
        OutputError: if the folder holds no unfinished run, or one of another version, or of a DataFrame, which has to
            be given again.

    >>> resume("runs/mine")                                                         # doctest: +SKIP
    """
    from baseline.training.checkpoint import Checkpoints

    run = Path(run).expanduser()
    checkpoints = Checkpoints(run)
    if not checkpoints.exists:
        words = "holds a finished run" if is_finished(run) else "holds no unfinished run"
        raise OutputError(f"{run} {words}. Give the folder of a run that was interrupted.")
    begun = checkpoints.read_start()
    if begun["images"] is None:
        raise OutputError(f"{run} was begun with a table in memory. Call make_baseline with it and out={str(run)!r}.")
    return make_baseline(
        begun["images"], recipe_from_manifest(run, begun["asked"]), out=run, progress=progress, **changes
    )


def _run(
    images: Any,
    chosen: Recipe,
    reasons: dict[str, str],
    folder: Path,
    whole: Path,
    progress: Progress,
    again: Path | None = None,
) -> Baseline:
    """The road, from images to the run folder.

    Args:
        folder: where this process writes; for all but the first of several a place that will go.
        whole: the run folder.
        again: the manifest of the run that this one repeats.
    """
    clock = RunTimer()
    with clock.part("data"):
        chosen, table = load_image_table(images, chosen, reasons, progress)
        asked = run_request(chosen, table)
    from baseline.evaluation.calibration import calibration_report
    from baseline.evaluation.metrics import evaluate
    from baseline.evaluation.predict import predict
    from baseline.report.model_card import write_card
    from baseline.report.page import write_report
    from baseline.training.budget import Throughput, estimate_seconds
    from baseline.training.checkpoint import Checkpoints
    from baseline.training.frozen import FrozenOutputs
    from baseline.training.stages import train
    from baseline.vision.dataloaders import dataloaders
    from baseline.vision.learner import learner
    from baseline.vision.rng import preserve_rng_state, seed_everything

    checkpoints = Checkpoints(whole)
    with seed_everything(chosen.seed), ExitStack() as stack:
        with clock.part("audit"):
            chosen, table, unread = prepare_table(table, chosen, folder, progress, reasons)
            if again is not None and splits_differ(again, chosen, table):
                option = f"--split-file {shlex.quote(str(again.with_name('split.csv')))}"
                words = f"other images or splits than in {again.parent}"
                progress.log(f"{words}; {option} takes those, where all are there still")
        begun = broadcast_from_rank0(lambda: checkpoints.verify_start(asked, table) if checkpoints.exists else None)
        if begun:
            progress.log(f"going on with what was begun in {folder}")
            if (before := begun["device"]) != describe_device():
                words = f"it was begun on {before}, and this is {describe_device()}"
                progress.log(f"{words}: its numbers will be others than those of an undisturbed run")
            clock.began -= begun["spent"]
        with clock.part("weights"):
            chosen, weights, more = resolve(chosen, table, progress)
            reasons |= more
        budget = parse_duration(chosen.budget)
        if begun:
            chosen, reasons = _restore_recipe(begun, chosen), begun["reasons"]
        elif budget:
            with clock.part("planning"), preserve_rng_state():
                resizable = "image_size" not in reasons
                chosen, reasons["budget"] = plan_for_budget(chosen, table, clock.began + budget, resizable, progress)
        with clock.part("logs") if chosen.log else nullcontext(), preserve_rng_state():
            logs = stack.enter_context(
                open_loggers(chosen.log if rank() == 0 else (), folder, logger_config(chosen, images, table), progress)
            )
        with clock.part("decoding"):
            dls = dataloaders(table, chosen, path=folder, progress=progress)
            learn = learner(dls, chosen, weights=weights, path=folder)
        with clock.part("estimate"):
            rates = Throughput(learn.model, learn.splitter, chosen)
            ready = FrozenOutputs(learn, chosen).cached_stages()
            expected = estimate_seconds(rates, chosen, count_by_split(table), ready)
            progress.log(
                f"training and evaluation will take about {format_duration(expected.total)} on {describe_device()}"
            )
        deadline = clock.began + budget - reserve_seconds(expected.evaluation) if budget else math.inf
        if not begun and rank() == 0:
            facts = {"images": source_name(images), "asked": asked, "recipe": chosen.as_dict(), "reasons": reasons}
            checkpoints.start({**facts, "device": describe_device()}, table)
        with clock.part("training"), _save_on_interrupt(learn, chosen, weights, folder, progress):
            history = train(learn, chosen, logs, deadline=deadline, checkpoints=checkpoints)
        clock.seconds["training"] += begun["spent"] if begun else 0
        with clock.part("evaluation"):
            predicted = predict(learn, table, chosen.tta, progress=progress)
            if rank():
                return Baseline(learn, {}, predicted, history, whole, chosen, {})
            numbers = evaluate(predicted, chosen.labels)
            calibrated = calibration_report(predicted, chosen.labels)
            logs.summary(flatten_metrics(numbers))
    manifest = build_manifest(chosen, images, table, unread, weights, numbers, history.stages, clock.seconds)
    manifest |= {
        "asked": asked,
        "reasons": reasons,
        "calibration": calibrated,
        "estimated_seconds": round(expected.total, 1),
        "time": (where := time_by_part(clock.seconds, history.stages)),
        "bound": bottleneck(where, chosen, device_type()),
    }
    write_run(folder, learn, weights, table, history, predicted, manifest)
    write_card(folder, progress)
    write_report(folder, progress)
    checkpoints.remove()
    return Baseline(learn, numbers, predicted, history, folder, chosen, manifest)


def _restore_recipe(begun: dict[str, Any], chosen: Recipe) -> Recipe:
    """The recipe that the unfinished run was trained by, with what may be others now as it is asked for now.

    Raises:
        OutputError: if this machine settles on another one.
    """
    from baseline.training.checkpoint import describe_differences

    settled = Recipe(**begun["recipe"]).changed(log=chosen.log, cache_gb=chosen.cache_gb, workers=chosen.workers)
    if not chosen.budget and (found := diff_recipes(settled.as_dict(), chosen.as_dict())):
        raise OutputError(f"The unfinished run was settled otherwise: {describe_differences(found)}. Go on where it was begun, "
                          "choose another --out, or remove it.")  # fmt: skip
    return settled


@contextmanager
def _save_on_interrupt(
    learn: Learner, recipe: Recipe, weights: Weights | None, folder: Path, progress: Progress
) -> Iterator[None]:
    """On Ctrl-C writes the epochs so far and the best weights so far, then lets the interrupt go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        history = getattr(interrupt, "history", None)
        if history is not None and len(history.epochs):
            write_training(folder, learn, history, recipe, weights)
            ended = len(history.epochs)
            progress.log(f"interrupted: the best weights of {ended} finished epochs are in {folder / 'model'}")
        if not progress.several:
            progress.log(f"to go on: baseline run {shlex.quote(str(folder))} --resume")
        raise
