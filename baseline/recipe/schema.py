"""Recipes as data: every decision of a run, in frozen dataclasses that are checked when they are made.

A recipe holds decisions. What a run measures (learning rates, seconds, hashes) goes into its manifest. The groups say
what a decision is about: `data`, `split`, `model`, `augment`, `training`, `stages` and `evaluation` may change the
result; `options` (`RunOptions`) cannot.

Each field carries its own metadata: the help text, the panel of the command line that shows it, and what a valid value
is. The command line, `--set`, the messages about wrong values and the comparison of recipes are made from it. A new
field is one entry in this file and one in `RecipeChanges`, for type checkers; a test compares the two. Every
field outside `augment` and `stages` also has a flat name (`image_size` for `model.image_size`), which TOML files,
`make_baseline(images, image_size=128)` and the command line use.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast, get_args

from annotated_types import Interval, Predicate

from baseline.errors import MAX_LISTED, RecipeError, unknown_name
from baseline.metrics.registry import is_metric, known_metrics
from baseline.recipe.data_settings import DataSettings
from baseline.recipe.fields import (
    RUN_PANEL,
    SPLIT_METHODS,
    SPLIT_PANEL,
    FileName,
    Flag,
    Fraction,
    LearningRate,
    PathText,
    Pixels,
    PixelsOrNone,
    Text,
    Views,
    augmentation,
    is_budget,
    is_nonempty,
    is_split_method,
    setting,
    split_logger_names,
)
from baseline.recipe.validation import Before, Needed, as_tuple, check

__all__ = ["Augment", "DataSettings", "EvaluationSettings", "ModelSettings", "Recipe", "RunOptions", "SplitSettings",
           "Stage", "TrainingSettings"]  # fmt: skip

PRESETS = ("instant", "quick", "standard", "best")

LoggerName = Literal["csv", "mlflow", "tensorboard", "wandb"]

LOGGERS: tuple[str, ...] = get_args(LoggerName)

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

MAX_STAGES = 100

SCHEDULES = ("one_cycle", "flat_cos", "plateau", "constant")


@dataclass(frozen=True)
class SplitSettings:
    """How images are divided into train, valid and test; see `baseline.data.split`."""

    method: Annotated[str, Predicate(is_split_method), Needed(f"one of {', '.join(SPLIT_METHODS)}")] = setting(
        "auto", f"How to split: {', '.join(SPLIT_METHODS)}.", SPLIT_PANEL, flat="split", common=True
    )
    file: PathText = setting("", "split.csv of another run, to use the same splits.", SPLIT_PANEL, flat="split_file")
    fold: Annotated[int, Interval(ge=0, le=999), Needed("a whole number from 0, below the number of folds")] = setting(
        0,
        "Train only this fold (0-based, or a number from the fold column); all folds by default.",
        SPLIT_PANEL,
    )
    """The fold used for validation. Folds that a table defines keep their numbers."""
    valid_fraction: Fraction = setting(0.1, "Fraction of the training images used for validation.", SPLIT_PANEL)
    """Used where the images come without a valid split."""
    test_fraction: Fraction = setting(0.2, "Fraction of all images used for testing.", SPLIT_PANEL)
    """Used where the images come without any split."""
    leaks: Literal["keep", "drop"] = setting(
        "keep", "Keep or drop training images with a duplicate in the test split.", SPLIT_PANEL
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
        "linear", "Classification head: linear (pooling, BatchNorm, one layer) or fastai (two layers with dropout)."
    )
    """Fine-tuned briefly with frozen BatchNorm statistics, fastai's head diverges where the linear one learns."""
    image_size: Pixels = setting(160, "Input image size in pixels.", common=True)
    small_set_size: PixelsOrNone = setting(0, "Input image size if there are few training images; 0: image_size.")
    """Few: `auto.SMALL_SET_IMAGES`. A preset with a smaller `image_size` sets it; changing `image_size` unsets it."""
    resize: Literal["squish", "crop", "pad"] = setting("squish", "Resize method: squish, crop (center) or pad (black).")
    precision: Literal["auto", "float32", "float16", "bfloat16"] = setting(
        "auto", "Precision of training and evaluation (mixed precision on a GPU)."
    )
    frozen_precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "Precision of frozen layers.")
    """On a CPU also that of pointwise convolutions in training steps, whose weights stay in float32."""


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images. Units follow fastai's `aug_transforms`."""

    flip: Flag = augmentation(True, cacheable=(True, False))
    """Mirror left and right, half of the time."""
    flip_vertical: Flag = augmentation(False, cacheable=(False,))
    """Mirror top and bottom, half of the time."""
    dihedral: Flag = augmentation(False, cacheable=(False,))
    """Flip and rotate by multiples of 90 degrees, for rotation-invariant images (fastai's `Dihedral`)."""
    rotate: Annotated[float, Interval(ge=0, le=180)] = augmentation(10.0, cacheable=(0,))
    """Maximum rotation either way, in degrees."""
    zoom: Annotated[float, Interval(ge=1, le=10)] = augmentation(1.1, cacheable=(1,))
    """Maximum zoom factor."""
    lighting: Annotated[float, Interval(ge=0, le=1)] = augmentation(0.2, cacheable=(0,))
    """Maximum change of brightness and contrast, as a fraction."""
    warp: Annotated[float, Interval(ge=0, le=1)] = augmentation(0.2, cacheable=(0,))
    """Maximum change of perspective, as a fraction of the side."""
    crop: Annotated[float, Interval(ge=0.1, le=1)] = augmentation(1.0, cacheable=(1,))
    """Minimum fraction of an image's area that is seen: below 1, images are decoded larger (see
    `Recipe.decoded_size`) and a random square of them is taken, one per batch (fastai's `RandomResizedCropGPU`); valid
    images are seen whole."""
    erase: Annotated[float, Interval(ge=0, le=1)] = augmentation(0.0, cacheable=(0,))
    """Probability that a rectangle of an image is replaced by noise (fastai's `RandomErasing`)."""
    rand_augment: Annotated[int, Interval(ge=0, le=10)] = augmentation(0, cacheable=(0,))
    """Magnitude of timm's RandAugment, two operations per image; 0 for none, 9 is common."""
    probability: Annotated[float, Interval(ge=0, le=1)] = augmentation(0.75, cacheable=())
    """Probability of rotation, zoom and warp, and of lighting."""

    def changing(self) -> tuple[str, ...]:
        """Return the names of the fields that change images in every epoch, so that features cannot be cached.

        Flips are not among them: features of both sides can be cached.

        >>> Augment(rotate=0, zoom=1, lighting=0).changing()
        ('warp',)
        """
        values = {f.name: f.metadata["cacheable"] for f in dataclasses.fields(self)}
        return tuple(name for name, cacheable in values.items() if cacheable and getattr(self, name) not in cacheable)


