"""Recipes as data: every decision of a run, in frozen dataclasses that are checked when they are made.

A recipe holds decisions. What a run measures (learning rates, seconds, hashes) goes into its manifest. The groups say
what a decision is about: `data`, `split`, `model`, `augment`, `training`, `stages` and `evaluation` may change the
result; `options` (`RunOptions`) cannot.

Each field carries its own metadata: the help text, the panel of the command line that shows it, and what a valid value
is. The command line, `--set`, the messages about wrong values and the comparison of recipes are made from it. A new
field is one entry in this file and one in `RecipeChanges`, for type checkers; a test compares the two. Within a recipe
every field has a flat name, too (`image_size` for `model.image_size`), which TOML files,
`make_baseline(images, image_size=128)` and the command line use.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from annotated_types import Interval, Predicate

from baseline.errors import RecipeError, unknown_name
from baseline.recipe.validation import Before, Needed, as_numbers, as_tuple, check, is_range

__all__ = [
    "Augment",
    "DataSettings",
    "EvaluationSettings",
    "ModelSettings",
    "Recipe",
    "RunOptions",
    "SplitSettings",
    "Stage",
    "TrainingSettings",
    "describe_schedule",
    "describe_trained",
    "format_lr",
    "parse_duration",
]

PRESETS = ("quick", "standard", "best")

SPLIT_METHODS = ("auto", "provided", "random", "group", "kfold:K", "group-kfold:K", "time:COLUMN")

LOGGERS = ("csv", "mlflow", "tensorboard", "wandb")

VIEWS = ("flip", "five_crops")

HEADS = ("linear", "fastai")

RESIZES = ("squish", "crop", "pad")

PRECISIONS = ("auto", "float32", "float16", "bfloat16")

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
"""The fastai optimizer behind each name, with its settings. Weight decay is decoupled: fastai's Adam is AdamW."""

SCHEDULES = ("one_cycle", "flat_cos", "plateau", "constant")

IMAGES_PANEL = "Images and labels"
SPLIT_PANEL = "Splits"
MODEL_PANEL = "Model and training"
RUN_PANEL = "This run"


def setting(default: Any, help: str, panel: str = MODEL_PANEL, *, flat: str = "", common: bool = False) -> Any:
    """A field of a recipe.

    Args:
        default: its value where a recipe does not name it.
        help: one line for `--help`.
        panel: the heading under which `--help` shows it.
        flat: its name outside its group, where that differs from the field's own.
        common: whether `baseline run --help` shows it; the others are under `--help-all` and `--set`.
    """
    return field(default=default, metadata={"help": help, "panel": panel, "flat": flat, "common": common})


def is_split_method(value: str) -> bool:
    """Whether the text is one of `SPLIT_METHODS`, with the number or the column that has to follow.

    >>> is_split_method("kfold:5"), is_split_method("kfold"), is_split_method("time:date")
    (True, False, True)
    """
    method, _, rest = value.partition(":")
    if method in ("kfold", "group-kfold"):
        return rest.isdecimal() and 2 <= int(rest) <= 1000
    return (method == "time" and bool(rest)) or value in ("auto", "provided", "random", "group")


def is_nonempty(value: str) -> bool:
    """Whether the text has any characters."""
    return bool(value)


def is_budget(value: str) -> bool:
    """Whether the text is empty or a duration such as `10m`."""
    return value == "" or parse_duration(value) > 0


def as_paths(value: Any) -> Any:
    """One path or several as a tuple of text; an empty path is none."""
    paths = [value] if isinstance(value, str | Path) else value
    return tuple(str(path) for path in paths if str(path)) if isinstance(paths, list | tuple) else value


