"""The commands that run experiments with several models: `ladder`, `curve` and `clean`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baseline.cli.options import (
    CURVE_VARIANT_NAMES,
    VARIANT_NAMES,
    DataOption,
    ExecutorOption,
    HelpAll,
    Preset,
    Quiet,
    Resume,
    SetOption,
    completion,
    data_place,
    make_progress,
    parse_target,
    recipe_options,
    split_names,
)
from baseline.cli.options import Target as TargetArgument
from baseline.cli.output import print_table
from baseline.errors import RecipeError
from baseline.recipe.load import recipe_names

if TYPE_CHECKING:
    from baseline.progress import Progress

IMAGE_FIELDS = (
    "image_col", "label_col", "group_col", "split_col", "image_dir", "label_from", "source", "label_delim", "bins",
    "missing", "encoding", "min_per_class", "other",
)  # fmt: skip

EXPERIMENT_FIELDS = (
    "image_size", "images_per_class", "seed", *IMAGE_FIELDS, "task", "split", "split_file", "metric",
)  # fmt: skip


@recipe_options(*EXPERIMENT_FIELDS)
def ladder_command(
    target: TargetArgument,
    data: DataOption = None,
    arch: Annotated[
        str | None,
        typer.Option(help="Backbones to compare, separated by commas; all variants run with each.", show_default=False),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            help="Only these variants, separated by commas: " + ", ".join(VARIANT_NAMES) + ".",
            show_default=False,
            autocompletion=completion(lambda: VARIANT_NAMES),
        ),
    ] = None,
    clip: Annotated[
        str,
        typer.Option(
            metavar="NAME:FILE",
            help="CLIP model and weights for the variant zeroshot (extra clip), or NAME:TAG for published weights.",
            show_default=False,
        ),
    ] = "",
    prompt: Annotated[
        str, typer.Option(help="Prompt for CLIP (default: 'a photo of a {class}').", show_default=False)
    ] = "",
    preset: Preset = "auto",
    set: SetOption = None,
    resume: Resume = False,
    executor: ExecutorOption = "",
    out: Annotated[
        Path | None, typer.Option(help="Output folder (default: runs/ladder-NAME-DATE-TIME).", show_default=False)
    ] = None,
    quiet: Quiet = False,
    help_all: HelpAll = False,
    *,
    changes: dict[str, Any],
) -> None:
    """Compare a majority-class baseline, frozen features, fine-tuning and training from scratch on one split.

    Examples:

    ```text
    baseline ladder images/
    baseline ladder cifar10 --images-per-class 250 --preset quick
    baseline ladder images/ --arch resnet18,mobilenet_v2 --variants head,tta
    baseline ladder images/ --out runs/ladder --resume
    baseline ladder images/ --variants zeroshot --clip ViT-B-32:clip.safetensors
    ```
    """
    images, recipe, progress = _parse_experiment(target, data, preset, quiet, changes)
    from baseline.cli.printing import ladder_table
    from baseline.experiments.ladder import run_ladder

    result = run_ladder(
        images, recipe, archs=split_names(arch), variants=split_names(variants), out=out, resume=resume,
        executor=executor, clip=clip, prompt=prompt, progress=progress, **changes,
    )  # fmt: skip
    print_table(ladder_table(result))
    progress.log(f"page: {result.folder / 'ladder.html'}")


@recipe_options("arch", *EXPERIMENT_FIELDS)
def curve_command(
    target: TargetArgument,
    data: DataOption = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Images per class, separated by commas (default: 5, doubled up to all).", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random subsets for each size.")] = 3,
    variants: Annotated[
        str,
        typer.Option(
            help="Methods, separated by commas: " + ", ".join(CURVE_VARIANT_NAMES) + ".",
            autocompletion=completion(lambda: CURVE_VARIANT_NAMES),
        ),
    ] = "logistic,groups",
    preset: Preset = "auto",
    set: SetOption = None,
    resume: Resume = False,
    executor: ExecutorOption = "",
    out: Annotated[
        Path | None, typer.Option(help="Output folder (default: runs/curve-NAME-DATE-TIME).", show_default=False)
    ] = None,
    quiet: Quiet = False,
    help_all: HelpAll = False,
    *,
    changes: dict[str, Any],
) -> None:
    """Measure accuracy against the number of training images, and predict the gain from twice as many.

    Examples:

    ```text
    baseline curve images/
    baseline curve images/ --variants logistic --seeds 10
    baseline curve cifar10 --images-per-class 500 --sizes 10,30,100,300
    baseline curve train.csv --group-col sign --out runs/curve --resume
    ```
    """
    images, recipe, progress = _parse_experiment(target, data, preset, quiet, changes)
    from baseline.cli.printing import curve_table
    from baseline.experiments.learning_curve import run_learning_curve

    numbers = split_names(sizes)
    if wrong := [number for number in numbers if not re.fullmatch(r"\d{1,18}", number)]:
        raise RecipeError(f"--sizes must be integers separated by commas, such as 10,30,100; got '{wrong[0]}'.")
    result = run_learning_curve(
        images, recipe, sizes=[int(number) for number in numbers], seeds=seeds, variants=split_names(variants),
        out=out, resume=resume, executor=executor, progress=progress, **changes,
    )  # fmt: skip
    print_table(curve_table(result))
    progress.log(f"page: {result.folder / 'curve.html'}")


@recipe_options(*IMAGE_FIELDS, "image_size", "seed")
def clean_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_IMAGES",
            help="Folder of a finished run, or anything that baseline run takes.",
            autocompletion=completion(recipe_names),
            show_default=False,
        ),
    ],
    splits: Annotated[str, typer.Option(help="Splits to review, separated by commas.")] = "train,valid,test",
    folds: Annotated[int | None, typer.Option(min=2, help="Number of folds; 5 by default.", show_default=False)] = None,
    oof: Annotated[
        Path | None,
        typer.Option(help="Table of out-of-fold probabilities (path and p_CLASS) to use instead.", show_default=False),
    ] = None,
    accept: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Write fixes.csv with the suggestions with at least this confidence.", show_default=False
        ),
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="Maximum number of images in each section of the page.")] = 500,
    out: Annotated[
        Path | None, typer.Option(help="Output folder (default: clean-NAME-DATE-TIME).", show_default=False)
    ] = None,
    quiet: Quiet = False,
    help_all: HelpAll = False,
    *,
    changes: dict[str, Any],
) -> None:
    """Find labels that are probably wrong, and write an HTML page to review them.

    Labels are scored with out-of-fold predictions. Open clean.html, review, download fixes.csv, and pass it to
    `baseline run ... --fixes fixes.csv`.

    Examples:

    ```text
    baseline clean runs/mine
    baseline clean images/ --out clean/
    baseline clean cifar10 --splits train,valid --accept 0.9
    ```
    """
    from baseline.cli.printing import label_review_table
    from baseline.experiments.label_review import clean

    is_run = Path(target).name == "manifest.json" or (Path(target).expanduser() / "manifest.json").is_file()
    images, recipe = (target, "default") if is_run else parse_target(target)
    result = clean(
        images, recipe, splits=split_names(splits), folds=folds, oof=oof, accept=accept, max_images=max_images, out=out,
        progress=make_progress(quiet), **changes,
    )  # fmt: skip
    print_table(label_review_table(result, target))


def _parse_experiment(
    target: str, data: Path | None, preset: str, quiet: bool, changes: dict[str, Any]
) -> tuple[str | None, str, Progress]:
    """The images, the recipe and the progress of a command that trains several models; the preset joins the changes."""
    images, recipe = parse_target(target)
    progress = make_progress(quiet)
    if preset != "auto":
        changes["preset"] = preset
    return (data_place(data, recipe, progress) if data is not None else images), recipe, progress
