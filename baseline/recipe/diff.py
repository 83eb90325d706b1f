"""Compares recipes: what differs between two of them and may change the result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from baseline.files import to_json
from baseline.recipe.legacy import upgrade_recipe
from baseline.recipe.schema import FLAT_NAMES, LEAVES

__all__ = ["diff_recipes", "flat_recipe", "flatten", "flatten_plain", "flatten_recipe"]

IGNORED_FIELDS = ("name", "title", "expected", "presets", "preset", "options")
"""Fields of a recipe that cannot change the result, and may be others when a run or an experiment is resumed."""


def flatten_plain(values: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return nested values under dotted names, as loggers take them: numbers, flags and text.

    >>> flatten_plain({"seed": 0, "augment": {"flip": True}, "tta": (), "stages": [{"lr": (1e-4, 1e-3)}]})
    {'seed': 0, 'augment.flip': True, 'tta': 'none', 'stages.1.lr': '0.0001, 0.001'}
    """

    def plain(value: Any) -> bool | int | float | str:
        if isinstance(value, list | tuple):
            return ", ".join(map(str, value)) or "none"
        return value if isinstance(value, bool | int | float | str) else str(value)

    return {name: plain(value) for name, value in flatten(values).items()}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names; tables in lists are numbered from 1.

    >>> flatten({"tta": [], "augment": {"flip": True}, "stages": [{"lr": (1e-4, 1e-3)}]})
    {'tta': [], 'augment.flip': True, 'stages.1.lr': (0.0001, 0.001)}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(number): item for number, item in enumerate(value, 1)}
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def flatten_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe, as a manifest of any version holds it, under flat names.

    >>> flatten_recipe({"seed": 0, "model": {"image_size": 128}, "split": {"method": "random"}})
    {'seed': 0, 'image_size': 128, 'split': 'random'}
    """
    names = {f"{group}.{leaf}": flat for flat, (group, leaf) in LEAVES.items()}
    return {names.get(key, key): value for key, value in flatten(upgrade_recipe(recipe)).items()}


def flat_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe, as a manifest of any version holds it, under flat names, without its groups.

    >>> flat_recipe({"seed": 0, "model": {"image_size": 128}, "augment": {"flip": True}})
    {'seed': 0, 'image_size': 128, 'augment': {'flip': True}}
    """
    flat: dict[str, Any] = {}
    for key, value in upgrade_recipe(recipe).items():
        names = FLAT_NAMES.get(key)
        if names and isinstance(value, Mapping):
            flat |= {names.get(leaf, leaf): item for leaf, item in value.items()}
        else:
            flat[key] = value
    return flat


def diff_recipes(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two recipes and may change the result, by flat name: (first, second) value.

    >>> one = {"seed": 0, "augment": {"flip": True}}
    >>> two = {"seed": 1, "augment": {"flip": True}, "options": {"workers": 2}}
    >>> diff_recipes(one, two)
    {'seed': (0, 1)}
    """
    one, two = (
        flatten_recipe({key: value for key, value in json.loads(to_json(recipe)).items() if key not in IGNORED_FIELDS})
        for recipe in (first, second)
    )
    return {key: (one.get(key), two.get(key)) for key in (*one, *two) if one.get(key) != two.get(key)}
