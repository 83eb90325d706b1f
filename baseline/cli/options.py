"""TODO."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baseline.errors import RecipeError, unknown
from baseline.recipe.load import load_recipe, recipe_names
from baseline.recipe.schema import LABELS, PRESETS, WAYS

if TYPE_CHECKING:
    from baseline.progress import Show


_PRESET_NAMES = ("auto", *PRESETS)

RUNG_NAMES = ("majority", "neighbours", "logistic", "head", "fastai", "groups", "all", "tta", "scratch", "zeroshot")

_FORMATS = ("csv", "jsonl", "parquet")

Model = Annotated[
    Path, typer.Argument(help="A run folder, its model/ alone, or a folder of folds or seeds.", show_default=False)
]

Others = Annotated[
    list[str] | None,
    typer.Option(
        "--ensemble", help="More runs, between commas, whose probabilities are averaged with it.", show_default=False
    ),
]


_SPLITS = "Splits and imbalance"

_LABELS = "Mended labels, and photos that belong"


Data = Annotated[
    Path | None, typer.Option(help="The photos, for a recipe: a folder, or an archive of a named data set.")
]

Arch = Annotated[
    str | None, typer.Option(help="A torchvision or timm name, or auto; 'NAME or auto'.", show_default=False)
]

ImageSize = Annotated[int | None, typer.Option(help="Pixels, side of the square the network sees.")]

PhotosPerClass = Annotated[int | None, typer.Option(help="Train on a seeded subset of so many photos per class.")]

Seed = Annotated[int | None, typer.Option(help="Of splits and training.")]

Resume = Annotated[
    bool, typer.Option("--resume", help="Goes on with what was begun in --out; what is finished there is kept.")
]


def _complete(names: Callable[[], Any]) -> Any:
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


CURVE_NAMES = tuple(name for name in RUNG_NAMES if name not in ("majority", "tta", "zeroshot"))

Target = Annotated[
    str,
    typer.Argument(
        help="A recipe's name; photos as a folder, a CSV, TSV or Parquet table, a zip or tar, torchvision:NAME or "
        "hf:NAME; your own recipe.toml; or a run's manifest.json.",
        autocompletion=_complete(recipe_names),
        show_default=False,
    ),
]


def _named(help: str, *, words: tuple[str, ...] = (), panel: str = "Photos and labels") -> Any:
    """An option of text that leaves the recipe's value where it is not given."""
    complete = {"autocompletion": _complete(lambda: words)} if words else {}
    return typer.Option(help=help, show_default=False, rich_help_panel=panel, **complete)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given, paths as text: what a recipe changes."""
    return {
        key: str(value) if isinstance(value, Path) else value for key, value in options.items() if value is not None
    }


ImageCol = Annotated[str | None, _named("The table's column of photos; looked for if not given.")]

LabelCol = Annotated[str | None, _named("Its column of classes, or several between commas, each 0 or 1.")]

GroupCol = Annotated[str | None, _named("Its column of what belongs together; splits heed it.")]

SplitCol = Annotated[str | None, _named("Its column of train, valid and test.")]

Images = Annotated[Path | None, _named("The folder of the photos that the table names.")]

LabelFrom = Annotated[str | None, _named("A regular expression that finds the class in a photo's path.")]

Positive = Annotated[str | None, _named("A class to tell from all others, which become one.")]

Labels = Annotated[str | None, _named("auto, one, or many with ; between them.", words=LABELS)]

Preset = Annotated[
    str,
    typer.Option(
        help="quick, standard or best; auto: standard on a GPU, quick on a CPU.",
        autocompletion=_complete(lambda: _PRESET_NAMES),
    ),
]

Split = Annotated[str | None, _named(f"{', '.join(WAYS)}.", words=WAYS, panel=_SPLITS)]

SplitFile = Annotated[Path | None, _named("A run's split.csv, to split as it did.", panel=_SPLITS)]


On = Annotated[
    str,
    typer.Option(
        help="ray: several at once, by a Ray that is started for them; ray://HOST:10001, ray:HOST:6379 or ray:auto: by "
        "a cluster.",
        show_default=False,
        autocompletion=_complete(lambda: ("ray", "ray:auto")),
    ),
]


def _paths(words: list[str] | None) -> list[Path]:
    """The paths in options of several between commas; a path that has commas stays whole."""
    parts = [[word] if Path(word).exists() else word.split(",") for word in words or []]
    return [Path(part.strip()) for some in parts for part in some if part.strip()]


def _listed(words: str | None) -> list[str]:
    """Names between commas."""
    return [word.strip() for word in (words or "").split(",") if word.strip()]


def _target(target: str) -> tuple[str | None, str]:
    """What TARGET means: (photos or None, recipe). A recipe's name wins over a folder of that name."""
    if target in recipe_names() or target.endswith((".toml", ".json")):
        return None, target
    if os.sep in target or Path(target).exists() or target.startswith(("torchvision:", "hf:")):
        return target, "default"
    raise RecipeError(f"{unknown('recipe', target, recipe_names())} Nor is there a folder or file {target}.")


def _data(data: Path, recipe: str, show: Show) -> str:
    """The photos behind `--data`: a named data set in any of its forms, else the folder itself."""
    from baseline.data.sources.datasets import DATASETS, dataset

    name = load_recipe(recipe).data
    return str(dataset(name, data=data, show=show)) if name in DATASETS else str(data)


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(table)


def _patience(words: str) -> Any:
    from rich.console import Console

    return Console(stderr=True).status(words)
