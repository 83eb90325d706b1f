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

from baseline.data.prepare import _counts, _parted, _parts_otherwise, _understood, asked_for
from baseline.errors import OutputError, RecipeError
from baseline.parallel.distributed import count, from_first, joined, rank
from baseline.progress import Show, Terminal, minutes
from baseline.recipe.choose import _changed, _chosen
from baseline.recipe.diff import differing
from baseline.recipe.schema import Recipe, seconds_in
from baseline.runs.folder import is_finished, run_folder
from baseline.runs.manifest import _device_words, _facts, _photos_words, manifest_of, recipe_of
from baseline.runs.timing import _Clock, bound_by, where_time_went
from baseline.runs.writing import _write_run, _write_training
from baseline.system import _device
from baseline.training.budget import _fitted, _reserve
from baseline.training.loggers import check_loggers, logged, told
from baseline.vision.resolve import settle

if TYPE_CHECKING:
    import pandas as pd
    from fastai.learner import Learner

    from baseline.inference.model import Model
    from baseline.training.state import History
    from baseline.vision.weights import Weights

__all__ = ["Baseline", "go_on", "make_baseline"]


@dataclass(frozen=True)
class Baseline:
    """A finished run."""

    learner: Learner
    """The whole network with its best weights, in evaluation mode: a complete fastai Learner."""
    metrics: dict[str, dict[str, Any]]
    """By split, plain and with test-time augmentation; see `baseline.measure`."""
    predictions: pd.DataFrame
    """One row a photo of the valid and test splits; see `baseline.predict`."""
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

    def predict(self, photos: Any, **options: Any) -> pd.DataFrame:
        """Predictions for photos: `baseline.Model.predict` of the saved model, with its options.

        >>> done.predict("holiday/")                                               # doctest: +SKIP
        """
        return self.model.predict(photos, **options)


def make_baseline(
    photos: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    show: Show | None = None,
    **changes: Any,
) -> Baseline:
    """Trains a baseline on photos and returns the model, its numbers and the folder that holds them.

    A run that was interrupted, or killed, goes on when it is called again in the same way with its folder as `out`, and
    ends with the numbers that it would have had (on a CPU to the last digit); `go_on(folder)` is short for that.

    In a process of several (`torchrun`, `accelerate launch`, `baseline run --processes`) it trains with the others:
    each sees its part of every batch, and of the photos that are predicted. The first one writes and tells; in the
    others the result has no metrics and no manifest.

    Args:
        photos: what `photo_table` takes: a folder, a CSV, TSV or Parquet file, a DataFrame, a zip or tar, the name of
            a data set such as `"cifar10"`; or None to use the recipe's own data set. The name of a data set brings
            the recipe of that name.
        recipe: the name of a recipe, a TOML file, a run's manifest.json, or a `Recipe`.
        out: the run folder; `runs/NAME-DATE-TIME` if not given.
        seed: of splits and training; the recipe's if not given.
        show: where progress goes; the terminal if not given, `Show()` for nowhere.
        **changes: fields of `Recipe` to change, and `preset` (`"quick"`, `"standard"`, `"best"`).

    Raises:
        BaselineError: with one line that says what is, what was needed and what to do; also if `out` holds an
            unfinished run of another recipe or of other photos.

    >>> done = make_baseline("photos/", preset="quick")                            # doctest: +SKIP
    >>> done.metrics["test"]["tta"]["accuracy"]                                    # doctest: +SKIP
    0.9634
    """
    show = show or Terminal()
    again = Path(str(recipe)) if photos is None and str(recipe).endswith(".json") else None
    chosen, photos = _chosen(photos, recipe)
    chosen, reasons = _changed(chosen, seed, changes)
    check_loggers(chosen.log)
    with joined(), ExitStack() as stack:
        if count() > 1 and seconds_in(chosen.budget):
            raise RecipeError("A budget goes with one process. Leave out --budget, or --processes.")
        if rank() == 0:
            folder = from_first(lambda: stack.enter_context(run_folder(out, chosen.name)))
            return _make(photos, chosen, reasons, folder, folder, show, again)
        whole = from_first(lambda: Path())
        own = Path(stack.enter_context(TemporaryDirectory()))
        return _make(photos, chosen, reasons, own, whole, Show())


def go_on(run: str | Path, *, show: Show | None = None, **changes: Any) -> Baseline:
    """Goes on with an unfinished run, by what its folder tells of it; see `make_baseline`.

    Args:
        **changes: fields of `Recipe` that change no number and may be others now: `log`, `cache_gb`, `workers`.

    Raises:
        OutputError: if the folder holds no unfinished run, or one of another version, or of a DataFrame, which has to
            be given again.

    >>> go_on("runs/mine")                                                         # doctest: +SKIP
    """
    from baseline.training.checkpoint import Checkpoints

    run = Path(run).expanduser()
    kept = Checkpoints(run)
    if not kept.exist:
        words = "holds a finished run" if is_finished(run) else "holds no unfinished run"
        raise OutputError(f"{run} {words}. Give the folder of a run that was interrupted.")
    begun = kept.begun()
    if begun["photos"] is None:
        raise OutputError(f"{run} was begun with a table in memory. Call make_baseline with it and out={str(run)!r}.")
    return make_baseline(begun["photos"], recipe_of(run, begun["asked"]), out=run, show=show, **changes)


