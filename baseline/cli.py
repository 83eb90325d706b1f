"""The command line: parse, call, print. Knows words; does no work, and loads no torch until a command needs it."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import BaselineError, OutputError, RecipeError, unknown
from .recipe import (
    BALANCES,
    LABELS,
    LEAKS,
    LOGGERS,
    PRECISIONS,
    PRESETS,
    RESIZES,
    WAYS,
    load_recipe,
    read_values,
    recipe_names,
    recipes_folder,
)
from .save import UNFINISHED

if TYPE_CHECKING:
    from .make import Baseline
    from .progress import Show

app = typer.Typer(
    name="baseline",
    help="The first honest number for an image-classification problem, and a model to go with it.",
    epilog="Start with: baseline run cifar10 | baseline run photos/ | baseline doctor",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Runs the command line; errors of the input become one line and exit code 2, Ctrl-C becomes 130."""
    # said by timm's and fastai's imports, which nobody who runs this command can mend
    warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated")
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of photos, whose rows or findings say more
    try:
        code = app(standalone_mode=False, prog_name="baseline")
    except BaselineError as error:
        code = _refused(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's errors of usage have it, whichever click is below
            raise
        context, words = getattr(error, "ctx", None), error.format_message()
        where = context.command_path if context else "baseline"
        code = _refused(f"{words} See {where} --help.") if words else 2  # without words, it was help that was shown
    raise SystemExit(code or 0)


def _refused(words: str, code: int = 2) -> int:
    print(f"baseline: {' '.join(words.split())}", file=sys.stderr)
    return code


def _complete(names: Callable[[], Any]) -> Any:
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


_PRESET_NAMES = ("auto", *PRESETS)
RUNG_NAMES = ("majority", "neighbours", "logistic", "head", "fastai", "groups", "all", "tta", "scratch", "zeroshot")
CURVE_NAMES = tuple(name for name in RUNG_NAMES if name not in ("majority", "tta", "zeroshot"))
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


_SPLITS = "Splits and imbalance"
_LABELS = "Mended labels, and photos that belong"
ImageCol = Annotated[str | None, _named("The table's column of photos; looked for if not given.")]
LabelCol = Annotated[str | None, _named("Its column of classes, or several between commas, each 0 or 1.")]
GroupCol = Annotated[str | None, _named("Its column of what belongs together; splits heed it.")]
SplitCol = Annotated[str | None, _named("Its column of train, valid and test.")]
Images = Annotated[Path | None, _named("The folder of the photos that the table names.")]
LabelFrom = Annotated[str | None, _named("A regular expression that finds the class in a photo's path.")]
Positive = Annotated[str | None, _named("A class to tell from all others, which become one.")]
Labels = Annotated[str | None, _named("auto, one, or many with ; between them.", words=LABELS)]

Data = Annotated[
    Path | None, typer.Option(help="The photos, for a recipe: a folder, or an archive of a named data set.")
]
Preset = Annotated[
    str,
    typer.Option(
        help="quick, standard or best; auto: standard on a GPU, quick on a CPU.",
        autocompletion=_complete(lambda: _PRESET_NAMES),
    ),
]
Arch = Annotated[
    str | None, typer.Option(help="A torchvision or timm name, or auto; 'NAME or auto'.", show_default=False)
]
ImageSize = Annotated[int | None, typer.Option(help="Pixels, side of the square the network sees.")]
PhotosPerClass = Annotated[int | None, typer.Option(help="Train on a seeded subset of so many photos per class.")]
Seed = Annotated[int | None, typer.Option(help="Of splits and training.")]
Split = Annotated[str | None, _named(f"{', '.join(WAYS)}.", words=WAYS, panel=_SPLITS)]
SplitFile = Annotated[Path | None, _named("A run's split.csv, to split as it did.", panel=_SPLITS)]
Resume = Annotated[
    bool, typer.Option("--resume", help="Goes on with what was begun in --out; what is finished there is kept.")
]

On = Annotated[
    str,
    typer.Option(
        help="ray: several at once, by a Ray that is started for them; ray://HOST:10001, ray:HOST:6379 or ray:auto: by "
        "a cluster.",
        show_default=False,
        autocompletion=_complete(lambda: ("ray", "ray:auto")),
    ),
]


@app.command()
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
        from .processes import begin

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
    from .make import make_baseline, understand
    from .progress import Show, Terminal

    show = Show() if quiet else Terminal()
    if data is not None:
        photos = _data(data, recipe, show)
    if dry_run:
        from .experiments import described_folds
        from .sources import understood

        chosen, table = understand(photos, recipe, show=Show(), **changes | ({} if seed is None else {"seed": seed}))
        print("\n".join([*understood(table), *([described_folds(table, chosen)] if "kfold" in chosen.split else [])]))
        return
    options: dict[str, Any] = {"out": out, "seed": seed, "show": show}
    if folds:
        from .experiments import make_folds
        from .printing import folded

        _print(folded(make_folds(photos, recipe, resume=resume, on=on, **options, **changes)))
        return
    if seeds is not None:
        from .experiments import make_seeds
        from .printing import spread

        _print(spread(make_seeds(seeds, photos, recipe, resume=resume, on=on, **options, **changes)))
        return
    if fixes:
        from .experiments import make_fixed
        from .printing import fixed

        _print(fixed(make_fixed(fixes, photos, recipe, before=before, **options, **changes)))
        return
    _tell(make_baseline(photos, recipe, **options, **changes))


@app.command()
def ladder(
    target: Target,
    data: Data = None,
    arch: Annotated[
        str | None, typer.Option(help="Bodies to compare, with commas between; each climbs every rung.")
    ] = None,
    rungs: Annotated[
        str | None,
        typer.Option(
            help="Only these, with commas between: " + ", ".join(RUNG_NAMES) + ".",
            show_default=False,
            autocompletion=_complete(lambda: RUNG_NAMES),
        ),
    ] = None,
    clip: Annotated[
        str,
        typer.Option(
            metavar="NAME:FILE",
            help="CLIP's model and weights for the rung zeroshot (extra clip), or NAME:TAG for published ones; "
            "ViT-B-32:laion2b_s34b_b79k if not given.",
            show_default=False,
        ),
    ] = "",
    prompt: Annotated[
        str, typer.Option(help="What CLIP is asked; 'a photo of a {class}' if not given.", show_default=False)
    ] = "",
    preset: Preset = "auto",
    image_size: ImageSize = None,
    photos_per_class: PhotosPerClass = None,
    seed: Seed = None,
    image_col: ImageCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    images: Images = None,
    label_from: LabelFrom = None,
    labels: Labels = None,
    split: Split = None,
    split_file: SplitFile = None,
    resume: Resume = False,
    on: On = "",
    out: Annotated[
        Path | None, typer.Option(help="The folder; runs/ladder-NAME-DATE-TIME if not given.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the table.")] = False,
) -> None:
    """Compares a guess, pretrained features, a frozen body, fine-tuning and training from scratch on one split.

    Examples:

        baseline ladder photos/

        baseline ladder cifar10 --photos-per-class 250 --preset quick

        baseline ladder photos/ --arch resnet18,mobilenet_v2 --rungs head,groups,tta

        baseline ladder photos/ --out runs/ladder --resume

        baseline ladder photos/ --arch resnet18,mobilenet_v2 --on ray

        baseline ladder photos/ --rungs logistic,groups,zeroshot --clip ViT-B-32:open_clip_model.safetensors
    """
    photos, recipe, show, changes = _experiment(
        target, data, preset, quiet, image_size=image_size, photos_per_class=photos_per_class, seed=seed,
        image_col=image_col, label_col=label_col, group_col=group_col, split_col=split_col, images=images,
        label_from=label_from, labels=labels, split=split, split_file=split_file,
    )  # fmt: skip
    from .ladder import make_ladder
    from .printing import climbed

    found = make_ladder(photos, recipe, archs=_listed(arch), rungs=_listed(rungs), out=out, resume=resume, on=on,
                        clip=clip, prompt=prompt, show=show, **changes)  # fmt: skip
    _print(climbed(found))
    show.say(f"page: {found.folder / 'ladder.html'}")


@app.command()
def curve(
    target: Target,
    data: Data = None,
    sizes: Annotated[
        str | None, typer.Option(help="Photos a class, with commas between; doubled from 5, and all, if not given.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Choices of photos for each size.")] = 3,
    rungs: Annotated[
        str,
        typer.Option(
            help="What is trained, with commas between: " + ", ".join(CURVE_NAMES) + ".",
            autocompletion=_complete(lambda: CURVE_NAMES),
        ),
    ] = "logistic,groups",
    preset: Preset = "auto",
    arch: Arch = None,
    image_size: ImageSize = None,
    photos_per_class: PhotosPerClass = None,
    seed: Seed = None,
    image_col: ImageCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    images: Images = None,
    label_from: LabelFrom = None,
    labels: Labels = None,
    split: Split = None,
    split_file: SplitFile = None,
    resume: Resume = False,
    on: On = "",
    out: Annotated[
        Path | None, typer.Option(help="The folder; runs/curve-NAME-DATE-TIME if not given.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Accuracy against the number of training photos, and what twice as many should bring.

    Examples:

        baseline curve photos/

        baseline curve photos/ --rungs logistic --seeds 10

        baseline curve cifar10 --photos-per-class 500 --sizes 10,30,100,300

        baseline curve train.csv --group-col sign --out runs/curve --resume

        baseline curve photos/ --rungs groups --seeds 5 --on ray://head:10001
    """
    photos, recipe, show, changes = _experiment(
        target, data, preset, quiet, arch=arch, image_size=image_size, photos_per_class=photos_per_class, seed=seed,
        image_col=image_col, label_col=label_col, group_col=group_col, split_col=split_col, images=images,
        label_from=label_from, labels=labels, split=split, split_file=split_file,
    )  # fmt: skip
    from .curve import make_curve
    from .printing import by_size

    numbers = _listed(sizes)
    if wrong := [number for number in numbers if not number.isdecimal()]:
        raise RecipeError(
            f"--sizes has '{wrong[0]}'; whole numbers with commas between were needed, such as 10,30,100."
        )
    found = make_curve(photos, recipe, sizes=[int(number) for number in numbers], seeds=seeds, rungs=_listed(rungs),
                       out=out, resume=resume, on=on, show=show, **changes)  # fmt: skip
    _print(by_size(found))
    show.say(f"page: {found.folder / 'curve.html'}")


@app.command()
def audit(
    target: Target,
    image_col: ImageCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    images: Images = None,
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
    """Looks at every photo and tells what is wrong: unreadable files, copies, leaks, conflicts, imbalance.

    Examples:

        baseline audit photos/

        baseline audit train.csv --images train_images/ --out audit/

        baseline audit cifar10 --strict
    """
    from .audits import audit as look
    from .make import understand, write_audit
    from .printing import findings
    from .progress import Show, Terminal
    from .save import as_json as json_text

    photos, recipe = _target(target)
    given = _given(
        image_col=image_col, label_col=label_col, group_col=group_col, split_col=split_col,
        images=images, label_from=label_from, positive=positive, labels=labels,
    )  # fmt: skip
    show = Show() if quiet else Terminal()
    chosen, table = understand(photos, recipe, show=show, **given)
    checked = look(table, grouped="group" in chosen.split, show=show)
    if as_json:
        print(json_text({"findings": checked.findings.to_dict("records")}), end="")
    else:
        _print(findings(checked))
    for path in write_audit(out, checked) if out else []:
        show.say(f"written: {path}")
    if strict:
        checked.refuse_leaks()


@app.command()
def clean(
    target: Annotated[
        str,
        typer.Argument(
            help="The folder of a finished run, or what baseline run takes.",
            autocompletion=_complete(recipe_names),
            show_default=False,
        ),
    ],
    image_col: ImageCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    images: Images = None,
    label_from: LabelFrom = None,
    splits: Annotated[str, typer.Option(help="Which photos are judged, between commas.")] = "train,valid,test",
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
    shown: Annotated[int, typer.Option(min=1, help="Photos in the page, at most, of each kind.")] = 500,
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

    Every photo is judged by a classifier that has not seen it. Open clean.html, decide, download fixes.csv, and give
    it to `baseline run ... --fixes fixes.csv`.

    Examples:

        baseline clean runs/mine

        baseline clean photos/ --out clean/

        baseline clean cifar10 --splits train,valid --accept 0.9
    """
    from .cleaning import clean as cleaned
    from .printing import cleaned as told
    from .progress import Show, Terminal

    is_run = Path(target).name == "manifest.json" or (Path(target).expanduser() / "manifest.json").is_file()
    photos, recipe = (target, "default") if is_run else _target(target)
    given = _given(
        image_col=image_col, label_col=label_col, group_col=group_col, split_col=split_col,
        images=images, label_from=label_from, image_size=image_size, seed=seed,
    )  # fmt: skip
    show = Show() if quiet else Terminal()
    parts = [name.strip() for name in splits.split(",")]
    options: dict[str, Any] = {"out": out, "splits": parts, "folds": folds, "oof": oof, "accept": accept}
    _print(told(cleaned(photos, recipe, shown=shown, show=show, **options, **given), target))


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders; each is compared with the first.", show_default=False)
    ],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also runs of different test photos, on those that they share.")
    ] = False,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(help="Some of the runs, between commas: their average is judged, too.", show_default=False),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Writes the table as CSV.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option(help="Writes it as a page of its own.", show_default=False)] = None,
) -> None:
    """Compares finished runs: numbers with intervals, and whether they differ by more than noise.

    Examples:

        baseline compare runs/quick runs/standard

        baseline compare runs/seeds/seed-* --csv seeds.csv --html seeds.html

        baseline compare runs/one runs/two --ensemble runs/one,runs/two
    """
    from .compare import comparison
    from .printing import compared
    from .save import write

    found = comparison(runs, anyway=anyway, averages=[_paths([each]) for each in ensemble or []])
    for path, content in ((csv, found.table.to_csv(index=False)), (html, found.as_html())):
        if path is not None:
            write(path, content)
    _print(compared(found))


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds runs.", metavar="[DIR]")] = Path("runs"),
) -> None:
    """Lists runs: what they reached, when, in how many seconds; unfinished ones, too.

    Examples:

        baseline runs

        baseline runs experiments/
    """
    from .compare import runs_in
    from .printing import listing

    _print(listing(runs_in(folder)))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the page's path.")] = False,
) -> None:
    """Writes report.html, its pictures and the model card again, as every run does at its end; prints the page's path.

    Examples:

        baseline report runs/mine
    """
    from .card import write_card
    from .progress import Show, Terminal
    from .report import write_report

    show = Show() if quiet else Terminal()
    page = write_report(run, show)
    if (run / "model" / "model.json").exists():
        write_card(run, show)
    print(page)


