"""Metrics that a recipe names: equal to scikit-learn's, select epochs, have honest intervals, and order experiments."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import leave_out_pages
from scipy.special import expit, softmax
from sklearn import metrics as sk

import baseline
from baseline import Recipe, Stage, evaluate, load_images, make_baseline
from baseline.cli.printing import comparison_table, folds_table, ladder_table, result_table, runs_table, seeds_table
from baseline.data.labels import label_matrix
from baseline.data.sources.sample_submission import propose_metric
from baseline.errors import BaselineError, DataError, RecipeError
from baseline.evaluation.details.named_metric import metric_interval
from baseline.evaluation.metric_test import metric_test
from baseline.experiments.compare import compare_runs, list_runs
from baseline.experiments.ladder import run_ladder
from baseline.experiments.repeats import run_folds, run_seeds
from baseline.metrics.predictions import Predictions
from baseline.metrics.registry import METRICS, check_metric, find_metric
from baseline.report.headline import headline_view
from baseline.training.selection import SelectionMetric
from baseline.training.state import epoch_score

NAMES = [metric.name.replace("_k", "_2") if metric.name in ("top_k", "map_at_k") else metric.name for metric in METRICS]
SINGLE_ONLY = {"top_2", "quadratic_kappa"}


def simulate(seed: int, images: int, classes: int = 4, *, multilabel: bool = False) -> Predictions:
    """Return probabilities and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, classes)) * 1.5
    if multilabel:
        probabilities = expit(logits - 1)
        return Predictions(probabilities > rng.random((images, classes)), probabilities >= 0.5, probabilities)
    probabilities = softmax(logits, axis=1)
    truth = (probabilities.cumsum(1) > rng.random((images, 1))).argmax(1)
    return Predictions(truth, probabilities.argmax(1), probabilities)


def average_of_precisions(truth: np.ndarray, probabilities: np.ndarray, k: int) -> float:
    """MAP@K as competitions define it, image by image."""
    scores = []
    for labels, row in zip(truth, probabilities, strict=True):
        hits, total = 0, 0.0
        for rank, index in enumerate(np.argsort(-row, kind="stable")[:k], 1):
            if labels[index]:
                hits += 1
                total += hits / rank
        scores.append(total / max(1, min(k, labels.sum())))
    return float(np.mean(scores))


def independent(name: str, case: Predictions) -> float:
    """Return a metric by scikit-learn, or by a loop where it has none."""
    truth, predicted, p = case.truth, case.predicted, case.probabilities
    classes = p.shape[1]
    flags = truth if case.multilabel else truth[:, None] == np.arange(classes)
    mixed = [at for at in range(classes) if 0 < flags[:, at].sum() < len(flags)]
    seen = [at for at in range(classes) if flags[:, at].any()]
    used = [
        at
        for at in range(classes)
        if flags[:, at].any() or (predicted[:, at] if case.multilabel else predicted == at).any()
    ]
    if name in ("macro_f1", "micro_f1"):
        kind = name.removesuffix("_f1")
        return float(
            sk.f1_score(truth, predicted, average=kind, labels=used if kind == "macro" else None, zero_division=0)
        )
    simple: dict[str, Any] = {
        "accuracy": lambda: sk.accuracy_score(truth, predicted),
        "balanced_accuracy": lambda: sk.recall_score(truth, predicted, average="macro", labels=seen),
        "roc_auc": lambda: np.mean([sk.roc_auc_score(flags[:, at], p[:, at]) for at in mixed]),
        "average_precision": lambda: np.mean([sk.average_precision_score(flags[:, at], p[:, at]) for at in seen]),
        "quadratic_kappa": lambda: sk.cohen_kappa_score(truth, predicted, weights="quadratic", labels=range(classes)),
        "map_at_2": lambda: average_of_precisions(flags, p, 2),
        "top_2": lambda: np.mean((np.argsort(-p, axis=1, kind="stable")[:, :2] == truth[:, None]).any(1)),
        "log_loss": lambda: (
            np.mean([sk.log_loss(flags[:, at], p[:, at], labels=[0, 1]) for at in range(classes)])
            if case.multilabel
            else sk.log_loss(truth, p, labels=range(classes))
        ),
        "brier": lambda: ((p - flags) ** 2).mean() if case.multilabel else ((p - flags) ** 2).sum(1).mean(),
    }  # fmt: skip
    return float(simple[name]())


