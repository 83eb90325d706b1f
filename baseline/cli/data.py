"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baseline.cli.options import (
    GroupCol,
    ImageCol,
    ImageDir,
    LabelCol,
    LabelFrom,
    Labels,
    Positive,
    SplitCol,
    Target,
    _print,
    completion,
    given_options,
    parse_target,
)
from baseline.errors import OutputError
from baseline.recipe.load import load_recipe, recipe_names, recipes_folder


def audit(
    target: Target,
    image_col: ImageCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    image_dir: ImageDir = None,
    label_from: LabelFrom = None,
    positive: Positive = None,
    labels: Labels = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for findings.json, tables and pictures of pairs.", show_default=False)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Copies in two splits are exit code 3.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Prints the findings as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the findings.")] = False,
) -> None:
    """Looks at every image and tells what is wrong: unreadable files, copies, leaks, conflicts, imbalance.

    Examples:

        baseline audit images/

        baseline audit train.csv --image-dir train_images/ --out audit/

        baseline audit cifar10 --strict
    """
    from baseline.cli.printing import audit_table
    from baseline.data.audit.findings import audit as look
    from baseline.data.prepare import load_images
    from baseline.files import to_json as json_text
    from baseline.progress import ConsoleProgress, Progress
    from baseline.report.audit_files import write_audit

    images, recipe = parse_target(target)
    given = given_options(
        image_col=image_col, label_col=label_col, group_col=group_col, split_col=split_col,
        image_dir=image_dir, label_from=label_from, positive=positive, labels=labels,
    )  # fmt: skip
    show = Progress() if quiet else ConsoleProgress()
    chosen, table = load_images(images, recipe, progress=show, **given)
    checked = look(table, grouped="group" in chosen.split, progress=show)
    if as_json:
        print(json_text({"findings": checked.findings.to_dict("records")}), end="")
    else:
        _print(audit_table(checked))
    for path in write_audit(out, checked) if out else []:
        show.log(f"written: {path}")
    if strict:
        checked.raise_on_leaks()


def recipes() -> None:
    """Lists the recipes, with what they reached where that was measured.

    Examples:

        baseline recipes
    """
    from rich.table import Table

    from baseline.data.sources.datasets import DATASETS

    table = Table("recipe", "what it is for", "classes", "images", "arch", "presets", "measured")
    for name in recipe_names():
        recipe = load_recipe(name)
        known = DATASETS.get(recipe.data)
        counts = (str(len(known.classes)), f"{known.train + known.test:,}") if known else ("yours", "yours")
        presets = ", ".join(["standard", *recipe.presets])
        table.add_row(name, recipe.title, *counts, recipe.arch, presets, str(recipe.expected.get("words", "not yet")))
    _print(table)


def copy(
    name: Annotated[
        str, typer.Argument(help="A recipe's name.", autocompletion=completion(recipe_names), show_default=False)
    ],
    dest: Annotated[Path, typer.Argument(help="A folder, or the new file's name.")] = Path(),
) -> None:
    """Copies a recipe's TOML file, to change it and run it as your own.

    Examples:

        baseline copy cifar10 .

        baseline copy default mine.toml && baseline run mine.toml --data images/
    """
    from baseline.files import write_atomic

    load_recipe(name)
    target = dest / f"{name}.toml" if dest.is_dir() else dest
    if target.suffix != ".toml":
        raise OutputError(f"{target} is no folder, and no name that ends in .toml. Give one of these.")
    if target.exists():
        raise OutputError(f"{target} exists already. Remove it, or give another name.")
    write_atomic(target, (recipes_folder() / f"{name}.toml").read_bytes())
    print(target)
