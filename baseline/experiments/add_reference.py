"""Add to the model folder of a finished run what it needs to recognize out-of-distribution images."""

from __future__ import annotations

from pathlib import Path

from baseline.errors import DataError, OutputError, format_count
from baseline.files import REFERENCE_FILE
from baseline.inference.reference import measure_reference, save_reference, select_images
from baseline.progress import ConsoleProgress, Progress
from baseline.reading import read_run_table
from baseline.runs.folder import read_manifest, read_predictions

__all__ = ["add_reference"]


def add_reference(run: str | Path, *, progress: Progress | None = None) -> Path:
    """Write `reference.safetensors` into the model folder of a finished run of an earlier version, and return its path.

    Raises:
        OutputError: if the folder holds no finished run with a model.
        DataError: if images of the run no longer exist or cannot be read.

    >>> add_reference("runs/mine")                                                 # doctest: +SKIP
    PosixPath('runs/mine/model/reference.safetensors')
    """
    from baseline.inference.model import load_model

    run, progress = Path(run).expanduser(), progress or ConsoleProgress()
    read_manifest(run)
    model = load_model(run)
    if model.folder.absolute().parent != run.absolute():
        raise OutputError(f"{run} is not the folder of a single run. Pass one.")
    table = read_run_table(run / "split.csv")
    task = "multilabel" if model.multilabel else "single"
    rows = table[table["split"] == "valid"]
    if rows.empty:
        raise DataError(f"{run} has no validation images to measure distances with. Train the run again.")
    width = model.embed(rows["path"].iloc[0], progress=Progress()).features.shape[1]
    samples = select_images(table, max(width, 1), task)
    features = []
    for images in samples:
        embedded = model.embed(images["path"].tolist(), progress=progress)
        if missing := [path for path, error in zip(embedded.paths, embedded.errors, strict=True) if error]:
            count = format_count(len(missing), "image")
            raise DataError(f"{count} of {run} cannot be read, first {missing[0]}. Put them back, or train again.")
        features.append(embedded.features)
    train, valid = features
    reference = measure_reference(train, valid, read_predictions(run), model.config["temperature"], task)
    save_reference(model.folder, reference)
    return model.folder / REFERENCE_FILE
