"""`make_baseline`: the rooms, called once each, in order. Knows their order; does none of their work."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import math
import platform
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .clock import bound_by, minutes, where_time_went
from .errors import LeakError, OutputError, RecipeError, unknown
from .loggers import check_loggers, logged, plain, told
from .processes import count, from_first, joined, rank
from .progress import Show, Terminal
from .recipe import (
    COLUMN_KEYS,
    PRESETS,
    Recipe,
    Stage,
    load_recipe,
    read_values,
    recipe_names,
    seconds_in,
    settle_arch,
    settle_batch_size,
    settle_epochs,
    settle_frozen_precision,
    settle_precision,
    settle_preset,
)
from .save import FORMAT, as_json, differing, is_finished, run_folder, write

if TYPE_CHECKING:
    import pandas as pd
    from fastai.learner import Learner
    from torch import Tensor

    from .audits import Audit
    from .model import Model
    from .training import History
    from .weights import Weights

__all__ = [
    "Baseline",
    "asked_for",
    "go_on",
    "make_baseline",
    "manifest_of",
    "parted",
    "recipe_of",
    "settle",
    "split_csv",
    "starting_recipe",
    "understand",
    "versions",
    "write_audit",
]

PACKAGES = ("fastai-baseline", "fastai", "torch", "torchvision", "timm", "numpy", "pandas", "pillow", "safetensors")

PARTING = {*COLUMN_KEYS, "images", "label_from", "labels", "positive", "split", "split_file", "fold", "seed",
           "valid_share", "test_share", "photos_per_class", "audit", "leaks", "fixes", "keep_if", "keep_model",
           "keep_above"}  # fmt: skip
"""Of a recipe; what decides which photos there are, and in which split."""

GOLDEN_PHOTOS = 4
"""That the model folder keeps, to be checked by."""


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
        from .model import load_model

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
    from .checkpoints import Checkpoints

    run = Path(run).expanduser()
    kept = Checkpoints(run)
    if not kept.exist:
        words = "holds a finished run" if is_finished(run) else "holds no unfinished run"
        raise OutputError(f"{run} {words}. Give the folder of a run that was interrupted.")
    begun = kept.begun()
    if begun["photos"] is None:
        raise OutputError(f"{run} was begun with a table in memory. Call make_baseline with it and out={str(run)!r}.")
    return make_baseline(begun["photos"], recipe_of(run, begun["asked"]), out=run, show=show, **changes)


def recipe_of(run: Path, facts: Mapping[str, Any]) -> Recipe:
    """The recipe that a run's folder tells of.

    Raises:
        OutputError: if it has a field that this version does not know.
    """
    from .checkpoints import another_version

    try:
        return Recipe(**facts["recipe"])
    except TypeError:
        raise another_version(run) from None


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
    from .card import write_card
    from .chance import seeded, states_kept
    from .checkpoints import Checkpoints
    from .data import dataloaders
    from .features import FrozenOutputs
    from .learners import learner
    from .metrics import calibration, measure
    from .planning import Rates, estimate
    from .predict import predictions
    from .report import write_report
    from .training import train

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


def manifest_of(
    recipe: Recipe,
    photos: Any,
    table: pd.DataFrame,
    unread: pd.DataFrame,
    weights: Weights | None,
    metrics: dict[str, Any],
    stages: list[dict[str, Any]],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """What `manifest.json` says of every run, however its predictions were made.

    Args:
        photos: as they were given to `make_baseline`.
        table: the photos with their splits.
        unread: those that were left out, with `path` and `reason`.
        seconds: by part of the run.
    """
    return {
        "format": FORMAT,
        "recipe": recipe.as_dict(),
        "photos": _photos_words(photos),
        "metrics": metrics,
        "seconds": seconds,
        "stages": stages,
        "data": _fingerprint(table, unread, recipe.labels),
        "weights": dataclasses.asdict(weights) if weights else "random",
        "device": _device_words(),
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def understand(
    photos: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    show: Show | None = None,
    **changes: Any,
) -> tuple[Recipe, pd.DataFrame]:
    """The recipe and the photo table that `make_baseline` would start from; what was understood is said in five lines.

    Arguments and errors are those of `make_baseline`. `table.attrs["source"]` holds what was said.
    """
    chosen, photos = _chosen(photos, recipe)
    chosen, reasons = _changed(chosen, None, changes)
    return _understood(photos, chosen, reasons, show or Terminal())


def parted(
    photos: str | Path | pd.DataFrame | None,
    recipe: str | Path | Recipe,
    folder: Path,
    show: Show,
    **changes: Any,
) -> tuple[Recipe, pd.DataFrame, pd.DataFrame]:
    """The recipe, the photo table that `make_baseline` trains with, every photo in its split, and what it leaves out.

    What the audit found is written into the folder. A recipe whose `split_file` holds `split_csv` of the table gives
    the same splits again, without an audit.
    """
    chosen, table = understand(photos, recipe, show=show, **changes)
    return _parted(table, chosen, folder, show, {})


def starting_recipe(photos: str | Path | pd.DataFrame | None, recipe: str | Path | Recipe) -> Recipe:
    """The recipe that `make_baseline` starts from, before presets and changes.

    >>> starting_recipe("cifar10", "default").name
    'cifar10'
    """
    return _chosen(photos, recipe)[0]


def asked_for(recipe: Recipe, table: pd.DataFrame) -> dict[str, Any]:
    """What a run was asked for: a recipe as `understand` gives it, and the sha256 of paths, labels, splits and groups.

    The manifest keeps it, so that another run can tell whether it would be the same one.
    """
    told = table[[column for column in ("path", "label", "split", "group") if column in table]]
    return {"recipe": recipe.as_dict(), "photos": hashlib.sha256(told.to_csv(index=False).encode()).hexdigest()}


def write_audit(folder: Path, checked: Audit) -> list[Path]:
    """Writes `findings.json`, `pairs.csv`, `unreadable.csv` and pictures of pairs into the folder; says which."""
    from . import figures

    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str | bytes] = {"findings.json": as_json({"findings": checked.findings.to_dict("records")})}
    if len(checked.pairs):
        files["pairs.csv"] = checked.pairs.to_csv(index=False)
    if len(checked.unreadable):
        files["unreadable.csv"] = checked.unreadable.to_csv(index=False)
    for name, pairs in checked.telling_pairs().items():
        files[f"{name}.png"] = figures.png(figures.pairs_figure(pairs, name))
    for name, content in files.items():
        write(folder / name, content)
    return [folder / name for name in files]


def settle(
    recipe: Recipe, table: pd.DataFrame, show: Show | None = None
) -> tuple[Recipe, Weights | None, dict[str, str]]:
    """The recipe with every `"auto"` replaced, the weights of its architecture, and the reason for each choice.

    Raises:
        RecipeError: if the architecture does not exist or the precision does not go with the device.
        WeightsError: if the pretrained weights cannot be had.
    """
    from .features import bfloat16_units
    from .quick import has_compiler
    from .tables import has_many
    from .weights import find_weights, obtainable

    show = show or Show()
    if recipe.compile and not has_compiler():
        raise RecipeError("--compile needs what torch.compile builds with: a C++ compiler, and Triton where there is a "
                          "GPU. Install it (Debian: g++), or leave --compile out.")  # fmt: skip
    device = _device()
    reasons = {}
    wanted = recipe.arch.split(" or ")[0] if recipe.weights else recipe.arch  # whose file it must be
    looked: list[str] = []

    def within_reach(name: str) -> bool:
        looked.append(name)
        return recipe.scratch or obtainable(name, show)

    arch, reasons["arch"] = settle_arch(wanted, device, within_reach)
    photos = int((table["split"] == "train").sum())
    size, reasons["batch_size"] = settle_batch_size(recipe.batch_size, photos, device)
    precision, reasons["precision"] = settle_precision(recipe.precision, device)
    frozen, reasons["frozen_precision"] = settle_frozen_precision(recipe.frozen_precision, device, bfloat16_units())
    weights = None if recipe.scratch else find_weights(arch, recipe.weights, Show() if arch in looked else show)
    labels = "many" if has_many(table["label"], recipe.labels) else "one"
    settled = recipe.changed(arch=arch, batch_size=size, precision=precision, frozen_precision=frozen, labels=labels)
    if recipe.scratch:
        settled, reasons["stages"] = _from_scratch(settled)
    stages, why = settle_epochs(settled.stages, photos, size)
    if why and not recipe.budget:  # which has its own idea of epochs
        settled, reasons["epochs"] = settled.changed(stages=stages), why
    for key, why in reasons.items():
        if key in ("stages", "epochs"):
            show.say(f"{key}: {why}")
        elif getattr(recipe, key) != getattr(settled, key):
            show.say(f"{key}: {getattr(settled, key)} ({why})")
    return settled, weights, reasons


# ---- what to train --------------------------------------------------------------------------------------------------


def _chosen(photos: Any, recipe: str | Path | Recipe) -> tuple[Recipe, Any]:
    """The recipe and the photos that a call means; see `make_baseline`."""
    if isinstance(photos, str) and photos in recipe_names() and recipe == "default":
        recipe, photos = photos, None
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if photos is None and str(recipe).endswith(".json"):
        photos = read_values(Path(str(recipe))).get("photos")
        split_file = Path(str(recipe)).with_name("split.csv")
        if photos is None and split_file.exists():  # it was a DataFrame, and this is what is left of it
            found = dict.fromkeys((*COLUMN_KEYS, "images", "keep_if", "keep_model", "fixes"), "")  # which is all done
            photos, chosen = str(split_file), chosen.changed(**found, split_file=str(split_file))
    if photos is None:
        photos = chosen.data or None
    if photos is None:
        raise RecipeError(f"Recipe '{chosen.name}' names no data set and none was given. Give a folder of photos.")
    return chosen, photos


def _changed(recipe: Recipe, seed: int | None, changes: dict[str, Any]) -> tuple[Recipe, dict[str, str]]:
    """The recipe with its preset chosen and the caller's changes made, which win over the preset's."""
    reasons: dict[str, str] = {}
    preset = changes.pop("preset", "auto")
    if preset not in ("auto", *PRESETS):
        raise RecipeError(unknown("preset", str(preset), PRESETS))
    wished = recipe.changed(**changes)  # finds what is wrong before anything slow begins
    if "fold" in changes and "kfold" not in wished.split:
        words = f"fold is {wished.fold}, and split '{wished.split}' names no folds"
        raise RecipeError(f"{words}. Give --split kfold:K or group-kfold:K, too, or leave --fold out.")
    if recipe.presets or preset != "auto":
        if preset == "auto" and changes.get("budget", recipe.budget):
            reasons |= {"image_size": "as given"} if "image_size" in changes else {}
            return _with_all_presets(recipe, changes, seed), reasons
        if preset == "auto":
            preset, reasons["preset"] = settle_preset(_device())
            preset = preset if preset in recipe.presets else "standard"
        recipe = recipe.with_preset(preset)
    return _with(recipe, changes, seed), reasons


def _with(recipe: Recipe, changes: dict[str, Any], seed: int | None) -> Recipe:
    """The recipe changed, and its files absolute: a run goes on, or is made again, in any working folder."""
    from .tables import place

    recipe = recipe.changed(**changes, **({} if seed is None else {"seed": seed}))
    named = {key: getattr(recipe, key) for key in ("images", "split_file", "keep_model", "weights")}
    return recipe.changed(**{key: str(place(words)) for key, words in named.items() if words})


def _with_all_presets(recipe: Recipe, changes: dict[str, Any], seed: int | None) -> Recipe:
    """The recipe with the caller's changes, which its presets, for a budget to choose from, leave as they are."""
    presets = {
        preset: {key: value for key, value in values.items() if key not in changes}
        for preset, values in recipe.presets.items()
    }
    return _with(recipe, {**changes, "presets": {name: values for name, values in presets.items() if values}}, seed)


