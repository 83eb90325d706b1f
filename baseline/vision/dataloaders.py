"""fastai DataLoaders over an image table.

Image table + recipe -> DataLoaders. Images are decoded and resized once, into a file in the cache or, if the cache has
no room for them, into at most an eighth of the machine's memory; batches are then slices of one array (`BatchLoader`).
If neither has room, fastai reads the images from disk, item by item. Both use the same `load_image` and `resize_image`,
so both give the same pixels. This module knows images and batches; it knows nothing of the network but its input.
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
from fastcore.foundation import L

from baseline.data.labels import classes_in, label_matrix, split_labels
from baseline.errors import DataError, RecipeError
from baseline.progress import Progress
from baseline.vision.augment import IMAGE_TYPES, LoadImage, Resize, batch_transforms, own_transforms
from baseline.vision.decoded import decode_table
from baseline.vision.own_loaders import adopt, is_own, own_split_loader
from baseline.vision.own_parts import OwnParts, keep_repeated, named_errors
from baseline.vision.weights import normalization

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe
    from baseline.vision.decoded import DecodedImages

__all__ = ["BatchLoader", "BatchSource", "dataloaders", "encode_targets", "shard_loader", "split_loader"]  # fmt: skip

Normalization = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation per color channel."""


@dataclass(frozen=True)
class BatchSource:
    """Items in memory, from which whole batches are sliced: item `i` is `inputs[rows[i]]`, `targets[i]`.

    With `views` above 1, `inputs` stacks that many arrays, each with one view of all items, and every item is taken
    from one of them at random.
    """

    inputs: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    kind: type[torch.Tensor]
    """Type of a batch of inputs before the batch transforms: `TensorImage`, or a plain tensor."""
    views: int = 1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = self.batch([item])
        return inputs[0], targets[0]

    def batch(self, items: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets of the items."""
        indices = torch.as_tensor(items)
        rows = self.rows[indices]
        if self.views > 1:
            rows = rows + len(self.rows) * torch.randint(self.views, rows.shape, device=rows.device)
        if self.inputs.ndim == 4 and self.inputs.is_contiguous(memory_format=torch.channels_last):
            # keep the batch that way
            inputs = self.inputs.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)
        else:
            inputs = self.inputs[rows]
        if inputs.dtype == torch.float16:  # stored so to save memory
            inputs = inputs.float()
        kind = TensorMultiCategory if self.targets.is_floating_point() else TensorCategory
        return inputs.as_subclass(self.kind), kind(self.targets[indices])


class BatchLoader(TfmdDL):
    """A fastai loader that slices whole batches if its dataset is, or has as `batch_source`, a `BatchSource`.

    Shuffling, batch transforms, `new` and `test_dl` are fastai's; any other dataset, and one whose items have
    transforms besides the recipe's own, is read item by item. With `weights`, one per row, an epoch draws as many rows
    as there are, with replacement, by these weights.
    """

    weights: np.ndarray | None = None
    n: int
    shard: tuple[int, int] | None = None
    """Index and number of shards, if this loader gives a part of each batch; see `shard_loader`."""

    def get_idxs(self) -> list[int]:
        if self.shard is None:
            return self._all_idxs()
        index, shards = self.shard
        shard_length, self.n = self.n, len(self.dataset)
        indices, self.n = self._all_idxs(), shard_length
        size = self.bs * shards
        starts = range(0, shard_length * shards, size)
        return [i for start in starts for i in indices[start : start + size][index::shards]]

    def _all_idxs(self) -> list[int]:
        if self.weights is None or not self.shuffle:
            return super().get_idxs()
        probabilities = self.weights / self.weights.sum()
        return np.random.choice(self.n, self.n, p=probabilities).tolist()

    def create_batches(self, samps: Iterator[int]) -> Iterator[Any]:
        source = self.dataset if isinstance(self.dataset, BatchSource) else vars(self.dataset).get("batch_source")
        if source is None or own_transforms([*self.after_item.fs, *self.before_batch.fs]):
            yield from super().create_batches(samps)
            return
        for items in self.chunkify(samps):
            yield source.batch(list(items))


def dataloaders(
    table: pd.DataFrame,
    recipe: Recipe,
    *,
    item_tfms: Any = None,
    batch_tfms: Any = None,
    path: Path | str = ".",
    progress: Progress | None = None,
) -> DataLoaders:
    """Return fastai DataLoaders over the table's train and valid splits.

    Inputs are `TensorImage`, N x 3 x image_size x image_size, float32, normalized as the recipe's weights expect.
    Targets are `TensorCategory`, N, int64, or, with `task = "multilabel"`, `TensorMultiCategory`, N x classes, float32,
    0 or 1. The vocabulary is the table's classes in order (`classes_in`). Training batches are shuffled and augmented.

    Args:
        table: an image table in which every image has a split.
        recipe: a recipe with `arch` and `batch_size` resolved (see `baseline.resolve`).
        item_tfms: transforms of your own for each image, as in fastai's `DataBlock`: before the image becomes a square
            of the recipe's size, in training, validation and prediction. Images are then read again in every epoch.
        batch_tfms: transforms of your own for batches, as in fastai's `DataBlock`, in place of the recipe's
            augmentation. `Normalize` is added unless it is among them.
        path: folder that the Learner may write to.
        progress: receives messages and progress bars.
    """
    progress, parts = progress or Progress(), OwnParts(item_tfms, batch_tfms)
    item_tfms, batch_tfms = parts.item_tfms, parts.batch_tfms
    table = table.reset_index(drop=True)
    decoded = None if item_tfms else decode_table(table, recipe, progress)
    block = make_datablock(
        recipe, classes_in(table, recipe.data.task), normalization(recipe.model.arch), item_tfms, batch_tfms
    )
    transforms = [("transform", transform) for transform in (*L(item_tfms), *L(batch_tfms))]
    with named_errors(transforms, "First image"):
        dls = block.dataloaders(
            table[table["split"] != "test"].reset_index(drop=True),
            bs=recipe.training.batch_size,
            num_workers=0 if decoded else recipe.options.workers,
            path=Path(path),
        )
    annotate_loaders(dls, recipe, decoded)
    dls.own_batch_tfms = batch_tfms is not None
    for loader, name in ((dls.train, "train"), (dls.valid, "valid")):
        _use_decoded(loader, dls, table[table["split"] == name])
    if recipe.training.class_balance == "sampler":
        dls.train.weights = _inverse_frequency(table.loc[table["split"] == "train", "label"])
    return dls


def annotate_loaders(dls: DataLoaders, recipe: Recipe, decoded: DecodedImages | None) -> None:
    dls.multilabel = recipe.data.task == "multilabel"
    dls.valid_ds.tls[0].types[1] = IMAGE_TYPES  # inputs of learn.predict
    dls.valid_ds.tls[1].types[0] = (pd.Series, str, Path)  # what LabelReader takes
    dls.decoded = decoded


def _inverse_frequency(labels: pd.Series) -> np.ndarray:
    """Return the inverse of each label's frequency."""
    return (1 / labels.map(labels.value_counts())).to_numpy(dtype=float)


def encode_targets(dls: DataLoaders, rows: pd.DataFrame) -> torch.Tensor:
    """Return the targets of table rows: class indices, N, int64, or, if multi-label, 0 or 1, N x classes, float32."""
    if dls.multilabel:
        return torch.from_numpy(label_matrix(rows["label"], list(map(str, dls.vocab)))).float()
    index = {str(name): number for number, name in enumerate(dls.vocab)}
    return torch.tensor([index[label] for label in rows["label"]])


def shard_loader(loader: BatchLoader, index: int, shards: int) -> BatchLoader:
    """Return a training loader that gives one part of each of the loader's batches, for one of several processes.

    No image is used twice and none is lost: the parts have the same order if the loaders' random states are the same.

    Args:
        loader: the loader to split.
        index: index of the part, from 0.
        shards: number of parts.

    Raises:
        RecipeError: if batches cannot be split evenly, or a part is a single image, from which BatchNorm cannot learn.
    """
    if loader.bs % shards or loader.bs < 2 * shards:
        size = max(2, loader.bs // shards) * shards
        remedy = "Use" if size > len(loader.dataset) else f"Pass --batch-size {size}, or"
        problem = f"cannot be split evenly among {shards} processes"
        problem += ", with at least two images each" if size > loader.bs else ""
        raise RecipeError(f"Batches of {loader.bs} {problem}. {remedy} fewer --processes.")
    state = loader.rng.getstate()
    shard = loader.new(bs=loader.bs // shards)
    shard.weights, shard.shard = loader.weights, (index, shards)
    shard.n = len(loader) * shard.bs
    shard.rng.setstate(state)
    return shard


def split_loader(dls: DataLoaders, table: pd.DataFrame, split: str) -> TfmdDL:
    """Return a loader over one split of the table: in the table's order, not augmented, including the last batch."""
    rows = table[table["split"] == split].reset_index(drop=True)
    if is_own(dls):
        return own_split_loader(adopt(dls), rows)
    loader = dls.test_dl(rows, with_labels=True, bs=max(dls.train.bs, 64))
    _use_decoded(loader, dls, rows)
    return loader


def make_datablock(
    recipe: Recipe, classes: list[str], normal: Normalization, item_tfms: Any = None, batch_tfms: Any = None
) -> DataBlock:
    many = recipe.data.task == "multilabel"
    resize = Resize(recipe.decoded_size, recipe.model.resize)
    load = LoadImage(0 if item_tfms else recipe.decoded_size, recipe.data.value_range)
    batch = batch_transforms(recipe) if batch_tfms is None else [*L(batch_tfms)]
    is_normalized = any(isinstance(transform, Normalize) for transform in batch)
    block = DataBlock(
        blocks=(
            TransformBlock(type_tfms=load, batch_tfms=IntToFloatTensor),
            MultiCategoryBlock(vocab=classes) if many else CategoryBlock(vocab=classes, sort=False),
        ),
        get_x=ColReader("path"),
        get_y=LabelReader(classes, many),
        splitter=_split_indices,
        item_tfms=[*L(item_tfms), resize],
        batch_tfms=[*batch, *([] if is_normalized else [Normalize.from_stats(*normal)])],
        dl_type=BatchLoader,
    )
    block.item_tfms = keep_repeated(block.item_tfms, item_tfms)
    block.batch_tfms = keep_repeated(block.batch_tfms, batch_tfms)
    return block


class LabelReader:
    """The label of a table row, or of a path by its folder, which `test_dl(paths, with_labels=True)` asks for.

    Raises:
        DataError: if the folder of a path is not named after a class.
    """

    def __init__(self, classes: Sequence[str], many: bool) -> None:
        self.classes, self.many = classes, many

    def __call__(self, row):  # type: ignore[no-untyped-def]  # fastcore would cast to annotated types
        if isinstance(row, str | Path):
            label = Path(row).parent.name
            if label not in self.classes:
                raise DataError(
                    f"{row} has no label: its folder is not named after a class. Pass a DataFrame with the columns "
                    "path and label, or leave with_labels out."
                )
        else:
            label = row["label"]
        return split_labels(label) if self.many else label


def _split_indices(table: pd.DataFrame) -> tuple[list[int], list[int]]:
    return tuple(np.flatnonzero(table["split"] == name).tolist() for name in ("train", "valid"))  # type: ignore[return-value]


def _use_decoded(loader: TfmdDL, dls: DataLoaders, rows: pd.DataFrame) -> None:
    """Make a loader over these rows slice its batches from the decoded images, if there are any."""
    if dls.decoded is None:
        return
    indices = torch.tensor([dls.decoded.rows[path] for path in rows["path"]])
    targets = encode_targets(dls, rows)
    vars(loader.dataset)["batch_source"] = BatchSource(dls.decoded.pixels, indices, targets, TensorImage)
