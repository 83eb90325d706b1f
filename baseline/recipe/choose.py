"""Turns the arguments of a call into one recipe: its name or file, the preset, and the caller's changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import RecipeError, unknown_name
from baseline.files import read_values, resolve_path
from baseline.recipe.auto import resolve_preset
from baseline.recipe.load import load_recipe, recipe_names
from baseline.recipe.schema import HEAD_STAGE, PRESETS, Recipe, Stage
from baseline.system import device_type

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["apply_changes", "choose_recipe", "scratch_stages", "starting_recipe"]


def starting_recipe(images: str | Path | pd.DataFrame | None, recipe: str | Path | Recipe) -> Recipe:
    """Return the recipe that `make_baseline` starts from, before presets and changes.

    >>> starting_recipe("cifar10", "default").name
    'cifar10'
    """
    return choose_recipe(images, recipe)[0]


def choose_recipe(images: Any, recipe: str | Path | Recipe) -> tuple[Recipe, Any]:
    """Return the recipe and the images that a call of `make_baseline` means.

    Raises:
        RecipeError: if there are no images: none were given, and the recipe names no dataset.
    """
    if isinstance(images, str) and images in recipe_names() and recipe == "default":
        recipe, images = images, None
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if images is None and str(recipe).endswith(".json"):
        manifest = read_values(Path(str(recipe)))
        images = manifest.get("images", manifest.get("photos"))
        split_file = Path(str(recipe)).with_name("split.csv")
        if images is None and split_file.exists():  # the images came from a DataFrame; the split file still lists them
            columns = dict.fromkeys(("image_col", "label_col", "group_col", "split_col", "image_dir"), "")
            chosen = chosen.changed(**columns, fixes=(), split_file=str(split_file))
            images = str(split_file)
    if images is None:
        images = chosen.data.dataset or None
    if images is None:
        raise RecipeError(
            f"Recipe '{chosen.name}' names no dataset, and no images were given. Pass a folder of images."
        )
    return chosen, images


def apply_changes(recipe: Recipe, seed: int | None, changes: dict[str, Any]) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe with its preset and then the caller's changes applied, and the reasons for what was chosen."""
    reasons: dict[str, str] = {"fold": "as given"} if "fold" in changes else {}
    preset = changes.pop("preset", "auto")
    if preset not in ("auto", *PRESETS):
        raise RecipeError(unknown_name("preset", str(preset), PRESETS))
    requested = recipe.changed(**changes)  # finds wrong values before anything slow begins
    if "fold" in changes and requested.split.method in ("auto", "provided") and not requested.split.file:
        changes = {**changes, "split": "kfold"}
    elif "fold" in changes and "kfold" not in requested.split.method:
        raise RecipeError(
            f"fold is {requested.split.fold}, but split is '{requested.split.method}', which has no folds. "
            "Pass split kfold:K or group-kfold:K as well, or leave fold out."
        )
    if recipe.presets or preset != "auto":
        if preset == "auto" and changes.get("budget", recipe.training.budget):
            reasons |= {"image_size": "as given"} if "image_size" in changes else {}
            return _with_changed_presets(recipe, changes, seed), reasons
        if preset == "auto":
            preset, reasons["preset"] = resolve_preset(device_type())
            preset = preset if preset in recipe.presets else "standard"
        recipe = recipe.with_preset(preset)
    return _with_changes(recipe, changes, seed), reasons


def _with_changes(recipe: Recipe, changes: dict[str, Any], seed: int | None) -> Recipe:
    """The recipe with the changes, its files as absolute paths, so that it works from any working folder."""
    recipe = recipe.changed(**changes, **({} if seed is None else {"seed": seed}))
    paths = {
        "image_dir": recipe.data.image_dir, "split_file": recipe.split.file, "weights": recipe.model.weights,
    }  # fmt: skip
    return recipe.changed(**{key: str(resolve_path(path)) for key, path in paths.items() if path})


def _with_changed_presets(recipe: Recipe, changes: dict[str, Any], seed: int | None) -> Recipe:
    """Apply the changes to the recipe and its presets; a budget chooses among the presets later."""
    presets = {
        preset: {key: value for key, value in values.items() if key not in changes}
        for preset, values in recipe.presets.items()
    }
    return _with_changes(
        recipe, {**changes, "presets": {name: values for name, values in presets.items() if values}}, seed
    )


def scratch_stages(recipe: Recipe) -> tuple[Recipe, str]:
    """Return the recipe with one stage over all layers, for random weights, and the reason for it."""
    stages = [HEAD_STAGE if stage.trains == "probe" else stage for stage in recipe.stages]
    epochs, steps = (sum(getattr(stage, key) for stage in stages) for key in ("epochs", "steps"))
    reason = "all layers are trained, because a frozen body with random weights has nothing to offer"
    last = recipe.stages[-1]
    if (len(stages), last.trains, last.batch_norm) == (1, "all", "train"):  # all layers already
        return recipe.changed(presets={}), reason
    stage = Stage("all", epochs, "find", "train", steps=steps, optimizer=last.optimizer, schedule=last.schedule)
    return recipe.changed(stages=(stage,), presets={}), reason
