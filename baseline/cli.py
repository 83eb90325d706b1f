"""The command line: parse, call, print. Knows words; does no work, and loads no torch until a command needs it."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
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

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from .audits import Audit
    from .compare import Comparison
    from .experiments import Folds, Seeds
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
        code = app(standalone_mode=False)
    except BaselineError as error:
        code = _refused(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's errors of usage have it, whichever click is below
            raise
        code = _refused(f"{error.format_message()} See baseline --help.")
    raise SystemExit(code or 0)


def _refused(words: str, code: int = 2) -> int:
    print(f"baseline: {' '.join(words.split())}", file=sys.stderr)
    return code


def _complete(names: Callable[[], Any]) -> Any:
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


_PRESET_NAMES = ("auto", *PRESETS)
_FORMATS = ("csv", "jsonl")
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
ImageCol = Annotated[str | None, _named("The table's column of photos; looked for if not given.")]
LabelCol = Annotated[str | None, _named("Its column of classes, or several between commas, each 0 or 1.")]
GroupCol = Annotated[str | None, _named("Its column of what belongs together; splits heed it.")]
SplitCol = Annotated[str | None, _named("Its column of train, valid and test.")]
Images = Annotated[Path | None, _named("The folder of the photos that the table names.")]
LabelFrom = Annotated[str | None, _named("A regular expression that finds the class in a photo's path.")]
Labels = Annotated[str | None, _named("auto, one, or many with ; between them.", words=LABELS)]


@app.command()
def run(
    target: Target,
    data: Annotated[
        Path | None, typer.Option(help="The photos, for a recipe: a folder, or an archive of a named data set.")
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="quick, standard or best; auto: standard on a GPU, quick on a CPU.",
            autocompletion=_complete(lambda: _PRESET_NAMES),
        ),
    ] = "auto",
    arch: Annotated[str | None, typer.Option(help="A torchvision or timm name, or auto.", show_default=False)] = None,
    weights: Annotated[Path | None, typer.Option(help="A .pth or .safetensors file of pretrained weights.")] = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="Start from random weights.")] = False,
    image_size: Annotated[int | None, typer.Option(help="Pixels, side of the square the network sees.")] = None,
    resize: Annotated[
        str | None, typer.Option(help="squish, crop or pad.", autocompletion=_complete(lambda: RESIZES))
    ] = None,
    batch_size: Annotated[str | None, typer.Option(help="Photos per step, or auto.")] = None,
    photos_per_class: Annotated[
        int | None, typer.Option(help="Train on a seeded subset of so many photos per class.")
    ] = None,
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
    seed: Annotated[int | None, typer.Option(help="Of splits and training.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Runs so many seeds, from --seed on, and tells mean and spread.")
    ] = None,
    image_col: ImageCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    images: Images = None,
    label_from: LabelFrom = None,
    labels: Labels = None,
    split: Annotated[str | None, _named(f"{', '.join(WAYS)}.", words=WAYS, panel=_SPLITS)] = None,
    split_file: Annotated[Path | None, _named("A run's split.csv, to split as it did.", panel=_SPLITS)] = None,
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
    no_audit: Annotated[
        bool, typer.Option("--no-audit", help="Only leave out what cannot be read.", rich_help_panel=_SPLITS)
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Copies in two splits end the run, exit code 3.", rich_help_panel=_SPLITS)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tells what was understood of the photos, and stops there.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Makes the folds or seeds that are not finished in --out.")
    ] = False,
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

        baseline run photos/ --log csv,tensorboard
    """
    photos, recipe = _target(target)
    changes = _given(
        arch=arch, weights=weights, image_size=image_size, resize=resize,
        batch_size=int(batch_size) if batch_size and batch_size.isdecimal() else batch_size,
        photos_per_class=photos_per_class, precision=precision, workers=workers, budget=budget, cache_gb=cache_gb,
        log=",".join(log) if log else None,
        image_col=image_col, label_col=label_col, group_col=group_col, split_col=split_col,
        images=images, label_from=label_from, labels=labels, split=split, split_file=split_file,
        fold=fold, balance=balance, leaks=leaks, audit="none" if no_audit else "strict" if strict else None,
    )  # fmt: skip
    if no_audit and strict:
        raise RecipeError("--strict needs the audit that --no-audit leaves out. Give one of them.")
    changes |= {"scratch": True} if scratch else {}
    changes |= {"compile": True} if compile else {}
    changes |= {"preset": preset} if preset != "auto" else {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from .make import make_baseline, understand
    from .progress import Show, Terminal

    show = Show() if quiet else Terminal()
    if data is not None:
        photos = _data(data, recipe, show)
    from .experiments import described_folds, make_folds, make_seeds

    folds = fold is None and _names_folds(recipe, split)
    if dry_run:
        from .sources import understood

        chosen, table = understand(photos, recipe, show=Show(), **changes | ({} if seed is None else {"seed": seed}))
        print("\n".join([*understood(table), *([described_folds(table, chosen)] if "kfold" in chosen.split else [])]))
        return
    if seeds is not None and folds:
        raise RecipeError(
            "--seeds and folds are several runs each. Give --fold K for the seeds of one fold, or --seed."
        )
    if resume and not (folds or seeds is not None):
        raise RecipeError("--resume goes on with --seeds or folds, and this is one run. Leave it out.")
    options: dict[str, Any] = {"out": out, "seed": seed, "show": show}
    if folds:
        _print(_folded(make_folds(photos, recipe, resume=resume, **options, **changes)))
        return
    if seeds is not None:
        _print(_spread(make_seeds(seeds, photos, recipe, resume=resume, **options, **changes)))
        return
    _print(_results(make_baseline(photos, recipe, **options, **changes)))


@app.command()
def audit(
    target: Target,
    image_col: ImageCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    images: Images = None,
    label_from: LabelFrom = None,
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
    from .progress import Show, Terminal
    from .save import as_json as json_text

    photos, recipe = _target(target)
    given = _given(
        image_col=image_col, label_col=label_col, group_col=group_col, split_col=split_col,
        images=images, label_from=label_from, labels=labels,
    )  # fmt: skip
    show = Show() if quiet else Terminal()
    chosen, table = understand(photos, recipe, show=show, **given)
    checked = look(table, grouped="group" in chosen.split, show=show)
    if as_json:
        print(json_text({"findings": checked.findings.to_dict("records")}), end="")
    else:
        _print(_findings(checked))
    for path in write_audit(out, checked) if out else []:
        show.say(f"written: {path}")
    if strict:
        checked.refuse_leaks()


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
    from .save import write

    found = comparison(runs, anyway=anyway, averages=[_paths([each]) for each in ensemble or []])
    for path, content in ((csv, found.table.to_csv(index=False)), (html, found.as_html())):
        if path is not None:
            write(path, content)
    _print(_compared(found))


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

    _print(_listing(runs_in(folder)))


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
            help="Photos, folders, patterns, tables with a column of paths, or - for paths on standard input.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="A .csv or .jsonl file; standard output if not given.", show_default=False)
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

        find / -name '*.jpg' | baseline predict runs/mine/model - --format jsonl --min-confidence 0.8
    """
    kind = format if out is None else out.suffix.lower().removeprefix(".")
    if kind not in _FORMATS:
        what = f"--format {format} is unknown" if out is None else f"{out} is no .csv or .jsonl file by its name"
        raise OutputError(f"{what}; needed: csv or jsonl.")
    if (overwrite or resume) and out is None:
        raise OutputError("--overwrite and --resume go with a file. Give --out FILE.")
    if overwrite and resume:
        raise OutputError("--overwrite begins anew and --resume goes on. Give one of them.")
    if out is not None and any(Path(word).absolute() == out.absolute() for word in photos):
        raise OutputError(f"{out} is one of those to predict. Choose another --out.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from .bulk import Wanted, named_photos, write_predictions
    from .progress import Show, Terminal

    paths, total = named_photos(photos, image_col, sys.stdin.buffer if "-" in photos else ())
    from .model import load

    show = Show() if quiet else Terminal()
    bars = Show() if out is None and sys.stdout.isatty() else show
    wanted = Wanted(kind, tta, top_k, every, min_confidence, batch_size)
    loaded = load([model, *_paths(ensemble)])
    options: dict[str, Any] = {"total": total, "overwrite": overwrite, "resume": resume, "show": bars}
    try:
        counts = write_predictions(loaded, paths, sys.stdout.buffer if out is None else out, wanted, **options)
        sys.stdout.flush()
    except BrokenPipeError:  # who read it has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except KeyboardInterrupt:
        if out is not None:
            show.say(f"interrupted: what was predicted is in {out}; --resume goes on")
        raise
    show.say(f"predicted: {counts}{'' if out is None else f'; written: {out}'}")


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
    from .progress import Show, Terminal

    if not dry_run:
        print(pushed(run, repo, private=private, show=Show() if quiet else Terminal()))
        return
    ready = shipment(run, repo)
    _print(_grid([(name, f"{size:,} bytes") for name, size in ready.files.items()]))
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

    with _patience("looking around"):
        found = list(findings())
    _print(_grid(found))


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


def _grid(rows: list[tuple[str, str]]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, words in rows:
        table.add_row(name, words)
    return table


def _findings(checked: Audit) -> Any:
    """The table of an audit, worst first."""
    from rich.markup import escape
    from rich.table import Table

    if checked.findings.empty:
        return f"{len(checked.photos):,} photos: nothing found."
    table = Table("finding", "photos", "what was found", "what it does", "what answers it")
    for finding, photos, *words in checked.findings.itertuples(index=False):
        table.add_row(str(finding), f"{photos:,}", *(escape(str(each)) for each in words))
    return table


def _results(done: Baseline) -> Any:
    """The table at the end: accuracy by split, seconds by part, and where everything is."""
    from rich.console import Group
    from rich.table import Table

    table = Table("split", "photos", "accuracy", "95 % interval", "wrong")
    for split, numbers in done.metrics.items():
        for kind, words in (("plain", ""), ("tta", f" + {', '.join(done.recipe.tta)}")):
            if kind == "plain" or done.recipe.tta:
                found = numbers[kind]
                low, high = found["interval"]
                span = f"{low:.2%} to {high:.2%}"
                counts = (f"{numbers['photos']:,}", f"{found['accuracy']:.2%}", span, f"{found['wrong']:,}")
                table.add_row(split + words, *counts)
    seconds = "  ".join(f"{name} {value:.0f}" for name, value in done.manifest["seconds"].items())
    ended = enumerate(done.manifest["stages"], 1)
    stages = "  ".join(f"stage {number} ({stage['trains']}) {stage['seconds']:.0f}" for number, stage in ended)
    bound = f"bound by {done.manifest['bound']}"
    lines = [f"seconds: {seconds}", f"         {stages}", f"         {bound}", f"results: {done.folder}"]
    if "test" not in done.metrics:
        lines.insert(0, "No test split: the weights were chosen on these valid photos, which flatters the number.")
    return Group(_headline(done), table, *_meaning(done), *lines)


def _meaning(done: Baseline) -> list[str]:
    """The numbers of the last split in plain words, and what calibration does."""
    from rich.markup import escape

    from .metrics import sentences

    split, numbers = list(done.metrics.items())[-1]
    found = done.manifest["calibration"].get(split)
    return [escape(line) for line in (*sentences(numbers), *([found["words"]] if found else []))]


def _spread(found: Seeds) -> Any:
    """The table of several seeds, and their mean and spread."""
    from rich.console import Group
    from rich.table import Table

    table = Table("seed", f"{found.split} accuracy", "plain", "seconds", "results")
    for run in found.runs:
        shares = (f"{run['accuracy']:.2%}", f"{run['plain']:.2%}")
        table.add_row(str(run["seed"]), *shares, f"{run['seconds']:.0f}", str(run["folder"]))
    spread = "" if found.sd is None else f", sd {100 * found.sd:.2f} points"
    words = f"{found.split} accuracy of {len(found.runs)} seeds: mean {found.mean:.2%}{spread}"
    lines = [f"{words}, {found.least:.2%} to {found.most:.2%}"]
    if not found.same_photos:
        lines.append("Each seed drew other test photos: the spread is that of the photos and of training together.")
    return Group(*lines, table, f"results: {found.folder / 'seeds.json'}")


def _folded(found: Folds) -> Any:
    """The table of all folds, what they say of all photos, and their average on test."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    from .metrics import difference_words, sentences

    tested = "test" in found.metrics
    table = Table("fold", "photos", "accuracy", "plain", *["on test"] * tested, "seconds", "results")
    for run in found.runs:
        shares = [f"{run[name]:.2%}" for name in ("accuracy", "plain", *["test"] * tested)]
        words = (str(run["fold"]), f"{run['photos']:,}", *shares, f"{run['seconds']:.0f}", escape(str(run["folder"])))
        table.add_row(*words)
    lines = [
        f"out-of-fold accuracy of {len(found.runs)} folds: {_told(found.metrics['oof'])}",
        f"accuracy of a fold: mean {found.mean:.2%}, sd {100 * found.sd:.2f} points, "
        f"{found.least:.2%} to {found.most:.2%}",
    ]
    meaning = sentences(found.metrics["oof"])
    meaning.append("Each fold's weights were chosen on its own valid photos, which flatters these numbers a little.")
    if tested and found.against_best:
        lines.insert(0, f"test accuracy of the folds' average: {_told(found.metrics['test'])}")
        meaning.append(f"On test, the average differs from the best fold by {difference_words(found.against_best)}.")
    ends = [f"results: {found.folder / 'folds.json'}", f"all together: baseline predict {found.folder} PHOTOS"]
    return Group(*lines, table, *map(escape, (*meaning, *ends)))


def _told(numbers: Mapping[str, Any]) -> str:
    """An accuracy with its interval, that over groups where there are any."""
    found = numbers["tta"]
    low, high = found.get("group_interval", found["interval"])
    of = f"{numbers['groups']:,} groups" if "group_interval" in found else f"{numbers['photos']:,} photos"
    micro = f"; micro F1 {found['micro_f1']:.2%}" if "mean_average_precision" in found else ""
    return f"{found['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}, {of}){micro}"


def _compared(found: Comparison) -> Any:
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    table = Table("run", "photos", "accuracy", "macro F1", "ECE", "loss", "seconds", "MB", "differs from the first")
    for row in found.table.astype(object).where(found.table.notna(), None).to_dict("records"):
        shares = [_with_interval(row, *names) for names in _INTERVALS]
        loss = "" if row["loss"] is None else f"{row['loss']:.4f}"
        size = "" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
        photos = "" if row["photos"] is None else f"{row['photos']:,.0f} {row['split']}"
        words = (escape(row["run"]), photos, *shares, loss, f"{row['seconds']:.0f}", size, escape(row["differs"]))
        table.add_row(*words)
    return Group(table, *[escape(line) for line in found.sentences])


_INTERVALS = (
    ("accuracy", "low", "high"),
    ("macro_f1", "macro_f1_low", "macro_f1_high"),
    ("ece", "ece_low", "ece_high"),
)


def _with_interval(row: Mapping[Any, Any], name: str, low: str, high: str) -> str:
    if row[name] is None:
        return ""
    span = "" if row[low] is None else f" ({100 * row[low]:.1f} to {100 * row[high]:.1f})"
    return f"{row[name]:.2%}{span}"


def _listing(found: pd.DataFrame) -> Any:
    from rich.markup import escape
    from rich.table import Table

    if found.empty:
        return "No runs here."
    table = Table("run", "accuracy, 95 % interval", "finished", "seconds", "arch")
    for row in found.astype(object).where(found.notna(), None).to_dict("records"):
        if row["state"] != "finished":
            table.add_row(escape(row["run"]), escape(row["state"]))
            continue
        number = f"{_with_interval(row, 'accuracy', 'low', 'high')} {row['split']}"
        table.add_row(escape(row["run"]), number, row["finished"][:16], f"{row['seconds']:.0f}", str(row["arch"]))
    return table


def _headline(done: Baseline) -> str:
    from .save import judged_split

    split = judged_split(done.metrics)
    kind = "tta" if done.recipe.tta else "plain"
    found = done.metrics[split][kind]
    low, high = found["interval"]
    tta = " with TTA" if done.recipe.tta else ""
    if done.recipe.labels == "many":
        best = done.metrics[split]["tta"]
        return (
            f"{split}{tta}: micro F1 {found['micro_f1']:.2%}, macro F1 {found['macro_f1']:.2%}, mean average precision "
            f"{best['mean_average_precision']:.2%}; below, photos of which every label is right"
        )
    return f"{split} accuracy{tta}: {found['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%})"
