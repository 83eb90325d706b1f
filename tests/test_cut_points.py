"""Cut points: fitted on valid where they gain there, and used wherever a class is decided."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import leave_out_pages
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import cohen_kappa_score, f1_score
from torch import Tensor, nn

import baseline
from baseline.data.labels import predicted_codes
from baseline.errors import OutputError
from baseline.evaluation.calibration import apply_temperature, fit_temperature
from baseline.evaluation.cut_points import average_cut_points, cross_fitted_value, fit_cut_points, with_cut_points
from baseline.evaluation.ensemble import ensemble
from baseline.evaluation.predict import predict
from baseline.evaluation.table import prediction_table
from baseline.inference.model import load
from baseline.metrics.registry import find_metric


class Lines(baseline.Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def grades(images: int, seed: int = 0, classes: int = 5, bias: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of grades: a noisy measurement of a hidden number that is rounded to the label."""
    rng = np.random.default_rng(seed)
    hidden = rng.gamma(1.2, 1.1, images)
    truth = np.minimum(hidden.astype(int), classes - 1)
    measured = hidden + rng.normal(0, 0.8, images)
    logits = -((measured[:, None] - np.arange(classes) - 0.5) ** 2) + bias * (np.arange(classes) == 0)
    return softmax(logits, axis=1), truth


def as_table(probabilities: np.ndarray, truth: np.ndarray, split: str = "valid") -> pd.DataFrame:
    names = [str(number) for number in range(probabilities.shape[1])]
    rows = pd.DataFrame(
        {"path": [f"{split}{n}.jpg" for n in range(len(truth))], "label": truth.astype(str), "split": split}
    )
    return prediction_table(rows, probabilities, probabilities, names)


def test_no_other_cut_points_are_better_with_two_classes() -> None:
    rng = np.random.default_rng(3)
    positive = rng.beta(1, 5, 60)
    truth = (rng.random(60) < positive).astype(int)
    probabilities = np.column_stack([1 - positive, positive])
    for name in ("macro_f1", "balanced_accuracy", "micro_f1"):
        metric = find_metric(name)
        (cut,) = fit_cut_points(probabilities, truth, metric)
        scores = {
            at: f1_score(truth, positive >= at, average="macro", zero_division=0) for at in [*positive, 0.0, 1.1, cut]
        }
        if name == "macro_f1":
            assert scores[cut] == pytest.approx(max(scores.values()))
    many = fit_cut_points(probabilities[:, ::-1], truth, find_metric("quadratic_kappa"))
    assert len(many) == 1


def test_cut_points_of_three_grades_reach_the_best_kappa_of_a_full_search() -> None:
    for seed in range(2):
        probabilities, truth = grades(24, seed, 3)
        expected = probabilities @ np.arange(3)
        cuts = fit_cut_points(probabilities, truth, find_metric("quadratic_kappa"))

        def kappa(pair: tuple[float, float]) -> float:
            return float(cohen_kappa_score(truth, np.searchsorted(pair, expected, side="right"), weights="quadratic"))  # noqa: B023

        best = max(map(kappa, itertools.combinations(sorted(expected), 2)))
        assert kappa((cuts[0], cuts[1])) > best - 0.02 and cuts == sorted(cuts)


def test_they_gain_on_images_that_they_were_not_fitted_on_and_cross_fitting_says_how_much() -> None:
    metric, gains = find_metric("quadratic_kappa"), []
    fresh, truth = grades(20_000, 99, bias=2.0)
    default = cohen_kappa_score(truth, fresh.argmax(1), weights="quadratic")
    for seed in range(5):
        probabilities, labels = grades(300, seed, bias=2.0)
        cuts = fit_cut_points(probabilities, labels, metric)
        actual = cohen_kappa_score(truth, predicted_codes(fresh, cuts), weights="quadratic")
        gains.append((actual - default, cross_fitted_value(probabilities, labels, metric) - actual))
    assert min(gain for gain, _ in gains) > 0.02
    assert abs(np.mean([error for _, error in gains])) < 0.03  # not too good, as on the images of the fit


