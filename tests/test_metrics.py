"""Metrics equal scikit-learn's, intervals have their nominal coverage, and invalid tables are rejected."""

from __future__ import annotations

import inspect
import json
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit, softmax
from scipy.stats import binom, binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

import baseline
import baseline.data.sources.tables
from baseline import calibrate, evaluate, paired_test
from baseline.errors import DataError
from baseline.evaluation.bootstrap import bootstrap_sums, percentile_interval
from baseline.evaluation.calibration import assign_bins, calibration_report, fit_temperature
from baseline.evaluation.details.reliability import ece_interval
from baseline.evaluation.details.summary import BootstrapSums
from baseline.evaluation.explain import explain
from baseline.evaluation.label_errors import flag_labels, suspect_labels
from baseline.evaluation.significance import binomial_tail, holm_correction, paired_statistics, tango_interval
from baseline.evaluation.thresholds import choose_thresholds
from baseline.metrics.predictions import Predictions
from baseline.metrics.probability.ranking import one_vs_rest_metrics


def make_table(probabilities: np.ndarray, truth: np.ndarray, split: str = "test", **more: Any) -> pd.DataFrame:
    """Return a prediction table whose plain predictions equal those with TTA."""
    images, count = probabilities.shape
    names = np.array([f"c{at:03}" for at in range(count)], dtype=object)
    predicted = names[probabilities.argmax(1)]
    loss = -np.log(probabilities[np.arange(images), truth])
    columns = {"path": [f"{split}/{at}.jpg" for at in range(images)], "label": names[truth], "split": split}
    predictions = {"predicted": predicted, "confidence": probabilities.max(1), "loss": loss}
    plain = {f"plain_{key}": value for key, value in predictions.items()}
    probability_columns = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in names])
    return pd.concat([pd.DataFrame({**columns, **predictions, **plain, **more}), probability_columns], axis=1)


