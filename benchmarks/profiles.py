"""Measures milliseconds to load a JPEG without a color profile, in sRGB, and in a profile that is converted to sRGB.

python benchmarks/profiles.py IMAGE PROFILE.icc
"""

from __future__ import annotations

import time
from io import BytesIO
from pathlib import Path

import numpy as np
import typer
from PIL import Image, ImageCms

from baseline.data.image import load_square


def main(image: Path, profile: Path, repeats: int = 15) -> None:
    """Print a line for each size of the image and each size that a network takes."""
    standard = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profiles = {"none": b"", "sRGB": standard, profile.stem: profile.read_bytes()}
    for side in (256, 1024, 4000):
        picture = Image.open(image).convert("RGB").resize((side, side * 3 // 4))
        contents = {}
        for name, content in profiles.items():
            buffer = BytesIO()
            picture.save(buffer, "JPEG", quality=90, icc_profile=content or None)
            contents[name] = buffer.getvalue()
        for size in (160, 512):
            seconds: dict[str, list[float]] = {name: [] for name in contents}
            for _ in range(repeats):
                for name, content in contents.items():
                    start = time.perf_counter()
                    load_square(content, size, "squish")
                    seconds[name].append(time.perf_counter() - start)
            line = ", ".join(f"{name} {1000 * np.median(times):.2f}" for name, times in seconds.items())
            print(f"{side} x {side * 3 // 4} to {size} px: {line} ms")


if __name__ == "__main__":
    typer.run(main)
