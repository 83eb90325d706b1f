"""Run folders, recipes and model folders that earlier versions wrote still load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from baseline import Stage, compare_runs, evaluate, load, load_recipe
from baseline.deploy.kaggle.submission import read_classes
from baseline.errors import OutputError
from baseline.experiments.compare import list_runs
from baseline.recipe.legacy import upgrade_recipe
from baseline.report.model_card import write_card
from baseline.runs.folder import FORMAT, read_manifest, read_predictions
from baseline.runs.manifest import recipe_from_manifest

HERE = Path(__file__).parent
OLD = HERE / "runs" / "format-1"


def test_a_manifest_of_format_1_is_read_in_todays_layout() -> None:
    raw, manifest = json.loads((OLD / "manifest.json").read_text()), read_manifest(OLD)
    assert raw["format"] == 1 and FORMAT == 2
    assert manifest["images"] == raw["photos"] and manifest["data"]["images"] == raw["data"]["photos"]
    for split, metrics in manifest["metrics"].items():
        assert metrics["images"] == raw["metrics"][split]["photos"]
        for way in ("plain", "tta"):
            assert metrics[way]["accuracy"] == raw["metrics"][split][way]["accuracy"]
        before = raw["metrics"][split]["tta"]
        assert metrics["tta_gain"]["images"] == raw["metrics"][split]["tta_gain"]["photos"]
        for table in ("reliability", "confused"):
            assert [row["images"] for row in metrics["tta"][table]] == [row["photos"] for row in before[table]]
        assert {name: row["images"] for name, row in metrics["tta"]["classes"].items()} == {
            name: row["photos"] for name, row in before["classes"].items()
        }

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    assert "photos" not in keys({name: value for name, value in manifest.items() if name != "asked"})


def test_its_recipe_has_the_same_values_under_todays_names() -> None:
    raw = json.loads((OLD / "manifest.json").read_text())["recipe"]
    recipe = load_recipe(OLD / "manifest.json")
    assert recipe == recipe_from_manifest(OLD, read_manifest(OLD))
    assert recipe.model.arch == raw["arch"] and recipe.model.image_size == raw["image_size"] == 32
    assert recipe.model.pretrained is (not raw["scratch"]) is False
    assert recipe.data.task == "single" and raw["labels"] == "one"
    assert recipe.training.class_balance == raw["balance"] == "weights"
    assert recipe.split.valid_fraction == raw["valid_share"] == 0.2 and recipe.options.loggers == ("csv",)
    assert recipe.stages == (Stage("all", 3, "find", batch_norm="train", steps=raw["stages"][0]["steps"]),)


def test_its_predictions_give_the_numbers_of_its_manifest() -> None:
    manifest = read_manifest(OLD)
    metrics = evaluate(read_predictions(OLD))
    for split, before in manifest["metrics"].items():
        assert metrics[split]["images"] == before["images"]
        assert metrics[split]["tta"]["accuracy"] == pytest.approx(before["tta"]["accuracy"])
        assert metrics[split]["tta"]["interval"] == pytest.approx(before["tta"]["interval"])


def test_its_model_predicts_as_when_it_was_saved(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "run")
    model = load(tmp_path / "run")
    assert model.check() < 1e-5  # type: ignore[union-attr]
    assert model.members[0].config["task"] == "single" and not model.multilabel
    predictions = model.predict([np.zeros((20, 30, 3), np.uint8)])
    assert set(predictions) >= {"predicted", "confidence", "p_ants", "p_bees"}


@pytest.mark.parametrize("version", [1, 2])
def test_labels_of_an_old_model_folder_is_its_task(tmp_path: Path, version: int) -> None:
    run = Path(shutil.copytree(OLD, tmp_path / "run"))
    file = run / "model" / "model.json"
    facts = json.loads(file.read_text())
    assert facts["format"] == 2 and facts["labels"] == "one"
    file.write_text(json.dumps(facts | {"format": version, "labels": "many"}))
    model = load(run)
    assert model.multilabel and model.members[0].config["task"] == "multilabel"
    assert model.predict([np.zeros((20, 30, 3), np.uint8)])["p_ants"].between(0, 1).all()
    assert read_classes(run) == (["ants", "bees"], True)
    (run / "model" / "README.md").unlink()
    assert "- multi-label\n" in write_card(run).read_text()
    file.write_text(json.dumps(facts | {"format": version, "labels": "three"}))
    with pytest.raises(OutputError, match="task is 'three', needed: single or multilabel"):
        load(run)


def test_it_is_listed_and_compared_with_others(tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(OLD, tmp_path / name)
    runs = list_runs(tmp_path)
    assert runs["state"].tolist() == ["finished", "finished"] and runs["arch"].unique().tolist() == [
        "test_efficientnet"
    ]
    table = compare_runs([tmp_path / "one", tmp_path / "two"]).table
    assert table["images"].notna().all() and table["difference"][1] == 0 and table["differs"][1] == ""


def test_the_recipe_of_an_unfinished_run_is_read() -> None:
    begun = json.loads((HERE / "runs" / "begun-1.json").read_text())
    recipe = recipe_from_manifest(OLD, begun)
    assert recipe.stages[0].epochs == 400 and recipe.model.arch == "test_efficientnet"
    with pytest.raises(OutputError, match="version"):
        recipe_from_manifest(OLD, {"recipe": {"imagesize": 3}})


def test_old_values_are_translated_wherever_they_stand() -> None:
    old = {
        "labels": "many", "images": "scans", "photos_per_class": 5, "log": ["csv"], "keep_if": "x", "compile": True,
        "stages": [{"trains": "head", "epochs": 1, "batch_norm": "still"}],
        "presets": {"quick": {"test_share": 0.3, "stages": [{"trains": "all", "epochs": 2, "batch_norm": "moving"}]}},
    }  # fmt: skip
    assert upgrade_recipe(old) == {
        "task": "multilabel", "image_dir": "scans", "images_per_class": 5, "loggers": ["csv"],
        "stages": [{"trains": "head", "epochs": 1, "batch_norm": "frozen", "augment": False}],
        "presets": {
            "quick": {"test_fraction": 0.3, "stages": [{"trains": "all", "epochs": 2, "batch_norm": "train"}]}
        },
    }  # fmt: skip
    assert upgrade_recipe({"model": {"arch": "x"}, "labels": "many"}) == {"model": {"arch": "x"}, "labels": "many"}