def simulate(seed: int, images: int, classes: int = 4, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and labels drawn from them; `sharpness` then scales the logits: above 1, overconfident."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, classes)) * 1.5
    truth = (softmax(logits, axis=1).cumsum(1) > rng.random((images, 1))).argmax(1)
    return softmax(logits * sharpness, axis=1), truth


def probabilities_of(table: pd.DataFrame) -> np.ndarray:
    return table[[name for name in table if name.startswith("p_")]].to_numpy()


def brier_score(truth: Any, probabilities: np.ndarray, names: Any) -> float:
    """Return the Brier score by scikit-learn, which knows several classes from 1.7 on, or by its definition."""
    if "labels" in inspect.signature(sk.brier_score_loss).parameters:
        return float(sk.brier_score_loss(truth, probabilities, labels=names, scale_by_half=False))
    is_label = np.asarray(truth)[:, None] == np.asarray(names)
    return float(((probabilities - is_label) ** 2).sum(axis=1).mean())


@pytest.mark.parametrize("case", ["two classes", "many classes", "a real run"])
def test_metrics_equal_scikit_learns(case: str, done: baseline.Baseline) -> None:
    table = (
        done.predictions if case == "a real run" else make_table(*simulate(3, 500, 2 if case == "two classes" else 30))
    )
    rows = table[table["split"] == "test"]
    numbers = evaluate(table)["test"]
    result, probabilities = numbers["tta"], probabilities_of(rows)
    names = [name[2:] for name in rows if name.startswith("p_")]
    truth, predicted = rows["label"], rows["predicted"]
    flags = (truth.to_numpy()[:, None] == np.array(names)).astype(int)
    expected = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "error": sk.zero_one_loss(truth, predicted),
        "loss": sk.log_loss(truth, probabilities),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted),
        "macro_f1": sk.f1_score(truth, predicted, average="macro"),
        "micro_f1": sk.f1_score(truth, predicted, average="micro"),
        "weighted_f1": sk.f1_score(truth, predicted, average="weighted"),
        "kappa": sk.cohen_kappa_score(truth, predicted),
        "brier": brier_score(truth, probabilities, names),
        "roc_auc": np.mean([sk.roc_auc_score(flags[:, at], probabilities[:, at]) for at in range(len(names))]),
        "average_precision": sk.average_precision_score(flags, probabilities, average="macro"),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    k = min(5, len(names) - 1)
    assert result["top_k"]["k"] == k
    if len(names) > 2:
        assert result["top_k"]["share"] == pytest.approx(
            sk.top_k_accuracy_score(truth, probabilities, k=k, labels=names)
        )
    by_class = sk.classification_report(truth, predicted, output_dict=True, zero_division=0)
    for name in names:
        ours, theirs = result["classes"][name], by_class[name]
        assert ours["images"] == theirs["support"] and ours["f1"] == pytest.approx(theirs["f1-score"])
        assert (ours["precision"], ours["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
        low, high = ours["recall_interval"]
        assert low - 1e-9 <= ours["recall"] <= high + 1e-9
    matrix = sk.confusion_matrix(truth, predicted, labels=names)
    for pair in result["confused"]:
        assert pair["images"] == matrix[names.index(pair["label"]), names.index(pair["predicted"])]
        assert pair["share"] == pytest.approx(pair["images"] / (truth == pair["label"]).sum())
    counts = [pair["images"] for pair in result["confused"]]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) == 50 or sum(counts) == result["wrong"] == numbers["images"] - np.trace(matrix)
    accuracy, confidence = calibration_curve(truth == predicted, rows["confidence"], n_bins=15)
    bins = [row for row in result["reliability"] if row["images"]]
    assert [row["accuracy"] for row in bins] == pytest.approx(accuracy)
    assert [row["confidence"] for row in bins] == pytest.approx(confidence)
    weights = [row["images"] / len(rows) for row in bins]
    assert result["ece"] == pytest.approx(np.average(abs(accuracy - confidence), weights=weights))
    for name, (low, high) in result["intervals"].items():
        assert low <= result[name] <= high
    json.dumps(numbers, allow_nan=False)


def test_one_vs_rest_counts_ties_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    probabilities, truth = rng.integers(0, 4, (300, 3)) / 4, rng.integers(0, 3, 300)
    auc, precision = one_vs_rest_metrics(probabilities, truth)
    for at in range(3):
        assert auc[at] == pytest.approx(sk.roc_auc_score(truth == at, probabilities[:, at]))
        assert precision[at] == pytest.approx(sk.average_precision_score(truth == at, probabilities[:, at]))


def test_top_k_breaks_ties_as_the_prediction_does() -> None:
    probabilities = np.full((4, 8), 1 / 8)
    result = evaluate(make_table(probabilities, np.array([0, 4, 5, 7])))["test"]["tta"]
    assert result["top_k"]["share"] == 0.5 and result["accuracy"] == 0.25


def test_bootstrap_intervals_have_nominal_coverage() -> None:
    def simulated_sums(seed: int, images: int) -> BootstrapSums:
        probabilities, truth = simulate(seed, images, sharpness=1.2)
        return BootstrapSums(Predictions(truth, probabilities.argmax(1), probabilities))

    population = simulated_sums(1, 500_000)
    true = {name: value[0] for name, value in population.statistics(population.total()).items()}
    names = ("macro_f1", "balanced_accuracy", "loss", "brier", "ece")
    covered = dict.fromkeys(names, 0)
    for seed in range(1000):
        sums = simulated_sums(1000 + seed, 250)
        draws = bootstrap_sums(sums.features, draws=250)
        intervals = {name: percentile_interval(values) for name, values in sums.statistics(draws).items()}
        intervals["ece"] = ece_interval(sums.gaps(sums.total())[0], sums.gaps(draws))
        for name in names:
            low, high = intervals[name]
            covered[name] += low <= true[name] <= high
    for name, times in covered.items():
        assert 0.93 <= times / 1000 <= 0.97, (name, times)


def paired_result(only_one: int, only_other: int, images: int) -> dict[str, Any]:
    """Return the paired test of two models of which only the one, and only the other, gets so many images right."""
    return paired_statistics(np.arange(images) < only_one, np.arange(images) >= images - only_other, None)


def test_the_paired_interval_is_the_score_interval() -> None:
    """Compared with its definition: the differences that a score test with the constrained likelihood accepts."""
    from scipy.optimize import minimize_scalar

    def score(only_one: int, only_other: int, images: int, difference: float) -> float:
        def loss(share: float) -> float:
            shares = np.array([share, share + difference, 1 - 2 * share - difference])
            counts = np.array([only_one, only_other, images - only_one - only_other])
            return float(-(counts * np.log(np.maximum(shares, 1e-300))).sum())

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        share = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        variance = images * (2 * share + difference - difference**2)
        return float((only_other - only_one - images * difference) / np.sqrt(variance))

    for counts in ((2, 9, 30), (3, 1, 12), (40, 70, 1000), (1, 12, 100)):
        low, high = tango_interval(*counts)
        assert score(*counts, low) == pytest.approx(1.96, abs=2e-3), counts
        assert score(*counts, high) == pytest.approx(-1.96, abs=2e-3), counts


def test_the_paired_interval_excludes_zero_exactly_if_the_test_is_significant() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        (one, other, images) for images in (1, 2, 12, 30) for one in range(images) for other in range(images - one)
    ]
    pairs += [(*rng.multinomial(images, (0.03, 0.05, 0.92))[:2], images) for images in (100, 1000) for _ in range(100)]
    significant = 0
    for counts in pairs:
        result = paired_result(*counts)
        low, high = result["interval"]
        assert -1 <= low <= result["difference"] <= high <= 1, counts
        assert (low > 0 or high < 0) == result["beyond_noise"] == (result["p"] < 0.05), counts
        significant += result["beyond_noise"]
    assert 100 < significant < len(pairs) - 100


