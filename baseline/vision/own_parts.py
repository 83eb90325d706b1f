"""Transforms, a loss, metrics and callbacks that a user hands to a run, in fastai's names and meanings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastcore.foundation import L
from fasttransform import Pipeline

from baseline.errors import BaselineError, RecipeError, TrainingError, first_line

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ItemTransforms", "OwnParts", "named_errors", "part_name"]


EXPECTED = {
    "transform": "an image or a batch of the same kind as it was given",
    "loss_func": "one number from outputs, N x classes, and targets",
    "metric": "one number from outputs and targets",
    "callback": "no error",
}
"""What each kind of part has to return."""


@dataclass(frozen=True)
class OwnParts:
    """What the caller of `make_baseline` adds to a run; None stands for the recipe's own."""

    item_tfms: Any = None
    batch_tfms: Any = None
    loss_func: Any = None
    metrics: Any = None
    cbs: Any = None

    def names(self) -> dict[str, list[str]]:
        """Return the names of the parts by argument, for the manifest; arguments that were not given are left out."""
        return {key: [part_name(part) for part in L(value)] for key, value in vars(self).items() if value is not None}

    def prediction_transforms(self) -> list[str]:
        """Return the names of the transforms that also run on images to predict."""
        transforms = [*L(self.item_tfms), *L(self.batch_tfms)]
        return [part_name(transform) for transform in transforms if runs_at_prediction(transform)]

    def refuse(self, what: str) -> None:
        """Raise a `RecipeError` if any part was given beside something that already has its own."""
        if names := self.names():
            raise RecipeError(f"{' and '.join(names)} cannot be given together with {what}. Set them there.")


def part_name(part: Any) -> str:
    """Return the name of a function, a transform, a metric or a callback.

    >>> part_name(len), part_name(OwnParts())
    ('len', 'OwnParts')
    """
    name = getattr(part, "__name__", None)
    return name if isinstance(name, str) else type(part).__name__


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


@contextmanager
def named_errors(parts: Sequence[tuple[str, Any]], where: str) -> Iterator[None]:
    """Turn an error that was raised in one of the parts into one line that names it.

    Args:
        parts: kind (a key of `EXPECTED`) and object.

    Raises:
        TrainingError: naming the part, the place and what was expected; the original error is its cause.
    """
    try:
        yield
    except Exception as error:
        kind, name = find_part(parts, error.__traceback__)
        if not kind or isinstance(error, BaselineError | MemoryError) or "out of memory" in str(error):
            raise
        raise TrainingError(
            f"{where}: the {kind} {name} failed: {type(error).__name__}: {first_line(error)}. "
            f"Expected was {EXPECTED[kind]}. Correct it, or leave it out."
        ) from error


def find_part(parts: Sequence[tuple[str, Any]], traceback: TracebackType | None) -> tuple[str, str]:
    """Return kind and name of the innermost of the parts that a traceback runs through, or empty texts."""
    result = ("", "")
    while traceback is not None:
        frame = traceback.tb_frame
        owner = frame.f_locals.get("self")
        for kind, part in parts:
            if owner is part or getattr(part, "__code__", None) is frame.f_code:
                result = (kind, str(part.name) if kind == "metric" else part_name(part))
        traceback = traceback.tb_next
    return result