def test_images_of_a_group_are_held_out_together() -> None:
    probabilities, truth = grades(40, 1, 2)
    copies, groups = np.repeat(np.arange(40), 5), np.repeat(np.arange(40), 5)
    metric = find_metric("macro_f1")
    alone = cross_fitted_value(probabilities[copies], truth[copies], metric)
    assert cross_fitted_value(probabilities[copies], truth[copies], metric, groups) < alone


def test_the_table_follows_them_only_where_they_gain_and_test_images_have_no_part() -> None:
    valid, test = as_table(*grades(200, 0, bias=2.0)), as_table(*grades(80, 1, bias=2.0), split="test")
    table, log = pd.concat([valid, test], ignore_index=True), Lines()
    plain = table.filter(regex="^p_").to_numpy()
    result = with_cut_points(table, plain, "quadratic_kappa", log)
    cuts, temperature = result.attrs["cut_points"], fit_temperature(table)
    codes = predicted_codes(apply_temperature(plain, temperature), cuts)
    for prefix in ("", "plain_"):
        assert (result[f"{prefix}predicted"] == codes.astype(str)).all()
        assert np.allclose(result[f"{prefix}confidence"], plain[np.arange(len(codes)), codes])
    assert (result["predicted"] != table["predicted"]).any() and len(log.lines) == 1
    assert "by the most probable class" in log.lines[0] and "cross-fitted" in log.lines[0]
    shuffled = table.assign(label=[*valid["label"], *reversed(test["label"].tolist())])
    assert with_cut_points(shuffled, plain, "quadratic_kappa").attrs["cut_points"] == cuts

    perfect = np.eye(3)[np.arange(90) % 3] * 0.8 + 0.1 / 1.5
    same = as_table(perfect / perfect.sum(1, keepdims=True), np.arange(90) % 3)
    kept = with_cut_points(same, same.filter(regex="^p_").to_numpy(), "quadratic_kappa", log)
    assert "cut_points" not in kept.attrs and "none, they gain nothing" in log.lines[-1]
    few = with_cut_points(valid.head(49), plain[:49], "quadratic_kappa", log)
    assert "cut_points" not in few.attrs and "49 valid images are fewer than 50" in log.lines[-1]
    lines = len(log.lines)
    assert "cut_points" not in with_cut_points(valid, plain[:200], "macro_f1", log).attrs and len(log.lines) == lines


