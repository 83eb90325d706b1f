"""Every kind of image becomes upright RGB."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from baseline.data.audit.scan import scan_content
from baseline.data.image import load_image


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


COLOR = Image.new("RGB", (8, 4), (200, 100, 50))


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (COLOR.convert("P"), "PNG"),
        (COLOR.convert("P"), "GIF"),
        (COLOR.convert("CMYK"), "TIFF"),
        (COLOR.convert("RGBA"), "PNG"),
        (COLOR.convert("RGBA"), "WEBP"),
        (COLOR.convert("YCbCr"), "JPEG"),
        (COLOR.convert("LAB"), "TIFF"),
    ],
)
def test_colors_survive_every_mode(image: Image.Image, kind: str) -> None:
    pixels = np.asarray(load_image(encode(image, kind)), dtype=int)
    assert pixels.shape == (4, 8, 3) and np.abs(pixels - (200, 100, 50)).max() < 26  # GIF's palette is coarse


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grays_survive(mode: str) -> None:
    assert np.asarray(load_image(encode(Image.new("L", (8, 4), 255).convert(mode), "PNG"))).min() == 255


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    gray = np.asarray(load_image(encode(Image.fromarray(values), "PNG")))[..., 0]
    assert np.array_equal(gray, (values / 257).round())
    floats = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.asarray(load_image(encode(Image.fromarray(floats), "TIFF")))[..., 0].max() == 255


def test_transparent_areas_become_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert np.asarray(load_image(encode(clear, "PNG"))).min() == 255
    palette = Image.new("P", (4, 4), 0)
    assert np.asarray(load_image(encode(palette, "PNG", transparency=0))).min() == 255


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    pixels = np.asarray(load_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert pixels[0, 0].tolist() == [255, 0, 0]


def test_one_pixel_and_a_hundred_megapixels(tmp_path: Path) -> None:
    assert load_image(encode(Image.new("RGB", (1, 1), "red"), "PNG")).size == (1, 1)
    Image.new("L", (10_000, 10_000)).save(tmp_path / "large.png")
    assert load_image(tmp_path / "large.png").size == (10_000, 10_000)


def test_an_animation_with_a_damaged_second_frame_is_audited_as_it_is_read() -> None:
    frames = [Image.effect_noise((60, 40), 80).convert("P") for _ in range(2)]
    frames[0].save(buffer := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:])
    content = buffer.getvalue()
    for end in range(0, len(content), 11):
        assert can_use(scan_content, content[:end]) == can_use(load_image, content[:end]), end
    assert can_use(load_image, content[: len(content) * 3 // 4])


def can_use(read: Callable[[bytes], Any], content: bytes) -> bool:
    try:
        read(content)
    except (OSError, SyntaxError, ValueError, IndexError):
        return False
    return True
