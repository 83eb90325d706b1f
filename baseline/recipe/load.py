"""Reads recipes: the named ones, a TOML file, or the recipe that a run's manifest holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baseline.errors import MAX_LISTED, RecipeError, closest_name, unknown_name
from baseline.files import manifest_format, read_values
from baseline.recipe.legacy import upgrade_recipe
from baseline.recipe.schema import Recipe, known_names, locate

__all__ = ["load_recipe", "recipe_from_dict", "recipe_names"]


def recipe_from_dict(values: Mapping[str, Any], name: str = "mine") -> Recipe:
    """Return a recipe from plain values as TOML or JSON gives them.

    Args:
        values: fields by their flat names (`image_size`), or in tables by group (`model`).
        name: the recipe's name where the values have none.

    Raises:
        RecipeError: naming each unknown key, wrong type and value that cannot be used.
    """
    if not isinstance(values, Mapping):
        raise RecipeError(f"Recipe '{name}' is {values!r:.200}; a table of keys and values was needed.")
    values = {_TABLES.get(key, key) if isinstance(value, list | dict) else key: value for key, value in values.items()}
    presets = values.get("presets") or {}
    if isinstance(presets, dict):
        values["presets"] = {
            preset: {("stages" if key == "stage" else key): value for key, value in changes.items()}
            for preset, changes in presets.items()
            if isinstance(changes, dict)
        }
    unknown = dict.fromkeys(key for key, value in values.items() if not locate(key, value)[0])
    faults = [closest_name("key", key, known_names()).rstrip(".") for key in list(unknown)[:MAX_LISTED]]
    known = {key: value for key, value in values.items() if key not in unknown}
    try:
        recipe = Recipe(name=name).changed(**{**known, "name": known.get("name") or name})
        for preset in recipe.presets:
            recipe.with_preset(preset)
    except RecipeError as error:
        raise RecipeError("; ".join([*faults, str(error)])) if faults else error from None
    if faults:
        raise RecipeError(f"Recipe '{name}': {'; '.join(faults)}. Known keys: {', '.join(known_names())}.")
    return recipe


_TABLES = {"stage": "stages", "preset": "presets"}
"""Names of tables in TOML, where `[[stage]]` and `[preset.quick]` read better than the names of the fields."""


def recipes_folder() -> Path:
    """The folder of the named recipes: inside an installed package, at the top of a checkout otherwise."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def recipe_names() -> list[str]:
    """Names that `load_recipe` knows, sorted.

    >>> "cifar10" in recipe_names()
    True
    """
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def load_recipe(recipe: str | Path) -> Recipe:
    """Return a named recipe, the recipe in a TOML file, or the one that a run's `manifest.json` holds.

    >>> load_recipe("cifar10").data.dataset
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
    if path.suffix == ".json":
        recipe_values = values.get("recipe", values)
        manifest_format(path, values)
        values = upgrade_recipe(recipe_values) if isinstance(recipe_values, dict) else recipe_values
    return recipe_from_dict(values, path.stem)