def _from_scratch(recipe: Recipe) -> tuple[Recipe, str]:
    """Stages for random weights: a frozen random body teaches a head nothing, so every epoch trains all layers."""
    epochs, steps = (sum(getattr(stage, key) for stage in recipe.stages) for key in ("epochs", "steps"))
    why = "all layers are trained: a frozen body of random weights would have nothing to give"
    last = recipe.stages[-1]
    stage = Stage("all", epochs, "find", "moving", steps=steps, optimizer=last.optimizer, schedule=last.schedule)
    return recipe.changed(stages=(stage,), presets={}), why


def _understood(photos: Any, chosen: Recipe, reasons: dict[str, str], show: Show) -> tuple[Recipe, pd.DataFrame]:
    """The photo table, and the recipe with what follows from it."""
    from .sources import photo_table, understood
    from .splits import settle_split
    from .tables import Columns, has_many

    columns = Columns(chosen.image_col, chosen.label_col, chosen.group_col, chosen.split_col, chosen.images)
    forms = {"label_from": chosen.label_from, "labels": chosen.labels, "positive": chosen.positive}
    table = photo_table(photos, columns=columns, **forms, show=show)
    for line in understood(table):
        show.say(line)
    way, reasons["split"] = settle_split(table, chosen)
    return chosen.changed(split=way, labels="many" if has_many(table["label"], chosen.labels) else "one"), table