NO_AUGMENT = Augment(flip=False, rotate=0, zoom=1, lighting=0, warp=0)


@dataclass(frozen=True)
class Stage:
    """One call of fastai's `fit_one_cycle`, or of another schedule."""

    trains: Annotated[
        Literal["probe", "head", "all"]
        | Annotated[int, Interval(ge=1, le=1000)]
        | Annotated[float, Interval(gt=0, lt=1)],
        Needed("'probe', 'head', 'all', a number of layer groups, or a fraction of them above 0 and below 1"),
    ]
    """`"probe"` (the head by logistic regression on features of the frozen body, see `baseline.training.probe`),
    `"head"` (frozen body), `"all"`, or the last layer groups, the head among them: their number, or their fraction of
    all groups, which fits any architecture."""
    epochs: Annotated[int, Interval(ge=1, le=100_000), Needed("a whole number from 1")] = 1
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
    augment: Annotated[bool, Needed("true or false")] = True
    """Whether the stage trains on augmented images. `False` leaves flips only, so that a stage with frozen layers can
    run on cached features where the recipe's other augmentation would change the images in every epoch."""
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
    """`"one_cycle"` is fastai's one-cycle schedule; `"flat_cos"` is flat for three quarters and then falls along a
    cosine; `"plateau"` divides by ten after each epoch in which the validation loss did not fall; `"constant"` does
    not change."""

    @property
    def is_head(self) -> bool:
        """Whether the stage trains the head alone."""
        return self.trains in ("probe", "head")

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
            return of if self.trains == "all" else 1
        return min(of, max(2, round(self.trains * of))) if isinstance(self.trains, float) else self.trains


HEAD_STAGE = Stage("head", 2, steps=70)
"""The stage that trains a head by gradient descent where logistic regression cannot fit it."""


