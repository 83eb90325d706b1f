"""Learners that fastai really exported become model folders that predict as they did, or are refused in a line."""

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
from baseline import OutputError, WeightsError, import_learner

Build = dict[str, Any]


def exported(dls: Any, arch: Any, **more: Any) -> Path:
    """An untrained learner as fastai exports it, its last layer small so that predictions differ by image."""
    torch.manual_seed(0)
    learn = vision_learner(dls, arch, pretrained=False, path=Path.cwd(), **more)
    for x, _ in dls.train if dls.train.bs > 1 else ():  # BatchNorm takes real statistics
        with torch.no_grad():
            learn.model.train()(x)
    learn.export("theirs.pkl")
    return Path("theirs.pkl")


def folders(images: Path, **words: Any) -> Any:
    options: Build = {"item_tfms": Resize(64), "valid_pct": 0.2, "bs": 8, "num_workers": 0, "seed": 1}
    return ImageDataLoaders.from_folder(images, **(options | words))


@pytest.mark.parametrize(
    "arch",
    [resnet18, squeezenet1_1, "mobilenetv3_small_050", "resnet18"],
    ids=lambda arch: getattr(arch, "__name__", f"name-{arch}"),
)
def test_a_vision_learner_becomes_a_folder_that_predicts_the_same(images: Path, arch: Any) -> None:
    torch.manual_seed(0)  # how sure an untrained network is, and so how many images another resizing turns, is chance
    stats = Normalize.from_stats((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    dls = folders(images, item_tfms=Resize(64, ResizeMethod.Squish), batch_tfms=[*aug_transforms(size=48), stats])
    done = import_learner(exported(dls, arch), "ours", trust_pickle=True, images=str(images))
    model = baseline.load("ours")
    facts = model.facts
    assert facts["mean"] == [0.4, 0.5, 0.6] and facts["std"] == [0.2, 0.3, 0.25] and facts["head"] == "fastai"
    assert (facts["image_size"], model.decoded_size, facts["resize"]) == (48, 64, "squish")
    assert facts["classes"] == ["ants", "bees"] and facts["labels"] == "one" and model.check() < 1e-5
    assert done.difference < 1e-5 and done.images == 48 and done.same >= 40, done
    assert any("bilinear" in words for words in done.differs)
    inputs = torch.rand(5, 3, 48, 48)
    with torch.inference_mode():
        assert torch.allclose(model.network(inputs), load_learner("theirs.pkl").model.eval()(inputs), atol=1e-5)


def test_of_many_labels_the_threshold_is_the_losss(images: Path) -> None:
    paths = sorted(images.rglob("*.jpg"))
    words = ["ant;leg" if path.parent.name == "ants" else "bee" for path in paths]
    table = pd.DataFrame({"name": [str(path.relative_to(images)) for path in paths], "labels": words})
    dls = ImageDataLoaders.from_df(
        table, images, label_delim=";", item_tfms=Resize(48), bs=8, num_workers=0, valid_pct=0.2, seed=1
    )
    done = import_learner(exported(dls, resnet18, n_out=3), "ours", trust_pickle=True, images=str(images))
    facts = baseline.load("ours").facts
    assert facts["classes"] == ["ant", "bee", "leg"] and facts["labels"] == "many" and facts["threshold"] == 0.5
    assert facts["resize"] == "crop" and facts["mean"] == [0, 0, 0] and facts["std"] == [1, 1, 1]
    assert done.images == 48 and done.largest < 0.2


def test_what_this_library_exported_comes_back_exactly(tiny: Path, images: Path) -> None:
    baseline.export(tiny, "learner", "mine.pkl")
    done = import_learner("mine.pkl", "back", trust_pickle=True, arch="test_efficientnet", images=str(images))
    assert done.same == done.images == 48 and done.largest < 1e-5 and not done.differs
    before, after = (
        baseline.load(each).predict(images, tta=False, calibrated=False)["confidence"] for each in (tiny, "back")
    )
    assert np.allclose(before, after, atol=1e-6)


def numbers(images: Path) -> Any:
    block = DataBlock(
        (ImageBlock, RegressionBlock), get_items=get_image_files, get_y=lambda path: 1.0, item_tfms=Resize(48)
    )
    return block.dataloaders(images, bs=8, num_workers=0)


def greys(images: Path) -> Any:
    kinds = (ImageBlock(PILImageBW), CategoryBlock)
    block = DataBlock(kinds, get_items=get_image_files, get_y=parent_label, item_tfms=Resize(48))
    return block.dataloaders(images, bs=8, num_workers=0)


@pytest.mark.parametrize(
    ("loaders", "more", "message"),
    [
        (folders, {"custom_head": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 2))},
         "its head is its own"),
        (folders, {"lin_ftrs": [64]}, "its head is its own"),
        (folders, {"y_range": (0, 1)}, "gives probabilities that differ by"),
        (lambda images: folders(images, item_tfms=Resize((48, 64))), {}, "sees images of 64 x 48 pixels"),
        (lambda images: folders(images, item_tfms=None, bs=1), {}, "sees images of 300 x 400 pixels"),
        (numbers, {"n_out": 1}, "something else than one CategoryBlock"),
        (greys, {"n_in": 1}, r"not resnet18 as fastai cuts it, first in '0\.0\.weight'"),
    ],
)  # fmt: skip
def test_what_a_folder_cannot_say_is_refused_in_one_line(images: Path, loaders: Any, more: Build, message: str) -> None:
    with pytest.raises((OutputError, WeightsError), match=message) as caught:
        import_learner(exported(loaders(images), resnet18, **more), "ours", trust_pickle=True)
    assert "\n" not in str(caught.value) and [path.name for path in Path().iterdir()] == ["theirs.pkl"]


def test_bars_that_are_no_black_are_told(images: Path) -> None:
    loaders = folders(images, item_tfms=Resize(48, ResizeMethod.Pad, pad_mode=PadMode.Reflection))
    done = import_learner(exported(loaders, resnet18), trust_pickle=True)
    assert "black bars, not reflection" in str(done) and done.folder == Path("theirs") and done.images == 0


class Bomb:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_is_opened_only_where_it_is_trusted(images: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pkl"
    torch.save(Bomb(), bomb, pickle_module=pickle)
    with pytest.raises(OutputError, match=r"was not opened. If you trust who made it, give --trust-pickle"):
        import_learner(bomb)
    assert not Path("exploded").exists()
    with pytest.raises((OutputError, WeightsError), match=r"holds NoneType, no fastai Learner|cannot be loaded"):
        import_learner(bomb, trust_pickle=True)
    assert Path("exploded").exists()  # so the test before it would have seen it
    with pytest.raises(OutputError, match="There is no file"):
        import_learner("nowhere.pkl", trust_pickle=True)
    (tmp_path / "text.pkl").write_text("nothing")
    with pytest.raises(WeightsError, match="cannot be loaded: "):
        import_learner(tmp_path / "text.pkl", trust_pickle=True)
    Path("bomb").mkdir()
    with pytest.raises(OutputError, match="bomb exists"):
        import_learner(bomb, trust_pickle=True)
