"""Exports that other libraries load: timm, OpenVINO, MLflow, a Gradio Space, a Docker image; and the hub's layout."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file

import baseline
from baseline.deploy import export as export_file
from baseline.deploy import export_folder
from baseline.deploy.export_folder import export_notes
from baseline.deploy.export_timm import timm_network, write_timm
from baseline.errors import OutputError, WeightsError
from baseline.report.model_card import write_card
from baseline.vision.model_folder import load_network, save_network
from baseline.vision.network import build_network, features_of

PROBABILITIES = ["p_ants", "p_bees", "p_wasps"]


def open_images(images: Path, count: int = 6) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(images.rglob("*.jpg"))[::7][:count]]


def copy_with_facts(tiny: Path, folder: Path, **facts: Any) -> Path:
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(config | facts))
    return folder


def hub_cache(cache: Path, repo: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay out a folder as the hub's client caches a repository, and let the client use nothing else."""
    place = cache / f"models--{repo.replace('/', '--')}"
    snapshot, blobs = place / "snapshots" / ("a" * 40), place / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copy(path, blobs / f"{path.name}-blob")
        (snapshot / path.name).symlink_to(blobs / f"{path.name}-blob")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def code_of(card: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    return code


# ---- timm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [{}, {"task": "multilabel", "temperature": None}])
def test_timm_loads_the_folder_and_predicts_the_same(
    tiny: Path, images: Path, tmp_path: Path, facts: dict[str, Any]
) -> None:
    folder = copy_with_facts(tiny, tmp_path / "model", **facts)
    result = baseline.export(folder, "timm", tmp_path / "insects")
    assert result.path == tmp_path / "insects" and result.max_difference < 1e-5 and result.golden
    network = timm.create_model(f"local-dir:{result.path}", pretrained=True).eval()
    assert type(network).__module__.startswith("timm.") and isinstance(network.get_classifier(), torch.nn.Linear)
    assert network.pretrained_cfg["label_names"] == ["ants", "bees", "wasps"]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    opened = open_images(images)
    with torch.no_grad():
        outputs = network(torch.stack([transform(image) for image in opened]))
    actual = outputs.sigmoid() if facts else outputs.softmax(-1)
    expected = baseline.load(folder).predict(opened, tta=False)[PROBABILITIES].to_numpy()
    assert np.abs(actual.numpy() - expected).max() < 1e-5 and np.ptp(expected) > 0.05
    assert (result.path / "labels.txt").read_text() == "ants\nbees\nwasps\n"


def test_the_cards_snippet_loads_from_the_hubs_layout(
    tiny: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = baseline.export(tiny, "timm", tmp_path / "insects")
    card = result.path / "README.md"
    assert huggingface_hub.ModelCard.load(card).data.library_name == "timm"
    open_images(images)[0].save("image.png")
    expected = baseline.load(tiny).predict("image.png", tta=False)["predicted"][0]
    code = code_of(card).replace("image.jpg", "image.png")
    exec(code.replace('folder = "."', f"folder = {str(result.path)!r}"), local := {})
    hub_cache(tmp_path / "hub", "me/insects", result.path, monkeypatch)
    shutil.rmtree(result.path)
    code = code.replace('"."', '"me/insects"').replace("local-dir:", "hf-hub:")
    exec(code, there := {})
    assert local["label"] == there["label"] == expected
    assert there["model"].pretrained_cfg["hf_hub_id"] == "me/insects"


@pytest.mark.parametrize(("version", "has_pickle"), [("1.0.25", True), ("1.0.26.dev0", False), ("1.1.0", False)])
def test_an_older_timm_gets_a_file_that_it_loads(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, has_pickle: bool
) -> None:
    folder = tmp_path / "insects"
    folder.mkdir()
    model = baseline.load(tiny)
    monkeypatch.setattr(timm, "__version__", version)
    write_timm(model, folder)
    assert (folder / "pytorch_model.bin").exists() is has_pickle
    assert any("pytorch_model.bin" in note for note in export_notes(model, "timm")) is has_pickle
    if has_pickle:
        tensors, pickled = (
            load_file(folder / "model.safetensors"),
            torch.load(folder / "pytorch_model.bin", weights_only=True),
        )
        assert list(pickled) and all(torch.equal(tensors.pop(name), value) for name, value in pickled.items())
        assert not tensors


@pytest.mark.parametrize("arch", ["resnet18", "test_vit", "test_convnext", "test_resnet"])
def test_networks_of_other_families_compute_the_same_in_timm(arch: str, tmp_path: Path) -> None:
    size = 160 if arch == "test_vit" else 64
    torch.manual_seed(0)
    network = build_network(arch, 5, None, image_size=size)[0]
    with torch.no_grad():
        network.train()(torch.randn(8, 3, size, size))  # BatchNorm gets statistics of its own
    facts = {
        "arch": arch, "head": "linear", "classes": list("abcde"), "image_size": size, "resize": "squish",
        "mean": (0.5,) * 3, "std": (0.2,) * 3, "tta": (), "task": "single", "temperature": 1.3,
        "features": features_of(network[0]),
    }  # fmt: skip
    save_network(network.eval(), facts, tmp_path / "model")
    model = baseline.load(tmp_path / "model")
    inputs = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected, actual = model.network.cpu()(inputs) / 1.3, timm_network(model)(inputs)
    assert torch.allclose(actual, expected, atol=1e-5) and expected.std() > 0.01


def test_what_timm_cannot_have_is_refused_in_one_line(tiny: Path, images: Path, tmp_path: Path) -> None:
    network = build_network("test_efficientnet", 3, None, "fastai")[0]
    config = load_network(tiny)[1] | {"head": "fastai"}
    save_network(network.eval(), {k: v for k, v in config.items() if k not in ("sha256", "format")}, tmp_path / "two")
    with pytest.raises(OutputError, match=r"timm's classifier is one linear layer, and the head has more\. Export"):
        baseline.export(tmp_path / "two", "timm", "out", images=str(images / "ants" / "00.jpg"))
    assert not list(Path().iterdir())


def test_a_folder_that_predicts_differently_is_not_kept(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_folder, "FOLDER_TOLERANCE", -1.0)
    with pytest.raises(WeightsError, match=r"does not predict what the model predicts.* Nothing was written"):
        baseline.export(tiny, "timm")
    assert not list(Path().iterdir())


def test_only_an_earlier_export_is_replaced(tiny: Path) -> None:
    first = baseline.export(tiny, "timm").path
    assert first == Path(f"{tiny.parent.name}-timm")
    with pytest.raises(OutputError, match=r"exists\. Pass --overwrite to replace an earlier export"):
        baseline.export(tiny, "timm")
    (first / "README.md").write_text("mine")
    baseline.export(tiny, "timm", overwrite=True)
    assert (first / "README.md").read_text() != "mine"
    Path("photos").mkdir()
    with pytest.raises(OutputError, match="photos exists"):
        baseline.export(tiny, "timm", "photos", overwrite=True)
    assert sorted(path.name for path in Path().iterdir()) == sorted([first.name, "photos"])


def test_options_and_packages_that_are_missing_are_reported(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"space predicts as baseline predict does, with TTA\. Omit"):
        baseline.export(tiny, "space", tta=False)
    monkeypatch.setattr(export_file, "find_spec", lambda name: None)
    for name in ("openvino", "mlflow"):
        with pytest.raises(OutputError, match=rf"Export to {name} needs {name}: pip install .*\[{name}\]'"):
            baseline.export(tiny, name)


# ---- the model card of a run ----------------------------------------------------------------------------------------


def test_a_runs_model_loads_from_the_hubs_layout_with_the_library_of_its_card(
    done: baseline.Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(done.folder, tmp_path / "run"))
    card = write_card(run)
    assert huggingface_hub.ModelCard.load(card).data.library_name == "fastai-baseline"
    hub_cache(tmp_path / "hub", "me/insects", run / "model", monkeypatch)
    (line,) = re.findall(r"`(baseline\.load\([^`]*snapshot_download[^`]*)`", card.read_text())
    model = eval(line.replace("OWNER/NAME", "me/insects"), {"baseline": baseline, "huggingface_hub": huggingface_hub})
    path = done.predictions["path"].iloc[0]
    assert model.predict(path).equals(baseline.load(run).predict(path))


# ---- OpenVINO, MLflow, Core ML --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tta", [True, False])
def test_openvino_predicts_the_same(tiny: Path, images: Path, tta: bool) -> None:
    openvino = pytest.importorskip("openvino")
    result = baseline.export(tiny, "openvino", "insects", tta=tta)
    assert {"model.xml", "model.bin", "labels.txt"} == {path.name for path in result.path.iterdir()}
    squares = np.stack([np.asarray(image.resize((48, 48))) for image in open_images(images)])
    compiled = openvino.Core().compile_model(result.path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    actual = compiled(squares)[0]
    expected = baseline.load(tiny).predict([*squares], tta=tta)[PROBABILITIES].to_numpy()
    assert np.abs(actual - expected).max() < 1e-5 and result.max_difference < 1e-5


def test_mlflow_loads_the_model_and_predicts_the_same(tiny: Path, images: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    import pandas as pd

    result = baseline.export(tiny, "mlflow", "insects")
    loaded = mlflow.pyfunc.load_model(str(result.path))
    paths = sorted(images.rglob("*.jpg"))[:3]
    actual = loaded.predict(pd.DataFrame({"image": [path.read_bytes() for path in paths]}))
    pd.testing.assert_frame_equal(actual, baseline.load(tiny).predict(paths).drop(columns="path"))
    assert not list(result.path.rglob("*.pkl")) and not list(result.path.rglob("golden.safetensors"))


def test_the_recipe_for_core_ml_converts(tiny: Path) -> None:
    pytest.importorskip("coremltools")
    (code,) = re.findall(r"```py\n(import coremltools.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL)
    Path("runs").mkdir()
    Path("runs/mine").symlink_to(tiny)
    exec(code, {})
    assert Path("insects.mlpackage").is_dir()


# ---- a Space, a Docker image ----------------------------------------------------------------------------------------


def test_a_space_has_all_that_it_needs(tiny: Path, images: Path) -> None:
    folder = baseline.export(tiny, "space", "space").path
    header = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "gradio" and header["app_file"] == "app.py" and header["title"] == "ants, bees, wasps"
    needed = (folder / "requirements.txt").read_text()
    assert re.search(r"^torch>=", needed, re.MULTILINE) and "gradio>=" in needed and "pytest" not in needed
    assert sorted(path.name for path in (folder / "model").iterdir()) == ["model.json", "model.safetensors"]
    names = {node.id for node in ast.walk(ast.parse((folder / "app.py").read_text())) if isinstance(node, ast.Name)}
    assert {"classify", "page", "model"} <= names
    pytest.importorskip("gradio")
    app = runpy.run_path(str(folder / "app.py"))
    image = open_images(images)[0]
    row = baseline.load(tiny).predict([image]).iloc[0]
    assert app["classify"](image) == pytest.approx({name: row[f"p_{name}"] for name in ("ants", "bees", "wasps")})


def test_a_docker_folder_has_all_that_it_needs(tiny: Path) -> None:
    folder = baseline.export(tiny, "docker", "image").path
    lines = (folder / "Dockerfile").read_text().splitlines()
    assert lines[2].startswith("FROM python:3.11")
    for line in lines:
        if line.startswith("COPY") and " . " not in line:
            assert (folder / line.split()[1]).exists()
    needed = (folder / "requirements.txt").read_text()
    assert "uvicorn>=" in needed and "prometheus-client>=" in needed and "gradio" not in needed
    command = json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).partition(" ")[2])
    assert command[1:5] == ["-m", "baseline", "serve", "model"] and (folder / "model" / "model.json").exists()
    assert (folder / "baseline" / "recipes" / "default.toml").exists() and not list(folder.rglob("__pycache__"))


@pytest.mark.slow
def test_the_entry_point_of_the_docker_image_serves(tiny: Path, images: Path) -> None:
    folder = baseline.export(tiny, "docker", "image").path
    lines = (folder / "Dockerfile").read_text().splitlines()
    command = json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).partition(" ")[2])
    command = [sys.executable, *command[1:], "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stderr is not None and process.stdout is not None
        ports = (re.search(r"serving: http://\S+:(\d+) ", line) for line in process.stderr)
        port = next(int(match[1]) for match in ports if match)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready") as answer:
            assert json.load(answer)["status"] == "ready"
        process.terminate()
        assert json.loads(process.stdout.readline())["path"] == "/ready"
