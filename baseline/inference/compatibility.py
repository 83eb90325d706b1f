"""Check that models can predict together, and that they get the transforms that they were trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastai.data.transforms import Normalize

from baseline.data.labels import order_classes
from baseline.errors import OutputError, quoted_list
from baseline.vision.own_parts import OwnParts

if TYPE_CHECKING:
    from baseline.inference.model import Model

__all__ = ["check_compatible", "check_transforms", "with_statistics"]


def with_statistics(parts: OwnParts, config: Mapping[str, Any]) -> list[Any] | None:
    """Return the batch transforms; `Normalize()` without statistics gets those that the run has computed."""
    if parts.batch_tfms is None:
        return None
    return [
        Normalize.from_stats(config["mean"], config["std"]) if isinstance(t, Normalize) and t.mean is None else t
        for t in parts.batch_tfms
    ]


def check_transforms(folder: str | Path, config: Mapping[str, Any], given: OwnParts) -> None:
    """Raise an `OutputError` if the transforms are not those that the model was trained with."""
    needed, names = config.get("transforms", []), given.prediction_transforms()
    if needed == names:
        return
    if not needed:
        raise OutputError(f"{folder} was trained without {', '.join(names)}. Load it without item_tfms and batch_tfms.")
    if config.get("image_shape"):
        raise OutputError(
            f"{folder} was trained on your DataLoaders, whose transforms a model folder cannot hold. Predict with the "
            "Learner of the run, or train on images with item_tfms and batch_tfms."
        )
    raise OutputError(
        f"{folder} was trained with transforms of your own, which a model folder cannot hold: {', '.join(needed)}. "
        "Pass them to baseline.load as item_tfms and batch_tfms, or predict with the Learner of the run."
    )


def check_compatible(members: Sequence[Model]) -> None:
    """Raise an `OutputError` if the models cannot be averaged."""
    first = members[0]
    folders: dict[str, Path] = {}
    for member in members:
        pair = f"{member.folder} and {first.folder}"
        if member.classes != first.classes:
            difference = quoted_list(order_classes(set(member.classes) ^ set(first.classes))) or "their order"
            raise OutputError(
                f"{pair} do not have the same classes: they differ in {difference}. Pass runs of the same classes."
            )
        for field in ("task", *(["threshold"] if first.multilabel else [])):
            if (value := member.config[field]) != (other := first.config[field]):
                raise OutputError(
                    f"{pair} differ in {field} ({value} and {other}) and cannot be averaged. Leave one of them out."
                )
        if member.identity in folders:
            raise OutputError(
                f"{member.folder} is included twice, also as {folders[member.identity]}. Leave one of them out."
            )
        folders[member.identity] = member.folder
