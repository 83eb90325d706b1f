"""Transforms, a loss, metrics and callbacks that a user hands to a run, in fastai's names and meanings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastcore.foundation import L
from fasttransform import Pipeline

from baseline.errors import RecipeError, part_name

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ItemTransforms", "OwnParts", "keep_repeated", "part_name"]


ACCEPTED = {
    "item_tfms": "a transform or a function of an image",
    "batch_tfms": "a transform or a function of a batch",
    "loss_func": "a function or an instance of a loss, not its name or class,",
    "metrics": "a function or a fastai Metric",
    "cbs": "a fastai Callback",
}
"""What each argument takes."""


SETTLED_BY_LOADERS = {
    "image_size", "batch_size", "augment", "resize", "split", "split_file", "fold", "valid_fraction", "test_fraction",
    "leaks", "audit", "workers", "image_col", "label_col", "group_col", "split_col", "image_dir", "label_from",
    "positive", "images_per_class", "fixes",
}  # fmt: skip

SETTLED_BY_LEARNER = SETTLED_BY_LOADERS | {
    "arch", "weights", "pretrained", "head", "precision", "frozen_precision", "loss", "label_smoothing",
    "class_balance",
}  # fmt: skip

SETTLED_BY = {"DataLoaders": SETTLED_BY_LOADERS, "Learner": SETTLED_BY_LEARNER}
"""Fields of a recipe that DataLoaders or a Learner of the caller's settle."""


@dataclass(frozen=True)
class OwnParts:
    """What the caller of `make_baseline` adds to a run; None stands for the recipe's own."""

    item_tfms: Any = None
    batch_tfms: Any = None
    loss_func: Any = None
    metrics: Any = None
    cbs: Any = None

    def __post_init__(self) -> None:
        """Make lists of what was given, so that an iterator is not used up, and check what they hold.

        Raises:
            RecipeError: if something is not what its argument takes.
        """
        for name in ("item_tfms", "batch_tfms", "metrics", "cbs"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, list(L(value)))
        for name in vars(self):
            values = [self.loss_func] if name == "loss_func" else getattr(self, name)
            for value in values or ():
                if value is not None and not _is_accepted(name, value):
                    raise RecipeError(f"{name}: {value!r:.60} was given; {ACCEPTED[name]} was needed.")

    def names(self) -> dict[str, list[str]]:
        """Return the names of the parts by argument, for the manifest; arguments that were not given are left out."""
        return {key: [part_name(part) for part in L(value)] for key, value in vars(self).items() if value is not None}

    def prediction_transforms(self) -> list[str]:
        """Return the names of the transforms that also run on images to predict."""
        transforms = [*L(self.item_tfms), *L(self.batch_tfms)]
        return [part_name(transform) for transform in transforms if runs_at_prediction(transform)]

    def refuse_beside(self, kind: str, changes: Iterable[str]) -> None:
        """Raise a `RecipeError` if a part or a change of the recipe was given that the caller's own object settles.

        Args:
            kind: `"DataLoaders"` or `"Learner"`.
            changes: names of the fields of the recipe that were given.
        """
        names = [name for name in self.names() if kind == "Learner" or name.endswith("_tfms")]
        names += [name for name in changes if name in SETTLED_BY[kind]]
        if names:
            raise RecipeError(f"{' and '.join(names)} cannot be given together with your {kind}. Set them there.")


def _is_accepted(name: str, part: Any) -> bool:
    if name == "cbs":
        from fastai.callback.core import Callback

        return isinstance(part, Callback) or (isinstance(part, type) and issubclass(part, Callback))
    if name == "metrics":
        return callable(part) or hasattr(part, "accumulate")
    return callable(part) and not (name == "loss_func" and isinstance(part, type))


def keep_repeated(merged: Sequence[Any], own: Any) -> L:
    """Return a DataBlock's transforms with all of the user's: a DataBlock keeps the last one of each class only."""
    kept, own = L(), L(own)
    for transform in merged:
        is_own = any(transform is other for other in own)
        kept += [t for t in own if type(t) is type(transform)] if is_own else [transform]
    return kept


def runs_at_prediction(transform: Any) -> bool:
    """Whether a transform also runs on valid images, as fastai decides by its `split_idx`."""
    return getattr(transform, "split_idx", None) != 0


class ItemTransforms:
    """Item transforms as fastai runs them on valid images: PIL image in, PIL image out."""

    def __init__(self, transforms: Any) -> None:
        self.pipeline = Pipeline([t for t in L(transforms) if runs_at_prediction(t)], split_idx=1)

    def __call__(self, image: Image.Image) -> Image.Image:
        from fastai.vision.core import PILImage

        return self.pipeline(PILImage(image))
