"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import RecipeError, unknown_name
from baseline.recipe.auto import resolve_preset
from baseline.recipe.load import load_recipe, read_values, recipe_names
from baseline.recipe.schema import COLUMN_KEYS, PRESETS, Recipe, Stage
from baseline.system import device_type

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["starting_recipe"]


def starting_recipe(images: str | Path | pd.DataFrame | None, recipe: str | Path | Recipe) -> Recipe:
    """The recipe that `make_baseline` starts from, before presets and changes.

    >>> starting_recipe("cifar10", "default").name
    'cifar10'
    """
    return choose_recipe(images, recipe)[0]


def choose_recipe(images: Any, recipe: str | Path | Recipe) -> tuple[Recipe, Any]:
    """The recipe and the images that a call means; see `make_baseline`."""
    if isinstance(images, str) and images in recipe_names() and recipe == "default":
        recipe, images = images, None
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if images is None and str(recipe).endswith(".json"):
        images = read_values(Path(str(recipe))).get("images")
        split_file = Path(str(recipe)).with_name("split.csv")
        if images is None and split_file.exists():  # it was a DataFrame, and this is what is left of it
            found = dict.fromkeys(
                (*COLUMN_KEYS, "image_dir", "keep_if", "keep_model", "fixes"), ""
            )  # which is all done
            images, chosen = str(split_file), chosen.changed(**found, split_file=str(split_file))
    if images is None:
        images = chosen.data or None
    if images is None:
        raise RecipeError(f"Recipe '{chosen.name}' names no data set and none was given. Give a folder of images.")
    return chosen, images


def apply_changes(recipe: Recipe, seed: int | None, changes: dict[str, Any]) -> tuple[Recipe, dict[str, str]]:
    """The recipe with its preset chosen and the caller's changes made, which win over the preset's."""
    reasons: dict[str, str] = {}
    preset = changes.pop("preset", "auto")
    if preset not in ("auto", *PRESETS):
        raise RecipeError(unknown_name("preset", str(preset), PRESETS))
    wished = recipe.changed(**changes)  # finds what is wrong before anything slow begins
    if "fold" in changes and "kfold" not in wished.split:
        words = f"fold is {wished.fold}, and split '{wished.split}' names no folds"
        raise RecipeError(f"{words}. Give --split kfold:K or group-kfold:K, too, or leave --fold out.")
    if recipe.presets or preset != "auto":
        if preset == "auto" and changes.get("budget", recipe.budget):
            reasons |= {"image_size": "as given"} if "image_size" in changes else {}
            return _with_changed_presets(recipe, changes, seed), reasons
        if preset == "auto":
            preset, reasons["preset"] = resolve_preset(device_type())
            preset = preset if preset in recipe.presets else "standard"
        recipe = recipe.with_preset(preset)
    return _with_changes(recipe, changes, seed), reasons


def _with_changes(recipe: Recipe, changes: dict[str, Any], seed: int | None) -> Recipe:
    """The recipe changed, and its files absolute: a run goes on, or is made again, in any working folder."""
    from baseline.files import resolve_path

    recipe = recipe.changed(**changes, **({} if seed is None else {"seed": seed}))
    named = {key: getattr(recipe, key) for key in ("image_dir", "split_file", "keep_model", "weights")}
    return recipe.changed(**{key: str(resolve_path(words)) for key, words in named.items() if words})


def _with_changed_presets(recipe: Recipe, changes: dict[str, Any], seed: int | None) -> Recipe:
    """The recipe with the caller's changes, which its presets, for a budget to choose from, leave as they are."""
    presets = {
        preset: {key: value for key, value in values.items() if key not in changes}
        for preset, values in recipe.presets.items()
    }
    return _with_changes(
        recipe, {**changes, "presets": {name: values for name, values in presets.items() if values}}, seed
    )


def _scratch_stages(recipe: Recipe) -> tuple[Recipe, str]:
    """Stages for random weights: a frozen random body teaches a head nothing, so every epoch trains all layers."""
    epochs, steps = (sum(getattr(stage, key) for stage in recipe.stages) for key in ("epochs", "steps"))
    why = "all layers are trained: a frozen body of random weights would have nothing to give"
    last = recipe.stages[-1]
    stage = Stage("all", epochs, "find", "moving", steps=steps, optimizer=last.optimizer, schedule=last.schedule)
    return recipe.changed(stages=(stage,), presets={}), why
