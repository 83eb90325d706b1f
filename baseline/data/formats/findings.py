"""Findings about files and pixels: missing packages, flaws, color profiles, ranges of values, sizes and modes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from baseline.data.formats.samples import shared_range
from baseline.errors import format_count

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["file_findings", "image_findings", "resolve_values"]


SMALL_SIDE = 32
"""Pixels of the shorter side below which an image is reported as small."""


LONG_ASPECT_RATIO = 3.0
"""Ratio of the longer to the shorter side above which an image is reported as long."""


DIM = 1 / 8
"""Fraction of the range below which the brightest values of an image are reported as dim."""


FLAWS = {
    "cut off": ("a part of the image is gray or smeared", "replace or remove"),
    "blank": ("of one color: nothing to recognize", "remove, unless a class is blank"),
}
"""Effect and remedy of each flaw."""


def resolve_values(images: pd.DataFrame) -> tuple[float, ...]:
    """Return the values of black and white for images of more than 8 bits that do not declare them; empty if all do.

    If both integers and floats occur, no range fits both: those that are fewer get a reason why they cannot be read.

    Args:
        images: an image table with the columns of the scan; its column `reason` is changed.
    """
    kinds = images["value_kind"][(images["value_kind"] != "") & (images["reason"] == "")]
    if kinds.empty:
        return ()
    kind = kinds.value_counts().index[0]
    others = kinds.index[kinds != kind]
    images.loc[others, "reason"] = f"values are not {kind}s as in the others; give value_range"
    measured = images.loc[kinds.index[kinds == kind]]
    return shared_range(measured["value_low"].to_numpy(), measured["value_high"].to_numpy(), kind)


def file_findings(images: pd.DataFrame, value_range: Sequence[float]) -> Iterator[tuple[str, int, str, str, str]]:
    """Yield the findings, as `collect_findings` does."""
    for reason, same in images[images["reason"].str.contains("pip install")].groupby("reason"):
        needed, _, command = str(reason).partition(": ")
        message = f"{format_count(len(same), 'image')}: {needed}"
        yield "missing package", len(same), message, "left out", command
    readable = images[images["reason"] == ""]
    for flaw, (effect, answer) in FLAWS.items():
        if len(flawed := readable[readable["flaw"] == flaw]):
            names = ", ".join(Path(path).name for path in flawed["path"].head(3))
            yield flaw, len(flawed), f"{format_count(len(flawed), f'{flaw} image')}: {names}", effect, answer
    profiles = readable["color_profile"][readable["color_profile"] != ""].value_counts()
    if len(profiles):
        message = ", ".join(f"{name} {count:,}" for name, count in profiles.head(5).items())
        effect = "converted to sRGB; other tools may show other colors"
        yield "color profiles", int(profiles.sum()), message, effect, "none needed"
    measured = readable[readable["value_kind"] != ""]
    if len(measured) and value_range:
        low, high = value_range
        dim = measured["value_high"] < low + DIM * (high - low)
        clipped = (measured["value_high"] > high) | (measured["value_low"] < low)
        message = f"{format_count(len(measured), 'image')} of more than 8 bits; black is {low:g}, white is {high:g}"
        message += f"; {int(dim.sum()):,} use less than an eighth of it" if dim.any() else ""
        message += f"; {int(clipped.sum()):,} have values outside" if clipped.any() else ""
        effect = "the same range for all, as their files do not declare one"
        yield "value range", len(measured), message, effect, "--value-range BLACK,WHITE"


def image_findings(readable: pd.DataFrame) -> Iterator[tuple[str, int, str, str, str]]:
    """Yield the findings about size, shape, color mode, rotation and animation."""
    sides = readable[["width", "height"]]
    small = sides.min(axis=1) < SMALL_SIDE
    if small.any():
        count, smallest = int(small.sum()), int(sides.min(axis=1).min())
        message = f"{format_count(count, 'image')} smaller than {SMALL_SIDE} px, down to {smallest} px"
        yield "small images", count, message, "few details are visible", "a smaller --image-size saves time"
    long = sides.max(axis=1) > LONG_ASPECT_RATIO * sides.min(axis=1)
    if long.any():
        count = int(long.sum())
        message = f"{format_count(count, 'image')} with sides in a ratio above {LONG_ASPECT_RATIO:g} to 1"
        yield "long images", count, message, "distorted when squeezed into a square", "--resize pad"
    modes = readable["mode"].value_counts()
    if len(modes) > 1:
        message = ", ".join(f"{mode} {count:,}" for mode, count in modes.items())
        effect = "a class with a mode of its own can be recognized by it; all are converted to RGB"
        yield "modes", int(modes.iloc[1:].sum()), message, effect, "none needed"
    turned, animated = readable["turned"], readable["frames"] > 1
    if turned.any():
        count = int(turned.sum())
        message = f"{format_count(count, 'image')} ({turned.mean():.1%}) rotated by EXIF orientation"
        yield "EXIF-rotated", count, message, "read upright here; other tools may show them rotated", "none needed"
    if animated.any():
        count = int(animated.sum())
        message = f"{format_count(count, 'animation')} ({animated.mean():.1%} of images)"
        yield "animations", count, message, "only the first frame is used", "none needed"
