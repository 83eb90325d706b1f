"""TODO."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from baseline.cli.options import OUTPUT_FORMATS, EnsembleOption, ExecutorOption, Model, _print, completion, split_paths
from baseline.errors import OutputError


def predict(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, zip or tar archives, patterns, tables with a column of paths, or - for paths on "
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
        str, typer.Option(help="csv or jsonl, for standard output.", autocompletion=completion(lambda: OUTPUT_FORMATS))
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
    batch_size: Annotated[int, typer.Option(min=1, max=65536, help="Images that the network sees at once.")] = 64,
    precision: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16, or auto: bfloat16 where the CPU has units for it. As the run was evaluated if not "
            "given: float32 on a CPU.",
            autocompletion=completion(lambda: ("auto", "float32", "bfloat16")),
            show_default=False,
        ),
    ] = "",
    processes: Annotated[int, typer.Option(min=1, max=1024, help="Each has a GPU, or its share of the CPU.")] = 1,
    on: ExecutorOption = "",
    image_col: Annotated[str, typer.Option(help="A table's column of paths; looked for if not given.")] = "",
    ensemble: EnsembleOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the predictions.")] = False,
) -> None:
    """Predicts images with a trained model: a row an image, with calibrated confidence.

    An image that cannot be read gets a row that says why, and the rest goes on.

    Examples:

        baseline predict runs/mine holiday.jpg

        baseline predict runs/mine holiday/ --out predictions.csv --top-k 3

        baseline predict runs/mine test.csv --image-col file --out predictions.csv --resume

        baseline predict runs/mine holiday/ --ensemble runs/other,runs/third

        baseline predict runs/mine images.zip --out predictions.parquet --processes 4

        baseline predict runs/mine images/ --out predictions.csv --on ray://head:10001

        find / -name '*.jpg' | baseline predict runs/mine/model - --format jsonl --min-confidence 0.8
    """
    if on and out is None:
        raise OutputError("What --on predicts goes into a file. Give --out FILE.")
    kind = format if out is None else out.suffix.lower().removeprefix(".")
    known = OUTPUT_FORMATS if out is not None else tuple(each for each in OUTPUT_FORMATS if each != "parquet")
    if kind not in known:
        what = f"{format} does not go to standard output" if out is None else f"{out} is no such file by its name"
        raise OutputError(f"{what}; needed: {', '.join(known)}.")
    if (overwrite or resume) and out is None:
        raise OutputError("--overwrite and --resume go with a file. Give --out FILE.")
    if overwrite and resume:
        raise OutputError("--overwrite begins anew and --resume goes on. Give one of them.")
    if out is not None and any(Path(word).absolute() == out.absolute() for word in images):
        raise OutputError(f"{out} is one of those to predict. Choose another --out.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from baseline.parallel.executor import get_executor
    from baseline.progress import ConsoleProgress, Progress

    show = Progress() if quiet else ConsoleProgress()
    get_executor(on, show)  # finds what is wrong before torch is loaded
    from baseline.data.sources.image_list import list_images
    from baseline.inference.batch import write_predictions
    from baseline.inference.output import PredictOptions

    bars = Progress() if out is None and sys.stdout.isatty() else show
    wanted = PredictOptions(kind, tta, top_k, every, min_confidence, batch_size, precision)
    paths, total = list_images(images, image_col, sys.stdin.buffer if "-" in images else (), show)
    from baseline.inference.model import load

    loaded = load([model, *split_paths(ensemble)])
    options: dict[str, Any] = {
        "total": total, "processes": processes, "overwrite": overwrite, "resume": resume,
        "executor": on, "progress": bars,
    }  # fmt: skip
    try:
        counts = write_predictions(loaded, paths, sys.stdout.buffer if out is None else out, wanted, **options)
        sys.stdout.flush()
    except BrokenPipeError:  # who read it has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except KeyboardInterrupt:
        if out is not None:
            show.log(f"interrupted: what was predicted is kept, and --resume goes on with {out}")
        raise
    show.log(f"predicted: {counts}{'' if out is None else f'; written: {out}'}")


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
        bool, typer.Option("--examples/--no-examples", help="Shows a few of the run's images, if they are still there.")
    ] = True,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name by which it is reached, such as that of a proxy.", show_default=False),
    ] = None,
    max_mb: Annotated[int, typer.Option(min=1, max=2000, help="Of a request.")] = 32,
    max_megapixels: Annotated[int, typer.Option(min=1, max=170, help="Of an image.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="Images in the queue; more get 503 with Retry-After.")] = 256,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="For a request to be sent, and for its answer.")] = 30,
    batch_size: Annotated[int, typer.Option(min=1, max=65536, help="Images that the network sees at once.")] = 16,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Says nothing.")] = False,
) -> None:
    """Serves a model: a page to drop, paste or take images, and an HTTP API. Ctrl-C stops it.

    Images stay in memory and never reach the disk or another machine. Without --host only this machine can use it; with
    it, so can everyone who reaches the address: there are no passwords.

    Examples:

        baseline serve runs/mine --open

        baseline serve runs/mine/model --port 8080 --tta

        baseline serve runs/mine --host 0.0.0.0 --no-examples

        curl -F image=@holiday.jpg http://127.0.0.1:8000/predict
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from baseline.deploy.server.app import serve as served
    from baseline.deploy.server.predictor import Limits
    from baseline.progress import ConsoleProgress, Progress

    limits = Limits(max_mb, max_megapixels, waiting=max_waiting, batch=batch_size, seconds=max_seconds)
    served(
        model, host=host, port=port, tta=tta, examples=examples, limits=limits, hosts=allow_host or (), browser=open,
        progress=Progress() if quiet else ConsoleProgress(),
    )  # fmt: skip
    sys.stderr.flush()
    os._exit(0)  # a pass of the network that is under way would be waited for


