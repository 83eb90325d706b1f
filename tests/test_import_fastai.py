"""Learners that fastai exported become model folders with the same predictions, or are refused in one line."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.transforms import Normalize, get_image_files, parent_label
from fastai.learner import load_learner
from fastai.vision.augment import PadMode, Resize, ResizeMethod, aug_transforms
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock, ImageDataLoaders
from fastai.vision.learner import vision_learner
from torch import nn
from torchvision.models import resnet18, squeezenet1_1

import baseline
from baseline.deploy.import_fastai import import_learner
from baseline.errors import OutputError, WeightsError

Options = dict[str, Any]


def export_learner(dls: Any, arch: Any, **options: Any) -> Path:
    """Export an untrained learner with fastai, with real BatchNorm statistics so that predictions differ by image."""
    torch.manual_seed(0)
    learn = vision_learner(dls, arch, pretrained=False, path=Path.cwd(), **options)
    for x, _ in dls.train if dls.train.bs > 1 else ():  # collects BatchNorm statistics
        with torch.no_grad():
            learn.model.train()(x)
    learn.export("theirs.pkl")
    return Path("theirs.pkl")


def folder_loaders(images: Path, **changes: Any) -> Any:
    options: Options = {"item_tfms": Resize(64), "valid_pct": 0.2, "bs": 8, "num_workers": 0, "seed": 1}
    return ImageDataLoaders.from_folder(images, **(options | changes))


SLOW_NETWORKS = [
    pytest.param(arch, marks=pytest.mark.slow, id=str(getattr(arch, "__name__", f"name-{arch}")))
    for arch in (resnet18, "mobilenetv3_small_050")
]


@pytest.mark.parametrize(
    "arch", [squeezenet1_1, "resnet18", *SLOW_NETWORKS], ids=lambda arch: getattr(arch, "__name__", f"name-{arch}")
)
def test_a_vision_learner_becomes_a_folder_that_predicts_the_same(images: Path, arch: Any) -> None:
    torch.manual_seed(0)  # the weights decide how many predictions another resizing changes
    stats = Normalize.from_stats((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    dls = folder_loaders(
        images, item_tfms=Resize(64, ResizeMethod.Squish), batch_tfms=[*aug_transforms(size=48), stats]
    )
    done = import_learner(export_learner(dls, arch), "ours", trust_pickle=True, images=str(images))
    model = baseline.load("ours")
    facts = model.config
    assert facts["mean"] == [0.4, 0.5, 0.6] and facts["std"] == [0.2, 0.3, 0.25] and facts["head"] == "fastai"
    assert (facts["image_size"], model.decoded_size, facts["resize"]) == (48, 64, "squish")
    assert facts["classes"] == ["ants", "bees"] and facts["task"] == "single" and model.check() < 1e-5
    assert done.network_difference < 1e-5 and done.images == 48 and done.agreeing >= 40, done
    assert any("bilinear" in text for text in done.preprocessing_differences)
    inputs = torch.rand(5, 3, 48, 48)
    with torch.inference_mode():
        assert torch.allclose(model.network(inputs), load_learner("theirs.pkl").model.eval()(inputs), atol=1e-5)


def test_multilabel_models_take_the_threshold_of_the_loss(images: Path) -> None:
    paths = sorted(images.rglob("*.jpg"))
    labels = ["ant;leg" if path.parent.name == "ants" else "bee" for path in paths]
    table = pd.DataFrame({"name": [str(path.relative_to(images)) for path in paths], "labels": labels})
    dls = ImageDataLoaders.from_df(
        table, images, label_delim=";", item_tfms=Resize(48), bs=8, num_workers=0, valid_pct=0.2, seed=1
    )
    done = import_learner(export_learner(dls, resnet18, n_out=3), "ours", trust_pickle=True, images=str(images))
    facts = baseline.load("ours").config
    assert facts["classes"] == ["ant", "bee", "leg"] and facts["task"] == "multilabel" and facts["threshold"] == 0.5
    assert facts["resize"] == "crop" and facts["mean"] == [0, 0, 0] and facts["std"] == [1, 1, 1]
    assert done.images == 48 and done.max_difference < 0.2


def test_a_learner_that_this_library_exported_comes_back_exactly(tiny: Path, images: Path) -> None:
    baseline.export(tiny, "learner", "mine.pkl")
    done = import_learner("mine.pkl", "back", trust_pickle=True, arch="test_efficientnet", images=str(images))
    assert done.agreeing == done.images == 48 and done.max_difference < 1e-5 and not done.preprocessing_differences
    before, after = (
        baseline.load(folder).predict(images, tta=False, calibrated=False)["confidence"] for folder in (tiny, "back")
    )
    assert np.allclose(before, after, atol=1e-6)


def regression_loaders(images: Path) -> Any:
    block = DataBlock(
        (ImageBlock, RegressionBlock), get_items=get_image_files, get_y=lambda path: 1.0, item_tfms=Resize(48)
    )
    return block.dataloaders(images, bs=8, num_workers=0)


def gray_loaders(images: Path) -> Any:
    blocks = (ImageBlock(PILImageBW), CategoryBlock)
    block = DataBlock(blocks, get_items=get_image_files, get_y=parent_label, item_tfms=Resize(48))
    return block.dataloaders(images, bs=8, num_workers=0)


@pytest.mark.parametrize(
    ("loaders", "options", "message"),
    [
        (folder_loaders, {"custom_head": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 2))},
         "its head is custom"),
        (folder_loaders, {"lin_ftrs": [64]}, "its head is custom"),
        (folder_loaders, {"y_range": (0, 1)}, "probabilities of resnet18 differ by"),
        (lambda images: folder_loaders(images, item_tfms=Resize((48, 64))), {}, "takes images of 64 x 48 pixels"),
        (lambda images: folder_loaders(images, item_tfms=None, bs=1), {}, "takes images of 300 x 400 pixels"),
        (regression_loaders, {"n_out": 1}, "not a single CategoryBlock"),
        (gray_loaders, {"n_in": 1}, r"not resnet18 as fastai cuts it: the first mismatch is in '0\.0\.weight'"),
    ],
)  # fmt: skip
def test_unsupported_learners_are_refused_in_one_line(
    images: Path, loaders: Any, options: Options, message: str
) -> None:
    with pytest.raises((OutputError, WeightsError), match=message) as caught:
        import_learner(export_learner(loaders(images), resnet18, **options), "ours", trust_pickle=True)
    assert "\n" not in str(caught.value) and [path.name for path in Path().iterdir()] == ["theirs.pkl"]


def test_padding_that_is_not_black_is_reported(images: Path) -> None:
    loaders = folder_loaders(images, item_tfms=Resize(48, ResizeMethod.Pad, pad_mode=PadMode.Reflection))
    done = import_learner(export_learner(loaders, resnet18), trust_pickle=True)
    assert (
        "black bars instead of reflection padding" in str(done) and done.folder == Path("theirs") and done.images == 0
    )


class Bomb:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_is_opened_only_where_it_is_trusted(images: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pkl"
    torch.save(Bomb(), bomb, pickle_module=pickle)
    with pytest.raises(OutputError, match=r"was not opened. If you trust its author, pass --trust-pickle"):
        import_learner(bomb)
    assert not Path("exploded").exists()
    with pytest.raises(
        (OutputError, WeightsError), match=r"contains an object of type NoneType, not a fastai Learner|cannot be loaded"
    ):
        import_learner(bomb, trust_pickle=True)
    assert Path("exploded").exists()  # so the check above would have noticed
    with pytest.raises(OutputError, match="There is no file"):
        import_learner("nowhere.pkl", trust_pickle=True)
    (tmp_path / "text.pkl").write_text("nothing")
    with pytest.raises(WeightsError, match="cannot be loaded: "):
        import_learner(tmp_path / "text.pkl", trust_pickle=True)
    Path("bomb").mkdir()
    with pytest.raises(OutputError, match="bomb exists"):
        import_learner(bomb, trust_pickle=True)
