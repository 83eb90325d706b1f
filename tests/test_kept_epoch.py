"""Which epoch a run keeps: the latest about as good as the best of its stage, if better than earlier stages."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from test_named_metrics import NAMES, SINGLE_ONLY, simulate

import baseline
from baseline import Stage, train
from baseline.metrics.predictions import Predictions
from baseline.metrics.registry import find_metric
from baseline.metrics.standard_error import standard_error
from baseline.training import callbacks
from baseline.training.callbacks import ProgressCallback
from baseline.training.state import BestWeights
from baseline.vision.rng import seed_everything

NAN = math.nan


def kept_epoch(epochs: list[tuple[Any, ...]]) -> int:
    """Offer epochs of (stage, metric, loss, tolerance[, images]); return the index of the one that is kept."""
    network = torch.nn.Linear(1, 1)
    best: Any = BestWeights(SimpleNamespace(model=network))  # type: ignore[arg-type]
    kept = -1
    for number, (stage, metric, loss, tolerance, *images) in enumerate(epochs):
        with torch.no_grad():
            network.weight.fill_(number)
        if best.offer(metric, loss, images[0] if images else 100, stage, tolerance):
            kept = number
    best.restore()
    assert network.weight.item() == kept
    return kept


@pytest.mark.parametrize(
    ("epochs", "kept"),
    [
        ([(1, 0.80, 1.0, NAN), (1, 0.79, 0.5, NAN), (1, 0.80, 0.9, NAN), (1, 0.80, 0.9, NAN)], 2),
        ([(1, 0.80, 1.0, 0.02), (1, 0.79, 2.0, 0.02), (1, 0.77, 0.1, 0.02)], 1),
        ([(1, 0.80, 1.0, 0.02), (1, 0.79, 2.0, 0.02), (1, 0.78, 2.0, 0.02)], 2),
        ([(1, 0.80, 1.0, 0.02), (1, 0.81, 1.0, 0.01), (1, 0.795, 0.1, 0.5)], 1),
        ([(1, 1.00, 0.1, 0.00), (1, 1.00, 0.2, 0.00)], 1),
        ([(1, 0.80, 1.0, NAN), (2, 0.82, 1.0, 0.05), (2, 0.79, 0.5, 0.05)], 1),
        ([(1, 0.80, 1.0, NAN), (2, 0.82, 1.0, 0.05), (2, 0.79, 0.5, 0.05), (2, 0.81, 1.0, 0.05)], 3),
        ([(1, 0.80, 1.0, NAN), (2, 0.80, 1.5, 0.05), (2, 0.80, 1.2, 0.05)], 0),
        ([(1, 0.85, 1.0, 0.05), (1, 0.81, 1.0, 0.05), (2, 0.83, 1.0, 0.05)], 2),
        ([(1, 0.80, 1.0, 0.05), (1, 0.90, 0.1, 0.05, 50)], 0),
        ([(1, -math.inf, 1.0, NAN), (1, -math.inf, 2.0, NAN), (1, -math.inf, 0.5, NAN)], 2),
        ([(1, -0.50, 1.0, 0.02), (1, -0.51, 1.0, 0.02), (1, -0.53, 1.0, 0.02)], 1),
    ],
    ids=[
        "without tolerance the best, by loss where equal", "the latest within the tolerance", "exactly the tolerance",
        "the tolerance is that of the best", "equal metrics", "not below an earlier stage", "later in the stage",
        "not worse in loss than an earlier stage", "compared with what earlier stages keep", "fewer images",
        "an undefined metric", "lower is better",
    ],
)  # fmt: skip
def test_which_epoch_is_kept(epochs: list[tuple[Any, ...]], kept: int) -> None:
    assert kept_epoch(epochs) == kept


# ---- the standard error ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_standard_error_is_the_deviation_over_samples(name: str, multilabel: bool) -> None:
    if name in SINGLE_ONLY and multilabel:
        return
    metric = find_metric(name, multilabel=multilabel)
    measured = [metric.measure(simulate(seed, 300, multilabel=multilabel)) for seed in range(200)]
    deviation = np.std([one.value for one in measured])
    errors = [standard_error(one) for one in measured[:40]]
    assert np.mean(errors) == pytest.approx(deviation, rel=0.2)
    assert np.std(errors) < 0.3 * deviation


def test_the_standard_error_of_a_share_is_the_usual_one() -> None:
    truth = np.array([0, 0, 1, 1, 1])
    predicted = np.array([0, 1, 1, 1, 0])
    measured = find_metric("accuracy").measure(Predictions(truth, predicted, np.empty((0, 2))))
    share = accuracy_score(truth, predicted)
    assert standard_error(measured) == pytest.approx(math.sqrt(share * (1 - share) / 4))


def test_the_standard_error_is_undefined_where_the_metric_is() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6]])
    one_class = Predictions(np.zeros(2, int), probabilities.argmax(1), probabilities)
    assert math.isnan(standard_error(find_metric("roc_auc").measure(one_class)))
    one_image = Predictions(np.zeros(1, int), np.zeros(1, int), probabilities[:1])
    assert math.isnan(standard_error(find_metric("accuracy").measure(one_image)))


def test_many_classes_need_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    metric, case = find_metric("macro_f1"), simulate(0, 500, classes=30)
    expected = standard_error(metric.measure(case))
    monkeypatch.setattr("baseline.metrics.standard_error.MAX_CELLS", 1000)
    assert standard_error(metric.measure(case)) == pytest.approx(expected, rel=1e-9)


# ---- runs ------------------------------------------------------------------------------------------------------------


def train_epochs(settled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage, **changes: Any) -> Any:
    """Train a stage; return its epochs, the tolerances that were used, and the Learner."""
    tolerances: list[float] = []
    tolerance = ProgressCallback._tolerance

    def recorded(callback: ProgressCallback) -> float:
        tolerances.append(tolerance(callback))
        return tolerances[-1]

    monkeypatch.setattr(callbacks.ProgressCallback, "_tolerance", recorded)
    recipe = settled[0].changed(stages=(stage,), **changes)
    with seed_everything(0):
        learn = baseline.learner(baseline.dataloaders(settled[1], recipe, path=tmp_path), recipe, path=tmp_path)
        return train(learn, recipe).epochs, tolerances, learn


@pytest.mark.parametrize("metric", ["auto", "log_loss", "macro_f1", "roc_auc"])
def test_a_run_keeps_the_latest_epoch_within_one_standard_error(
    settled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    epochs, tolerances, learn = train_epochs(
        settled, tmp_path, monkeypatch, Stage("head", 8, 3e-3, augment=False), metric=metric
    )
    name = find_metric(metric).name
    scores = [find_metric(metric).score(value) for value in epochs[f"valid_{name}"]]
    order = [(score, -loss) for score, loss in zip(scores, epochs["valid_loss"], strict=True)]
    best = order.index(max(order))
    enough = scores[best] - tolerances[best]
    expected = best if math.isnan(enough) else max(at for at, score in enumerate(scores) if score >= enough)
    assert epochs.index[epochs["best"]][-1] == expected
    if name == "accuracy":
        images, share = int((settled[1]["split"] == "valid").sum()), scores[best]
        assert tolerances[best] == pytest.approx(math.sqrt(share * (1 - share) / (images - 1)))
    predicted = baseline.predict(learn, settled[1], (), splits=("valid",))
    assert float(predicted["loss"].mean()) == pytest.approx(epochs["valid_loss"][expected], abs=1e-4)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (Stage("head", 6, 0.1, schedule="constant"), {}),
        (Stage("head", 6, 0.1, schedule="plateau"), {}),
        (Stage("head", 6, 0.1), {"patience": 6}),
    ],
    ids=["constant", "plateau", "patience"],
)
def test_the_best_epoch_is_kept_where_the_last_is_not_trained_better(
    settled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage, changes: dict[str, Any]
) -> None:
    epochs, tolerances, _ = train_epochs(settled, tmp_path, monkeypatch, stage, metric="log_loss", **changes)
    assert all(map(math.isnan, tolerances))
    assert epochs.index[epochs["best"]][-1] == epochs["valid_log_loss"].argmin()
