"""The commands that measure a trained model on new images, or compute their features: `evaluate` and `embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baseline.cli.experiments import IMAGE_FIELDS
from baseline.cli.options import (
    Coverage,
    HelpAll,
    Quiet,
    RejectUnlike,
    Tta,
    completion,
    make_progress,
    parse_target,
    recipe_options,
    split_names,
    split_paths,
)
from baseline.cli.output import check_any_readable, print_json, print_table, print_text
from baseline.inference import DEFAULT_TTA

if TYPE_CHECKING:
    from rich.console import RenderableType

    from baseline.experiments.evaluate_models import ModelEvaluations

Models = Annotated[
    list[Path],
    typer.Argument(help="One or more run folders or model/ folders, or folders of folds or seeds.", show_default=False),
]

Labeled = Annotated[
    str,
    typer.Argument(
        metavar="IMAGES",
        help="Labeled images, in any form that baseline run takes: a folder, a table, an archive.",
        show_default=False,
    ),
]


@recipe_options(*IMAGE_FIELDS, "positive")
def evaluate_command(
    models: Models,
    images: Labeled,
    unknown: Annotated[
        str,
        typer.Option(
            help="Images whose labels the model does not know: error, or drop to leave them out.",
            autocompletion=completion(lambda: ("error", "drop")),
        ),
    ] = "error",
    splits: Annotated[
        str, typer.Option(help="Only images of these splits, separated by commas.", show_default=False)
    ] = "",
    skip_trained: Annotated[
        bool, typer.Option("--skip-trained", help="Leave out images that the model was trained on.")
    ] = False,
    metric: Annotated[
        str, typer.Option(help="Metric to compare by (default: that of the run).", show_default=False)
    ] = "auto",
    tta: Tta = DEFAULT_TTA,
    reject_unlike: RejectUnlike = 0.0,
    coverage: Coverage = 0.0,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(help="Runs, separated by commas, whose ensemble is also evaluated.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder (default: evaluations/NAME-DATE-TIME).", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the content of metrics.json.")] = False,
    quiet: Quiet = False,
    help_all: HelpAll = False,
    *,
    changes: dict[str, Any],
) -> None:
    """Measure trained models on new labeled images, and compare with the test number of their runs.

    Writes predictions.csv, metrics.json and evaluation.html to --out.

    Examples:

    ```text
    baseline evaluate runs/mine new/
    baseline evaluate runs/mine new.csv --image-dir scans/ --label-col diagnosis
    baseline evaluate runs/mine runs/other images/ --splits test --json
    baseline evaluate runs/mine new/ --unknown drop --skip-trained --out evaluations/new
    ```
    """
    from baseline.experiments.evaluate_models import evaluate_models
    from baseline.files import without_nan

    target, recipe = parse_target(images)
    names: list[Any] = [*models, *(split_paths([text]) for text in ensemble or [])]
    result = evaluate_models(
        names, target or recipe, tta=tta, unknown=unknown, metric=metric, splits=split_names(splits),  # type: ignore[arg-type]
        skip_trained=skip_trained, reject_unlike=reject_unlike, coverage=coverage, out=out,
        progress=make_progress(quiet), **changes,
    )  # fmt: skip
    if as_json:
        print_json(without_nan(result.as_dict()))
    else:
        print_table(evaluations_table(result))


def embed_command(
    model: Annotated[Path, typer.Argument(help="A run folder, or its model/ folder.", show_default=False)],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, zip or tar archives, glob patterns, or tables with a column of paths.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file: .npz or .parquet.", show_default=False)],
    neighbors: Annotated[
        int,
        typer.Option(
            "--neighbors", "--neighbours", min=0, help="Also write this many most similar images.", show_default=False
        ),
    ] = 0,
    reference: Annotated[
        str,
        typer.Option(
            help="Images to search for neighbors, or a file of this command (default: IMAGES themselves).",
            show_default=False,
        ),
    ] = "",
    image_col: Annotated[str, typer.Option(help="Column of a table with the paths; detected by default.")] = "",
    batch_size: Annotated[int, typer.Option(min=1, max=65536, help="Batch size.")] = 64,
    quiet: Quiet = False,
) -> None:
    """Write the features of images: what the network computes before the classes.

    An unreadable image gets a row with the reason; the exit code is 2 if none of the images can be read.

    Examples:

    ```text
    baseline embed runs/mine holiday/ --out features.npz
    baseline embed runs/mine holiday/ --out features.parquet --neighbors 5
    baseline embed runs/mine new.jpg --out new.npz --neighbors 5 --reference features.npz
    ```
    """
    from baseline.data.sources.image_list import list_images
    from baseline.errors import RecipeError, format_count
    from baseline.inference.features import (
        SUFFIXES,
        add_neighbors,
        check_embeddings_path,
        embed_images,
        read_embeddings,
        write_embeddings,
    )
    from baseline.inference.model import load_model

    check_embeddings_path(out)
    if reference and not neighbors:
        raise RecipeError("--reference needs --neighbors K.")
    progress = make_progress(quiet)
    paths, _ = list_images(images, image_col, (), progress)
    loaded = load_model(model)
    embedded = embed_images(loaded, list(paths), batch_size, progress)
    searched = None
    if Path(reference).suffix.lower() in SUFFIXES:
        searched = read_embeddings(Path(reference).expanduser())
    elif reference:
        searched = embed_images(
            loaded, list(list_images([reference], image_col, (), progress)[0]), batch_size, progress
        )
    unreadable = int((~embedded.readable).sum())
    with_neighbors = neighbors and unreadable < len(embedded.paths)
    write_embeddings(out, embedded, add_neighbors(embedded, searched, neighbors) if with_neighbors else {})
    check_any_readable(len(embedded.paths), unreadable)
    count, width = format_count(len(embedded.paths), "image"), embedded.features.shape[1]
    progress.log(f"{width:,} features of {count}" + (f"; {unreadable:,} could not be read" if unreadable else ""))
    print_text(out)


def reference_command(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    quiet: Quiet = False,
) -> None:
    """Add reference.safetensors to the model folder of a run that an earlier version made, and print its path.

    --unlike, --reject-unlike and --coverage need it. Runs have it from the start.

    Examples:

    ```text
    baseline reference runs/old
    ```
    """
    from baseline.experiments.add_reference import add_reference

    print_text(add_reference(run, progress=make_progress(quiet)))


def evaluations_table(result: ModelEvaluations) -> RenderableType:
    """The headline metric of each model, and how it compares."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    table = Table("model", "images", "metric", "value", "95% confidence interval", "wrong")
    lines = []
    for model in result.models:
        score, metric = model.evaluation.scores[model.headline.name], model.headline
        interval = " to ".join(metric.text(end) for end in score["interval"] or ())
        images, wrong = len(model.evaluation.predictions), model.evaluation.metrics["wrong"]
        cells = (metric.title, metric.text(score["value"]), interval, f"{wrong:,}")
        table.add_row(escape(model.name), f"{images:,}", *cells)
        prefix = f"{model.name}: " if len(result.models) > 1 else ""
        lines += [f"{prefix}{note}" for note in model.notes]
    lines += [test["sentence"] for test in result.differences]
    lines += [f"results: {result.folder}"]
    return Group(table, *map(escape, lines))
