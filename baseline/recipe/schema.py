"""Recipes: what to train and how, as data. Knows TOML and JSON; knows no images, no torch.

A recipe holds decisions; what a run finds out (rates, seconds, hashes) goes into its manifest. The folder `recipes/`
is the list of named recipes. `"auto"` values are settled by the functions named `settle_...`: pure rules that also give
the reason, which is printed and written down.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baseline.errors import RecipeError, unknown_name

__all__ = [
    "Augment",
    "Recipe",
    "Stage",
    "describe_schedule",
    "describe_trained",
    "format_lr",
    "is_int",
    "is_number",
    "parse_duration",
]


HEADS = ("linear", "fastai")

RESIZES = ("squish", "crop", "pad")

VIEWS = ("flip", "five_crops")

PRESETS = ("quick", "standard", "best")

SPLIT_METHODS = ("auto", "provided", "random", "group", "kfold:K", "group-kfold:K", "time:COLUMN")

BALANCES = ("none", "weights", "sampler")

LABELS = ("auto", "one", "many")

LEAKS = ("keep", "drop")

AUDITS = ("tell", "strict", "none")

OPTIMIZERS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "adam": ("Adam", {}),
    "sgd": ("SGD", {"mom": 0.9}),
    "rmsprop": ("RMSProp", {}),
    "radam": ("RAdam", {}),
    "qhadam": ("QHAdam", {}),
    "larc": ("Larc", {}),
    "lamb": ("Lamb", {}),
    "ranger": ("ranger", {}),
}
"""What a stage may name: fastai's own name and what is set. Weight decay is decoupled: its Adam is AdamW."""

SCHEDULES = ("one_cycle", "flat_cos", "plateau", "constant")

LOGGERS = ("csv", "mlflow", "tensorboard", "wandb")

COLUMN_KEYS = ("image_col", "label_col", "group_col", "split_col")

PRECISIONS = ("auto", "float32", "float16", "bfloat16")

FROZEN_PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Augment:
    """Random changes of training images, in the words and units of fastai's `aug_transforms`."""

    flip: bool = True
    """Mirror left and right, half of the time."""
    rotate: float = 10.0
    """At most so many degrees either way."""
    zoom: float = 1.1
    """At most so many times larger."""
    lighting: float = 0.2
    """Brightness and contrast change by at most this share."""
    warp: float = 0.2
    """Perspective, as a share of the side."""
    crop: float = 1.0
    """Least share of an image's area that is seen: below 1, images are decoded larger (see `Recipe.decoded_size`) and a
    random square of them is taken, one a batch (fastai's `RandomResizedCropGPU`); valid images are seen whole."""
    probability: float = 0.75
    """How often rotation, zoom and warp, and how often lighting, are applied."""


