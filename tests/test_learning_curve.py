"""The learning curve: nested samples, an extrapolation with correct intervals, and runs that are kept on resume."""

from __future__ import annotations

import io
import itertools
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import leave_out_pages

import baseline
from baseline import Progress, run_learning_curve
from baseline.cli.printing import curve_table
from baseline.errors import DataError, OutputError, RecipeError
from baseline.experiments.curve_errors import MetricErrors
from baseline.experiments.learning_curve import (
    LearningCurve,
    describe_redundancy,
    fit_variant,
    sample_groups,
    sample_within_groups,
)
from baseline.experiments.power_law import fit_power_law
from baseline.metrics.predictions import Predictions
from baseline.metrics.registry import find_metric

pytestmark = pytest.mark.usefixtures("no_page")

QUIET = Progress()


@pytest.fixture(scope="module")
def curve(images: Path, deterministic: baseline.Recipe, tmp_path_factory: pytest.TempPathFactory) -> LearningCurve:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASELINE_HOME", str(tmp_path_factory.mktemp("home")))
        leave_out_pages(patch)
        out = tmp_path_factory.mktemp("runs") / "curve"
        logistic = run_learning_curve(
            images, deterministic, sizes=[2, 4, 8], seeds=2, variants=["logistic"], out=out, progress=QUIET
        )
        again = run_learning_curve(
            images, deterministic, sizes=[2, 4, 8], seeds=1, variants=["groups"], out=out, progress=QUIET, resume=True
        )
        result = run_learning_curve(
            images,
            deterministic,
            sizes=[2, 4, 8],
            seeds=1,
            variants=["logistic", "groups"],
            out=out,
            progress=QUIET,
            resume=True,
        )
    assert (
        again.table["accuracy"].tolist() == result.table.loc[result.table["variant"] == "groups", "accuracy"].tolist()
    )
    assert logistic.table["images"].tolist() == [4, 4, 8, 8, 16, 16, logistic.table["images"].max()]
    return result


def test_samples_are_nested_and_evaluated_on_the_same_images(curve: LearningCurve) -> None:
    runs = curve.table.loc[curve.table["variant"] == "groups", "run"]
    splits = [pd.read_csv(Path(run) / "split.csv").groupby("split")["path"].apply(set) for run in runs]
    for smaller, larger in itertools.pairwise(splits):
        assert smaller["train"] < larger["train"] and smaller["valid"] <= larger["valid"]
        assert smaller["test"] == larger["test"]
    full = pd.read_csv(curve.folder / "split.csv").groupby("split")["path"].apply(set)
    assert splits[-1]["train"] == full["train"] and splits[-1]["valid"] == full["valid"]
    for run, row in zip(runs, curve.table[curve.table["variant"] == "groups"].itertuples(), strict=True):
        predictions = baseline.runs.folder.read_predictions(Path(run))
        test = predictions[predictions["split"] == "test"]
        assert row.accuracy == pytest.approx((test["plain_predicted"] == test["label"]).mean())


def test_its_files_and_its_page_agree(curve: LearningCurve) -> None:
    pd.testing.assert_frame_equal(
        pd.read_csv(curve.folder / "curve.csv").fillna({"run": ""}), curve.table, check_dtype=False
    )
    contents = json.loads((curve.folder / "curve.json").read_text())
    assert contents["sentences"] == curve.sentences and set(contents["fits"]) == {"logistic", "groups"}
    page = (curve.folder / "curve.html").read_text()
    assert all(sentence.split(":")[1][:40] in page for sentence in curve.sentences)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert (curve.folder / "curve.png").stat().st_size > 5000
    assert "95% confidence interval of the forecast" in page and "lowest to highest" not in page
    for fit in curve.fits.values():
        images, low, high = np.array(fit["forecast"]).T
        assert (images[0], images[-1]) == pytest.approx((fit["doubled"]["images"] / 2, fit["doubled"]["images"]))
        assert (low >= 0).all() and (high <= 1).all() and (low <= high).all()
        assert low[-1] - 0.01 <= fit["doubled"]["accuracy"] <= high[-1] + 0.01


def test_intervals_cover_the_results_of_more_images() -> None:
    """On curves of a known law with noise of trainings and of test images, 19 of 20 should; at least 17 have to."""
    covered = {"measured": 0, "gain": 0}
    for trial in range(20):
        rng = np.random.default_rng(trial)
        numbers = np.array([50, 100, 200, 400, 800])
        hard = rng.random(800)  # how hard each test image is, for all trainings

        def right(images: int, rng: np.random.Generator = rng, hard: np.ndarray = hard) -> np.ndarray:
            error = 0.04 + 1.5 * images**-0.45 + rng.normal(0, 0.008)
            return np.where(rng.random(len(hard)) < 0.8, hard, rng.random(len(hard))) > error

        images = np.repeat(numbers, 3)
        hits = np.array([right(int(number)) for number in images])
        low, high = fit_power_law(images, hits, same_test=True).prediction_interval(1600)
        covered["measured"] += low <= 1 - right(1600).mean() <= high
        truth = 1.5 * (800**-0.45 - 1600**-0.45)
        low, high = fit_power_law(images, hits).gain(800, 1600)
        covered["gain"] += low <= truth <= high
        assert high - low < 0.08
    assert min(covered.values()) >= 17, covered


