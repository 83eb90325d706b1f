"""DataLoaders that a user made with fastai: what they hold, as an image table, and loaders over parts of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import Normalize
from fastai.torch_core import TensorMultiCategory
from PIL.Image import Image
from torch.utils.data import ConcatDataset, Subset

from baseline.data.labels import SEPARATOR
from baseline.errors import DataError, quoted_list
from baseline.progress import Progress
from baseline.vision.rng import preserve_rng_state

__all__ = [
    "add_normalization",
    "adopt",
    "image_shape",
    "is_own",
    "normalization_of",
    "own_split_loader",
    "own_table",
    "take_valid_batch",
]


def is_own(dls: DataLoaders) -> bool:
    """Whether the DataLoaders come from the user, and not from `baseline.dataloaders`."""
    return "decoded" not in vars(dls)


def adopt(dls: DataLoaders) -> DataLoaders:
    """Add to DataLoaders of the user's what training asks of them: `multilabel` and, if missing, `vocab`.

    Raises:
        DataError: if they are not fastai's, their targets are not classes, or they have no vocabulary.
    """
    if "multilabel" in vars(dls):
        return dls
    if len(dls.loaders) < 2:
        raise DataError("The DataLoaders hold one loader; one of train and one of valid images were needed.")
    for loader in (dls.train, dls.valid):
        if not isinstance(loader, DataLoader):
            raise DataError(
                f"The DataLoaders hold a {type(loader).__module__}.{type(loader).__name__}; fastai's own were needed. "
                "Make them with DataBlock, ImageDataLoaders or DataLoaders.from_dsets."
            )
        if not len(loader.dataset):
            raise DataError("The DataLoaders have an empty train or valid set. Both need at least one image.")
    if not len(dls.train):
        raise DataError(
            f"The DataLoaders' {len(dls.train_ds)} train images make no batch of {dls.train.bs}. Use a smaller bs, or "
            "drop_last=False."
        )
    if len(item := dls.valid_ds[0]) != 2:
        raise DataError(f"The DataLoaders' items have {len(item)} parts; an image and its target were needed.")
    target = item[1]
    is_matrix = isinstance(target, torch.Tensor) and target.ndim == 1
    dls.multilabel = isinstance(target, TensorMultiCategory) or is_matrix
    if not dls.multilabel and isinstance(target, torch.Tensor) and (target.ndim or target.is_floating_point()):
        raise DataError(
            f"The DataLoaders' targets are {type(target).__name__} of shape {tuple(target.shape)} and type "
            f"{target.dtype}; classes were needed. Use a CategoryBlock or a MultiCategoryBlock."
        )
    if getattr(dls, "vocab", None) is None:
        if not (classes := getattr(dls.train_ds, "classes", None)):
            raise DataError("The DataLoaders have no vocabulary. Set dls.vocab to the list of class names.")
        dls.vocab = list(classes)
    if dls.multilabel and (names := [str(name) for name in dls.vocab if SEPARATOR in str(name)]):
        raise DataError(
            f"Class names contain {SEPARATOR!r}, which separates labels: {quoted_list(names)}. Rename them."
        )
    return dls


def image_shape(dls: DataLoaders) -> tuple[int, int]:
    """Return height and width, in pixels, of the images of the user's DataLoaders."""
    if "valid_batch" not in vars(dls) and "image_shape" in vars(dls):
        return dls.image_shape
    if "valid_batch" not in vars(dls):
        with preserve_rng_state():
            dls.valid_batch = dls.valid.one_batch()
    shape = getattr(dls.valid_batch[0], "shape", ())
    dls.image_shape = tuple(shape[-2:]) if len(shape) >= 2 else (0, 0)  # no images: `check_parts` reports it
    return dls.image_shape


def take_valid_batch(dls: DataLoaders) -> Any:
    """Return the valid batch that `image_shape` has read, once, or else None."""
    return vars(dls).pop("valid_batch", None)


