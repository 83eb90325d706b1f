"""Photo table + recipe -> fastai DataLoaders. Knows photos and batches; knows no network but its input.

Photos are decoded and resized once, into a file in the cache or, where that takes no more, into at most an eighth of
the machine's memory; their batches are slices of one array (`SliceDL`). Otherwise fastai reads them from disk, item by
item. Both ways use the same `open_photo` and `fit_photo`, so both give the same pixels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, TransformBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import ColReader, IntToFloatTensor, Normalize
from fastai.torch_core import TensorCategory, TensorImage, TensorMultiCategory, default_device
from fastai.vision.augment import aug_transforms
from fastai.vision.core import PILImage
from fasttransform import Transform
from PIL import Image

from .cache import Cache, fingerprint
from .errors import RecipeError, gone
from .photos import fit_photo, open_photo
from .progress import Show
from .recipe import Augment, Recipe
from .tables import classes_of, each_label, flags_of
from .weights import normalisation

__all__ = [
    "PHOTO_FORMS",
    "SliceDL",
    "Slices",
    "classes_in",
    "dataloaders",
    "decoding_seconds",
    "empty_loaders",
    "memory_bytes",
    "shared",
    "shrunk",
    "split_loader",
    "targets_of",
]

MEMORY_SHARE = 1 / 8
PHOTO_FORMS = (str, Path, bytes, np.ndarray, Image.Image)
"""What `baseline.photos.open_photo` takes."""
Normal = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation by colour."""


def _opened(source: Any, size: int) -> Image.Image:
    try:
        return open_photo(source, size)
    except FileNotFoundError as error:
        raise gone(error) from None


class OpenPhoto(Transform):
    """`open_photo` as fastai's type transform."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def encodes(self, source):  # type: ignore[no-untyped-def]  # fastcore dispatches on annotations
        return PILImage(_opened(source, self.size))


class Fit(Transform):
    """`fit_photo` as fastai's item transform, before its `ToTensor`."""

    order = 1

    def __init__(self, size: int, resize: str) -> None:
        super().__init__()
        self.size, self.resize = size, resize

    def encodes(self, image: PILImage):  # type: ignore[no-untyped-def]
        return PILImage(fit_photo(image, self.size, self.resize))


class OnTraining(Transform):
    """fastai's random changes, on training batches only: on valid ones its own would resample, and change nothing."""

    order, split_idx = 30, 0

    def __init__(self, changes: Sequence[Any]) -> None:
        super().__init__()
        self.changes = changes

    def encodes(self, photos: TensorImage):  # type: ignore[no-untyped-def]
        for change in self.changes:
            photos = change(photos, split_idx=0)
        return photos


class Whole(Transform):
    """Valid photos that were decoded larger, for random crops of training photos, at the size the network sees."""

    order, split_idx = 30, 1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def encodes(self, photos: TensorImage):  # type: ignore[no-untyped-def]
        return shrunk(photos, self.size).as_subclass(TensorImage)


class Mirror(Transform):
    """Half of the photos of a training batch, left to right: fastai's flip resamples them, at eight times the cost."""

    order, split_idx = 30, 0

    def encodes(self, photos: TensorImage):  # type: ignore[no-untyped-def]
        chosen = torch.rand(len(photos), device=photos.device) < 0.5
        photos[chosen] = photos[chosen].flip(-1)
        return photos


@dataclass(frozen=True)
class Slices:
    """Items in memory, from which whole batches are cut: item `i` is `inputs[rows[i]]`, `targets[i]`.

    With `views`, `inputs` holds so many tables one below the other, each of one view of all items, and an item is taken
    from one of them by chance.
    """

    inputs: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    kind: type[torch.Tensor]
    """What a batch of inputs is made before the batch transforms see it: `TensorImage`, or a plain tensor."""
    views: int = 1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = self.batch([item])
        return inputs[0], targets[0]

    def batch(self, items: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.as_tensor(items)
        rows = self.rows[chosen]
        if self.views > 1:
            rows = rows + len(self.rows) * torch.randint(self.views, rows.shape, device=rows.device)
        if self.inputs.ndim == 4:  # channels last in memory, and so stays the batch
            inputs = self.inputs.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)
        else:
            inputs = self.inputs[rows]
        if inputs.dtype == torch.float16:  # kept so to save memory
            inputs = inputs.float()
        kind = TensorMultiCategory if self.targets.is_floating_point() else TensorCategory
        return inputs.as_subclass(self.kind), kind(self.targets[chosen])


