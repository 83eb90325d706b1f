"""The commands that train: `run`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baseline.cli.dry_run import print_images
from baseline.cli.json_output import fixes_object, print_object, repeats_object, run_object
from baseline.cli.options import (
    AsJson,
    DataOption,
    ExecutorOption,
    HelpAll,
    Preset,
    Quiet,
    Resume,
    SetOption,
    Target,
    data_place,
    make_progress,
    parse_target,
    recipe_options,
)
from baseline.cli.output import print_table, print_text
from baseline.cli.stage_options import StageOptions
from baseline.errors import OutputError, RecipeError
from baseline.files import UNFINISHED_DIR, read_values
from baseline.recipe.fields import IMAGES_PANEL, MODEL_PANEL, RUN_PANEL
from baseline.recipe.load import load_recipe

if TYPE_CHECKING:
    from baseline.make import Baseline
    from baseline.recipe.schema import Recipe


Seeds = Annotated[
    int | None,
    typer.Option(help="Train with this many seeds; reports mean and standard deviation.", rich_help_panel=RUN_PANEL),
]

Before = Annotated[
    Path | None,
    typer.Option(
        help="With --fixes: a finished run to compare with.", rich_help_panel=IMAGES_PANEL, hidden=True,
        show_default=False,
    ),
]  # fmt: skip

NoAudit = Annotated[
    bool, typer.Option("--no-audit", help="Skip the audit of the images.", rich_help_panel=IMAGES_PANEL, hidden=True)
]

Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Fail (exit code 3) if duplicates span splits.",
        rich_help_panel=IMAGES_PANEL,
        hidden=True,
    ),
]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print how the images would be read, and exit.", rich_help_panel=RUN_PANEL)
]

Processes = Annotated[
    int,
    typer.Option(
        min=1, max=1024, show_default=False, rich_help_panel=RUN_PANEL, hidden=True,
        help="Number of training processes: one per GPU, or sharing the CPU.",
    ),
]  # fmt: skip

Epochs = Annotated[
    int | None,
    typer.Option(
        show_default=False, rich_help_panel=MODEL_PANEL,
        help="Epochs of the last stage, which fine-tunes: exactly this many.",
    ),
]  # fmt: skip

LearningRate = Annotated[
    str,
    typer.Option(
        "--lr", show_default=False, rich_help_panel=MODEL_PANEL,
        help="Learning rate of the last stage: a number, FIRST,LAST for the first and last layers, or find.",
    ),
]  # fmt: skip

AugmentOption = Annotated[
    bool | None,
    typer.Option(
        "--augment/--no-augment", show_default=False, rich_help_panel=MODEL_PANEL,
        help="Use flips, rotation, zoom, warp and lighting, or no augmentation.",
    ),
]  # fmt: skip

Out = Annotated[
    Path | None,
    typer.Option(help="Output folder (default: runs/NAME-DATE-TIME).", show_default=False, rich_help_panel=RUN_PANEL),
]


@recipe_options()
def run_command(
    target: Target,
    data: DataOption = None,
    preset: Preset = "auto",
    set: SetOption = None,
    seeds: Seeds = None,
    before: Before = None,
    no_audit: NoAudit = False,
    strict: Strict = False,
    dry_run: DryRun = False,
    epochs: Epochs = None,
    lr: LearningRate = "",
    augment: AugmentOption = None,
    processes: Processes = 1,
    resume: Resume = False,
    executor: ExecutorOption = "",
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    help_all: HelpAll = False,
    *,
    changes: dict[str, Any],
) -> None:
    """Train an image classifier and report its accuracy; `baseline train` is the same command.

    Examples:

    ```text
    baseline run images/                         # one folder per class
    baseline run cifar10 --preset standard
    baseline run train.csv --image-dir train/ --label-col species --budget 10m
    baseline run images/ --split kfold:5 --out runs/folds
    baseline run runs/mine --resume
    ```
    """
    folds = changes.get("fold") is None and _means_all_folds(target, changes.get("split"))
    fixes = changes.get("fixes")
    if processes > 1 and "WORLD_SIZE" not in os.environ:
        if seeds is not None or fixes or folds:
            raise RecipeError("--processes cannot be combined with --seeds, k-fold splits or --fixes.")
        _launch(processes)
    if no_audit and strict:
        raise RecipeError("--strict and --no-audit cannot be combined.")
    changes |= {"audit": "none"} if no_audit else {"audit": "strict"} if strict else {}
    changes |= {"preset": preset} if preset != "auto" else {}
    options = StageOptions(epochs, lr, augment)
    if resume and out is None and (Path(target) / UNFINISHED_DIR).exists():
        if options.given:
            raise RecipeError(f"{options.given}: an unfinished run keeps its training. Omit it, or start a new run.")
        _resume_run(Path(target), quiet, as_json, **changes)
        return
    images, recipe = parse_target(target)
    run = out or (Path(target) if (Path(target) / "manifest.json").is_file() else None)
    _check_combination(seeds=seeds, fixes=fixes, folds=folds, resume=resume, executor=executor, before=before, out=run)
    progress = make_progress(quiet)
    if data is not None:
        images = data_place(data, recipe, progress)
    chosen, changes = options.apply(recipe, changes)
    if dry_run:
        print_images(images, chosen, changes, as_json)
        return
    changes |= {"out": out, "progress": progress}
    if folds or seeds is not None:
        _run_several(seeds, images, chosen, as_json, resume=resume, executor=executor, **changes)
    elif fixes:
        _compare_fixes(images, chosen, before, as_json, **changes)
    else:
        from baseline.make import make_baseline

        _print_result(make_baseline(images, chosen, **changes), as_json)


def _launch(processes: int) -> None:
    """Run this command in several processes, and exit with their code."""
    from baseline.parallel.distributed import launch

    code, message = launch(processes, sys.argv[1:])
    if message:
        print_text(message, file=sys.stderr)
    raise typer.Exit(code)


def _check_combination(
    *, seeds: int | None, fixes: Any, folds: bool, resume: bool, executor: str, before: Path | None, out: Path | None
) -> None:
    """Raise an error for options that do not work together."""
    several = folds or seeds is not None
    if fixes and seeds is not None:
        raise RecipeError("--fixes and --seeds cannot be combined.")
    if folds and (fixes or seeds is not None):
        option = "--seeds" if seeds is not None else "--fixes"
        raise RecipeError(
            f"{option} and k-fold splits cannot be combined. Pass --fold K to train one fold, or omit {option}."
        )
    if resume and not several:
        _check_unfinished(out)
    if executor and not several:
        raise RecipeError("--executor needs --seeds or a k-fold split. Omit it for a single run.")
    if before is not None and not fixes:
        raise RecipeError("--before needs --fixes. To compare two finished runs, use baseline compare.")


def _run_several(seeds: int | None, images: str | None, recipe: str | Recipe, as_json: bool, **options: Any) -> None:
    """Train all folds, or as many seeds, and print their summary."""
    from baseline.cli.printing import folds_table, seeds_table
    from baseline.experiments.repeats import SeedRuns, run_folds, run_seeds

    result = run_folds(images, recipe, **options) if seeds is None else run_seeds(seeds, images, recipe, **options)
    if as_json:
        print_object("run", repeats_object(result))
    else:
        print_table(seeds_table(result) if isinstance(result, SeedRuns) else folds_table(result))


def _compare_fixes(
    images: str | None, recipe: str | Recipe, before: Path | None, as_json: bool, *, fixes: Any, **options: Any
) -> None:
    from baseline.cli.printing import fixes_table
    from baseline.experiments.before_after import compare_fixes

    result = compare_fixes(fixes, images, recipe, before=before, **options)
    if as_json:
        print_object("run", fixes_object(result))
    else:
        print_table(fixes_table(result))


def _means_all_folds(recipe: str, split: str | None) -> bool:
    """Whether all folds are trained: the option names folds, or a recipe does without naming one of them."""
    if split is not None:
        return "kfold" in split
    is_file = recipe.endswith(".toml") and "kfold" in load_recipe(recipe).split.method
    return is_file and "fold" not in read_values(Path(recipe))


def _check_unfinished(out: Path | None) -> None:
    """Raise an error if there is no run to resume."""
    if out is None or not (out.expanduser() / UNFINISHED_DIR).exists():
        problem = f"{out} contains no unfinished run" if out else "no folder was given"
        usage = "--resume needs the folder of an unfinished run: --out RUN --resume, or baseline run RUN --resume"
        raise OutputError(f"{usage}; {problem}.")


def _resume_run(run: Path, quiet: bool, as_json: bool, **changes: Any) -> None:
    from baseline.make import resume

    _print_result(resume(run, progress=make_progress(quiet), **changes), as_json)


def _print_result(result: Baseline, as_json: bool) -> None:
    if result.manifest and as_json:  # in a distributed run the first process has it
        print_object("run", run_object(result))
    elif result.manifest:
        from baseline.cli.printing import result_table

        print_table(result_table(result))