@pytest.fixture(scope="module")
def runs(images: Path, body: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, baseline.Baseline]:
    """Three tiny runs: two classes, five grades, and several labels per image, each with a metric of its own."""
    folder = tmp_path_factory.mktemp("named")
    paths = [path for name in ("ants", "bees") for path in sorted((images / name).iterdir())]
    tables = {
        "two classes": [path.parent.name for path in paths],
        "grades": [str(number % 5) for number in range(len(paths))],
        "several labels": [f"{path.parent.name}{';early' * (int(path.stem) % 3 < 2)}" for path in paths],
    }
    named = {"two classes": "roc_auc", "grades": "quadratic_kappa", "several labels": "average_precision"}
    recipe = Recipe(stages=(Stage("head", 2, 1e-2, augment=False),)).changed(
        image_size=32, audit="none", cache_gb=0, valid_fraction=0.3, test_fraction=0.4, **body
    )
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pages(patch)
        return {
            case: make_baseline(
                pd.DataFrame({"path": paths, "label": labels}), recipe.changed(metric=named[case]),
                out=folder / case.replace(" ", "-"), progress=baseline.Progress(),
            )
            for case, labels in tables.items()
        }  # fmt: skip


def predictions_of(table: pd.DataFrame, *, multilabel: bool) -> Predictions:
    names = [name[2:] for name in table if name.startswith("p_")]
    columns = [table["label"], table["predicted"]]
    pair = [label_matrix(c, names) if multilabel else c.map(names.index).to_numpy() for c in columns]
    return Predictions(*pair, table[[f"p_{name}" for name in names]].to_numpy())


# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["two classes", "grades", "several labels"])
def test_metrics_of_real_runs_equal_scikit_learns(case: str, name: str, runs: dict[str, baseline.Baseline]) -> None:
    multilabel, table = case == "several labels", runs[case].predictions
    if name in SINGLE_ONLY and multilabel:
        with pytest.raises(RecipeError, match="needs one label per image"):
            check_metric(name, ["a", "b", "c"], multilabel=True)
        return
    result = evaluate(table, "multilabel" if multilabel else "single", name)
    assert set(result) == {"valid", "test"}
    for split, numbers in result.items():
        rows = table[table["split"] == split]
        expected = independent(name, predictions_of(rows, multilabel=multilabel))
        value, (low, high) = numbers["tta"][name], numbers["tta"]["intervals"][name]
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert low - 1e-9 <= value <= high + 1e-9
        if not find_metric(name).probabilities:
            assert name in numbers["plain"]


def made_table(kind: str, rng: np.random.Generator, *, multilabel: bool) -> Predictions:
    """Return a small random table of a kind that metrics easily get wrong."""
    images, classes = int(rng.choice([1, 2, 3, 10, 80])), int(rng.choice([3, 5, 12]))
    truth = rng.integers(0, classes - 1, images)  # no image of the last class
    truth = truth * 0 if kind == "one class" else truth
    flags = rng.random((images, classes)) < 0.3 if multilabel else truth[:, None] == np.arange(classes)
    if multilabel and kind == "one class":
        flags = truth[:, None] == np.arange(classes)
    p = rng.random((images, classes))
    if kind == "ties":
        p = rng.integers(1, 4, (images, classes)) / 4
    elif kind == "equal":
        p = np.full((images, classes), 0.5)
    elif kind == "certain":
        p = np.eye(classes)[rng.integers(0, classes, images)]
    elif kind == "perfect":
        p = flags.astype(float)
    p = p if multilabel else p / p.sum(1, keepdims=True)
    return Predictions(flags if multilabel else truth, p >= 0.5 if multilabel else p.argmax(1), p)


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value", "ignore:.*single label was found")
@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("kind", ["random", "one class", "ties", "equal", "certain", "perfect"])
@pytest.mark.parametrize("name", NAMES)
def test_made_tables_are_measured_as_scikit_learn_does(name: str, kind: str, multilabel: bool) -> None:
    if name in SINGLE_ONLY and multilabel:
        return
    rng = np.random.default_rng(0)
    for _ in range(20):
        case = made_table(kind, rng, multilabel=multilabel)
        expected = independent(name, case)
        assert find_metric(name).value(case) == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_probability_of_0_of_the_label_counts_as_in_scikit_learn(multilabel: bool) -> None:
    p = np.array([[0.0, 1.0], [1.0, 0.0], [0.25, 0.75], [0.5, 0.5]])
    truth = p < 0.6 if multilabel else np.array([0, 0, 1, 1])
    case = Predictions(truth, p >= 0.5 if multilabel else p.argmax(1), p)
    for name in ("log_loss", "brier"):
        assert find_metric(name).value(case) == pytest.approx(independent(name, case), rel=1e-9)


