"""The first honest number for an image-classification problem, and a model to go with it.

>>> import baseline
>>> done = baseline.make_baseline("images/")                                       # doctest: +SKIP

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
    "LabelReview": "experiments.label_review",
    "Columns": "data.sources.tables",
    "Comparison": "runs.compare",
    "LearningCurve": "experiments.learning_curve",
    "DataError": "errors",
    "Ensemble": "inference.model",
    "Exported": "deploy.export",
    "FixComparison": "experiments.before_after",
    "FoldRuns": "experiments.repeats",
    "History": "training.state",
    "Ladder": "experiments.ladder",
    "Imported": "deploy.import_fastai",
    "LeakError": "errors",
    "Limits": "deploy.server.predictor",
    "Model": "inference.model",
    "OutputError": "errors",
    "Recipe": "recipe.schema",
    "RecipeError": "errors",
    "SeedRuns": "experiments.repeats",
    "Progress": "progress",
    "Stage": "recipe.schema",
    "Submission": "deploy.kaggle.submission",
    "ConsoleProgress": "progress",
    "TrainingError": "errors",
    "PredictOptions": "inference.output",
    "Weights": "vision.weights",
    "WeightsError": "errors",
    "audit": "data.audit.findings",
    "ensemble": "evaluation.ensemble",
    "bundle": "deploy.kaggle.bundle",
    "calibrate": "evaluation.calibration",
    "calibration_report": "evaluation.calibration",
    "clean": "experiments.label_review",
    "compare_runs": "runs.compare",
    "dataloaders": "vision.dataloaders",
    "dataset": "data.sources.datasets",
    "embeddings": "training.frozen",
    "export": "deploy.export",
    "find_weights": "vision.weights",
    "resume": "make",
    "import_learner": "deploy.import_fastai",
    "find_label_issues": "evaluation.label_errors",
    "learner": "vision.learner",
    "load": "inference.model",
    "load_network": "inference.model_folder",
    "load_recipe": "recipe.load",
    "make_baseline": "make",
    "run_learning_curve": "experiments.learning_curve",
    "compare_fixes": "experiments.before_after",
    "run_folds": "experiments.repeats",
    "run_ladder": "experiments.ladder",
    "run_seeds": "experiments.repeats",
    "evaluate": "evaluation.metrics",
    "apply_fixes": "data.label_fixes",
    "predict_out_of_fold": "experiments.label_review",
    "image_table": "data.table",
    "predict": "evaluation.predict",
    "push": "deploy.hub",
    "read_fixes": "data.label_fixes",
    "drop_unreadable": "data.audit.findings",
    "recipe_names": "recipe.load",
    "list_runs": "runs.compare",
    "paired_test": "evaluation.significance",
    "seed_everything": "vision.rng",
    "explain": "evaluation.explain",
    "serve": "deploy.server.app",
    "resolve": "vision.resolve",
    "split": "data.split",
    "submit": "deploy.kaggle.submission",
    "suspect_labels": "evaluation.label_errors",
    "fit_temperature": "evaluation.calibration",
    "train": "training.stages",
    "load_images": "data.prepare",
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
