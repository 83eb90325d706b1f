"""Transforms, a loss, metrics and callbacks that a user hands to a run, in fastai's names and meanings."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import walk_tb
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastcore.foundation import L
from fasttransform import Pipeline, Transform

from baseline.errors import BaselineError, RecipeError, TrainingError, first_line
from baseline.recipe.schema import LEAVES

if TYPE_CHECKING:
    pass

__all__ = ["OwnParts", "keep_repeated", "named_errors", "part_name", "runs_at_prediction", "without_setup"]


ACCEPTED = {
    "item_tfms": "a transform or a function of an image",
    "batch_tfms": "a transform or a function of a batch",
    "loss_func": "a function or an instance of a loss, not its name or class,",
    "metrics": "a function or a fastai Metric",
    "cbs": "a fastai Callback",
}
"""What each argument takes."""


EXPECTED = {
    "transform": "return an image or a batch of the kind that it gets (a plain function gets the targets, too)",
    "loss_func": "return one number for outputs, N x classes, and targets",
    "metric": "return one number for outputs and targets",
    "callback": "run without an error",
}
"""What each kind of part must do."""


SETTLED_BY_LOADERS = frozenset({"data", "split", "augment", "image_size", "resize", "batch_size", "workers"})

SETTLED_BY = {
    "DataLoaders": SETTLED_BY_LOADERS,
    "Learner": SETTLED_BY_LOADERS | {"model", "loss", "label_smoothing", "class_balance"},
}
"""Groups and fields of a recipe that DataLoaders or a Learner of the caller's settle."""


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
                object.__setattr__(self, name, [_instance(name, part) for part in self._flat(value)])
        for name in vars(self):
            values = [self.loss_func] if name == "loss_func" else getattr(self, name)
            for value in values or ():
                if value is not None and not _is_accepted(name, value):
                    raise RecipeError(f"{name}: {value!r:.60} was given; {ACCEPTED[name]} was needed.")

    @staticmethod
    def _flat(value: Any) -> Iterator[Any]:
        for part in L(value):
            yield from part.fs if isinstance(part, Pipeline) else [part]

    def names(self) -> dict[str, list[str]]:
        """Return the names of the parts by argument, for the manifest; arguments that were not given are left out."""
        return {key: [part_name(part) for part in L(value)] for key, value in vars(self).items() if value is not None}

    def copies(self) -> dict[str, Any]:
        """Return deep copies of the parts by argument, without arguments that were not given.

        Raises:
            RecipeError: if one cannot be copied.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        try:
            return copy.deepcopy(given)
        except Exception as error:
            raise RecipeError(f"{' or '.join(given)} cannot be copied for each run: {first_line(error)}.") from None

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
        names += [name for name in changes if not SETTLED_BY[kind].isdisjoint((name, *LEAVES.get(name, ())))]
        if names:
            raise RecipeError(f"{' and '.join(names)} cannot be given together with your {kind}. Set them there.")


def _instance(name: str, part: Any) -> Any:
    """Return an instance of a transform that was given as a class, as fastai does; anything else as it is.

    Raises:
        RecipeError: if the class has arguments that are missing.
    """
    if not isinstance(part, type) or not issubclass(part, Transform):
        return part
    try:
        return part()
    except TypeError as error:
        raise RecipeError(f"{name}: {part.__name__} was given without its arguments: {first_line(error)}.") from None


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


@contextmanager
def without_setup(transforms: Any) -> Iterator[Any]:
    """Yield copies of transforms that learn nothing when they are set up, and have the originals' state afterwards."""
    copies = copy.deepcopy(transforms)
    for transform in filter(is_transform, L(copies)):
        transform.setup = lambda *_: None
    yield copies
    for transform, original in zip(L(copies), L(transforms), strict=True):
        if is_transform(transform):
            vars(transform).clear()
            vars(transform).update(vars(original))


def is_transform(part: Any) -> bool:
    """Whether a part is one of fasttransform's, and no plain function."""
    return isinstance(part, Transform)


def runs_at_prediction(transform: Any) -> bool:
    """Whether a transform also runs on valid images, as fastai decides by its `split_idx`."""
    return getattr(transform, "split_idx", None) != 0


def part_name(part: Any) -> str:
    """Return the name of a function, a transform, a metric or a callback.

    >>> part_name(len), part_name(KeyError())
    ('len', 'KeyError')
    """
    name = getattr(part, "__name__", None)
    return name if isinstance(name, str) else type(part).__name__


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
        if isinstance(error, BaselineError) and str(error).startswith("Exception occured in `"):
            error.args = (str(error).split("\n\t", 1)[-1],)  # without the line that fastai puts before it
        kind, name = find_part(parts, error.__traceback__)
        if isinstance(error, IndexError) and isinstance(error.__context__, Exception):
            error = error.__context__  # fastai's Callback fails at an error without a message
        if not kind or isinstance(error, BaselineError | MemoryError) or "out of memory" in str(error):
            raise
        reason = ": ".join(dict.fromkeys([type(error).__name__, first_line(error)]))  # once where it has no message
        raise TrainingError(
            f"{where}: the {kind} {name} failed: {reason}. It must {EXPECTED[kind]}. Fix it, or leave it out."
        ) from error


def find_part(parts: Sequence[tuple[str, Any]], traceback: TracebackType | None) -> tuple[str, str]:
    """Return kind and name of the innermost of the parts that a traceback runs through, or empty texts."""
    result = ("", "")
    for frame, _ in walk_tb(traceback):
        for kind, part in parts:
            if frame.f_locals.get("self") is part or getattr(part, "__code__", None) is frame.f_code:
                result = (kind, str(part.name) if kind == "metric" else part_name(part))
    return result