class Brightness(nn.Module):
    """A network without training: the logit of the second class is the image's mean brightness, with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, images: Tensor) -> Tensor:
        logit = self.scale * images.mean((1, 2, 3)) - 6
        return torch.stack([torch.zeros_like(logit), logit], 1)


def gray_images(folder: Path, count: int = 120) -> pd.DataFrame:
    """Gray images, of which the brighter ones are in class 1, mostly."""
    rng, rows = np.random.default_rng(0), []
    folder.mkdir()
    for number in range(count):
        value = int(rng.integers(20, 235))
        Image.new("RGB", (16, 16), (value, value, value)).save(folder / f"{number}.png")
        label = str(int(value + rng.normal(0, 20) > 160))
        rows.append((str(folder / f"{number}.png"), label, "valid" if number % 3 else "train"))
    return pd.DataFrame(rows, columns=["path", "label", "split"])


def test_a_learner_gets_a_threshold_under_f1_unless_it_is_turned_off(tmp_path: Path, small: baseline.Recipe) -> None:
    table = gray_images(tmp_path / "gray")
    recipe = small.changed(arch="test_efficientnet", pretrained=False, image_size=16, split="provided")
    recipe = baseline.resolve(recipe, table)[0]
    learn = baseline.learner(baseline.dataloaders(table, recipe, path=tmp_path), recipe, path=tmp_path)
    learn.model = Brightness().to(learn.dls.device)
    result = predict(learn, table, ("flip",), ("valid",), thresholds="auto", metric="macro_f1")
    (cut,) = result.attrs["cut_points"]
    calibrated = apply_temperature(result[["p_0", "p_1"]].to_numpy(), fit_temperature(result))
    assert (result["predicted"] == np.where(calibrated[:, 1] >= cut, "1", "0")).all()
    one = predict(learn, table, ("flip",), ("valid",), thresholds="one", metric="macro_f1")
    score = [f1_score(t["label"], t["predicted"], average="macro") for t in (result, one)]
    assert score[0] > score[1] + 0.1 and "cut_points" not in one.attrs
    accuracy = predict(learn, table, ("flip",), ("valid",), thresholds="auto", metric="accuracy")
    assert accuracy["predicted"].equals(one["predicted"])


def test_a_run_stores_what_its_predictions_follow(tmp_path: Path) -> None:
    table = gray_images(tmp_path / "gray", 180)
    table["label"] = [str(int(label) + number % 2) for number, label in enumerate(table["label"])]
    recipe = baseline.Recipe(stages=(baseline.Stage("probe"),)).changed(
        image_size=32, audit="none", cache_gb=0, split="provided", metric="quadratic_kappa"
    )
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pages(patch)
        log = Lines()
        done = baseline.make_baseline(table, recipe, out=tmp_path / "run", progress=log)
    assert sum(line.startswith("cut points: ") for line in log.lines) == 1
    cuts = done.manifest.get("cut_points", [])
    model, config = load(done.folder), json.loads((done.folder / "model/model.json").read_text())
    assert model.cut_points == cuts == config.get("cut_points", [])
    found = model.predict(done.predictions["path"].tolist())
    assert found["predicted"].tolist() == done.predictions["predicted"].tolist()


@pytest.fixture
def cut(tiny: Path, tmp_path: Path) -> Path:
    """A model folder of three classes with cut points."""
    folder = Path(shutil.copytree(tiny, tmp_path / "cut"))
    config = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**config, "cut_points": [0.2, 0.9]}))
    return folder


def test_models_ensembles_and_exports_decide_by_them(cut: Path, tiny: Path, images: Path) -> None:
    paths = [str(path) for path in sorted(images.rglob("*.jpg"))[:12]]
    model, other = load(cut), load(tiny)
    shares = [f"p_{name}" for name in model.classes]
    raw, found = model.predict(paths, calibrated=False), model.predict(paths)
    values = found[shares].to_numpy(float)
    codes = predicted_codes(values, [0.2, 0.9])
    assert found["predicted"].tolist() == raw["predicted"].tolist() == [model.classes[code] for code in codes]
    assert (codes != values.argmax(1)).any()
    assert np.allclose(found["confidence"].astype(float), values[np.arange(12), codes])
    with model.predictor() as ask:
        assert ask([model.load_square(path) for path in paths]).predicted == found["predicted"].tolist()

    both = load([cut, tiny])
    mean = both.predict(paths)[shares].to_numpy(float)
    assert both.predict(paths)["predicted"].tolist() == [
        model.classes[code] for code in predicted_codes(mean, average_cut_points([[0.2, 0.9], []], 3))
    ]
    tables = [
        m.predict(paths, calibrated=False).assign(label="ants", split="test")[["path", "label", "split", *shares]]
        for m in (model, other)
    ]
    averaged = ensemble(tables, [1.7, 1.7], cut_points=[[0.2, 0.9], []])
    assert averaged["predicted"].tolist() == both.predict(paths)["predicted"].tolist()


def test_the_server_answers_by_them(cut: Path, images: Path) -> None:
    from starlette.testclient import TestClient

    from baseline.deploy.server.app import create_app

    path = sorted(images.rglob("*.jpg"))[0]
    with TestClient(create_app(cut), base_url="http://localhost") as client:
        answer = client.post("/predict", files=[("image", (path.name, path.read_bytes(), "image/jpeg"))]).json()
    assert answer["predictions"][0]["predicted"] == load(cut).predict([path])["predicted"][0]


@pytest.mark.parametrize("value", [[0.5], [0.9, 0.2], [0.1, float("inf")], "0.5", [0.1, True]])
def test_a_model_folder_with_other_cut_points_is_rejected(cut: Path, value: object) -> None:
    config = json.loads((cut / "model.json").read_text())
    (cut / "model.json").write_text(json.dumps({**config, "cut_points": value}))
    with pytest.raises(OutputError, match=r"cut_points is .*ascending numbers, one fewer than classes|damaged"):
        load(cut)
