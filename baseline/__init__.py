"""A strong baseline for an image-classification problem: an accuracy with its interval, and the model.

>>> import baseline
>>> result = baseline.make_baseline("images/")                                       # doctest: +SKIP

The names below are loaded on first use; importing the package loads neither torch nor fastai.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baseline.data.audit.findings import audit as audit
    from baseline.data.prepare import load_images as load_images
    from baseline.data.split import split as split
    from baseline.data.table import image_table as image_table
    from baseline.deploy.export import export as export
    from baseline.deploy.kaggle.submission import submit as submit
    from baseline.deploy.server.app import serve as serve
    from baseline.errors import BaselineError as BaselineError
    from baseline.evaluation.calibration import calibrate as calibrate
    from baseline.evaluation.metrics import evaluate as evaluate
    from baseline.evaluation.predict import predict as predict
    from baseline.evaluation.significance import paired_test as paired_test
    from baseline.experiments.compare import compare_runs as compare_runs
    from baseline.experiments.label_review import clean as clean
    from baseline.experiments.ladder import run_ladder as run_ladder
    from baseline.experiments.learning_curve import run_learning_curve as run_learning_curve
    from baseline.experiments.repeats import run_folds as run_folds
    from baseline.experiments.repeats import run_seeds as run_seeds
    from baseline.inference.batch import write_predictions as write_predictions
    from baseline.inference.model import Model as Model
    from baseline.inference.model import load as load
    from baseline.make import Baseline as Baseline
    from baseline.make import make_baseline as make_baseline
    from baseline.make import resume as resume
    from baseline.progress import ConsoleProgress as ConsoleProgress
    from baseline.progress import Progress as Progress
    from baseline.recipe.load import load_recipe as load_recipe
    from baseline.recipe.schema import Augment as Augment
    from baseline.recipe.schema import Recipe as Recipe
    from baseline.recipe.schema import RunOptions as RunOptions
    from baseline.recipe.schema import Stage as Stage
    from baseline.training.stages import train as train
    from baseline.vision.dataloaders import dataloaders as dataloaders
    from baseline.vision.learner import learner as learner
    from baseline.vision.resolve import resolve as resolve

__version__ = "0.1.0"

# beside a recent onnxscript, torchvision could not import torch 2.4, which checks the types of an older one
os.environ.setdefault("TORCH_ONNX_EXPERIMENTAL_RUNTIME_TYPE_CHECK", "DISABLED")

_HOMES = {
    "Augment": "recipe.schema",
    "Baseline": "make",
    "BaselineError": "errors",
    "ConsoleProgress": "progress",
    "Model": "inference.model",
    "Progress": "progress",
    "Recipe": "recipe.schema",
    "RunOptions": "recipe.schema",
    "Stage": "recipe.schema",
    "audit": "data.audit.findings",
    "calibrate": "evaluation.calibration",
    "clean": "experiments.label_review",
    "compare_runs": "experiments.compare",
    "dataloaders": "vision.dataloaders",
    "evaluate": "evaluation.metrics",
    "export": "deploy.export",
    "image_table": "data.table",
    "learner": "vision.learner",
    "load": "inference.model",
    "load_images": "data.prepare",
    "load_recipe": "recipe.load",
    "make_baseline": "make",
    "paired_test": "evaluation.significance",
    "predict": "evaluation.predict",
    "resolve": "vision.resolve",
    "resume": "make",
    "run_folds": "experiments.repeats",
    "run_ladder": "experiments.ladder",
    "run_learning_curve": "experiments.learning_curve",
    "run_seeds": "experiments.repeats",
    "serve": "deploy.server.app",
    "split": "data.split",
    "submit": "deploy.kaggle.submission",
    "train": "training.stages",
    "write_predictions": "inference.batch",
}

__all__ = sorted(_HOMES)


def _load(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'baseline' has no attribute '{name}'")
    from baseline.errors import system_errors
    from baseline.system import fast_imports

    with fast_imports():
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if not isinstance(value, type):
        value = system_errors()(value)
        value.__module__ = __name__  # where pickle looks for it
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if not TYPE_CHECKING:  # a type checker knows the names from the imports above, and refuses others
    __getattr__ = _load
