"""Image table + recipe -> fastai DataLoaders. Knows images and batches; knows no network but its input.

Images are decoded and resized once, into a file in the cache or, where that takes no more, into at most an eighth of
the machine's memory; their batches are slices of one array (`BatchLoader`). Otherwise fastai reads them from disk, item by
item. Both ways use the same `load_image` and `resize_image`, so both give the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, TransformBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import ColReader, IntToFloatTensor, Normalize
from fastai.torch_core import TensorCategory, TensorImage, TensorMultiCategory
from PIL import Image

from baseline.data.labels import classes_in, label_matrix, split_labels
from baseline.errors import RecipeError
from baseline.progress import Progress
from baseline.vision.augment import IMAGE_TYPES, LoadImage, Resize, batch_transforms
from baseline.vision.decoded import decode_table
from baseline.vision.weights import normalisation

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe
    from baseline.vision.decoded import DecodedImages

__all__ = [
    "BatchLoader",
    "BatchSource",
    "dataloaders",
    "empty_loaders",
    "encode_targets",
    "shard_loader",
    "split_loader",
]

Normalization = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation by colour."""


@dataclass(frozen=True)
class BatchSource:
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


class BatchLoader(TfmdDL):
    """A fastai loader that cuts whole batches where its data set is, or carries, `BatchSource`.

    Shuffling, batch transforms, `new` and `test_dl` are fastai's; a data set without slices is read item by item.
    With `weights`, one a row, an epoch draws as many rows as there are, with replacement, by these weights.
    """

    weights: np.ndarray | None = None
    n: int
    share: tuple[int, int] | None = None
    """Which part of each batch this loader is to give, and of how many; see `shard_loader`."""

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
        slices = self.dataset if isinstance(self.dataset, BatchSource) else vars(self.dataset).get("slices")
        if slices is None:
            yield from super().create_batches(samps)
            return
        for items in self.chunkify(samps):
            yield slices.batch(list(items))


def dataloaders(
    table: pd.DataFrame, recipe: Recipe, *, path: Path | str = ".", progress: Progress | None = None
) -> DataLoaders:
    """fastai DataLoaders over the table's train and valid splits, normalised as the recipe's weights were trained.

    Batches are `TensorImage` N x 3 x image_size x image_size, float32, and `TensorCategory` N, int64, or, with
    `labels = "many"`, `TensorMultiCategory` N x classes, float32, 0 or 1; the vocabulary is the table's classes in
    alphabetical order. Training batches are shuffled and augmented.

    Args:
        table: an image table in which every image has its split.
        recipe: with `arch` and `batch_size` settled (see `baseline.resolve`).
        path: the folder that the Learner may write to.
    """
    progress = progress or Progress()
    table = table.reset_index(drop=True)
    decoded = decode_table(table, recipe, progress)
    dls = _datablock(recipe, classes_in(table, recipe.labels), normalisation(recipe.arch)).dataloaders(
        table[table["split"] != "test"].reset_index(drop=True),
        bs=recipe.batch_size,
        num_workers=0 if decoded else recipe.workers,
        path=Path(path),
    )
    _annotate_loaders(dls, recipe, decoded)
    for loader, name in ((dls.train, "train"), (dls.valid, "valid")):
        _use_decoded(loader, dls, table[table["split"] == name])
    if recipe.balance == "sampler":
        dls.train.weights = _inverse_frequency(table.loc[table["split"] == "train", "label"])
    return dls


def empty_loaders(classes: Sequence[str], recipe: Recipe, normal: Normalization) -> DataLoaders:
    """DataLoaders without images, whose `test_dl` feeds any images to a network as `dataloaders` would.

    Args:
        classes: the vocabulary.
        normal: mean and standard deviation by colour; see `baseline.weights.normalisation`.
    """
    blank = Image.new("RGB", (8, 8))
    table = pd.DataFrame({"path": [blank, blank], "label": classes[0], "split": ["train", "valid"]})
    dls = _datablock(recipe, list(classes), normal).dataloaders(table, bs=64, num_workers=0).new_empty()
    _annotate_loaders(dls, recipe, None)
    return dls


def _annotate_loaders(dls: DataLoaders, recipe: Recipe, decoded: DecodedImages | None) -> None:
    dls.multilabel = recipe.labels == "many"
    dls.valid_ds.tls[0].types[1] = IMAGE_TYPES  # what learn.predict takes
    dls.decoded = decoded


def _inverse_frequency(labels: pd.Series) -> np.ndarray:
    """For each label one over how often it comes."""
    return (1 / labels.map(labels.value_counts())).to_numpy(dtype=float)


def encode_targets(dls: DataLoaders, rows: pd.DataFrame) -> torch.Tensor:
    """The classes of these rows of the table: numbers, N, int64, or with many labels flags, N x classes, float32."""
    if dls.multilabel:
        return torch.from_numpy(label_matrix(rows["label"], dls.vocab)).float()
    index = {name: number for number, name in enumerate(dls.vocab)}
    return torch.tensor([index[label] for label in rows["label"]])


def shard_loader(loader: BatchLoader, at: int, parts: int) -> BatchLoader:
    """A training loader that gives the part `at`, from 0, of each of the other's batches: no image twice, none lost.

    All parts draw the same order, if the loaders' random states are the same.

    Raises:
        RecipeError: if batches cannot be parted evenly, or a part is a single image, of which BatchNorm learns nothing.
    """
    if loader.bs % parts or loader.bs < 2 * parts:
        size = max(2, loader.bs // parts) * parts
        words = "Give" if size > len(loader.dataset) else f"Give --batch-size {size}, or"
        why = f"cannot be parted among {parts} processes" + (", two images each at least" if size > loader.bs else "")
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
    _use_decoded(loader, dls, rows)
    return loader


def _datablock(recipe: Recipe, classes: list[str], normal: Normalization) -> DataBlock:
    many = recipe.labels == "many"
    return DataBlock(
        blocks=(
            TransformBlock(type_tfms=LoadImage(recipe.decoded_size), batch_tfms=IntToFloatTensor),
            MultiCategoryBlock(vocab=classes) if many else CategoryBlock(vocab=classes),
        ),
        get_x=ColReader("path"),
        get_y=_row_labels if many else ColReader("label"),
        splitter=_split_indices,
        item_tfms=Resize(recipe.decoded_size, recipe.resize),
        batch_tfms=[*batch_transforms(recipe), Normalize.from_stats(*normal)],
        dl_type=BatchLoader,
    )


def _row_labels(row):  # type: ignore[no-untyped-def]  # fastcore would take annotations for types to cast to
    return split_labels(row["label"])


def _split_indices(table: pd.DataFrame) -> tuple[list[int], list[int]]:
    return tuple(np.flatnonzero(table["split"] == name).tolist() for name in ("train", "valid"))  # type: ignore[return-value]


def _use_decoded(loader: TfmdDL, dls: DataLoaders, rows: pd.DataFrame) -> None:
    """Lets a loader over these rows of the table cut its batches from the decoded images, where there are any."""
    if dls.decoded is None:
        return
    chosen = torch.tensor([dls.decoded.rows[path] for path in rows["path"]])
    vars(loader.dataset)["slices"] = BatchSource(dls.decoded.pixels, chosen, encode_targets(dls, rows), TensorImage)
