"""TODO."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baseline.cli.options import (
    CURVE_VARIANT_NAMES,
    VARIANT_NAMES,
    Arch,
    Data,
    ExecutorOption,
    GroupCol,
    ImageCol,
    ImageDir,
    ImageSize,
    ImagesPerClass,
    LabelCol,
    LabelFrom,
    Labels,
    Preset,
    Resume,
    Seed,
    Split,
    SplitCol,
    SplitFile,
    Target,
    _print,
    completion,
    data_place,
    given_options,
    parse_target,
    split_names,
)
from baseline.errors import RecipeError
from baseline.recipe.load import recipe_names

if TYPE_CHECKING:
    from baseline.progress import Progress


def ladder(
    target: Target,
    data: Data = None,
    arch: Annotated[
        str | None, typer.Option(help="Architectures to compare, with commas between; each with every variant.")
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            help="Only these, with commas between: " + ", ".join(VARIANT_NAMES) + ".",
            show_default=False,
            autocompletion=completion(lambda: VARIANT_NAMES),
        ),
    ] = None,
    clip: Annotated[
        str,
        typer.Option(
            metavar="NAME:FILE",
            help="CLIP's model and weights for the variant zeroshot (extra clip), or NAME:TAG for published ones; "
            "ViT-B-32:laion2b_s34b_b79k if not given.",
            show_default=False,
        ),
    ] = "",
    prompt: Annotated[
        str, typer.Option(help="What CLIP is asked; 'an image of a {class}' if not given.", show_default=False)
    ] = "",
    preset: Preset = "auto",
    image_size: ImageSize = None,
    images_per_class: ImagesPerClass = None,
    seed: Seed = None,
    image_col: ImageCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    image_dir: ImageDir = None,
    label_from: LabelFrom = None,
    labels: Labels = None,
    split: Split = None,
    split_file: SplitFile = None,
    resume: Resume = False,
    on: ExecutorOption = "",
    out: Annotated[
        Path | None, typer.Option(help="The folder; runs/ladder-NAME-DATE-TIME if not given.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the table.")] = False,
) -> None:
    """Compares a guess, pretrained features, a frozen body, fine-tuning and training from scratch on one split.

    Examples:

        baseline ladder images/

        baseline ladder cifar10 --images-per-class 250 --preset quick

        baseline ladder images/ --arch resnet18,mobilenet_v2 --variants head,groups,tta

        baseline ladder images/ --out runs/ladder --resume

        baseline ladder images/ --arch resnet18,mobilenet_v2 --on ray

        baseline ladder images/ --variants logistic,groups,zeroshot --clip ViT-B-32:open_clip_model.safetensors
    """
    images, recipe, show, changes = _parse_experiment(
        target, data, preset, quiet, image_size=image_size, images_per_class=images_per_class, seed=seed,
        image_col=image_col, label_col=label_col, group_col=group_col, split_col=split_col, image_dir=image_dir,
        label_from=label_from, labels=labels, split=split, split_file=split_file,
    )  # fmt: skip
    from baseline.cli.printing import ladder_table
    from baseline.experiments.ladder import run_ladder

    found = run_ladder(images, recipe, archs=split_names(arch), variants=split_names(variants), out=out, resume=resume,
                        on=on, clip=clip, prompt=prompt, progress=show, **changes)  # fmt: skip
    _print(ladder_table(found))
    show.log(f"page: {found.folder / 'ladder.html'}")


def curve(
    target: Target,
    data: Data = None,
    sizes: Annotated[
        str | None, typer.Option(help="Images a class, with commas between; doubled from 5, and all, if not given.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Choices of images for each size.")] = 3,
    variants: Annotated[
        str,
        typer.Option(
            help="What is trained, with commas between: " + ", ".join(CURVE_VARIANT_NAMES) + ".",
            autocompletion=completion(lambda: CURVE_VARIANT_NAMES),
        ),
    ] = "logistic,groups",
    preset: Preset = "auto",
    arch: Arch = None,
    image_size: ImageSize = None,
    images_per_class: ImagesPerClass = None,
    seed: Seed = None,
    image_col: ImageCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    image_dir: ImageDir = None,
    label_from: LabelFrom = None,
    labels: Labels = None,
    split: Split = None,
    split_file: SplitFile = None,
    resume: Resume = False,
    on: ExecutorOption = "",
    out: Annotated[
        Path | None, typer.Option(help="The folder; runs/curve-NAME-DATE-TIME if not given.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Accuracy against the number of training images, and what twice as many should bring.

    Examples:

        baseline curve images/

        baseline curve images/ --variants logistic --seeds 10

        baseline curve cifar10 --images-per-class 500 --sizes 10,30,100,300

        baseline curve train.csv --group-col sign --out runs/curve --resume

        baseline curve images/ --variants groups --seeds 5 --on ray://head:10001
    """
    images, recipe, show, changes = _parse_experiment(
        target, data, preset, quiet, arch=arch, image_size=image_size, images_per_class=images_per_class, seed=seed,
        image_col=image_col, label_col=label_col, group_col=group_col, split_col=split_col, image_dir=image_dir,
        label_from=label_from, labels=labels, split=split, split_file=split_file,
    )  # fmt: skip
    from baseline.cli.printing import curve_table
    from baseline.experiments.learning_curve import run_learning_curve

    numbers = split_names(sizes)
    if wrong := [number for number in numbers if not number.isdecimal()]:
        raise RecipeError(
            f"--sizes has '{wrong[0]}'; whole numbers with commas between were needed, such as 10,30,100."
        )
    found = run_learning_curve(images, recipe, sizes=[int(number) for number in numbers], seeds=seeds,
                               variants=split_names(variants), out=out, resume=resume, on=on, progress=show,
                               **changes)  # fmt: skip
    _print(curve_table(found))
    show.log(f"page: {found.folder / 'curve.html'}")