def check(model: Model) -> None:
    """Looks whether a model folder is whole and predicts as when it was saved.

    Its tensors are compared with their sha256 and with the network it names, and the network is run on the few images
    that it keeps for this.

    Examples:

        baseline check runs/mine
    """
    from baseline.inference.model import TOLERANCE, load

    for member in load(model).members:
        difference = member.check()
        print(f"{member.folder}: {member.config['arch']}, {len(member.classes):,} classes, tensors whole and in place")
        print(f"golden inputs: largest difference of a probability {difference:.1e}, at most {TOLERANCE:.0e} allowed")


def export(
    model: Model,
    to: Annotated[
        str, typer.Option(help="onnx, torch-export or learner.", autocompletion=completion(lambda: _export_formats()))
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file; NAME.onnx, .pt2 or .pkl here.", show_default=False)
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            help="Images, folders, patterns or tables to compare on; else the golden inputs of the model folder. May "
            "be given several times.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            help="any: images of any size are resized inside; fixed: it takes squares of the model's size only.",
            autocompletion=completion(lambda: ("any", "fixed")),
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
    """Writes a model as ONNX, for torch.export or as a fastai learner, and compares it with the model on images.

    ONNX and torch-export take uint8 images, N x H x W x 3, upright RGB, and give calibrated probabilities: what
    `baseline predict` tells.

    Examples:

        baseline export runs/mine --to onnx --images images/test/

        baseline export runs/mine --to onnx --int8 --images images/ -o small.onnx

        baseline export runs/mine --to torch-export --size fixed --no-tta

        baseline export runs/mine --to learner
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from baseline.deploy.export import export as exported
    from baseline.progress import ConsoleProgress, Progress

    if to == "learner":
        print(
            "WARNING: a learner is a pickle. Whoever loads one runs whatever code is in it: pass it on only to those "
            "who trust you, and load none of others. It needs baseline where it is loaded, and gives plain, "
            "uncalibrated probabilities.",
            file=sys.stderr,
        )
    show = Progress() if quiet else ConsoleProgress()
    print(
        exported(model, to, out, images=images or (), size=size, tta=tta, int8=int8, overwrite=overwrite, progress=show)
    )


def _export_formats() -> tuple[str, ...]:
    from baseline.deploy.export import FORMATS

    return tuple(FORMATS)


def import_(
    learner: Annotated[Path, typer.Argument(help="What fastai's Learner.export wrote.", show_default=False)],
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Open it, which runs whatever code is in it.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The new model folder; the file's name here.", show_default=False)
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Images, folders, patterns or tables to compare the two on.", show_default=False),
    ] = None,
    arch: Annotated[str, typer.Option(help="Its architecture, where it does not tell.", show_default=False)] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Makes a model folder of a fastai vision learner: tensors and JSON, for every other command.

    The learner is a pickle, and opening one runs whatever code is in it: only with --trust-pickle.

    Examples:

        baseline import export.pkl --trust-pickle

        baseline import export.pkl --trust-pickle -o mine --images images/valid/
    """
    from baseline.progress import ConsoleProgress, Progress

    if trust_pickle:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    from baseline.deploy.import_fastai import import_learner

    show = Progress() if quiet else ConsoleProgress()
    print(import_learner(learner, out, trust_pickle=trust_pickle, arch=arch, images=images or (), progress=show))


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
    from baseline.deploy.kaggle.bundle import bundle as bundled
    from baseline.progress import ConsoleProgress, Progress

    show = Progress() if quiet else ConsoleProgress()
    print(bundled(folder, arch or (), model, everything=everything, overwrite=overwrite, progress=show))


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

    The network, how to build it, and the card: no images, and no paths of this machine.

    Examples:

        baseline push runs/mine me/ants-and-bees --dry-run

        baseline push runs/mine me/ants-and-bees --private
    """
    from baseline.cli.printing import grid
    from baseline.deploy.hub import plan_push
    from baseline.deploy.hub import push as pushed
    from baseline.progress import ConsoleProgress, Progress

    if not dry_run:
        print(pushed(run, repo, private=private, progress=Progress() if quiet else ConsoleProgress()))
        return
    ready = plan_push(run, repo)
    _print(grid([(name, f"{size:,} bytes") for name, size in ready.files.items()]))
    print(f"\n{ready.card}", end="")


def submit(
    run: Model,
    sample: Annotated[
        Path | None, typer.Option(help="The sample submission; looked for below /kaggle/input.", show_default=False)
    ] = None,
    image_dir: Annotated[
        Path | None,
        typer.Option(help="The folder or archive of the test images; beside the sample.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="submission.csv in /kaggle/working, or in the working folder.", show_default=False),
    ] = None,
    shape: Annotated[
        str,
        typer.Option(
            help="names, codes, probabilities or one-hot; auto: as the sample has it.",
            autocompletion=completion(lambda: _submission_formats()),
        ),
    ] = "auto",
    codes: Annotated[
        str | None, typer.Option(help="What classes are called there: ants=0,bees=1.", show_default=False)
    ] = None,
    leave_extra: Annotated[bool, typer.Option("--leave-extra", help="Passes over images without an id.")] = False,
    ensemble: EnsembleOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replaces a file that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Writes a competition's submission.csv as its sample asks, checks it, and tells what was checked.

    Examples:

        baseline submit runs/mine

        baseline submit runs/mine --sample sample_submission.csv --image-dir test/

        baseline submit runs/mine --sample sample_submission.csv --codes ants=0,bees=1 --overwrite
    """
    from baseline.deploy.kaggle.submission import submit as submitted
    from baseline.progress import ConsoleProgress, Progress

    print(
        submitted(
            [run, *split_paths(ensemble)], sample, image_dir, out=out, shape=shape, codes=codes, leave_extra=leave_extra,
            overwrite=overwrite, progress=Progress() if quiet else ConsoleProgress(),
        )
    )  # fmt: skip


def _submission_formats() -> tuple[str, ...]:
    from baseline.deploy.kaggle.submission_format import FORMATS

    return FORMATS
