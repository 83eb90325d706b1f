"""What the commands print with `--json`: one object on standard output. docs/automation.md describes its keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.cli.output import print_json
from baseline.files import without_nan

if TYPE_CHECKING:
    import pandas as pd

    from baseline.deploy.kaggle.submission import Submission
    from baseline.experiments.before_after import FixComparison
    from baseline.experiments.compare import Comparison
    from baseline.experiments.compare_recipes import RecipeComparison
    from baseline.experiments.repeats import FoldRuns, SeedRuns
    from baseline.inference.model import Ensemble, Model
    from baseline.inference.output import PredictionStats, PredictOptions
    from baseline.make import Baseline

FORMAT = 1
"""Version of the objects; it changes if a key changes its meaning or goes, not if one is added."""


def print_object(command: str, content: dict[str, Any]) -> None:
    """Print the object of a command."""
    print_json(without_nan({"format": FORMAT, "command": command, **content}))


def run_object(result: Baseline) -> dict[str, Any]:
    """The result of a run."""
    from baseline.report.advice import next_commands

    return {
        "kind": "run",
        "folder": result.folder,
        "headline": headline_object(result),
        "splits": {split: split_object(numbers) for split, numbers in result.metrics.items()},
        "probe": result.manifest.get("probe"),
        "folds": result.manifest.get("folds"),
        "seconds": result.manifest["seconds"],
        "manifest": result.folder / "manifest.json",
        "model": result.folder / "model",
        "report": result.folder / "report.html",
        "next": next_commands(result.folder),
    }


def headline_object(result: Baseline) -> dict[str, Any]:
    """The number that a run is judged by, as the first line of its output says it."""
    from baseline.report.headline import headline_view, named_headline
    from baseline.runs.folder import headline_split

    split, view = headline_split(result.metrics), headline_view(result.manifest)
    scores: Any = result.metrics[split][view]
    named = named_headline(result.manifest, split, view)
    name, value, interval = "accuracy", scores["accuracy"], scores["interval"]
    if named:
        name, value, interval = named.metric.name, named.value, named.interval
    return {"split": split, "metric": name, "tta": view == "tta", "value": value, "interval": interval}


def split_object(numbers: Any) -> dict[str, Any]:
    """The accuracy of a run on a split."""
    scores = numbers["tta"]
    return {
        "images": numbers["images"], "accuracy": scores["accuracy"], "interval": scores["interval"],
        "wrong": scores["wrong"], "accuracy_without_tta": numbers["plain"]["accuracy"],
    }  # fmt: skip


def repeats_object(result: SeedRuns | FoldRuns) -> dict[str, Any]:
    """The content of `seeds.json` or `folds.json`."""
    from baseline.report.advice import next_commands_of_series

    kind = "folds" if hasattr(result, "way") else "seeds"
    return {"kind": kind, **dataclasses.asdict(result), "next": next_commands_of_series(result.folder, kind)}


def fixes_object(result: FixComparison) -> dict[str, Any]:
    """The result of a run with label fixes, compared with the run before them."""
    comparison = {key: value for key, value in comparison_object(result.comparison).items() if key != "kind"}
    return {**run_object(result.after), "kind": "fixes", "before": result.before, "comparison": comparison}


def prediction_object(
    model: Model | Ensemble, out: Path, options: PredictOptions, stats: PredictionStats
) -> dict[str, Any]:
    """The counts of a job of predictions."""
    return {"out": out, "models": model.folders, "tta": options.tta, **dataclasses.asdict(stats)}


def comparison_object(result: Comparison | RecipeComparison) -> dict[str, Any]:
    """Compared runs, or recipes over seeds."""
    over_seeds = "recipe" in result.table
    metric = result.metric.name if result.metric else "accuracy"
    rows = result.table.to_dict("records")
    return {"kind": "recipes" if over_seeds else "runs", "metric": metric, "rows": rows, "sentences": result.sentences}


def runs_object(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    """The runs in a folder."""
    table = table if "headline" in table else table.assign(headline=None)
    return {"folder": folder, "runs": table.astype(object).where(table.notna(), None).to_dict("records")}


def check_object(model: Model, difference: float) -> dict[str, Any]:
    """One checked model folder."""
    from baseline.inference.model import TOLERANCE

    facts = {"folder": model.folder, "arch": model.config["arch"], "classes": len(model.classes)}
    return {**facts, "difference": difference, "tolerance": TOLERANCE}


def submission_object(result: Submission) -> dict[str, Any]:
    """A written submission."""
    return {"path": result.path, "kind": result.format.kind, "names": dict(result.format.names), "notes": result.notes}
