"""Finished models are measured on new labeled images, and compared with the test number of their runs."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
from commands import call
from conftest import leave_out_pages
from insects import draw
from scipy.special import softmax

import baseline
from baseline.errors import DataError, OutputError, RecipeError
from baseline.evaluation.difference import Units, difference_interval, match_units, proportion_interval
from baseline.experiments.evaluate_models import evaluate_models
from baseline.inference.labeled import evaluate_model, read_labeled
from baseline.metrics.registry import find_metric

QUIET = baseline.Progress()


@pytest.fixture(scope="session")
def new_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ants and bees that no run has seen, 20 each."""
    folder = tmp_path_factory.mktemp("new")
    for name in ("ants", "bees"):
        (folder / name).mkdir()
        for number in range(100, 120):
            draw(name, number).save(folder / name / f"{number}.jpg", quality=90)
    return folder


def train_quickly(images: Path, out: Path) -> Path:
    """A finished run without a page."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pages(patch)
        return baseline.make_baseline(images, preset="instant", image_size=48, out=out, progress=QUIET).folder


@pytest.fixture(scope="session")
def rubbish_run(rubbish: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three classes."""
    return train_quickly(rubbish, tmp_path_factory.mktemp("runs") / "rubbish")


@pytest.fixture(scope="session")
def tags_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with several labels per image, and its table."""
    folder = tmp_path_factory.mktemp("tags")
    rows = [
        f"{path},{path.parent.name}{';even' if int(path.stem) % 2 else ''}" for path in sorted(images.rglob("*.jpg"))
    ]
    (folder / "tags.csv").write_text("\n".join(["path,label", *rows]))
    return train_quickly(folder / "tags.csv", folder / "run"), folder / "tags.csv"


def check_against_sklearn(result: Any, classes: list[str]) -> None:
    table, scores = result.predictions, {name: score["value"] for name, score in result.scores.items()}
    truth, guess, probabilities = (
        table["label"],
        table["predicted"],
        table[[f"p_{name}" for name in classes]].to_numpy(),
    )
    codes = truth.map(classes.index).to_numpy()
    one_hot = np.eye(len(classes))[codes]
    present = sorted(set(codes))
    expected = {
        "accuracy": sk.accuracy_score(truth, guess),
        "balanced_accuracy": sk.recall_score(truth, guess, average="macro", labels=truth.unique(), zero_division=0),
        "macro_f1": sk.f1_score(truth, guess, average="macro"),
        "micro_f1": sk.f1_score(truth, guess, average="micro"),
        "log_loss": sk.log_loss(codes, probabilities, labels=range(len(classes))),
        "brier": float(((probabilities - one_hot) ** 2).sum(1).mean()),
        "roc_auc": np.mean([sk.roc_auc_score(one_hot[:, k], probabilities[:, k]) for k in present]),
        "average_precision": np.mean([sk.average_precision_score(one_hot[:, k], probabilities[:, k]) for k in present]),
    }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-9), name
    assert result.metrics["kappa"] == pytest.approx(sk.cohen_kappa_score(truth, guess))
    for name, row in result.metrics["classes"].items():
        recall = sk.recall_score(truth, guess, labels=[name], average="macro", zero_division=0)
        assert row["recall"] is None if name not in set(truth) else row["recall"] == pytest.approx(recall)
    for score in result.scores.values():
        assert score["interval"][0] <= score["value"] <= score["interval"][1]


def test_metrics_equal_scikit_learn_on_two_classes(done: baseline.Baseline, new_images: Path) -> None:
    result = done.model.evaluate(new_images, progress=QUIET)
    assert len(result.predictions) == 40 and result.notes == [] and result.left_out.empty
    check_against_sklearn(result, ["ants", "bees"])
    as_predicted = done.model.predict(result.predictions["path"].tolist())
    assert np.allclose(as_predicted[["p_ants", "p_bees"]], result.predictions[["p_ants", "p_bees"]], atol=1e-6)
    assert as_predicted["predicted"].tolist() == result.predictions["predicted"].tolist()


def test_metrics_equal_scikit_learn_on_three_classes(rubbish_run: Path, rubbish: Path) -> None:
    result = baseline.load(rubbish_run).evaluate(rubbish, metric="top_2", progress=QUIET)
    check_against_sklearn(result, ["glass", "paper", "plastic"])
    probabilities = result.predictions[["p_glass", "p_paper", "p_plastic"]].to_numpy()
    top = sk.top_k_accuracy_score(result.predictions["label"], probabilities, k=2, labels=["glass", "paper", "plastic"])
    assert result.scores["top_2"]["value"] == pytest.approx(top)


def test_metrics_equal_scikit_learn_with_a_class_without_images(tiny: Path, images: Path) -> None:
    lines: list[str] = []

    class Log(baseline.Progress):
        def log(self, message: str) -> None:
            lines.append(message)

    result = baseline.load(tiny).evaluate(images, progress=Log())
    check_against_sklearn(result, ["ants", "bees", "wasps"])
    sentence = "no image of 'wasps': its recall is undefined, and means over the classes leave it out"
    assert result.notes == [sentence] and lines.count(sentence) == 1


def test_metrics_equal_scikit_learn_with_several_labels(tags_run: tuple[Path, Path]) -> None:
    run, table = tags_run
    result = baseline.load(run).evaluate(table, progress=QUIET)
    rows, classes = result.predictions, ["ants", "bees", "even"]
    truth, guess = (
        [[name in text.split(";") for name in classes] for text in rows[key]] for key in ("label", "predicted")
    )
    probabilities = rows[[f"p_{name}" for name in classes]]
    expected = {
        "accuracy": sk.accuracy_score(truth, guess),
        "macro_f1": sk.f1_score(truth, guess, average="macro", zero_division=0),
        "micro_f1": sk.f1_score(truth, guess, average="micro"),
        "average_precision": sk.average_precision_score(truth, probabilities),
        "roc_auc": sk.roc_auc_score(truth, probabilities),
    }
    for name, value in expected.items():
        assert result.scores[name]["value"] == pytest.approx(value, abs=1e-9), name
    assert "quadratic_kappa" not in result.scores and "top_3" not in result.scores


def test_the_temperature_of_the_model_is_undone_and_applied(done: baseline.Baseline, new_images: Path) -> None:
    result = done.model.evaluate(new_images, progress=QUIET)
    plain = done.model.predict(result.predictions["path"].tolist(), calibrated=False)
    rows = result.predictions
    before = sk.log_loss(rows["label"], plain[["p_ants", "p_bees"]])
    after = sk.log_loss(rows["label"], rows[["p_ants", "p_bees"]])
    assert result.calibration["loss"] == pytest.approx((before, after), abs=1e-6)
    assert result.calibration["temperature"] == done.manifest["calibration"]["temperature"]
    assert result.calibration["ece"][1] == result.metrics["ece"]


def test_a_run_on_its_own_test_images_has_its_own_number(done: baseline.Baseline, tmp_path: Path) -> None:
    test = done.predictions[done.predictions["split"] == "test"][["path", "label"]]
    result = evaluate_models([done.folder], test, write=False, progress=QUIET).models[0]
    own = done.metrics["test"]["tta"]
    assert result.evaluation.scores["accuracy"] == {"value": own["accuracy"], "interval": own["interval"]}
    assert result.own.shared == len(test) == result.own.images
    for score in result.own.scores.values():
        assert score["difference"] == pytest.approx(0, abs=1e-6)
        assert score["difference_interval"] == pytest.approx((0, 0), abs=1e-5)
    copies = [shutil.copy(path, tmp_path / f"{number}.jpg") for number, path in enumerate(test["path"])]
    copied = evaluate_models([done.folder], test.assign(path=copies), write=False, progress=QUIET).models[0]
    assert copied.own.shared == len(test), "other names, but the same content"
    plain = evaluate_models([done.folder], test, tta=False, write=False, progress=QUIET).models[0]
    assert plain.evaluation.scores["accuracy"]["value"] == done.metrics["test"]["plain"]["accuracy"]
    assert plain.own.scores["accuracy"]["difference"] == 0 and "log_loss" not in plain.own.scores


def test_new_images_are_compared_as_two_samples(done: baseline.Baseline, new_images: Path) -> None:
    result = evaluate_models([done.folder], new_images, write=False, progress=QUIET).models[0]
    own, here = result.own.scores["accuracy"], result.evaluation.scores["accuracy"]["value"]
    assert result.own.shared == 0 and own["difference"] == pytest.approx(here - own["value"])
    low, high = own["difference_interval"]
    assert low < own["difference"] < high and high - low > 0.2
    verdict = "not significant" if low <= 0 <= high else "significant"
    assert f"test images of the run: {verdict}" in result.own.sentence and result.own.sentence in result.notes


def test_images_that_the_model_was_trained_on_are_counted(done: baseline.Baseline, images: Path) -> None:
    train = sum(pd.read_csv(done.folder / "split.csv")["split"] == "train")
    result = evaluate_models([done.folder], images, write=False, progress=QUIET).models[0]
    assert f"{done.folder} was trained on {train} of 48 images, so the result is optimistic" in result.notes[0]
    assert "its validation images" in result.notes[1] and len(result.evaluation.predictions) == 48
    skipped = evaluate_models([done.folder], images, skip_trained=True, write=False, progress=QUIET).models[0]
    assert len(skipped.evaluation.predictions) == 48 - train and f"left out: {train} of 48 images" in skipped.notes[0]
    with pytest.raises(DataError, match="was trained on all of the"):
        table = pd.read_csv(done.folder / "split.csv").query("split == 'train'")[["path", "label"]]
        evaluate_models([done.folder], table, skip_trained=True, write=False, progress=QUIET)


def test_labels_that_the_model_does_not_know(done: baseline.Baseline, new_images: Path, tmp_path: Path) -> None:
    shutil.copytree(new_images, tmp_path / "more")
    (tmp_path / "more" / "bees").rename(tmp_path / "more" / "Bees")
    with pytest.raises(DataError, match=r"does not know 'Bees' \(20 images\)\. Its classes: 'ants', 'bees'\. Rename"):
        done.model.evaluate(tmp_path / "more", progress=QUIET)
    result = done.model.evaluate(tmp_path / "more", unknown="drop", progress=QUIET)
    assert len(result.predictions) == 20 and len(result.left_out) == 20
    assert result.notes == [
        "left out: 20 of 40 images: a label that the model does not know, first 100.jpg ('Bees')",
        "no image of 'bees': its recall is undefined, and means over the classes leave it out",
    ]
    with pytest.raises(DataError, match=r"does not know 'x' \(1 image\)\. .* Pass images of these\."):
        done.model.evaluate(pd.DataFrame({"path": [new_images / "ants/100.jpg"], "label": "x"}), unknown="drop")


def test_unreadable_images_are_left_out_and_named(done: baseline.Baseline, new_images: Path, tmp_path: Path) -> None:
    shutil.copytree(new_images, tmp_path / "more")
    (tmp_path / "more" / "ants" / "100.jpg").write_bytes(b"\xff\xd8\xff no image")
    result = done.model.evaluate(tmp_path / "more", progress=QUIET)
    assert len(result.predictions) == 39 and result.left_out["path"].iloc[0].endswith("ants/100.jpg")
    assert result.notes == ["left out: 1 of 40 images: unreadable, first 100.jpg ('ants')"]


def test_labels_may_come_in_any_form(done: baseline.Baseline, new_images: Path, tmp_path: Path) -> None:
    expected = done.model.evaluate(new_images, progress=QUIET).scores
    shutil.make_archive(str(tmp_path / "new"), "zip", new_images)
    rows = [f"{path},{path.parent.name},{number // 4}" for number, path in enumerate(sorted(new_images.rglob("*.jpg")))]
    (tmp_path / "new.csv").write_text("\n".join(["file,what,who", *rows]))
    assert done.model.evaluate(tmp_path / "new.zip", progress=QUIET).scores == expected
    options = {"image_col": "file", "label_col": "what", "group_col": "who"}
    grouped = done.model.evaluate(tmp_path / "new.csv", progress=QUIET, **options)
    assert {name: score["value"] for name, score in grouped.scores.items()} == {
        n: s["value"] for n, s in expected.items()
    }
    assert (
        grouped.metrics["groups"] == 10 and grouped.scores["accuracy"]["interval"] != expected["accuracy"]["interval"]
    )
    alone = done.model.evaluate(pd.DataFrame({"path": sorted((new_images / "ants").iterdir()), "label": "ants"}))
    assert len(alone.predictions) == 20 and alone.scores["roc_auc"] == {"value": None, "interval": None}


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "roc_auc"])
def test_overlapping_sets_are_between_independent_and_paired(metric: str) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"path": [f"{n}.jpg" for n in range(400)], "label": rng.choice(["a", "b"], 400)})
    table["p_a"] = softmax(np.column_stack([rng.normal(size=400) + (table["label"] == "a") * 2, np.ones(400)]), axis=1)[
        :, 0
    ]
    table = table.assign(p_b=1 - table["p_a"], predicted=np.where(table["p_a"] >= 0.5, "a", "b"))
    widths = []
    for shared in (0, 100, 190, 200):
        one, other = table.iloc[:200], table.iloc[200 - shared : 400 - shared]
        same = np.where(np.arange(200) < shared, np.arange(200) + 200 - shared, -1)
        units = match_units(one, other, same)
        assert units.shared == shared
        _, (low, high) = difference_interval((one, other), find_metric(metric), "single", units)
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2] > widths[3] == pytest.approx(0, abs=1e-12)


def simulate_coverage(
    images: tuple[int, int], accuracy: tuple[float, float], shared: float, draws: int = 2000
) -> float:
    """How often the interval of the difference of two accuracies covers the true difference.

    Args:
        shared: fraction of the second set that is in the first one as well, with the same predictions.
    """
    rng, hits, overlap = np.random.default_rng(0), 0, round(shared * images[1])
    other = np.arange(images[1]) + np.where(np.arange(images[1]) < overlap, 0, images[0])
    units = Units(np.arange(images[0]), other)
    for _ in range(draws):
        correct = [rng.random(n) < p for n, p in zip(images, accuracy, strict=True)]
        correct[1][:overlap] = correct[0][:overlap]
        low, high = proportion_interval(*correct, units)
        hits += low <= accuracy[1] - accuracy[0] <= high
    return hits / draws


COVERAGE = [
    ((100, 100), (0.8, 0.9), 0.0),
    ((500, 60), (0.87, 0.87), 0.0),
    ((1000, 300), (0.95, 0.9), 0.0),
    ((300, 300), (0.85, 0.85), 0.5),
    ((200, 100), (0.9, 0.9), 0.8),
]


SLOW_COVERAGE = [pytest.param(*case, marks=pytest.mark.slow) for case in COVERAGE[1:-1]]


@pytest.mark.parametrize("images, accuracy, shared", [COVERAGE[0], COVERAGE[-1], *SLOW_COVERAGE])
def test_the_interval_of_a_difference_covers_the_truth(
    images: tuple[int, int], accuracy: tuple[float, float], shared: float
) -> None:
    assert 0.93 <= simulate_coverage(images, accuracy, shared) <= 0.97


def test_groups_in_both_sets_are_drawn_together() -> None:
    one = pd.DataFrame({"path": list("abcdef"), "label": "x", "predicted": list("xyxxyx"), "group": list("112233")})
    other = one.assign(path=list("ghijkl"), group=["1", "1", "4", "4", "", ""])
    units = match_units(one, other, np.full(6, -1))
    assert units.grouped and units.one.tolist() == [0, 0, 1, 1, 2, 2]
    assert units.other.tolist() == [0, 0, 3, 3, 4, 5] and units.shared == 1


def test_several_models_are_tested_on_the_same_images(
    done: baseline.Baseline, tiny: Path, new_images: Path, tmp_path: Path
) -> None:
    shutil.copytree(done.folder / "model", tmp_path / "twin")
    facts = json.loads((tmp_path / "twin" / "model.json").read_text())
    (tmp_path / "twin" / "model.json").write_text(json.dumps(facts | {"temperature": 2.0}))
    given = [done.folder, tiny, [done.folder, tmp_path / "twin"]]
    result = evaluate_models(given, new_images, out=tmp_path / "out", progress=QUIET)
    pair = [model.evaluation.predictions for model in result.models]
    test = baseline.paired_test(pair[0], pair[1])
    assert result.differences[0]["difference"] == test["difference"]
    assert result.differences[0]["sentence"].startswith(f"{tiny} against {done.folder} on 40 images: accuracy ")
    assert result.models[1].own is None and "is not in the folder of its run" in result.models[1].notes[0]
    assert result.models[2].own is None and "an ensemble has no test number" in result.models[2].notes[0]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"metrics.json", "evaluation.html", *(f"predictions-{number}.csv" for number in (1, 2, 3))}
    with pytest.raises(OutputError, match="exists already"):
        evaluate_models([done.folder], new_images, out=tmp_path / "out", progress=QUIET)


def test_the_command_writes_a_page_and_prints_one_object(done: baseline.Baseline, new_images: Path) -> None:
    ended = call("evaluate", done.folder, new_images, "--out", "out", "--json", "--quiet")
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    printed = json.loads(ended.stdout)
    assert printed == json.loads(Path("out/metrics.json").read_text())
    assert set(printed) == {"format", "images", "folder", "models", "differences"}
    (model,) = printed["models"]
    table = pd.read_csv("out/predictions.csv")
    assert model["scores"]["accuracy"]["value"] == sk.accuracy_score(table["label"], table["predicted"])
    page = html.unescape(Path("out/evaluation.html").read_text())
    assert f"{model['scores']['accuracy']['value']:.1%}" in page and "Most confident errors" in page
    assert model["own"]["sentence"].removeprefix("accuracy") in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    text = call("evaluate", done.folder, new_images, "--out", "again")
    assert text.returncode == 0 and "against" in text.stdout and "results: again" in text.stdout


def test_wrong_requests_are_one_line(done: baseline.Baseline, images: Path, new_images: Path) -> None:
    for words, message in (
        ((done.folder, "nowhere/"), "no folder or file"),
        (("nothing", new_images), "nothing/model/model.json cannot be read"),
        ((done.folder, new_images, "--unknown", "keep"), "unknown is 'keep'. Pass 'error' or 'drop'."),
        ((done.folder, new_images, "--splits", "tset"), "no split 'tset'"),
        ((done.folder, new_images, "--splits", "test"), "None of the 40 images is in 'test'"),
        ((done.folder, new_images, "--metric", "top_2"), "top_2"),
        ((done.folder, new_images, "--metric", "acuracy"), "Did you mean 'accuracy'?"),
    ):
        ended = call("evaluate", *words, "--out", "out", "--quiet")
        assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1, (words, ended.stderr)
        assert message in ended.stderr and not Path("out").exists()
    with pytest.raises(RecipeError, match="more than 2 classes"):
        evaluate_model(done.model, read_labeled(images, task="single"), metric="top_2")
