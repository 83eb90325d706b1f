"""Predictions are probabilities from a single softmax, TTA views are fixed, and metrics follow from the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

import baseline
from baseline import evaluate, predict
from baseline.evaluation.intervals import wilson_interval
from baseline.evaluation.predict import augmented_views


def test_plain_predictions_equal_fastais_get_preds(learn: Any, settled: tuple) -> None:
    table = predict(learn, settled[1], (), splits=("valid",))
    ours = table[[f"p_{name}" for name in learn.dls.vocab]].to_numpy()
    theirs, _ = learn.get_preds()
    assert np.allclose(ours, theirs.numpy(), atol=1e-5) and np.allclose(ours.sum(1), 1, atol=1e-12)


def test_tta_is_the_mean_over_fixed_views(learn: Any, settled: tuple) -> None:
    once = predict(learn, settled[1], ("flip", "five_crops"))
    assert once.equals(predict(learn, settled[1], ("flip", "five_crops")))
    plain = predict(learn, settled[1], ())
    assert np.allclose(once["plain_confidence"], plain["confidence"])
    with torch.no_grad():
        images = torch.cat([x for x, _ in learn.dls.valid]).as_subclass(torch.Tensor)
        flipped = (learn.model(images).softmax(1) + learn.model(images.flip(-1)).softmax(1)) / 2
    mean = predict(learn, settled[1], ("flip",), splits=("valid",))
    assert np.allclose(mean[["p_ants", "p_bees"]].to_numpy(), flipped.numpy(), atol=1e-5)


def test_views_keep_the_size_and_number_of_images() -> None:
    images = torch.rand(2, 3, 40, 40)
    views = list(augmented_views(images, ("flip", "five_crops")))
    assert len(views) == 7 and all(view.shape == images.shape for view in views)
    assert torch.equal(views[1].flip(-1), images)
    assert torch.allclose(views[2][..., 20, 20], images[..., 17:19, 17:19].mean((-1, -2)), atol=0.5)


def test_rows_follow_the_image_order_with_matching_losses(done: baseline.Baseline) -> None:
    table = done.predictions
    assert table["path"].is_unique and set(table["split"]) == {"valid", "test"}
    columns = ["p_ants", "p_bees"]
    test = table[table["split"] == "test"]
    assert done.metrics["test"]["tta"]["loss"] == pytest.approx(log_loss(test["label"], test[columns]))
    assert done.metrics["test"]["tta"]["accuracy"] == accuracy_score(test["label"], test["predicted"])
    assert (table["confidence"] == table[columns].max(axis=1)).all()
    for path, label in zip(table["path"], table["label"], strict=True):
        assert f"/{label}/" in path


def test_wilson_intervals_match_reference_values() -> None:
    assert wilson_interval(8100, 10000) == pytest.approx((0.80219, 0.81757), abs=1e-4)
    assert wilson_interval(20, 20)[1] == pytest.approx(1) and wilson_interval(20, 20)[0] == pytest.approx(
        0.8389, abs=1e-4
    )


def test_wilson_intervals_have_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    hits = rng.binomial(200, 0.9, 2000)
    by_hits = {hit: wilson_interval(int(hit), 200) for hit in set(hits)}
    coverage = np.mean([by_hits[hit][0] <= 0.9 <= by_hits[hit][1] for hit in hits])
    assert 0.93 <= coverage <= 0.97


def test_metrics_are_grouped_by_split() -> None:
    table = pd.DataFrame(
        {
            "split": ["valid"] * 2 + ["test"] * 4,
            "label": list("abaabb"),
            "predicted": list("abaabb"),
            "plain_predicted": list("bbaaba"),
            "loss": 0.0,
            "plain_loss": 1.0,
        }
    )
    numbers = evaluate(table)
    assert list(numbers) == ["valid", "test"]
    assert numbers["test"]["plain"] == {
        "accuracy": 0.75,
        "interval": wilson_interval(3, 4),
        "wrong": 1,
        "loss": 1.0,
    }
