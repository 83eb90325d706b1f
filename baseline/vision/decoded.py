"""Decoding all images of a table once, into one array in the cache or in memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from fastai.torch_core import default_device

from baseline.data.image import PIXELS_VERSION, resize_image
from baseline.files import file_identities, fingerprint_of
from baseline.progress import Progress
from baseline.system import total_memory_bytes
from baseline.vision.augment import load_existing_image
from baseline.vision.cache import ArrayCache

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe

MEMORY_FRACTION = 1 / 8
"""Maximum fraction of the machine's memory, and of a GPU's, for decoded images."""


@dataclass(frozen=True)
class DecodedImages:
    """The images of a table: `pixels`, N x 3 x size x size, uint8, and the row of each path.

    `identities` is what `file_identities` returned before they were decoded; the files may have changed since.
    """

    pixels: torch.Tensor
    rows: dict[str, int]
    identities: list[str]


def decode_table(table: pd.DataFrame, recipe: Recipe, progress: Progress) -> DecodedImages | None:
    """Decode all images of the table; return None if there is no room for them."""
    paths = sorted(set(table["path"]))
    pixels = _load_pixels(paths, identities := file_identities(paths), recipe, progress)
    if pixels is None:
        return None
    tensor = move_to_gpu_if_small(torch.from_numpy(pixels))
    return DecodedImages(tensor.permute(0, 3, 1, 2), {path: row for row, path in enumerate(paths)}, identities)


def move_to_gpu_if_small(pixels: torch.Tensor) -> torch.Tensor:
    """Move pixels to the GPU, where batches are then cut and augmented, if they take up to an eighth of its memory."""
    device = default_device()
    if device.type != "cuda" or pixels.nbytes > torch.cuda.get_device_properties(device).total_memory * MEMORY_FRACTION:
        return pixels
    return pixels.to(device)


def _load_pixels(paths: list[str], identities: list[str], recipe: Recipe, progress: Progress) -> np.ndarray | None:
    """Return the pixels, N x size x size x 3, from the cache or decoded now; None if there is no room for them."""
    size = recipe.decoded_size
    cache, key = ArrayCache(recipe.options.cache_gb, progress), cache_key(identities, recipe)
    with cache.lock(key):
        cached = cache.get(key)
        if cached is not None:
            progress.log(f"decoded images: from the cache ({cached.nbytes / 1e9:.1f} GB)")
            return np.asarray(cached)
        shape = (len(paths), size, size, 3)
        allocated = cache.allocate(key, shape, np.uint8)
        if allocated is None and np.prod(shape) > total_memory_bytes() * MEMORY_FRACTION:
            return None
        pixels = np.empty(shape, dtype=np.uint8) if allocated is None else np.asarray(allocated)
        decode_images(paths, pixels, recipe, progress)
        if allocated is not None:
            cache.commit(key, allocated)
        return pixels


def cache_key(identities: list[str], recipe: Recipe) -> dict[str, Any]:
    return {
        "what": "images",
        "images": fingerprint_of(identities),
        "size": recipe.decoded_size,
        "resize": recipe.model.resize,
        "pixels": (PIXELS_VERSION, recipe.data.value_range),
    }


def decode_images(paths: list[str], pixels: np.ndarray, recipe: Recipe, progress: Progress) -> None:
    """Decode and resize images into `pixels`, N x size x size x 3, with one thread per CPU core."""

    def decode(number: int) -> None:
        image = load_existing_image(paths[number], recipe.decoded_size, recipe.data.value_range)
        pixels[number] = resize_image(image, recipe.decoded_size, recipe.model.resize)

    with ThreadPoolExecutor(os.cpu_count()) as pool, progress.bar("decoding images", len(paths), "images") as bar:
        for _ in pool.map(decode, range(len(paths))):
            bar.step()
