"""Exported files predict what the model predicts, for images of any size; a file that does not is not kept."""

from __future__ import annotations

import functools
import json
import shutil
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import baseline
from baseline.data.image import load_image, resize_image
from baseline.deploy import export as export_file
from baseline.deploy.export_module import ExportModule, pillow_resize
from baseline.errors import OutputError, WeightsError

PROBABILITIES = ["p_ants", "p_bees", "p_wasps"]


@functools.cache
def onnx_fault() -> str:
    """What is wrong with ONNX files of a small network of torch's own, which no export can do anything about."""
    runtime = pytest.importorskip("onnxruntime")
    if "dynamic_shapes" not in signature(torch.onnx.export).parameters:
        return "torch before 2.5 cannot write ONNX files with dynamic shapes"
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()).eval()
    try:
        program = torch.onnx.export(network, (torch.rand(2, 3, 8, 8),), dynamo=True, verbose=False)
        runtime.InferenceSession(program.model_proto.SerializeToString())
    except Exception as error:
        return f"torch {torch.__version__} and onnxscript {version('onnxscript')} write no ONNX file: {error!r:.200}"
    return ""


@pytest.fixture
def onnx() -> None:
    if fault := onnx_fault():
        pytest.skip(fault)


@pytest.mark.parametrize("resize", ["squish", "crop", "pad"])
def test_resizing_equals_pillow_to_the_last_bit(resize: str) -> None:
    rng = np.random.default_rng(0)
    sides = [(1, 7), (48, 48), (300, 20), (20, 300), (90, 60), (31, 97), (97, 33), (640, 480)]
    for height, width in [*sides, *rng.integers(2, 200, (40, 2))]:
        size = int(rng.integers(8, 160))
        noise = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255  # the hardest to round
        if resize == "pad" and min(height, width) / max(height, width) * size < 0.6:
            continue  # Pillow refuses to resize to zero pixels
        expected = np.asarray(resize_image(Image.fromarray(noise), size, resize))
        planes = torch.from_numpy(noise).permute(2, 0, 1)[None]
        resized = pillow_resize(planes, size, resize)[0].permute(1, 2, 0).numpy()
        assert np.array_equal(resized, expected), (height, width, size)


