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

from baseline.data.image import fit_photo
from baseline.progress import Show
from baseline.system import memory_bytes
from baseline.vision.augment import _opened
from baseline.vision.cache import Cache, fingerprint

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe

__all__ = ["decoding_seconds"]


MEMORY_SHARE = 1 / 8


@dataclass(frozen=True)
class _Decoded:
    pixels: torch.Tensor
    rows: dict[str, int]


def _decoded(table: pd.DataFrame, recipe: Recipe, show: Show) -> _Decoded | None:
    """All photos of the table as one uint8 array, N x 3 x size x size; None where there is no room for it."""
    paths = sorted(set(table["path"]))
    pixels = _pixels(paths, recipe, show)
    if pixels is None:
        return None
    whole = _on_gpu_if_small(torch.from_numpy(pixels))
    return _Decoded(whole.permute(0, 3, 1, 2), {path: row for row, path in enumerate(paths)})


def _on_gpu_if_small(pixels: torch.Tensor) -> torch.Tensor:
    """On a GPU where they take at most an eighth of its memory, so that batches are cut and augmented there."""
    device = default_device()
    if device.type != "cuda" or pixels.nbytes > torch.cuda.get_device_properties(device).total_memory * MEMORY_SHARE:
        return pixels
    return pixels.to(device)


def _pixels(paths: list[str], recipe: Recipe, show: Show) -> np.ndarray | None:
    """N x size x size x 3, from the cache or decoded now; in a file where the cache takes it, else in memory."""
    size = recipe.decoded_size
    cache, key = Cache(recipe.cache_gb, show), _pixels_key(paths, recipe)
    with cache.alone(key):
        found = cache.find(key)
        if found is not None:
            show.say(f"decoded photos: from the cache ({found.nbytes / 1e9:.1f} GB)")
            return np.asarray(found)
        shape = (len(paths), size, size, 3)
        room = cache.room(key, shape, np.uint8)
        if room is None and np.prod(shape) > memory_bytes() * MEMORY_SHARE:
            return None
        pixels = np.empty(shape, dtype=np.uint8) if room is None else np.asarray(room)
        _decode(paths, pixels, recipe, show)
        if room is not None:
            cache.keep(key, room)
        return pixels


def _pixels_key(paths: list[str], recipe: Recipe) -> dict[str, Any]:
    return {"what": "photos", "photos": fingerprint(paths), "size": recipe.decoded_size, "resize": recipe.resize}


def decoding_seconds(table: pd.DataFrame, recipe: Recipe, tried: int = 32) -> float:
    """About how long the table's photos will take to be decoded, from a few of them; nothing if that is done."""
    paths = sorted(set(table["path"]))
    if Cache(recipe.cache_gb).has(_pixels_key(paths, recipe)):
        return 0.0
    some = paths[:: max(1, len(paths) // tried)]
    pixels = np.empty((len(some), recipe.decoded_size, recipe.decoded_size, 3), dtype=np.uint8)
    began = time.perf_counter()
    _decode(some, pixels, recipe, Show())
    return (time.perf_counter() - began) / len(some) * len(paths)


def _decode(paths: list[str], pixels: np.ndarray, recipe: Recipe, show: Show) -> None:
    def decode(number: int) -> None:
        pixels[number] = fit_photo(_opened(paths[number], recipe.decoded_size), recipe.decoded_size, recipe.resize)

    with ThreadPoolExecutor(os.cpu_count()) as pool, show.bar("decoding photos", len(paths), "photos") as bar:
        for _ in pool.map(decode, range(len(paths))):
            bar.step()
