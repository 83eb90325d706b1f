"""Which epoch a run keeps: the last of a stage if it is about as good as the best and better than earlier stages."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelTrainException
from fastai.callback.training import ShortEpochCallback
from sklearn.metrics import accuracy_score
from test_named_metrics import NAMES, SINGLE_ONLY, simulate

import baseline
from baseline import Stage, train
from baseline.metrics.predictions import Predictions
from baseline.metrics.registry import find_metric
from baseline.metrics.standard_error import standard_error
from baseline.training.callbacks import ProgressCallback
from baseline.training.selection import SelectionMetric
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
        ([(1, 0.80, 1.0, NAN), (1, 0.79, 2.0, 0.02)], 1),
        ([(1, 0.80, 1.0, NAN), (1, 0.78, 2.0, 0.01)], 0),
        ([(1, 0.75, 1.0, NAN), (1, 0.50, 2.0, 0.25)], 1),
        ([(1, 1.00, 0.1, NAN), (1, 1.00, 0.2, 0)], 1),
        ([(1, 0.80, 1.0, NAN), (1, 0.799, 0.5, 0)], 0),
        ([(1, 0.80, 1.0, NAN), (2, 0.82, 1.0, NAN), (2, 0.79, 0.5, 0.05)], 1),
        ([(1, 0.80, 1.0, NAN), (2, 0.82, 1.0, NAN), (2, 0.79, 0.5, NAN), (2, 0.81, 1.0, 0.05)], 3),
        ([(1, 0.80, 1.0, NAN), (2, 0.80, 1.5, NAN), (2, 0.80, 1.2, 0.05)], 0),
        ([(1, 0.85, 1.0, NAN), (1, 0.81, 1.0, 0.05), (2, 0.83, 1.0, 0.05)], 2),
        ([(1, 0.80, 1.0, NAN), (1, 0.90, 0.1, 0.05, 50)], 0),
        ([(1, -math.inf, 1.0, NAN), (1, -math.inf, 2.0, NAN), (1, -math.inf, 0.5, NAN)], 2),
        ([(1, 0.80, 1.0, NAN), (1, -math.inf, 0.5, NAN)], 0),
        ([(1, -0.50, 1.0, NAN), (1, -0.51, 1.0, 0.02)], 1),
        ([(1, -0.50, 1.0, NAN), (1, -0.53, 1.0, 0.02)], 0),
    ],
    ids=[
        "without tolerance the best, by loss where equal", "within the tolerance", "beyond the tolerance",
        "exactly the tolerance", "equal metrics", "an error of zero",
        "not below an earlier stage", "better than an earlier stage",
        "not worse in loss than an earlier stage", "compared with what earlier stages keep", "fewer images",
        "an undefined metric", "undefined in the last epoch", "lower is better", "lower is better, beyond",
    ],
)  # fmt: skip
def test_which_epoch_is_kept(epochs: list[tuple[Any, ...]], kept: int) -> None:
    assert kept_epoch(epochs) == kept


@pytest.mark.parametrize("name", ["accuracy", "micro_f1", "balanced_accuracy"])
def test_one_wrong_image_is_one_standard_error_for_any_number_of_images(name: str) -> None:
    for images in range(3, 200):
        truth = np.zeros(images, int)
        values = []
        for wrong in (0, 1):
            predicted = truth.copy()
            predicted[images // 3] = wrong
            measured = find_metric(name).measure(Predictions(truth, predicted, np.empty((0, 2))))
            values.append((1, measured.value, 0.1 + wrong, standard_error(measured) if wrong else NAN))
        assert kept_epoch(values) == 1, images


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


def test_the_standard_error_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    metric, case = find_metric("macro_f1"), simulate(0, 500, classes=30)
    expected = standard_error(metric.measure(case))
    monkeypatch.setattr("baseline.metrics.standard_error.MAX_CELLS", 1000)
    assert standard_error(metric.measure(case)) == pytest.approx(expected, rel=1e-9)


# ---- runs ------------------------------------------------------------------------------------------------------------


def train_stage(
    settled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage, error: float = NAN, cbs: Any = (),
    **changes: Any,
) -> tuple[Any, list[float], Any]:  # fmt: skip
    """Train a stage; return its epochs, the tolerances that were used, and the Learner.

    With `error`, that is the standard error of the metric.
    """
    tolerances: list[float] = []
    tolerance = ProgressCallback._tolerance

    def recorded(callback: ProgressCallback) -> float:
        tolerances.append(tolerance(callback))
        return tolerances[-1]

    monkeypatch.setattr(ProgressCallback, "_tolerance", recorded)
    if not math.isnan(error):
        monkeypatch.setattr(SelectionMetric, "standard_error", lambda _: error)
    recipe = settled[0].changed(stages=(stage,), **changes)
    with seed_everything(0):
        learn = baseline.learner(baseline.dataloaders(settled[1], recipe, path=tmp_path), recipe, path=tmp_path)
        learn.add_cbs(cbs)
        return train(learn, recipe).epochs, tolerances, learn


@pytest.mark.parametrize("schedule", ["one_cycle", "flat_cos"])
@pytest.mark.parametrize("metric", ["auto", "log_loss", "macro_f1", "roc_auc"])
def test_the_last_epoch_is_kept_if_it_is_about_as_good_as_the_best(
    settled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, schedule: str
) -> None:
    stage = Stage("head", 6, 3e-3, augment=False, schedule=schedule)
    epochs, tolerances, learn = train_stage(settled, tmp_path, monkeypatch, stage, metric=metric)
    known = find_metric(metric)
    scores = [known.score(value) for value in epochs[f"valid_{known.name}"]]
    ranks = [(score, -loss) for score, loss in zip(scores, epochs["valid_loss"], strict=True)]
    assert all(map(math.isnan, tolerances[:-1])) and tolerances[-1] >= 0
    best = ranks.index(max(ranks))
    expected = 5 if scores[5] + tolerances[-1] >= scores[best] - 1e-9 else best
    assert epochs.index[epochs["best"]][-1] == expected
    if known.name == "accuracy":
        images = int((settled[1]["split"] == "valid").sum())
        assert tolerances[-1] == pytest.approx(math.sqrt(scores[5] * (1 - scores[5]) / (images - 1)))
    predicted = baseline.predict(learn, settled[1], (), splits=("valid",))
    assert float(predicted["loss"].mean()) == pytest.approx(epochs["valid_loss"][expected], abs=1e-4)


@pytest.mark.parametrize("error", [0.0, 1e6])
@pytest.mark.parametrize(
    ("schedule", "changes", "always_best"),
    [("one_cycle", {}, False), ("one_cycle", {"patience": 6}, False), ("one_cycle", {"patience": 1}, True),
     ("one_cycle", {"ema": 0.9}, False), ("constant", {}, True), ("plateau", {}, True)],
)  # fmt: skip
def test_the_last_epoch_is_kept_only_where_the_rate_has_fallen_to_zero(
    settled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, changes: dict[str, Any],
    always_best: bool, error: float,
) -> None:  # fmt: skip
    stage = Stage("head", 6, 0.3 if schedule == "one_cycle" else 0.01, schedule=schedule)  # high, but not diverging
    epochs, tolerances, _ = train_stage(settled, tmp_path, monkeypatch, stage, error, metric="log_loss", **changes)
    assert all(map(math.isnan, tolerances[:-1])) and math.isnan(tolerances[-1]) == always_best
    assert (len(epochs) == 6) == (changes != {"patience": 1})
    expected = len(epochs) - 1 if error and not always_best else epochs["valid_log_loss"].argmin()
    assert epochs.index[epochs["best"]][-1] == expected


class EndLastEpoch(Callback):
    """Ends the training of the last epoch in its middle."""

    def after_batch(self) -> None:
        if self.training and self.epoch == self.n_epoch - 1 and self.iter:
            raise CancelTrainException()


@pytest.mark.parametrize("callback", [EndLastEpoch(), ShortEpochCallback(pct=0.4, short_valid=False)])
def test_where_a_callback_leaves_out_steps_the_best_is_kept(
    settled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callback: Callback
) -> None:
    epochs, tolerances, _ = train_stage(
        settled, tmp_path, monkeypatch, Stage("head", 4, 0.05), 1e6, [callback], metric="log_loss", batch_size=4
    )
    assert len(epochs) == 4 and epochs["lr"].iloc[-1] > 1e-4
    assert all(map(math.isnan, tolerances))
    assert epochs.index[epochs["best"]][-1] == epochs["valid_log_loss"].argmin()


def test_without_time_for_the_last_epoch_the_best_is_kept(
    settled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_batch = ProgressCallback.before_batch

    def late(callback: ProgressCallback) -> None:
        callback.deadline = -math.inf if callback.epoch == 3 and callback.iter else math.inf
        before_batch(callback)

    monkeypatch.setattr(ProgressCallback, "before_batch", late)
    stage = Stage("head", 4, 0.3)
    epochs, tolerances, _ = train_stage(settled, tmp_path, monkeypatch, stage, 1e6, metric="log_loss", batch_size=4)
    assert len(epochs) == 4 and math.isnan(tolerances[-1])
    assert epochs.index[epochs["best"]][-1] == epochs["valid_log_loss"].argmin()
