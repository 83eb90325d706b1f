"""DataLoaders without images, for a network that only predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from fastcore.foundation import L
from PIL import Image

from baseline.vision.dataloaders import annotate_loaders, make_datablock
from baseline.vision.own_parts import named_errors, without_setup

if TYPE_CHECKING:
    from fastai.data.core import DataLoaders

    from baseline.recipe.schema import Recipe
    from baseline.vision.dataloaders import Normalization

__all__ = ["empty_loaders"]


def empty_loaders(
    classes: Sequence[str], recipe: Recipe, normal: Normalization, item_tfms: Any = None, batch_tfms: Any = None
) -> DataLoaders:
    """Return DataLoaders without images, whose `test_dl` prepares images for a network as `dataloaders` does.

    Args:
        classes: the vocabulary.
        recipe: the recipe of the network.
        normal: mean and standard deviation per color channel; see `baseline.vision.weights.normalization`.
        item_tfms: transforms of the user's, as in `dataloaders`; `batch_tfms` likewise. They are not set up again.
    """
    blank = Image.new("RGB", (8, 8))
    table = pd.DataFrame({"path": [blank, blank], "label": classes[0], "split": ["train", "valid"]})
    with without_setup(item_tfms) as item_copies, without_setup(batch_tfms) as batch_copies:
        block = make_datablock(recipe, list(classes), normal, item_copies, batch_copies)
        with named_errors([("transform", t) for t in (*L(item_copies), *L(batch_copies))], "Prediction"):
            dls = block.dataloaders(table, bs=64, num_workers=0).new_empty()
    annotate_loaders(dls, recipe, None)
    return dls
