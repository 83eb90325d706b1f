"""TODO."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baseline.errors import RecipeError, unknown_name
from baseline.recipe.load import load_recipe, recipe_names
from baseline.recipe.schema import LABELS, PRESETS, SPLIT_METHODS

if TYPE_CHECKING:
    from baseline.progress import Progress


PRESET_NAMES = ("auto", *PRESETS)

VARIANT_NAMES = ("majority", "neighbors", "logistic", "head", "fastai", "groups", "all", "tta", "scratch", "zeroshot")

OUTPUT_FORMATS = ("csv", "jsonl", "parquet")

Model = Annotated[
    Path, typer.Argument(help="A run folder, its model/ alone, or a folder of folds or seeds.", show_default=False)
]

EnsembleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ensemble", help="More runs, between commas, whose probabilities are averaged with it.", show_default=False
    ),
]


SPLITS_PANEL = "Splits and imbalance"

LABELS_PANEL = "Mended labels, and images that belong"


Data = Annotated[
    Path | None, typer.Option(help="The images, for a recipe: a folder, or an archive of a named data set.")
]

Arch = Annotated[
    str | None, typer.Option(help="A torchvision or timm name, or auto; 'NAME or auto'.", show_default=False)
]

ImageSize = Annotated[int | None, typer.Option(help="Pixels, side of the square the network sees.")]

ImagesPerClass = Annotated[int | None, typer.Option(help="Train on a seeded subset of so many images per class.")]

Seed = Annotated[int | None, typer.Option(help="Of splits and training.")]

Resume = Annotated[
    bool, typer.Option("--resume", help="Goes on with what was begun in --out; what is finished there is kept.")
]


def completion(names: Callable[[], Any]) -> Any:
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


CURVE_VARIANT_NAMES = tuple(name for name in VARIANT_NAMES if name not in ("majority", "tta", "zeroshot"))

Target = Annotated[
    str,
    typer.Argument(
        help="A recipe's name; images as a folder, a CSV, TSV or Parquet table, a zip or tar, torchvision:NAME or "
        "hf:NAME; your own recipe.toml; or a run's manifest.json.",
        autocompletion=completion(recipe_names),
        show_default=False,
    ),
]


def text_option(help: str, *, words: tuple[str, ...] = (), panel: str = "Images and labels") -> Any:
    """An option of text that leaves the recipe's value where it is not given."""
    complete = {"autocompletion": completion(lambda: words)} if words else {}
    return typer.Option(help=help, show_default=False, rich_help_panel=panel, **complete)


def given_options(**options: Any) -> dict[str, Any]:
    """The options that were given, paths as text: what a recipe changes."""
    return {
        key: str(value) if isinstance(value, Path) else value for key, value in options.items() if value is not None
    }


ImageCol = Annotated[str | None, text_option("The table's column of images; looked for if not given.")]

LabelCol = Annotated[str | None, text_option("Its column of classes, or several between commas, each 0 or 1.")]

GroupCol = Annotated[str | None, text_option("Its column of what belongs together; splits heed it.")]

SplitCol = Annotated[str | None, text_option("Its column of train, valid and test.")]

ImageDir = Annotated[Path | None, text_option("The folder of the images that the table names.")]

LabelFrom = Annotated[str | None, text_option("A regular expression that finds the class in an image's path.")]

Positive = Annotated[str | None, text_option("A class to tell from all others, which become one.")]

Labels = Annotated[str | None, text_option("auto, one, or many with ; between them.", words=LABELS)]

Preset = Annotated[
    str,
    typer.Option(
        help="quick, standard or best; auto: standard on a GPU, quick on a CPU.",
        autocompletion=completion(lambda: PRESET_NAMES),
    ),
]

Split = Annotated[str | None, text_option(f"{', '.join(SPLIT_METHODS)}.", words=SPLIT_METHODS, panel=SPLITS_PANEL)]

SplitFile = Annotated[Path | None, text_option("A run's split.csv, to split as it did.", panel=SPLITS_PANEL)]


ExecutorOption = Annotated[
    str,
    typer.Option(
        help="ray: several at once, by a Ray that is started for them; ray://HOST:10001, ray:HOST:6379 or ray:auto: by "
        "a cluster.",
        show_default=False,
        autocompletion=completion(lambda: ("ray", "ray:auto")),
    ),
]


def split_paths(words: list[str] | None) -> list[Path]:
    """The paths in options of several between commas; a path that has commas stays whole."""
    parts = [[word] if Path(word).exists() else word.split(",") for word in words or []]
    return [Path(part.strip()) for some in parts for part in some if part.strip()]


def split_names(words: str | None) -> list[str]:
    """Names between commas."""
    return [word.strip() for word in (words or "").split(",") if word.strip()]


def parse_target(target: str) -> tuple[str | None, str]:
    """What TARGET means: (images or None, recipe). A recipe's name wins over a folder of that name."""
    if target in recipe_names() or target.endswith((".toml", ".json")):
        return None, target
    if os.sep in target or Path(target).exists() or target.startswith(("torchvision:", "hf:")):
        return target, "default"
    raise RecipeError(f"{unknown_name('recipe', target, recipe_names())} Nor is there a folder or file {target}.")


def data_place(data: Path, recipe: str, progress: Progress) -> str:
    """The images behind `--data`: a named data set in any of its forms, else the folder itself."""
    from baseline.data.sources.datasets import DATASETS, dataset

    name = load_recipe(recipe).data
    return str(dataset(name, data=data, progress=progress)) if name in DATASETS else str(data)


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(table)


def _patience(words: str) -> Any:
    from rich.console import Console

    return Console(stderr=True).status(words)