def clean(
    target: Annotated[
        str,
        typer.Argument(
            help="The folder of a finished run, or what baseline run takes.",
            autocompletion=completion(recipe_names),
            show_default=False,
        ),
    ],
    image_col: ImageCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    image_dir: ImageDir = None,
    label_from: LabelFrom = None,
    splits: Annotated[str, typer.Option(help="Which images are judged, between commas.")] = "train,valid,test",
    folds: Annotated[
        int | None, typer.Option(min=2, help="Parts that are judged in turn; 5 if not given.", show_default=False)
    ] = None,
    oof: Annotated[
        Path | None,
        typer.Option(help="A table of out-of-fold probabilities, path and p_CLASS, to judge by.", show_default=False),
    ] = None,
    accept: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Writes fixes.csv with the suggestions from this confidence on.", show_default=False
        ),
    ] = None,
    shown: Annotated[int, typer.Option(min=1, help="Images in the page, at most, of each kind.")] = 500,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels, side of the square the network sees.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of splits and folds.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder; clean-NAME-DATE-TIME if not given.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Finds labels that are probably wrong, and writes a page to mend them on.

    Every image is judged by a classifier that has not seen it. Open clean.html, decide, download fixes.csv, and give
    it to `baseline run ... --fixes fixes.csv`.

    Examples:

        baseline clean runs/mine

        baseline clean images/ --out clean/

        baseline clean cifar10 --splits train,valid --accept 0.9
    """
    from baseline.cli.printing import label_review_table as told
    from baseline.experiments.label_review import clean as cleaned
    from baseline.progress import ConsoleProgress, Progress

    is_run = Path(target).name == "manifest.json" or (Path(target).expanduser() / "manifest.json").is_file()
    images, recipe = (target, "default") if is_run else parse_target(target)
    given = given_options(
        image_col=image_col, label_col=label_col, group_col=group_col, split_col=split_col,
        image_dir=image_dir, label_from=label_from, image_size=image_size, seed=seed,
    )  # fmt: skip
    show = Progress() if quiet else ConsoleProgress()
    parts = [name.strip() for name in splits.split(",")]
    options: dict[str, Any] = {"out": out, "splits": parts, "folds": folds, "oof": oof, "accept": accept}
    _print(told(cleaned(images, recipe, max_images=shown, progress=show, **options, **given), target))


def _parse_experiment(
    target: str, data: Path | None, preset: str, quiet: bool, **options: Any
) -> tuple[str | None, str, Progress, dict[str, Any]]:
    """Images, recipe, where progress goes, and what the recipe changes, of a command that makes several runs."""
    from baseline.progress import ConsoleProgress, Progress

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    images, recipe = parse_target(target)
    show = Progress() if quiet else ConsoleProgress()
    changes = given_options(**options) | ({"preset": preset} if preset != "auto" else {})
    return (data_place(data, recipe, show) if data is not None else images), recipe, show, changes
