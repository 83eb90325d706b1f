"""TODO."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from fastai.torch_core import default_device

from baseline.data.image import resize_image
from baseline.progress import Progress
from baseline.system import total_memory_bytes
from baseline.vision.augment import load_existing_image
from baseline.vision.cache import ArrayCache, file_fingerprint

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe

__all__ = ["estimate_decoding_seconds"]


MEMORY_SHARE = 1 / 8


@dataclass(frozen=True)
class DecodedImages:
    pixels: torch.Tensor
    rows: dict[str, int]


def decode_table(table: pd.DataFrame, recipe: Recipe, progress: Progress) -> DecodedImages | None:
    """All images of the table as one uint8 array, N x 3 x size x size; None where there is no room for it."""
    paths = sorted(set(table["path"]))
    pixels = _load_pixels(paths, recipe, progress)
    if pixels is None:
        return None
    whole = move_to_gpu_if_small(torch.from_numpy(pixels))
    return DecodedImages(whole.permute(0, 3, 1, 2), {path: row for row, path in enumerate(paths)})


def move_to_gpu_if_small(pixels: torch.Tensor) -> torch.Tensor:
    """On a GPU where they take at most an eighth of its memory, so that batches are cut and augmented there."""
    device = default_device()
    if device.type != "cuda" or pixels.nbytes > torch.cuda.get_device_properties(device).total_memory * MEMORY_SHARE:
        return pixels
    return pixels.to(device)


def _load_pixels(paths: list[str], recipe: Recipe, progress: Progress) -> np.ndarray | None:
    """N x size x size x 3, from the cache or decoded now; in a file where the cache takes it, else in memory."""
    size = recipe.decoded_size
    cache, key = ArrayCache(recipe.cache_gb, progress), _cache_key(paths, recipe)
    with cache.lock(key):
        found = cache.get(key)
        if found is not None:
            progress.log(f"decoded images: from the cache ({found.nbytes / 1e9:.1f} GB)")
            return np.asarray(found)
        shape = (len(paths), size, size, 3)
        room = cache.allocate(key, shape, np.uint8)
        if room is None and np.prod(shape) > total_memory_bytes() * MEMORY_SHARE:
            return None
        pixels = np.empty(shape, dtype=np.uint8) if room is None else np.asarray(room)
        decode_images(paths, pixels, recipe, progress)
        if room is not None:
            cache.commit(key, room)
        return pixels


def _cache_key(paths: list[str], recipe: Recipe) -> dict[str, Any]:
    return {"what": "images", "images": file_fingerprint(paths), "size": recipe.decoded_size, "resize": recipe.resize}


def estimate_decoding_seconds(table: pd.DataFrame, recipe: Recipe, tried: int = 32) -> float:
    """About how long the table's images will take to be decoded, from a few of them; nothing if that is done."""
    paths = sorted(set(table["path"]))
    if ArrayCache(recipe.cache_gb).has(_cache_key(paths, recipe)):
        return 0.0
    some = paths[:: max(1, len(paths) // tried)]
    pixels = np.empty((len(some), recipe.decoded_size, recipe.decoded_size, 3), dtype=np.uint8)
    began = time.perf_counter()
    decode_images(some, pixels, recipe, Progress())
    return (time.perf_counter() - began) / len(some) * len(paths)


def decode_images(paths: list[str], pixels: np.ndarray, recipe: Recipe, progress: Progress) -> None:
    def decode(number: int) -> None:
        pixels[number] = resize_image(
            load_existing_image(paths[number], recipe.decoded_size), recipe.decoded_size, recipe.resize
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool, progress.bar("decoding images", len(paths), "images") as bar:
        for _ in pool.map(decode, range(len(paths))):
            bar.step()
