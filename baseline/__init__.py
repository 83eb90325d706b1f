"""The first honest number for an image-classification problem, and a model to go with it.

>>> import baseline
>>> done = baseline.make_baseline("photos/")                                       # doctest: +SKIP

The names below are loaded on first use; importing the package loads neither torch nor fastai.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Audit": "audits",
    "Augment": "recipe",
    "Baseline": "make",
    "BaselineError": "errors",
    "Bundle": "bundles",
    "Cleaning": "cleaning",
    "Columns": "tables",
    "Comparison": "compare",
    "Curve": "curve",
    "DataError": "errors",
    "Ensemble": "model",
    "Exported": "exports",
    "Fixed": "experiments",
    "Folds": "experiments",
    "History": "training",
    "Ladder": "ladder",
    "Imported": "imports",
    "LeakError": "errors",
    "Limits": "web",
    "Model": "model",
    "OutputError": "errors",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Seeds": "experiments",
    "Show": "progress",
    "Stage": "recipe",
    "Submission": "submission",
    "Terminal": "progress",
    "TrainingError": "errors",
    "Wanted": "bulk",
    "Weights": "weights",
    "WeightsError": "errors",
    "audit": "audits",
    "averaged": "metrics",
    "bundle": "bundles",
    "calibrated": "metrics",
    "calibration": "metrics",
    "clean": "cleaning",
    "comparison": "compare",
    "dataloaders": "data",
    "dataset": "datasets",
    "embeddings": "features",
    "export": "exports",
    "find_weights": "weights",
    "go_on": "make",
    "import_learner": "imports",
    "label_issues": "cleaning",
    "learner": "learners",
    "load": "model",
    "load_network": "networks",
    "load_recipe": "recipe",
    "make_baseline": "make",
    "make_curve": "curve",
    "make_fixed": "experiments",
    "make_folds": "experiments",
    "make_ladder": "ladder",
    "make_seeds": "experiments",
    "measure": "metrics",
    "mended": "mending",
    "out_of_fold": "cleaning",
    "photo_table": "sources",
    "predictions": "predict",
    "push": "hub",
    "read_fixes": "mending",
    "readable": "audits",
    "recipe_names": "recipe",
    "runs_in": "compare",
    "same_or_not": "metrics",
    "seeded": "chance",
    "sentences": "metrics",
    "serve": "web",
    "settle": "make",
    "split": "splits",
    "submit": "submission",
    "suspected_labels": "metrics",
    "temperature": "metrics",
    "train": "training",
    "understand": "make",
    "write_card": "card",
    "write_predictions": "bulk",
    "write_report": "report",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'baseline' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
