"""What to do after a run: advice from what it measured, each item with a command.

Each rule looks at one fact and returns advice or None. A new rule is a function in `RULES`, which is in order of
importance.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from baseline.data.labels import explode_labels
from baseline.errors import format_count
from baseline.evaluation.explain import describe_difference, describe_metric_test
from baseline.evaluation.label_errors import suspect_labels
from baseline.metrics.registry import find_metric
from baseline.progress import format_duration
from baseline.recipe.schema import Recipe
from baseline.report.headline import headline_view
from baseline.report.html import percent
from baseline.report.run_files import RunFiles, read_run

__all__ = ["Advice", "advise", "next_commands"]


MAX_ADVICE = 5
"""Maximum number of items; the last one is always how to use the model."""

MIN_ADVICE = 3
"""Number of items below which general ones are added."""

WIDE_HALF = 0.04
"""Half width of the confidence interval of the accuracy from which on more test images are worth their cost."""

MAX_FOLD_IMAGES = 3000
"""Number of images up to which cross-validation is proposed: beyond, a test split is large enough."""

MIN_CLASS_IMAGES = 5
"""Number of evaluated images of a class below which nothing is said about it."""

TRUSTED_ACCURACY = 0.8
"""Accuracy below which the model is not good enough to suspect labels."""

OVERFIT_RATIO = 3
"""Ratio of the validation loss to the training loss from which on more images promise more than more epochs."""

LONGER_PRESETS = {"instant": "quick", "quick": "standard"}
"""By preset the next longer one whose accuracy has been measured."""


@dataclass(frozen=True)
class Advice:
    """Something to do next."""

    fact: str
    """What was measured, in one sentence."""
    action: str
    """What to do about it, and what it costs or gives."""
    command: str


Rule = Callable[[RunFiles], Advice | None]


def advise(run: RunFiles) -> list[Advice]:
    """Return three to five things to do next, the most important first."""
    advice = [item for rule in RULES if (item := rule(run))][: MAX_ADVICE - 1]
    advice += [item for rule in GENERAL_RULES if (item := rule(run))][: max(0, MIN_ADVICE - 1 - len(advice))]
    return [*advice, *filter(None, [use_model(run)])]


def next_commands(folder: Path) -> list[str]:
    """Return the two commands to run next: the one of the most important advice, and the one that uses the model."""
    commands = [item.command for item in advise(read_run(folder))]
    return commands[:1] + commands[-1:] if len(commands) > 1 else commands


def next_commands_of_series(folder: Path, kind: str) -> list[str]:
    """Return the two commands to run after several `"seeds"` or `"folds"`, whose folder predicts as an ensemble.

    >>> next_commands_of_series(Path("runs/folds"), "folds")
    ['baseline evaluate runs/folds NEW_LABELED_IMAGES', 'baseline predict runs/folds NEW_IMAGES']
    """
    first = shlex.join(["baseline", "evaluate", str(folder), "NEW_LABELED_IMAGES"])
    if kind == "seeds":
        first = shlex.join(["baseline", "compare", f"{folder}/seed-*", "OTHER_RECIPE/seed-*"])
    return [first, shlex.join(["baseline", "predict", str(folder), "NEW_IMAGES"])]


def repeat_command(run: RunFiles, *options: str, command: str = "run") -> str:
    """Return the command that repeats the run with other options; empty if parts of the caller's own were used."""
    if run.manifest.get("own_parts") or run.manifest.get("image_shape"):
        return ""
    return shlex.join(["baseline", command, str(run.folder / "manifest.json"), *options])


def images_command(run: RunFiles, *options: str) -> str:
    """Return the command that trains on the same images from the recipe's defaults; empty where it cannot be known.

    What was asked about the images and their splits is in it.
    """
    images, asked = run.manifest.get("images"), run.manifest.get("asked", {}).get("recipe")
    if not images or not asked or not repeat_command(run):
        return ""
    defaults, omitted = Recipe().as_dict(), {"data.dataset", "split.fold"}
    omitted |= {"data.task"} if not run.many else set()
    omitted |= {"split.method"} if "split" in run.manifest["reasons"] else set()
    values = {
        f"{group}.{name}": value
        for group in ("data", "split")
        for name, value in asked[group].items()
        if value != defaults[group][name] and isinstance(value, str | int | float) and f"{group}.{name}" not in omitted
    }
    settings = [text for name, value in values.items() for text in ("--set", f"{name}={value}")]
    return shlex.join(["baseline", "run", str(images), *options, *settings])