def _audited(table: pd.DataFrame, chosen: Recipe, show: Show) -> tuple[pd.DataFrame, pd.DataFrame, Audit | None]:
    """The photos to go on with, those that cannot be read, and the audit, which is told."""
    from .audits import audit, readable

    if chosen.audit == "none":
        return *readable(table, show), None
    checked = audit(table, grouped="group" in chosen.split, show=show)
    for row in checked.findings.itertuples():
        show.say(f"audit: {row.finding}: {row.words}; {row.effect} ({row.answer})")
    return checked.usable, checked.unreadable, checked


def _parted(
    table: pd.DataFrame, chosen: Recipe, folder: Path, show: Show, reasons: dict[str, str]
) -> tuple[Recipe, pd.DataFrame, pd.DataFrame]:
    """The recipe, the photos with their splits, labels mended, and those that cannot be read.

    What the audit found, what a second model left out and the fixes go into the folder.
    """
    from .mending import belonging, mended, read_fixes
    from .sources import check_table
    from .splits import split
    from .tables import place

    fixes = None
    if chosen.fixes:
        chosen = chosen.changed(fixes=[str(place(file)) for file in chosen.fixes])
        fixes = read_fixes(chosen.fixes, table, chosen.labels)
    check_table(table, chosen.labels)
    table, unread, checked = _audited(table, chosen, show)
    if len(unread):
        check_table(table, chosen.labels)
    if chosen.keep_if:
        table, strangers = belonging(table, chosen, show)
        write(folder / "not_kept.csv", strangers.to_csv(index=False))
        reasons["keep_if"] = f"{len(strangers):,} photos were left out: not_kept.csv"
    table = _without_leaks(split(table, chosen), chosen, show)
    if fixes is not None:
        table, reasons["fixes"] = mended(table, fixes)
        show.say(f"fixes: {reasons['fixes']}")
        write(folder / "fixes.csv", fixes.to_csv(index=False))
    if checked is not None and len(checked.findings):
        write_audit(folder / "audit", checked)
    show.say(_described(table, chosen.labels))
    return chosen, table, unread


