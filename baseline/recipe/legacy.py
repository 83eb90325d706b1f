"""Reads what earlier versions wrote: recipes before they had groups, and the fields of `model.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["upgrade_model_config", "upgrade_recipe"]

RENAMED = {
    "images": "image_dir",
    "photos_per_class": "images_per_class",
    "labels": "task",
    "balance": "class_balance",
    "valid_share": "valid_fraction",
    "test_share": "test_fraction",
    "log": "loggers",
}

VALUES = {"task": {"one": "single", "many": "multilabel"}, "batch_norm": {"still": "frozen", "moving": "train"}}

REMOVED = ("compile", "keep_if", "keep_model", "keep_above")
"""Fields that recipes no longer have. A run that used a second model wrote its images into `split.csv`."""


def upgrade_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe under today's names; those of a recipe with groups are returned as they are.

    >>> upgrade_recipe({"labels": "many", "scratch": True, "stages": [{"trains": "all", "batch_norm": "moving"}]})
    {'task': 'multilabel', 'pretrained': False, 'stages': [{'trains': 'all', 'batch_norm': 'train'}]}
    """
    if isinstance(values.get("model"), Mapping):
        return _mark_stages(dict(values), values.get("training", {}))
    upgraded: dict[str, Any] = {}
    for key, value in values.items():
        if key == "scratch":
            upgraded["pretrained"] = not value
        elif key in ("stages", "stage") and isinstance(value, list | tuple):
            upgraded[key] = [_upgrade_stage(stage) for stage in value]
        elif key == "presets" and isinstance(value, Mapping):
            upgraded[key] = {
                name: upgrade_recipe(changes) if isinstance(changes, Mapping) else changes
                for name, changes in value.items()
            }
        elif key not in REMOVED:
            name = RENAMED.get(key, key)
            upgraded[name] = _upgrade_value(name, value)
    return _mark_stages(upgraded, upgraded)


def _mark_stages(recipe: dict[str, Any], training: Any) -> dict[str, Any]:
    """Say `augment = false` where a recorded head stage, from before stages said so, ran on cached features."""
    freeze = training.get("freeze", "features") if isinstance(training, Mapping) else ""
    stages = recipe.get("stages")
    if freeze == "features" and isinstance(stages, list | tuple):
        recipe["stages"] = [_mark_stage(stage) for stage in stages]
    return recipe


def _mark_stage(stage: Any) -> Any:
    is_old = isinstance(stage, Mapping) and "batch_norm" in stage and "augment" not in stage
    return {**stage, "augment": False} if is_old and stage.get("trains") == "head" else stage


def upgrade_model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a `model.json` with `task`, which was `labels` up to format 2; nothing is checked.

    >>> upgrade_model_config({"format": 2, "labels": "many"})
    {'format': 2, 'task': 'multilabel'}
    >>> upgrade_model_config({"format": 3, "task": "single"})
    {'format': 3, 'task': 'single'}
    """
    if config.get("format") not in (1, 2):
        return dict(config)
    upgraded = {name: value for name, value in config.items() if name != "labels"}
    return upgraded | {"task": _upgrade_value("task", config.get("labels", "one"))}  # the first folders did not say


def _upgrade_stage(stage: Any) -> Any:
    if not isinstance(stage, Mapping):
        return stage
    return {key: _upgrade_value(key, value) for key, value in stage.items()}


def _upgrade_value(name: str, value: Any) -> Any:
    return VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value