def remove_leaks(run: RunFiles) -> Advice | None:
    """Duplicates of test images among the training images."""
    finding = next((finding for finding in run.findings if finding["finding"] == "leak"), None)
    command = repeat_command(run, "--leaks", "drop")
    if finding is None or run.recipe.get("leaks") == "drop" or not command:
        return None
    fact = f"{finding['words']}: {finding['effect']}."
    return Advice(fact, "Train again without the duplicates in the training images.", command)


def beat_the_majority(run: RunFiles) -> Advice | None:
    """An accuracy that guessing could have."""
    majority, (low, _) = run.numbers.get("majority"), headline_scores(run)["interval"]
    command = repeat_command(run, command="ladder")
    if not majority or low > majority["accuracy"] or not command:
        return None
    fact = (
        f"The accuracy cannot be told from {percent(majority['accuracy'])}, which always predicting "
        f"'{majority['label']}' would reach."
    )
    return Advice(fact, "Compare it with simpler methods, and check that the labels belong to the images.", command)


def add_a_test_split(run: RunFiles) -> Advice | None:
    """A run without a test split."""
    command = repeat_command(run, "--split", "random")
    if run.split == "test" or "kfold" in run.recipe.get("split", "") or not command:
        return None
    fact = "There is no test split: the weights were chosen on the images that they are evaluated on."
    return Advice(fact, "Set a fifth of the images aside for the final number.", command)


def review_labels(run: RunFiles) -> Advice | None:
    """Labels that may be wrong: duplicates with different labels, suspected ones, and errors."""
    wrong = headline_scores(run)["wrong"]
    conflict = next((finding["images"] for finding in run.findings if finding["finding"] == "conflict"), 0)
    is_trusted = not run.many and run.numbers["tta"]["accuracy"] >= TRUSTED_ACCURACY
    suspected = len(suspect_labels(run.predictions)) if is_trusted else 0
    if run.many or not (wrong or conflict or suspected):
        return None
    facts = []
    if wrong:
        facts.append(
            f"{format_count(wrong, f'{run.split} image')} {'was' if wrong == 1 else 'were'} classified incorrectly"
        )
    if suspected:
        facts.append(f"{suspected:,} of the {len(run.predictions):,} held-out labels may be wrong")
    if conflict:
        facts.append(f"{conflict:,} images have a duplicate with another label")
    fact = ", and ".join([", ".join(facts[:-1]), facts[-1]] if len(facts) > 1 else facts)
    action = "Look at them below. Labels that are wrong can be fixed in a page that this command writes:"
    return Advice(f"{fact[0].upper()}{fact[1:]}.", action, shlex.join(["baseline", "clean", str(run.folder)]))


def help_the_weakest_class(run: RunFiles) -> Advice | None:
    """A class whose recall is below the accuracy by more than chance."""
    scores = run.numbers["tta"]
    weak = [
        (row["recall"], name, row)
        for name, row in scores.get("classes", {}).items()
        if row["images"] >= MIN_CLASS_IMAGES and row.get("recall_interval", (0, 1))[1] < scores["accuracy"]
    ]
    if not weak or run.many:
        return None
    recall, name, row = min(weak, key=lambda item: item[0])
    counts = train_counts(run)
    count, typical = int(counts.get(name, 0)), float(np.median(list(counts.values())))
    fact = (
        f"Class '{name}' has a recall of {percent(recall, 0)} ({format_count(row['images'], f'{run.split} image')}), "
        f"learned from {format_count(count, 'training image')}."
    )
    if count < typical / 2 and run.recipe.get("class_balance") == "none":
        command = repeat_command(run, "--class-balance", "weights")
        action = f"Other classes have {typical:,.0f} on average. Add images of it, or weigh it up:"
    else:
        command, action = repeat_command(run), "Add training images like the ones it gets wrong, and train again:"
    return Advice(fact, action, command) if command else None


def headline_scores(run: RunFiles) -> Any:
    """Return the numbers of the view that the headline is of."""
    return run.numbers[headline_view(run.manifest)]


def train_counts(run: RunFiles) -> dict[str, int]:
    """Return the number of training images by class."""
    labels = explode_labels(run.table.loc[run.table["split"] == "train", "label"], run.recipe.get("task", "single"))
    counts = labels.value_counts()
    return {name: int(counts.get(name, 0)) for name in run.classes}