def _parts_otherwise(manifest: Path, chosen: Recipe, table: pd.DataFrame) -> bool:
    """Whether the photos of a run's manifest have other splits now, though the recipe leaves them as they were."""
    before = read_values(manifest)
    hashed = before["data"].get("sha256") if "recipe" in before and isinstance(before.get("data"), dict) else None
    if hashed is None or {key.partition(".")[0] for key in differing(before["recipe"], chosen.as_dict())} & PARTING:
        return False
    return bool(hashed != hashlib.sha256(split_csv(table).encode()).hexdigest())


def _without_leaks(table: pd.DataFrame, chosen: Recipe, show: Show) -> pd.DataFrame:
    """The table without photos that have a copy in a later split, or an error, where the recipe wants either."""
    from .audits import leaking

    if chosen.audit == "none" or (chosen.leaks == "keep" and chosen.audit != "strict"):
        return table
    leaks = leaking(table)
    if chosen.leaks == "drop":
        show.say(f"audit: {int(leaks.sum()):,} photos with a copy in a later split are dropped")
        return table[~leaks].reset_index(drop=True)
    if leaks.any():
        row = table[leaks].iloc[0]
        raise LeakError(
            f"{int(leaks.sum()):,} photos have a copy in a later split, first {row['path']} ({row['split']}). "
            "Give --leaks drop or --split random, or mend the photos."
        )
    return table


