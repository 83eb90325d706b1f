"""Pure rules that resolve settings that are `"auto"`, each with the reason, which is printed and written down."""

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
    "resolve_image_size",
    "resolve_precision",
    "resolve_preset",
]


SMALL_SET_IMAGES = 5000
"""Maximum number of training images for which a preset does not reduce the image size below 128."""

EMBEDDED_ARCH = "tf_efficientnet_lite0"
"""The backbone whose ImageNet weights are installed with the package, so that no download is needed."""

GPU_ARCHS = ("convnext_nano.in12k_ft_in1k", "resnet50")
"""Backbones for a GPU, the better first by published results of transfer learning; not measured by this project."""


def resolve_preset(device: str) -> tuple[str, str]:
    """Return the preset and the reason: `standard` on a GPU, `quick` on a CPU."""
    if device == "cpu":
        return "quick", "no GPU was found; the preset standard trains longer"
    return "standard", f"a GPU was found ({device})"


def resolve_arch(arch: str, device: str, obtainable: Callable[[str], bool]) -> tuple[str, str]:
    """Return the architecture and the reason: of several separated by `" or "`, the first whose weights are available.

    The last one is used if none is. `"auto"` is, on a GPU, the first of `GPU_ARCHS` whose weights are available, and
    the embedded backbone otherwise.

    >>> resolve_arch("auto", "cpu", lambda name: True)[0]
    'tf_efficientnet_lite0'
    >>> resolve_arch("resnet18 or auto", "cpu", lambda name: False)[1]
    'the weights of resnet18 are not available; no GPU was found; these are installed with the package'
    """
    *first, last = arch.split(" or ")
    for name in first:
        if obtainable(name):
            return name, f"the first of '{arch}' whose weights are available"
    chosen, reason = default_arch(device, obtainable) if last == "auto" else (last, "as given")
    return chosen, "; ".join([*(f"the weights of {name} are not available" for name in first), reason])


def default_arch(device: str, obtainable: Callable[[str], bool]) -> tuple[str, str]:
    if device == "cpu":
        return EMBEDDED_ARCH, "no GPU was found; these are installed with the package"
    for arch in filter(obtainable, GPU_ARCHS):
        return arch, "a GPU was found and the weights are available"
    return EMBEDDED_ARCH, f"no weights of {' or '.join(GPU_ARCHS)} are available; these are installed with the package"


def resolve_batch_size(batch_size: str | int, images: int, device: str) -> tuple[int, str]:
    """Return the number of images per step and the reason.

    `"auto"` is a power of two: about an eighth of the training images, from 16 to 64 (to 128 on a GPU). A
    batch larger than the training set would never be filled, so it is reduced.

    >>> resolve_batch_size("auto", 220, "cpu")[0], resolve_batch_size(64, 40, "cpu")[0]
    (16, 40)
    """
    if isinstance(batch_size, int):
        if batch_size <= images:
            return batch_size, "as given"
        return images, f"{images} training images do not fill a batch of {batch_size}"
    largest = 64 if device == "cpu" else 128
    size = 16
    while size * 2 <= largest and size * 16 <= images:
        size *= 2
    if size >= images:
        return images, f"all {images} training images at once"
    return size, f"about an eighth of {images} training images, 16 to {largest}"


def resolve_image_size(size: int, small_set_size: int, images: float) -> tuple[int, str]:
    """Return the image size in pixels and, if it is `small_set_size`, the reason.

    With few images, larger ones cost little time and gain much (`benchmarks/README.md`).

    >>> resolve_image_size(80, 128, 2250)
    (128, '2,250 training images are few: 80 would save little time')
    """
    if not small_set_size or images > SMALL_SET_IMAGES:
        return size, ""
    return small_set_size, f"{images:,} training images are few: {size} would save little time"


def resolve_epochs(stages: tuple[Stage, ...], images: int, batch_size: int) -> tuple[tuple[Stage, ...], str]:
    """Return the stages, with epochs added where a stage would make fewer than its `steps`, and the reason.

    >>> from baseline.recipe.schema import Stage
    >>> resolve_epochs((Stage("head", 2, steps=70),), 220, 16)[1]
    '220 images are 13 steps per epoch: stage 1 has 6 epochs instead of 2'
    """
    resolved = tuple(dataclasses.replace(stage, epochs=stage.epochs_of(images, batch_size)) for stage in stages)
    changes = [
        f"stage {number} has {new.epochs} epochs instead of {old.epochs}"
        for number, (old, new) in enumerate(zip(stages, resolved, strict=True), 1)
        if new != old
    ]
    reason = f"{images} images are {images // batch_size} steps per epoch: {', '.join(changes)}"
    return resolved, reason if changes else ""


def resolve_precision(precision: str, device: str) -> tuple[str, str]:
    """Return the number format of forward and backward passes, and the reason.

    Raises:
        RecipeError: for a 16-bit format on a CPU, or on a GPU for which fastai has no mixed precision, such as Apple's.
    """
    if device != "cuda":
        if precision in ("float16", "bfloat16"):
            raise RecipeError(f"precision {precision} needs a GPU with CUDA; this run is on {device}. Use auto.")
        return "float32", "the CPU's own format" if device == "cpu" else "mixed precision needs CUDA"
    if precision != "auto":
        return precision, "as given"
    return "float16", "mixed precision halves time and memory on a GPU"


def resolve_frozen_precision(precision: str, device: str, units: Collection[str], is_intel: bool) -> tuple[str, str]:
    """Return the number format of passes through frozen layers, and the reason.

    Args:
        units: instruction sets of the CPU for bfloat16. With AMX, or AMD's AVX-512 BF16, bfloat16 is 1.1 to 3.2 times
            as fast; without any, it is emulated and 15 times slower (`benchmarks/README.md`).
        is_intel: whether the CPU is Intel's, whose AVX-512 BF16 is slower than float32.

    >>> resolve_frozen_precision("auto", "cpu", ["AMX", "AVX-512 BF16"], is_intel=True)
    ('bfloat16', 'the CPU has AMX and AVX-512 BF16, which is faster')
    >>> resolve_frozen_precision("auto", "cpu", ["AVX-512 BF16"], is_intel=True)
    ('float32', 'this Intel CPU has no AMX, without which bfloat16 is slower')

    Raises:
        RecipeError: for bfloat16 on a CPU without instructions for it.
    """
    if device != "cpu":
        return "float32", "on a GPU the format is that of training"
    if precision == "bfloat16" and not units:
        raise RecipeError("bfloat16 needs a CPU with AMX or AVX-512 BF16; this one has neither. Use float32 or auto.")
    if precision != "auto":
        return precision, "as given"
    if not units:
        return "float32", "the CPU has neither AMX nor AVX-512 BF16"
    if is_intel and "AMX" not in units:
        return "float32", "this Intel CPU has no AMX, without which bfloat16 is slower"
    return "bfloat16", f"the CPU has {' and '.join(units)}, which is faster"
