"""What is exported predicts as the model does, from images of any size on; what does not is not kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import baseline
from baseline import OutputError, WeightsError
from baseline.data.image import load_image, resize_image
from baseline.deploy import export as exporting
from baseline.deploy import export_module
from baseline.deploy.export_module import ExportModule, pillow_resize

SHARES = ["p_ants", "p_bees", "p_wasps"]


@pytest.mark.parametrize("resize", ["squish", "crop", "pad"])
def test_resizing_is_pillows_to_the_last_bit(resize: str) -> None:
    rng = np.random.default_rng(0)
    sides = [
        (1, 7),
        (48, 48),
        (300, 20),
        (20, 300),
        (90, 60),
        (31, 97),
        (97, 33),
        (640, 480),
        *rng.integers(2, 200, (40, 2)),
    ]
    for high, wide in sides:
        size = int(rng.integers(8, 160))
        noise = rng.integers(0, 2, (high, wide, 3), dtype=np.uint8) * 255  # the hardest to round
        if resize == "pad" and min(high, wide) / max(high, wide) * size < 0.6:
            continue  # Pillow makes no picture of no pixels
        expected = np.asarray(resize_image(Image.fromarray(noise), size, resize))
        found = pillow_resize(torch.from_numpy(noise).permute(2, 0, 1)[None], size, resize)[0].permute(1, 2, 0).numpy()
        assert np.array_equal(found, expected), (high, wide, size)


@pytest.mark.parametrize(
    "facts",
    [
        {"tta": ["flip", "five_crops"], "resize": "crop", "crop": 0.64},
        {"labels": "many", "temperature": 3.0, "threshold": 0.4},
        {"labels": "many", "tta": [], "temperature": None, "resize": "pad"},
    ],
)
def test_the_module_predicts_as_the_model(tiny: Path, tmp_path: Path, images: Path, facts: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    told = json.loads((folder / "model.json").read_text()) | facts
    (folder / "model.json").write_text(json.dumps(told))
    model = baseline.load(folder)
    paths = sorted(images.rglob("*.jpg"))[:6]
    for views, tta in ((tuple(model.facts["tta"]), True), ((), False)):
        expected = model.predict(paths, tta=tta)[SHARES].to_numpy()
        module = ExportModule(model.network, model.facts, model.decoded_size, views, any_size=True)
        with torch.inference_mode():
            pictures = [np.array(load_image(path, model.decoded_size))[None] for path in paths]
            found = np.concatenate([module(torch.from_numpy(each)) for each in pictures])
        assert np.abs(found - expected).max() < 1e-5 and found.dtype == np.float32


def test_onnx_gives_what_predict_gives(tiny: Path, images: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    done = baseline.export(tiny, "onnx", tmp_path / "it.onnx", images=str(images))
    assert done.images == done.same == 48 and done.difference < 1e-5 and not done.golden
    assert [path.name for path in tmp_path.iterdir()] == ["it.onnx"] and done.bytes == done.path.stat().st_size
    session = runtime.InferenceSession(done.path)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == ["ants", "bees", "wasps"] and json.loads(told["views"]) == ["flip"]
    paths = sorted(images.rglob("*.jpg"))[:5]
    pictures = [Image.open(path).convert("RGB").resize((70, 90)) for path in paths]
    found = session.run(None, {"images": np.stack(pictures)})[0]
    expected = baseline.load(tiny).predict(pictures)[SHARES].to_numpy()
    assert np.abs(found - expected).max() < 1e-5 and np.ptp(expected) > 0.1
    with pytest.raises(OutputError, match=r"exists. Give --overwrite"):
        baseline.export(tiny, "onnx", tmp_path / "it.onnx")


def test_onnx_in_8_bits_is_judged_on_other_images(tiny: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(exporting, "MIN_AGREEMENT", 0.5)  # it is untrained
    done = baseline.export(tiny, "onnx", images=str(images), int8=True, tta=False, size="fixed")
    assert done.images == 36 and done.agreement > 0.7 and 1e-5 < done.difference < 0.5
    assert done.path.name.endswith("-int8.onnx")
    monkeypatch.setattr(exporting, "MIN_AGREEMENT", 1.01)
    with pytest.raises(WeightsError, match="of 36 images are predicted otherwise"):
        baseline.export(tiny, "onnx", "second.onnx", images=str(images), int8=True, tta=False, size="fixed")
    assert [path.name for path in Path().iterdir()] == [done.path.name]


def test_torch_export_needs_torch_alone(tiny: Path, images: Path) -> None:
    done = baseline.export(tiny, "torch-export", size="fixed")
    assert done.golden and done.images == 4 and done.difference < 1e-5
    told = {"baseline.json": ""}
    network = torch.export.load(done.path, extra_files=told).module()
    assert json.loads(told["baseline.json"])["classes"] == ["ants", "bees", "wasps"]
    picture = Image.open(images / "ants" / "00.jpg").convert("RGB").resize((48, 48))
    found = network(torch.from_numpy(np.asarray(picture)[None].copy())).numpy()
    assert np.allclose(found, baseline.load(tiny).predict([picture])[SHARES].to_numpy(), atol=1e-5)


def test_a_learner_loads_in_a_fresh_process_and_predicts_the_same(tiny: Path) -> None:
    done = baseline.export(tiny, "learner", "here.pkl")
    assert done.images == done.same == 16 and done.difference < 1e-5 and done.path.read_bytes()[:2] == b"PK"


def test_what_predicts_otherwise_is_not_kept(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(network: Any, facts: Any, *words: Any, **more: Any) -> ExportModule:
        return ExportModule(network, {**facts, "temperature": 1.0}, *words, **more)

    monkeypatch.setattr(export_module, "ExportModule", wrong)
    with pytest.raises(WeightsError, match=r"a probability differs by 0\.\d+, at most 0\.0001"):
        baseline.export(tiny, "torch-export", size="fixed", tta=False)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"to": "onx"}, "There is no form 'onx'. Did you mean 'onnx'"),
        ({"to": "onnx", "size": "big"}, "There is no size 'big'"),
        ({"to": "learner", "int8": True}, "int8 is for onnx, not learner"),
        ({"to": "onnx", "int8": True}, "int8 needs images"),
        ({"to": "learner", "tta": False}, "Leave out --size and --no-tta"),
        ({"to": "torch-export", "out": "it.onnx"}, "is no .pt2 file by its name"),
        ({"to": "torch-export", "images": "nowhere/*.jpg"}, "There is no image, folder or table"),
        ({"to": "torch-export", "out": "/proc/it.pt2"}, "cannot be written"),
    ],
)
def test_what_cannot_be_is_one_line(tiny: Path, words: dict[str, Any], message: str) -> None:
    if words["to"] == "onnx":
        pytest.importorskip("onnxruntime")
    with pytest.raises(baseline.BaselineError, match=message) as caught:
        baseline.export(tiny, **words)
    assert "\n" not in str(caught.value) and not list(Path().iterdir())


def test_models_that_are_not_whole_and_packages_that_lack_are_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match=r"model\.json cannot be read"):
        baseline.export("nowhere", "torch-export")
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / "golden.safetensors").unlink()
    with pytest.raises(OutputError, match=r"keeps no golden inputs.* Give --images"):
        baseline.export(folder, "torch-export")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"pip install 'fastai-baseline\[onnx\]'"):
        baseline.export(tiny, "onnx")
