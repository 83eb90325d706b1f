"""Predictions are probabilities, softmax is taken once, views are fixed, and metrics are arithmetic on the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

import baseline
from baseline import measure, predictions
from baseline.evaluation.intervals import wilson
from baseline.evaluation.predict import views_of


def test_plain_predictions_are_fastais_own(learn: Any, settled: tuple) -> None:
    table = predictions(learn, settled[1], (), splits=("valid",))
    ours = table[[f"p_{name}" for name in learn.dls.vocab]].to_numpy()
    theirs, _ = learn.get_preds()
    assert np.allclose(ours, theirs.numpy(), atol=1e-5) and np.allclose(ours.sum(1), 1, atol=1e-12)


def test_tta_is_the_mean_over_fixed_views(learn: Any, settled: tuple) -> None:
    once = predictions(learn, settled[1], ("flip", "five_crops"))
    assert once.equals(predictions(learn, settled[1], ("flip", "five_crops")))
    plain = predictions(learn, settled[1], ())
    assert np.allclose(once["plain_confidence"], plain["confidence"])
    with torch.no_grad():
        photos = torch.cat([x for x, _ in learn.dls.valid]).as_subclass(torch.Tensor)
        flipped = (learn.model(photos).softmax(1) + learn.model(photos.flip(-1)).softmax(1)) / 2
    mean = predictions(learn, settled[1], ("flip",), splits=("valid",))
    assert np.allclose(mean[["p_ants", "p_bees"]].to_numpy(), flipped.numpy(), atol=1e-5)


def test_views_keep_size_and_number() -> None:
    photos = torch.rand(2, 3, 40, 40)
    views = list(views_of(photos, ("flip", "five_crops")))
    assert len(views) == 7 and all(view.shape == photos.shape for view in views)
    assert torch.equal(views[1].flip(-1), photos)
    assert torch.allclose(views[2][..., 20, 20], photos[..., 17:19, 17:19].mean((-1, -2)), atol=0.5)


def test_rows_are_the_photos_in_order_with_their_losses(done: baseline.Baseline) -> None:
    table = done.predictions
    assert table["path"].is_unique and set(table["split"]) == {"valid", "test"}
    columns = ["p_ants", "p_bees"]
    test = table[table["split"] == "test"]
    assert done.metrics["test"]["tta"]["loss"] == pytest.approx(log_loss(test["label"], test[columns]))
    assert done.metrics["test"]["tta"]["accuracy"] == accuracy_score(test["label"], test["predicted"])
    assert (table["confidence"] == table[columns].max(axis=1)).all()
    for path, label in zip(table["path"], table["label"], strict=True):
        assert f"/{label}/" in path


def test_intervals_are_wilsons() -> None:
    assert wilson(8100, 10000) == pytest.approx((0.80219, 0.81757), abs=1e-4)
    assert wilson(20, 20)[1] == pytest.approx(1) and wilson(20, 20)[0] == pytest.approx(0.8389, abs=1e-4)


def test_wilsons_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = rng.binomial(200, 0.9, 2000)
    by_hits = {hit: wilson(int(hit), 200) for hit in set(hits)}
    held = np.mean([by_hits[hit][0] <= 0.9 <= by_hits[hit][1] for hit in hits])
    assert 0.93 <= held <= 0.97


def test_numbers_are_by_split() -> None:
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
    numbers = measure(table)
    assert list(numbers) == ["valid", "test"]
    assert numbers["test"]["plain"] == {
        "accuracy": 0.75,
        "interval": wilson(3, 4),
        "wrong": 1,
        "loss": 1.0,
    }