@pytest.mark.parametrize("case", [(0.05, 0.05), (0.0, 0.1), (0.1, 0.3)])
@pytest.mark.parametrize("images", [12, 30])
def test_the_paired_interval_covers_the_difference(images: int, case: tuple[float, float]) -> None:
    from scipy.stats import multinomial

    pairs = [(one, other) for one in range(images + 1) for other in range(images + 1 - one)]
    counts = np.array([(one, other, images - one - other) for one, other in pairs])
    chances = multinomial.pmf(counts, images, (*case, 1 - sum(case)))
    covered = 0.0
    for pair, chance in zip(pairs, chances, strict=True):
        low, high = paired_result(*pair, images)["interval"] if chance > 1e-7 else (2, 2)
        covered += chance * (low <= case[1] - case[0] <= high)
    assert covered >= 0.94


def test_a_correction_for_several_tests_extends_their_intervals() -> None:
    assert paired_result(2, 9, 30)["beyond_noise"]
    tests = holm_correction([paired_result(2, 9, 30), paired_result(2, 9, 30), paired_result(5, 30, 100)])
    for test in tests[:2]:
        assert not test["beyond_noise"] and test["interval"][0] == 0 < test["interval"][1]
    assert tests[2]["beyond_noise"] and tests[2]["interval"][0] > 0


def test_mcnemars_test_has_its_nominal_false_positive_rate() -> None:
    rng = np.random.default_rng(0)
    images = pd.DataFrame({"path": np.arange(300).astype(str), "split": "test", "label": "a"})
    significant = 0
    for _ in range(400):
        one, other = (images.assign(predicted=np.where(rng.random(300) < 0.8, "a", "b")) for _ in range(2))
        significant += paired_test(one, other)["beyond_noise"]
    assert 0.02 <= significant / 400 <= 0.08