def cross_validate(run: RunFiles) -> Advice | None:
    """A confidence interval that is wide because few images were evaluated."""
    low, high = headline_scores(run)["interval"]
    method, total = run.recipe.get("split", ""), len(run.table)
    is_splittable = bool(run.manifest.get("images")) and not run.recipe.get("split_file")
    is_wide = (high - low) / 2 >= WIDE_HALF and total <= MAX_FOLD_IMAGES
    if not (is_wide and is_splittable and method in ("random", "group")) or "folds" in run.manifest:
        return None
    fact = (
        f"{format_count(len(run.rows), f'{run.split} image')} only show that the accuracy is between {percent(low)} "
        f"and {percent(high)}."
    )
    cost = format_duration(5 * sum(run.manifest["seconds"].values()))
    folds = "group-kfold:5" if method == "group" else "kfold:5"
    action = f"Cross-validation evaluates all {total:,} images. It trains five times, which takes about {cost}."
    command = repeat_command(run, "--split", folds)
    return Advice(fact, action, command) if command else None


def keep_it_simple(run: RunFiles) -> Advice | None:
    """Fine-tuning that is no better than logistic regression on the features."""
    probe = run.manifest.get("probe", {})
    command = images_command(run, "--preset", "instant")
    if not command or "p" not in probe or is_gain(probe):
        return None
    metric = find_metric(probe["metric"])
    change = describe_difference(probe) if metric.name == "accuracy" else describe_metric_test(probe, metric)
    fact = (
        "Fine-tuning is not clearly better than logistic regression on features of the pretrained network "
        f"({metric.title} {metric.text(probe['value'], 1)}): {change}."
    )
    return Advice(fact, "If training time matters, train that alone, which takes seconds:", command)


def is_gain(probe: Mapping[str, Any]) -> bool:
    """Return whether the result of a run is significantly better than its probe."""
    return bool(probe["beyond_noise"]) and find_metric(probe["metric"]).score(probe["difference"]) > 0


def train_longer(run: RunFiles) -> Advice | None:
    """A short preset that left errors."""
    preset = run.recipe.get("preset", "")
    longer = LONGER_PRESETS.get(preset, "")
    command = images_command(run, "--preset", longer) if longer else ""
    is_perfect = run.rows["right"].all() and run.manifest.get("folds", {}).get("value") in (None, 1)
    if not command or is_perfect:
        return None
    if preset == "instant":
        fact = "Only the last layer was fitted; the pretrained layers below it were not adapted to these images."
        action = f"Preset {longer} also trains some of those layers. Keep it if baseline compare finds it better."
    else:
        fact = f"This run used preset {preset}, which trains for few epochs."
        action = f"Preset {longer} trains longer on larger images. Keep it if baseline compare finds it better."
    return Advice(fact, action, command)


def forecast_images(run: RunFiles) -> Advice | None:
    """A network that fits its training images much better than others."""
    command = repeat_command(run, command="curve")
    if run.epochs is None or not command:
        return None
    best = run.epochs[run.epochs["best"]].tail(1)
    train, valid = (float(best[name].iloc[0]) if len(best) else np.nan for name in ("train_loss", "valid_loss"))
    if not valid > OVERFIT_RATIO * train or run.rows["right"].all():
        return None
    fact = f"The loss is {train:.2f} on the training images and {valid:.2f} on the validation images."
    return Advice(fact, "More images of this kind would probably help. This command predicts by how much:", command)


def compare_methods(run: RunFiles) -> Advice | None:
    """Any run."""
    command = repeat_command(run, command="ladder")
    fact = "One number says little without others to compare it with."
    action = "This command measures simpler and longer methods on the same images:"
    return Advice(fact, action, command) if command else None


def use_model(run: RunFiles) -> Advice | None:
    """A saved model."""
    if not (run.folder / "model" / "model.json").exists():
        return None
    command = shlex.join(["baseline", "predict", str(run.folder), "NEW_IMAGES"])
    return Advice("The model is saved in this folder.", "Use it on new images, a file or a folder of them:", command)


RULES: tuple[Rule, ...] = (
    remove_leaks,
    beat_the_majority,
    add_a_test_split,
    review_labels,
    help_the_weakest_class,
    cross_validate,
    train_longer,
    keep_it_simple,
    forecast_images,
)
"""Rules about what was measured, the most important first."""

GENERAL_RULES: tuple[Rule, ...] = (compare_methods,)
"""Rules that hold for nearly any run, for those with few facts."""