def test_numbers_after_a_hyphen_are_grades() -> None:
    assert "grade-0 < grade-1 < grade-10" in check_metric(
        "quadratic_kappa", ["grade-0", "grade-1", "grade-10"], multilabel=False
    )
    assert "-2 < -1 < 3" in check_metric("quadratic_kappa", ["-2", "-1", "3"], multilabel=False)


def test_the_metric_of_a_run_is_its_headline(runs: dict[str, baseline.Baseline]) -> None:
    for done, title in zip(runs.values(), ("ROC AUC", "quadratic kappa", "average precision"), strict=True):
        name = done.recipe.evaluation.metric
        manifest = json.loads((done.folder / "manifest.json").read_text())
        saved = manifest["metrics"]["test"][headline_view(manifest)]
        low, high = saved["intervals"][name]
        text = f"{saved[name]:.4f} (95% confidence interval {low:.4f} to {high:.4f})"
        with_tta = " with TTA" if headline_view(manifest) == "tta" else ""
        assert f"test {title}{with_tta}: {text}" in str(result_table(done).renderables[0])  # type: ignore[attr-defined]
        card = (done.folder / "model" / "README.md").read_text()
        assert (
            f"{title[0].upper()}{title[1:]} on " in card and f"**{saved[name]:.4f}**, 95% confidence interval" in card
        )
        assert f"valid_{name}" in done.history.epochs
    plain = [name for name in runs["two classes"].predictions if name.startswith("plain_p_")]
    assert plain == ["plain_p_ants", "plain_p_bees"]
    assert not [name for name in runs["grades"].predictions if name.startswith("plain_p_")]


def test_the_report_shows_the_metric(runs: dict[str, baseline.Baseline]) -> None:
    from baseline.report.page import write_report

    done = runs["two classes"]
    page = write_report(done.folder).read_text()
    value = done.metrics["test"][headline_view(done.manifest)]["roc_auc"]
    assert f'<p class="number">{value:.4f}</p>' in page and "ROC AUC on the test split" in page
    assert f"<title>ROC AUC {value:.4f} on test" in page


def test_a_run_without_a_named_metric_has_no_other_columns(done: baseline.Baseline) -> None:
    assert not [name for name in done.predictions if name.startswith("plain_p_")]
    assert evaluate(done.predictions) == evaluate(done.predictions, "single", "auto")


# ---- selection ------------------------------------------------------------------------------------------------------


def fed(name: str, case: Predictions) -> SelectionMetric:
    """Return the selection's state after an epoch with these predictions, in two batches."""
    logits = np.log(case.probabilities) - (np.log1p(-case.probabilities) if case.multilabel else 0)
    selection = SelectionMetric(name, logits.shape[1], multilabel=case.multilabel)
    for rows in np.array_split(np.arange(len(case.truth)), 2):
        selection.add(torch.from_numpy(logits[rows]), torch.from_numpy(case.truth[rows]).long(), loss=1.0)
    return selection


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_each_metric_can_pick_another_epoch_than_accuracy(name: str, multilabel: bool) -> None:
    same = name == "accuracy" or (name == "micro_f1" and not multilabel)  # the same number by definition
    if same or (name in SINGLE_ONLY and multilabel):
        return
    sign = 1 if find_metric(name).higher_is_better else -1
    for seed in range(200):
        truth, rng = simulate(seed, 40, multilabel=multilabel), np.random.default_rng(1000 + seed)
        p = (0.5 * truth.probabilities + 0.5 * softmax(rng.normal(size=(40, 4)) * 2, axis=1) for _ in range(2))
        epochs = [Predictions(truth.truth, q >= 0.5 if multilabel else q.argmax(1), q) for q in p]
        values, accuracies = ([independent(metric, epoch) for epoch in epochs] for metric in (name, "accuracy"))
        if sign * (values[1] - values[0]) * (accuracies[1] - accuracies[0]) < 0:
            break
    else:
        pytest.fail("the metric always agrees with accuracy")
    best = {}
    for metric, expected in ((name, values), ("accuracy", accuracies)):
        states = [fed(metric, epoch) for epoch in epochs]
        assert [state.value() for state in states] == pytest.approx(expected, rel=1e-6)
        best[metric] = int(np.argmax([epoch_score(state.score(state.value()), 1.0)[0] for state in states]))
    assert best[name] == int(sign * values[1] > sign * values[0]) == 1 - best["accuracy"]


