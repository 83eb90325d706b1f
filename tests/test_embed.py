"""Features of images are what the classifier takes, and neighbors are the most similar images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call

import baseline
from baseline.inference.features import feature_layers, nearest
from baseline.vision.network import build_network

QUIET = baseline.Progress()


@pytest.mark.parametrize("head, width", [("linear", 1280), ("fastai", 512)])
def test_the_classifier_on_the_features_is_the_network(head: str, width: int) -> None:
    network = build_network("efficientnet_lite0", 3, None, head)[0].eval()
    features, classifier = feature_layers(network)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert features(images).shape == (2, width)
        assert torch.allclose(classifier(features(images)), network(images), atol=1e-6)


@pytest.mark.parametrize("arch", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_architectures_have_features(arch: str) -> None:
    network = build_network(arch, 3, None)[0].eval()
    features, classifier = feature_layers(network)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(classifier(features(images)), network(images), atol=1e-5)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in classifier) == 1


def test_features_are_those_of_the_run(done: baseline.Baseline, images: Path) -> None:
    embedded = done.model.embed(images / "ants", progress=QUIET)
    assert embedded.features.shape == (24, 1280) and embedded.features.dtype == np.float32
    assert embedded.paths == sorted(map(str, (images / "ants").iterdir()))
    with torch.no_grad():
        logits = feature_layers(done.model.network)[1](torch.from_numpy(embedded.features))
    plain = done.model.predict(images / "ants", tta=False, calibrated=False)
    assert np.allclose(logits.softmax(1), plain[["p_ants", "p_bees"]], atol=1e-4)


def test_nearest_images_are_those_of_scikit_learn() -> None:
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(1500, 8)).astype(np.float32), rng.normal(size=(90, 8)).astype(np.float32)
    distance, rows = NearestNeighbors(n_neighbors=3, metric="cosine").fit(other).kneighbors(one)
    ours, similarity = nearest(one, other, 3)
    assert (ours == rows).all() and np.allclose(1 - similarity, distance, atol=1e-5)
    itself, _ = nearest(one, one, 1, itself=True)
    assert (itself[:, 0] != np.arange(1500)).all()


def test_the_command_writes_features_and_neighbors(done: baseline.Baseline, images: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    shutil.copytree(images / "ants", tmp_path / "ants")
    (tmp_path / "ants" / "bad.jpg").write_bytes(b"\xff\xd8\xff no image")
    first = call("embed", done.folder, tmp_path / "ants", "--out", "ants.npz", "--neighbors", "2")
    assert first.returncode == 0 and first.stdout == "ants.npz\n", first.stderr
    assert "1,280 features of 25 images; 1 could not be read" in first.stderr
    with np.load("ants.npz") as saved:
        arrays: dict[str, Any] = dict(saved)
    bad = [Path(path).name for path in arrays["paths"]].index("bad.jpg")
    assert arrays["errors"][bad] and np.isnan(arrays["features"][bad]).all() and (arrays["neighbors"][bad] == "").all()
    assert np.isfinite(np.delete(arrays["features"], bad, 0)).all() and arrays["neighbors"].shape == (25, 2)
    copy = shutil.copy(images / "ants" / "03.jpg", tmp_path / "new.jpg")
    words = ("--out", "new.parquet", "--neighbours", "3", "--reference", "ants.npz", "--quiet")
    assert call("embed", done.folder, copy, *words).returncode == 0
    row = pd.read_parquet("new.parquet").iloc[0]
    assert row["neighbor_1"] == str(tmp_path / "ants" / "03.jpg") and row["similarity_1"] == pytest.approx(1, abs=1e-4)
    assert np.allclose(row["features"], arrays["features"][list(arrays["paths"]).index(row["neighbor_1"])], atol=1e-4)
    again = call("embed", done.folder, copy, "--out", "2.npz", "--neighbors", "1", "--reference", "new.parquet")
    assert again.returncode == 0, again.stderr


def test_wrong_requests_are_one_line(done: baseline.Baseline, images: Path) -> None:
    np.savez("other.npz", paths=np.array(["a"]), errors=np.array([""]), features=np.zeros((1, 3), np.float32))
    Path("no.npz").write_text("nothing")
    one = images / "ants" / "00.jpg"
    for words, message in (
        ((one, "--out", "x.csv"), "unknown extension; needed: .npz or .parquet"),
        ((one, "--out", "no.npz"), "already exists"),
        ((one, "--out", "x.npz", "--reference", "other.npz"), "--reference needs --neighbors"),
        ((one, "--out", "x.npz", "--neighbors", "1"), "there are only 0"),
        ((one, "--out", "x.npz", "--neighbors", "1", "--reference", "other.npz"), "has 3 features per image"),
        ((one, "--out", "x.npz", "--neighbors", "1", "--reference", "no.npz"), "does not hold features"),
    ):
        ended = call("embed", done.folder, *words, "--quiet")
        assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1, (words, ended.stderr)
        assert message in ended.stderr and not Path("x.npz").exists()