def _make(
    photos: Any,
    chosen: Recipe,
    reasons: dict[str, str],
    folder: Path,
    whole: Path,
    show: Show,
    again: Path | None = None,
) -> Baseline:
    """The road, from photos to the run folder.

    Args:
        folder: where this process writes; for all but the first of several a place that will go.
        whole: the run folder.
        again: the manifest of the run that this one repeats.
    """
    clock = _Clock()
    with clock.part("data"):
        chosen, table = _understood(photos, chosen, reasons, show)
        asked = asked_for(chosen, table)
    from baseline.evaluation.calibration import calibration
    from baseline.evaluation.metrics import measure
    from baseline.evaluation.predict import predictions
    from baseline.report.model_card import write_card
    from baseline.report.page import write_report
    from baseline.training.budget import Rates, estimate
    from baseline.training.checkpoint import Checkpoints
    from baseline.training.frozen import FrozenOutputs
    from baseline.training.stages import train
    from baseline.vision.dataloaders import dataloaders
    from baseline.vision.learner import learner
    from baseline.vision.rng import seeded, states_kept

    kept = Checkpoints(whole)
    with seeded(chosen.seed), ExitStack() as stack:
        with clock.part("audit"):
            chosen, table, unread = _parted(table, chosen, folder, show, reasons)
            if again is not None and _parts_otherwise(again, chosen, table):
                option = f"--split-file {shlex.quote(str(again.with_name('split.csv')))}"
                words = f"other photos or splits than in {again.parent}"
                show.say(f"{words}; {option} takes those, where all are there still")
        begun = from_first(lambda: kept.gone_on_with(asked, table) if kept.exist else None)
        if begun:
            show.say(f"going on with what was begun in {folder}")
            if (before := begun["device"]) != _device_words():
                words = f"it was begun on {before}, and this is {_device_words()}"
                show.say(f"{words}: its numbers will be others than those of an undisturbed run")
            clock.began -= begun["spent"]
        with clock.part("weights"):
            chosen, weights, more = settle(chosen, table, show)
            reasons |= more
        budget = seconds_in(chosen.budget)
        if begun:
            chosen, reasons = _as_begun(begun, chosen), begun["reasons"]
        elif budget:
            with clock.part("planning"), states_kept():
                resizable = "image_size" not in reasons
                chosen, reasons["budget"] = _fitted(chosen, table, clock.began + budget, resizable, show)
        with clock.part("logs") if chosen.log else nullcontext(), states_kept():
            logs = stack.enter_context(
                logged(chosen.log if rank() == 0 else (), folder, _facts(chosen, photos, table), show)
            )
        with clock.part("decoding"):
            dls = dataloaders(table, chosen, path=folder, show=show)
            learn = learner(dls, chosen, weights=weights, path=folder)
        with clock.part("estimate"):
            rates = Rates(learn.model, learn.splitter, chosen)
            ready = FrozenOutputs(learn, chosen).ready()
            expected = estimate(rates, chosen, _counts(table), ready)
            show.say(f"training and evaluation will take about {minutes(expected.total)} on {_device_words()}")
        deadline = clock.began + budget - _reserve(expected.evaluation) if budget else math.inf
        if not begun and rank() == 0:
            facts = {"photos": _photos_words(photos), "asked": asked, "recipe": chosen.as_dict(), "reasons": reasons}
            kept.begin({**facts, "device": _device_words()}, table)
        with clock.part("training"), _kept_when_interrupted(learn, chosen, weights, folder, show):
            history = train(learn, chosen, logs, deadline=deadline, kept=kept)
        clock.seconds["training"] += begun["spent"] if begun else 0
        with clock.part("evaluation"):
            predicted = predictions(learn, table, chosen.tta, show=show)
            if rank():
                return Baseline(learn, {}, predicted, history, whole, chosen, {})
            numbers = measure(predicted, chosen.labels)
            calibrated = calibration(predicted, chosen.labels)
            logs.summary(told(numbers))
    manifest = manifest_of(chosen, photos, table, unread, weights, numbers, history.stages, clock.seconds)
    manifest |= {
        "asked": asked,
        "reasons": reasons,
        "calibration": calibrated,
        "estimated_seconds": round(expected.total, 1),
        "time": (where := where_time_went(clock.seconds, history.stages)),
        "bound": bound_by(where, chosen, _device()),
    }
    _write_run(folder, learn, weights, table, history, predicted, manifest)
    write_card(folder, show)
    write_report(folder, show)
    kept.end()
    return Baseline(learn, numbers, predicted, history, folder, chosen, manifest)


def _as_begun(begun: dict[str, Any], chosen: Recipe) -> Recipe:
    """The recipe that the unfinished run was trained by, with what may be others now as it is asked for now.

    Raises:
        OutputError: if this machine settles on another one.
    """
    from baseline.training.checkpoint import difference

    settled = Recipe(**begun["recipe"]).changed(log=chosen.log, cache_gb=chosen.cache_gb, workers=chosen.workers)
    if not chosen.budget and (found := differing(settled.as_dict(), chosen.as_dict())):
        raise OutputError(f"The unfinished run was settled otherwise: {difference(found)}. Go on where it was begun, "
                          "choose another --out, or remove it.")  # fmt: skip
    return settled


@contextmanager
def _kept_when_interrupted(
    learn: Learner, recipe: Recipe, weights: Weights | None, folder: Path, show: Show
) -> Iterator[None]:
    """On Ctrl-C writes the epochs so far and the best weights so far, then lets the interrupt go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        history = getattr(interrupt, "history", None)
        if history is not None and len(history.epochs):
            _write_training(folder, learn, history, recipe, weights)
            ended = len(history.epochs)
            show.say(f"interrupted: the best weights of {ended} finished epochs are in {folder / 'model'}")
        if not show.several:
            show.say(f"to go on: baseline run {shlex.quote(str(folder))} --resume")
        raise
