"""What `Model.predict` takes as images: paths, folders, tables, bytes, open files, arrays, tensors and PIL images."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastcore.foundation import L
from fasttransform import Pipeline
from PIL import Image

from baseline.data.image import load_square, unreadable_reason
from baseline.data.sources.image_list import images_of_source
from baseline.errors import DataError, quoted_list
from baseline.progress import Progress
from baseline.vision.augment import IMAGE_TYPES
from baseline.vision.own_parts import runs_at_prediction

__all__ = ["DecodeSpec", "iterate_images", "read_batches"]


class ItemTransforms:
    """Item transforms as fastai runs them on valid images: PIL image in, PIL image out."""

    def __init__(self, transforms: Any) -> None:
        self.pipeline = Pipeline([t for t in L(transforms) if runs_at_prediction(t)], split_idx=1)

    def __call__(self, image: Image.Image) -> Image.Image:
        from fastai.vision.core import PILImage

        return self.pipeline(PILImage(image))


DecodeSpec = tuple[int, str, tuple[float, ...], ItemTransforms | None]
"""Arguments of `load_square` after the source."""


BATCHES_IN_FLIGHT = 3
"""Number of batches that are read at the same time: the one being predicted and two ahead of it."""


NEEDED = "a path, bytes, an open file, an array, a tensor or a PIL image was needed"


def iterate_images(images: Any, progress: Progress, *, strict: bool = True) -> Iterator[Any]:
    """Yield images one by one; a folder stands for all images in it, a DataFrame for its column `path`.

    Args:
        progress: receives a message about the files of a folder that are no images.
        strict: whether a folder without images is an error; if not, it is yielded like an image.

    Raises:
        DataError: if it is nothing of the kind, a folder holds no images, or a DataFrame has no single column `path`.
    """
    if isinstance(images, pd.DataFrame):
        if list(images).count("path") != 1:
            columns = quoted_list(images) if len(images.columns) else "no columns"
            raise DataError(f"The table has no column path, or several; it has {columns}. Name one column path.")
        images = list(images["path"])
    if isinstance(images, Mapping) or (isinstance(images, np.ndarray) and images.dtype == object and images.ndim != 1):
        kind = f"array {_shape(images)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"images: {kind} was given; {NEEDED}, or a list of these.")
    for image in [images] if _is_single(images) else images:
        if isinstance(image, str | Path) and os.path.isdir(image):  # noqa: PTH112  # no error for a name too long
            try:
                (paths,) = images_of_source(str(image), "", progress)
            except DataError:
                if strict:
                    raise
                paths = [str(image)]
            yield from paths
        else:
            yield image


def _is_single(images: Any) -> bool:
    """Whether this is one image, not several.

    Raises:
        DataError: if it is neither.
    """
    if isinstance(images, np.ndarray | torch.Tensor):
        is_list = isinstance(images, np.ndarray) and images.dtype.kind in "OUS" and images.ndim == 1
        return images.ndim != 4 and not is_list
    single = (str, Path, bytes, bytearray, memoryview)
    if isinstance(images, single) or hasattr(images, "getexif") or hasattr(images, "read"):
        return True
    if isinstance(images, Iterable):
        return False
    if isinstance(images, Callable) and not isinstance(images, type):  # type: ignore[arg-type]
        return True
    raise DataError(f"images: {images!r:.60} was given; {NEEDED}, or a list of these.")


def read_batches(
    images: Iterable[Any], batch_size: int, specs: Sequence[DecodeSpec]
) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yield batches of images, and for each image its squares, one for each spec, or why it cannot be read.

    Args:
        specs: arguments of `load_square` after the image.
    """
    remaining = iter(images)
    batches = iter(lambda: list(islice(remaining, batch_size)), [])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pending: deque[tuple[list[Any], list[Future]]] = deque()
        try:
            while True:
                for batch in islice(batches, BATCHES_IN_FLIGHT - len(pending)):
                    pending.append((batch, [pool.submit(load_squares, image, specs) for image in batch]))
                if not pending:
                    return
                batch, futures = pending.popleft()
                yield batch, [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def load_squares(image: Any, specs: Sequence[DecodeSpec]) -> list[np.ndarray] | str:
    """Return the image's squares, one for each spec (see `load_square`), or why it cannot be read."""
    try:
        content = to_source(image() if callable(image) else image)
        if not isinstance(content, IMAGE_TYPES):
            return f"{NEEDED}, not {type(content).__name__}"
        if isinstance(content, Image.Image) and len(specs) > 1:
            content = content.copy()  # a file that is not yet read would be decoded in the size of the first spec
        return [load_square(content, *spec) for spec in specs]
    except Exception as error:
        return unreadable_reason(error)


def to_source(image: Any) -> Any:
    """Return the content of an open file, an array of a tensor 3 x H x W, and anything else as `load_image` takes it.

    Raises:
        ValueError: for what is no image.
    """
    if isinstance(image, torch.Tensor):
        values = image.detach().as_subclass(torch.Tensor).cpu()
        if values.ndim != 3 or values.shape[0] not in (1, 3):
            raise ValueError(f"a tensor 3 x H x W was needed, not {_shape(values)}")
        array = values.float().numpy() if values.is_floating_point() else values.numpy()
        return np.broadcast_to(to_uint8(array).transpose(1, 2, 0), (*array.shape[1:], 3))
    if isinstance(image, np.ndarray):
        return array_to_source(image)
    if isinstance(image, str) and "://" in image and not os.path.exists(image):  # noqa: PTH110
        raise ValueError("a URL; download it first")
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if hasattr(image, "read") and not isinstance(image, Image.Image):
        image = image.read()
        if isinstance(image, str):
            raise ValueError("a file that was opened as text; open it with 'rb'")
        if not image:
            raise ValueError("an open file with nothing left to read; it is empty, or needs seek(0)")
    if isinstance(image, bytes) and not image:
        raise ValueError("no bytes")
    if isinstance(image, Image.Image) and 0 in image.size:
        raise ValueError("an image without pixels")
    return image


def array_to_source(array: np.ndarray) -> Any:
    """Return a path that an array holds, or its values as `load_image` takes them.

    Raises:
        ValueError: for an array that is no image.
    """
    if array.ndim == 0 and array.dtype.kind == "U":
        return str(array)
    if array.ndim == 2 and array.size and array.dtype.kind in "uif" and array.dtype.itemsize > 1:
        return array.astype(np.float32) if array.dtype.kind == "f" else array  # like a file of more than 8 bits
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise ValueError(f"an array H x W x 3 was needed, not {_shape(array)}")
    return to_uint8(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Return the values of an image as uint8; floats and booleans go from 0 to 1, integers from 0 to 255.

    Raises:
        ValueError: for other values, or none.
    """
    if not values.size:
        raise ValueError(f"an image without pixels, {_shape(values)}")
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind in "ui" and values.dtype.itemsize == 2:
        raise ValueError(f"uint8 was needed, not {values.dtype}, whose range is unknown; scale it")
    if values.dtype.kind not in "buif":
        raise ValueError(f"numbers were needed, not {_shape(values)}")
    largest = 1 if values.dtype.kind in "bf" else 255
    if not (values.min() >= 0 and values.max() <= largest):
        raise ValueError(f"values from 0 to {largest} were needed, not {values.min():.4g} to {values.max():.4g}")
    return ((values * 255.0).round() if largest == 1 else values).astype(np.uint8)


def _shape(values: Any) -> str:
    return f"{' x '.join(map(str, values.shape)) or 'one value'}, {str(values.dtype).removeprefix('torch.')}"
