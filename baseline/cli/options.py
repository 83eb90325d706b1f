"""Options that commands share. Those that change a recipe are made from the metadata of its fields."""

from __future__ import annotations

import functools
import gc
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from baseline.cli.output import print_text
from baseline.errors import RecipeError, closest_name, similar_path, unknown_name
from baseline.files import parse_toml
from baseline.recipe.fields import RUN_PANEL, SPLIT_METHODS
from baseline.recipe.load import load_recipe, recipe_names
from baseline.recipe.schema import GROUPS, LEAVES, LOGGERS, PRESETS, Recipe
from baseline.recipe.validation import field_hints

if TYPE_CHECKING:
    import dataclasses

    from baseline.progress import Progress

GC_THRESHOLD = 50_000
"""Allocations between garbage collections; with Python's default of 700, they take 5% of a short command's time."""

VARIANT_NAMES = ("majority", "neighbors", "logistic", "head", "fastai", "groups", "all", "tta", "scratch", "zeroshot")

CURVE_VARIANT_NAMES = tuple(name for name in VARIANT_NAMES if name not in ("majority", "tta", "zeroshot"))

OUTPUT_FORMATS = ("csv", "jsonl", "parquet")

PRESET_NAMES = ("auto", *PRESETS)


def completion(names: Callable[[], Sequence[str]]) -> Any:
    """A function that completes what was typed to one of these names."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


Model = Annotated[
    Path, typer.Argument(help="A run folder, its model/ folder, or a folder of folds or seeds.", show_default=False)
]

EnsembleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ensemble", help="More runs, separated by commas; all probabilities are averaged.", show_default=False
    ),
]

Target = Annotated[
    str,
    typer.Argument(
        metavar="IMAGES_OR_RECIPE",
        help="Images (a folder, a CSV, TSV or Parquet table, a zip or tar archive, torchvision:NAME, hf:NAME), the "
        "name of a recipe, a recipe.toml, or a run's manifest.json.",
        autocompletion=completion(recipe_names),
        show_default=False,
    ),
]

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Images for a recipe: a folder, or an archive of a named dataset.", show_default=False),
]

Preset = Annotated[
    str,
    typer.Option(
        help="instant, quick, standard or best; auto is standard on a GPU and quick on a CPU.",
        autocompletion=completion(lambda: PRESET_NAMES),
    ),
]

Resume = Annotated[
    bool, typer.Option("--resume", help="Resume the unfinished job in --out.", rich_help_panel=RUN_PANEL)
]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel=RUN_PANEL)]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only print the result.", rich_help_panel=RUN_PANEL)]

ExecutorOption = Annotated[
    str,
    typer.Option(
        "--executor",
        help="Run jobs on Ray: ray starts a local instance; ray://HOST:10001, ray:HOST:6379 or ray:auto joins a "
        "cluster.",
        show_default=False,
        autocompletion=completion(lambda: ("ray", "ray:auto")),
        rich_help_panel=RUN_PANEL,
        hidden=True,
    ),
]

Tta = Annotated[bool, typer.Option("--tta/--no-tta", help="Use test-time augmentation (TTA) if the run does.")]

RejectUnlike = Annotated[
    float,
    typer.Option(
        metavar="RATE",
        help="Reject images that are more unlike the training images than all but this share of the valid images, "
        "such as 0.05.",
        show_default=False,
    ),
]

Coverage = Annotated[
    float,
    typer.Option(
        metavar="RATE",
        help="Also predict a set of classes that contains the true one at this rate, such as 0.95.",
        show_default=False,
    ),
]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any field of the recipe, such as augment.rotate=20. Repeatable.",
        show_default=False,
    ),
]


def show_all_options(context: typer.Context, value: bool) -> None:
    """Print the help with the options that `--help` hides."""
    if value and not context.resilient_parsing:
        for param in context.command.params:
            param.hidden = False  # type: ignore[attr-defined]
        print_text(context.get_help())
        raise typer.Exit()


HelpAll = Annotated[
    bool, typer.Option("--help-all", help="Show all options.", is_eager=True, callback=show_all_options)
]


def recipe_options(*names: str, common: Sequence[str] | None = None) -> Callable[[Callable[..., None]], Any]:
    """Give a command an option for each of these fields of a recipe.

    The command takes them together, as the dictionary `changes`; only options that were given are in it.

    Args:
        names: flat names of fields, in the order of the help text; all fields if none are given.
        common: those that `--help` shows; by default the fields that say so themselves. The others are shown by
            `--help-all`.
    """
    selected = names or (*LEAVES, "seed")

    def decorate(command: Callable[..., None]) -> Any:
        own = {
            name: parameter
            for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
            if name != "changes"
        }
        options = {name: recipe_option(name, common) for name in selected if name not in own}
        parameters = [
            *own.values(),
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
                for name, annotation in options.items()
            ),
        ]

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            changes = {name: to_setting(name, values.pop(name)) for name in options if values[name] is not None}
            changes |= parse_settings(values.pop("set", None) or [])
            command(**{key: value for key, value in values.items() if key not in options}, changes=changes)

        wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        )
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate


def recipe_field(name: str) -> tuple[dataclasses.Field[Any], Any]:
    """The dataclass field behind a flat name, and its type."""
    group, leaf = LEAVES.get(name, ("", name))
    kind = GROUPS[group] if group else Recipe
    fields: dict[str, Any] = vars(kind)["__dataclass_fields__"]
    return fields[leaf], field_hints(kind)[leaf]


def recipe_option(name: str, common: Sequence[str] | None = None) -> Any:
    """A Typer option for a field of a recipe, from its metadata: help, panel and choices."""
    field, hint = recipe_field(name)
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    choices = CHOICES.get(name) or (get_args(base) if get_origin(base) is Literal else ())
    kind = base if base in (int, float, bool) else list[str] if name in ("fixes", "loggers") else str
    shown = name in common if common is not None else field.metadata["common"]
    option = typer.Option(
        help=field.metadata["help"],
        show_default=False,
        rich_help_panel=field.metadata["panel"],
        hidden=not shown,
        **({"autocompletion": completion(lambda: choices)} if choices else {}),
    )
    return Annotated[kind | None, option]


CHOICES = {"split": SPLIT_METHODS, "loggers": LOGGERS}
"""Names that complete an option whose type does not list them."""


def to_setting(name: str, value: Any) -> Any:
    """The value of a field from what stands on the command line."""
    if name in ("tta", "loggers", "fixes"):
        parts = value if isinstance(value, list) else [value]
        if name == "fixes":
            return parts
        return [part.strip() for text in parts for part in text.split(",") if part.strip() not in ("", "none")]
    return int(value) if name == "batch_size" and re.fullmatch(r"\d{1,18}", value) else value


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The fields that `--set KEY=VALUE` names. Values are written as in TOML; text needs no quotes.

    >>> parse_settings(["augment.rotate=20", "tta=['flip']", "arch=resnet18"])
    {'augment.rotate': 20, 'tta': ['flip'], 'arch': 'resnet18'}

    Raises:
        RecipeError: if there is no `=`.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set has '{setting}', needed: KEY=VALUE, such as --set augment.rotate=20.")
        try:
            changes[key.strip()] = parse_toml(f"value = {value}")["value"]
        except ValueError:
            changes[key.strip()] = value.strip()
    return changes


def split_paths(texts: list[str] | None) -> list[Path]:
    """Paths from options that hold several, separated by commas. A path that exists may have commas in it."""
    parts = [[text] if Path(text).exists() else text.split(",") for text in texts or []]
    return [Path(part.strip()) for group in parts for part in group if part.strip()]


def split_names(text: str | None) -> list[str]:
    """Names that are separated by commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def parse_target(target: str) -> tuple[str | None, str]:
    """Return the images, or None, and the recipe that TARGET means. A recipe's name wins over a folder of that name.

    Raises:
        RecipeError: if it is neither a recipe nor a place of images.
    """
    if target in recipe_names() or target.endswith((".toml", ".json")):
        return None, target
    is_path = "/" in target or "\\" in target or Path(target).exists()
    if is_path or target.startswith(("torchvision:", "hf:")):
        return target, "default"
    similar = similar_path(target)
    no_recipe = (closest_name if similar else unknown_name)("recipe", target, recipe_names())
    raise RecipeError(f"There is no folder or file {target}.{similar} {no_recipe}")


def without_device(images: str | None, recipe: str | Recipe, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes with a preset, where it does not matter to how images are read, so that no device is looked for."""
    from baseline.recipe.choose import starting_recipe

    start = starting_recipe(images, recipe)
    data_fields = {name for name, (group, _) in LEAVES.items() if group in ("data", "split")}
    matters = any(set(preset) & {"data", "split", *data_fields} for preset in start.presets.values())
    return changes if matters or "preset" in changes else {**changes, "preset": start.preset}


def data_place(data: Path, recipe: str, progress: Progress) -> str:
    """The place of the images that `--data` names: a named dataset in any of its forms, or the folder itself."""
    from baseline.data.sources.datasets import DATASETS, dataset

    name = load_recipe(recipe).data.dataset
    return str(dataset(name, data=data, progress=progress)) if name in DATASETS else str(data)


def collect_garbage_less_often() -> None:
    """Reduce the time of a command that only reads images; in others, large tensors would stay in memory longer."""
    gc.set_threshold(GC_THRESHOLD)


def make_progress(quiet: bool) -> Progress:
    """Progress on standard error, or none."""
    from baseline.progress import ConsoleProgress, Progress

    return Progress() if quiet else ConsoleProgress()