@dataclass(frozen=True)
class Stage:
    """One call of fastai's `fit_one_cycle`, or of its like."""

    trains: str | int | float
    """`"head"` (body frozen), `"all"`, or the last layer groups (the head is one of them): their number, or their share
    of all, above 0 and below 1, which goes with any architecture."""
    epochs: int
    lr: str | float | tuple[float, float] = "find"
    """`"find"`, one rate, or (first layers, last layers): fastai's `slice`, evenly multiplied in between."""
    batch_norm: str = "still"
    """Statistics of the body's BatchNorm: `"still"`, as pretrained, or `"moving"`, as fastai has it."""
    views: tuple[str, ...] = ()
    """What a head stage on computed features sees besides the plain training images: `"flip"`."""
    image_size: int = 0
    """Pixels, side of the square that the stage trains on, at most the recipe's; 0: the recipe's own. Progressive
    resizing is a smaller stage before a larger one. Valid images keep the recipe's size."""
    steps: int = 0
    """At least so many steps are made: where images are few, epochs are added."""
    optimizer: str = "adam"
    """`"adam"`, `"sgd"` (momentum 0.9), `"rmsprop"`, `"radam"`, `"qhadam"`, `"larc"`, `"lamb"` or `"ranger"`, each
    fastai's, with its settings. One cycle moves the momentum, too."""
    schedule: str = "one_cycle"
    """How the rate goes: `"one_cycle"`, up and down; `"flat_cos"`, held for three quarters and then down along a
    cosine; `"plateau"`, a tenth after each epoch in which the valid loss did not fall; `"constant"`."""

    def epochs_of(self, images: int, batch_size: int) -> int:
        """Its epochs, or, with so few training images, those that its `steps` take.

        >>> Stage("head", 2, steps=70).epochs_of(2250, 64), Stage("head", 2, steps=70).epochs_of(220, 16)
        (2, 6)
        """
        views = 2 if self.views else 1
        return max(self.epochs, math.ceil(self.steps / max(1, views * images // batch_size)))

    def groups(self, of: int) -> int:
        """How many last layer groups it trains of so many; a share is at least the head and the group before it.

        >>> Stage(0.55, 1).groups(9), Stage(0.55, 1).groups(3), Stage("head", 1).groups(9)
        (5, 2, 1)
        """
        if isinstance(self.trains, str):
            return {"head": 1, "all": of}[self.trains]
        return min(of, max(2, round(self.trains * of))) if isinstance(self.trains, float) else self.trains


@dataclass(frozen=True)
class Recipe:
    """Every decision of a run. Values are checked when it is made; all faults are reported at once.

    >>> Recipe(image_size=128, stages=(Stage("head", 3), Stage("all", 3, (1e-6, 1e-4)))).image_size
    128

    Raises:
        RecipeError: for values that cannot be used, naming each of them and what was needed.
    """

    name: str = "mine"
    title: str = ""
    data: str = ""
    """The named data set this recipe is for; empty where the images are given."""
    image_col: str = ""
    """The column of a table that names the images; looked for where empty, as are the next three."""
    label_col: str = ""
    """The column of classes, or several between commas, each 0 or 1."""
    group_col: str = ""
    """The column of what belongs together. Where it is given, splits heed it unless `split` says otherwise."""
    split_col: str = ""
    image_dir: str = ""
    """The folder of the images that a table names; the table's own where empty."""
    label_from: str = ""
    """A regular expression that finds the class in an image's path: loose images with the label in their name."""
    labels: str = "auto"
    """Classes of an image: `"one"`, or `"many"` (none or more, `;` between them); `"auto"`: many where a `;` is seen."""
    positive: str = ""
    """A class to tell from all others, which become one, `not` and its name; empty for the classes as they are."""
    split: str = "auto"
    """How images are parted: see the module `splits`."""
    split_file: str = ""
    """A run's `split.csv`, to split just as that run did."""
    fold: int = 0
    """Which part of `kfold:K` and `group-kfold:K` is the valid split, from 0."""
    audit: str = "tell"
    """Before training, every image is looked at and what is wrong is told: `"tell"`; copies of an image in two splits
    are an error: `"strict"`; images that cannot be read are left out and no more: `"none"`."""
    leaks: str = "keep"
    """Training images with a copy in test, and valid ones: `"keep"` (and say so) or `"drop"`."""
    fixes: tuple[str, ...] = ()
    """Tables of mended labels, applied in order to all images but those that the number is measured on; see the module
    `mending`."""
    keep_if: str = ""
    """Only images that a second model takes for this class of its own are used; the others leave every split."""
    keep_model: str = ""
    """The folder of that model."""
    keep_above: float = 0.5
    """From which calibrated probability of that class on."""
    balance: str = "none"
    """What is done about rare classes: `"weights"` in the loss, `"sampler"` draws them as often, or `"none"`."""
    threshold: float = 0.5
    """Probability from which on one of many labels is predicted."""
    arch: str = "auto"
    """A torchvision or timm name, or `"auto"`; with `" or "` between, the first whose weights are within reach, as in
    `"resnet18 or auto"` (see `resolve_arch`)."""
    scratch: bool = False
    """Start from random weights instead of pretrained ones."""
    weights: str = ""
    """A .pth or .safetensors file; empty looks for the architecture's own weights, offline places first."""
    head: str = "linear"
    """`"linear"`: average pooling, BatchNorm, one layer; `"fastai"`: average and maximum pooling, two layers, dropout.
    Fine-tuned briefly with still BatchNorm statistics, fastai's head diverges where the linear one learns."""
    image_size: int = 160
    """Pixels, side of the square that the network sees."""
    resize: str = "squish"
    """How an image becomes that square: `"squish"`, `"crop"` (centre) or `"pad"` (black)."""
    batch_size: str | int = "auto"
    valid_share: float = 0.1
    """Share of the training images set aside for choosing rates and weights, where no valid split is given."""
    test_share: float = 0.2
    """Share of all images set aside for the final number, where no split at all is given."""
    images_per_class: int = 0
    """Train on a seeded subset of so many training images per class; 0 takes all."""
    seed: int = 0
    augment: Augment = Augment()
    tta: tuple[str, ...] = ("flip",)
    """Views averaged with the plain image at evaluation: `"flip"`, `"five_crops"`; empty for none."""
    freeze: str = "features"
    """How a head stage holds the body still: `"features"` computes the frozen body's outputs once; `"fastai"` is
    fastai's own frozen stage, where BatchNorm keeps moving and every epoch runs the whole body."""
    precision: str = "auto"
    """The number format of training and evaluation (see `resolve_precision`)."""
    frozen_precision: str = "auto"
    """That of the passes through frozen layers, which need no gradients (see `resolve_frozen_precision`)."""
    compile: bool = False
    """Training runs through `torch.compile` instead of our own quicker passes. On the CPU where that was measured it
    never pays: 47 s of compiling for 111 images/s; these reach 134, plain torch 76 (EfficientNet-Lite0, 128 px)."""
    workers: int = 0
    """Processes that read images in the background, where they are not kept decoded in memory."""
    cache_gb: float = 20.0
    """Decoded images and outputs of frozen layers are kept in the cache folder for the next run, at most so many
    10^9 bytes in all, the longest unused removed for new ones; 0 keeps nothing."""
    budget: str = ""
    """Time for the whole run, such as `"10m"` or `"1h30m"`: image size and epochs are fitted to it."""
    log: tuple[str, ...] = ()
    """Where numbers go while training, besides the run folder's own files: `"csv"`, `"tensorboard"`, `"wandb"`,
    `"mlflow"`, as a list or as text with commas; see the module `loggers`."""
    patience: int = 0
    """A stage ends once so many epochs of it, one after the other, were no better than its best; 0: it never does."""
    preset: str = "standard"
    stages: tuple[Stage, ...] = (Stage("head", 3), Stage("all", 3))
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What `quick` and `best` change; `standard` is the recipe itself. Empty once a preset has been chosen."""
    expected: Mapping[str, Any] = field(default_factory=dict)
    """Measured results, for the table of `baseline recipes`."""

    def __post_init__(self) -> None:
        _set_fields(self, stages=_as_stages(self.stages), augment=_as_augment(self.augment), tta=_as_tuple(self.tta))
        _set_fields(self, log=_as_logger_names(self.log), fixes=_as_paths(self.fixes))
        if found := find_faults(self):
            raise RecipeError(f"Recipe '{self.name}': " + "; ".join(found) + ".")

    @property
    def decoded_size(self) -> int:
        """Pixels, side of the squares that images are decoded to: what the smallest random crop needs.

        >>> Recipe(image_size=128).decoded_size, Recipe(image_size=128, augment=Augment(crop=0.64)).decoded_size
        (128, 160)
        """
        return math.ceil(self.image_size / self.augment.crop**0.5)

    def changed(self, **changes: Any) -> Recipe:
        """A copy with other values; names that do not exist are refused with the nearest one that does."""
        _check_known(changes, f"recipe '{self.name}'")
        return dataclasses.replace(self, **changes)

    def with_preset(self, preset: str) -> Recipe:
        """The recipe as `preset` has it: `"quick"`, `"standard"` (the recipe itself) or `"best"`."""
        if preset not in PRESETS:
            raise RecipeError(unknown_name("preset", preset, PRESETS))
        changes = dict(self.presets.get(preset, {}))
        if preset != "standard" and not changes:
            raise RecipeError(f"Recipe '{self.name}' has no preset '{preset}'. Known: {', '.join(preset_names(self))}.")
        _check_known(changes, f"preset '{preset}' of recipe '{self.name}'")
        return dataclasses.replace(self, **changes, preset=preset, presets={})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `recipe_from_dict` reads them back; what the manifest keeps."""
        return dataclasses.asdict(self)


def parse_duration(text: Any) -> int:
    """The seconds that a text such as `"1h30m"` means; 0 where it means none.

    >>> parse_duration("1h30m"), parse_duration("90s"), parse_duration("soon")
    (5400, 90, 0)
    """
    parts = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?", text) if isinstance(text, str) else None
    hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    return 3600 * hours + 60 * minutes + seconds


def format_lr(rate: Any) -> str:
    """A learning rate, or the first and the last layers' own.

    >>> format_lr(0.01), format_lr([1e-5, 1e-3])
    ('1.0e-02', '1.0e-05 to 1.0e-03')
    """
    return f"{rate[0]:.1e} to {rate[1]:.1e}" if isinstance(rate, tuple | list) else f"{rate:.1e}"


def describe_trained(what: Any) -> str:
    """What a stage trains, in words.

    >>> describe_trained("head"), describe_trained(5), describe_trained(0.55)
    ('the head, body frozen', 'the last 5 layer groups', 'the last 55% of the layer groups')
    """
    if isinstance(what, str):
        return {"head": "the head, body frozen", "all": "all layers"}[what]
    return f"the last {what:.0%} of the layer groups" if isinstance(what, float) else f"the last {what} layer groups"


def describe_schedule(stage: Mapping[str, Any]) -> str:
    """Optimizer and schedule, each only where it is not the usual one.

    >>> describe_schedule({"optimizer": "sgd", "schedule": "plateau"}), describe_schedule({"optimizer": "adam"})
    ('optimizer sgd, schedule plateau', '')
    """
    usual = {f.name: f.default for f in dataclasses.fields(Stage)}
    found = {key: stage.get(key, usual[key]) for key in ("optimizer", "schedule")}
    return ", ".join(f"{key} {value}" for key, value in found.items() if value != usual[key])


def _set_fields(recipe: Recipe, **values: Any) -> None:
    for key, value in values.items():
        object.__setattr__(recipe, key, value)


def field_names(kind: type) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]


def preset_names(recipe: Recipe) -> list[str]:
    return [preset for preset in PRESETS if preset == "standard" or preset in recipe.presets]


def _check_known(changes: Mapping[str, Any], where: str) -> None:
    wrong = [key for key in changes if key not in field_names(Recipe)]
    if wrong:
        raise RecipeError(
            f"In {where}: " + " ".join(unknown_name("key", key, field_names(Recipe), limit=99) for key in wrong)
        )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _as_paths(value: Any) -> Any:
    return tuple(filter(None, [value])) if isinstance(value, str | Path) else _as_tuple(value)


def _as_logger_names(value: Any) -> Any:
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(map(_is_text, names)):
        return value
    return tuple(dict.fromkeys(name for name in names if name not in ("", "none")))


def _as_augment(value: Any) -> Any:
    """A table becomes an Augment; what is no table, or has unknown keys, stays for `find_faults` to name."""
    if isinstance(value, Mapping) and set(value) <= set(field_names(Augment)):
        return Augment(**value)
    return value


def _as_stages(value: Any) -> Any:
    return tuple(_as_stage(each) for each in value) if isinstance(value, list | tuple) else value


def _as_stage(value: Any) -> Any:
    if isinstance(value, Mapping) and {"trains", "epochs"} <= set(value) <= set(field_names(Stage)):
        value = Stage(**value)
    if isinstance(value, Stage):
        lr = tuple(value.lr) if isinstance(value.lr, list) else value.lr
        value = dataclasses.replace(value, lr=lr, views=_as_tuple(value.views))
    return value


def find_faults(recipe: Recipe) -> list[str]:
    """Every value that cannot be used, each with what was needed."""
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "name": (_is_text, "text"),
        "title": (_is_text, "text"),
        "data": (_is_text, "text"),
        "arch": (lambda v: _is_text(v) and bool(v), "the name of an architecture or 'auto'"),
        **dict.fromkeys(("scratch", "compile"), (_is_bool, "true or false")),
        "weights": (_is_text, "a path"),
        **dict.fromkeys((*COLUMN_KEYS, "image_dir", "label_from", "positive", "split_file"), (_is_text, "text")),
        "labels": (lambda v: v in LABELS, f"one of {', '.join(LABELS)}"),
        "split": (_is_split_method, f"one of {', '.join(SPLIT_METHODS)}"),
        "fold": (lambda v: is_int(v, 0, 999), "a whole number from 0, below the number of folds"),
        "audit": (lambda v: v in AUDITS, f"one of {', '.join(AUDITS)}"),
        "leaks": (lambda v: v in LEAKS, f"one of {', '.join(LEAKS)}"),
        "fixes": (lambda v: isinstance(v, tuple) and all(map(_is_text, v)), "a list of paths"),
        **dict.fromkeys(("keep_if", "keep_model"), (_is_text, "text")),
        "keep_above": (lambda v: is_number(v, 0, 1), "a probability from 0 to 1"),
        "balance": (lambda v: v in BALANCES, f"one of {', '.join(BALANCES)}"),
        "threshold": (lambda v: is_number(v, 0.001, 0.999), "a probability above 0 and below 1"),
        "head": (lambda v: v in HEADS, f"one of {', '.join(HEADS)}"),
        "image_size": (lambda v: is_int(v, 8, 4096), "pixels, a whole number from 8 to 4096"),
        "resize": (lambda v: v in RESIZES, f"one of {', '.join(RESIZES)}"),
        "batch_size": (lambda v: v == "auto" or is_int(v, 2, 65536), "'auto' or a whole number from 2"),
        "valid_share": (lambda v: is_number(v, 0.01, 0.9), "a share from 0.01 to 0.9"),
        "test_share": (lambda v: is_number(v, 0.01, 0.9), "a share from 0.01 to 0.9"),
        "images_per_class": (lambda v: is_int(v, 0, 10**9), "a whole number, 0 for all"),
        "seed": (lambda v: is_int(v, 0, 2**32 - 1), "a whole number from 0 to 4294967295"),
        "augment": (_is_augment, f"a table of {', '.join(field_names(Augment))} with usable values"),
        "tta": (lambda v: isinstance(v, tuple) and all(x in VIEWS for x in v), f"a list from {', '.join(VIEWS)}"),
        "freeze": (lambda v: v in ("features", "fastai"), "'features' or 'fastai'"),
        "precision": (lambda v: v in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        "frozen_precision": (lambda v: v in FROZEN_PRECISIONS, f"one of {', '.join(FROZEN_PRECISIONS)}"),
        "workers": (lambda v: is_int(v, 0, 256), "a whole number from 0"),
        "budget": (lambda v: v == "" or parse_duration(v) > 0, "a time such as 90s, 10m or 1h30m"),
        "patience": (lambda v: is_int(v, 0, 100_000), "epochs, a whole number, 0 for no end before the last"),
        "log": (_are_loggers, f"a list from {', '.join(LOGGERS)}, or none"),
        "cache_gb": (lambda v: is_number(v, 0, 1e6), "gigabytes, 0 for none"),
        "preset": (lambda v: v in PRESETS, f"one of {', '.join(PRESETS)}"),
        "presets": (lambda v: isinstance(v, Mapping) and set(v) <= {"quick", "best"}, "tables named quick and best"),
        "expected": (lambda v: isinstance(v, Mapping), "a table"),
    }
    faults = [
        f"{key} is {getattr(recipe, key)!r}, needed: {needed}"
        for key, (good, needed) in checks.items()
        if not good(getattr(recipe, key))
    ]
    if recipe.audit == "none" and recipe.leaks == "drop":
        faults.append("leaks is 'drop', which needs the audit that is left out")
    if bool(recipe.keep_if) != bool(recipe.keep_model):
        lacking = "keep_model" if recipe.keep_if else "keep_if"
        faults.append(f"keep_if and keep_model go together, and {lacking} is not given")
    if recipe.labels == "many" and recipe.balance != "none":
        faults.append("balance goes with one label an image, and labels is 'many'")
    if _is_split_method(recipe.split) and "kfold" in recipe.split and recipe.fold >= int(recipe.split.split(":")[1]):
        faults.append(f"fold is {recipe.fold}, needed: below the {recipe.split.split(':')[1]} folds of split")
    return faults + _find_stage_faults(recipe.stages, recipe.image_size)


def _find_stage_faults(stages: Any, largest: Any) -> list[str]:
    if not isinstance(stages, tuple) or not stages:
        return [f"stages is {stages!r}, needed: at least one stage"]
    faults = []
    for number, stage in enumerate(stages, 1):
        if not isinstance(stage, Stage):
            faults.append(f"stage {number} is {stage!r}, needed: a table of {', '.join(field_names(Stage))}")
            continue
        share = isinstance(stage.trains, float) and 0 < stage.trains < 1
        if stage.trains not in ("head", "all") and not share and not is_int(stage.trains, 1, 1000):
            needed = "'head', 'all', a number of layer groups, or their share of all"
            faults.append(f"stage {number}: trains is {stage.trains!r}, needed: {needed}")
        if not is_int(stage.epochs, 1, 100_000):
            faults.append(f"stage {number}: epochs is {stage.epochs!r}, needed: a whole number from 1")
        if not is_int(stage.steps, 0, 10**6):
            faults.append(f"stage {number}: steps is {stage.steps!r}, needed: a whole number from 0")
        if stage.batch_norm not in ("still", "moving"):
            faults.append(f"stage {number}: batch_norm is {stage.batch_norm!r}, needed: 'still' or 'moving'")
        if stage.views not in ((), ("flip",)):
            faults.append(f"stage {number}: views is {stage.views!r}, needed: [] or ['flip']")
        if not (is_int(stage.image_size, 0, 4096) and (stage.image_size == 0 or 8 <= stage.image_size <= largest)):
            needed = f"pixels, from 8 to the recipe's image_size {largest!r}, or 0 for that"
            faults.append(f"stage {number}: image_size is {stage.image_size!r}, needed: {needed}")
        for key, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if (value := getattr(stage, key)) not in tuple(known):
                faults.append(f"stage {number}: {key} is {value!r}, needed: one of {', '.join(known)}")
        if not _is_lr(stage.lr):
            faults.append(f"stage {number}: lr is {stage.lr!r}, needed: 'find', a rate, or [first, last] above 0")
    return faults


def _is_split_method(value: Any) -> bool:
    """Whether it names a way of splitting, with what has to follow it."""
    if not isinstance(value, str):
        return False
    way, _, rest = value.partition(":")
    if way in ("kfold", "group-kfold"):
        return rest.isdecimal() and 2 <= int(rest) <= 1000
    return (way == "time" and bool(rest)) or value in ("auto", "provided", "random", "group")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether it is a number, and no flag, from low to high."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _are_loggers(value: Any) -> bool:
    return isinstance(value, tuple) and all(each in LOGGERS for each in value)


def is_int(value: Any, low: int, high: int) -> bool:
    """Whether it is a whole number from low to high."""
    return isinstance(value, int) and is_number(value, low, high)


def _is_lr(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) == 2 and all(is_number(rate, 1e-12, 100) for rate in value)
    return value == "find" or is_number(value, 1e-12, 100)


def _is_augment(value: Any) -> bool:
    if not isinstance(value, Augment) or not _is_bool(value.flip):
        return False
    bounds = {"rotate": (0, 180), "zoom": (1, 10), "lighting": (0, 1), "warp": (0, 1), "probability": (0, 1),
              "crop": (0.1, 1)}  # fmt: skip
    return all(is_number(getattr(value, key), *bound) for key, bound in bounds.items())