class SliceDL(TfmdDL):
    """A fastai loader that cuts whole batches where its data set is, or carries, `Slices`.

    Shuffling, batch transforms, `new` and `test_dl` are fastai's; a data set without slices is read item by item.
    With `weights`, one a row, an epoch draws as many rows as there are, with replacement, by these weights.
    """

    weights: np.ndarray | None = None
    n: int
    share: tuple[int, int] | None = None
    """Which part of each batch this loader is to give, and of how many; see `shared`."""

    def get_idxs(self) -> list[int]:
        if self.share is None:
            return self._all_idxs()
        at, parts = self.share
        own, self.n = self.n, len(self.dataset)
        every, self.n = self._all_idxs(), own
        batch = self.bs * parts
        return [i for start in range(0, own * parts, batch) for i in every[start : start + batch][at::parts]]

    def _all_idxs(self) -> list[int]:
        if self.weights is None or not self.shuffle:
            return super().get_idxs()
        share = self.weights / self.weights.sum()
        return np.random.choice(self.n, self.n, p=share).tolist()

    def create_batches(self, samps: Iterator[int]) -> Iterator[Any]:
        slices = self.dataset if isinstance(self.dataset, Slices) else vars(self.dataset).get("slices")
        if slices is None:
            yield from super().create_batches(samps)
            return
        for items in self.chunkify(samps):
            yield slices.batch(list(items))


def dataloaders(
    table: pd.DataFrame, recipe: Recipe, *, path: Path | str = ".", show: Show | None = None
) -> DataLoaders:
    """fastai DataLoaders over the table's train and valid splits, normalised as the recipe's weights were trained.

    Batches are `TensorImage` N x 3 x image_size x image_size, float32, and `TensorCategory` N, int64, or, with
    `labels = "many"`, `TensorMultiCategory` N x classes, float32, 0 or 1; the vocabulary is the table's classes in
    alphabetical order. Training batches are shuffled and augmented.

    Args:
        table: a photo table in which every photo has its split.
        recipe: with `arch` and `batch_size` settled (see `baseline.settle`).
        path: the folder that the Learner may write to.
    """
    show = show or Show()
    table = table.reset_index(drop=True)
    decoded = _decoded(table, recipe, show)
    dls = _block(recipe, classes_in(table, recipe.labels), normalisation(recipe.arch)).dataloaders(
        table[table["split"] != "test"].reset_index(drop=True),
        bs=recipe.batch_size,
        num_workers=0 if decoded else recipe.workers,
        path=Path(path),
    )
    _marked(dls, recipe, decoded)
    for loader, name in ((dls.train, "train"), (dls.valid, "valid")):
        _slice(loader, dls, table[table["split"] == name])
    if recipe.balance == "sampler":
        dls.train.weights = _rarity(table.loc[table["split"] == "train", "label"])
    return dls


def empty_loaders(classes: Sequence[str], recipe: Recipe, normal: Normal) -> DataLoaders:
    """DataLoaders without photos, whose `test_dl` feeds any photos to a network as `dataloaders` would.

    Args:
        classes: the vocabulary.
        normal: mean and standard deviation by colour; see `baseline.weights.normalisation`.
    """
    blank = Image.new("RGB", (8, 8))
    table = pd.DataFrame({"path": [blank, blank], "label": classes[0], "split": ["train", "valid"]})
    dls = _block(recipe, list(classes), normal).dataloaders(table, bs=64, num_workers=0).new_empty()
    _marked(dls, recipe, None)
    return dls


def _marked(dls: DataLoaders, recipe: Recipe, decoded: _Decoded | None) -> None:
    dls.many = recipe.labels == "many"
    dls.valid_ds.tls[0].types[1] = PHOTO_FORMS  # what learn.predict takes
    dls.decoded = decoded


def classes_in(table: pd.DataFrame, labels: str = "auto") -> list[str]:
    """The table's classes in alphabetical order."""
    return sorted(each_label(table["label"], labels).dropna().unique())


def _rarity(labels: pd.Series) -> np.ndarray:
    """For each label one over how often it comes."""
    return (1 / labels.map(labels.value_counts())).to_numpy(dtype=float)


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def shrunk(photos: torch.Tensor, size: int) -> torch.Tensor:
    """The photos, N x C x H x W, as squares of `size` pixels where that is another size; 0 leaves them."""
    if size in (0, photos.shape[-1]):
        return photos
    return F.interpolate(photos.as_subclass(torch.Tensor), (size, size), mode="bilinear", antialias=True)


