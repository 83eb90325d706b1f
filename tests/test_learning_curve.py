"""The learning curve: nested samples, an extrapolation with correct intervals, and runs that are kept on resume."""

from __future__ import annotations

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
from baseline.errors import DataError, OutputError, RecipeError
from baseline.experiments.learning_curve import LearningCurve, describe_redundancy, sample_groups, sample_within_groups
from baseline.experiments.power_law import fit_power_law

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
