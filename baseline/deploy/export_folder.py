"""Export a model to a folder that another library loads, and verify the folder before it gets its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from baseline.deploy.export import Exported, Exporter, Run, labels_text
from baseline.deploy.export_app import copy_runner, mlflow_runner, write_docker, write_mlflow, write_space
from baseline.deploy.export_openvino import openvino_runner, write_openvino
from baseline.deploy.export_timm import describe_preprocessing, needs_pickle, timm_runner, write_timm
from baseline.errors import OutputError, WeightsError
from baseline.files import atomic_folder, write_atomic
from baseline.inference.model import Model

__all__ = ["FOLDER_TOLERANCE", "export_folder", "export_notes"]


FOLDER_TOLERANCE = 1e-5
"""Maximum difference of a probability from the model's."""

WRITERS: dict[str, Callable[[Exporter, Path], None]] = {
    "timm": lambda exporter, folder: write_timm(exporter.model, folder),
    "openvino": lambda exporter, folder: write_openvino(exporter.model, folder, exporter.views),
    "mlflow": lambda exporter, folder: write_mlflow(exporter.model, folder),
    "space": lambda exporter, folder: write_space(exporter.model, folder),
    "docker": lambda exporter, folder: write_docker(exporter.model, folder),
}
"""How to write the folder of each format."""

RUNNERS: dict[str, Callable[[Path, Model], AbstractContextManager[Run]]] = {
    "timm": timm_runner, "openvino": openvino_runner, "mlflow": mlflow_runner, "space": copy_runner,
    "docker": copy_runner,
}  # fmt: skip
"""How to predict with the folder of each format."""


def export_folder(exporter: Exporter, to: str, out: Path, inputs: list[Any], golden: bool, overwrite: bool) -> Exported:
    """Write the folder of a format, and compare it with the model.

    Raises:
        OutputError: if the folder exists, or the library cannot have the model.
        WeightsError: if a probability differs by more than 1e-5.
    """
    model = exporter.model
    check_replaceable(out, overwrite)
    with atomic_folder(out, overwrite=overwrite) as part:
        for note in export_notes(model, to):
            exporter.progress.log(f"{to}: {note}")
        with exporter.export_errors(to):
            WRITERS[to](exporter, part)
        write_atomic(part / "labels.txt", labels_text(model.classes))
        with RUNNERS[to](part, model) as run:
            size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
            result = exporter.compare(run, inputs, out, size, golden)
        if not result.max_difference <= FOLDER_TOLERANCE:
            raise WeightsError(
                f"The exported model does not predict what the model predicts: a probability differs by "
                f"{result.max_difference:.2g}, at most {FOLDER_TOLERANCE:g} is allowed. Nothing was written."
            )
    return result


def export_notes(model: Model, to: str) -> Iterator[str]:
    """Yield what a user of the folder has to know."""
    if to == "timm":
        yield describe_preprocessing(model.config)
        if model.config["tta"]:
            yield "timm has no test-time augmentation, so it predicts what baseline predict --no-tta does"
        if needs_pickle():
            yield "timm before 1.0.26 reads no safetensors file of a folder, so pytorch_model.bin has the weights, too"
    if to == "openvino":
        yield f"the model takes squares of {model.decoded_size} pixels; resize images before"


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Raise an OutputError for a folder that exists, unless it is an earlier export that may be replaced."""
    if path.exists() and not (overwrite and path.is_dir() and (path / "labels.txt").exists()):
        raise OutputError(f"{path} exists. Pass --overwrite to replace an earlier export, or another --out.")