@app.command()
def predict(
    model: Model,
    photos: Annotated[
        list[str],
        typer.Argument(
            help="Photos, folders, zip or tar archives, patterns, tables with a column of paths, or - for paths on "
            "standard input.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A .csv, .jsonl or .parquet file; standard output if not given.", show_default=False
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(help="csv or jsonl, for standard output.", autocompletion=_complete(lambda: _FORMATS))
    ] = "csv",
    top_k: Annotated[int, typer.Option(min=0, help="Tells so many most probable classes.")] = 0,
    every: Annotated[bool, typer.Option("--all", help="Tells the probability of every class.")] = False,
    tta: Annotated[
        bool, typer.Option("--tta/--no-tta", help="Averages over views, as the run's evaluation did.")
    ] = True,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Below it the prediction is 'unsure'.", show_default=False)
    ] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replaces the file of --out.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Goes on with the file of --out where it stopped.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=65536, help="Photos that the network sees at once.")] = 64,
    precision: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16, or auto: bfloat16 where the CPU has units for it. As the run was evaluated if not "
            "given: float32 on a CPU.",
            autocompletion=_complete(lambda: ("auto", "float32", "bfloat16")),
            show_default=False,
        ),
    ] = "",
    processes: Annotated[int, typer.Option(min=1, max=1024, help="Each has a GPU, or its share of the CPU.")] = 1,
    on: On = "",
    image_col: Annotated[str, typer.Option(help="A table's column of paths; looked for if not given.")] = "",
    ensemble: Others = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the predictions.")] = False,
) -> None:
    """Predicts photos with a trained model: a row a photo, with calibrated confidence.

    A photo that cannot be read gets a row that says why, and the rest goes on.

    Examples:

        baseline predict runs/mine holiday.jpg

        baseline predict runs/mine holiday/ --out predictions.csv --top-k 3

        baseline predict runs/mine test.csv --image-col file --out predictions.csv --resume

        baseline predict runs/mine holiday/ --ensemble runs/other,runs/third

        baseline predict runs/mine photos.zip --out predictions.parquet --processes 4

        baseline predict runs/mine photos/ --out predictions.csv --on ray://head:10001

        find / -name '*.jpg' | baseline predict runs/mine/model - --format jsonl --min-confidence 0.8
    """
    if on and out is None:
        raise OutputError("What --on predicts goes into a file. Give --out FILE.")
    kind = format if out is None else out.suffix.lower().removeprefix(".")
    known = _FORMATS if out is not None else tuple(each for each in _FORMATS if each != "parquet")
    if kind not in known:
        what = f"{format} does not go to standard output" if out is None else f"{out} is no such file by its name"
        raise OutputError(f"{what}; needed: {', '.join(known)}.")
    if (overwrite or resume) and out is None:
        raise OutputError("--overwrite and --resume go with a file. Give --out FILE.")
    if overwrite and resume:
        raise OutputError("--overwrite begins anew and --resume goes on. Give one of them.")
    if out is not None and any(Path(word).absolute() == out.absolute() for word in photos):
        raise OutputError(f"{out} is one of those to predict. Choose another --out.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from .engines import engine
    from .progress import Show, Terminal

    show = Show() if quiet else Terminal()
    engine(on, show)  # finds what is wrong before torch is loaded
    from .bulk import Wanted, named_photos, write_predictions

    bars = Show() if out is None and sys.stdout.isatty() else show
    wanted = Wanted(kind, tta, top_k, every, min_confidence, batch_size, precision)
    paths, total = named_photos(photos, image_col, sys.stdin.buffer if "-" in photos else (), show)
    from .model import load

    loaded = load([model, *_paths(ensemble)])
    options: dict[str, Any] = {
        "total": total, "processes": processes, "overwrite": overwrite, "resume": resume, "on": on, "show": bars,
    }  # fmt: skip
    try:
        counts = write_predictions(loaded, paths, sys.stdout.buffer if out is None else out, wanted, **options)
        sys.stdout.flush()
    except BrokenPipeError:  # who read it has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except KeyboardInterrupt:
        if out is not None:
            show.say(f"interrupted: what was predicted is kept, and --resume goes on with {out}")
        raise
    show.say(f"predicted: {counts}{'' if out is None else f'; written: {out}'}")


@app.command()
def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="The address to listen at: 0.0.0.0 lets every machine of the network in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    open: Annotated[bool, typer.Option("--open", help="Opens the page in a browser.")] = False,
    tta: Annotated[
        bool, typer.Option("--tta/--no-tta", help="Averages over views, as the run's evaluation did; takes longer.")
    ] = False,
    examples: Annotated[
        bool, typer.Option("--examples/--no-examples", help="Shows a few of the run's photos, if they are still there.")
    ] = True,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name by which it is reached, such as that of a proxy.", show_default=False),
    ] = None,
    max_mb: Annotated[int, typer.Option(min=1, max=2000, help="Of a request.")] = 32,
    max_megapixels: Annotated[int, typer.Option(min=1, max=170, help="Of a photo.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="Photos in the queue; more get 503 with Retry-After.")] = 256,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="For a request to be sent, and for its answer.")] = 30,
    batch_size: Annotated[int, typer.Option(min=1, max=65536, help="Photos that the network sees at once.")] = 16,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Says nothing.")] = False,
) -> None:
    """Serves a model: a page to drop, paste or take photos, and an HTTP API. Ctrl-C stops it.

    Photos stay in memory and never reach the disk or another machine. Without --host only this machine can use it; with
    it, so can everyone who reaches the address: there are no passwords.

    Examples:

        baseline serve runs/mine --open

        baseline serve runs/mine/model --port 8080 --tta

        baseline serve runs/mine --host 0.0.0.0 --no-examples

        curl -F photo=@holiday.jpg http://127.0.0.1:8000/predict
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from .progress import Show, Terminal
    from .web import Limits
    from .web import serve as served

    limits = Limits(max_mb, max_megapixels, waiting=max_waiting, batch=batch_size, seconds=max_seconds)
    served(
        model, host=host, port=port, tta=tta, examples=examples, limits=limits, hosts=allow_host or (), browser=open,
        show=Show() if quiet else Terminal(),
    )  # fmt: skip
    sys.stderr.flush()
    os._exit(0)  # a pass of the network that is under way would be waited for


@app.command()
def check(model: Model) -> None:
    """Looks whether a model folder is whole and predicts as when it was saved.

    Its tensors are compared with their sha256 and with the network it names, and the network is run on the few photos
    that it keeps for this.

    Examples:

        baseline check runs/mine
    """
    from .model import TOLERANCE, load

    for member in load(model).members:
        difference = member.check()
        print(f"{member.folder}: {member.facts['arch']}, {len(member.classes):,} classes, tensors whole and in place")
        print(f"golden inputs: largest difference of a probability {difference:.1e}, at most {TOLERANCE:.0e} allowed")


@app.command()
def export(
    model: Model,
    to: Annotated[
        str, typer.Option(help="onnx, torch-export or learner.", autocompletion=_complete(lambda: _form_names()))
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file; NAME.onnx, .pt2 or .pkl here.", show_default=False)
    ] = None,
    photos: Annotated[
        list[str] | None,
        typer.Option(
            help="Photos, folders, patterns or tables to compare on; else the golden inputs of the model folder. May "
            "be given several times.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            help="any: photos of any size are resized inside; fixed: it takes squares of the model's size only.",
            autocompletion=_complete(lambda: ("any", "fixed")),
        ),
    ] = "any",
    tta: Annotated[
        bool, typer.Option("--tta/--no-tta", help="Averages over views, as the run's evaluation did.")
    ] = True,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="ONNX in 8 bits: a third of the size, a little different, not always quicker."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replaces a file that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Writes a model as ONNX, for torch.export or as a fastai learner, and compares it with the model on photos.

    ONNX and torch-export take uint8 photos, N x H x W x 3, upright RGB, and give calibrated probabilities: what
    `baseline predict` tells.

    Examples:

        baseline export runs/mine --to onnx --photos photos/test/

        baseline export runs/mine --to onnx --int8 --photos photos/ -o small.onnx

        baseline export runs/mine --to torch-export --size fixed --no-tta

        baseline export runs/mine --to learner
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from .exports import export as exported
    from .progress import Show, Terminal

    if to == "learner":
        print(
            "WARNING: a learner is a pickle. Whoever loads one runs whatever code is in it: pass it on only to those "
            "who trust you, and load none of others. It needs baseline where it is loaded, and gives plain, "
            "uncalibrated probabilities.",
            file=sys.stderr,
        )
    show = Show() if quiet else Terminal()
    print(exported(model, to, out, photos=photos or (), size=size, tta=tta, int8=int8, overwrite=overwrite, show=show))


def _form_names() -> tuple[str, ...]:
    from .exports import FORMS

    return tuple(FORMS)


@app.command("import")
def import_(
    learner: Annotated[Path, typer.Argument(help="What fastai's Learner.export wrote.", show_default=False)],
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Open it, which runs whatever code is in it.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The new model folder; the file's name here.", show_default=False)
    ] = None,
    photos: Annotated[
        list[str] | None,
        typer.Option(help="Photos, folders, patterns or tables to compare the two on.", show_default=False),
    ] = None,
    arch: Annotated[str, typer.Option(help="Its architecture, where it does not tell.", show_default=False)] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Makes a model folder of a fastai vision learner: tensors and JSON, for every other command.

    The learner is a pickle, and opening one runs whatever code is in it: only with --trust-pickle.

    Examples:

        baseline import export.pkl --trust-pickle

        baseline import export.pkl --trust-pickle -o mine --photos photos/valid/
    """
    from .progress import Show, Terminal

    if trust_pickle:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    from .imports import import_learner

    show = Show() if quiet else Terminal()
    print(import_learner(learner, out, trust_pickle=trust_pickle, arch=arch, photos=photos or (), show=show))


@app.command()
def bundle(
    folder: Annotated[Path, typer.Argument(help="The new folder.", metavar="DIR", show_default=False)],
    arch: Annotated[
        list[str] | None,
        typer.Option(help="An architecture whose weights go with it; may be given several times.", show_default=False),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="A run, whose model goes with it to predict there.", show_default=False)
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Wheels of all that is needed, not only of what Kaggle's image lacks.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replaces a bundle that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Collects what a Kaggle kernel without internet needs, to attach as a data set: wheels, weights, a model.

    Examples:

        baseline bundle kaggle-baseline

        baseline bundle kaggle-baseline --arch resnet18 --arch convnext_tiny

        baseline bundle kaggle-baseline --model runs/mine --overwrite
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from .bundles import bundle as bundled
    from .progress import Show, Terminal

    show = Show() if quiet else Terminal()
    print(bundled(folder, arch or (), model, everything=everything, overwrite=overwrite, show=show))


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    repo: Annotated[
        str, typer.Argument(help="OWNER/NAME on the Hugging Face hub; made if it is not there.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="Only you can see it.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Lists the files with their sizes, shows the card, and stops there.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the address.")] = False,
) -> None:
    """Puts the model folder of a run, with its card, on the Hugging Face hub, in one commit.

    The network, how to build it, and the card: no photos, and no paths of this machine.

    Examples:

        baseline push runs/mine me/ants-and-bees --dry-run

        baseline push runs/mine me/ants-and-bees --private
    """
    from .hub import push as pushed
    from .hub import shipment
    from .printing import grid
    from .progress import Show, Terminal

    if not dry_run:
        print(pushed(run, repo, private=private, show=Show() if quiet else Terminal()))
        return
    ready = shipment(run, repo)
    _print(grid([(name, f"{size:,} bytes") for name, size in ready.files.items()]))
    print(f"\n{ready.card}", end="")


@app.command()
def submit(
    run: Model,
    sample: Annotated[
        Path | None, typer.Option(help="The sample submission; looked for below /kaggle/input.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="The folder or archive of the test photos; beside the sample.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="submission.csv in /kaggle/working, or in the working folder.", show_default=False),
    ] = None,
    shape: Annotated[
        str,
        typer.Option(
            help="names, codes, probabilities or one-hot; auto: as the sample has it.",
            autocompletion=_complete(lambda: _shape_names()),
        ),
    ] = "auto",
    codes: Annotated[
        str | None, typer.Option(help="What classes are called there: ants=0,bees=1.", show_default=False)
    ] = None,
    leave_extra: Annotated[bool, typer.Option("--leave-extra", help="Passes over photos without an id.")] = False,
    ensemble: Others = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replaces a file that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Writes a competition's submission.csv as its sample asks, checks it, and tells what was checked.

    Examples:

        baseline submit runs/mine

        baseline submit runs/mine --sample sample_submission.csv --images test/

        baseline submit runs/mine --sample sample_submission.csv --codes ants=0,bees=1 --overwrite
    """
    from .progress import Show, Terminal
    from .submission import submit as submitted

    print(
        submitted(
            [run, *_paths(ensemble)], sample, images, out=out, shape=shape, codes=codes, leave_extra=leave_extra,
            overwrite=overwrite, show=Show() if quiet else Terminal(),
        )
    )  # fmt: skip


def _shape_names() -> tuple[str, ...]:
    from .shapes import SHAPES

    return SHAPES


def _paths(words: list[str] | None) -> list[Path]:
    """The paths in options of several between commas; a path that has commas stays whole."""
    parts = [[word] if Path(word).exists() else word.split(",") for word in words or []]
    return [Path(part.strip()) for some in parts for part in some if part.strip()]


def _names_folds(recipe: str, split: str | None) -> bool:
    """Whether all folds are meant: by the option, or by a recipe that does not name one of them, as a manifest does."""
    if split is not None:
        return "kfold" in split
    mine = recipe.endswith(".toml") and "kfold" in load_recipe(recipe).split
    return mine and "fold" not in read_values(Path(recipe))


def _experiment(
    target: str, data: Path | None, preset: str, quiet: bool, **options: Any
) -> tuple[str | None, str, Show, dict[str, Any]]:
    """Photos, recipe, where progress goes, and what the recipe changes, of a command that makes several runs."""
    from .progress import Show, Terminal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    photos, recipe = _target(target)
    show = Show() if quiet else Terminal()
    changes = _given(**options) | ({"preset": preset} if preset != "auto" else {})
    return (_data(data, recipe, show) if data is not None else photos), recipe, show, changes


def _listed(words: str | None) -> list[str]:
    """Names between commas."""
    return [word.strip() for word in (words or "").split(",") if word.strip()]


def _unfinished(out: Path | None) -> None:
    """Sees that there is a run to go on with."""
    if out is None or not (out.expanduser() / UNFINISHED).exists():
        where = f"{out} holds none" if out else "its folder is needed: --out RUN, or baseline run RUN --resume"
        raise OutputError(f"--resume goes on with an unfinished run, and {where}. Without it a run begins anew.")


def _go_on(run: Path, quiet: bool, **changes: Any) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from .make import go_on
    from .progress import Show, Terminal

    _tell(go_on(run, show=Show() if quiet else Terminal(), **changes))


def _tell(done: Baseline) -> None:
    if done.manifest:  # of several processes the first tells
        from .printing import results

        _print(results(done))


def _target(target: str) -> tuple[str | None, str]:
    """What TARGET means: (photos or None, recipe). A recipe's name wins over a folder of that name."""
    if target in recipe_names() or target.endswith((".toml", ".json")):
        return None, target
    if os.sep in target or Path(target).exists() or target.startswith(("torchvision:", "hf:")):
        return target, "default"
    raise RecipeError(f"{unknown('recipe', target, recipe_names())} Nor is there a folder or file {target}.")


def _data(data: Path, recipe: str, show: Show) -> str:
    """The photos behind `--data`: a named data set in any of its forms, else the folder itself."""
    from .datasets import DATASETS, dataset

    name = load_recipe(recipe).data
    return str(dataset(name, data=data, show=show)) if name in DATASETS else str(data)


@app.command()
def recipes() -> None:
    """Lists the recipes, with what they reached where that was measured.

    Examples:

        baseline recipes
    """
    from rich.table import Table

    from .datasets import DATASETS

    table = Table("recipe", "what it is for", "classes", "photos", "arch", "presets", "measured")
    for name in recipe_names():
        recipe = load_recipe(name)
        known = DATASETS.get(recipe.data)
        counts = (str(len(known.classes)), f"{known.train + known.test:,}") if known else ("yours", "yours")
        presets = ", ".join(["standard", *recipe.presets])
        table.add_row(name, recipe.title, *counts, recipe.arch, presets, str(recipe.expected.get("words", "not yet")))
    _print(table)


@app.command()
def copy(
    name: Annotated[
        str, typer.Argument(help="A recipe's name.", autocompletion=_complete(recipe_names), show_default=False)
    ],
    dest: Annotated[Path, typer.Argument(help="A folder, or the new file's name.")] = Path(),
) -> None:
    """Copies a recipe's TOML file, to change it and run it as your own.

    Examples:

        baseline copy cifar10 .

        baseline copy default mine.toml && baseline run mine.toml --data photos/
    """
    from .save import write

    load_recipe(name)
    target = dest / f"{name}.toml" if dest.is_dir() else dest
    if target.suffix != ".toml":
        raise OutputError(f"{target} is no folder, and no name that ends in .toml. Give one of these.")
    if target.exists():
        raise OutputError(f"{target} exists already. Remove it, or give another name.")
    write(target, (recipes_folder() / f"{name}.toml").read_bytes())
    print(target)


@app.command()
def doctor() -> None:
    """Tells what this machine has and lacks: versions, device, disk, data sets, weights.

    Examples:

        baseline doctor
    """
    from .doctor import findings
    from .printing import grid

    with _patience("looking around"):
        found = list(findings())
    _print(grid(found))


def _version(value: bool) -> None:
    if value:
        from . import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Prints the version and ends.")
    ] = False,
) -> None:
    pass


# ---- what is printed ------------------------------------------------------------------------------------------------


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(table)


def _patience(words: str) -> Any:
    from rich.console import Console

    return Console(stderr=True).status(words)