def test_an_undefined_metric_leaves_the_choice_to_the_loss() -> None:
    selection = SelectionMetric("roc_auc", 2, multilabel=False)
    selection.add(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), loss=0.5)
    assert np.isnan(selection.value()) and selection.text(selection.value()) == "undefined"
    worse, better = (epoch_score(selection.score(selection.value()), loss) for loss in (0.7, 0.5))
    assert better > worse


def test_a_split_of_one_class_leaves_metrics_undefined(runs: dict[str, baseline.Baseline]) -> None:
    table = runs["two classes"].predictions
    numbers = evaluate(table[table["label"] == "ants"], "single", "roc_auc")["test"]["tta"]
    assert numbers["roc_auc"] is None and numbers["intervals"]["roc_auc"] is None and "roc_auc" in numbers["undefined"]
    json.dumps(numbers, allow_nan=False)


# ---- intervals ------------------------------------------------------------------------------------------------------


def coverage(name: str, draws: int, images: int, *, multilabel: bool) -> float:
    metric = find_metric(name)
    truth = metric.value(simulate(1, 200_000, multilabel=multilabel))
    ends = [metric_interval(metric.measure(simulate(1000 + at, images, multilabel=multilabel))) for at in range(draws)]
    return float(np.mean([low <= truth <= high for low, high in ends]))


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "quadratic_kappa", "map_at_2", "micro_f1"])
def test_intervals_cover_the_true_value(name: str) -> None:
    assert 0.89 <= coverage(name, 200, 150, multilabel=False) <= 0.99  # 95% and three standard errors


@pytest.mark.slow
@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_intervals_have_nominal_coverage(name: str, multilabel: bool) -> None:
    if not (name in SINGLE_ONLY and multilabel):
        assert 0.93 <= coverage(name, 2000, 250, multilabel=multilabel) <= 0.97


@pytest.mark.parametrize("name", NAMES)
def test_an_interval_for_ten_thousand_images_takes_less_than_two_seconds(name: str) -> None:
    case, metric = simulate(3, 10_000, 10), find_metric(name)
    metric_interval(metric.measure(simulate(3, 20)))  # imports happen on first use
    start = time.process_time()
    metric_interval(metric.measure(case))
    assert time.process_time() - start < 2


def test_groups_widen_every_interval() -> None:
    once = simulate(5, 60)
    ten = Predictions(*(np.repeat(part, 10, axis=0) for part in (once.truth, once.predicted, once.probabilities)))
    for name in NAMES:
        metric = find_metric(name)
        alone, images, groups = (
            np.diff(metric_interval(metric.measure(case), codes) or (0, 0))[0]
            for case, codes in ((once, None), (ten, None), (ten, np.repeat(np.arange(60), 10)))
        )
        assert images < 0.5 * groups and groups == pytest.approx(alone, rel=0.2), name


