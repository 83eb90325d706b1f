"""Whether a run uses test-time augmentation (TTA), and that everything made of the run follows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import baseline
from baseline.cli.app import app
from baseline.evaluation.tta_choice import reason_against_tta
from baseline.report.headline import headline_sentence
from baseline.runs.folder import read_manifest

CLASSES = ("left", "right")


def draw_arrow(number: int, direction: str) -> Image.Image:
    """Draw an arrow of random size and place: mirrored, it is one of the other class."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (64, 64), tuple(rng.integers(160, 255, 3)))
    draw, (x, y), size = ImageDraw.Draw(image), rng.integers(8, 24, 2), int(rng.integers(24, 32))
    color = tuple(int(value) for value in rng.integers(0, 80, 3))
    draw.polygon([(x, y + size // 2), (x + size, y), (x + size, y + size)], fill=color)
    draw.rectangle([x + size, y + size // 2 - 4, x + size + 12, y + size // 2 + 4], fill=color)
    return image if direction == "left" else image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@pytest.fixture(scope="module")
def arrows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, number = tmp_path_factory.mktemp("arrows"), 0
    for split, count in (("train", 20), ("valid", 12), ("test", 8)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for _ in range(count):
                draw_arrow(number := number + 1, name).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def runs(arrows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, baseline.Baseline]:
    """Runs with each value of `tta_choice`."""
    settings = {"preset": "instant", "image_size": 64, "augment": {"flip": False}, "audit": "none", "cache_gb": 0}
    out = tmp_path_factory.mktemp("runs")
    return {
        choice: baseline.make_baseline(
            arrows, out=out / choice, progress=baseline.Progress(), tta_choice=choice, **settings
        )
        for choice in ("auto", "always")
    }


def test_tta_is_not_used_where_the_valid_images_lose_by_it(runs: dict[str, baseline.Baseline]) -> None:
    auto, always = runs["auto"], runs["always"]
    assert always.recipe.evaluation.tta == ("flip",) and auto.recipe.evaluation.tta == ()
    valid = always.metrics["valid"]
    losses = [valid[view]["loss"] for view in ("plain", "tta")]
    assert valid["plain"]["accuracy"] > valid["tta"]["accuracy"] or losses[0] < losses[1]
    for split, numbers in auto.metrics.items():
        assert numbers["tta"]["accuracy"] == numbers["plain"]["accuracy"] == always.metrics[split]["plain"]["accuracy"]
    assert headline_sentence(auto.manifest).startswith("test accuracy: ")
    assert headline_sentence(always.manifest).startswith("test accuracy with TTA: ")
    assert auto.manifest["reasons"]["tta"].startswith("accuracy on valid is ")
    assert read_manifest(auto.folder)["recipe"]["evaluation"]["tta"] == [] and "tta" not in always.manifest["reasons"]


def test_what_is_made_of_a_run_without_tta_is_without_it(runs: dict[str, baseline.Baseline]) -> None:
    run = runs["auto"]
    assert json.loads((run.folder / "model" / "model.json").read_text())["tta"] == []
    table = run.predictions[run.predictions["split"] == "test"]
    predicted = run.model.predict(list(table["path"]), calibrated=False)
    assert list(predicted["predicted"]) == list(table["predicted"])
    assert np.allclose(predicted["p_left"], table["p_left"], atol=1e-5)
    sentence = f"Test-time augmentation (TTA) is not used: {run.manifest['reasons']['tta']}."
    for file in ("report.html", "model/README.md"):
        assert sentence in (run.folder / file).read_text()
    assert "with TTA" not in (run.folder / "model" / "README.md").read_text()


def test_the_command_says_that_tta_is_not_used(arrows: Path, tmp_path: Path) -> None:
    words = ["run", str(arrows), "--preset", "instant", "--image-size", "64", "--no-audit"]
    ended = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run"), "--set", "augment.flip=false"])
    assert ended.exit_code == 0, ended.output
    assert "tta: none (accuracy on valid is " in ended.stderr and "test with TTA" not in ended.stdout
    assert "Test-time augmentation (TTA) is not used: " in ended.stdout


@pytest.mark.parametrize(
    ("plain", "mean", "metric", "reason"),
    [
        ([0.9, 0.2], [0.9, 0.6], "auto", "accuracy on valid is 100.00% without TTA and 50.00% with it"),
        ([0.9, 0.6], [0.9, 0.2], "auto", ""),
        ([0.9, 0.2], [0.8, 0.2], "auto", "the loss on valid is 0.1643 without TTA and 0.2231 with it"),
        ([0.8, 0.2], [0.9, 0.2], "auto", ""),
        ([0.8, 0.2], [0.8, 0.2], "auto", ""),
        ([0.8, 0.6], [0.6, 0.45], "log_loss", ""),
        ([0.9, 0.2], [0.8, 0.2], "quadratic_kappa", "the loss on valid is 0.1643 without TTA and 0.2231 with it"),
        ([0.7, 0.6], [0.4, 0.45], "roc_auc", "ROC AUC on valid is 1.0000 without TTA and 0.0000 with it"),
    ],
)
def test_the_metric_decides_and_then_the_loss(plain: list[float], mean: list[float], metric: str, reason: str) -> None:
    rows = pd.DataFrame({"path": ["1.jpg", "2.jpg"], "label": ["ant", "bee"], "split": "valid"})
    both = [np.array([[share, 1 - share] for share in shares]) for shares in (plain, mean)]
    assert reason_against_tta(rows, *both, ["ant", "bee"], metric=metric) == reason


def test_several_labels_are_decided_by_micro_f1() -> None:
    rows = pd.DataFrame({"path": ["1.jpg", "2.jpg"], "label": ["ant;bee", "bee"], "split": "valid"})
    plain, mean = np.array([[0.9, 0.9], [0.1, 0.9]]), np.array([[0.9, 0.9], [0.8, 0.9]])
    reason = reason_against_tta(rows, plain, mean, ["ant", "bee"], 0.5)
    assert reason == "micro F1 on valid is 100.00% without TTA and 85.71% with it"


def test_an_undefined_metric_is_decided_by_the_loss() -> None:
    rows = pd.DataFrame({"path": ["1.jpg", "2.jpg"], "label": "ant", "split": "valid"})
    plain, mean = np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([[0.8, 0.2], [0.7, 0.3]])
    reason = reason_against_tta(rows, plain, mean, ["ant", "bee"], metric="roc_auc")
    assert reason == "the loss on valid is 0.1643 without TTA and 0.2899 with it"