def test_group_bootstrap_intervals_are_as_wide_as_those_of_the_groups() -> None:
    probabilities, truth = simulate(5, 60)
    once = make_table(probabilities, truth)
    ten = pd.concat([once.assign(path=once["path"] + str(at)) for at in range(10)], ignore_index=True)
    grouped = evaluate(ten.assign(group=list(once["path"]) * 10))["test"]
    alone, images = evaluate(once)["test"], evaluate(ten)["test"]
    assert grouped["groups"] == 60 and "groups" not in images

    def width(result: dict[str, Any], name: str) -> float:
        low, high = result["tta"]["intervals"][name]
        return high - low

    for name in ("macro_f1", "balanced_accuracy", "loss"):  # ten copies of an image carry no more information than one
        assert width(grouped, name) == pytest.approx(width(alone, name), rel=0.15)
        assert width(images, name) < 0.5 * width(grouped, name)
    low, high = grouped["tta"]["group_interval"]
    assert high - low > 2 * np.diff(images["tta"]["interval"])[0]
    assert any("60 groups" in line for line in explain(grouped))
    missing = [None, *list(once["path"])[1:]]
    assert evaluate(once.assign(group=missing))["test"]["groups"] == 60
    assert "groups" not in evaluate(once.assign(group=None))["test"]


def test_groups_are_copied_into_the_prediction_table(learn: Any, settled: tuple) -> None:
    table = settled[1].assign(group=[f"g{at // 2}" for at in range(len(settled[1]))])
    result = baseline.predict(learn, table, ())
    assert (
        dict(zip(result["path"], result["group"], strict=True)).items()
        <= dict(zip(table["path"], table["group"], strict=True)).items()
    )
    assert evaluate(result)["test"]["groups"] > 1
    assert "group" not in baseline.predict(learn, settled[1].assign(group=None), ())


def test_evaluate_is_deterministic() -> None:
    table = make_table(*simulate(7, 200))
    assert evaluate(table) == evaluate(table.copy())