def _as_begun(begun: dict[str, Any], chosen: Recipe) -> Recipe:
    """The recipe that the unfinished run was trained by, with what may be others now as it is asked for now.

    Raises:
        OutputError: if this machine settles on another one.
    """
    from .checkpoints import difference

    settled = Recipe(**begun["recipe"]).changed(log=chosen.log, cache_gb=chosen.cache_gb, workers=chosen.workers)
    if not chosen.budget and (found := differing(settled.as_dict(), chosen.as_dict())):
        raise OutputError(f"The unfinished run was settled otherwise: {difference(found)}. Go on where it was begun, "
                          "choose another --out, or remove it.")  # fmt: skip
    return settled


def _fitted(chosen: Recipe, table: pd.DataFrame, end: float, resizable: bool, show: Show) -> tuple[Recipe, str]:
    """The recipe made to end by then, seconds of `time.perf_counter`, and why it is what it is."""
    import torch
    from fastai.torch_core import default_device

    from .data import classes_in, decoding_seconds
    from .learners import network
    from .planning import Rates, fitted

    model, splitter = network(chosen.arch, len(classes_in(table, chosen.labels)), None, chosen.head)
    model = model.to(default_device()).to(memory_format=torch.channels_last)
    presets = ("standard", *chosen.presets) if chosen.presets else ()
    bases = [chosen.with_preset(preset) for preset in presets] or [chosen]
    largest = max(bases, key=lambda base: base.image_size)
    left = end - time.perf_counter() - _reserve(0) - decoding_seconds(table, largest)
    plan, why = fitted(Rates(model, splitter, chosen), bases, _counts(table), left, resizable=resizable)
    show.say(f"budget {chosen.budget}: {why}")
    return plan.changed(budget="", presets={}), why


def _reserve(evaluation: float) -> float:
    """Seconds before the end of a budget that are kept for evaluation and for writing the results."""
    return 1.3 * evaluation + 8


def _counts(table: pd.DataFrame) -> dict[str, int]:
    """Photos by split."""
    return {str(name): int(count) for name, count in table["split"].value_counts().items()}


# ---- what is told and written ---------------------------------------------------------------------------------------