def test_sampling_within_groups_and_of_whole_groups() -> None:
    train = pd.DataFrame(
        {"path": [f"{n}" for n in range(40)], "group": np.repeat(range(10), 4), "label": ["a", "b"] * 20}
    )
    train["label"] = np.where(train["group"] < 5, "a", "b")
    chance = np.random.default_rng(0).random(40)
    counts = train.loc[sample_within_groups(train, chance, 1 / 4), "group"].value_counts()
    assert len(counts) == 10 and (counts == 1).all()
    rows = train.loc[sample_groups(train, 0, 1 / 5)]
    assert rows["group"].value_counts().tolist() == [4, 4] and set(rows["label"]) == {"a", "b"}
    redundancy = {"groups": 10, "images": 40, "all": 0.9, "shares": [{"share": 0.5, "of_each": 0.89, "of_them": 0.8}]}
    assert "costs 1.0 points; training on half of the groups costs 10.0 points" in describe_redundancy(redundancy)[0]
    assert len(describe_redundancy(redundancy)) == 2
    assert len(describe_redundancy(redundancy | {"shares": [{"share": 0.5, "of_each": 0.8, "of_them": 0.8}]})) == 1


def test_an_image_without_a_group_forms_its_own(
    images: Path, small: baseline.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: dict[Any, list[pd.Series]] = {sample_within_groups: [], sample_groups: []}

    def record(function: Any, train: pd.DataFrame, chance: Any, share: float) -> pd.Index:
        rows = function(train, chance, share)
        sampled[function].append(train.loc[rows, "path"])
        return rows

    monkeypatch.setattr("baseline.experiments.learning_curve.MIN_GROUPS", 4)
    monkeypatch.setattr(
        "baseline.experiments.learning_curve.sample_within_groups", partial(record, sample_within_groups)
    )
    monkeypatch.setattr("baseline.experiments.learning_curve.sample_groups", partial(record, sample_groups))
    table = baseline.image_table(images)[["path", "label"]]
    numbers = table["path"].str.extract(r"(\d+)\.jpg")[0].astype(int)
    table["group"] = (table["label"] + "-" + (numbers // 6).astype(str)).where(numbers < 18)
    result = run_learning_curve(
        table,
        small,
        sizes=[2, 4, 8],
        seeds=1,
        variants=["logistic"],
        split="random",
        out=tmp_path / "c",
        progress=QUIET,
    )
    train = pd.read_csv(result.folder / "split.csv").query("split == 'train'")
    alone = train.loc[train["group"].isna(), "path"]
    assert len(alone) > 4 and result.redundancy["groups"] == train["group"].nunique() + len(alone)
    assert all(set(alone) <= set(paths) for paths in sampled[sample_within_groups])
    assert all(0 < paths.isin(alone).sum() < len(alone) for paths in sampled[sample_groups][:5]), "half of them"


def test_impossible_curves_are_rejected(
    images: Path, small: baseline.Recipe, curve: LearningCurve, tmp_path: Path
) -> None:
    out = tmp_path / "no"
    with pytest.raises(RecipeError, match="--sizes is 5, 10; a curve needs at least 3 different"):
        run_learning_curve(images, small, sizes=[5, 10], out=out, progress=QUIET)
    with pytest.raises(RecipeError, match="--sizes"):
        run_learning_curve(images, small, sizes=[0, 5, 10], out=out, progress=QUIET)
    with pytest.raises(RecipeError, match="variant 'tta'"):
        run_learning_curve(images, small, variants=["tta"], out=out, progress=QUIET)
    with pytest.raises(RecipeError, match="--seeds"):
        run_learning_curve(images, small, seeds=0, out=out, progress=QUIET)
    with pytest.raises(DataError, match="a curve needs at least 3"):
        run_learning_curve(images, small, sizes=[1, 500, 600], out=out, progress=QUIET)
    with pytest.raises(OutputError, match="--resume"):
        run_learning_curve(images, small, out=curve.folder, progress=QUIET)


def noisy_grades(images: int, rng: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    """Probabilities of three classes from a training on so many images: the more, the more certain and right."""
    error = 0.05 + 1.2 * images**-0.4 + rng.normal(0, 0.005)
    scores = np.eye(3)[truth] * (1 - error) * 3 + rng.normal(0, 1, (len(truth), 3)) * (0.5 + error)
    exponents = np.exp(scores)
    return exponents / exponents.sum(1, keepdims=True)


def test_errors_by_a_metric_are_those_of_the_metric_with_repeated_images() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60)
    drawn = rng.integers(0, 60, 60)
    weights = np.bincount(drawn, minlength=60).astype(float)
    for name in ("macro_f1", "quadratic_kappa", "log_loss", "brier", "roc_auc", "average_precision", "top_2"):
        metric = find_metric(name)
        cases = [noisy_grades(images, rng, truth) for images in (20, 200)]
        errors = MetricErrors([metric.measure(Predictions(truth, p.argmax(1), p)) for p in cases], metric)
        exact = [metric.value(Predictions(truth[drawn], p[drawn].argmax(1), p[drawn])) for p in cases]
        sign = 1 if metric.higher_is_better else 0
        expected = np.array([1 - value if sign else value for value in exact])
        tolerance = 0.05 if name in ("roc_auc", "average_precision") else 1e-12  # linear in the weights
        assert errors.weighted(weights) == pytest.approx(expected, abs=tolerance)
        assert errors.weighted(np.ones(60)) == pytest.approx(
            [1 - v if sign else v for v in errors.values.tolist()], abs=1e-12
        )


def test_the_accuracy_as_a_metric_has_the_law_of_the_accuracy() -> None:
    rng = np.random.default_rng(1)
    truth, images = rng.integers(0, 3, 300), np.repeat([20, 40, 80, 160], 2)
    probabilities = [noisy_grades(int(number), rng, truth) for number in images]
    metric = find_metric("accuracy")
    errors = MetricErrors([metric.measure(Predictions(truth, p.argmax(1), p)) for p in probabilities], metric)
    one = fit_power_law(images, np.array([p.argmax(1) == truth for p in probabilities]))
    other = fit_power_law(images, errors)
    assert other.prediction_interval(320) == pytest.approx(one.prediction_interval(320), abs=0.01)


@pytest.mark.parametrize("name", ["log_loss", "macro_f1", "roc_auc"])
def test_intervals_cover_a_metric_of_more_images(name: str) -> None:
    metric, covered = find_metric(name), 0
    for trial in range(6):
        rng = np.random.default_rng(trial)
        truth, images = rng.integers(0, 3, 400), np.repeat([25, 50, 100, 200, 400], 2)

        def measured(number: int, rng: np.random.Generator = rng, truth: np.ndarray = truth) -> Any:
            p = noisy_grades(number, rng, truth)
            return metric.measure(Predictions(truth, p.argmax(1), p))

        errors = MetricErrors([measured(int(number)) for number in images], metric)
        low, high = fit_power_law(images, errors, same_test=True).prediction_interval(800)
        value = measured(800).value
        covered += low <= (1 - value if metric.higher_is_better else value) <= high
        assert high - low < 0.25
    assert covered >= 5


def test_a_curve_of_a_metric_has_it_in_table_chart_page_and_forecast(
    images: Path, deterministic: baseline.Recipe, tmp_path: Path
) -> None:
    from rich.console import Console

    curve = run_learning_curve(
        images, deterministic, sizes=[2, 4, 8], seeds=2, variants=["logistic"], metric="log_loss",
        out=tmp_path / "curve", progress=QUIET,
    )  # fmt: skip
    fit = curve.fits["logistic"]
    assert fit["doubled"]["log_loss"] >= 0 and "accuracy" not in fit["doubled"]
    assert all(0 <= low <= high for _, low, high in fit["forecast"])
    assert any("should lower the log loss by" in sentence for sentence in curve.sentences)
    assert not any("accuracy" in sentence for sentence in curve.sentences)
    page = (curve.folder / "curve.html").read_text()
    assert "Log loss by training images" in page and "the log loss itself" in page and "Accuracy by" not in page
    console = Console(width=200, file=io.StringIO())
    console.print(curve_table(curve))
    assert "logistic, log loss on test" in console.file.getvalue() and "%," not in console.file.getvalue()


def test_trainings_without_a_value_are_left_out_and_counted() -> None:
    rng, metric = np.random.default_rng(0), find_metric("quadratic_kappa")
    truth = rng.integers(0, 3, 60)
    results: list[Any] = []
    for number in (5, 10, 20, 40):
        p = np.eye(3)[np.zeros(60, int)] if number == 5 else noisy_grades(number, rng, truth)
        results.append(metric.measure(Predictions(truth if number > 5 else truth * 0, p.argmax(1), p)))
    rows = {"images": [5, 10, 20, 40], "quadratic_kappa": [one.value for one in results]}
    fit = fit_variant(pd.DataFrame(rows), results, metric)
    assert fit["doubled"]["images"] == 80 and "undefined in 1 of 4 trainings" in fit["words"][-1]
    few = fit_variant(pd.DataFrame(rows).iloc[:3], results, metric)
    assert set(few) == {"words"} and "no forecast" in few["words"][0]
