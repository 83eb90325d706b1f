"""TODO."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baseline.cli.options import (
    LABELS_PANEL,
    SPLITS_PANEL,
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
    Positive,
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
    text_option,
)
from baseline.errors import OutputError, RecipeError
from baseline.files import UNFINISHED_DIR
from baseline.recipe.load import load_recipe, read_values
from baseline.recipe.schema import BALANCES, LEAKS, LOGGERS, PRECISIONS, RESIZES

if TYPE_CHECKING:
    from baseline.make import Baseline


def run(
    target: Target,
    data: Data = None,
    preset: Preset = "auto",
    arch: Arch = None,
    weights: Annotated[Path | None, typer.Option(help="A .pth or .safetensors file of pretrained weights.")] = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="Start from random weights.")] = False,
    image_size: ImageSize = None,
    resize: Annotated[
        str | None, typer.Option(help="squish, crop or pad.", autocompletion=completion(lambda: RESIZES))
    ] = None,
    batch_size: Annotated[str | None, typer.Option(help="Images per step, or auto.")] = None,
    images_per_class: ImagesPerClass = None,
    precision: Annotated[
        str | None,
        typer.Option(help="auto, float32, float16 or bfloat16.", autocompletion=completion(lambda: PRECISIONS)),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Time for everything, such as 10m: image size and epochs are fitted to it.", show_default=False
        ),
    ] = None,
    cache_gb: Annotated[
        float | None, typer.Option(help="Most that is kept of decoded images and outputs of frozen layers; 0: none.")
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Trains through torch.compile, which takes long to begin.")
    ] = False,
    log: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Numbers while training go to {', '.join(LOGGERS)}; several between commas, or none.",
            show_default=False,
            autocompletion=completion(lambda: LOGGERS),
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read images in the background.")] = None,
    seed: Seed = None,
    seeds: Annotated[
        int | None, typer.Option(help="Runs so many seeds, from --seed on, and tells mean and spread.")
    ] = None,
    image_col: ImageCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    image_dir: ImageDir = None,
    label_from: LabelFrom = None,
    positive: Positive = None,
    labels: Labels = None,
    split: Split = None,
    split_file: SplitFile = None,
    fold: Annotated[
        int | None,
        typer.Option(
            help="Runs this fold alone, from 0; without it, all.", show_default=False, rich_help_panel=SPLITS_PANEL
        ),
    ] = None,
    balance: Annotated[
        str | None,
        text_option("For rare classes: none, weights (in the loss) or sampler.", words=BALANCES, panel=SPLITS_PANEL),
    ] = None,
    leaks: Annotated[
        str | None, text_option("Training images with a copy in test: keep or drop.", words=LEAKS, panel=SPLITS_PANEL)
    ] = None,
    fixes: Annotated[
        list[Path] | None,
        typer.Option(
            help="Mended labels, as baseline clean writes them: trains without and with them, and compares.",
            show_default=False,
            rich_help_panel=LABELS_PANEL,
        ),
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option(
            help="A finished run to compare with; not needed for its manifest.json.",
            show_default=False,
            rich_help_panel=LABELS_PANEL,
        ),
    ] = None,
    keep_if: Annotated[
        str | None, text_option("Keeps only images that a second model takes for this class.", panel=LABELS_PANEL)
    ] = None,
    keep_model: Annotated[Path | None, text_option("The folder of that model.", panel=LABELS_PANEL)] = None,
    keep_above: Annotated[
        float | None, typer.Option(help="From which probability of it on; 0.5.", rich_help_panel=LABELS_PANEL)
    ] = None,
    no_audit: Annotated[
        bool, typer.Option("--no-audit", help="Only leave out what cannot be read.", rich_help_panel=SPLITS_PANEL)
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Copies in two splits end the run, exit code 3.", rich_help_panel=SPLITS_PANEL),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tells what was understood of the images, and stops there.")
    ] = False,
    processes: Annotated[
        int,
        typer.Option(
            min=1, max=1024, help="Train in so many, each on a GPU, or its share of the CPU.", show_default=False
        ),
    ] = 1,
    resume: Resume = False,
    on: ExecutorOption = "",
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/NAME-DATE-TIME if not given.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Trains a baseline and tells its accuracy.

    Examples:

        baseline run cifar10

        baseline run cifar10 --preset standard --images-per-class 250

        baseline run images/ --budget 10m

        baseline run images/ --arch resnet18 --weights resnet18-f37072fd.pth --out runs/mine

        baseline run train.csv --image-dir train_images/ --group-col patient

        baseline run scans.zip --split kfold:5 --out runs/scans

        baseline run scans.zip --split kfold:5 --out runs/scans --resume

        baseline run scans.zip --split group-kfold:5 --fold 2 --balance weights

        baseline run runs/mine/manifest.json

        baseline run images/ --seeds 5

        baseline run images/ --seeds 5 --on ray

        baseline run runs/mine --resume

        baseline run images/ --processes 2

        baseline run images/ --log csv,tensorboard

        baseline run runs/mine/manifest.json --fixes fixes.csv

        baseline run images/ --keep-if skyline --keep-model runs/skyline-or-not
    """
    if processes > 1 and "WORLD_SIZE" not in os.environ:
        if seeds is not None or fixes or (fold is None and _means_all_folds(target, split)):
            raise RecipeError("--processes goes with a single run. Leave it out, or --seeds, folds and --fixes.")
        from baseline.parallel.distributed import launch

        code, words = launch(processes, sys.argv[1:])
        if words:
            typer.echo(words, err=True)
        raise typer.Exit(code)
    changes = given_options(
        arch=arch, weights=weights, image_size=image_size, resize=resize,
        batch_size=int(batch_size) if batch_size and batch_size.isdecimal() else batch_size,
        images_per_class=images_per_class, precision=precision, workers=workers, budget=budget, cache_gb=cache_gb,
        log=",".join(log) if log else None,
        image_col=image_col, label_col=label_col, group_col=group_col, split_col=split_col,
        image_dir=image_dir, label_from=label_from, positive=positive, labels=labels, split=split, split_file=split_file,
        fold=fold, balance=balance, leaks=leaks, keep_if=keep_if, keep_model=keep_model, keep_above=keep_above,
        audit="none" if no_audit else "strict" if strict else None,
    )  # fmt: skip
    changes |= {"scratch": True} if scratch else {}
    changes |= {"compile": True} if compile else {}
    changes |= {"preset": preset} if preset != "auto" else {}
    if resume and out is None and (Path(target) / UNFINISHED_DIR).exists():
        _resume_run(Path(target), quiet, **changes, **given_options(seed=seed))
        return
    images, recipe = parse_target(target)
    if no_audit and strict:
        raise RecipeError("--strict needs the audit that --no-audit leaves out. Give one of them.")
    if fixes and seeds is not None:
        raise RecipeError("--fixes compares two runs, and --seeds makes several. Give one of them.")
    folds = fold is None and _means_all_folds(recipe, split)
    if folds and (fixes or seeds is not None):
        words = "--seeds" if seeds is not None else "--fixes"
        raise RecipeError(f"{words} and folds are several runs each. Give --fold K for one fold, or leave {words} out.")
    if resume and not (folds or seeds is not None):
        _check_unfinished(out)
    if on and not (folds or seeds is not None):
        raise RecipeError("--on goes with --seeds or folds, and this is one run. Leave it out.")
    if before is not None and not fixes:
        raise RecipeError("--before goes with --fixes. Give both, or compare runs by baseline compare.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from baseline.data.prepare import load_images
    from baseline.make import make_baseline
    from baseline.progress import ConsoleProgress, Progress

    show = Progress() if quiet else ConsoleProgress()
    if data is not None:
        images = data_place(data, recipe, show)
    if dry_run:
        from baseline.data.table import summarize_source
        from baseline.experiments.repeats import describe_folds

        chosen, table = load_images(
            images, recipe, progress=Progress(), **changes | ({} if seed is None else {"seed": seed})
        )
        print(
            "\n".join([*summarize_source(table), *([describe_folds(table, chosen)] if "kfold" in chosen.split else [])])
        )
        return
    options: dict[str, Any] = {"out": out, "seed": seed, "progress": show}
    if folds:
        from baseline.cli.printing import folds_table
        from baseline.experiments.repeats import run_folds

        _print(folds_table(run_folds(images, recipe, resume=resume, executor=on, **options, **changes)))
        return
    if seeds is not None:
        from baseline.cli.printing import seeds_table
        from baseline.experiments.repeats import run_seeds

        _print(seeds_table(run_seeds(seeds, images, recipe, resume=resume, executor=on, **options, **changes)))
        return
    if fixes:
        from baseline.cli.printing import fixes_table
        from baseline.experiments.before_after import compare_fixes

        _print(fixes_table(compare_fixes(fixes, images, recipe, before=before, **options, **changes)))
        return
    _print_result(make_baseline(images, recipe, **options, **changes))


def _means_all_folds(recipe: str, split: str | None) -> bool:
    """Whether all folds are meant: by the option, or by a recipe that does not name one of them, as a manifest does."""
    if split is not None:
        return "kfold" in split
    mine = recipe.endswith(".toml") and "kfold" in load_recipe(recipe).split
    return mine and "fold" not in read_values(Path(recipe))


def _check_unfinished(out: Path | None) -> None:
    """Sees that there is a run to go on with."""
    if out is None or not (out.expanduser() / UNFINISHED_DIR).exists():
        where = f"{out} holds none" if out else "its folder is needed: --out RUN, or baseline run RUN --resume"
        raise OutputError(f"--resume goes on with an unfinished run, and {where}. Without it a run begins anew.")


def _resume_run(run: Path, quiet: bool, **changes: Any) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from baseline.make import resume
    from baseline.progress import ConsoleProgress, Progress

    _print_result(resume(run, progress=Progress() if quiet else ConsoleProgress(), **changes))


def _print_result(done: Baseline) -> None:
    if done.manifest:  # of several processes the first tells
        from baseline.cli.printing import result_table

        _print(result_table(done))