class _Clock:
    """Seconds by part, in order."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)


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


def _write_run(
    folder: Path,
    learn: Learner,
    weights: Weights | None,
    table: pd.DataFrame,
    history: History,
    predicted: pd.DataFrame,
    manifest: dict[str, Any],
) -> None:
    fitted = manifest["calibration"].get("temperature")
    _write_training(folder, learn, history, Recipe(**manifest["recipe"]), weights, fitted)
    write(folder / "split.csv", split_csv(table))
    write(folder / "predictions.csv", predicted.to_csv(index=False))
    write(folder / "lr_find.csv", history.sweeps.to_csv(index=False))
    write(folder / "manifest.json", as_json(manifest))


def _write_training(
    folder: Path,
    learn: Learner,
    history: History,
    recipe: Recipe,
    weights: Weights | None,
    temperature: float | None = None,
) -> None:
    from .networks import save_network
    from .weights import is_torchvision, normalisation, published

    mean, std = normalisation(recipe.arch)
    facts = {
        "library": "torchvision" if is_torchvision(recipe.arch) else "timm",
        "arch": recipe.arch,
        "head": recipe.head,
        "classes": list(learn.dls.vocab),
        "image_size": recipe.image_size,
        "resize": recipe.resize,
        "mean": mean,
        "std": std,
        "tta": recipe.tta,
        "labels": recipe.labels,
        "threshold": recipe.threshold,
        "temperature": temperature,
        "crop": recipe.augment.crop,
        "precision": recipe.precision,
        "weights_license": published(weights).get("license", "unknown") if weights else None,
        "versions": versions(),
    }
    write(folder / "history.csv", history.epochs.to_csv(index=False))
    save_network(learn.model, facts, folder / "model", _golden(learn, recipe, facts))


def _golden(learn: Learner, recipe: Recipe, facts: dict[str, Any]) -> dict[str, Tensor] | None:
    """What the network makes of a valid photo of each of the first few classes; None if they have gone meanwhile."""
    import numpy as np

    from .model import golden_of
    from .photos import square

    paths = learn.dls.valid_ds.items.groupby("label").head(1)["path"].head(GOLDEN_PHOTOS)
    try:
        photos = np.stack([square(path, recipe.decoded_size, recipe.resize) for path in paths])
    except OSError:
        return None
    return golden_of(learn.model, facts, photos)


def _described(table: pd.DataFrame, labels: str) -> str:
    from .data import classes_in

    counts = _counts(table)
    by_split = ", ".join(f"{counts[name]:,} {name}" for name in ("train", "valid", "test") if name in counts)
    return f"photos: {len(table):,} of {len(classes_in(table, labels))} classes; {by_split}"


def _fingerprint(table: pd.DataFrame, unread: pd.DataFrame, labels: str) -> dict[str, Any]:
    """Counts, and the sha256 of `split.csv`, so that another run can tell whether it saw the same photos and splits."""
    from .data import classes_in

    return {
        "classes": classes_in(table, labels),
        "photos": _counts(table),
        "left_out": unread.to_dict("records"),
        "sha256": hashlib.sha256(split_csv(table).encode()).hexdigest(),
    }


def split_csv(table: pd.DataFrame) -> str:
    """What `split.csv` of a run folder says: path, label and split of each photo, and groups and folds if known."""
    known = [column for column in ("group", "fold") if column in table and table[column].notna().any()]
    return table[["path", "label", "split", *known]].to_csv(index=False)


def _facts(chosen: Recipe, photos: Any, table: pd.DataFrame) -> dict[str, Any]:
    """What loggers are told of a run before it trains: its recipe, its photos and the machine, flat."""
    recipe = {key: value for key, value in chosen.as_dict().items() if key not in ("log", "presets", "expected")}
    given = {"given": _photos_words(photos) or "a table", **_counts(table)}
    return plain({**recipe, "photos": given, "device": _device_words(), "version": versions()["fastai-baseline"]})


def _photos_words(photos: Any) -> str | None:
    """What the manifest needs to find the photos again: a data set's name or a path; a DataFrame has neither."""
    from .datasets import DATASETS
    from .foreign import is_foreign

    if isinstance(photos, str) and (photos in DATASETS or is_foreign(photos)):
        return photos
    return str(Path(photos).expanduser().absolute()) if isinstance(photos, str | Path) else None


def _device() -> str:
    from fastai.torch_core import default_device

    return str(default_device().type)


def _device_words() -> str:
    import torch

    several = f"{count()} x " if count() > 1 else ""
    if _device() == "cuda":
        return several + torch.cuda.get_device_name()
    return f"{several}{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
