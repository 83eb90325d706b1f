"""Learner + images -> prediction table, plain and with test-time augmentation. Knows probabilities; knows no files.

The prediction table is a pandas DataFrame with one row an image and the columns

| column | holds |
|---|---|
| `path`, `label`, `split` | as in the image table, and `group` where that has groups |
| `predicted`, `confidence` | the most probable class and its probability, 0-1 |
| `loss` | minus the logarithm of the probability of `label` |
| `plain_predicted`, `plain_confidence`, `plain_loss` | the same without test-time augmentation |
| `p_CLASS` ... | the probability of each class, 0-1, with test-time augmentation; a row sums to 1 |

Probabilities are as the network gives them, uncalibrated: `baseline.calibrate(table, temperature)` calibrates them.

Where an image has many labels each class has a probability of its own: `predicted` holds all from the threshold on, with
`;` between, `confidence` is how sure the least sure of these decisions is, and `loss` the mean over the classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.learner import Learner
from torch import nn

from baseline.evaluation.table import prediction_table
from baseline.parallel.distributed import all_gather, rank, world_size
from baseline.progress import Progress
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.dataloaders import split_loader
from baseline.vision.learner import autocast

__all__ = ["augmented_views", "predict", "predict_probabilities"]


CROP_FRACTION = 0.875


def predict(
    learn: Learner,
    table: pd.DataFrame,
    views: tuple[str, ...] = ("flip",),
    splits: tuple[str, ...] = ("valid", "test"),
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The prediction table (see the module) of the given splits, each image read once and seen in every view.

    Several processes see a part each, and all get the whole table.

    Probabilities are the mean over the plain image and its `views`; the views are fixed, so that the same network
    gives the same numbers every time, unlike fastai's `tta`, which draws training augmentations.

    Args:
        views: `"flip"` (mirrored left to right), `"five_crops"` (centre and corners, 7/8 of the side).
    """
    progress = progress or Progress()
    parts = [name for name in splits if (table["split"] == name).any()]
    if "group" in table and not table["group"].notna().any():
        table = table.drop(columns="group")
    total = int(table["split"].isin(parts).sum())
    with progress.bar("predicting", total, "images") as bar, ExitStack() as stack:
        tables: list[pd.DataFrame] = []
        for name in parts:
            rows = table[table["split"] == name].reset_index(drop=True)
            plain: list[torch.Tensor] = []
            mean: list[torch.Tensor] = []
            own = rows.iloc[rank() :: world_size()]  # none, where there are more processes than images
            for images, _ in split_loader(learn.dls, own, name) if len(own) else ():
                if not tables and not plain:
                    stack.enter_context(
                        optimize_for_cpu(learn.model.eval(), images.as_subclass(torch.Tensor), learns=False)
                    )
                inputs = images.as_subclass(torch.Tensor)
                by_view = predict_probabilities(
                    learn.model, inputs, views, many=learn.dls.many, numbers=autocast(learn)
                )
                plain.append(by_view[0])
                mean.append(by_view.mean(0))
                bar.step(len(images))
            threshold = learn.loss_func.thresh if learn.dls.many else None
            each = tuple(
                interleave_rows(all_gather(torch.cat(part).numpy() if part else None)) for part in (plain, mean)
            )
            tables.append(prediction_table(rows, each[0], each[1], classes=list(learn.dls.vocab), threshold=threshold))
    return pd.concat(tables, ignore_index=True)


def interleave_rows(parts: Sequence[np.ndarray | None]) -> np.ndarray:
    """Rows of each process, every so many-th, in their order again."""
    each = [part for part in parts if part is not None]
    whole = np.empty((sum(map(len, each)), each[0].shape[1]))
    for at, part in enumerate(each):
        whole[at :: len(parts)] = part
    return whole


def augmented_views(images: torch.Tensor, views: tuple[str, ...]) -> Iterator[torch.Tensor]:
    """The images, N x 3 x H x W, and then each view of them, all of the same size."""
    yield images
    if "flip" in views:
        yield images.flip(-1)
    if "five_crops" in views:
        height, width = images.shape[-2:]
        high, wide = round(height * CROP_FRACTION), round(width * CROP_FRACTION)
        bottom, right = height - high, width - wide
        for top, left in ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)):
            crop = images[..., top : top + high, left : left + wide]
            yield F.interpolate(crop, size=(height, width), mode="bicubic", align_corners=False)


@torch.inference_mode()
def predict_probabilities(
    model: nn.Module, images: torch.Tensor, views: tuple[str, ...], *, many: bool, numbers: torch.autocast
) -> torch.Tensor:
    """Views x N x classes, the plain images first, on the CPU; float64 so that rows sum to 1 to twelve digits.

    Args:
        images: what the model takes, N x 3 x H x W.
        many: each class has a probability of its own.
        numbers: the number format of the passes.
    """
    with numbers:
        outputs = [model(view.contiguous(memory_format=torch.channels_last)) for view in augmented_views(images, views)]
    stacked = torch.stack(outputs).double()
    return (stacked.sigmoid() if many else stacked.softmax(-1)).cpu()
