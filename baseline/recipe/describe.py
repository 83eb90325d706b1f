"""Parts of a recipe as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from baseline.recipe.schema import Stage

__all__ = ["describe_schedule", "describe_trained", "format_lr"]


def format_lr(lr: Any) -> str:
    """Format a learning rate, or a (first, last) pair; 0 is that of a probe, which takes no steps.

    >>> format_lr(0.01), format_lr([1e-5, 1e-3]), format_lr(0.0)
    ('1.0e-02', '1.0e-05 to 1.0e-03', 'none')
    """
    if not lr:
        return "none"
    return f"{lr[0]:.1e} to {lr[1]:.1e}" if isinstance(lr, tuple | list) else f"{lr:.1e}"


def describe_trained(trains: Any) -> str:
    """What a stage trains, as text.

    >>> describe_trained("head"), describe_trained(5), describe_trained(0.55)
    ('the head, body frozen', 'the last 5 layer groups', 'the last 55% of the layer groups')
    """
    if isinstance(trains, str):
        names = {"probe": "the head by logistic regression", "head": "the head, body frozen", "all": "all layers"}
        return names[trains]
    return (
        f"the last {trains:.0%} of the layer groups" if isinstance(trains, float) else f"the last {trains} layer groups"
    )


def describe_schedule(stage: Mapping[str, Any]) -> str:
    """Optimizer and schedule of a stage as text, where they differ from the defaults.

    >>> describe_schedule({"optimizer": "sgd", "schedule": "plateau"}), describe_schedule({"optimizer": "adam"})
    ('optimizer sgd, schedule plateau', '')
    """
    defaults = {f.name: f.default for f in dataclasses.fields(Stage)}
    values = {key: stage.get(key, defaults[key]) for key in ("optimizer", "schedule")}
    return ", ".join(f"{key} {value}" for key, value in values.items() if value != defaults[key])
