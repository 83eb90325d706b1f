"""Color profiles: colors are converted to sRGB, which networks were trained on, by littleCMS."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

__all__ = ["profile_name", "to_srgb"]


MAX_DIFFERENCE = 2
"""Difference in levels of 255 up to which a profile is sRGB, and colors are left as they are."""


MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode for the color space of a profile."""


def to_srgb(image: Image.Image) -> Image.Image:
    """Return the image in the colors of sRGB, in RGB or RGBA, if its profile is another one; else the image itself.

    A profile that is damaged, or of a color space other than the image's, is ignored.
    """
    content = image.info.get("icc_profile")
    if not content:
        return image
    mode, transform = _transform(content)
    is_color = image.mode not in ("1", "L", "LA", "CMYK")
    if transform is None or (mode == "CMYK") != (image.mode == "CMYK"):
        return image
    if mode == "L":
        if is_color and not _is_gray(image):
            return image
        source = image.convert("L") if image.mode in ("1", "L", "LA") else image.getchannel(0)
    else:
        source = image if image.mode == mode else image.convert(mode)
    colors = transform.apply(source)
    if image.mode in ("RGBA", "LA"):
        colors.putalpha(image.getchannel("A"))
    return colors


def profile_name(image: Image.Image) -> str:
    """Return the description of an image's profile; empty if it has none or one that is sRGB."""
    content = image.info.get("icc_profile")
    return _name(content) if content else ""


@lru_cache(maxsize=256)
def _name(content: bytes) -> str:
    mode, transform = _transform(content)
    if transform is None and mode:
        return ""
    try:
        text = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(BytesIO(content)))
    except (ImageCms.PyCMSError, OSError):
        return "damaged profile, ignored"
    name = " ".join(text.split())[:60] or "profile without a name"
    return name if mode else f"{name}, ignored"


@lru_cache(maxsize=256)
def _transform(content: bytes) -> tuple[str, Any]:
    """Return Pillow's mode for a profile's colors and the transform to sRGB, which is None if it changes nothing.

    The mode is empty for a profile that cannot be used.
    """
    try:
        profile: Any = ImageCms.ImageCmsProfile(BytesIO(content))
        mode = MODES.get(profile.profile.xcolor_space.strip(), "")
        if not mode:
            return "", None
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return "", None
    if mode == "CMYK":
        return mode, transform
    levels = np.linspace(0, 255, 256 if mode == "L" else 9).round().astype(np.uint8)
    grid = levels[None] if mode == "L" else np.stack(np.meshgrid(*[levels] * 3), axis=-1).reshape(9, -1, 3)
    before = Image.fromarray(grid)
    after = np.asarray(transform.apply(before)).astype(int)
    return mode, transform if np.abs(after - np.asarray(before.convert("RGB"))).max() > MAX_DIFFERENCE else None


def _is_gray(image: Image.Image) -> bool:
    """Whether red, green and blue are equal, as in RGBA made of gray with opacity."""
    colors = np.asarray(image)[..., :3] if image.mode in ("RGB", "RGBA") else np.zeros((1, 1, 2))
    return colors.shape[-1] == 3 and bool((colors == colors[..., :1]).all())
