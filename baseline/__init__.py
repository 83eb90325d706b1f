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
    "Columns": "tables",
    "Comparison": "compare",
    "DataError": "errors",
    "Ensemble": "model",
    "Folds": "experiments",
    "History": "training",
    "LeakError": "errors",
    "Model": "model",
    "OutputError": "errors",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Seeds": "experiments",
    "Show": "progress",
    "Stage": "recipe",
    "Submission": "submission",
    "Terminal": "progress",
    "Wanted": "bulk",
    "Weights": "weights",
    "WeightsError": "errors",
    "audit": "audits",
    "averaged": "metrics",
    "calibrated": "metrics",
    "calibration": "metrics",
    "comparison": "compare",
    "dataloaders": "data",
    "dataset": "datasets",
    "embeddings": "features",
    "find_weights": "weights",
    "learner": "learners",
    "load": "model",
    "load_network": "networks",
    "load_recipe": "recipe",
    "make_baseline": "make",
    "make_folds": "experiments",
    "make_seeds": "experiments",
    "measure": "metrics",
    "photo_table": "sources",
    "predictions": "predict",
    "push": "hub",
    "readable": "audits",
    "recipe_names": "recipe",
    "runs_in": "compare",
    "same_or_not": "metrics",
    "seeded": "chance",
    "sentences": "metrics",
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
