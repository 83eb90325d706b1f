"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import RecipeError, unknown
from baseline.recipe.auto import settle_preset
from baseline.recipe.load import load_recipe, read_values, recipe_names
from baseline.recipe.schema import COLUMN_KEYS, PRESETS, Recipe, Stage
from baseline.system import _device

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["starting_recipe"]


def starting_recipe(photos: str | Path | pd.DataFrame | None, recipe: str | Path | Recipe) -> Recipe:
    """The recipe that `make_baseline` starts from, before presets and changes.

    >>> starting_recipe("cifar10", "default").name
    'cifar10'
    """
    return _chosen(photos, recipe)[0]


def _chosen(photos: Any, recipe: str | Path | Recipe) -> tuple[Recipe, Any]:
    """The recipe and the photos that a call means; see `make_baseline`."""
    if isinstance(photos, str) and photos in recipe_names() and recipe == "default":
        recipe, photos = photos, None
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if photos is None and str(recipe).endswith(".json"):
        photos = read_values(Path(str(recipe))).get("photos")
        split_file = Path(str(recipe)).with_name("split.csv")
        if photos is None and split_file.exists():  # it was a DataFrame, and this is what is left of it
            found = dict.fromkeys((*COLUMN_KEYS, "images", "keep_if", "keep_model", "fixes"), "")  # which is all done
            photos, chosen = str(split_file), chosen.changed(**found, split_file=str(split_file))
    if photos is None:
        photos = chosen.data or None
    if photos is None:
        raise RecipeError(f"Recipe '{chosen.name}' names no data set and none was given. Give a folder of photos.")
    return chosen, photos


def _changed(recipe: Recipe, seed: int | None, changes: dict[str, Any]) -> tuple[Recipe, dict[str, str]]:
    """The recipe with its preset chosen and the caller's changes made, which win over the preset's."""
    reasons: dict[str, str] = {}
    preset = changes.pop("preset", "auto")
    if preset not in ("auto", *PRESETS):
        raise RecipeError(unknown("preset", str(preset), PRESETS))
    wished = recipe.changed(**changes)  # finds what is wrong before anything slow begins
    if "fold" in changes and "kfold" not in wished.split:
        words = f"fold is {wished.fold}, and split '{wished.split}' names no folds"
        raise RecipeError(f"{words}. Give --split kfold:K or group-kfold:K, too, or leave --fold out.")
    if recipe.presets or preset != "auto":
        if preset == "auto" and changes.get("budget", recipe.budget):
            reasons |= {"image_size": "as given"} if "image_size" in changes else {}
            return _with_all_presets(recipe, changes, seed), reasons
        if preset == "auto":
            preset, reasons["preset"] = settle_preset(_device())
            preset = preset if preset in recipe.presets else "standard"
        recipe = recipe.with_preset(preset)
    return _with(recipe, changes, seed), reasons


def _with(recipe: Recipe, changes: dict[str, Any], seed: int | None) -> Recipe:
    """The recipe changed, and its files absolute: a run goes on, or is made again, in any working folder."""
    from baseline.files import place

    recipe = recipe.changed(**changes, **({} if seed is None else {"seed": seed}))
    named = {key: getattr(recipe, key) for key in ("images", "split_file", "keep_model", "weights")}
    return recipe.changed(**{key: str(place(words)) for key, words in named.items() if words})


def _with_all_presets(recipe: Recipe, changes: dict[str, Any], seed: int | None) -> Recipe:
    """The recipe with the caller's changes, which its presets, for a budget to choose from, leave as they are."""
    presets = {
        preset: {key: value for key, value in values.items() if key not in changes}
        for preset, values in recipe.presets.items()
    }
    return _with(recipe, {**changes, "presets": {name: values for name, values in presets.items() if values}}, seed)


def _from_scratch(recipe: Recipe) -> tuple[Recipe, str]:
    """Stages for random weights: a frozen random body teaches a head nothing, so every epoch trains all layers."""
    epochs, steps = (sum(getattr(stage, key) for stage in recipe.stages) for key in ("epochs", "steps"))
    why = "all layers are trained: a frozen body of random weights would have nothing to give"
    last = recipe.stages[-1]
    stage = Stage("all", epochs, "find", "moving", steps=steps, optimizer=last.optimizer, schedule=last.schedule)
    return recipe.changed(stages=(stage,), presets={}), why
