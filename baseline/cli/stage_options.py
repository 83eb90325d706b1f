"""The options `--epochs`, `--lr` and `--augment` of `baseline run`: what they change in the stages of a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baseline.errors import RecipeError
from baseline.recipe.choose import scratch_stages
from baseline.recipe.load import load_recipe
from baseline.recipe.schema import NO_AUGMENT, Augment, Recipe

__all__ = ["StageOptions"]


@dataclass(frozen=True)
class StageOptions:
    """What was given of the three options.

    `epochs` and `lr` belong to the last stage, which fine-tunes: the stages before it fit the head that it starts from.
    """

    epochs: int | None = None
    """Exactly this many, whatever minimum number of steps the stage has."""
    lr: str = ""
    """A number, two for the first and the last layers with a comma between them, or `find`."""
    augment: bool | None = None
    """True turns on what the recipe leaves out of fastai's standard augmentation; False turns off all of it."""

    @property
    def given(self) -> str:
        """The options that were given, as text; empty if there are none."""
        flag = {None: "", True: "--augment", False: "--no-augment"}[self.augment]
        names = ("--epochs" if self.epochs is not None else "", "--lr" if self.lr else "", flag)
        return " and ".join(name for name in names if name)

    def apply(self, recipe: str, changes: Mapping[str, Any]) -> tuple[str | Recipe, dict[str, Any]]:
        """Return the recipe and the changes of a run with these options.

        Raises:
            RecipeError: if they contradict another option, or a preset that has nothing to train by epochs.
        """
        if not self.given:
            return recipe, dict(changes)
        loaded = load_recipe(recipe)
        self._check(loaded, changes)
        pretrained = bool(changes.get("pretrained", loaded.model.pretrained))
        changed = self._changed(loaded, pretrained)
        if Path(recipe).suffix == ".json":  # the run that it belongs to names the images, too
            return recipe, {"stages": changed.stages, "augment": changed.augment, **changes}
        presets = {
            name: {**values, **self._fields(loaded.with_preset(name), pretrained)}
            for name, values in loaded.presets.items()
        }
        return changed.changed(presets=presets), dict(changes)

    def _check(self, recipe: Recipe, changes: Mapping[str, Any]) -> None:
        """Raise an error for options that contradict each other."""
        if self.epochs is not None and (changes.get("budget") or recipe.training.budget):
            raise RecipeError(
                "--epochs and a budget cannot be combined: a budget chooses the epochs. Omit one of them."
            )
        others = [name for name in changes if name.partition(".")[0] == "augment"]
        if self.augment is False and others:
            raise RecipeError(f"--no-augment and --set {others[0]} cannot be combined. Omit one of them.")
        if "stages" in changes:
            raise RecipeError(f"{self.given} and --set stages cannot be combined. Write all of it into the stages.")
        if changes.get("preset") == "instant" and self.given != "--no-augment":
            raise RecipeError(f"{self.given}: preset instant trains no stage by epochs. Use --preset quick.")

    def _fields(self, recipe: Recipe, pretrained: bool) -> dict[str, Any]:
        changed = self._changed(recipe, pretrained)
        return {"stages": changed.stages, "augment": changed.augment}

    def _changed(self, recipe: Recipe, pretrained: bool) -> Recipe:
        """Return a recipe without regard to its presets, changed by the options."""
        *first, last = recipe.stages if pretrained else scratch_stages(recipe)[0].stages
        if (self.epochs is not None or self.lr) and last.trains == "probe":
            raise RecipeError(
                f"{self.given}: the last stage of recipe '{recipe.name}' is a logistic regression, which has neither "
                "epochs nor a learning rate. Use a recipe that fine-tunes."
            )
        if self.epochs is not None:
            last = dataclasses.replace(last, epochs=self.epochs, steps=0)
        if self.lr:
            last = dataclasses.replace(last, lr=self._rate())
        stages = [*first, last]
        if self.augment is False:
            stages = [dataclasses.replace(stage, views=()) for stage in stages]
        return recipe.changed(stages=tuple(stages), augment=self._augment(recipe.augment))

    def _rate(self) -> Any:
        if self.lr == "find":
            return self.lr
        try:
            rates = tuple(float(part) for part in self.lr.split(","))
        except ValueError:
            rates = ()
        if len(rates) not in (1, 2):
            raise RecipeError(f"--lr is '{self.lr}', needed: a number such as 3e-4, FIRST,LAST, or find.")
        return rates if len(rates) == 2 else rates[0]

    def _augment(self, augment: Augment) -> Augment:
        if self.augment is None:
            return augment
        off = {name for name, value in vars(NO_AUGMENT).items() if getattr(augment, name) == value}
        on = {name: value for name, value in vars(Augment()).items() if name in off}
        return dataclasses.replace(augment, **on) if self.augment else NO_AUGMENT
