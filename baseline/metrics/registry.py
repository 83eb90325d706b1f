"""All metrics by name: which way is better, what they need, and the module that computes them.

Every other part of the package asks this table. A metric is computed from `Predictions` by the function of its name in
its module. Nothing heavy is imported before that. A module that was removed takes its metrics with it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from baseline.errors import RecipeError, quoted_list

if TYPE_CHECKING:
    from baseline.metrics.predictions import Predictions, Ranks, Sums

__all__ = ["METRICS", "Metric", "check_metric", "find_metric", "is_metric", "known_metrics"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    >>> metric = find_metric("map_at_5")
    >>> metric.title, metric.k, metric.text(0.5), metric.score(0.5)
    ('MAP@5', 5, '0.5000', 0.5)
    """

    name: str
    module: str
    title: str
    higher_is_better: bool = True
    percent: bool = False
    """Whether values are shown in percent."""
    probabilities: bool = False
    """Whether it needs probabilities, or only the predicted labels."""
    single: bool = False
    """Whether it needs one label per image."""
    ordered: bool = False
    """Whether it needs classes in an order."""
    k: int = 0
    """K of a metric of the K most probable classes."""

    def has_cut_points(self, classes: int) -> bool:
        """Whether it can gain from predicting another class than the most probable; see `evaluation.cut_points`."""
        return self.ordered or (classes == 2 and self.name in ("balanced_accuracy", "macro_f1", "micro_f1"))

    def measure(self, predictions: Predictions) -> Sums | Ranks:
        """Return the metric with what its interval is computed from."""
        module = import_module(f"baseline.metrics.{self.module}")
        function: Any = getattr(module, self.module.rpartition(".")[2] if self.k else self.name)
        measured: Sums | Ranks = function(predictions, self.k) if self.k else function(predictions)
        return measured

    def value(self, predictions: Predictions) -> float:
        """Return the metric; NaN where it is undefined."""
        return self.measure(predictions).value

    def score(self, value: float | None) -> float:
        """Return a value so that higher is better; an undefined one is the worst."""
        if value is None or math.isnan(value):
            return -math.inf
        return value if self.higher_is_better else -value

    def text(self, value: float | None, digits: int = 2) -> str:
        """Return a value as text; percentages have that many decimals, and other values two more."""
        if value is None or math.isnan(value):
            return "undefined"
        return f"{value:.{digits}%}" if self.percent else f"{value:.{digits + 2}f}"


def is_installed(module: str) -> bool:
    """Whether a module of this package was not removed."""
    parent = module.rpartition(".")[0]
    return (not parent or is_installed(parent)) and find_spec(f"baseline.metrics.{module}") is not None


METRICS = tuple(
    metric
    for metric in (
        Metric("accuracy", "counts", "accuracy", percent=True),
        Metric("balanced_accuracy", "counts", "balanced accuracy", percent=True),
        Metric("macro_f1", "counts", "macro F1", percent=True),
        Metric("micro_f1", "counts", "micro F1", percent=True),
        Metric("log_loss", "probability.losses", "log loss", higher_is_better=False, probabilities=True),
        Metric("brier", "probability.losses", "Brier score", higher_is_better=False, probabilities=True),
        Metric("roc_auc", "probability.ranking", "ROC AUC", probabilities=True),
        Metric("average_precision", "probability.ranking", "average precision", probabilities=True),
        Metric("top_k", "probability.top_k", "top-K accuracy", percent=True, probabilities=True, single=True),
        Metric("map_at_k", "probability.map_at_k", "MAP@K", probabilities=True),
        Metric("quadratic_kappa", "quadratic_kappa", "quadratic kappa", single=True, ordered=True),
    )
    if is_installed(metric.module)
)
"""The known metrics. `top_k` and `map_at_k` stand for `top_5`, `map_at_3` and so on."""


def known_metrics() -> list[str]:
    """Return the names of all metrics, as users write them: `top_K` stands for `top_5` and so on."""
    return [re.sub("_k$", "_K", metric.name) for metric in METRICS]


def find_metric(name: str, *, multilabel: bool = False) -> Metric:
    """Return the metric of a name; `"auto"` is accuracy, and with several labels per image micro F1.

    Raises:
        KeyError: if there is none.

    >>> find_metric("auto").name, find_metric("auto", multilabel=True).name, find_metric("top_3").title
    ('accuracy', 'micro_f1', 'top-3 accuracy')
    """
    if name == "auto":
        name = "micro_f1" if multilabel else "accuracy"
    numbered = re.fullmatch(r"(.+_)([1-9]\d{0,4})", name)
    for metric in METRICS:
        if numbered and metric.name == f"{numbered[1]}k":
            title = metric.title.replace("K", numbered[2])
            return dataclasses.replace(metric, name=name, k=int(numbered[2]), title=title)
        if metric.name == name and not name.endswith("_k"):
            return metric
    raise KeyError(name)


def is_metric(name: str) -> bool:
    """Whether it is the name of a metric, or `"auto"`.

    >>> is_metric("roc_auc"), is_metric("map_at_5"), is_metric("map_at_k"), is_metric("f2")
    (True, True, False, False)
    """
    try:
        return bool(find_metric(name))
    except KeyError:
        return False


def check_metric(name: str, classes: Sequence[str], *, multilabel: bool) -> str:
    """Return what has to be said about a metric of these classes, in the network's order: often nothing.

    Raises:
        RecipeError: if the metric does not fit them.

    >>> check_metric("quadratic_kappa", ["0", "1", "2"], multilabel=False)
    'quadratic_kappa takes the classes in the order 0 < 1 < 2'
    """
    metric = find_metric(name, multilabel=multilabel)
    if metric.single and multilabel:
        raise RecipeError(
            f"metric is '{name}', which needs one label per image, and these images have several. "
            "Choose another, such as micro_f1 or average_precision."
        )
    if metric.k >= max(len(classes), 2):
        raise RecipeError(
            f"metric is '{name}', which needs more than {metric.k} classes, and there are {len(classes)}. "
            "Choose a smaller number, or another metric."
        )
    if not metric.ordered:
        return ""
    numbers = [float(at[0]) if (at := re.search(r"(?:^-)?\d+(?:\.\d+)?", name)) else math.nan for name in classes]
    if not all(low < high for low, high in itertools.pairwise(numbers)) or len(classes) < 2:
        raise RecipeError(
            f"metric is '{name}', which needs classes in an order, with names such as 0, 1, 2 or grade_02, grade_10; "
            f"the classes are {quoted_list(classes, 8)}. Number them in their order, or choose another metric."
        )
    return f"{name} takes the classes in the order {' < '.join(classes)}"
