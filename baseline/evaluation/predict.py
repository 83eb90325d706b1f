"""Prediction of images by a Learner, with and without test-time augmentation (TTA), as a prediction table.

The prediction table is a pandas DataFrame with one row per image and these columns:

| column | contents |
|---|---|
| `path`, `label`, `split` | as in the image table; also `group` where that has groups |
| `predicted`, `confidence` | the most probable class, or that of the cut points, and its probability, 0-1 |
| `loss` | negative logarithm of the probability of `label` |
| `plain_predicted`, `plain_confidence`, `plain_loss` | the same without TTA |
| `p_CLASS` ... | probability of each class, 0-1, with TTA; a row sums to 1 |
| `plain_p_CLASS` ... | the same without TTA, only where the recipe's `metric` needs it |

Probabilities are the network's own, uncalibrated: `baseline.calibrate(table, temperature)` calibrates them.

Where an image may have several labels, each class has a probability of its own: `predicted` holds all classes at or
above the threshold, separated by `;`, `confidence` is that of the least certain of these decisions, and `loss` is the
mean over the classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.learner import Learner
from torch import nn

from baseline.evaluation.table import prediction_table
from baseline.metrics.registry import find_metric
from baseline.parallel.distributed import all_gather, rank, world_size
from baseline.progress import Progress
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.dataloaders import split_loader
from baseline.vision.learner import autocast
from baseline.vision.own_loaders import adopt

__all__ = ["augmented_views", "predict", "predict_probabilities"]


CROP_FRACTION = 0.875
"""Side of a crop as a fraction of the image's side."""


def predict(
    learn: Learner,
    table: pd.DataFrame,
    views: tuple[str, ...] = ("flip",),
    splits: tuple[str, ...] = ("valid", "test"),
    progress: Progress | None = None,
    thresholds: Literal["auto", "one"] = "one",
    metric: str = "auto",
    tta_choice: Literal["auto", "always"] = "always",
) -> pd.DataFrame:
    """Return the prediction table (see the module) of the given splits, reading each image once for all its views.

    In distributed runs each process predicts a part, and all of them get the full table.

    Probabilities are the mean over the plain image and its `views`. The views are fixed, so the same network always
    gives the same numbers, unlike fastai's `tta`, which draws random training augmentations.

    Args:
        views: `"flip"` (mirrored left to right), `"five_crops"` (center and corners, 7/8 of the side).
        thresholds: with several labels per image, `"auto"` chooses a threshold for each class on the validation split
            (see `evaluation.thresholds`), unless the loss function has a threshold other than 0.5. They are set on the
            loss function, so that the Learner applies them, and in `attrs["thresholds"]` of the table. With one label,
            it fits cut points for a metric that has them (see `evaluation.cut_points`); they are in
            `attrs["cut_points"]`.
        metric: the recipe's metric; if it needs probabilities, the table also has `plain_p_CLASS`, those without TTA.
        tta_choice: `"auto"` leaves the views out if they are worse on the valid images (see `evaluation.tta_choice`).
            The reason is in `attrs["without_tta"]` of the table, which is empty if they were used.
    """
    progress, dls = progress or Progress(), adopt(learn.dls)
    names = [name for name in splits if (table["split"] == name).any()]
    if "group" in table and not table["group"].notna().any():
        table = table.drop(columns="group")
    total = int(table["split"].isin(names).sum())
    with progress.bar("predicting", total, "images") as bar, ExitStack() as stack:
        outputs: list[tuple[pd.DataFrame, np.ndarray, np.ndarray]] = []
        for name in names:
            rows = table[table["split"] == name].reset_index(drop=True)
            plain: list[torch.Tensor] = []
            mean: list[torch.Tensor] = []
            shard = rows.iloc[rank() :: world_size()]  # empty where there are more processes than images
            for images, _ in split_loader(dls, shard, name) if len(shard) else ():
                inputs = images.as_subclass(torch.Tensor)
                if not outputs and not plain:
                    stack.enter_context(optimize_for_cpu(learn.model.eval(), inputs, trainable=False))
                by_view = predict_probabilities(
                    learn.model, inputs, views, many=dls.multilabel, numbers=autocast(learn)
                )
                plain.append(by_view[0])
                mean.append(by_view.mean(0))
                bar.step(len(images))
            plain_array, mean_array = (
                interleave_rows(all_gather(torch.cat(parts).numpy() if parts else None)) for parts in (plain, mean)
            )
            outputs.append((rows, plain_array, mean_array))
    classes, decided, reason = [str(name) for name in dls.vocab], None, ""
    if tta_choice == "auto" and find_spec("baseline.evaluation.tta_choice"):
        from baseline.evaluation.tta_choice import choose_tta

        threshold = getattr(learn.loss_func, "thresh", 0.5) if dls.multilabel else None
        outputs, reason = choose_tta(outputs, classes, threshold, metric, progress)
    if dls.multilabel:
        from baseline.evaluation.thresholds import decide

        decided = decide(learn, outputs, classes, thresholds, metric, progress)
    tables = [prediction_table(*output, classes, decided, metric=metric) for output in outputs]
    result = pd.concat(tables, ignore_index=True)
    if not dls.multilabel and thresholds == "auto" and find_metric(metric).has_cut_points(len(classes)):
        from baseline.evaluation.cut_points import with_cut_points

        result = with_cut_points(result, np.concatenate([plain for _, plain, _ in outputs]), metric, progress)
    result.attrs["without_tta"] = reason
    result.attrs["thresholds"] = dict(zip(classes, decided, strict=True)) if isinstance(decided, list) else {}
    return result


def interleave_rows(parts: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return the rows of all processes in their original order: process r of n has rows r, r + n, r + 2n and so on."""
    arrays = [part for part in parts if part is not None]
    rows = np.empty((sum(map(len, arrays)), arrays[0].shape[1]))
    for process, array in enumerate(arrays):
        rows[process :: len(parts)] = array
    return rows


def augmented_views(images: torch.Tensor, views: tuple[str, ...]) -> Iterator[torch.Tensor]:
    """Yield the images, N x 3 x H x W, then each view of them, all of the same size."""
    yield images
    if "flip" in views:
        yield images.flip(-1)
    if "five_crops" in views:
        height, width = images.shape[-2:]
        crop_height, crop_width = round(height * CROP_FRACTION), round(width * CROP_FRACTION)
        bottom, right = height - crop_height, width - crop_width
        for top, left in ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)):
            crop = images[..., top : top + crop_height, left : left + crop_width]
            yield F.interpolate(crop, size=(height, width), mode="bicubic", align_corners=False)


@torch.inference_mode()
def predict_probabilities(
    model: nn.Module, images: torch.Tensor, views: tuple[str, ...], *, many: bool, numbers: torch.autocast
) -> torch.Tensor:
    """Return probabilities, views x N x classes, the plain images first, on the CPU.

    They are float64, so that rows sum to 1 to twelve digits.

    Args:
        images: input of the model, N x 3 x H x W.
        many: each class has a probability of its own (sigmoid instead of softmax).
        numbers: autocast context that sets the number format of the forward passes.
    """
    with numbers:
        outputs = [model(view.contiguous(memory_format=torch.channels_last)) for view in augmented_views(images, views)]
    stacked = torch.stack(outputs).cpu().double()  # Apple's GPUs have no float64
    return stacked.sigmoid() if many else stacked.softmax(-1)
