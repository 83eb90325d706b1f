"""Numbers are scikit-learn's, intervals hold the truth as often as they say, and a table that lies is refused."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit, softmax
from scipy.stats import binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

import baseline
import baseline.data.sources.tables
from baseline import (
    DataError,
    calibrate,
    calibration_report,
    evaluate,
    explain,
    fit_temperature,
    paired_test,
    suspect_labels,
)
from baseline.evaluation.calibration import assign_bins, ece_interval
from baseline.evaluation.intervals import bootstrap_sums, paired_interval, percentile_interval
from baseline.evaluation.metrics import BootstrapSums, one_vs_rest_metrics


def table_of(probabilities: np.ndarray, truth: np.ndarray, split: str = "test", **more: Any) -> pd.DataFrame:
    """A prediction table whose plain predictions are those with augmentation."""
    images, count = probabilities.shape
    names = np.array([f"c{at:03}" for at in range(count)], dtype=object)
    told = names[probabilities.argmax(1)]
    loss = -np.log(probabilities[np.arange(images), truth])
    columns = {"path": [f"{split}/{at}.jpg" for at in range(images)], "label": names[truth], "split": split}
    said = {"predicted": told, "confidence": probabilities.max(1), "loss": loss}
    plain = {f"plain_{key}": value for key, value in said.items()}
    shares = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in names])
    return pd.concat([pd.DataFrame({**columns, **said, **plain, **more}), shares], axis=1)


def drawn(seed: int, images: int, classes: int = 4, told: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn by them; told with their logits times `told`, above 1 it is too sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, classes)) * 1.5
    truth = (softmax(logits, axis=1).cumsum(1) > rng.random((images, 1))).argmax(1)
    return softmax(logits * told, axis=1), truth


def shares_of(table: pd.DataFrame) -> np.ndarray:
    return table[[name for name in table if name.startswith("p_")]].to_numpy()


@pytest.mark.parametrize("which", ["two classes", "many classes", "a real run"])
def test_numbers_equal_scikit_learns(which: str, done: baseline.Baseline) -> None:
    table = done.predictions if which == "a real run" else table_of(*drawn(3, 500, 2 if which == "two classes" else 30))
    rows = table[table["split"] == "test"]
    numbers = evaluate(table)["test"]
    found, shares, names = numbers["tta"], shares_of(rows), [name[2:] for name in rows if name.startswith("p_")]
    truth, told = rows["label"], rows["predicted"]
    flags = (truth.to_numpy()[:, None] == np.array(names)).astype(int)
    expected = {
        "accuracy": sk.accuracy_score(truth, told),
        "error": sk.zero_one_loss(truth, told),
        "loss": sk.log_loss(truth, shares),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, told),
        "macro_f1": sk.f1_score(truth, told, average="macro"),
        "micro_f1": sk.f1_score(truth, told, average="micro"),
        "weighted_f1": sk.f1_score(truth, told, average="weighted"),
        "kappa": sk.cohen_kappa_score(truth, told),
        "brier": sk.brier_score_loss(truth, shares, labels=names, scale_by_half=False),
        "roc_auc": np.mean([sk.roc_auc_score(flags[:, at], shares[:, at]) for at in range(len(names))]),
        "average_precision": sk.average_precision_score(flags, shares, average="macro"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    k = min(5, len(names) - 1)
    assert found["top_k"]["k"] == k
    if len(names) > 2:
        assert found["top_k"]["share"] == pytest.approx(sk.top_k_accuracy_score(truth, shares, k=k, labels=names))
    by_class = sk.classification_report(truth, told, output_dict=True, zero_division=0)
    for name in names:
        mine, theirs = found["classes"][name], by_class[name]
        assert mine["images"] == theirs["support"] and mine["f1"] == pytest.approx(theirs["f1-score"])
        assert (mine["precision"], mine["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
        low, high = mine["recall_interval"]
        assert low - 1e-9 <= mine["recall"] <= high + 1e-9
    matrix = sk.confusion_matrix(truth, told, labels=names)
    for pair in found["confused"]:
        assert pair["images"] == matrix[names.index(pair["label"]), names.index(pair["predicted"])]
        assert pair["share"] == pytest.approx(pair["images"] / (truth == pair["label"]).sum())
    counts = [pair["images"] for pair in found["confused"]]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) == 50 or sum(counts) == found["wrong"] == numbers["images"] - np.trace(matrix)
    right, sure = calibration_curve(truth == told, rows["confidence"], n_bins=15)
    bins = [each for each in found["reliability"] if each["images"]]
    assert [each["accuracy"] for each in bins] == pytest.approx(right)
    assert [each["confidence"] for each in bins] == pytest.approx(sure)
    weights = [each["images"] / len(rows) for each in bins]
    assert found["ece"] == pytest.approx(np.average(abs(right - sure), weights=weights))
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] <= high
    json.dumps(numbers, allow_nan=False)


def test_one_against_rest_counts_ties_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    shares, truth = rng.integers(0, 4, (300, 3)) / 4, rng.integers(0, 3, 300)
    auc, precision = one_vs_rest_metrics(shares, truth)
    for at in range(3):
        assert auc[at] == pytest.approx(sk.roc_auc_score(truth == at, shares[:, at]))
        assert precision[at] == pytest.approx(sk.average_precision_score(truth == at, shares[:, at]))


def test_top_k_takes_the_first_of_equal_ones_as_the_prediction_does() -> None:
    shares = np.full((4, 8), 1 / 8)
    found = evaluate(table_of(shares, np.array([0, 4, 5, 7])))["test"]["tta"]
    assert found["top_k"]["share"] == 0.5 and found["accuracy"] == 0.25


def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say() -> None:
    def parts(seed: int, images: int) -> BootstrapSums:
        shares, truth = drawn(seed, images, told=1.2)
        rows = pd.DataFrame({"loss": -np.log(shares[np.arange(images), truth])})
        return BootstrapSums(rows, shares, truth, shares.argmax(1))

    whole = parts(1, 500_000)
    true = {name: value[0] for name, value in whole.statistics(whole.total()).items()}
    names = ("macro_f1", "balanced_accuracy", "loss", "brier", "ece")
    held = dict.fromkeys(names, 0)
    for seed in range(2000):
        one = parts(1000 + seed, 250)
        draws = bootstrap_sums(one.features, draws=250)
        intervals = {name: percentile_interval(values) for name, values in one.statistics(draws).items()}
        intervals["ece"] = ece_interval(one.gaps(one.total())[0], one.gaps(draws))
        for name in names:
            low, high = intervals[name]
            held[name] += low <= true[name] <= high
    for name, times in held.items():
        assert 0.93 <= times / 2000 <= 0.97, (name, times)


def test_the_paired_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = paired_interval(rng.choice([1.0, -1.0, 0.0], 500, p=[0.08, 0.05, 0.87]), None)
        held += low <= 0.03 <= high
    assert 0.93 <= held / 2000 <= 0.97


def test_mcnemars_test_finds_no_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    images = pd.DataFrame({"path": np.arange(300).astype(str), "split": "test", "label": "a"})
    found = 0
    for _ in range(400):
        one, other = (images.assign(predicted=np.where(rng.random(300) < 0.8, "a", "b")) for _ in range(2))
        found += paired_test(one, other)["beyond_noise"]
    assert 0.02 <= found / 400 <= 0.08


def test_draws_of_groups_spread_as_groups_do() -> None:
    shares, truth = drawn(5, 60)
    once = table_of(shares, truth)
    ten = pd.concat([once.assign(path=once["path"] + str(at)) for at in range(10)], ignore_index=True)
    grouped = evaluate(ten.assign(group=list(once["path"]) * 10))["test"]
    alone, images = evaluate(once)["test"], evaluate(ten)["test"]
    assert grouped["groups"] == 60 and "groups" not in images

    def width(found: dict[str, Any], name: str) -> float:
        low, high = found["tta"]["intervals"][name]
        return high - low

    for name in ("macro_f1", "balanced_accuracy", "loss"):  # ten copies of an image tell no more than one
        assert width(grouped, name) == pytest.approx(width(alone, name), rel=0.15)
        assert width(images, name) < 0.5 * width(grouped, name)
    low, high = grouped["tta"]["group_interval"]
    assert high - low > 2 * np.diff(images["tta"]["interval"])[0]
    assert any("60 groups" in line for line in explain(grouped))
    missing = [None, *list(once["path"])[1:]]
    assert evaluate(once.assign(group=missing))["test"]["groups"] == 60
    assert "groups" not in evaluate(once.assign(group=None))["test"]


def test_the_group_of_the_image_table_comes_into_the_prediction_table(learn: Any, settled: tuple) -> None:
    table = settled[1].assign(group=[f"g{at // 2}" for at in range(len(settled[1]))])
    found = baseline.predict(learn, table, ())
    assert (
        dict(zip(found["path"], found["group"], strict=True)).items()
        <= dict(zip(table["path"], table["group"], strict=True)).items()
    )
    assert evaluate(found)["test"]["groups"] > 1
    assert "group" not in baseline.predict(learn, settled[1].assign(group=None), ())


def test_the_same_table_gives_the_same_numbers() -> None:
    table = table_of(*drawn(7, 200))
    assert evaluate(table) == evaluate(table.copy())


def test_one_class_leaves_undefined_what_is_undefined_and_gives_the_rest() -> None:
    shares, _ = drawn(2, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers = evaluate(table_of(shares, np.zeros(50, dtype=int)))["test"]
    found = numbers["tta"]
    assert found["roc_auc"] is None and "all images are of 'c000'" in found["undefined"]["roc_auc"]
    assert found["classes"]["c001"]["recall"] is None and found["classes"]["c001"]["average_precision"] is None
    assert found["classes"]["c001"]["precision"] == 0 and found["balanced_accuracy"] == found["accuracy"]
    assert found["average_precision"] == 1 and found["ece"] > 0 and numbers["majority"]["accuracy"] == 1
    assert any("roc_auc is undefined" in line for line in explain(numbers))
    certain = table_of(np.tile([0.9, 0.1], (5, 1)), np.zeros(5, dtype=int))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(certain)["test"]["tta"]["kappa"] is None
    json.dumps(evaluate(certain), allow_nan=False)


def test_a_class_never_predicted_gives_0_without_a_warning() -> None:
    shares = np.tile([0.6, 0.4], (6, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(table_of(shares, np.array([0, 0, 0, 1, 1, 1])))["test"]["tta"]
    never = found["classes"]["c001"]
    assert (never["predicted"], never["precision"], never["recall"], never["f1"]) == (0, 0.0, 0.0, 0.0)
    assert found["kappa"] == 0 and found["macro_f1"] == pytest.approx(1 / 3) and not found["undefined"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="predicted"), "has no column 'predicted'"),
        (lambda t: t.drop(columns=["label", "loss"]), "has no column 'label', 'loss'"),
        (lambda t: t.head(0), "has no rows"),
        (
            lambda t: t.assign(label=t["label"].where(t.index != 3)),
            "'label' .* no value in 1 of 20 rows, first 'test/3",
        ),
        (lambda t: t.assign(loss=t["loss"].where(t.index != 3)), "'loss' .* no value in 1 of 20"),
        (lambda t: t.assign(p_c001=t["p_c001"].where(t.index > 3)), "In 4 of 20 rows .* contain NaN, first 'test/0"),
        (lambda t: t.assign(p_c001=t["p_c001"] + 0.01), "In 20 of 20 rows .* do not sum to 1"),
        (lambda t: t.drop(columns="p_c001"), "do not sum to 1"),
        (lambda t: t.assign(p_c000=t["p_c000"] + 2, p_c001=t["p_c001"] - 2), "include negative values"),
        (
            lambda t: t.assign(label=t["label"].where(t.index != 3, "dgo")),
            "no column 'p_dgo' for .* 'label' of 'test/3",
        ),
        (lambda t: t.assign(predicted=t["predicted"].where(t.index != 3, "x")), "no column 'p_x' .* 'predicted'"),
    ],
)
def test_a_table_that_cannot_be_measured_is_refused_in_one_line(change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        evaluate(change(table_of(*drawn(4, 20))))
    assert "\n" not in str(caught.value)


def test_many_labels_are_checked_too() -> None:
    rows = {"path": list("ab"), "split": "test", "label": ["x;y", ""], "loss": 0.1, "plain_loss": 0.1}
    table = pd.DataFrame({**rows, "predicted": ["x", ""], "plain_predicted": ["x;y", "y"], "p_x": 0.9, "p_y": 0.2})
    assert evaluate(table, "many")["test"]["tta"]["accuracy"] == 0.5
    with pytest.raises(DataError, match="no column 'p_z'"):
        evaluate(table.assign(label=["x;z", ""]), "many")
    with pytest.raises(DataError, match="not between 0 and 1"):
        evaluate(table.assign(p_y=1.2), "many")


def many_drawn(seed: int, images: int, told: float = 1.0, split: str = "test") -> pd.DataFrame:
    """Several labels an image, drawn by their probabilities, which are told with their logits times `told`."""
    rng = np.random.default_rng(seed)
    names = np.array(["ants", "bees", "insect"], dtype=object)
    logits = rng.normal(size=(images, 3)) * 1.5
    flags, shares = expit(logits) > rng.random((images, 3)), expit(logits * told)
    labels, predicted = ([";".join(names[row]) for row in each] for each in (flags, shares >= 0.5))
    loss = -np.log(np.where(flags, shares, 1 - shares)).mean(1)
    columns = {"path": [f"{split}/{at}.jpg" for at in range(images)], "split": split, "label": labels}
    told_of = {"predicted": predicted, "loss": loss, "confidence": np.maximum(shares, 1 - shares).min(1)}
    plain = {f"plain_{key}": value for key, value in told_of.items()}
    return pd.DataFrame({**columns, **told_of, **plain, **{f"p_{n}": shares[:, at] for at, n in enumerate(names)}})


def test_numbers_of_many_labels_equal_scikit_learns() -> None:
    table = many_drawn(0, 400)
    found, names = evaluate(table, "many")["test"]["tta"], ["ants", "bees", "insect"]
    truth, told = (baseline.data.labels.label_matrix(table[column], names) for column in ("label", "predicted"))
    shares = shares_of(table)
    wanted = sk.precision_recall_fscore_support(truth, told)
    for name, values in zip(("precision", "recall", "f1", "images"), wanted, strict=True):
        assert [found["classes"][each][name] for each in names] == pytest.approx(values)
    for name, score in (("roc_auc", sk.roc_auc_score), ("average_precision", sk.average_precision_score)):
        assert [found["classes"][each][name] for each in names] == pytest.approx(score(truth, shares, average=None))
    assert found["mean_average_precision"] == pytest.approx(sk.average_precision_score(truth, shares))
    right, sure = calibration_curve((truth == told).ravel(), np.maximum(shares, 1 - shares).ravel(), n_bins=15)
    bins = [each for each in found["reliability"] if each["images"]]
    assert [each["accuracy"] for each in bins] == pytest.approx(right)
    assert [each["confidence"] for each in bins] == pytest.approx(sure)
    assert sum(each["images"] for each in bins) == 1200
    assert found["ece"] == pytest.approx(np.average(abs(right - sure), weights=[each["images"] for each in bins]))


@pytest.mark.parametrize("told", [0.5, 2.0])
def test_many_labels_share_a_temperature(told: float) -> None:
    table = pd.concat([many_drawn(1, 4000, told, "valid"), many_drawn(2, 4000, told)], ignore_index=True)
    fitted = fit_temperature(table, "many")
    assert fitted == pytest.approx(told, rel=0.08)
    found = calibration_report(table, "many")["test"]
    changed = calibrate(table, fitted, "many")
    after = evaluate(changed, "many")["test"]["tta"]
    assert found["ece"][1] == pytest.approx(after["ece"]) and found["loss"][1] == pytest.approx(after["loss"])
    assert found["ece"][1] < 0.4 * found["ece"][0] and found["loss"][1] < found["loss"][0]
    assert (changed["predicted"] == table["predicted"]).all()
    assert shares_of(changed) == pytest.approx(expit(logit(shares_of(table)) / fitted))


def test_memory_grows_with_images_times_classes_and_no_faster() -> None:
    table = table_of(*drawn(1, 2000, 500))
    evaluate(table.head(10))  # what is imported on first use
    tracemalloc.start()
    evaluate(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the table and its two copies, and a fixed room for draws; 500 x 500 x 2000 would be 500 MB as bytes alone
    assert peak < 5 * 8 * table.shape[0] * table.shape[1] + 60_000_000


# ---- calibration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [0.5, 1.0, 2.0])
def test_the_temperature_is_what_the_logits_were_multiplied_by(told: float) -> None:
    valid, test = (table_of(*drawn(seed, 8000, told=told), split=split) for seed, split in ((1, "valid"), (2, "test")))
    table = pd.concat([test, valid], ignore_index=True)
    fitted = fit_temperature(table)
    assert fitted == pytest.approx(told, rel=0.08)
    assert fitted == fit_temperature(valid)  # test images have no say
    found = calibration_report(table)
    ece, loss = found["test"]["ece"], found["test"]["loss"]
    assert ece[0] == pytest.approx(evaluate(table)["test"]["tta"]["ece"])
    assert ece[1] == pytest.approx(evaluate(calibrate(table, fitted))["test"]["tta"]["ece"])
    if told != 1:
        assert ece[1] < 0.4 * ece[0] and loss[1] < loss[0] and "(lower)" in found["test"]["words"]
    changed = calibrate(table, fitted)
    assert (changed["predicted"] == table["predicted"]).all() and np.allclose(shares_of(changed).sum(1), 1)
    assert (changed["confidence"] == shares_of(changed).max(1)).all()


def test_few_images_move_the_temperature_little() -> None:
    right = table_of(np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([0, 1]), split="valid")
    assert 0.9 < fit_temperature(right) < 1  # none is wrong
    whole = table_of(*drawn(1, 8000, told=2.0), split="valid")
    found = {images: fit_temperature(whole.head(images)) for images in (4, 40, 8000)}
    assert 1 < found[4] < 1.4 < found[40] < found[8000] == pytest.approx(2, rel=0.08)


def test_a_probability_of_0_has_a_temperature_too() -> None:
    table = table_of(*drawn(1, 3, 2), split="valid").assign(label=["c000", "c001", "c001"], p_c000=[1.0, 0, 1])
    table = table.assign(p_c001=1 - table["p_c000"])  # sure of a class that the third image is not of
    assert fit_temperature(table) == pytest.approx(20, rel=1e-3)
    changed = calibrate(table, 2.0)
    assert np.isfinite(changed["loss"]).all() and np.allclose(shares_of(changed).sum(1), 1)


def test_without_valid_images_or_probabilities_there_is_no_temperature() -> None:
    table = table_of(*drawn(1, 20))
    with pytest.raises(DataError, match="has no valid images"):
        fit_temperature(table)
    with pytest.raises(DataError, match="has no columns p_CLASS"):
        fit_temperature(pd.DataFrame({"split": ["valid"], "label": ["a"]}))


def test_the_temperature_goes_into_the_manifest_and_the_model(done: baseline.Baseline) -> None:
    found = done.manifest["calibration"]
    facts = json.loads((done.folder / "model" / "model.json").read_text())
    assert facts["temperature"] == found["temperature"] == fit_temperature(done.predictions)
    assert found["images"] == 4 and len(found["test"]["ece"]) == 2 and "4 valid images" in found["test"]["words"]
    numbers = done.metrics["test"]
    assert numbers["tta"]["ece"] == pytest.approx(found["test"]["ece"][0])
    assert json.loads((done.folder / "manifest.json").read_text())["metrics"]["test"]["tta"]["classes"].keys() == {
        "ants", "bees",
    }  # fmt: skip


# ---- labels that may be wrong ---------------------------------------------------------------------------------------


def test_swapped_labels_are_suspected() -> None:
    rng = np.random.default_rng(0)
    probabilities, truth = drawn(5, 2000, 5)
    probabilities = softmax(6 * np.log(probabilities), axis=1)  # a network that is rarely unsure
    truth = probabilities.argmax(1)
    swapped = rng.random(2000) < 0.05
    table = table_of(probabilities, np.where(swapped, (truth + rng.integers(1, 5, 2000)) % 5, truth))
    found = suspect_labels(table)
    hits = swapped[found.index]
    assert hits.mean() > 0.95 and hits.sum() > 0.7 * swapped.sum()
    right = np.array([f"c{at:03}" for at in truth])[found.index]
    assert (found["suggested"][hits] == right[hits]).all()
    assert found["label_probability"].is_monotonic_increasing and "p_c000" not in found
    assert (found["label_probability"] == shares_of(table)[found.index, [int(n[1:]) for n in found["label"]]]).all()


def test_without_doubt_no_label_is_suspected() -> None:
    probabilities, _ = drawn(5, 200, 3)
    assert suspect_labels(table_of(probabilities, probabilities.argmax(1))).empty
    with pytest.raises(DataError, match="no column 'label'"):
        suspect_labels(pd.DataFrame({"p_a": [1.0]}))


# ---- two tables -----------------------------------------------------------------------------------------------------


def test_mcnemar_counts_only_images_that_one_has_right() -> None:
    images = pd.DataFrame({"path": np.arange(100).astype(str), "split": "test", "label": "a"})
    one = images.assign(predicted=["a"] * 70 + ["b"] * 30)
    other = images.assign(predicted=["b"] * 5 + ["a"] * 80 + ["b"] * 15)
    found = paired_test(one, other.sample(frac=1, random_state=0))
    assert (found["only_one"], found["only_other"], found["difference"]) == (5, 15, 0.1)
    assert found["p_exact"] == pytest.approx(binomtest(5, 20).pvalue) and found["p"] < found["p_exact"]
    assert found["interval"][0] > 0 and found["beyond_noise"]
    back = paired_test(other, one)
    assert back["difference"] == -0.1 and back["p"] == pytest.approx(found["p"])
    same = paired_test(one, one)
    assert (same["p"], same["p_exact"], same["interval"], same["beyond_noise"]) == (1.0, 1.0, (0.0, 0.0), False)


def test_groups_decide_by_their_bootstrap() -> None:
    images = pd.DataFrame({"path": np.arange(100).astype(str), "split": "test", "label": "a"})
    one = images.assign(predicted=["a"] * 70 + ["b"] * 30)
    other = images.assign(predicted=["a"] * 85 + ["b"] * 15)
    assert paired_test(one, other)["beyond_noise"]
    # all 15 gained images are of one thing
    assert not paired_test(one.assign(group=np.arange(100) // 20), other)["beyond_noise"]


def test_tables_that_share_nothing_or_disagree_are_refused() -> None:
    table = table_of(*drawn(1, 20))
    with pytest.raises(DataError, match="share no image"):
        paired_test(table, table.assign(path="other/" + table["path"]))
    with pytest.raises(DataError, match="images are labelled differently"):
        paired_test(table, table.assign(label="c003"))
    with pytest.raises(DataError, match="occurs twice"):
        paired_test(table, pd.concat([table, table]))
    with pytest.raises(DataError, match="no column 'path'"):
        paired_test(table, table.drop(columns="path"))
    assert paired_test(table.assign(split="valid"), table.assign(split="valid"))["split"] == "valid"


def test_sentences_say_how_many_the_majority_and_whether_augmentation_helps(done: baseline.Baseline) -> None:
    numbers = done.metrics["test"]
    told = " ".join(explain(numbers))
    assert (
        f"{numbers['tta']['wrong']} of 10 predictions" in told and "most frequent class, would score 50.0%" in told
    )
    table = table_of(*drawn(1, 400))
    worse = table["predicted"].where(table.index >= 100, "c003")
    numbers = evaluate(table.assign(plain_predicted=worse))["test"]
    gain = paired_test(table.assign(predicted=worse), table)
    assert {key: gain[key] for key in numbers["tta_gain"]} == numbers["tta_gain"]
    sentences = explain(numbers)
    assert any("augmentation (TTA) changes accuracy by +" in line and "more than noise" in line for line in sentences)


def test_bins_take_their_upper_ends() -> None:
    assert assign_bins(np.array([0.0, 1 / 15, 0.1, 14 / 15, 0.94, 1.0])).tolist() == [0, 0, 1, 13, 14, 14]