@dataclass(frozen=True)
class TrainingSettings:
    """How the stages are trained."""

    batch_size: Annotated[
        Literal["auto"] | Annotated[int, Interval(ge=2, le=65536)], Needed("'auto' or a whole number from 2")
    ] = setting("auto", "Images per step, or auto.", common=True)
    class_balance: Literal["none", "weights", "sampler"] = setting(
        "none", "Class imbalance: weights (weighted loss), sampler (balanced sampling) or none."
    )
    freeze: Literal["features", "fastai"] = setting(
        "features", "features trains on cached outputs of the frozen layers, fastai runs the whole network every epoch."
    )
    """In fastai's own frozen stage BatchNorm keeps updating and every epoch runs the whole body."""
    loss: Literal["cross_entropy", "focal"] = setting(
        "cross_entropy", "Loss for one label per image: cross_entropy or focal."
    )
    """With several labels per image the loss is binary cross-entropy."""
    label_smoothing: Annotated[float, Interval(ge=0, le=0.5), Needed("a fraction from 0 to 0.5")] = setting(
        0.0, "Label smoothing factor."
    )
    mixup: Annotated[float, Interval(ge=0, le=10), Needed("a number from 0 to 10, 0 for none")] = setting(
        0.0, "Alpha of mixup; 0 disables it, 0.4 is common."
    )
    cutmix: Annotated[float, Interval(ge=0, le=10), Needed("a number from 0 to 10, 0 for none")] = setting(
        0.0, "Alpha of CutMix; 0 disables it, 1 is common."
    )
    weight_decay: Annotated[
        Literal["auto"] | Annotated[float, Interval(ge=0, le=10)], Needed("'auto' or a number from 0 to 10")
    ] = setting("auto", "Weight decay; auto is the optimizer's default.")
    ema: Annotated[float, Interval(ge=0, lt=1), Needed("a decay from 0, for none, to below 1")] = setting(
        0.0, "Decay of the exponential moving average (EMA) of the weights; 0 disables it, 0.99 is common."
    )
    patience: Annotated[int, Interval(ge=0, le=100_000), Needed("epochs, a whole number, 0 for none")] = setting(
        0, "Early stopping: end a stage after this many epochs without improvement; 0 disables it."
    )
    budget: Annotated[str, Predicate(is_budget), Needed("a time such as 90s, 10m or 1h30m")] = setting(
        "", "Time limit of the run, such as 10m; image size and epochs are chosen to fit it.", common=True
    )


@dataclass(frozen=True)
class EvaluationSettings:
    """How the result is computed."""

    tta: Views = setting(("flip",), "Views averaged by test-time augmentation (TTA): flip, five_crops, or none.")
    tta_choice: Literal["auto", "always"] = setting("auto", "Use TTA unless it is worse on valid (auto), or always.")
    """`"auto"` compares the metric, and if that is equal, the loss (`baseline.evaluation.tta_choice`)."""
    metric: Annotated[str, Predicate(is_metric), Needed(f"auto or one of {', '.join(known_metrics())}")] = setting(
        "auto",
        f"Metric that decides which epoch to keep and is reported: {', '.join(known_metrics())} (such as top_5).",
    )
    """`"auto"` is accuracy, and with several labels per image micro F1. The lower loss breaks ties."""
    threshold: Annotated[float, Interval(ge=0.001, le=0.999), Needed("a probability above 0 and below 1")] = setting(
        0.5, "Decision threshold for multi-label predictions."
    )
    thresholds: Literal["auto", "one"] = setting(
        "auto",
        "Decision thresholds: one per class, chosen on the validation split (auto), or `threshold` (one).",
    )
    """`"auto"` chooses by the metric, for classes with enough validation images, unless `threshold` is changed.

    With one label per image and a metric such as quadratic_kappa, `"auto"` fits cut points where they gain on the
    validation split; `"one"` predicts the most probable class (`baseline.evaluation.cut_points`)."""


@dataclass(frozen=True)
class RunOptions:
    """What cannot change the result: where images are read, what is cached, where metrics go."""

    workers: Annotated[int, Interval(ge=0, le=256), Needed("a whole number from 0")] = setting(
        0, "Number of data loading processes.", RUN_PANEL
    )
    """Used where images are not kept decoded in memory."""
    cache_gb: Annotated[float, Interval(ge=0, le=1e6), Needed("gigabytes, 0 for none")] = setting(
        20.0, "Maximum size of the cache of decoded images and features, in GB; 0 disables it.", RUN_PANEL
    )
    """In 10^9 bytes. The least recently used entries are removed for new ones."""
    loggers: Annotated[
        tuple[LoggerName, ...],
        Before(split_logger_names),
        Needed(f"a list from {', '.join(LOGGERS)}, or none"),
    ] = setting((), f"Loggers of the training metrics: {', '.join(LOGGERS)}, separated by commas.", RUN_PANEL)
    """They come on top of the run folder's own files."""


