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
    "Audit": "data.audit.findings",
    "Augment": "recipe.schema",
    "Baseline": "make",
    "BaselineError": "errors",
    "Bundle": "deploy.kaggle.bundle",
    "Cleaning": "experiments.label_review",
    "Columns": "data.sources.tables",
    "Comparison": "runs.compare",
    "Curve": "experiments.learning_curve",
    "DataError": "errors",
    "Ensemble": "inference.model",
    "Exported": "deploy.export",
    "Fixed": "experiments.before_after",
    "Folds": "experiments.repeats",
    "History": "training.state",
    "Ladder": "experiments.ladder",
    "Imported": "deploy.import_fastai",
    "LeakError": "errors",
    "Limits": "deploy.server.predictor",
    "Model": "inference.model",
    "OutputError": "errors",
    "Recipe": "recipe.schema",
    "RecipeError": "errors",
    "Seeds": "experiments.repeats",
    "Show": "progress",
    "Stage": "recipe.schema",
    "Submission": "deploy.kaggle.submission",
    "Terminal": "progress",
    "TrainingError": "errors",
    "Wanted": "inference.output",
    "Weights": "vision.weights",
    "WeightsError": "errors",
    "audit": "data.audit.findings",
    "averaged": "evaluation.ensemble",
    "bundle": "deploy.kaggle.bundle",
    "calibrated": "evaluation.calibration",
    "calibration": "evaluation.calibration",
    "clean": "experiments.label_review",
    "comparison": "runs.compare",
    "dataloaders": "vision.dataloaders",
    "dataset": "data.sources.datasets",
    "embeddings": "training.frozen",
    "export": "deploy.export",
    "find_weights": "vision.weights",
    "go_on": "make",
    "import_learner": "deploy.import_fastai",
    "label_issues": "evaluation.label_errors",
    "learner": "vision.learner",
    "load": "inference.model",
    "load_network": "inference.model_folder",
    "load_recipe": "recipe.load",
    "make_baseline": "make",
    "make_curve": "experiments.learning_curve",
    "make_fixed": "experiments.before_after",
    "make_folds": "experiments.repeats",
    "make_ladder": "experiments.ladder",
    "make_seeds": "experiments.repeats",
    "measure": "evaluation.metrics",
    "mended": "data.label_fixes",
    "out_of_fold": "experiments.label_review",
    "photo_table": "data.table",
    "predictions": "evaluation.predict",
    "push": "deploy.hub",
    "read_fixes": "data.label_fixes",
    "readable": "data.audit.findings",
    "recipe_names": "recipe.load",
    "runs_in": "runs.compare",
    "same_or_not": "evaluation.significance",
    "seeded": "vision.rng",
    "sentences": "evaluation.explain",
    "serve": "deploy.server.app",
    "settle": "vision.resolve",
    "split": "data.split",
    "submit": "deploy.kaggle.submission",
    "suspected_labels": "evaluation.label_errors",
    "temperature": "evaluation.calibration",
    "train": "training.stages",
    "understand": "data.prepare",
    "write_card": "report.model_card",
    "write_predictions": "inference.batch",
    "write_report": "report.page",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'baseline' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
