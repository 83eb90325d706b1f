"""Draws ants and bees for the suite where no real images are at hand.

They have what a test may rely on in a real image: a shape of its own, texture down to the pixel, colors that say
little about the class, a JPEG file of many kilobytes, and no second image like it. A short training on 48 of them ends
where one on real ants and bees does: most are right, not all.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Color = tuple[int, ...]


def draw(name: str, number: int) -> Image.Image:
    """The image of this number, always the same: an insect somewhere on a background of leaves, bark or sand."""
    rng = np.random.default_rng([number, *name.encode()])
    width, height = (int(side) for side in rng.integers(160, 241, 2))
    image = background(rng).crop((0, 0, width, height))
    side = int(min(width, height) * rng.uniform(0.55, 0.9))
    drawn = insect(name, rng).resize((side, side), Image.Resampling.LANCZOS)
    drawn = drawn.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC)
    image.paste(drawn, tuple(int(rng.integers(0, room - side + 1)) for room in (width, height)), drawn)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1)))
    grain = rng.normal(0, rng.uniform(2, 8), (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def background(rng: np.random.Generator, side: int = 256) -> Image.Image:
    """Noise whose strength falls with its frequency, as in nature, around a random color."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) + 1 / side
    noise = np.fft.rfft2(rng.normal(size=(4, side, side))) / frequency ** rng.uniform(1, 1.6)
    waves = np.fft.irfft2(noise)
    light, *tints = waves / waves.std((1, 2), keepdims=True)
    base = rng.uniform((60, 60, 30), (190, 200, 170))
    channels = [color + 35 * light + 14 * tint for color, tint in zip(base, tints, strict=True)]
    return Image.fromarray(np.clip(np.stack(channels, 2), 0, 255).astype(np.uint8))


def insect(name: str, rng: np.random.Generator, side: int = 200) -> Image.Image:
    """An ant or a bee seen from above, head up, on nothing."""
    layer = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(layer)
    unit = side / 100

    def oval(x: float, y: float, wide: float, high: float, fill: Color) -> None:
        pen.ellipse([unit * at for at in (x - wide, y - high, x + wide, y + high)], fill=fill)

    def line(points: list[tuple[float, float]], width: int, fill: Color) -> None:
        pen.line([(unit * x, unit * y) for x, y in points], fill=fill, width=round(unit * width))

    dark = tuple(int(value) for value in rng.integers((20, 5, 0), (110, 50, 30)))
    for y, reach in ((42, 36), (50, 40), (58, 36)):
        for turn in (-1, 1):
            knee, foot = y + rng.integers(-14, 15), y + rng.integers(-14, 28)
            line([(50, y), (50 + turn * reach / 2, knee), (50 + turn * reach, foot)], 2, dark)
    if name == "ants":
        for y, wide, high in ((24, 9, 9), (46, 6, 12), (74, 12, 18)):
            oval(50, y, wide + rng.uniform(-2, 2), high, dark)
        for turn in (-1, 1):
            line([(50, 20), (50 + turn * 12, 12), (50 + turn * 18, 3)], 1, dark)
    else:
        yellow = tuple(int(value) for value in rng.integers((190, 130, 10), (250, 190, 70)))
        for turn in (-1, 1):
            oval(50 + turn * 25, 42, 22, 9, (225, 230, 235, 130))
        oval(50, 20, 9, 8, dark)
        oval(50, 42, 14, 15, yellow)
        oval(50, 72, 16, 22, yellow)
        for y in (60, 70, 80):
            line([(36, y), (64, y)], 4, dark)
    return layer
