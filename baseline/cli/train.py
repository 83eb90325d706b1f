"""TODO."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baseline.cli.options import (
    _LABELS,
    _SPLITS,
    Arch,
    Data,
    GroupCol,
    ImageCol,
    Images,
    ImageSize,
    LabelCol,
    LabelFrom,
    Labels,
    On,
    PhotosPerClass,
    Positive,
    Preset,
    Resume,
    Seed,
    Split,
    SplitCol,
    SplitFile,
    Target,
    _complete,
    _data,
    _given,
    _named,
    _print,
    _target,
)
from baseline.errors import OutputError, RecipeError
from baseline.files import UNFINISHED
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
        str | None, typer.Option(help="squish, crop or pad.", autocompletion=_complete(lambda: RESIZES))
    ] = None,
    batch_size: Annotated[str | None, typer.Option(help="Photos per step, or auto.")] = None,
    photos_per_class: PhotosPerClass = None,
    precision: Annotated[
        str | None,
        typer.Option(help="auto, float32, float16 or bfloat16.", autocompletion=_complete(lambda: PRECISIONS)),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Time for everything, such as 10m: image size and epochs are fitted to it.", show_default=False
        ),
    ] = None,
    cache_gb: Annotated[
        float | None, typer.Option(help="Most that is kept of decoded photos and outputs of frozen layers; 0: none.")
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Trains through torch.compile, which takes long to begin.")
    ] = False,
    log: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Numbers while training go to {', '.join(LOGGERS)}; several between commas, or none.",
            show_default=False,
            autocompletion=_complete(lambda: LOGGERS),
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read photos in the background.")] = None,
    seed: Seed = None,
    seeds: Annotated[
        int | None, typer.Option(help="Runs so many seeds, from --seed on, and tells mean and spread.")
    ] = None,
    image_col: ImageCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    images: Images = None,
    label_from: LabelFrom = None,
    positive: Positive = None,
    labels: Labels = None,
    split: Split = None,
    split_file: SplitFile = None,
    fold: Annotated[
        int | None,
        typer.Option(
            help="Runs this fold alone, from 0; without it, all.", show_default=False, rich_help_panel=_SPLITS
        ),
    ] = None,
    balance: Annotated[
        str | None, _named("For rare classes: none, weights (in the loss) or sampler.", words=BALANCES, panel=_SPLITS)
    ] = None,
    leaks: Annotated[
        str | None, _named("Training photos with a copy in test: keep or drop.", words=LEAKS, panel=_SPLITS)
    ] = None,
    fixes: Annotated[
        list[Path] | None,
        typer.Option(
            help="Mended labels, as baseline clean writes them: trains without and with them, and compares.",
            show_default=False,
            rich_help_panel=_LABELS,
        ),
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option(
            help="A finished run to compare with; not needed for its manifest.json.",
            show_default=False,
            rich_help_panel=_LABELS,
        ),
    ] = None,
    keep_if: Annotated[
        str | None, _named("Keeps only photos that a second model takes for this class.", panel=_LABELS)
    ] = None,
    keep_model: Annotated[Path | None, _named("The folder of that model.", panel=_LABELS)] = None,
    keep_above: Annotated[
        float | None, typer.Option(help="From which probability of it on; 0.5.", rich_help_panel=_LABELS)
    ] = None,
    no_audit: Annotated[
        bool, typer.Option("--no-audit", help="Only leave out what cannot be read.", rich_help_panel=_SPLITS)
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Copies in two splits end the run, exit code 3.", rich_help_panel=_SPLITS)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tells what was understood of the photos, and stops there.")
    ] = False,
    processes: Annotated[
        int,
        typer.Option(
            min=1, max=1024, help="Train in so many, each on a GPU, or its share of the CPU.", show_default=False
        ),
    ] = 1,
    resume: Resume = False,
    on: On = "",
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/NAME-DATE-TIME if not given.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Trains a baseline and tells its accuracy.

    Examples:

        baseline run cifar10

        baseline run cifar10 --preset standard --photos-per-class 250

        baseline run photos/ --budget 10m

        baseline run photos/ --arch resnet18 --weights resnet18-f37072fd.pth --out runs/mine

        baseline run train.csv --images train_images/ --group-col patient

        baseline run scans.zip --split kfold:5 --out runs/scans

        baseline run scans.zip --split kfold:5 --out runs/scans --resume

        baseline run scans.zip --split group-kfold:5 --fold 2 --balance weights

        baseline run runs/mine/manifest.json

        baseline run photos/ --seeds 5

        baseline run photos/ --seeds 5 --on ray

        baseline run runs/mine --resume

        baseline run photos/ --processes 2

        baseline run photos/ --log csv,tensorboard

        baseline run runs/mine/manifest.json --fixes fixes.csv

        baseline run photos/ --keep-if skyline --keep-model runs/skyline-or-not
    """
    if processes > 1 and "WORLD_SIZE" not in os.environ:
        if seeds is not None or fixes or (fold is None and _names_folds(target, split)):
            raise RecipeError("--processes goes with a single run. Leave it out, or --seeds, folds and --fixes.")
        from baseline.parallel.distributed import begin

        code, words = begin(processes, sys.argv[1:])
        if words:
            typer.echo(words, err=True)
        raise typer.Exit(code)
    changes = _given(
        arch=arch, weights=weights, image_size=image_size, resize=resize,
        batch_size=int(batch_size) if batch_size and batch_size.isdecimal() else batch_size,
        photos_per_class=photos_per_class, precision=precision, workers=workers, budget=budget, cache_gb=cache_gb,
        log=",".join(log) if log else None,
        image_col=image_col, label_col=label_col, group_col=group_col, split_col=split_col,
        images=images, label_from=label_from, positive=positive, labels=labels, split=split, split_file=split_file,
        fold=fold, balance=balance, leaks=leaks, keep_if=keep_if, keep_model=keep_model, keep_above=keep_above,
        audit="none" if no_audit else "strict" if strict else None,
    )  # fmt: skip
    changes |= {"scratch": True} if scratch else {}
    changes |= {"compile": True} if compile else {}
    changes |= {"preset": preset} if preset != "auto" else {}
    if resume and out is None and (Path(target) / UNFINISHED).exists():
        _go_on(Path(target), quiet, **changes, **_given(seed=seed))
        return
    photos, recipe = _target(target)
    if no_audit and strict:
        raise RecipeError("--strict needs the audit that --no-audit leaves out. Give one of them.")
    if fixes and seeds is not None:
        raise RecipeError("--fixes compares two runs, and --seeds makes several. Give one of them.")
    folds = fold is None and _names_folds(recipe, split)
    if folds and (fixes or seeds is not None):
        words = "--seeds" if seeds is not None else "--fixes"
        raise RecipeError(f"{words} and folds are several runs each. Give --fold K for one fold, or leave {words} out.")
    if resume and not (folds or seeds is not None):
        _unfinished(out)
    if on and not (folds or seeds is not None):
        raise RecipeError("--on goes with --seeds or folds, and this is one run. Leave it out.")
    if before is not None and not fixes:
        raise RecipeError("--before goes with --fixes. Give both, or compare runs by baseline compare.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from baseline.data.prepare import understand
    from baseline.make import make_baseline
    from baseline.progress import Show, Terminal

    show = Show() if quiet else Terminal()
    if data is not None:
        photos = _data(data, recipe, show)
    if dry_run:
        from baseline.data.table import understood
        from baseline.experiments.repeats import described_folds

        chosen, table = understand(photos, recipe, show=Show(), **changes | ({} if seed is None else {"seed": seed}))
        print("\n".join([*understood(table), *([described_folds(table, chosen)] if "kfold" in chosen.split else [])]))
        return
    options: dict[str, Any] = {"out": out, "seed": seed, "show": show}
    if folds:
        from baseline.cli.printing import folded
        from baseline.experiments.repeats import make_folds

        _print(folded(make_folds(photos, recipe, resume=resume, on=on, **options, **changes)))
        return
    if seeds is not None:
        from baseline.cli.printing import spread
        from baseline.experiments.repeats import make_seeds

        _print(spread(make_seeds(seeds, photos, recipe, resume=resume, on=on, **options, **changes)))
        return
    if fixes:
        from baseline.cli.printing import fixed
        from baseline.experiments.before_after import make_fixed

        _print(fixed(make_fixed(fixes, photos, recipe, before=before, **options, **changes)))
        return
    _tell(make_baseline(photos, recipe, **options, **changes))


def _names_folds(recipe: str, split: str | None) -> bool:
    """Whether all folds are meant: by the option, or by a recipe that does not name one of them, as a manifest does."""
    if split is not None:
        return "kfold" in split
    mine = recipe.endswith(".toml") and "kfold" in load_recipe(recipe).split
    return mine and "fold" not in read_values(Path(recipe))


def _unfinished(out: Path | None) -> None:
    """Sees that there is a run to go on with."""
    if out is None or not (out.expanduser() / UNFINISHED).exists():
        where = f"{out} holds none" if out else "its folder is needed: --out RUN, or baseline run RUN --resume"
        raise OutputError(f"--resume goes on with an unfinished run, and {where}. Without it a run begins anew.")


def _go_on(run: Path, quiet: bool, **changes: Any) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from baseline.make import go_on
    from baseline.progress import Show, Terminal

    _tell(go_on(run, show=Show() if quiet else Terminal(), **changes))


def _tell(done: Baseline) -> None:
    if done.manifest:  # of several processes the first tells
        from baseline.cli.printing import results

        _print(results(done))