@dataclass(frozen=True)
class Recipe:
    """Every decision of a run. Invalid values are reported together, when it is made; combinations are checked
    once all values are valid.

    >>> recipe = Recipe(model={"image_size": 128}, stages=(Stage("head", 3), Stage("all", 3, (1e-6, 1e-4))))
    >>> recipe.changed(arch="resnet50").model.image_size
    128

    Raises:
        RecipeError: naming each value that cannot be used, and what was needed.
    """

    name: FileName = "mine"
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
    preset: Annotated[Literal["instant", "quick", "standard", "best"], Needed(f"one of {', '.join(PRESETS)}")] = (
        "standard"
    )
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What `quick` and `best` change; `standard` is the recipe itself, and `instant` is `quick` with a probe as
    its only stage. Empty once a preset has been chosen."""
    expected: Mapping[str, Any] = field(default_factory=dict)
    """Measured results, for the table of `baseline recipes`."""

    def __post_init__(self) -> None:
        faults: list[str] = []
        for group in GROUPS:
            self._set(group, check(GROUPS[group], getattr(self, group), group, faults, flat=FLAT_NAMES.get(group, {})))
        stages = as_tuple(self.stages)
        if isinstance(stages, tuple) and 0 < len(stages) <= MAX_STAGES:
            stages = tuple(check(Stage, stage, f"stage {number}", faults) for number, stage in enumerate(stages, 1))
        else:
            faults.append(f"stages is {self.stages!r:.200}, needed: 1 to {MAX_STAGES} stages")
        self._set("stages", stages)
        check(Recipe, self, "", faults, only=("name", "title", "seed", "preset"))
        faults += self._contradictions() if not faults else []
        if faults:
            raise RecipeError(f"Recipe '{str(self.name)[:200]}': " + "; ".join(faults) + ".")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _contradictions(self) -> list[str]:
        """Values that are valid alone and not together."""
        faults = []
        if not isinstance(self.presets, Mapping) or not set(self.presets) <= {"quick", "best"}:
            faults.append(f"presets is {self.presets!r:.200}, needed: tables named quick and best")
        if not isinstance(self.expected, Mapping):
            faults.append(f"expected is {self.expected!r:.200}, needed: a table")
        if self.data.audit == "none" and self.split.leaks == "drop":
            faults.append("leaks is 'drop', which needs the audit that is left out")
        if self.data.bins == 1:
            faults.append("bins is 1, needed: a whole number from 2, 0 for none")
        if self.data.task == "multilabel" and self.training.class_balance == "sampler":
            faults.append("class_balance is 'sampler', which needs one label per image, and task is 'multilabel'")
        if self.data.task == "multilabel" and (self.training.loss != "cross_entropy" or self.training.label_smoothing):
            faults.append("loss and label_smoothing need one label per image, and task is 'multilabel'")
        if self.training.loss == "focal" and self.training.label_smoothing:
            faults.append("label_smoothing needs loss 'cross_entropy', and loss is 'focal'")
        if self.training.mixup and self.training.cutmix:
            faults.append("mixup and cutmix are both above 0, and a batch takes one of them")
        folds = self.split.method.partition(":")[2] if "kfold" in self.split.method else ""
        if folds.isdecimal() and self.split.fold >= int(folds):
            faults.append(f"fold is {self.split.fold}, needed: below the {folds} folds of split")
        size = self.model.image_size
        for number, stage in enumerate(self.stages, 1):
            if stage.trains == "probe" and (stage.epochs, stage.steps, stage.lr) != (1, 0, "find"):
                faults.append(f"stage {number}: trains is 'probe', which takes no steps; needed: epochs 1 and no lr")
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
                unknown.append(key)
            elif leaf:
                unset = {} if leaf != "image_size" or "small_set_size" in changes else {"small_set_size": 0}
                fields[group] = {**as_mapping(fields.get(group, getattr(self, group))), leaf: value, **unset}
            elif group in GROUPS and isinstance(value, Mapping):
                fields[group] = {**as_mapping(fields.get(group, getattr(self, group))), **value}
            else:
                fields[group] = value
        if unknown:
            known = {key: known_names(key.partition(".")[0]) for key in unknown[:MAX_LISTED]}
            faults = [unknown_name("key", key[:99], names, limit=99) for key, names in known.items()]
            raise RecipeError(f"In {where}: " + " ".join(faults))
        return dataclasses.replace(self, **fields)

    def with_preset(self, preset: str) -> Recipe:
        """Return the recipe as `preset` has it: `"quick"`, `"standard"` (the recipe itself) or `"best"`.

        Raises:
            RecipeError: if there is no such preset, or the recipe does not have it.
        """
        if preset not in PRESETS:
            raise RecipeError(unknown_name("preset", preset, PRESETS))
        changes = dict(self.presets.get("quick" if preset == "instant" else preset, {}))
        if isinstance(size := changes.get("image_size"), int) and size < (usual := min(self.model.image_size, 128)):
            changes.setdefault("small_set_size", usual)
        if preset == "instant":
            changes |= {"stages": (Stage("probe", 1),), "head": "linear", "freeze": "features"}
        if preset not in (known := [name for name in PRESETS if name in ("instant", self.preset, *self.presets)]):
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
    return (key, "") if key in Recipe.__dataclass_fields__ else ("", "")
