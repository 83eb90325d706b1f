"""TODO."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baseline.errors import RecipeError, unknown_name
from baseline.recipe.schema import Recipe, field_names

__all__ = ["load_recipe", "recipe_names"]


def recipe_from_dict(values: Mapping[str, Any], name: str) -> Recipe:
    """A recipe from plain values as TOML or JSON gives them.

    Raises:
        RecipeError: naming every unknown key, wrong type and impossible value.
    """
    values = {("stages" if key == "stage" else "presets" if key == "preset" and isinstance(value, dict) else key): value
              for key, value in values.items()}  # fmt: skip
    presets = values.get("presets") or {}
    if isinstance(presets, dict):
        values["presets"] = {
            preset: {("stages" if key == "stage" else key): value for key, value in changes.items()}
            for preset, changes in presets.items()
            if isinstance(changes, dict)
        }
    faults = [_unknown_key_message(key) for key in values if key not in field_names(Recipe)]
    known = {key: value for key, value in values.items() if key in field_names(Recipe)}
    try:
        recipe = Recipe(**{**known, "name": known.get("name") or name})
        for preset in recipe.presets:
            recipe.with_preset(preset)
    except RecipeError as error:
        raise RecipeError("; ".join([*faults, str(error)])) if faults else error from None
    if faults:
        raise RecipeError(
            f"Recipe '{name}': {'; '.join(faults)}. Known keys: {', '.join(sorted(field_names(Recipe)))}."
        )
    return recipe


def recipes_folder() -> Path:
    """Where the named recipes lie: beside this file in an installed package, at the top of the checkout otherwise."""
    beside = Path(__file__).parents[1] / "recipes"
    return beside if beside.is_dir() else Path(__file__).parents[2] / "recipes"


def recipe_names() -> list[str]:
    """The names that `load_recipe` knows, sorted.

    >>> "cifar10" in recipe_names()
    True
    """
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def load_recipe(recipe: str | Path) -> Recipe:
    """A named recipe, one's own TOML file, or the recipe that a run's `manifest.json` kept.

    >>> load_recipe("cifar10").data
    'cifar10'

    Raises:
        RecipeError: if there is none of that name, the file cannot be read, or its values cannot be used.
    """
    path = Path(recipe)
    if path.suffix not in (".toml", ".json"):
        if str(recipe) not in recipe_names():
            raise RecipeError(unknown_name("recipe", str(recipe), recipe_names()))
        path = recipes_folder() / f"{recipe}.toml"
    values = read_values(path)
    return recipe_from_dict(values.get("recipe", values) if path.suffix == ".json" else values, path.stem)


def read_values(path: Path) -> dict[str, Any]:
    """The values of a TOML or JSON file.

    Raises:
        RecipeError: if it cannot be read; line and column are named.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise RecipeError(f"{path} is not valid {path.suffix[1:].upper()}: {error}.") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds a {type(values).__name__}; a table of keys and values was needed.")
    return values


def _unknown_key_message(key: str) -> str:
    return unknown_name("key", key, field_names(Recipe), limit=0).split(" Known:")[0].rstrip(".")
