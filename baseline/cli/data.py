"""The commands that look at images and recipes: `audit`, `filter`, `sources`, `recipes` and `copy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from baseline.cli.experiments import IMAGE_FIELDS
from baseline.cli.options import (
    HelpAll,
    Quiet,
    Target,
    collect_garbage_less_often,
    completion,
    make_progress,
    parse_target,
    recipe_options,
    without_device,
)
from baseline.cli.output import print_json, print_table, print_text
from baseline.errors import OutputError
from baseline.recipe.load import load_recipe, recipe_names, recipes_folder


@recipe_options(*IMAGE_FIELDS, "positive", "task")
def audit_command(
    target: Target,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder for findings.json, tables and pictures of duplicates.", show_default=False),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 3 if duplicates span splits.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    quiet: Quiet = False,
    help_all: HelpAll = False,
    *,
    changes: dict[str, Any],
) -> None:
    """Check every image for problems: unreadable files, duplicates, leaks, conflicting labels, imbalance.

    Examples:

    ```text
    baseline audit images/
    baseline audit train.csv --image-dir train_images/ --out audit/
    baseline audit cifar10 --strict
    ```
    """
    collect_garbage_less_often()
    from baseline.cli.printing import audit_table
    from baseline.data.audit.findings import audit
    from baseline.data.prepare import load_images
    from baseline.report.audit_files import write_audit

    images, recipe = parse_target(target)
    progress = make_progress(quiet)
    resolved, table = load_images(images, recipe, progress=progress, **without_device(images, recipe, changes))
    result = audit(table, grouped="group" in resolved.split.method, progress=progress)
    if as_json:
        print_json({"findings": result.findings.to_dict("records")})
    else:
        print_table(audit_table(result))
    for path in write_audit(out, result) if out else []:
        progress.log(f"written: {path}")
    if strict:
        result.raise_on_leaks()


@recipe_options(*IMAGE_FIELDS, "positive", "task")
def filter_command(
    target: Target,
    model: Annotated[Path, typer.Option(help="Run or model folder of the other model.", show_default=False)],
    keep: Annotated[str, typer.Option(help="Class of that model to keep.", show_default=False)],
    above: Annotated[float, typer.Option(min=0, max=1, help="Minimum probability of that class.")] = 0.5,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output table.")] = Path("images.csv"),
    quiet: Quiet = False,
    help_all: HelpAll = False,
    *,
    changes: dict[str, Any],
) -> None:
    """Keep only images that another model predicts as --keep, and write them as a table.

    The other images are listed in NAME-left-out.csv next to it, the least probable first.

    Examples:

    ```text
    baseline filter images/ --model runs/first --keep skyline --out kept.csv
    baseline run kept.csv
    ```
    """
    from baseline.data.prepare import load_images
    from baseline.data.split import split_to_csv
    from baseline.files import to_csv, write_atomic
    from baseline.inference.filter import filter_by_model
    from baseline.system import all_or_none

    if out.exists():
        raise OutputError(f"{out} already exists. Remove it, or choose another --out.")
    images, recipe = parse_target(target)
    progress = make_progress(quiet)
    resolved, table = load_images(images, recipe, progress=progress, **changes)
    matching, others = filter_by_model(table, model, keep, above, task=resolved.data.task, progress=progress)
    with all_or_none(left_out := out.with_name(f"{out.stem}-left-out.csv")):
        write_atomic(left_out, to_csv(others))
        write_atomic(out, split_to_csv(matching))
    print_text(out)


def recipes_command() -> None:
    """List the recipes and their measured results.

    Examples:

    ```text
    baseline recipes
    ```
    """
    from rich.table import Table

    from baseline.data.sources.datasets import DATASETS

    table = Table("recipe", "description", "classes", "images", "backbone", "presets", "measured")
    for name in recipe_names():
        recipe = load_recipe(name)
        dataset = DATASETS.get(recipe.data.dataset)
        counts = (str(len(dataset.classes)), f"{dataset.train + dataset.test:,}") if dataset else ("yours", "yours")
        presets = ", ".join(["standard", *recipe.presets])
        measured = str(recipe.expected.get("summary", "not yet"))
        table.add_row(name, recipe.title, *counts, recipe.model.arch, presets, measured)
    print_table(table)


def sources_command() -> None:
    """List the supported layouts of images and labels (`--source`), with an example of each.

    Examples:

    ```text
    baseline sources
    baseline run images/ --source folders --dry-run
    ```
    """
    from rich.table import Table
    from rich.text import Text

    from baseline.data.sources.registry import all_sources

    table = Table("--source", "layout")
    for name, source in all_sources().items():
        if source.example:
            table.add_row(name, Text(source.example))
    print_table(table)


def copy_command(
    name: Annotated[
        str, typer.Argument(help="Name of a recipe.", autocompletion=completion(recipe_names), show_default=False)
    ],
    dest: Annotated[Path, typer.Argument(help="Folder, or name of the new file.")] = Path(),
) -> None:
    """Copy a recipe's TOML file, to edit and run it.

    Examples:

    ```text
    baseline copy cifar10 .
    baseline copy default mine.toml && baseline run mine.toml --data images/
    ```
    """
    from baseline.files import write_atomic

    load_recipe(name)
    target = dest / f"{name}.toml" if dest.is_dir() else dest
    if target.suffix != ".toml":
        raise OutputError(f"{target} is neither a folder nor a .toml file name. Pass one of these.")
    if target.exists():
        raise OutputError(f"{target} already exists. Remove it, or use another name.")
    write_atomic(target, (recipes_folder() / f"{name}.toml").read_bytes())
    print_text(target)