def test_a_single_class_leaves_some_metrics_undefined() -> None:
    probabilities, _ = simulate(2, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers = evaluate(make_table(probabilities, np.zeros(50, dtype=int)))["test"]
    result = numbers["tta"]
    assert result["roc_auc"] is None and "all images are of 'c000'" in result["undefined"]["roc_auc"]
    assert result["classes"]["c001"]["recall"] is None and result["classes"]["c001"]["average_precision"] is None
    assert result["classes"]["c001"]["precision"] == 0 and result["balanced_accuracy"] == result["accuracy"]
    assert result["average_precision"] == 1 and result["ece"] > 0 and numbers["majority"]["accuracy"] == 1
    assert any("roc_auc is undefined" in line for line in explain(numbers))
    certain = make_table(np.tile([0.9, 0.1], (5, 1)), np.zeros(5, dtype=int))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(certain)["test"]["tta"]["kappa"] is None
    json.dumps(evaluate(certain), allow_nan=False)


def test_a_class_never_predicted_scores_0_without_a_warning() -> None:
    probabilities = np.tile([0.6, 0.4], (6, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(make_table(probabilities, np.array([0, 0, 0, 1, 1, 1])))["test"]["tta"]
    never = result["classes"]["c001"]
    assert (never["predicted"], never["precision"], never["recall"], never["f1"]) == (0, 0.0, 0.0, 0.0)
    assert result["kappa"] == 0 and result["macro_f1"] == pytest.approx(1 / 3) and not result["undefined"]


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
def test_an_invalid_table_is_rejected_in_one_line(change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        evaluate(change(make_table(*simulate(4, 20))))
    assert "\n" not in str(caught.value)


def test_multilabel_tables_are_validated() -> None:
    rows = {"path": list("ab"), "split": "test", "label": ["x;y", ""], "loss": 0.1, "plain_loss": 0.1}
    table = pd.DataFrame({**rows, "predicted": ["x", ""], "plain_predicted": ["x;y", "y"], "p_x": 0.9, "p_y": 0.2})
    assert evaluate(table, "multilabel")["test"]["tta"]["accuracy"] == 0.5
    with pytest.raises(DataError, match="no column 'p_z'"):
        evaluate(table.assign(label=["x;z", ""]), "multilabel")
    with pytest.raises(DataError, match="not between 0 and 1"):
        evaluate(table.assign(p_y=1.2), "multilabel")


def simulate_multilabel(seed: int, images: int, sharpness: float = 1.0, split: str = "test") -> pd.DataFrame:
    """Return a table with several labels per image, drawn from probabilities whose logits are then multiplied."""
    rng = np.random.default_rng(seed)
    names = np.array(["ants", "bees", "insect"], dtype=object)
    logits = rng.normal(size=(images, 3)) * 1.5
    flags, probabilities = expit(logits) > rng.random((images, 3)), expit(logits * sharpness)
    labels, predicted = ([";".join(names[row]) for row in rows] for rows in (flags, probabilities >= 0.5))
    loss = -np.log(np.where(flags, probabilities, 1 - probabilities)).mean(1)
    columns = {"path": [f"{split}/{at}.jpg" for at in range(images)], "split": split, "label": labels}
    predictions = {
        "predicted": predicted,
        "loss": loss,
        "confidence": np.maximum(probabilities, 1 - probabilities).min(1),
    }
    plain = {f"plain_{key}": value for key, value in predictions.items()}
    return pd.DataFrame(
        {**columns, **predictions, **plain, **{f"p_{n}": probabilities[:, at] for at, n in enumerate(names)}}
    )


def test_multilabel_metrics_equal_scikit_learns() -> None:
    table = simulate_multilabel(0, 400)
    result, names = evaluate(table, "multilabel")["test"]["tta"], ["ants", "bees", "insect"]
    truth, predicted = (baseline.data.labels.label_matrix(table[column], names) for column in ("label", "predicted"))
    probabilities = probabilities_of(table)
    expected = sk.precision_recall_fscore_support(truth, predicted)
    for name, values in zip(("precision", "recall", "f1", "images"), expected, strict=True):
        assert [result["classes"][label][name] for label in names] == pytest.approx(values)
    for name, score in (("roc_auc", sk.roc_auc_score), ("average_precision", sk.average_precision_score)):
        assert [result["classes"][label][name] for label in names] == pytest.approx(
            score(truth, probabilities, average=None)
        )
    assert result["mean_average_precision"] == pytest.approx(sk.average_precision_score(truth, probabilities))
    accuracy, confidence = calibration_curve(
        (truth == predicted).ravel(), np.maximum(probabilities, 1 - probabilities).ravel(), n_bins=15
    )
    bins = [row for row in result["reliability"] if row["images"]]
    assert [row["accuracy"] for row in bins] == pytest.approx(accuracy)
    assert [row["confidence"] for row in bins] == pytest.approx(confidence)
    assert sum(row["images"] for row in bins) == 1200
    assert result["ece"] == pytest.approx(
        np.average(abs(accuracy - confidence), weights=[row["images"] for row in bins])
    )


@pytest.mark.parametrize("sharpness", [0.5, 2.0])
def test_multilabel_classes_share_a_temperature(sharpness: float) -> None:
    table = pd.concat(
        [simulate_multilabel(1, 4000, sharpness, "valid"), simulate_multilabel(2, 4000, sharpness)], ignore_index=True
    )
    fitted = fit_temperature(table, "multilabel")
    assert fitted == pytest.approx(sharpness, rel=0.08)
    result = calibration_report(table, "multilabel")["test"]
    changed = calibrate(table, fitted, "multilabel")
    after = evaluate(changed, "multilabel")["test"]["tta"]
    assert result["ece"][1] == pytest.approx(after["ece"]) and result["loss"][1] == pytest.approx(after["loss"])
    assert result["ece"][1] < 0.4 * result["ece"][0] and result["loss"][1] < result["loss"][0]
    assert (changed["predicted"] == table["predicted"]).all()
    assert probabilities_of(changed) == pytest.approx(expit(logit(probabilities_of(table)) / fitted))


def test_memory_is_proportional_to_images_times_classes() -> None:
    table = make_table(*simulate(1, 2000, 500))
    evaluate(table.head(10))  # imports happen on first use
    tracemalloc.start()
    evaluate(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the table, two copies of it, and a fixed amount for draws; 500 x 500 x 2000 would be 500 MB even as bytes
    assert peak < 5 * 8 * table.shape[0] * table.shape[1] + 60_000_000


# ---- calibration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_the_temperature_recovers_the_factor_of_the_logits(sharpness: float) -> None:
    valid, test = (
        make_table(*simulate(seed, 8000, sharpness=sharpness), split=split)
        for seed, split in ((1, "valid"), (2, "test"))
    )
    table = pd.concat([test, valid], ignore_index=True)
    fitted = fit_temperature(table)
    assert fitted == pytest.approx(sharpness, rel=0.08)
    assert fitted == fit_temperature(valid)  # test images are not used
    result = calibration_report(table)
    ece, loss = result["test"]["ece"], result["test"]["loss"]
    assert ece[0] == pytest.approx(evaluate(table)["test"]["tta"]["ece"])
    assert ece[1] == pytest.approx(evaluate(calibrate(table, fitted))["test"]["tta"]["ece"])
    if sharpness != 1:
        assert ece[1] < 0.4 * ece[0] and loss[1] < loss[0] and "(lower)" in result["test"]["words"]
    changed = calibrate(table, fitted)
    assert (changed["predicted"] == table["predicted"]).all() and np.allclose(probabilities_of(changed).sum(1), 1)
    assert (changed["confidence"] == probabilities_of(changed).max(1)).all()


def test_few_images_move_the_temperature_little() -> None:
    right = make_table(np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([0, 1]), split="valid")
    assert 0.9 < fit_temperature(right) < 1  # none is misclassified
    table = make_table(*simulate(1, 8000, sharpness=2.0), split="valid")
    temperatures = {images: fit_temperature(table.head(images)) for images in (4, 40, 8000)}
    assert 1 < temperatures[4] < 1.4 < temperatures[40] < temperatures[8000] == pytest.approx(2, rel=0.08)


def test_a_probability_of_0_can_be_calibrated() -> None:
    table = make_table(*simulate(1, 3, 2), split="valid").assign(label=["c000", "c001", "c001"], p_c000=[1.0, 0, 1])
    table = table.assign(p_c001=1 - table["p_c000"])  # certain of a class that is wrong for the third image
    assert fit_temperature(table) == pytest.approx(20, rel=1e-3)
    changed = calibrate(table, 2.0)
    assert np.isfinite(changed["loss"]).all() and np.allclose(probabilities_of(changed).sum(1), 1)


def test_without_valid_images_or_probabilities_there_is_no_temperature() -> None:
    table = make_table(*simulate(1, 20))
    with pytest.raises(DataError, match="has no valid images"):
        fit_temperature(table)
    with pytest.raises(DataError, match="has no columns p_CLASS"):
        fit_temperature(pd.DataFrame({"split": ["valid"], "label": ["a"]}))


def test_the_temperature_is_saved_in_the_manifest_and_the_model(done: baseline.Baseline) -> None:
    result = done.manifest["calibration"]
    facts = json.loads((done.folder / "model" / "model.json").read_text())
    assert facts["temperature"] == result["temperature"] == 1
    assert result["test"]["words"] == "Confidences are not calibrated: 4 valid images are fewer than 50."
    more = pd.concat([done.predictions] * 13, ignore_index=True)  # 52 valid images
    assert calibration_report(more)["temperature"] == fit_temperature(more) != 1
    assert result["images"] == 4 and len(result["test"]["ece"]) == 2 and "4 valid images" in result["test"]["words"]
    numbers = done.metrics["test"]
    assert numbers["tta"]["ece"] == pytest.approx(result["test"]["ece"][0])
    assert json.loads((done.folder / "manifest.json").read_text())["metrics"]["test"]["tta"]["classes"].keys() == {
        "ants", "bees",
    }  # fmt: skip


# ---- labels that may be wrong ---------------------------------------------------------------------------------------


def test_swapped_labels_are_suspected() -> None:
    rng = np.random.default_rng(0)
    probabilities, truth = simulate(5, 2000, 5)
    probabilities = softmax(6 * np.log(probabilities), axis=1)  # a network that is rarely uncertain
    truth = probabilities.argmax(1)
    swapped = rng.random(2000) < 0.05
    table = make_table(probabilities, np.where(swapped, (truth + rng.integers(1, 5, 2000)) % 5, truth))
    result = suspect_labels(table)
    hits = swapped[result.index]
    assert hits.mean() > 0.95 and hits.sum() > 0.7 * swapped.sum()
    right = np.array([f"c{at:03}" for at in truth])[result.index]
    assert (result["suggested"][hits] == right[hits]).all()
    assert result["label_probability"].is_monotonic_increasing and "p_c000" not in result
    assert (
        result["label_probability"] == probabilities_of(table)[result.index, [int(n[1:]) for n in result["label"]]]
    ).all()


def test_no_label_is_suspected_where_all_predictions_are_right() -> None:
    probabilities, _ = simulate(5, 200, 3)
    assert suspect_labels(make_table(probabilities, probabilities.argmax(1))).empty
    with pytest.raises(DataError, match="no column 'label'"):
        suspect_labels(pd.DataFrame({"p_a": [1.0]}))


def test_flagged_labels_are_those_of_cleanlab() -> None:
    find_label_issues = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed").find_label_issues
    for seed in range(20):
        rng = np.random.default_rng(seed)
        probabilities, _ = simulate(seed, 400, 2 + seed % 5)
        labels = np.where(rng.random(400) < 0.1, rng.integers(0, probabilities.shape[1], 400), probabilities.argmax(1))
        flags = flag_labels(probabilities, labels)
        assert 0 < flags.sum() < 60
        assert (flags == find_label_issues(labels, probabilities, filter_by="low_self_confidence", n_jobs=1)).all()


def test_a_label_that_is_most_probable_is_never_flagged() -> None:
    probabilities = np.array([[0.4, 0.35, 0.25], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9], [0.9, 0.05, 0.05]] * 5)
    labels = np.array([0, 1, 2, 0] * 4 + [0, 0, 0, 0])
    assert np.flatnonzero(flag_labels(probabilities, labels)).tolist() == [17, 18]
    assert not flag_labels(np.empty((0, 3)), np.empty(0, int)).any()


# ---- two tables -----------------------------------------------------------------------------------------------------


def test_mcnemar_counts_only_discordant_images() -> None:
    images = pd.DataFrame({"path": np.arange(100).astype(str), "split": "test", "label": "a"})
    one = images.assign(predicted=["a"] * 70 + ["b"] * 30)
    other = images.assign(predicted=["b"] * 5 + ["a"] * 80 + ["b"] * 15)
    result = paired_test(one, other.sample(frac=1, random_state=0))
    assert (result["only_one"], result["only_other"], result["difference"]) == (5, 15, 0.1)
    assert result["p_exact"] == pytest.approx(binomtest(5, 20).pvalue) and result["p"] < result["p_exact"]
    assert result["interval"][0] > 0 and result["beyond_noise"]
    back = paired_test(other, one)
    assert back["difference"] == -0.1 and back["p"] == pytest.approx(result["p"])
    same = paired_test(one, one)
    assert (same["p"], same["p_exact"], same["beyond_noise"]) == (1.0, 1.0, False)
    assert same["interval"] == pytest.approx((-0.037, 0.037), abs=1e-3)  # z² / (n + z²)


@pytest.mark.parametrize(("fewer", "trials"), [(0, 0), (0, 1), (3, 6), (2, 9), (480, 1000), (9800, 20_000), (5, 3000)])
def test_the_exact_p_is_scipys(fewer: int, trials: int) -> None:
    assert 2 * binomial_tail(fewer, trials) == pytest.approx(2 * binom.cdf(fewer, trials, 0.5), rel=1e-10)


def test_with_groups_the_bootstrap_decides() -> None:
    images = pd.DataFrame({"path": np.arange(100).astype(str), "split": "test", "label": "a"})
    one = images.assign(predicted=["a"] * 70 + ["b"] * 30)
    other = images.assign(predicted=["a"] * 85 + ["b"] * 15)
    assert paired_test(one, other)["beyond_noise"]
    # all 15 gained images are of one group
    assert not paired_test(one.assign(group=np.arange(100) // 20), other)["beyond_noise"]


def test_tables_without_common_images_or_labels_are_rejected() -> None:
    table = make_table(*simulate(1, 20))
    with pytest.raises(DataError, match="share no image"):
        paired_test(table, table.assign(path="other/" + table["path"]))
    with pytest.raises(DataError, match="images are labeled differently"):
        paired_test(table, table.assign(label="c003"))
    with pytest.raises(DataError, match="occurs twice"):
        paired_test(table, pd.concat([table, table]))
    with pytest.raises(DataError, match="no column 'path'"):
        paired_test(table, table.drop(columns="path"))
    assert paired_test(table.assign(split="valid"), table.assign(split="valid"))["split"] == "valid"


def test_sentences_name_errors_majority_class_and_tta_gain(done: baseline.Baseline) -> None:
    numbers = done.metrics["test"]
    text = " ".join(explain(numbers))
    wrong = numbers["tta"]["wrong"]
    assert f"{wrong} of 10 predictions {'is' if wrong == 1 else 'are'} wrong: an error rate of {wrong / 10:.1%}" in text
    assert "most frequent class, would score 50.0%" in text
    table = make_table(*simulate(1, 400))
    worse = table["predicted"].where(table.index >= 100, "c003")
    numbers = evaluate(table.assign(plain_predicted=worse))["test"]
    gain = paired_test(table.assign(predicted=worse), table)
    assert {key: gain[key] for key in numbers["tta_gain"]} == numbers["tta_gain"]
    sentences = explain(numbers)
    assert any("augmentation (TTA) changes accuracy by +" in line and ": significant (p" in line for line in sentences)


def test_bins_include_their_upper_edges() -> None:
    assert assign_bins(np.array([0.0, 1 / 15, 0.1, 14 / 15, 0.94, 1.0])).tolist() == [0, 0, 1, 13, 14, 14]


def test_thresholds_per_class_are_the_best_of_all_by_the_metric() -> None:
    table = simulate_multilabel(3, 200, 0.3)
    names = ["ants", "bees", "insect"]
    truth, probabilities = baseline.data.labels.label_matrix(table["label"], names), probabilities_of(table)
    chosen = choose_thresholds(probabilities, truth)
    for threshold, values, labels in zip(chosen, probabilities.T, truth.T, strict=True):
        precision, recall, _ = sk.precision_recall_curve(labels, values)
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-9)).max()
        assert sk.f1_score(labels, values >= threshold) == pytest.approx(best)
    assert len(set(chosen)) == 3
    for metric, function in (("balanced_accuracy", sk.balanced_accuracy_score), ("accuracy", sk.accuracy_score)):
        for threshold, values, labels in zip(
            choose_thresholds(probabilities, truth, metric), probabilities.T, truth.T, strict=True
        ):
            best = max(function(labels, values >= cut) for cut in [*values, 1.0])
            assert function(labels, values >= threshold) == pytest.approx(best)
    rare = np.arange(40)[:, None] % 3 == 0
    assert choose_thresholds(np.where(rare, 0.3, 0.4), rare, "accuracy") == [0.7]  # predicting it nowhere is best
    few = np.zeros((200, 1), bool)
    few[:9] = True
    assert choose_thresholds(probabilities[:, :1], few) == choose_thresholds(probabilities[:, :1], ~few) == [0.5]
    equal = choose_thresholds(np.full((40, 1), 0.3), np.arange(40)[:, None] % 2 == 0)
    assert equal == [0.15]