def split_logger_names(value: Any) -> Any:
    """Logger names in a list, or in one text with commas, each once and without `none`."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return value
    return tuple(dict.fromkeys(name for name in names if name not in ("", "none")))


Text = Annotated[str, Needed("text")]
PathText = Annotated[str, Needed("a path")]
Flag = Annotated[bool, Needed("true or false")]
Pixels = Annotated[int, Interval(ge=8, le=4096), Needed("pixels, a whole number from 8 to 4096")]
Fraction = Annotated[float, Interval(ge=0.01, le=0.9), Needed("a fraction from 0.01 to 0.9")]
LearningRate = Annotated[float, Interval(ge=1e-12, le=100)]
Views = Annotated[
    tuple[Literal["flip", "five_crops"], ...], Before(as_tuple), Needed(f"a list from {', '.join(VIEWS)}")
]


@dataclass(frozen=True)
class DataSettings:
    """Which images there are, and what their labels mean."""

    dataset: Text = setting("", "Name of a data set, such as cifar10.", IMAGES_PANEL, flat="data")
    """The named data set that the recipe is for; empty where the images are given."""
    image_col: Text = setting("", "Column of a table that names the images.", IMAGES_PANEL)
    """If empty, detected by column names and contents. The same applies to the next three fields."""
    label_col: Text = setting(
        "", "Column of the labels, or several columns of 0 and 1, separated by commas.", IMAGES_PANEL, common=True
    )
    group_col: Text = setting(
        "", "Column that says which images belong together (one patient, one photographer).", IMAGES_PANEL
    )
    """A split keeps groups together where it is given, unless `split` says otherwise."""
    split_col: Text = setting("", "Column that holds train, valid or test.", IMAGES_PANEL)
    image_dir: PathText = setting(
        "", "Folder of the images that a table names; the table's own folder by default.", IMAGES_PANEL, common=True
    )
    label_from: Text = setting(
        "", "Regular expression that finds the label in an image's path; auto takes the pattern that names show.",
        IMAGES_PANEL,
    )  # fmt: skip
    source: Text = setting("", "How to read the images, where several ways fit; see baseline sources.", IMAGES_PANEL)
    label_delim: Annotated[str, Needed("text between labels, such as ' ' or ','")] = setting(
        "", "Delimiter between the labels of an image that has several; detected by default.", IMAGES_PANEL
    )
    bins: Annotated[int, Interval(ge=0, le=100), Needed("a whole number from 2, 0 for none")] = setting(
        0, "Make this many classes of about equal size from a column of numbers.", IMAGES_PANEL
    )
    missing: Literal["auto", "drop", "error"] = setting(
        "auto", "Rows without an image or a label: drop, error, or auto, which drops up to 5 % of them.", IMAGES_PANEL
    )
    encoding: Text = setting("", "Encoding of a CSV or TSV table, such as cp1252; detected by default.", IMAGES_PANEL)
    min_per_class: Annotated[int, Interval(ge=0, le=10**6), Needed("a whole number, 0 for all")] = setting(
        0, "Leave out classes with fewer images than this.", IMAGES_PANEL
    )
    other: Text = setting("", "Join rare classes (see --min-per-class) as one of this name.", IMAGES_PANEL)
    """Without `min_per_class`, classes with a single image are rare."""
    task: Literal["auto", "single", "multilabel"] = setting(
        "auto", "Whether an image has one label or several, separated by ';'.", IMAGES_PANEL
    )
    """`"auto"` is multi-label where a `;` occurs in a label."""
    positive: Text = setting("", "Train one class against all others.", IMAGES_PANEL)
    """The others become one class, `not NAME`; empty leaves the classes as they are."""
    images_per_class: Annotated[int, Interval(ge=0, le=10**9), Needed("a whole number, 0 for all")] = setting(
        0, "Train on a random subset with this many images per class; 0 takes all.", IMAGES_PANEL, common=True
    )
    value_range: Annotated[tuple[float, ...], Before(as_numbers), Predicate(is_range), Needed("two numbers")] = setting(
        (), "Values of black and white in images of more than 8 bits, such as 0,4095.", IMAGES_PANEL
    )
    """If empty, it is measured on the images whose files declare no range, and is the same for all of them."""
    fixes: Annotated[tuple[str, ...], Before(as_paths), Needed("a list of paths")] = setting(
        (), "Tables of corrected labels, as baseline clean writes them.", IMAGES_PANEL
    )
    """They are applied in order to all images but those that the result is measured on."""
    audit: Literal["tell", "strict", "none"] = setting(
        "tell", "tell reports problems with the images, strict fails on leaks, none only drops unreadable files.",
        IMAGES_PANEL,
    )  # fmt: skip


@dataclass(frozen=True)
class SplitSettings:
    """How images are divided into train, valid and test; see `baseline.data.split`."""

    method: Annotated[str, Predicate(is_split_method), Needed(f"one of {', '.join(SPLIT_METHODS)}")] = setting(
        "auto", f"How to split: {', '.join(SPLIT_METHODS)}.", SPLIT_PANEL, flat="split", common=True
    )
    file: PathText = setting("", "A run's split.csv, to split exactly as that run did.", SPLIT_PANEL, flat="split_file")
    fold: Annotated[int, Interval(ge=0, le=999), Needed("a whole number from 0, below the number of folds")] = setting(
        0, "Train this fold only, counted from 0; all folds by default.", SPLIT_PANEL
    )
    """Which part of `kfold:K` and `group-kfold:K` is the valid split."""
    valid_fraction: Fraction = setting(0.1, "Fraction of the training images used for validation.", SPLIT_PANEL)
    """Used where the images come without a valid split."""
    test_fraction: Fraction = setting(0.2, "Fraction of all images held out for testing.", SPLIT_PANEL)
    """Used where the images come without any split."""
    leaks: Literal["keep", "drop"] = setting(
        "keep", "Whether to keep or drop training images that have a duplicate in test.", SPLIT_PANEL
    )
    """`"keep"` reports them."""


@dataclass(frozen=True)
class ModelSettings:
    """The network and the images that it sees."""

    arch: Annotated[str, Predicate(is_nonempty), Needed("the name of an architecture or 'auto'")] = setting(
        "auto", "Architecture: a torchvision or timm name, or auto.", common=True
    )
    """With `" or "` between names, the first whose weights are available (see `resolve_arch`)."""
    pretrained: Flag = setting(True, "Start from pretrained weights.", common=True)
    weights: PathText = setting("", "A .pth or .safetensors file of pretrained weights.", common=True)
    """Empty looks for the architecture's own weights, offline first."""
    head: Literal["linear", "fastai"] = setting(
        "linear", "linear (pooling, BatchNorm, one layer) or fastai (two layers with dropout)."
    )
    """Fine-tuned briefly with frozen BatchNorm statistics, fastai's head diverges where the linear one learns."""
    image_size: Pixels = setting(160, "Height and width of the input of the network, in pixels.", common=True)
    resize: Literal["squish", "crop", "pad"] = setting(
        "squish", "How an image becomes a square: squish, crop (center) or pad (black)."
    )
    precision: Literal["auto", "float32", "float16", "bfloat16"] = setting(
        "auto", "Number format of training and evaluation (mixed precision on a GPU)."
    )
    frozen_precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "Number format of passes through frozen layers."
    )


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images. Names and units follow fastai's `aug_transforms`."""

    flip: Flag = True
    """Mirror left and right, half of the time."""
    rotate: Annotated[float, Interval(ge=0, le=180)] = 10.0
    """Maximum rotation either way, in degrees."""
    zoom: Annotated[float, Interval(ge=1, le=10)] = 1.1
    """Maximum magnification."""
    lighting: Annotated[float, Interval(ge=0, le=1)] = 0.2
    """Maximum change of brightness and contrast, as a fraction."""
    warp: Annotated[float, Interval(ge=0, le=1)] = 0.2
    """Maximum change of perspective, as a fraction of the side."""
    crop: Annotated[float, Interval(ge=0.1, le=1)] = 1.0
    """Minimum fraction of an image's area that is seen: below 1, images are decoded larger (see
    `Recipe.decoded_size`) and a random square of them is taken, one per batch (fastai's `RandomResizedCropGPU`); valid
    images are seen whole."""
    probability: Annotated[float, Interval(ge=0, le=1)] = 0.75
    """Probability of rotation, zoom and warp, and of lighting."""