def test_a_perfect_score_has_an_interval() -> None:
    p = np.tile([[0.9, 0.1], [0.2, 0.8]], (10, 1))
    case = Predictions(np.tile([0, 1], 10), p.argmax(1), p)
    for name in ("accuracy", "roc_auc", "average_precision", "macro_f1", "quadratic_kappa"):
        assert metric_interval(find_metric(name).measure(case)) == pytest.approx((0.839, 1), abs=1e-3)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "multilabel", "message"),
    [
        ("quadratic_kappa", ["mild", "severe"], False, "needs classes in an order.*'mild', 'severe'"),
        ("quadratic_kappa", ["level 10", "level 9"], False, "needs classes in an order"),
        ("quadratic_kappa", ["0", "1"], True, "needs one label per image"),
        ("top_3", ["a", "b", "c", "d"], True, "needs one label per image"),
        ("top_2", ["a", "b"], False, "needs more than 2 classes, and there are 2"),
        ("map_at_5", ["a", "b"], False, "needs more than 5 classes"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused_in_one_line(
    name: str, classes: list[str], multilabel: bool, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        check_metric(name, classes, multilabel=multilabel)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["f2", "top_k", "map_at_k", "top_0", "top_", "", "roc_auc_2", "top_5\n", "accuracy_1"])
def test_unknown_metrics_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(RecipeError, match=r"metric is .*, needed: auto or one of accuracy, .*top_K") as caught:
        Recipe().changed(metric=name)
    assert "\n" not in str(caught.value)


def test_a_metric_is_checked_before_anything_is_trained(images: Path, tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="needs more than 5 classes, and there are 2"):
        make_baseline(images, metric="top_5", out=tmp_path / "run", progress=baseline.Progress())
    assert not (tmp_path / "run").exists()
    table = pd.DataFrame({"split": ["test"], "label": ["a"], "predicted": ["a"], "loss": [0.1]})
    with pytest.raises(DataError, match="no columns p_CLASS, which roc_auc needs"):
        evaluate(table, "single", "roc_auc")


# ---- experiments ----------------------------------------------------------------------------------------------------


def test_ladder_and_comparison_follow_the_metric(images: Path, small: Recipe, tmp_path: Path) -> None:
    recipe = small.changed(metric="log_loss", audit="none", test_fraction=0.4)
    ladder = run_ladder(
        images, recipe, variants=["majority", "neighbors", "logistic"], out=tmp_path / "ladder",
        progress=baseline.Progress(),
    )  # fmt: skip
    table = ladder.table.set_index("variant")
    for variant, row in table.iterrows():
        rows = pd.read_csv(Path(row["run"]) / "predictions.csv").query("split == 'test'")
        assert row["log_loss"] == pytest.approx(rows["plain_loss"].mean()) and row["log_loss_low"] <= row["log_loss"]
        if variant != "majority":
            assert row["difference"] == pytest.approx(row["log_loss"] - table.loc[row["against"], "log_loss"])
    assert "log loss" in ladder.sentences[0] and ladder.metric and ladder.metric.name == "log_loss"
    assert ladder_table(ladder)
    assert "log loss of each variant" in (tmp_path / "ladder" / "ladder.html").read_text()
    folders = [Path(table.loc[name, "run"]) for name in ("majority", "logistic")]
    comparison = compare_runs(folders)
    first, second = comparison.table["log_loss"]
    assert comparison.table["difference"].iloc[1] == pytest.approx(second - first)
    best = folders[int(second < first)]
    assert f"By log loss, best first: {best} " in comparison.sentences[-1]
    assert comparison_table(comparison)


def test_runs_with_different_metrics_are_compared_by_accuracy(
    runs: dict[str, baseline.Baseline], tmp_path: Path
) -> None:
    done = runs["two classes"]
    other = tmp_path / "other"
    other.mkdir()
    manifest = json.loads((done.folder / "manifest.json").read_text())
    manifest["recipe"]["evaluation"]["metric"] = "auto"
    (other / "manifest.json").write_text(json.dumps(manifest))
    (other / "predictions.csv").write_text((done.folder / "predictions.csv").read_text())
    comparison = compare_runs([done.folder, other])
    assert comparison.metric is None
    assert "different metrics (roc_auc, auto), so they are compared by accuracy" in comparison.sentences[0]


def test_seeds_and_folds_have_the_spread_of_the_metric(
    images: Path, small: Recipe, tmp_path: Path, no_page: None
) -> None:
    recipe = small.changed(metric="roc_auc", audit="none", stages=(Stage("head", 1, 1e-2, augment=False),))
    seeds = run_seeds(2, images, recipe, out=tmp_path / "seeds", progress=baseline.Progress())
    values = [run["roc_auc"] for run in seeds.runs]
    assert seeds.metric and seeds.metric["mean"] == pytest.approx(np.mean(values)) and seeds.metric["name"] == "roc_auc"
    assert "test ROC AUC of 2 seeds: mean" in str(seeds_table(seeds).renderables[0])  # type: ignore[attr-defined]
    listed = list_runs(tmp_path / "seeds")
    assert listed["headline"].str.startswith("ROC AUC 0.").all() and runs_table(listed)
    folds = run_folds(images, recipe, split="kfold:2", out=tmp_path / "folds", progress=baseline.Progress())
    oof = pd.read_csv(tmp_path / "folds" / "oof.csv")
    assert folds.metrics["oof"]["tta"]["roc_auc"] == pytest.approx(
        sk.roc_auc_score(oof["label"] == "bees", oof["p_bees"])
    )
    assert "out-of-fold ROC AUC" in str(folds_table(folds).renderables[0])  # type: ignore[attr-defined]


def test_the_learning_curve_measures_the_metric(images: Path, small: Recipe, tmp_path: Path) -> None:
    curve = baseline.run_learning_curve(
        images, small.changed(metric="roc_auc", audit="none"), sizes=[4, 6, 8], seeds=1, variants=["logistic"],
        out=tmp_path / "curve", progress=baseline.Progress(),
    )  # fmt: skip
    assert curve.table["roc_auc"].between(0, 1).all() and any("ROC AUC" in line for line in curve.sentences)


SLOW_METRICS = [pytest.param(name, marks=pytest.mark.slow) for name in ("average_precision", "macro_f1", "log_loss")]


@pytest.mark.parametrize("name", ["roc_auc", *SLOW_METRICS])
def test_the_paired_test_has_its_nominal_false_positive_rate(name: str) -> None:
    beyond = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(200, 3)) * 1.5
        truth = (softmax(logits, axis=1).cumsum(1) > rng.random((200, 1))).argmax(1)
        one, other = (table_of(softmax(logits + rng.normal(size=(200, 3)), axis=1), truth) for _ in range(2))
        beyond += metric_test(one, other, find_metric(name), "single")["beyond_noise"]
    assert beyond / 150 <= 0.1


def table_of(probabilities: np.ndarray, truth: np.ndarray) -> pd.DataFrame:
    names = np.array(list("abc"))
    columns = {f"p_{name}": probabilities[:, at] for at, name in enumerate(names)}
    paths = [f"{at}.jpg" for at in range(len(truth))]
    return pd.DataFrame({"path": paths, "label": names[truth], "predicted": names[probabilities.argmax(1)], **columns})


# ---- sample submissions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "classes", "metric"),
    [
        ("id,ants,bees\n1,0.5,0.5\n", ["ants", "bees"], "log_loss"),
        ("id,label\n1,0.5\n", ["ants", "bees"], "roc_auc"),
        ("id,label\n1,ants\n", ["ants", "bees"], "accuracy"),
        ("id,label\n1,0\n", ["ants", "bees"], "accuracy"),
        ("id,whale\n1,a b c\n2,b a d\n", list("abcdef"), "map_at_3"),
        ("id,label\n1,new york\n", ["new york", "new", "york"], "accuracy"),
        ("id,grade\n1,0\n", ["0", "1", "2"], "accuracy"),
        ("id,x,y\n1,0.5,0.5\n", ["ants", "bees", "wasps"], ""),
        ("id,label\n1,0.5\n", ["ants", "bees", "wasps"], ""),
        ("id,label\n1,\n", ["ants", "bees"], ""),
    ],
)
def test_a_sample_submission_suggests_a_metric(sample: str, classes: list[str], metric: str, tmp_path: Path) -> None:
    (tmp_path / "sample_submission.csv").write_text(sample)
    line = propose_metric(tmp_path, classes, multilabel=False)
    assert f"--metric {metric} selects" in line if metric else not line
    assert "\n" not in line and ("quadratic_kappa" in line) == ("grade" in sample)
    assert not propose_metric(tmp_path / "nothing", classes, multilabel=False)
    assert bool(propose_metric(tmp_path, classes, multilabel=True)) == (metric == "log_loss")  # others fit one label


def test_a_suggested_metric_is_said_and_not_applied(images: Path, tmp_path: Path) -> None:
    rows = [f"{path},{path.parent.name}" for path in sorted(images.rglob("*.jpg"))]
    (tmp_path / "train.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "sample_submission.csv").write_text("id,label\n1,0.5\n")
    lines: list[str] = []
    progress = baseline.Progress()
    progress.log = lines.append  # type: ignore[method-assign, assignment]
    recipe, _ = load_images(tmp_path / "train.csv", progress=progress)
    assert recipe.evaluation.metric == "auto"
    assert [line for line in lines if line.startswith("metric: sample_submission.csv has one column of probabilities")]
    lines.clear()
    load_images(tmp_path / "train.csv", progress=progress, metric="log_loss")
    assert not [line for line in lines if "sample_submission" in line]