def targets_of(dls: DataLoaders, rows: pd.DataFrame) -> torch.Tensor:
    """The classes of these rows of the table: numbers, N, int64, or with many labels flags, N x classes, float32."""
    if dls.many:
        return torch.from_numpy(flags_of(rows["label"], dls.vocab)).float()
    index = {name: number for number, name in enumerate(dls.vocab)}
    return torch.tensor([index[label] for label in rows["label"]])


def shared(loader: SliceDL, at: int, parts: int) -> SliceDL:
    """A training loader that gives the part `at`, from 0, of each of the other's batches: no photo twice, none lost.

    All parts draw the same order, if the loaders' random states are the same.

    Raises:
        RecipeError: if batches cannot be parted evenly, or a part is a single photo, of which BatchNorm learns nothing.
    """
    if loader.bs % parts or loader.bs < 2 * parts:
        size = max(2, loader.bs // parts) * parts
        words = "Give" if size > len(loader.dataset) else f"Give --batch-size {size}, or"
        why = f"cannot be parted among {parts} processes" + (", two photos each at least" if size > loader.bs else "")
        raise RecipeError(f"Batches of {loader.bs} {why}. {words} fewer --processes.")
    state = loader.rng.getstate()
    part = loader.new(bs=loader.bs // parts)
    part.weights, part.share = loader.weights, (at, parts)
    part.n = len(loader) * part.bs
    part.rng.setstate(state)
    return part


def split_loader(dls: DataLoaders, table: pd.DataFrame, split: str) -> TfmdDL:
    """A loader over one split of the table, in its order, not augmented, last batch kept."""
    rows = table[table["split"] == split].reset_index(drop=True)
    loader = dls.test_dl(rows, with_labels=True, bs=max(dls.train.bs, 64))
    _slice(loader, dls, rows)
    return loader


def _block(recipe: Recipe, classes: list[str], normal: Normal) -> DataBlock:
    many = recipe.labels == "many"
    return DataBlock(
        blocks=(
            TransformBlock(type_tfms=OpenPhoto(recipe.decoded_size), batch_tfms=IntToFloatTensor),
            MultiCategoryBlock(vocab=classes) if many else CategoryBlock(vocab=classes),
        ),
        get_x=ColReader("path"),
        get_y=_classes_of_row if many else ColReader("label"),
        splitter=_by_split,
        item_tfms=Fit(recipe.decoded_size, recipe.resize),
        batch_tfms=[*_augmentation(recipe), Normalize.from_stats(*normal)],
        dl_type=SliceDL,
    )


def _classes_of_row(row):  # type: ignore[no-untyped-def]  # fastcore would take annotations for types to cast to
    return classes_of(row["label"])


def _by_split(table: pd.DataFrame) -> tuple[list[int], list[int]]:
    return tuple(np.flatnonzero(table["split"] == name).tolist() for name in ("train", "valid"))  # type: ignore[return-value]


def _augmentation(recipe: Recipe) -> list[Transform]:
    augment = recipe.augment
    if is_still(augment):
        return [Mirror()] if augment.flip else []
    changes = aug_transforms(
        do_flip=augment.flip,
        max_rotate=augment.rotate,
        max_zoom=augment.zoom,
        max_lighting=augment.lighting,
        max_warp=augment.warp,
        p_affine=augment.probability,
        p_lighting=augment.probability,
        **({} if augment.crop == 1 else {"size": recipe.image_size, "min_scale": augment.crop}),
    )
    return [OnTraining(changes), Whole(recipe.image_size)]


def is_still(augment: Augment) -> bool:
    """Whether photos are changed in no other way than mirroring."""
    return augment.rotate == augment.lighting == augment.warp == 0 and augment.zoom == augment.crop == 1


# ---- photos decoded once --------------------------------------------------------------------------------------------


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


def _slice(loader: TfmdDL, dls: DataLoaders, rows: pd.DataFrame) -> None:
    """Lets a loader over these rows of the table cut its batches from the decoded photos, where there are any."""
    if dls.decoded is None:
        return
    chosen = torch.tensor([dls.decoded.rows[path] for path in rows["path"]])
    vars(loader.dataset)["slices"] = Slices(dls.decoded.pixels, chosen, targets_of(dls, rows), TensorImage)