@dataclass(frozen=True)
class Stage:
    """One call of fastai's `fit_one_cycle`, or of another schedule."""

    trains: Annotated[
        Literal["head", "all"] | Annotated[int, Interval(ge=1, le=1000)] | Annotated[float, Interval(gt=0, lt=1)],
        Needed("'head', 'all', a number of layer groups, or a fraction of them above 0 and below 1"),
    ]
    """`"head"` (frozen body), `"all"`, or the last layer groups, the head among them: their number, or their fraction
    of all groups, which fits any architecture."""
    epochs: Annotated[int, Interval(ge=1, le=100_000), Needed("a whole number from 1")]
    """Number of passes over the training images."""
    lr: Annotated[
        Literal["find"] | LearningRate | tuple[LearningRate, LearningRate],
        Before(as_tuple),
        Needed("'find', a learning rate, or [first, last] above 0"),
    ] = "find"
    """`"find"`, one rate, or (first layers, last layers), fastai's `slice`, evenly multiplied between."""
    batch_norm: Annotated[Literal["frozen", "train"], Needed("'frozen' or 'train'")] = "frozen"
    """BatchNorm statistics of the body: `"frozen"` keeps the pretrained ones, `"train"` updates them, as in fastai."""
    views: Annotated[tuple[Literal["flip"], ...], Before(as_tuple), Needed("[] or ['flip']")] = ()
    """What a head stage on cached features sees besides the plain training images."""
    image_size: int = 0
    """Side of the square that the stage trains on, in pixels, at most the recipe's; 0 is the recipe's own. Progressive
    resizing is a smaller stage before a larger one. Valid images keep the recipe's size."""
    steps: Annotated[int, Interval(ge=0, le=10**6), Needed("a whole number from 0")] = 0
    """Minimum number of steps: epochs are added where there are few images."""
    optimizer: Annotated[
        Literal["adam", "sgd", "rmsprop", "radam", "qhadam", "larc", "lamb", "ranger"],
        Needed(f"one of {', '.join(OPTIMIZERS)}"),
    ] = "adam"
    """fastai's optimizer of that name (see `OPTIMIZERS`). One cycle also moves the momentum."""
    schedule: Annotated[
        Literal["one_cycle", "flat_cos", "plateau", "constant"], Needed(f"one of {', '.join(SCHEDULES)}")
    ] = "one_cycle"
    """`"one_cycle"` goes up and down; `"flat_cos"` is flat for three quarters and then falls along a cosine;
    `"plateau"` divides by ten after each epoch in which the valid loss did not fall; `"constant"` does not change."""

    def epochs_of(self, images: int, batch_size: int) -> int:
        """Return the number of epochs, increased if needed to reach at least `steps` training steps.

        >>> Stage("head", 2, steps=70).epochs_of(2250, 64), Stage("head", 2, steps=70).epochs_of(220, 16)
        (2, 6)
        """
        views = 2 if self.views else 1
        return max(self.epochs, math.ceil(self.steps / max(1, views * images // batch_size)))

    def groups(self, of: int) -> int:
        """Return how many of `of` layer groups the stage trains. A fraction always covers at least two groups.

        >>> Stage(0.55, 1).groups(9), Stage(0.55, 1).groups(3), Stage("head", 1).groups(9)
        (5, 2, 1)
        """
        if isinstance(self.trains, str):
            return {"head": 1, "all": of}[self.trains]
        return min(of, max(2, round(self.trains * of))) if isinstance(self.trains, float) else self.trains


@dataclass(frozen=True)
class TrainingSettings:
    """How the stages are trained."""

    batch_size: Annotated[
        Literal["auto"] | Annotated[int, Interval(ge=2, le=65536)], Needed("'auto' or a whole number from 2")
    ] = setting("auto", "Images per step, or auto.", common=True)
    class_balance: Literal["none", "weights", "sampler"] = setting(
        "none", "For rare classes: class weights in the loss, a sampler that draws classes equally often, or none."
    )
    freeze: Literal["features", "fastai"] = setting(
        "features", "How a head stage freezes the body: features (computed once) or fastai's own frozen stage."
    )
    """In fastai's own frozen stage BatchNorm keeps updating and every epoch runs the whole body."""
    patience: Annotated[int, Interval(ge=0, le=100_000), Needed("epochs, a whole number, 0 for none")] = setting(
        0, "Early stopping: end a stage after this many epochs without improvement; 0 for none."
    )
    budget: Annotated[str, Predicate(is_budget), Needed("a time such as 90s, 10m or 1h30m")] = setting(
        "", "Time for the whole run, such as 10m; image size and epochs are fitted to it.", common=True
    )


@dataclass(frozen=True)
class EvaluationSettings:
    """How the result is computed."""

    tta: Views = setting(("flip",), "Views averaged by test-time augmentation (TTA): flip, five_crops, or none.")
    threshold: Annotated[float, Interval(ge=0.001, le=0.999), Needed("a probability above 0 and below 1")] = setting(
        0.5, "Probability from which a label is predicted, for several labels per image."
    )


@dataclass(frozen=True)
class RunOptions:
    """What cannot change the result: where images are read, what is cached, where metrics go."""

    workers: Annotated[int, Interval(ge=0, le=256), Needed("a whole number from 0")] = setting(
        0, "Number of background processes that read images.", RUN_PANEL
    )
    """Used where images are not kept decoded in memory."""
    cache_gb: Annotated[float, Interval(ge=0, le=1e6), Needed("gigabytes, 0 for none")] = setting(
        20.0, "Maximum size of the cache of decoded images and features, in GB; 0 for none.", RUN_PANEL
    )
    """In 10^9 bytes. The least recently used entries are removed for new ones."""
    loggers: Annotated[
        tuple[Literal["csv", "mlflow", "tensorboard", "wandb"], ...],
        Before(split_logger_names),
        Needed(f"a list from {', '.join(LOGGERS)}, or none"),
    ] = setting((), f"Where metrics go while training: {', '.join(LOGGERS)}, separated by commas.", RUN_PANEL)
    """They come on top of the run folder's own files."""


@dataclass(frozen=True)
class Recipe:
    """Every decision of a run. Values are checked when it is made; all faults are reported at once.

    >>> recipe = Recipe(model={"image_size": 128}, stages=(Stage("head", 3), Stage("all", 3, (1e-6, 1e-4))))
    >>> recipe.changed(arch="resnet50").model.image_size
    128

    Raises:
        RecipeError: naming each value that cannot be used, and what was needed.
    """

    name: Text = "mine"
    title: Text = ""
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1), Needed("a whole number from 0 to 4294967295")] = setting(
        0, "Random seed for splits and training.", RUN_PANEL, common=True
    )
    data: DataSettings = DataSettings()
    split: SplitSettings = SplitSettings()
    model: ModelSettings = ModelSettings()
    augment: Augment = Augment()
    training: TrainingSettings = TrainingSettings()
    stages: Annotated[tuple[Stage, ...], Before(as_tuple), Needed("at least one stage")] = (
        Stage("head", 3),
        Stage("all", 3),
    )
    evaluation: EvaluationSettings = EvaluationSettings()
    options: RunOptions = RunOptions()
    preset: Annotated[Literal["quick", "standard", "best"], Needed(f"one of {', '.join(PRESETS)}")] = "standard"
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What `quick` and `best` change; `standard` is the recipe itself. Empty once a preset has been chosen."""
    expected: Mapping[str, Any] = field(default_factory=dict)
    """Measured results, for the table of `baseline recipes`."""

    def __post_init__(self) -> None:
        faults: list[str] = []
        for group in GROUPS:
            self._set(group, check(GROUPS[group], getattr(self, group), group, faults, flat=FLAT_NAMES.get(group, {})))
        stages = as_tuple(self.stages)
        if isinstance(stages, tuple) and stages:
            stages = tuple(check(Stage, stage, f"stage {number}", faults) for number, stage in enumerate(stages, 1))
        else:
            faults.append(f"stages is {self.stages!r}, needed: at least one stage")
        self._set("stages", stages)
        check(Recipe, self, "", faults, only=("name", "title", "seed", "preset"))
        faults += self._contradictions() if not faults else []
        if faults:
            raise RecipeError(f"Recipe '{self.name}': " + "; ".join(faults) + ".")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _contradictions(self) -> list[str]:
        """Values that are valid alone and not together."""
        faults = []
        if not isinstance(self.presets, Mapping) or not set(self.presets) <= {"quick", "best"}:
            faults.append(f"presets is {self.presets!r}, needed: tables named quick and best")
        if not isinstance(self.expected, Mapping):
            faults.append(f"expected is {self.expected!r}, needed: a table")
        if self.data.audit == "none" and self.split.leaks == "drop":
            faults.append("leaks is 'drop', which needs the audit that is left out")
        if self.data.bins == 1:
            faults.append("bins is 1, needed: a whole number from 2, 0 for none")
        if self.data.task == "multilabel" and self.training.class_balance != "none":
            faults.append("class_balance needs one label per image, and task is 'multilabel'")
        folds = self.split.method.partition(":")[2] if "kfold" in self.split.method else ""
        if folds and self.split.fold >= int(folds):
            faults.append(f"fold is {self.split.fold}, needed: below the {folds} folds of split")
        size = self.model.image_size
        for number, stage in enumerate(self.stages, 1):
            if not (stage.image_size == 0 or 8 <= stage.image_size <= size):
                needed = f"pixels, from 8 to the recipe's image_size {size}, or 0 for that"
                faults.append(f"stage {number}: image_size is {stage.image_size!r}, needed: {needed}")
        return faults

    @property
    def decoded_size(self) -> int:
        """Side of the squares that images are decoded to, in pixels: what the smallest random crop needs.

        >>> Recipe().changed(image_size=128).decoded_size
        128
        >>> Recipe().changed(image_size=128, augment=Augment(crop=0.64)).decoded_size
        160
        """
        return math.ceil(self.model.image_size / self.augment.crop**0.5)

    def changed(self, **changes: Any) -> Recipe:
        """Return a copy with other values.

        Args:
            **changes: flat names (`image_size=128`), groups (`model={"image_size": 128}`), or dotted names in a
                mapping (`**{"model.image_size": 128}`).

        Raises:
            RecipeError: for a name that does not exist, with the nearest one that does, or a value that cannot be used.
        """
        return self._changed(changes, f"recipe '{self.name}'")

    def _changed(self, changes: Mapping[str, Any], where: str) -> Recipe:
        fields: dict[str, Any] = {}
        unknown: list[str] = []
        for key, value in changes.items():
            group, leaf = locate(key, value)
            if not group:
                unknown.append(unknown_name("key", key, known_names(key.partition(".")[0]), limit=99))
            elif leaf:
                fields[group] = {**as_mapping(fields.get(group, getattr(self, group))), leaf: value}
            elif group in GROUPS and isinstance(value, Mapping):
                fields[group] = {**as_mapping(fields.get(group, getattr(self, group))), **value}
            else:
                fields[group] = value
        if unknown:
            raise RecipeError(f"In {where}: " + " ".join(unknown))
        return dataclasses.replace(self, **fields)

    def with_preset(self, preset: str) -> Recipe:
        """Return the recipe as `preset` has it: `"quick"`, `"standard"` (the recipe itself) or `"best"`.

        Raises:
            RecipeError: if there is no such preset, or the recipe does not have it.
        """
        if preset not in PRESETS:
            raise RecipeError(unknown_name("preset", preset, PRESETS))
        changes = dict(self.presets.get(preset, {}))
        if preset != "standard" and not changes:
            known = [name for name in PRESETS if name == "standard" or name in self.presets]
            raise RecipeError(f"Recipe '{self.name}' has no preset '{preset}'. Known: {', '.join(known)}.")
        changed = self._changed(changes, f"preset '{preset}' of recipe '{self.name}'")
        return dataclasses.replace(changed, preset=cast(Any, preset), presets={})

    def value(self, name: str) -> Any:
        """Return the value of a field by its flat name.

        >>> Recipe().value("image_size"), Recipe().value("seed")
        (160, 0)
        """
        group, leaf = LEAVES.get(name, ("", name))
        return getattr(getattr(self, group), leaf) if group else getattr(self, leaf)

    def as_dict(self) -> dict[str, Any]:
        """Return plain nested values, as `recipe_from_dict` reads them; the manifest keeps them."""
        return dataclasses.asdict(self)


GROUPS: Mapping[str, type] = {
    "data": DataSettings,
    "split": SplitSettings,
    "model": ModelSettings,
    "augment": Augment,
    "training": TrainingSettings,
    "evaluation": EvaluationSettings,
    "options": RunOptions,
}

FLAT_NAMES: Mapping[str, Mapping[str, str]] = {
    group: {f.name: f.metadata.get("flat") or f.name for f in dataclasses.fields(kind)}
    for group, kind in GROUPS.items()
    if group != "augment"
}
"""For each group, the flat name of each of its fields."""

LEAVES: Mapping[str, tuple[str, str]] = {
    flat: (group, leaf) for group, names in FLAT_NAMES.items() for leaf, flat in names.items()
}
"""The group and the field behind each flat name."""


def as_mapping(group: Any) -> Mapping[str, Any]:
    """The values of a group, given as a mapping or as an instance."""
    return group if isinstance(group, Mapping) else vars(group)


def known_names(group: str = "") -> list[str]:
    """The fields of a group as `group.field`; without a group, every flat name of a recipe's fields, and its groups."""
    if group in GROUPS:
        return [f"{group}.{f.name}" for f in dataclasses.fields(GROUPS[group])]
    return sorted({f.name for f in dataclasses.fields(Recipe)} | set(LEAVES))


def locate(key: str, value: Any) -> tuple[str, str]:
    """Return the group and the field that a name stands for; the field is empty for a whole group or a top-level field,
    and both are empty for an unknown name.

    >>> locate("image_size", 128), locate("model.image_size", 128), locate("split", "random"), locate("split", {})
    (('model', 'image_size'), ('model', 'image_size'), ('split', 'method'), ('split', ''))
    """
    group, dot, leaf = key.partition(".")
    if dot:
        return (group, leaf) if group in GROUPS and key in known_names(group) else ("", "")
    if key in GROUPS and (key not in LEAVES or isinstance(value, Mapping | GROUPS[key])):
        return key, ""
    if key in LEAVES:
        return LEAVES[key]
    return (key, "") if key in {f.name for f in dataclasses.fields(Recipe)} else ("", "")


def parse_duration(text: Any) -> int:
    """Seconds that a text such as `"1h30m"` stands for; 0 if it is no duration.

    >>> parse_duration("1h30m"), parse_duration("90s"), parse_duration("soon")
    (5400, 90, 0)
    """
    parts = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?", text) if isinstance(text, str) else None
    hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    return 3600 * hours + 60 * minutes + seconds


def format_lr(lr: Any) -> str:
    """Format a learning rate, or a (first, last) pair.

    >>> format_lr(0.01), format_lr([1e-5, 1e-3])
    ('1.0e-02', '1.0e-05 to 1.0e-03')
    """
    return f"{lr[0]:.1e} to {lr[1]:.1e}" if isinstance(lr, tuple | list) else f"{lr:.1e}"


def describe_trained(trains: Any) -> str:
    """What a stage trains, as text.

    >>> describe_trained("head"), describe_trained(5), describe_trained(0.55)
    ('the head, body frozen', 'the last 5 layer groups', 'the last 55% of the layer groups')
    """
    if isinstance(trains, str):
        return {"head": "the head, body frozen", "all": "all layers"}[trains]
    return (
        f"the last {trains:.0%} of the layer groups" if isinstance(trains, float) else f"the last {trains} layer groups"
    )


def describe_schedule(stage: Mapping[str, Any]) -> str:
    """Optimizer and schedule of a stage as text, where they differ from the defaults.

    >>> describe_schedule({"optimizer": "sgd", "schedule": "plateau"}), describe_schedule({"optimizer": "adam"})
    ('optimizer sgd, schedule plateau', '')
    """
    defaults = {f.name: f.default for f in dataclasses.fields(Stage)}
    values = {key: stage.get(key, defaults[key]) for key in ("optimizer", "schedule")}
    return ", ".join(f"{key} {value}" for key, value in values.items() if value != defaults[key])
