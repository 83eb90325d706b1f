"""The preset instant, whose head is logistic regression alone: served, exported and submitted like any other model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import leave_out_pages
from test_export import onnx_fault

import baseline
from baseline import Progress
from baseline.evaluation.table import class_columns


@pytest.fixture(scope="module")
def instant(images: Path, body: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> baseline.Baseline:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pages(patch)
        out = tmp_path_factory.mktemp("runs") / "instant"
        return baseline.make_baseline(images, preset="instant", image_size=48, out=out, progress=Progress(), **body)


@pytest.fixture
def held_out(instant: baseline.Baseline) -> pd.DataFrame:
    """The run's predictions of images that it did not train on."""
    return instant.predictions[instant.predictions["split"] == "test"].reset_index(drop=True)


def test_the_loaded_model_predicts_what_the_run_did(instant: baseline.Baseline, held_out: pd.DataFrame) -> None:
    assert instant.recipe.stages == (baseline.Stage("probe", 1),)
    loaded = baseline.load(instant.folder).predict(held_out["path"].tolist())
    expected = baseline.calibrate(held_out, instant.manifest["calibration"]["temperature"])
    columns = [f"p_{name}" for name in class_columns(held_out)]
    assert np.abs(loaded[columns].to_numpy() - expected[columns].to_numpy()).max() < 1e-5
    assert loaded["predicted"].tolist() == held_out["predicted"].tolist()


def test_the_server_answers_what_the_model_predicts(instant: baseline.Baseline, held_out: pd.DataFrame) -> None:
    from starlette.testclient import TestClient

    from baseline.deploy.server.app import create_app

    paths = held_out["path"].tolist()[:4]
    expected = instant.model.predict(paths)
    with TestClient(create_app(instant.folder), base_url="http://localhost") as client:
        files = [("image", (Path(path).name, Path(path).read_bytes(), "image/jpeg")) for path in paths]
        answers = client.post("/predict", files=files).json()["predictions"]
    assert [answer["predicted"] for answer in answers] == expected["predicted"].tolist()
    assert [answer["confidence"] for answer in answers] == pytest.approx(expected["confidence"].tolist(), abs=1e-5)


@pytest.mark.parametrize(("kind", "name"), [("onnx", "it.onnx"), ("torch-export", "it.pt2")])
def test_exports_return_what_the_model_predicts(
    instant: baseline.Baseline, images: Path, kind: str, name: str, tmp_path: Path
) -> None:
    if kind == "onnx" and (fault := onnx_fault()):
        pytest.skip(fault)
    result = baseline.export(instant.folder, kind, tmp_path / name, images=str(images))
    assert result.agreeing == result.images == len(list(images.rglob("*.jpg"))) and result.max_difference < 1e-5


def test_a_submission_has_the_probabilities_of_the_model(
    instant: baseline.Baseline, held_out: pd.DataFrame, tmp_path: Path
) -> None:
    folder = tmp_path / "competition" / "test"
    folder.mkdir(parents=True)
    for number, path in enumerate(held_out["path"]):
        shutil.copy(path, folder / f"image{number}.jpg")
    ids = [f"image{number}" for number in reversed(range(len(held_out)))]
    pd.DataFrame({"id": ids, "ants": 0.5, "bees": 0.5}).to_csv(folder.parent / "sample_submission.csv", index=False)
    submission = baseline.submit(instant.folder, folder.parent / "sample_submission.csv", out=tmp_path / "it.csv")
    rows = pd.read_csv(submission.path)
    expected = instant.model.predict([folder / f"{name}.jpg" for name in ids])
    assert rows["id"].tolist() == ids
    assert np.abs(rows[["ants", "bees"]].to_numpy() - expected[["p_ants", "p_bees"]].to_numpy()).max() < 1e-5
