"""TODO."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from baseline.files import to_json

__all__ = ["diff_recipes", "flatten", "flatten_plain"]


IGNORED_FIELDS = ("name", "title", "expected", "presets", "preset", "log", "cache_gb", "workers")
"""Of a recipe; they change no number, and may be others when a run or an experiment goes on."""


def flatten_plain(values: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Nested values under dotted names, as loggers take them: numbers, flags and text.

    >>> flatten_plain({"seed": 0, "augment": {"flip": True}, "tta": (), "stages": [{"lr": (1e-4, 1e-3)}]})
    {'seed': 0, 'augment.flip': True, 'tta': 'none', 'stages.1.lr': '0.0001, 0.001'}
    """

    def told(value: Any) -> bool | int | float | str:
        if isinstance(value, list | tuple):
            return ", ".join(map(str, value)) or "none"
        return value if isinstance(value, bool | int | float | str) else str(value)

    return {name: told(value) for name, value in flatten(values).items()}


def flatten(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested values under dotted names, tables in lists by their number from 1.

    >>> flatten({"tta": [], "augment": {"flip": True}, "stages": [{"lr": (1e-4, 1e-3)}]})
    {'tta': [], 'augment.flip': True, 'stages.1.lr': (0.0001, 0.001)}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
            value = {str(number): each for number, each in enumerate(value, 1)}
        found |= flatten(value, f"{before}{key}.") if isinstance(value, Mapping) else {before + key: value}
    return found


def diff_recipes(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two recipes, as `Recipe.as_dict` or a manifest tells them, and may change numbers.

    >>> diff_recipes({"seed": 0, "augment": {"flip": True}}, {"seed": 1, "augment": {"flip": True}, "log": ["csv"]})
    {'seed': (0, 1)}
    """
    one, two = (
        flatten({key: value for key, value in json.loads(to_json(each)).items() if key not in IGNORED_FIELDS})
        for each in (begun, wanted)
    )
    return {key: (one.get(key), two.get(key)) for key in (*one, *two) if one.get(key) != two.get(key)}