def add_normalization(dls: DataLoaders, mean: Any, std: Any, progress: Progress) -> None:
    """Normalize batches as the pretrained weights expect, as `vision_learner` does, unless the user's do so already."""
    if not dls.after_batch.fs.filter(lambda transform: isinstance(transform, Normalize)):
        dls.add_tfms([Normalize.from_stats(mean, std)], "after_batch")
        progress.log("added Normalize with the statistics of the pretrained weights to the DataLoaders, which had none")


def normalization_of(dls: DataLoaders, expected: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return mean and standard deviation by color channel as the DataLoaders normalize, or `expected` if they do not.

    Args:
        expected: the statistics of the pretrained weights, returned as they are if these are used.
    """
    transforms = dls.after_batch.fs.filter(lambda transform: isinstance(transform, Normalize))
    if len(transforms) != 1 or transforms[0].mean is None or transforms[0].mean.numel() != 3:
        return expected
    values = [value.detach().cpu().flatten() for value in (transforms[0].mean, transforms[0].std)]
    if all(torch.allclose(value, torch.tensor(known)) for value, known in zip(values, expected, strict=True)):
        return expected
    return values[0].tolist(), values[1].tolist()


def own_table(dls: DataLoaders) -> pd.DataFrame:
    """Return the image table of the user's DataLoaders: `path`, `label` and `split`, the train images first.

    An item without a path is called `train/0`, `train/1` and so on.
    """
    if "image_table" in vars(dls):
        return dls.image_table
    classes = [str(name) for name in dls.vocab]
    rows = [
        {"path": _path(dataset, number) or f"{split}/{number}", "label": label, "split": split}
        for split, dataset in (("train", dls.train_ds), ("valid", dls.valid_ds))
        for number, label in enumerate(_labels(dataset, classes))
    ]
    dls.image_table = pd.DataFrame(rows)
    return dls.image_table


def own_split_loader(dls: DataLoaders, rows: pd.DataFrame) -> Any:
    """Return a loader over rows of `own_table`, in their order, with the transforms of the valid set.

    Raises:
        DataError: if a row is not among the DataLoaders' own images.
    """
    table = own_table(dls)
    places = dict(zip(zip(table["split"], table["path"], strict=True), range(len(table)), strict=True))
    try:
        numbers = [places[key] for key in zip(rows["split"], rows["path"], strict=True)]
    except KeyError as error:
        raise DataError(f"The DataLoaders do not hold {error.args[0][1]} in their {error.args[0][0]} set.") from None
    train_images, size = len(dls.train_ds), max(dls.train.bs or 1, 64)
    if hasattr(dls.valid_ds, "tls"):
        own = [_item(dls.train_ds, n) if n < train_images else _item(dls.valid_ds, n - train_images) for n in numbers]
        return dls.test_dl(pd.DataFrame(own) if isinstance(own[0], pd.Series) else own, with_labels=True, bs=size)
    images: Any = Subset(ConcatDataset([dls.train_ds, dls.valid_ds]), numbers)
    return dls.valid.new(dataset=images, bs=size, shuffle=False, drop_last=False)


def _item(dataset: Any, number: int) -> Any:
    items = dataset.items
    return items.iloc[number] if isinstance(items, pd.DataFrame) else items[number]


def _path(dataset: Any, number: int) -> str:
    """Return the path of an item, which is the item or what its first transforms make of it; else an empty text."""
    if not hasattr(dataset, "tls"):
        return ""
    value = _item(dataset, number)
    for transform in dataset.tls[0].tfms.fs:
        if isinstance(value, str | Path):
            break
        value = transform(value)
        if isinstance(value, Image | torch.Tensor):  # an image already
            break
    return str(value) if isinstance(value, str | Path) else ""


def _labels(dataset: Any, classes: list[str]) -> Iterator[str]:
    targets = dataset.tls[1] if hasattr(dataset, "tls") else (dataset[number][1] for number in range(len(dataset)))
    for target in targets:
        values = torch.as_tensor(target)
        if values.ndim:
            yield SEPARATOR.join(name for name, value in zip(classes, values, strict=True) if value)
        else:
            yield classes[int(values)]