@pytest.mark.parametrize(
    "facts",
    [
        {"tta": ["flip", "five_crops"], "resize": "crop", "crop": 0.64},
        {"task": "multilabel", "temperature": 3.0, "threshold": 0.4},
        {"task": "multilabel", "tta": [], "temperature": None, "resize": "pad"},
    ],
)
def test_the_module_predicts_what_the_model_predicts(
    tiny: Path, tmp_path: Path, images: Path, facts: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    config = json.loads((folder / "model.json").read_text()) | facts
    (folder / "model.json").write_text(json.dumps(config))
    model = baseline.load(folder)
    paths = sorted(images.rglob("*.jpg"))[:6]
    for views, tta in ((tuple(model.config["tta"]), True), ((), False)):
        expected = model.predict(paths, tta=tta)[PROBABILITIES].to_numpy()
        module = ExportModule(model.network, model.config, model.decoded_size, views, any_size=True)
        with torch.inference_mode():
            arrays = [np.array(load_image(path, model.decoded_size))[None] for path in paths]
            actual = np.concatenate([module(torch.from_numpy(array)) for array in arrays])
        assert np.abs(actual - expected).max() < 1e-5 and actual.dtype == np.float32


def test_onnx_returns_what_predict_returns(tiny: Path, images: Path, onnx: None, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    result = baseline.export(tiny, "onnx", tmp_path / "it.onnx", images=str(images))
    assert result.images == result.agreeing == 48 and result.max_difference < 1e-5 and not result.golden
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it.onnx", "labels.txt"]
    assert result.bytes == result.path.stat().st_size
    assert (tmp_path / "labels.txt").read_text() == "ants\nbees\nwasps\n"
    session = runtime.InferenceSession(result.path)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["ants", "bees", "wasps"] and json.loads(metadata["views"]) == ["flip"]
    paths = sorted(images.rglob("*.jpg"))[:5]
    opened = [Image.open(path).convert("RGB").resize((70, 90)) for path in paths]
    actual = session.run(None, {"images": np.stack(opened)})[0]
    expected = baseline.load(tiny).predict(opened)[PROBABILITIES].to_numpy()
    assert np.abs(actual - expected).max() < 1e-5 and np.ptp(expected) > 0.1
    with pytest.raises(OutputError, match=r"exists. Pass --overwrite"):
        baseline.export(tiny, "onnx", tmp_path / "it.onnx")


def test_onnx_in_8_bits_is_judged_on_other_images(
    tiny: Path, images: Path, onnx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_file, "MIN_AGREEMENT", 0.5)  # the network is untrained
    result = baseline.export(tiny, "onnx", images=str(images), int8=True, tta=False, size="fixed")
    assert result.images == 36 and result.agreement > 0.7 and 1e-5 < result.max_difference < 0.5
    assert result.path.name.endswith("-int8.onnx")
    monkeypatch.setattr(export_file, "MIN_AGREEMENT", 1.01)
    with pytest.raises(WeightsError, match=r"predicts \d+ of 36 images differently"):
        baseline.export(tiny, "onnx", "second.onnx", images=str(images), int8=True, tta=False, size="fixed")
    assert sorted(path.name for path in Path().iterdir()) == ["labels.txt", result.path.name]


def test_a_failure_of_torchs_exporter_names_the_versions(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, dynamic_shapes: Any = None, **__: Any) -> None:
        raise RuntimeError("\x1b[96mThis is step 3/3\x1b[0m of exporting.")

    pytest.importorskip("onnxscript")
    monkeypatch.setattr(torch.onnx, "export", fail)
    message = r"as onnx with torch \S+ and onnxscript \S+: This is step 3/3 of exporting\. Options: .* with newer ones"
    with pytest.raises(OutputError, match=message):
        baseline.export(tiny, "onnx")


def test_torch_export_needs_only_torch(tiny: Path, images: Path) -> None:
    result = baseline.export(tiny, "torch-export", size="fixed")
    assert result.golden and result.images == 4 and result.max_difference < 1e-5
    extra_files = {"baseline.json": ""}
    network = torch.export.load(result.path, extra_files=extra_files).module()
    assert json.loads(extra_files["baseline.json"])["classes"] == ["ants", "bees", "wasps"]
    Path("labels.txt").write_text("cats\n")
    with pytest.raises(OutputError, match=r"labels\.txt exists and lists other classes\. Pass --overwrite"):
        baseline.export(tiny, "torch-export", "other.pt2", size="fixed")
    image = Image.open(images / "ants" / "00.jpg").convert("RGB").resize((48, 48))
    actual = network(torch.from_numpy(np.asarray(image)[None].copy())).detach().numpy()  # torch 2.9 tracks gradients
    assert np.allclose(actual, baseline.load(tiny).predict([image])[PROBABILITIES].to_numpy(), atol=1e-5)


def test_a_learner_loads_in_a_fresh_process_and_predicts_the_same(tiny: Path) -> None:
    result = baseline.export(tiny, "learner", "here.pkl")
    assert (
        result.images == result.agreeing == 16
        and result.max_difference < 1e-5
        and result.path.read_bytes()[:2] == b"PK"
    )


def test_a_file_that_predicts_differently_is_not_kept(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def uncalibrated(network: Any, facts: Any, *args: Any, **kwargs: Any) -> ExportModule:
        return ExportModule(network, {**facts, "temperature": 1.0}, *args, **kwargs)

    monkeypatch.setattr(export_file, "ExportModule", uncalibrated)
    with pytest.raises(WeightsError, match=r"a probability differs by 0\.\d+, at most 0\.0001"):
        baseline.export(tiny, "torch-export", size="fixed", tta=False)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onx"}, "There is no format 'onx'. Did you mean 'onnx'"),
        ({"to": "onnx", "size": "big"}, "There is no size 'big'"),
        ({"to": "learner", "int8": True}, "int8 is available for onnx only, not for learner"),
        ({"to": "onnx", "int8": True}, "int8 needs images"),
        ({"to": "learner", "tta": False}, "Omit --size and --no-tta"),
        ({"to": "torch-export", "out": "it.onnx"}, "does not end in .pt2"),
        ({"to": "torch-export", "images": "nowhere/*.jpg"}, "There is no image, folder or table"),
        ({"to": "torch-export", "out": "/proc/it.pt2"}, "cannot be written"),
    ],
)
def test_invalid_options_are_refused_in_one_line(tiny: Path, options: dict[str, Any], message: str) -> None:
    if options["to"] == "onnx":
        pytest.importorskip("onnxruntime")
    with pytest.raises(baseline.BaselineError, match=message) as caught:
        baseline.export(tiny, **options)
    assert "\n" not in str(caught.value) and not list(Path().iterdir())


def test_onnx_says_which_torch_it_needs(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch.onnx, "export", lambda model, args, dynamo: None)  # as in torch 2.4
    with pytest.raises(OutputError, match=r"needs torch 2\.5 or newer, and .* is installed"):
        baseline.export(tiny, "onnx")
    assert not list(Path().iterdir())


def test_incomplete_models_and_missing_packages_are_reported(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match=r"model\.json cannot be read"):
        baseline.export("nowhere", "torch-export")
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / "golden.safetensors").unlink()
    with pytest.raises(OutputError, match=r"has no golden inputs.* Pass --images"):
        baseline.export(folder, "torch-export")
    monkeypatch.setattr(export_file, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"needs onnx, onnxruntime, onnxscript: pip install .*\[onnx\]'"):
        baseline.export(tiny, "onnx")
