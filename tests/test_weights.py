"""Pretrained weights: found offline first, verified, never executed; wrong files are refused with one line."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path

import matplotlib
import pytest
import sklearn
import timm
import torch
import torchvision
from conftest import REAL_WEIGHTS

from baseline.errors import RecipeError, WeightsError
from baseline.vision import weights, weights_download
from baseline.vision.network import build_network
from baseline.vision.weights import find_weights, normalization, state_dict

ARCH = "tf_efficientnet_lite0"


def test_embedded_weights_match_every_tensor_of_the_body() -> None:
    tensors = state_dict(find_weights(ARCH))
    own = timm.create_model(ARCH).state_dict()
    assert {name: value.shape for name, value in tensors.items()} == {name: value.shape for name, value in own.items()}


def test_the_embedded_body_tells_real_classes_apart() -> None:
    """ImageNet's own classifier on the embedded weights: wrong tensors or normalization would not know these."""
    shipped = {
        698: Path(sklearn.__file__).parent / "datasets/images/china.jpg",  # palace
        985: Path(sklearn.__file__).parent / "datasets/images/flower.jpg",  # daisy
        652: Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg",  # military uniform
    }
    from baseline.data.image import load_image, resize_image

    model = timm.create_model(ARCH)
    model.load_state_dict(state_dict(find_weights(ARCH)))
    batch = torch.stack(
        [
            torchvision.transforms.functional.to_tensor(resize_image(load_image(f), 224, "crop"))
            for f in shipped.values()
        ]
    )
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in normalization(ARCH))
    with torch.no_grad():
        best = model.eval()((batch - mean) / std).argmax(1)
    assert best.tolist() == list(shipped)


def test_normalization_belongs_to_the_weights() -> None:
    assert normalization(ARCH) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalization("resnet18")[0] == pytest.approx((0.485, 0.456, 0.406))
    assert normalization("mobilenet_v2")[1] == pytest.approx((0.229, 0.224, 0.225))


def test_unknown_architecture_error_suggests_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'resnet50'"):
        find_weights("resnet5O")


@pytest.mark.real_images
@pytest.mark.parametrize("name", ["mobilenet_v2-b0353104.pth", "squeezenet1_1.pth"])
def test_torchvision_weights_load_into_the_body(name: str) -> None:
    if not (REAL_WEIGHTS / name).exists():
        pytest.skip(f"{name} is not available")
    arch = name.split("-")[0].removesuffix(".pth")
    file_weights = find_weights(arch, REAL_WEIGHTS / name)
    model, _ = build_network(arch, 3, file_weights)
    first = next(iter(state_dict(file_weights).values()))
    assert torch.equal(next(model[0].parameters()), first)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def save_random_weights(arch: str, path: Path) -> Path:
    torch.save(getattr(torchvision.models, arch)(weights=None).state_dict(), path)
    return path


def test_file_with_a_wrong_hash_in_its_name_is_refused(tmp_path: Path) -> None:
    file = save_random_weights("squeezenet1_1", tmp_path / "squeezenet1_1-12345678.pth")
    with pytest.raises(WeightsError, match="is damaged: its sha256 starts with"):
        find_weights("squeezenet1_1", file)
    good = tmp_path / f"squeezenet1_1-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    assert find_weights("squeezenet1_1", file.rename(good)).path == good


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    file = save_random_weights("squeezenet1_1", tmp_path / "cut.pth")
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        state_dict(find_weights("squeezenet1_1", file))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(WeightsError, match="truncated or damaged"):
        state_dict(find_weights("squeezenet1_1", tmp_path / "cut.safetensors"))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    file = save_random_weights("squeezenet1_1", tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="does not hold weights of resnet18: 100 of 100 tensors"):
        build_network("resnet18", 2, find_weights("resnet18", file))


def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    for name, content in (("a.pth", pickle.dumps(Evil())), ("b.pth", pickle.dumps({"state_dict": Evil()}, protocol=2))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="no code in it was run"):
            state_dict(find_weights("resnet18", tmp_path / name))
    torch.save({"state_dict": Evil()}, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match="no code in it was run"):
        state_dict(find_weights("resnet18", tmp_path / "c.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["nowhere.pth", "image.jpg"])
def test_path_without_a_weights_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "image.jpg").touch()
    with pytest.raises(WeightsError, match="weights file"):
        find_weights("resnet18", tmp_path / name)


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    tensors = torchvision.models.squeezenet1_1(weights=None).state_dict()
    tensors["features.0.weight"][0] = float("nan")
    torch.save(tensors, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match="holds NaN or infinite values, first in 'features"):
        build_network("squeezenet1_1", 2, find_weights("squeezenet1_1", tmp_path / "nan.pth"))


def test_caches_and_kaggle_inputs_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_random_weights("squeezenet1_1", tmp_path / "any.pth")
    name = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("BASELINE_KAGGLE", str(tmp_path / "kaggle"))
    monkeypatch.setattr(weights, "hash_in_name", lambda path: "")  # the test files cannot have the real hash
    for folder in (tmp_path / "kaggle/input/some-set/deep", tmp_path / "torch/hub/checkpoints"):
        folder.mkdir(parents=True)
        shutil.copy(file, folder / name)
        assert find_weights("squeezenet1_1").path == folder / name  # torch's cache has precedence


def test_unavailable_weights_error_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        weights_download, "download_from_hub", lambda *_: (_ for _ in ()).throw(TimeoutError("no answer"))
    )
    with pytest.raises(
        WeightsError, match=r"TimeoutError: no answer\)\. Options: --weights PATH with resnet50-.*--no-pretrained"
    ):
        find_weights("resnet50")
    assert not weights.is_obtainable("resnet50")


@pytest.mark.parametrize("arch", ["vit_b_16", "swin_t", "shufflenet_v2_x1_0"])
def test_torchvision_networks_without_a_body_suggest_timm_models(arch: str) -> None:
    with pytest.raises(RecipeError, match="Use a similar timm model instead: "):
        build_network(arch, 2, None)


@pytest.mark.parametrize(
    ("arch", "groups"),
    [("resnet18", 3), ("squeezenet1_1", 3), ("mobilenet_v2", 3), ("regnet_y_400mf", 3), ("densenet121", 3),
     (ARCH, 9), ("mobilenetv3_small_100", 9), ("vit_tiny_patch16_224", 14), ("swin_tiny_patch4_window7_224", 7)],
)  # fmt: skip
def test_every_body_gets_a_head_and_every_parameter_a_group(arch: str, groups: int) -> None:
    model, splitter = build_network(arch, 5, None)
    parts = splitter(model)
    assert len(parts) == groups
    assert sorted(map(id, (p for part in parts for p in part))) == sorted(map(id, model.parameters()))
    size = 224 if "patch" in arch else 64
    assert model.eval()(torch.zeros(2, 3, size, size)).shape == (2, 5)
