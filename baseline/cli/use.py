"""The commands that use a trained model: `predict`, `serve`, `export`, `submit` and others."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from baseline.cli.json_output import check_object, prediction_object, print_object, submission_object
from baseline.cli.options import (
    OUTPUT_FORMATS,
    AsJson,
    Coverage,
    EnsembleOption,
    ExecutorOption,
    Model,
    RejectUnlike,
    Tta,
    completion,
    make_progress,
    split_paths,
)
from baseline.cli.output import binary_output, check_any_readable, end_output, print_table, print_text
from baseline.errors import BaselineError, OutputError, quoted_list
from baseline.inference import DEFAULT_TTA

PredictImages = Annotated[
    list[str],
    typer.Argument(
        help="Images, folders, zip or tar archives, glob patterns, tables with a column of paths, or - for paths "
        "on standard input.",
        show_default=False,
    ),
]

PredictOut = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Output file: .csv, .jsonl or .parquet (default: standard output).", show_default=False
    ),
]

PredictPrecision = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, or auto (bfloat16 if the CPU supports it); by default that of the run's "
        "evaluation, which is float32 on a CPU.",
        autocompletion=completion(lambda: ("auto", "float32", "bfloat16")),
        show_default=False,
    ),
]

PredictFormat = Annotated[
    str, typer.Option(help="csv or jsonl, for standard output.", autocompletion=completion(lambda: OUTPUT_FORMATS))
]

MinConfidence = Annotated[
    float, typer.Option(min=0, max=1, help="Label predictions below this confidence 'unsure'.", show_default=False)
]

Unlike = Annotated[bool, typer.Option("--unlike", help="Write how unlike the training images each image is, 0 to 1.")]

PredictProcesses = Annotated[
    int, typer.Option(min=1, max=1024, help="Number of processes: one per GPU, or sharing the CPU.")
]


PredictJson = Annotated[
    bool, typer.Option("--json", help="With --out: print the counts of the job as one JSON object.")
]


def predict_command(
    model: Model,
    images: PredictImages,
    out: PredictOut = None,
    format: PredictFormat = "csv",
    top_k: Annotated[int, typer.Option(min=0, help="Write this many most probable classes.")] = 0,
    every: Annotated[bool, typer.Option("--all", help="Write the probability of every class.")] = False,
    tta: Tta = DEFAULT_TTA,
    min_confidence: MinConfidence = 0.0,
    unlike: Unlike = False,
    reject_unlike: RejectUnlike = 0.0,
    coverage: Coverage = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite --out.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the unfinished job in --out.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=65536, help="Batch size.")] = 64,
    precision: PredictPrecision = "",
    processes: PredictProcesses = 1,
    executor: ExecutorOption = "",
    image_col: Annotated[str, typer.Option(help="Column of a table with the paths; detected by default.")] = "",
    ensemble: EnsembleOption = None,
    as_json: PredictJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only print predictions.")] = False,
) -> None:
    """Predict images with a trained model: one row per image, with calibrated confidence.

    An unreadable image gets a row with the reason; the exit code is 2 if none of the images can be read.

    Examples:

    ```text
    baseline predict runs/mine holiday.jpg
    baseline predict runs/mine holiday/ --out predictions.csv --top-k 3
    baseline predict runs/mine test.csv --image-col file --out out.csv --resume
    baseline predict runs/mine holiday/ --reject-unlike 0.05 --coverage 0.95
    baseline predict runs/mine holiday/ --ensemble runs/other,runs/third
    baseline predict runs/mine images.zip --out out.parquet --processes 4
    baseline predict runs/mine images/ --out out.csv --executor ray://head:10001
    find . -name '*.jpg' | baseline predict runs/mine - --format jsonl
    ```
    """
    kind = _output_format(out, format, images, as_json=as_json, executor=executor, overwrite=overwrite, resume=resume)
    from baseline.parallel.executor import get_executor

    progress = make_progress(quiet)
    get_executor(executor, progress)  # finds errors before torch is loaded
    from baseline.data.sources.image_list import list_images
    from baseline.inference.batch import write_predictions
    from baseline.inference.output import PredictOptions

    bars = make_progress(True) if out is None and sys.stdout.isatty() else progress
    options = PredictOptions(
        kind, tta, top_k, every, min_confidence, batch_size, precision, unlike, reject_unlike, coverage
    )
    paths, total = list_images(images, image_col, sys.stdin.buffer if "-" in images else (), progress)
    from baseline.system import fast_imports

    with fast_imports():
        from baseline.inference.model import load
    loaded = load([model, *split_paths(ensemble)])
    try:
        counts = write_predictions(
            loaded, paths, binary_output() if out is None else out, options, total=total, processes=processes,
            overwrite=overwrite, resume=resume, executor=executor, progress=bars,
        )  # fmt: skip
        sys.stdout.flush()
    except OSError as error:
        if out is not None or isinstance(error, BaselineError):
            raise
        raise end_output(error, "Pass --out FILE, which --resume continues.") from None
    except KeyboardInterrupt:
        if out is not None:
            progress.log(f"interrupted: --resume continues {out}")
        raise
    progress.log(f"predicted: {counts}{'' if out is None else f'; written: {out}'}")
    check_any_readable(counts.images + counts.already_done, counts.unreadable)
    if as_json and out:
        print_object("predict", prediction_object(loaded, out, options, counts))


def _output_format(
    out: Path | None, format: str, images: list[str], *, as_json: bool, executor: str, overwrite: bool, resume: bool
) -> str:
    """Return the format of the predictions; raise an error for options that do not work together."""
    if as_json and out is None:
        raise OutputError("--json prints the counts where the predictions would be. Pass --out FILE for these.")
    if out is None:
        binary_output()
    if executor and out is None:
        raise OutputError("--executor requires --out FILE.")
    kind = format if out is None else out.suffix.lower().removeprefix(".")
    known = OUTPUT_FORMATS if out is not None else tuple(name for name in OUTPUT_FORMATS if name != "parquet")
    if kind not in known:
        problem = f"{format} cannot be written to standard output" if out is None else f"{out} has an unknown extension"
        raise OutputError(f"{problem}; needed: {', '.join(known)}.")
    if (overwrite or resume) and out is None:
        raise OutputError("--overwrite and --resume require --out FILE.")
    if overwrite and resume:
        raise OutputError("--overwrite and --resume cannot be combined.")
    if out is not None and any(Path(name).absolute() == out.absolute() for name in images):
        raise OutputError(f"{out} is one of the images to predict. Choose another --out.")
    return kind


def serve_command(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 accepts connections from the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8000,
    open: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    tta: Tta = DEFAULT_TTA,
    reject_unlike: RejectUnlike = 0.0,
    coverage: Coverage = 0.0,
    examples: Annotated[
        bool, typer.Option("--examples/--no-examples", help="Show a few of the run's images on the page.")
    ] = True,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Additional host name of the server, such as that of a proxy. Repeatable.", show_default=False
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Other site whose pages may use the server, such as https://my.site; * for all. Repeatable.",
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            help="Access log on standard output: text (default), json or none.",
            autocompletion=completion(lambda: ("text", "json", "none")),
            show_default=False,
        ),
    ] = None,
    max_mb: Annotated[int, typer.Option(min=1, max=2000, help="Maximum size of a request, in MB.")] = 32,
    max_megapixels: Annotated[int, typer.Option(min=1, max=170, help="Maximum size of an image, in megapixels.")] = 64,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Maximum number of images in the queue; others get 503 with Retry-After.")
    ] = 256,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, help="Timeout for receiving a request, and for the response.")
    ] = 30,
    batch_size: Annotated[int, typer.Option(min=1, max=65536, help="Batch size.")] = 16,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print no messages, and no access log without --log-format.")
    ] = False,
) -> None:
    """Serve a model: a web page and an HTTP API. Ctrl-C stops it.

    Images stay in memory and never reach the disk or another machine. Without --host only this machine can use the
    server; with it, everyone who reaches the address can: there is no authentication.

    Examples:

    ```text
    baseline serve runs/mine --open
    baseline serve runs/mine/model --port 8080 --no-tta
    baseline serve runs/mine --log-format json --allow-origin https://my.site
    baseline serve runs/mine --host 0.0.0.0 --no-examples
    curl -F image=@holiday.jpg http://127.0.0.1:8000/predict
    ```
    """
    from baseline.deploy.server.app import serve
    from baseline.deploy.server.predictor import Limits

    limits = Limits(max_mb, max_megapixels, waiting=max_waiting, batch=batch_size, seconds=max_seconds)
    serve(
        model, host=host, port=port, tta=tta, reject_unlike=reject_unlike, coverage=coverage, examples=examples,
        limits=limits, hosts=allow_host or (), origins=allow_origin or (),
        log_format=log_format or ("none" if quiet else "text"),  # type: ignore[arg-type]
        browser=open, progress=make_progress(quiet),
    )  # fmt: skip
    sys.stderr.flush()
    os._exit(0)  # otherwise the exit would wait for a running forward pass


def check_command(model: Model, as_json: AsJson = False) -> None:
    """Check that a model is intact and predicts as it did when saved.

    The tensors are compared with their sha256 and with the architecture, and the network predicts the few images stored
    in the folder for this purpose. Files that do not belong to a model are named.

    Examples:

    ```text
    baseline check runs/mine
    ```
    """
    from baseline.inference.model import TOLERANCE, load
    from baseline.inference.reference import unknown_files

    checked = [(member, member.check()) for member in load(model).members]
    if as_json:
        print_object("check", {"models": [check_object(member, difference) for member, difference in checked]})
        return
    for member, difference in checked:
        print_text(f"{member.folder}: {member.config['arch']}, {len(member.classes):,} classes, all tensors intact")
        print_text(
            f"golden inputs: largest difference in a probability {difference:.1e}, at most {TOLERANCE:.0e} allowed"
        )
        if names := unknown_files(member.folder):
            print_text(f"not part of the model, and never opened: {quoted_list(names)}")


def export_command(
    model: Model,
    to: Annotated[
        str,
        typer.Option(
            help="onnx, torch-export, learner, timm, openvino, mlflow, space or docker.",
            autocompletion=completion(lambda: _export_formats()),
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Output file or folder (default: NAME.onnx, NAME-timm and so on in the current folder).",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            help="Images, folders, patterns or tables to compare on; by default the golden inputs of the model folder. "
            "Repeatable.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            help="any: images of any size are resized inside; fixed: squares of the model's size only.",
            autocompletion=completion(lambda: ("any", "fixed")),
        ),
    ] = "any",
    tta: Tta = DEFAULT_TTA,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="8-bit ONNX: a third of the size, slightly different, not always faster."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only print the result.")] = False,
) -> None:
    """Export a model to another format, and verify it against the model.

    ONNX, torch-export and OpenVINO take uint8 images, N x H x W x 3, upright RGB, and return calibrated probabilities,
    as `baseline predict` does. timm, openvino, mlflow, space (a Gradio page) and docker are folders.

    Examples:

    ```text
    baseline export runs/mine --to onnx --images images/test/
    baseline export runs/mine --to onnx --int8 --images images/ -o small.onnx
    baseline export runs/mine --to torch-export --size fixed --no-tta
    baseline export runs/mine --to timm -o insects
    baseline export runs/mine --to space
    baseline export runs/mine --to learner
    ```
    """
    from baseline.deploy.export import export

    if to == "learner":
        print_text(
            "WARNING: a learner is a pickle file, and loading one runs any code that is in it: share it only with "
            "people who trust you, and load only files that you trust. It needs baseline where it is loaded, and "
            "returns uncalibrated probabilities.",
            file=sys.stderr,
        )
    progress = make_progress(quiet)
    print_text(
        export(
            model, to, out, images=images or (), size=size, tta=tta, int8=int8, overwrite=overwrite, progress=progress
        )
    )


def _export_formats() -> tuple[str, ...]:
    from baseline.deploy.export import FORMATS

    return tuple(FORMATS)


def import_command(
    learner: Annotated[Path, typer.Argument(help="A file written by fastai's Learner.export.", show_default=False)],
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Open the pickle, which runs any code in it.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Output model folder (default: named after the file).", show_default=False),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Images, folders, patterns or tables to compare both models on.", show_default=False),
    ] = None,
    arch: Annotated[
        str, typer.Option(help="Architecture, if it is not stored in the learner.", show_default=False)
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only print the result.")] = False,
) -> None:
    """Convert a fastai vision learner to a model folder (tensors and JSON) for the other commands.

    The learner is a pickle file, and opening it runs any code in it; this needs --trust-pickle.

    Examples:

    ```text
    baseline import export.pkl --trust-pickle
    baseline import export.pkl --trust-pickle -o mine --images images/valid/
    ```
    """

    from baseline.deploy.import_fastai import import_learner

    progress = make_progress(quiet)
    print_text(
        import_learner(learner, out, trust_pickle=trust_pickle, arch=arch, images=images or (), progress=progress)
    )


def bundle_command(
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="DIR", show_default=False)],
    arch: Annotated[
        list[str] | None,
        typer.Option(help="Architecture whose weights are included. Repeatable.", show_default=False),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="A run whose model is included.", show_default=False)] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Include wheels of all dependencies, not only of those missing in Kaggle's image."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only print the result.")] = False,
) -> None:
    """Collect what an offline Kaggle notebook needs, to attach as a dataset: wheels, weights, a model.

    Examples:

    ```text
    baseline bundle kaggle-baseline
    baseline bundle kaggle-baseline --arch resnet18 --arch convnext_tiny
    baseline bundle kaggle-baseline --model runs/mine --overwrite
    ```
    """
    from baseline.deploy.kaggle.bundle import bundle

    progress = make_progress(quiet)
    print_text(bundle(folder, arch or (), model, everything=everything, overwrite=overwrite, progress=progress))


def push_command(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    repo: Annotated[
        str, typer.Argument(help="OWNER/NAME on the Hugging Face hub; created if needed.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files with their sizes, print the card, and exit.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only print the address.")] = False,
) -> None:
    """Push the model folder of a run, with its card, to the Hugging Face hub, in one commit.

    It contains the network, its configuration and the card, but no images and no local paths.

    Examples:

    ```text
    baseline push runs/mine me/ants-and-bees --dry-run
    baseline push runs/mine me/ants-and-bees --private
    ```
    """
    from baseline.cli.printing import grid
    from baseline.deploy.hub import plan_push, push

    if not dry_run:
        print_text(push(run, repo, private=private, progress=make_progress(quiet)))
        return
    ready = plan_push(run, repo)
    print_table(grid([(name, f"{size:,} bytes") for name, size in ready.files.items()]))
    print_text(f"\n{ready.card}", end="")


def submit_command(
    run: Model,
    sample: Annotated[
        Path | None,
        typer.Option(
            help="Sample submission (default: found beside the run's images, or below /kaggle/input).",
            show_default=False,
        ),
    ] = None,
    image_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder or archive of the test images (default: found next to the sample).", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output file (default: submission.csv in /kaggle/working or the current folder).", show_default=False
        ),
    ] = None,
    shape: Annotated[
        str,
        typer.Option(
            help="names, codes, probabilities or one-hot; auto infers it from the sample.",
            autocompletion=completion(lambda: _submission_formats()),
        ),
    ] = "auto",
    codes: Annotated[
        str | None,
        typer.Option(help="Code of each class in the submission, such as ants=0,bees=1.", show_default=False),
    ] = None,
    leave_extra: Annotated[bool, typer.Option("--leave-extra", help="Ignore images without an id.")] = False,
    ensemble: EnsembleOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only print the result.")] = False,
) -> None:
    """Write a competition's submission.csv in the format of its sample, and verify it.

    Examples:

    ```text
    baseline submit runs/mine
    baseline submit runs/mine --sample sample_submission.csv --image-dir test/
    baseline submit runs/mine --sample sample.csv --codes ants=0,bees=1
    ```
    """
    from baseline.deploy.kaggle.submission import submit

    result = submit(
        [run, *split_paths(ensemble)], sample, image_dir, out=out, shape=shape, codes=codes,
        leave_extra=leave_extra, overwrite=overwrite, progress=make_progress(quiet),
    )  # fmt: skip
    if as_json:
        print_object("submit", submission_object(result))
    else:
        print_text(result)


def _submission_formats() -> tuple[str, ...]:
    from baseline.deploy.kaggle.submission_format import FORMATS

    return FORMATS
