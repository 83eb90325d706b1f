"""Read the folder of a finished run, for its pages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from baseline.data.labels import explode_labels, order_classes
from baseline.errors import DataError, OutputError, quoted_list
from baseline.evaluation.metrics import evaluate
from baseline.evaluation.results import SplitMetrics
from baseline.files import read_json
from baseline.reading import read_run_table
from baseline.recipe.diff import flat_recipe
from baseline.runs.folder import headline_split, read_manifest, read_predictions

if TYPE_CHECKING:
    from baseline.report.audit_files import FindingRecord
    from baseline.runs.manifest import Manifest

__all__ = ["RunFiles", "read_history", "read_run", "selection_column"]


NUMBERS: dict[str, Any] = {"dtype": None, "keep_default_na": True}
"""Options for a table of numbers."""


REQUIRED_KEYS = ("recipe", "reasons", "metrics", "seconds", "stages", "data", "device", "versions", "finished")


@dataclass(frozen=True)
class RunFiles:
    """Contents of a run folder."""

    folder: Path
    manifest: Manifest
    predictions: pd.DataFrame
    epochs: pd.DataFrame | None
    """The history; None if it is damaged."""
    sweeps: pd.DataFrame | None
    """None where the folder has no `lr_find.csv`."""
    table: pd.DataFrame
    findings: list[FindingRecord]
    pairs: pd.DataFrame | None

    @property
    def recipe(self) -> dict[str, Any]:
        return flat_recipe(self.manifest["recipe"])

    @property
    def many(self) -> bool:
        """Whether an image may have several labels."""
        return self.recipe.get("task") == "multilabel"

    @cached_property
    def split(self) -> str:
        """The split that the headline number comes from."""
        return headline_split(self.manifest["metrics"])

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The predictions of that split, with a column `right`."""
        rows = self.predictions[self.predictions["split"] == self.split].reset_index(drop=True)
        return rows.copy().assign(  # the copy consolidates a thousand class columns into one block
            right=rows["predicted"] == rows["label"]
        )

    @cached_property
    def numbers(self) -> SplitMetrics:
        """The metrics of `rows`, computed again, because the manifest of an older version may lack some of them."""
        task, metric = self.recipe.get("task", "single"), self.recipe.get("metric", "auto")
        return evaluate(self.rows, task, metric)[self.split]

    @cached_property
    def classes(self) -> list[str]:
        return [name.removeprefix("p_") for name in map(str, self.predictions) if name.startswith("p_")]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probabilities of `rows`, images x classes."""
        return self.rows[[f"p_{name}" for name in self.classes]].to_numpy()


def read_run(folder: Path) -> RunFiles:
    """Read the folder of a finished run.

    Raises:
        OutputError: if the folder holds no finished run, or its manifest or findings cannot be read.
        DataError: if a table of it cannot be read or is invalid.
    """
    manifest = read_manifest(folder)
    if missing := [key for key in REQUIRED_KEYS if key not in manifest]:
        raise OutputError(
            f"{folder / 'manifest.json'} lacks {quoted_list(missing)}. Pass the folder of a finished run."
        )
    findings, pairs = folder / "audit" / "findings.json", folder / "audit" / "pairs.csv"
    run = RunFiles(
        folder,
        manifest,
        read_predictions(folder),
        read_history(folder / "history.csv"),
        read_run_table(folder / "lr_find.csv", **NUMBERS) if (folder / "lr_find.csv").exists() else None,
        read_run_table(folder / "split.csv"),
        read_json(findings)["findings"] if findings.exists() else [],
        read_run_table(pairs) if pairs.exists() else None,
    )
    if run.rows.empty:
        raise DataError(f"{folder / 'predictions.csv'} has no row of the split '{run.split}'. Run it again.")
    used = pd.concat([run.rows["label"], run.rows["predicted"]])
    if unknown := order_classes({*explode_labels(used, run.recipe.get("task", "single")).dropna()} - {*run.classes}):
        raise DataError(
            f"{folder / 'predictions.csv'} has labels without a column p_LABEL: {quoted_list(unknown)}. Run it again."
        )
    return run


def read_history(path: Path) -> pd.DataFrame | None:
    """Read the epochs of a run; None if the file is missing or is not what the run wrote."""
    try:
        epochs = read_run_table(path, **NUMBERS)
    except DataError:
        return None
    numbers = {"epoch", "stage", "lr", "train_loss", "valid_loss"}
    is_complete = numbers | {"best"} <= {*epochs} and selection_column(epochs) and epochs["best"].dtype == bool
    return epochs if is_complete and len(epochs) else None


def selection_column(epochs: pd.DataFrame) -> str:
    """Return the column of the metric that decided which epoch was kept: the first after the loss."""
    return next((name for name in map(str, epochs) if name.startswith("valid_") and name != "valid_loss"), "")
