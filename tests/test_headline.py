"""The headline of a run: the same number with the same interval and the same words wherever it is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_server import make_client

import baseline
from baseline import evaluate
from baseline.experiments.compare import compare_runs, list_runs
from baseline.report.headline import headline_sentence, named_headline
from baseline.report.model_card import write_card
from baseline.report.page import write_report


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
    def spoil_tta(manifest: dict[str, Any]) -> None:
        for split in manifest["metrics"].values():
            split["plain"] |= {"accuracy": 0.625, "interval": [0.51, 0.73]}
            split["tta"] |= {"accuracy": 0.125, "interval": [0.05, 0.25]}

    manifest = change(run, spoil_tta)
    assert headline_sentence(manifest) == "test accuracy: 62.50% (95% confidence interval 51.00% to 73.00%)"
    listed = list_runs(run).iloc[0]
    assert (listed["accuracy"], listed["low"], listed["high"]) == (0.625, 0.51, 0.73)
    card = write_card(run).read_text()
    title = next(line for line in card.splitlines() if line.startswith("Accuracy on "))
    assert "TTA" not in title and "**62" in card and "predict with --no-tta to get this number" in card
    with make_client(run) as client:
        page = client.get("/").text
    assert "test accuracy: 62.50% (95% confidence interval 51.00% to 73.00%)" in page and "12.5%" not in page


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
    assert list_runs(several_labels)["headline"].iloc[0] == f"micro F1 {text}"


def test_runs_of_several_labels_are_compared_by_micro_f1(several_labels: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(several_labels, tmp_path / "other"))
    table = pd.read_csv(other / "predictions.csv")
    table.assign(predicted=table["label"]).to_csv(other / "predictions.csv", index=False)
    comparison = compare_runs([several_labels, other])
    assert comparison.metric is not None and comparison.metric.name == "micro_f1"
    first = evaluate(table, "multilabel")["test"]["tta"]["micro_f1"]
    assert comparison.table["difference"].iloc[1] == pytest.approx(1 - first)
