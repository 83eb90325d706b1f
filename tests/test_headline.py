"""The headline of a run: the same number with the same interval and the same words wherever it is shown."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console, RenderableType
from test_server import make_client

import baseline
from baseline import evaluate
from baseline.cli.printing import comparison_table, folds_table, runs_table, seeds_table
from baseline.experiments import repeats
from baseline.experiments.compare import compare_runs, list_runs
from baseline.experiments.compare_recipes import compare_recipes
from baseline.experiments.evaluate_models import evaluate_models
from baseline.experiments.repeats import FoldRuns, SeedRuns, run_folds
from baseline.experiments.series import RunSeries as Series
from baseline.experiments.series import accuracy_spread, metric_spread, summary_row
from baseline.report.headline import headline_sentence, named_headline
from baseline.report.model_card import write_card
from baseline.report.page import write_report
from baseline.runs.folder import read_manifest, read_predictions


@pytest.fixture
def run(done: baseline.Baseline, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done.folder, tmp_path / "run"))


def change(run: Path, edit: Any) -> dict[str, Any]:
    """Return the manifest of a run after `edit` changed it in place."""
    path = run / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    return manifest


def test_a_headline_without_tta_is_the_same_number_everywhere(run: Path) -> None:
    def leave_out_tta(manifest: dict[str, Any]) -> None:
        manifest["recipe"]["evaluation"]["tta"] = []
        for split in manifest["metrics"].values():
            for view in ("plain", "tta"):
                split[view] |= {"accuracy": 0.625, "interval": [0.51, 0.73]}

    manifest = change(run, leave_out_tta)
    assert headline_sentence(manifest) == "test accuracy: 62.50% (95% confidence interval 51.00% to 73.00%)"
    listed = list_runs(run).iloc[0]
    assert (listed["accuracy"], listed["low"], listed["high"]) == (0.625, 0.51, 0.73)
    card = write_card(run).read_text()
    title = next(line for line in card.splitlines() if line.startswith("Accuracy on "))
    assert "TTA" not in title and "**62" in card
    with make_client(run) as client:
        page = client.get("/").text
    assert "test accuracy: 62.50% (95% confidence interval 51.00% to 73.00%)" in page


def test_the_server_shows_the_metric_of_the_run(run: Path) -> None:
    def name_metric(manifest: dict[str, Any]) -> None:
        manifest["recipe"]["evaluation"]["metric"] = "roc_auc"
        for split in manifest["metrics"].values():
            for view in ("plain", "tta"):
                split[view] |= {"roc_auc": 0.75, "intervals": {"roc_auc": [0.5, 0.875]}}

    change(run, name_metric)
    with make_client(run) as client:
        assert "test ROC AUC with TTA: 0.7500 (95% confidence interval 0.5000 to 0.8750)" in client.get("/").text


@pytest.fixture
def several_labels(run: Path, done: baseline.Baseline) -> Path:
    """The run with two labels for some images."""
    table = done.predictions.copy()
    table["label"] = ["ants;bees" if n % 3 == 0 else label for n, label in enumerate(table["label"])]
    table["predicted"] = np.where(table["p_ants"] > table["p_ants"].median(), "ants", "ants;bees")
    table["plain_predicted"] = table["predicted"]
    table.to_csv(run / "predictions.csv", index=False)

    def edit(manifest: dict[str, Any]) -> None:
        manifest["recipe"]["data"]["task"] = "multilabel"
        manifest["metrics"] = evaluate(table, "multilabel")

    change(run, edit)
    return run


def test_several_labels_have_micro_f1_with_an_interval(several_labels: Path) -> None:
    manifest = json.loads((several_labels / "manifest.json").read_text())
    for view in ("plain", "tta"):
        headline = named_headline(manifest, "test", view)
        assert headline is not None and headline.metric.name == "micro_f1" and headline.interval is not None
        low, high = headline.interval
        assert low < manifest["metrics"]["test"][view]["micro_f1"] == headline.value < high
    text = str(named_headline(manifest, "test"))
    assert headline_sentence(manifest).startswith(f"test micro F1 with TTA: {text}; macro F1 ")
    assert "images whose labels are all correct" in headline_sentence(manifest)
    span = text.partition("(95% confidence interval ")[2].rstrip(")")
    assert span and f"95% confidence interval {span}" in write_report(several_labels).read_text()
    change(several_labels, lambda manifest: manifest)
    assert list_runs(several_labels)["headline"].iloc[0] == f"micro F1 {text.replace('95% confidence interval ', '')}"


def test_runs_of_several_labels_are_compared_by_micro_f1(several_labels: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(several_labels, tmp_path / "other"))
    table = pd.read_csv(other / "predictions.csv")
    table.assign(predicted=table["label"]).to_csv(other / "predictions.csv", index=False)
    comparison = compare_runs([several_labels, other])
    assert comparison.metric is not None and comparison.metric.name == "micro_f1"
    first = evaluate(table, "multilabel")["test"]["tta"]["micro_f1"]
    assert comparison.table["difference"].iloc[1] == pytest.approx(1 - first)


def shown(table: RenderableType) -> str:
    """Return what a command prints on a wide terminal."""
    console = Console(width=300)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def judged_run(done: baseline.Baseline, folder: Path, view: str, metric: str = "auto", seed: int = 0) -> Path:
    """A run whose predictions are all right: with TTA, and wrong without it (`"tta"`), or without TTA (`"plain"`)."""
    shutil.copytree(done.folder, folder)
    table = done.predictions.copy()
    for prefix, name in (("", "tta"), ("plain_", "plain")):
        ants = (table["label"] == "ants") == (view in (name, "plain"))
        table[f"{prefix}predicted"] = np.where(ants, "ants", "bees")
        table[f"{prefix}p_ants"], table[f"{prefix}p_bees"] = np.where(ants, 0.9, 0.1), np.where(ants, 0.1, 0.9)
    table.to_csv(folder / "predictions.csv", index=False)

    def edit(manifest: dict[str, Any]) -> None:
        manifest["recipe"]["evaluation"] |= {"metric": metric, "tta": ["flip"] if view == "tta" else []}
        manifest["recipe"]["seed"] = seed
        manifest["metrics"] = evaluate(table, "single", metric)

    file = folder / "model" / "model.json"
    views = change(folder, edit)["recipe"]["evaluation"]["tta"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "tta": views}))
    return folder


@pytest.mark.parametrize("metric", ["auto", "roc_auc"])
def test_compared_runs_have_their_headlines(done: baseline.Baseline, tmp_path: Path, metric: str) -> None:
    runs = [judged_run(done, tmp_path / view, view, metric) for view in ("tta", "plain")]
    comparison = compare_runs(runs)
    assert comparison.table["accuracy"].tolist() == [1.0, 1.0] and comparison.table["tta"].tolist() == [True, False]
    assert comparison.table["difference"].iloc[1] == 0
    if metric != "auto":
        assert comparison.table[metric].tolist() == [1.0, 1.0]
    cells = [row[1] for row in comparison.as_text().rows]
    assert cells[0] == f"{cells[1]} with TTA" and cells[1].endswith(" test")
    printed = shown(comparison_table(comparison))
    assert printed.count("test with TTA") == 1 and " 0.00%" not in printed
    listed = list_runs(tmp_path).set_index("run")["tta"]
    assert (listed[str(runs[0])], listed[str(runs[1])]) == (True, False)
    assert shown(runs_table(list_runs(tmp_path))).count("test with TTA") == 1


def test_an_ensemble_is_compared_with_the_headline_of_its_best_run(done: baseline.Baseline, tmp_path: Path) -> None:
    runs = [judged_run(done, tmp_path / view, view) for view in ("plain", "tta")]
    comparison = compare_runs(runs, averages=[runs])
    assert comparison.table["tta"].tolist() == [False, True, True]
    assert f"the best of these, {runs[0]}," in comparison.sentences[1]


@pytest.mark.parametrize("metric", ["auto", "roc_auc"])
def test_recipes_over_seeds_are_compared_by_headlines(done: baseline.Baseline, tmp_path: Path, metric: str) -> None:
    for recipe, views in (("a", ("plain", "tta")), ("b", ("plain", "plain"))):
        for seed, view in enumerate(views):
            judged_run(done, tmp_path / f"{recipe}-{seed}", view, metric, seed)
    comparison = compare_recipes([f"{tmp_path}/a-*", f"{tmp_path}/b-*"])
    assert comparison.table["mean"].tolist() == [1.0, 1.0] and comparison.table["tta"].tolist() == [1, 0]
    assert [row[1] for row in comparison.as_text().rows] == ["2, 1 with TTA", "2"]


@pytest.mark.parametrize("metric", ["auto", "roc_auc"])
def test_a_row_of_seeds_or_folds_is_the_headline_of_its_run(
    done: baseline.Baseline, tmp_path: Path, metric: str
) -> None:
    rows = []
    for view in ("tta", "plain"):
        folder = judged_run(done, tmp_path / view, view, metric)
        rows.append(summary_row(folder, read_manifest(folder), "test"))
    assert [row["accuracy"] for row in rows] == [1.0, 1.0] and [row["tta"] for row in rows] == [True, False]
    spread = metric_spread(rows, read_manifest(folder))
    assert spread is None if metric == "auto" else spread and spread["mean"] == 1.0
    runs = [{"seed": seed, **row} for seed, row in enumerate(rows)]
    result = SeedRuns(tmp_path, "test", runs, **accuracy_spread(runs), same_images=True, metric=spread)
    lines = shown(seeds_table(result)).splitlines()
    cells = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    assert [row[-5] for row in cells] == ["100.00% with TTA", "100.00%"]


@pytest.mark.parametrize("metric", ["auto", "roc_auc"])
@pytest.mark.parametrize("view", ["tta", "plain"])
def test_folds_say_which_view_their_numbers_have(
    done: baseline.Baseline, images: Path, tmp_path: Path, metric: str, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made(Series):  # type: ignore[misc, valid-type]
        def run(self, plans: Any, *, resume: bool) -> None:
            self.folders = [judged_run(done, self.folder / f"fold-{number}", view, metric) for number in range(2)]
            for number, folder in enumerate(self.folders):
                table = read_predictions(folder)
                valid = table["path"].where(table["split"] == "test", f"{number}" + table["path"])
                table.assign(path=valid).to_csv(folder / "predictions.csv", index=False)
            self.manifests = [read_manifest(folder) for folder in self.folders]

    monkeypatch.setattr(repeats, "RunSeries", Made)
    folds = run_folds(images, out=tmp_path / "folds", split="kfold:2", progress=baseline.Progress())
    words = " with TTA" if view == "tta" else ""
    printed = shown(folds_table(folds))
    assert f"out-of-fold accuracy{words} of 2 folds: 100.00% (" in printed
    if metric != "auto":
        assert f"out-of-fold ROC AUC{words}: 1.0000" in printed and f"of the ensemble{words}: " in printed
    assert f"test accuracy of the ensemble of folds{words}: " in printed
    assert printed.count("│ 100.00% with TTA ") == (2 if view == "tta" else 0)
    assert [(run["accuracy"], run["test"]) for run in folds.runs] == [(1.0, 1.0), (1.0, 1.0)]
    assert folds.against_best is not None and folds.against_best["difference"] == 0


def test_seeds_and_folds_say_what_logistic_regression_scores_beside_them(
    done: baseline.Baseline, tmp_path: Path
) -> None:
    manifest = read_manifest(judged_run(done, tmp_path / "run", "plain", "auto"))
    probes: list[Any] = [
        {"split": "test", "metric": "accuracy", "value": value, "seconds": 1.0} for value in (0.5, 0.9)
    ]
    rows = [summary_row(tmp_path, {**manifest, "probe": probe}, "test") for probe in probes]
    assert [row["probe"] for row in rows] == [
        {"split": "test", "metric": "accuracy", "value": 0.5}, {"split": "test", "metric": "accuracy", "value": 0.9},
    ]  # fmt: skip
    line = "logistic regression on features of the frozen body: mean test accuracy 70.00%"
    seeds = [{"seed": seed, **row} for seed, row in enumerate(rows)]
    result = SeedRuns(tmp_path, "test", seeds, **accuracy_spread(rows), same_images=True)
    assert line in shown(seeds_table(result))
    without = [*seeds[:1], {key: value for key, value in seeds[1].items() if key != "probe"}]
    assert "logistic" not in shown(seeds_table(dataclasses.replace(result, runs=without)))
    runs = [{"fold": fold, "images": 4, **row} for fold, row in enumerate(rows)]
    scores = {"accuracy": 0.75, "interval": (0.5, 0.9), "wrong": 2}
    oof: Any = {"images": 8, "plain": scores, "tta": scores}
    metrics, tta = {"oof": oof}, {"oof": False}
    folds = FoldRuns(tmp_path, "kfold:2", runs, **accuracy_spread(rows), metrics=metrics, tta=tta, against_best=None)
    assert line in shown(folds_table(folds))


def test_folds_say_that_some_of_them_use_tta(tmp_path: Path) -> None:
    scores = {"accuracy": 0.75, "interval": (0.5, 0.9), "wrong": 2}
    runs = [
        {"fold": number, "images": 4, "accuracy": 0.75, "plain": 0.75, "tta": number == 1, "seconds": 1.0, "folder": ""}
        for number in range(3)
    ]
    oof: Any = {"images": 8, "plain": scores, "tta": scores}
    folds = FoldRuns(
        tmp_path, "kfold:3", runs, **accuracy_spread(runs), metrics={"oof": oof}, tta={"oof": True}, against_best=None
    )
    printed = shown(folds_table(folds))
    assert "out-of-fold accuracy partly with TTA of 3 folds: 75.00%" in printed


@pytest.mark.parametrize("metric", ["auto", "roc_auc"])
def test_an_evaluation_says_which_number_of_the_run_it_compares(
    done: baseline.Baseline, images: Path, tmp_path: Path, metric: str
) -> None:
    runs = {view: judged_run(done, tmp_path / view, view, metric) for view in ("tta", "plain")}
    title = "accuracy" if metric == "auto" else "ROC AUC"
    right = "100.0%" if metric == "auto" else "1.000"
    wrong = "0.0%" if metric == "auto" else "0.000"
    for view, tta, number in (
        ("tta", True, f"{right} with TTA"), ("tta", False, wrong), ("plain", True, right), ("plain", False, right)
    ):  # fmt: skip
        result = evaluate_models([runs[view]], images, tta=tta, write=False, progress=baseline.Progress()).models[0]
        assert result.own is not None
        assert result.own.sentence.startswith(title) and f"against {number} on the " in result.own.sentence


def test_the_interval_over_groups_exists_without_tta_too(done: baseline.Baseline) -> None:
    table = done.predictions.assign(group=[f"g{number // 2}" for number in range(len(done.predictions))])
    table["plain_predicted"] = table["predicted"]
    scores = evaluate(table, "single")["test"]
    assert scores["plain"]["group_interval"] == pytest.approx(scores["tta"]["group_interval"])
