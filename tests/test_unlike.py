"""Models tell unknown images from images like those of training, and predict sets of classes at a stated coverage."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import COMMAND_WITH_FORKS, call
from conftest import leave_out_pages
from PIL import Image
from starlette.testclient import TestClient

import baseline
from baseline.deploy.server.app import create_app
from baseline.errors import OutputError, RecipeError, WeightsError
from baseline.experiments.add_reference import add_reference
from baseline.files import REFERENCE_FILE
from baseline.inference.reference import (
    Reference,
    class_sets,
    describe_coverage,
    read_reference,
    save_reference,
    select_images,
)

QUIET = baseline.Progress()


@pytest.fixture(scope="session")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain shapes and noise: nothing like an insect."""
    folder, rng = tmp_path_factory.mktemp("unknown"), np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (8, 8, 3) if number % 2 else (200, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((200, 200), Image.Resampling.NEAREST).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def quick_run(drawn_images: Path, tmp_path_factory: pytest.TempPathFactory) -> baseline.Baseline:
    """A run whose backbone stays as it was, so that its features are in the cache."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pages(patch)
        patch.setenv("BASELINE_HOME", str(tmp_path_factory.mktemp("home")))
        out = tmp_path_factory.mktemp("runs") / "quick"
        return baseline.make_baseline(drawn_images, preset="instant", image_size=96, out=out, progress=QUIET)


def test_a_run_keeps_features_of_its_training_images(
    drawn_run: baseline.Baseline, quick_run: baseline.Baseline
) -> None:
    for run in (drawn_run, quick_run):
        counts = pd.read_csv(run.folder / "split.csv")["split"].value_counts()
        reference = run.model.reference
        assert reference.features.shape == (counts["train"], 1280) and len(reference.distances) == counts["valid"]
        assert np.allclose(np.linalg.norm(reference.features, axis=1), 1, atol=1e-3)
        assert (run.folder / "model" / REFERENCE_FILE).stat().st_size < 2_000_000
        table = pd.read_csv(run.folder / "split.csv")
        train = run.model.embed(table.query("split == 'train'")["path"].tolist(), progress=QUIET).features
        similarity = (train / np.linalg.norm(train, axis=1, keepdims=True)) @ reference.features.T
        same = similarity.max(1) > 0.999
        assert same.all() if run is drawn_run else 0.2 < same.mean() < 1, "in the cache, half of the images are flipped"


def test_unknown_images_are_more_unlike_than_new_images(
    drawn_run: baseline.Baseline, quick_run: baseline.Baseline, unknown: Path
) -> None:
    for run in (drawn_run, quick_run):
        new = run.predictions.query("split == 'test'")["path"].tolist()
        known = run.model.predict(new, unlike=True)["unlike"]
        strange = run.model.predict(unknown, unlike=True)["unlike"]
        assert ((known >= 0) & (known <= 1)).all() and ((strange >= 0) & (strange <= 1)).all()
        assert strange.min() > 1 - 1 / (len(run.model.reference.distances) + 1) > known.median()


def test_predictions_stay_the_same_with_unlike(drawn_run: baseline.Baseline, drawn_images: Path) -> None:
    plain, more = (drawn_run.model.predict(drawn_images / "ants", unlike=flag) for flag in (False, True))
    assert plain.equals(more.drop(columns="unlike")) and "unlike" not in plain
    valid = drawn_run.predictions.query("split == 'valid'")["path"].tolist()
    expected = np.sort(drawn_run.model.predict(valid, unlike=True)["unlike"])
    assert np.allclose(expected, np.arange(1, len(valid) + 1) / (len(valid) + 1), atol=0.03), "ranks of valid images"


def test_the_value_is_the_share_of_less_unlike_valid_images() -> None:
    distances = np.sort(np.random.default_rng(0).random(99))
    reference = Reference(np.eye(2, dtype=np.float32), distances, np.empty(0))
    assert np.allclose(reference.rank(distances), np.arange(1, 100) / 100)
    values = reference.rank(np.linspace(0, 3, 500))
    assert (np.diff(values) >= 0).all() and values[0] == 0 and 0.99 < values[-1] < 1
    reference.check_rate(0.01)
    with pytest.raises(RecipeError, match=r"99 valid images, and to reject 0\.50% .*, 199 are needed"):
        reference.check_rate(0.005)


def test_sampled_images_are_of_all_classes_and_few_bytes() -> None:
    labels = ["a"] * 3000 + ["b"] * 5 + ["c"] * 700
    table = pd.DataFrame(
        {"path": range(len(labels)), "label": labels, "split": ["valid", "train"] * (len(labels) // 2) + ["train"]}
    )
    train, valid = select_images(table, 1280, "single")
    assert len(train) == len(valid) == 512 and train["label"].value_counts()["b"] == 2
    assert abs(train["label"].value_counts()["a"] - train["label"].value_counts()["c"]) <= 1
    assert len(select_images(table, 8192, "single")[0]) * 8192 * 2 <= 1_500_000


def test_damaged_and_foreign_references_are_refused(drawn_run: baseline.Baseline, tmp_path: Path) -> None:
    shutil.copytree(drawn_run.folder / "model", tmp_path / "model")
    file = tmp_path / "model" / REFERENCE_FILE
    content = file.read_bytes()
    config = drawn_run.model.config
    for damaged, message in (
        (content[:-1] + bytes([content[-1] ^ 1]), "does not match its hash"),
        (content[:100], "is damaged"),
        (b"", "is damaged"),
        (content.replace(config["sha256"]["model.safetensors"].encode(), b"0" * 64), "belongs to another network"),
        (content.replace(b'\\"format\\": 1', b'\\"format\\": 9'), "has another format than 1"),
    ):
        file.write_bytes(damaged)
        with pytest.raises((WeightsError, OutputError), match=message):
            read_reference(tmp_path / "model", config)
    file.unlink()
    old = baseline.load(tmp_path / "model")
    assert len(old.predict(drawn_run.predictions["path"].iloc[0])) == 1, "an older model folder predicts"
    with pytest.raises(OutputError, match="add it with: baseline reference RUN"):
        old.predict(drawn_run.predictions["path"].iloc[0], unlike=True)
    ended = call("predict", tmp_path / "model", drawn_run.predictions["path"].iloc[0], "--unlike", "--out", "x.csv")
    assert ended.returncode == 2 and not Path("x.csv").exists() and len(ended.stderr.splitlines()) == 1


def test_a_reference_is_added_to_an_old_run(drawn_run: baseline.Baseline, unknown: Path, tmp_path: Path) -> None:
    run = shutil.copytree(drawn_run.folder, tmp_path / "old")
    (run / "model" / REFERENCE_FILE).unlink()
    ended = call("reference", run, "--quiet")
    assert ended.returncode == 0 and ended.stdout == f"{run}/model/{REFERENCE_FILE}\n", ended.stderr
    added, first = baseline.load(run).reference, drawn_run.model.reference
    assert np.allclose(added.distances, first.distances, atol=1e-3) and np.allclose(added.scores, first.scores)
    assert baseline.load(run).identity == drawn_run.model.identity
    (run / "split.csv").write_text((run / "split.csv").read_text().replace("/ants/", "/gone/"))
    with pytest.raises(baseline.BaselineError, match=r"cannot be read, first .*/gone/"):
        add_reference(run, progress=QUIET)


def test_predict_rejects_unknown_images_and_writes_sets(
    drawn_run: baseline.Baseline, unknown: Path, tmp_path: Path
) -> None:
    shutil.copytree(unknown, tmp_path / "in")
    for number, path in enumerate(drawn_run.predictions.query("split == 'test'")["path"]):
        shutil.copy(path, tmp_path / "in" / f"known{number}.jpg")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"\xff\xd8\xff no image")
    options = ("--reject-unlike", "0.2", "--coverage", "0.8", "--top-k", "1")
    ended = call("predict", drawn_run.folder, tmp_path / "in", *options, "--out", "out.csv")
    assert ended.returncode == 0 and "unlike the training images" in ended.stderr, ended.stderr
    assert "sets for a coverage of 80% cover" in ended.stderr
    table = pd.read_csv("out.csv", keep_default_na=False)
    assert list(table) == ["path", "predicted", "confidence", "error", "unlike", "set", "class_1", "probability_1"]
    rows = table[table["error"] == ""]
    rejected = rows["unlike"].astype(float) > 0.8
    assert ((rows["predicted"] == "unlike") == rejected).all() and rejected[rows["path"].str.endswith(".png")].all()
    bad = table[table["error"] != ""].iloc[0]
    assert bad["unlike"] == bad["set"] == bad["class_1"] == ""
    threshold = drawn_run.model.reference.set_threshold(0.8)
    for row in rows.itertuples():
        names = row.set.split(";")
        assert names[0] == row.class_1 and (len(names) == 2) == (float(row.probability_1) <= threshold)
    lines = call("predict", drawn_run.folder, tmp_path / "in", *options, "--format", "jsonl", "--quiet")
    objects = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [item.get("set") for item in objects if "error" not in item] == [text.split(";") for text in rows["set"]]
    more = ["--out", "out.csv", "--resume", "--processes", "2"]
    again = call("predict", drawn_run.folder, tmp_path / "in", *options, *more, code=COMMAND_WITH_FORKS)
    assert again.returncode == 0 and "already done" in again.stderr, again.stderr


def test_evaluate_measures_rejection_and_coverage(drawn_run: baseline.Baseline, unknown: Path) -> None:
    test = drawn_run.predictions.query("split == 'test'")[["path", "label"]]
    other = pd.DataFrame({"path": sorted(map(str, unknown.iterdir())), "label": "shape"})
    table = pd.concat([test, other], ignore_index=True)
    result = drawn_run.model.evaluate(table, unknown="drop", reject_unlike=0.2, coverage=0.8, progress=QUIET)
    rows = result.predictions
    assert len(rows) == len(test) and (rows["unlike"] <= 1).all()
    assert result.unlike["rejected"] == (rows["unlike"] > 0.8).sum()
    assert result.unlike["unknown"] == {"images": 12, "rejected": 12, "auroc": 1.0}
    assert "of images with unknown labels 12 of 12, AUROC 1.000" in "".join(result.notes)
    hits = [label in names.split(";") for label, names in zip(rows["label"], rows["set"], strict=True)]
    assert result.sets["covered"] == np.mean(hits) and result.sets["interval"][0] < result.sets["covered"]
    with pytest.raises(RecipeError, match=r"needs 19\. Ask for at most"):
        drawn_run.model.evaluate(test, coverage=0.95, progress=QUIET)


def test_the_server_says_what_is_unlike(drawn_run: baseline.Baseline, images: Path, unknown: Path) -> None:
    with TestClient(
        create_app(drawn_run.folder, reject_unlike=0.2, examples=False), base_url="http://localhost"
    ) as client:
        answers = []
        for path in (unknown / "00.png", drawn_run.predictions.query("split == 'valid'")["path"].iloc[0]):
            content = base64.b64encode(Path(path).read_bytes()).decode()
            answers.append(client.post("/predict", json={"image": content}).json()["predictions"][0])
        schema = client.get("/openapi.json").json()
    assert answers[0]["rejected"] is True and answers[0]["unlike"] > 0.8 >= answers[1]["unlike"] - 0.2
    assert "unlike" in json.dumps(schema)
    with TestClient(create_app(drawn_run.folder, examples=False), base_url="http://localhost") as client:
        content = base64.b64encode((unknown / "00.png").read_bytes()).decode()
        assert "unlike" not in client.post("/predict", json={"image": content}).json()["predictions"][0]


def test_an_ensemble_has_no_reference(drawn_run: baseline.Baseline, quick_run: baseline.Baseline) -> None:
    ensemble = baseline.load([drawn_run.folder, quick_run.folder])
    with pytest.raises(OutputError, match="Pass one model"):
        ensemble.predict(drawn_run.predictions["path"].iloc[0], unlike=True)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("valid", [40, 200])
def test_sets_cover_at_least_the_asked_rate(coverage: float, valid: int) -> None:
    """Over many draws of valid and new images, of a model that is right in 60% of cases."""
    rng, hits = np.random.default_rng(0), []
    for _ in range(300):
        logits = rng.normal(size=(valid + 300, 4))
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        weights = np.cumsum(probabilities**1.5, axis=1)
        labels = (weights > rng.random((len(weights), 1)) * weights[:, -1:]).argmax(1)
        scores = 1 - probabilities[np.arange(len(labels)), labels]
        reference = Reference(np.empty((0, 0)), np.empty(0), np.sort(scores[:valid]))
        sets = class_sets(probabilities[valid:], reference.set_threshold(coverage), list("0123"))
        hits.append(np.mean([str(label) in names for label, names in zip(labels[valid:], sets, strict=True)]))
    assert coverage - 0.005 <= np.mean(hits) <= coverage + 1 / (valid + 1) + 0.005


def test_few_valid_images_are_said_to_be_few() -> None:
    reference = Reference(np.empty((0, 0)), np.empty(0), np.linspace(0, 1, 18))
    with pytest.raises(
        RecipeError, match=r"18 valid images, and a coverage of 0\.95 needs 19\. Ask for at most 0\.947"
    ):
        reference.set_threshold(0.95)
    assert "with 18 valid images, sets for a coverage of 90% cover 81% to 100%" in describe_coverage(reference, 0.9)
    with pytest.raises(RecipeError, match="need one label per image"):
        Reference(np.empty((0, 0)), np.empty(0), np.empty(0)).set_threshold(0.9)
    with pytest.raises(RecipeError, match=r"above 0 and below 1, such as 0\.95"):
        reference.set_threshold(95)


def test_wrong_rates_are_one_line(drawn_run: baseline.Baseline) -> None:
    image = drawn_run.predictions["path"].iloc[0]
    for words, message in (
        (("--reject-unlike", "0.001"), "999 are needed"),
        (("--reject-unlike", "2"), "reject_unlike is 2.0"),
        (("--coverage", "0.999"), "needs 999"),
        (("--coverage", "0.8", "--no-tta"), "measured with test-time augmentation"),
    ):
        ended = call("predict", drawn_run.folder, image, *words, "--quiet")
        assert ended.returncode == 2 and ended.stdout == "" and len(ended.stderr.splitlines()) == 1, ended.stderr
        assert message in ended.stderr


def test_saving_and_reading_is_exact(drawn_run: baseline.Baseline, tmp_path: Path) -> None:
    shutil.copytree(drawn_run.folder / "model", tmp_path / "model")
    before = (tmp_path / "model" / REFERENCE_FILE).read_bytes()
    save_reference(tmp_path / "model", drawn_run.model.reference)
    assert (tmp_path / "model" / REFERENCE_FILE).read_bytes() == before
