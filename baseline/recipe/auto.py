"""TODO."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from baseline.errors import RecipeError

if TYPE_CHECKING:
    from baseline.recipe.schema import Stage

__all__ = [
    "resolve_arch",
    "resolve_batch_size",
    "resolve_epochs",
    "resolve_frozen_precision",
    "resolve_precision",
    "resolve_preset",
]


EMBEDDED_ARCH = "tf_efficientnet_lite0"
"""The body whose ImageNet weights come with the package, so that it works anywhere without a download."""


def resolve_preset(device: str) -> tuple[str, str]:
    """The preset and why: `standard` on a GPU, `quick` on a CPU."""
    if device == "cpu":
        return "quick", "no GPU here; --preset standard trains longer"
    return "standard", f"a GPU is here ({device})"


def resolve_arch(arch: str, device: str, obtainable: Callable[[str], bool]) -> tuple[str, str]:
    """The architecture and why: of several, with `" or "` between, the first that is obtainable, or the last.

    `"auto"` is resnet50 on a GPU that can get its weights, else the embedded body.

    >>> resolve_arch("auto", "cpu", lambda name: True)[0]
    'tf_efficientnet_lite0'
    >>> resolve_arch("resnet18 or auto", "cpu", lambda name: False)[1]
    'the weights of resnet18 are out of reach; no GPU here; these are installed with the package'
    """
    *first, last = arch.split(" or ")
    for name in first:
        if obtainable(name):
            return name, f"the first of '{arch}' whose weights are within reach"
    found, why = _default_arch(device, obtainable) if last == "auto" else (last, "as given")
    return found, "; ".join([*(f"the weights of {name} are out of reach" for name in first), why])


def _default_arch(device: str, obtainable: Callable[[str], bool]) -> tuple[str, str]:
    if device == "cpu":
        return EMBEDDED_ARCH, "no GPU here; these are installed with the package"
    if obtainable("resnet50"):
        return "resnet50", "a GPU is here and the weights are within reach"
    return EMBEDDED_ARCH, "the weights of resnet50 are out of reach; these are installed with the package"


def resolve_batch_size(batch_size: str | int, images: int, device: str) -> tuple[int, str]:
    """The number of images per step and why.

    `"auto"` is a power of two: about an eighth of the training images, from 16 to 64 (to 128 on a GPU). Fewer
    images than a batch would train on no batch at all, so the batch shrinks.

    >>> resolve_batch_size("auto", 220, "cpu")[0], resolve_batch_size(64, 40, "cpu")[0]
    (16, 40)
    """
    if isinstance(batch_size, int):
        if batch_size <= images:
            return batch_size, "as given"
        return images, f"{images} training images do not fill a batch of {batch_size}"
    top = 64 if device == "cpu" else 128
    size = 16
    while size * 2 <= top and size * 16 <= images:
        size *= 2
    if size >= images:
        return images, f"all {images} training images at once"
    return size, f"about an eighth of {images} training images, 16 to {top}"


def resolve_epochs(stages: tuple[Stage, ...], images: int, batch_size: int) -> tuple[tuple[Stage, ...], str]:
    """The stages with epochs added where images are so few that a stage would make fewer than its `steps`, and why.

    >>> resolve_epochs((Stage("head", 2, steps=70),), 220, 16)[1]
    '220 images are 13 steps an epoch: stage 1 has 6 epochs instead of 2'
    """
    settled = tuple(dataclasses.replace(stage, epochs=stage.epochs_of(images, batch_size)) for stage in stages)
    more = [
        f"stage {number} has {new.epochs} epochs instead of {old.epochs}"
        for number, (old, new) in enumerate(zip(stages, settled, strict=True), 1)
        if new != old
    ]
    words = f"{images} images are {images // batch_size} steps an epoch: {', '.join(more)}"
    return settled, words if more else ""


def resolve_precision(precision: str, device: str) -> tuple[str, str]:
    """The number format of the forward and backward passes and why.

    Raises:
        RecipeError: for a 16-bit format on a CPU.
    """
    if device == "cpu":
        if precision in ("float16", "bfloat16"):
            raise RecipeError(f"precision {precision} needs a GPU; this run is on the CPU. Use float32 or auto.")
        return "float32", "the CPU's own format"
    if precision != "auto":
        return precision, "as given"
    return "float16", "mixed precision halves time and memory on a GPU"


def resolve_frozen_precision(precision: str, device: str, units: Collection[str]) -> tuple[str, str]:
    """The number format of passes through frozen layers and why.

    Args:
        units: what the CPU has for bfloat16. With any, bfloat16 is 1.1 to 3.2 times as fast (nine architectures at 48
            to 224 px, `benchmarks/README.md`); without, it is emulated, 15 times slower (AMD Zen 3).

    >>> resolve_frozen_precision("auto", "cpu", ["AMX"])
    ('bfloat16', 'the CPU has AMX, which is quicker')
    >>> resolve_frozen_precision("auto", "cpu", [])[0]
    'float32'

    Raises:
        RecipeError: for bfloat16 on a CPU that has nothing for it.
    """
    if device != "cpu":
        return "float32", "on a GPU the format is that of training"
    if precision == "bfloat16" and not units:
        raise RecipeError("bfloat16 needs a CPU with AMX or AVX-512 BF16; this one has neither. Use float32 or auto.")
    if precision != "auto":
        return precision, "as given"
    if not units:
        return "float32", "the CPU has neither AMX nor AVX-512 BF16"
    return "bfloat16", f"the CPU has {' and '.join(units)}, which is quicker"
