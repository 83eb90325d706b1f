"""What a user hands in runs where fastai would run it, or one line says why it does not."""

from __future__ import annotations

import copy
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelTrainException,
    CancelValidException,
    FetchPredsCallback,
)
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.learner import AvgMetric, Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import F1Score, RocAucBinary, accuracy, error_rate
from fastai.optimizer import SGD
from fastai.torch_core import TensorImage, params
from fastai.vision.augment import RandomResizedCrop, Resize, aug_transforms
from fastai.vision.core import PILImage
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner
from fasttransform import Pipeline, Transform
from torch import nn
from torchvision.models import resnet18

import baseline
from baseline import Recipe, Stage, make_baseline, train
from baseline.errors import DataError, OutputError, RecipeError, TrainingError
from baseline.recipe.schema import NO_AUGMENT
from baseline.training.selection import SelectionMetric
from baseline.vision.rng import seed_everything
from baseline.vision.weights import normalization

HEAD = Stage("head", 2, 1e-2)


class Recorder(baseline.Progress):
    """Keeps the messages of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Count(Callback):
    """Counts training and validation batches."""

    train = valid = 0

    def before_batch(self) -> None:
        if self.training:
            self.train += 1
        else:
            self.valid += 1


class LockedCallback(Callback):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Black(Transform):
    """Makes every training image black."""

    order, split_idx = 50, 0

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        return images * 0


class Invert(Transform):
    """Inverts every image, in training and in prediction."""

    def encodes(self, image: PILImage):  # type: ignore[no-untyped-def]
        return PILImage.create(255 - np.asarray(image))


@pytest.fixture(scope="module")
def recipe(settled: tuple) -> Recipe:
    return settled[0].changed(
        stages=(HEAD, Stage(3, 1, 1e-4)), augment=NO_AUGMENT, frozen_precision="float32", cache_gb=0
    )


@pytest.fixture(scope="module")
def own_loaders(images: Path) -> DataLoaders:
    return ImageDataLoaders.from_folder(
        images, valid_pct=0.25, seed=0, item_tfms=Resize(48), batch_tfms=aug_transforms(), bs=8, num_workers=0
    )


def trained(table: pd.DataFrame, recipe: Recipe, progress: Any = None, **parts: Any) -> tuple[Learner, Any]:
    """Train from the same seed with these parts; return the Learner and its history."""
    progress = progress or baseline.Progress()
    loaders = {key: parts.pop(key) for key in ("item_tfms", "batch_tfms") if key in parts}
    with seed_everything(0):
        dls = baseline.dataloaders(table, recipe, **loaders)
        learn = baseline.learner(dls, recipe, **parts)
        return learn, train(learn, recipe, progress)


def weights(learn: Learner) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in learn.model.state_dict().values()])


# Selection


def test_an_error_rate_does_not_select_the_worst_epoch(settled: tuple, recipe: Recipe) -> None:
    plan = recipe.changed(stages=(Stage("head", 4, 3e-3, schedule="constant"), Stage("all", 1, 1.0)))
    _, history = trained(settled[1], plan, metrics=[error_rate])
    epochs = history.epochs
    assert np.allclose(epochs["valid_error_rate"], 1 - epochs["valid_accuracy"])
    best = epochs[epochs["best"]].iloc[-1]
    assert best["valid_accuracy"] == epochs["valid_accuracy"].max()


@pytest.mark.parametrize("metrics", [[], [accuracy, error_rate], [error_rate, RocAucBinary()], [accuracy]])
def test_metrics_have_columns_of_their_own_names(settled: tuple, recipe: Recipe, metrics: list[Any]) -> None:
    learn, history = trained(settled[1], recipe.changed(stages=(HEAD,)), metrics=metrics)
    own = [f"valid_{metric.name}" for metric in learn.metrics if metric.name != "accuracy"]
    expected = ["train_loss", "valid_loss", "valid_accuracy", *own, "seconds", "best"]
    assert list(history.epochs)[4:] == expected
    probabilities, targets = learn.get_preds()
    last = history.epochs[history.epochs["best"]].iloc[-1]
    assert last["valid_accuracy"] == pytest.approx(float((probabilities.argmax(1) == targets).float().mean()))
    assert last["valid_loss"] == pytest.approx(learn.validate()[0], abs=1e-4)


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "log_loss"])
def test_selection_metrics_equal_scikit_learn(name: str) -> None:
    from sklearn import metrics

    rng = np.random.default_rng(0)
    outputs, targets = torch.from_numpy(rng.normal(size=(40, 4))), torch.from_numpy(rng.choice([0, 0, 0, 1, 2], 40))
    predicted, selection = outputs.argmax(1), SelectionMetric(name, 4, multilabel=False)
    for rows in (slice(0, 16), slice(16, 40)):
        loss = nn.functional.cross_entropy(outputs[rows], targets[rows])
        selection.add(outputs[rows], targets[rows], float(loss))
    expected = {
        "accuracy": lambda: metrics.accuracy_score(targets, predicted),
        "balanced_accuracy": lambda: metrics.recall_score(
            targets, predicted, average="macro", labels=sorted({*targets.tolist()})
        ),
        "macro_f1": lambda: metrics.f1_score(targets, predicted, average="macro"),
        "micro_f1": lambda: metrics.f1_score(targets, predicted, average="micro"),
        "log_loss": lambda: metrics.log_loss(targets, outputs.softmax(1), labels=range(4)),
    }[name]()
    assert selection.value() == pytest.approx(expected)
    assert selection.score(selection.value()) == pytest.approx(-expected if name == "log_loss" else expected)


@pytest.mark.parametrize("name", ["micro_f1", "macro_f1", "accuracy"])
def test_selection_metrics_of_several_labels_equal_scikit_learn(name: str) -> None:
    from sklearn import metrics

    rng = np.random.default_rng(1)
    outputs, targets = torch.from_numpy(rng.normal(size=(30, 3))), torch.from_numpy(rng.integers(0, 2, (30, 3)))
    selection = SelectionMetric(name, 3, multilabel=True)
    selection.add(outputs, targets.float(), 0.5)
    decided = outputs >= 0
    expected = (
        metrics.accuracy_score(targets, decided)
        if name == "accuracy"
        else metrics.f1_score(targets, decided, average=name.removesuffix("_f1"))
    )
    assert selection.value() == pytest.approx(expected)


def test_the_recipe_names_the_metric_that_selects(settled: tuple, recipe: Recipe) -> None:
    plan = recipe.changed(metric="log_loss", stages=(Stage("head", 5, 3e-3, schedule="constant"),))
    _, history = trained(settled[1], plan)
    epochs = history.epochs
    assert "valid_accuracy" in epochs  # the Learner's own metric
    best = epochs.loc[epochs["best"], "valid_log_loss"].iloc[-1]
    assert best == epochs["valid_log_loss"].min() == pytest.approx(epochs["valid_loss"].min(), rel=1e-6)


# Callbacks and transforms in stages that could run on cached features


def test_callbacks_run_in_every_stage(settled: tuple, recipe: Recipe) -> None:
    count, progress = Count(), Recorder()
    learn, _ = trained(settled[1], recipe, progress, cbs=[count])
    assert (count.train, count.valid) == (3 * len(learn.dls.train), 3 * len(learn.dls.valid))
    assert "stage 1: Count must see the images of every epoch, so features are not cached" in progress.text


def test_a_cacheable_callback_runs_on_cached_features(settled: tuple, recipe: Recipe) -> None:
    count, progress = Count(), Recorder()
    count.cacheable = True  # type: ignore[attr-defined]
    trained(settled[1], recipe, progress, cbs=[count])
    assert count.train > 0 and "not cached" not in progress.text


@pytest.mark.parametrize("callback", [MixUp, CutMix])
def test_mixing_callbacks_change_the_head(settled: tuple, recipe: Recipe, callback: Any) -> None:
    plan = recipe.changed(stages=(HEAD,))
    plain, _ = trained(settled[1], plan)
    again, _ = trained(settled[1], plan)
    mixed, _ = trained(settled[1], plan, cbs=[callback(1.0)])
    assert torch.equal(weights(plain), weights(again)) and not torch.equal(weights(plain), weights(mixed))


def test_own_batch_transforms_run_in_head_stages(settled: tuple, recipe: Recipe) -> None:
    progress = Recorder()
    learn, history = trained(settled[1], recipe.changed(stages=(HEAD,)), progress, batch_tfms=[Black()])
    assert history.epochs["train_loss"].iloc[-1] == pytest.approx(np.log(2), abs=0.02), "black images tell nothing"
    assert "stage 1: Black must see the images of every epoch" in progress.text
    assert not any(isinstance(t, Black) and t.split_idx != 0 for t in learn.dls.valid.after_batch.fs)


def test_a_transform_that_is_added_to_finished_dataloaders_runs(settled: tuple, recipe: Recipe) -> None:
    with seed_everything(0):
        learn = baseline.learner(baseline.dataloaders(settled[1], recipe), recipe)
        learn.dls.add_tfms([Invert()], "after_item")
        inverted = learn.dls.valid.one_batch()[0]
        plain = baseline.dataloaders(settled[1], recipe).valid.one_batch()[0]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    norm = next(t for t in learn.dls.valid.after_batch.fs if isinstance(t, Normalize))
    mean, std = norm.mean.cpu(), norm.std.cpu()
    assert torch.allclose((inverted * std + mean) + (plain * std + mean), torch.ones(1), atol=2e-2)


@pytest.mark.usefixtures("no_page")
def test_item_transforms_run_in_training_validation_and_prediction(
    images: Path, recipe: Recipe, tmp_path: Path
) -> None:
    done = make_baseline(
        images, recipe.changed(stages=(HEAD,)), out=tmp_path / "run", item_tfms=[Invert()], progress=baseline.Progress()
    )
    plain = make_baseline(images, recipe.changed(stages=(HEAD,)), out=tmp_path / "plain", progress=baseline.Progress())
    columns = [name for name in done.predictions if name.startswith("p_")]
    expected = done.predictions[columns].to_numpy()
    assert np.abs(expected - plain.predictions[columns].to_numpy()).max() > 1e-3
    paths = list(done.predictions["path"])
    assert np.allclose(done.predict(paths, calibrated=False)[columns], expected, atol=1e-5)
    loaded = baseline.load(done.folder, item_tfms=[Invert()])
    assert np.allclose(loaded.predict(paths, calibrated=False)[columns], expected, atol=1e-5)
    single = done.predictions.iloc[0]
    _, _, probabilities = done.learner.predict(single["path"])
    assert np.argmax(probabilities.numpy()) == columns.index(f"p_{single['plain_predicted']}")
    with pytest.raises(OutputError, match=r"trained with transforms of your own.*Invert"):
        baseline.load(done.folder)
    with pytest.raises(OutputError, match="trained without Invert"):
        baseline.load(plain.folder, item_tfms=[Invert()])
    assert done.manifest["own_parts"] == {"item_tfms": ["Invert"]} and "own_parts" not in plain.manifest


@pytest.mark.usefixtures("no_page")
def test_batch_transforms_of_prediction_run_in_the_loaded_model(images: Path, recipe: Recipe, tmp_path: Path) -> None:
    class Darken(Transform):
        order = 50

        def encodes(self, batch: TensorImage):  # type: ignore[no-untyped-def]
            return batch * 0.2

    done = make_baseline(
        images,
        recipe.changed(stages=(HEAD,)),
        out=tmp_path / "run",
        batch_tfms=[Darken()],
        progress=baseline.Progress(),
    )
    columns = [name for name in done.predictions if name.startswith("p_")]
    actual = done.predict(list(done.predictions["path"]), calibrated=False)[columns]
    assert np.allclose(actual, done.predictions[columns], atol=1e-5)


class Center(Transform):
    """Subtracts the mean of a batch that it sees when it is set up."""

    order = 40

    def setups(self, loader: Any) -> None:
        self.mean = float(loader.one_batch()[0].mean())

    def encodes(self, batch: TensorImage):  # type: ignore[no-untyped-def]
        return batch - self.mean


@pytest.mark.usefixtures("no_page")
def test_a_loaded_model_normalizes_with_the_statistics_of_its_run(images: Path, recipe: Recipe, tmp_path: Path) -> None:
    plan, folder, center = recipe.changed(stages=(HEAD,), cache_gb=0.1), tmp_path / "run", Center()
    done = make_baseline(images, plan, out=folder, batch_tfms=[Normalize, center], progress=baseline.Progress())
    mean = center.mean
    columns = [name for name in done.predictions if name.startswith("p_")]
    expected, paths = done.predictions[columns], list(done.predictions["path"])
    assert np.allclose(done.predict(paths, calibrated=False)[columns], expected, atol=1e-5) and center.mean == mean
    loaded = baseline.load(folder, batch_tfms=[Normalize(), center])
    assert np.allclose(loaded.predict(paths, calibrated=False)[columns], expected, atol=1e-5)
    statistics = [t for t in done.learner.dls.valid.after_batch.fs if isinstance(t, Normalize)]
    assert len(statistics) == 1 and np.allclose(loaded.config["mean"], statistics[0].mean.flatten().cpu(), atol=1e-6)
    with pytest.raises(TrainingError, match="Prediction: the transform Center failed: AttributeError"):
        baseline.load(folder, batch_tfms=[Normalize(), Center()]).predict(paths)


class Brighter(Normalize):
    """Normalizes in another way."""

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        return images * 3


NORMALIZE = normalization("test_efficientnet")


@pytest.mark.parametrize(
    "own",
    [
        [Normalize.from_stats([0.1] * 3, [0.9] * 3)],
        [Normalize.from_stats(*NORMALIZE), Normalize.from_stats([0.1] * 3, [0.9] * 3)],
        [IntToFloatTensor(div=510.0)],
        [Brighter.from_stats(*NORMALIZE)],
    ],
    ids=["Normalize", "two", "IntToFloatTensor", "subclass"],
)
def test_other_parameters_are_not_mistaken_for_cached_features(settled: tuple, recipe: Recipe, own: list[Any]) -> None:
    plan = recipe.changed(stages=(HEAD,), cache_gb=0.1)
    expected, _ = trained(settled[1], plan.changed(cache_gb=0), batch_tfms=own)
    trained(settled[1], plan, batch_tfms=[])
    actual, _ = trained(settled[1], plan, batch_tfms=own)
    assert torch.equal(weights(actual), weights(expected))


@pytest.mark.usefixtures("no_page")
def test_train_only_transforms_need_nothing_at_prediction(images: Path, recipe: Recipe, tmp_path: Path) -> None:
    done = make_baseline(
        images, recipe.changed(stages=(HEAD,)), out=tmp_path / "run", batch_tfms=[Black()], progress=baseline.Progress()
    )
    assert "transforms" not in baseline.load(done.folder).config


# The recipe's augmentation, loss and schedule fields


CHANGES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"augment": {name: value}}) for name, value in {
        "rotate": 30.0, "zoom": 2.0, "lighting": 0.5, "warp": 0.5, "flip_vertical": True, "dihedral": True,
        "erase": 1.0, "rand_augment": 9, "crop": 0.4,
    }.items()),
    ("mixup", {"mixup": 0.4}),
    ("cutmix", {"cutmix": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), CHANGES, ids=[name for name, _ in CHANGES])
def test_what_changes_images_in_every_epoch_is_not_cached_and_changes_training(
    settled: tuple, recipe: Recipe, name: str, changes: dict[str, Any]
) -> None:
    plan, progress = recipe.changed(stages=(HEAD,), cache_gb=0), Recorder()
    plain, _ = trained(settled[1], plan.changed(stages=(Stage("head", 2, 1e-2),), freeze="fastai"))
    trained(settled[1], plan.changed(**changes), progress)
    assert f"stage 1: {name} must see the images of every epoch" in progress.text
    other, _ = trained(settled[1], plan.changed(**changes, freeze="fastai"))
    assert not torch.equal(weights(plain), weights(other)), f"{name} changes nothing"


def test_every_field_of_augmentation_is_covered() -> None:
    covered = {name for name, _ in CHANGES} | {"flip", "probability"}
    assert covered >= set(vars(NO_AUGMENT))


def test_a_stage_without_augmentation_is_cached(settled: tuple, recipe: Recipe) -> None:
    plan, progress = recipe.changed(augment={"rotate": 30.0, "flip": True}), Recorder()
    plan = plan.changed(stages=(Stage("head", 2, 1e-2, augment=False), Stage(3, 1, 1e-4)))
    trained(settled[1], plan, progress)
    assert "stage 1: rotate" not in progress.text and "stage 2: rotate must see" in progress.text
    assert "augment = false" in progress.text


@pytest.mark.parametrize(
    "changes",
    [{"loss": "focal"}, {"label_smoothing": 0.2}, {"weight_decay": 5.0}, {"ema": 0.9}, {"class_balance": "weights"}],
    ids=lambda changes: next(iter(changes)),
)
def test_fields_of_training_change_the_weights(settled: tuple, recipe: Recipe, changes: dict[str, Any]) -> None:
    table = settled[1].drop(index=settled[1].query("split == 'train' and label == 'ants'").index[:6])
    plan = recipe.changed(stages=(HEAD,))
    plain, _ = trained(table, plan)
    other, history = trained(table, plan.changed(**changes))
    assert not torch.equal(weights(plain), weights(other)) and history.epochs["train_loss"].notna().all()


def test_several_labels_are_balanced_by_positive_weights(settled: tuple, recipe: Recipe) -> None:
    rows = settled[1][settled[1]["split"] != "test"].reset_index(drop=True)
    table = rows.assign(label=["ants;bees" if n % 4 == 0 else "bees" for n in range(len(rows))])
    plan = recipe.changed(task="multilabel", class_balance="weights")
    learn = baseline.learner(baseline.dataloaders(table, plan), plan)
    train = table[table["split"] == "train"]["label"]
    ants = train.str.contains("ants").sum()
    assert learn.loss_func.func.pos_weight.tolist() == pytest.approx([(len(train) - ants) / ants, 1 / len(train)])
    with pytest.raises(RecipeError, match="class_balance is 'sampler'"):
        plan.changed(class_balance="sampler")


def test_ema_weights_are_those_that_are_validated_and_kept(settled: tuple, recipe: Recipe) -> None:
    plan = recipe.changed(stages=(Stage("head", 3, 1e-2),), ema=0.95)
    learn, history = trained(settled[1], plan)
    loss = learn.validate()[0]
    assert loss == pytest.approx(history.epochs.loc[history.epochs["best"], "valid_loss"].iloc[-1], abs=1e-4)


def test_ema_weights_decide_the_best_epoch_and_the_patience(settled: tuple, recipe: Recipe) -> None:
    class Weights(Callback):
        """Keeps the weights of every epoch as trained and as validated."""

        def __init__(self) -> None:
            super().__init__()
            self.trained: list[torch.Tensor] = []
            self.validated: list[torch.Tensor] = []

        def after_train(self) -> None:
            self.trained.append(torch.cat([p.detach().flatten() for p in self.learn.model.parameters()]))

        def after_validate(self) -> None:
            self.validated.append(torch.cat([p.detach().flatten() for p in self.learn.model.parameters()]))

    kept, progress = Weights(), Recorder()
    plan = recipe.changed(stages=(Stage("head", 6, 0.3),), ema=0.9, patience=1, metric="log_loss")
    learn, history = trained(settled[1], plan, progress, cbs=kept)
    epochs = history.epochs
    best = int(epochs["valid_log_loss"].argmin())
    final = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    assert torch.equal(final, kept.validated[best]) and not torch.equal(final, kept.trained[best])
    assert list(epochs["best"]) == list(epochs["valid_log_loss"].cummin() == epochs["valid_log_loss"])
    worse = int((epochs["valid_log_loss"].diff() > 0).to_numpy().argmax())
    assert len(epochs) in (worse + 1, 6) and (len(epochs) == 6 or "no improvement for 1 epoch" in progress.text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": 0.4, "cutmix": 1.0}, "mixup and cutmix are both above 0"),
        ({"task": "multilabel", "loss": "focal"}, "loss and label_smoothing need one label per image"),
        ({"loss": "focal", "label_smoothing": 0.1}, "label_smoothing needs loss 'cross_entropy'"),
        ({"metric": "f2"}, "metric is 'f2'"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe().changed(**changes)


# DataLoaders and Learners of the user's


def test_normalize_is_added_to_own_dataloaders(own_loaders: DataLoaders, settled: tuple) -> None:
    recipe = settled[0]
    dls, progress = own_loaders, Recorder()
    assert not dls.after_batch.fs.filter(lambda t: isinstance(t, Normalize))
    baseline.learner(dls, recipe, progress=progress)
    assert len(dls.after_batch.fs.filter(lambda t: isinstance(t, Normalize))) == 1
    assert "added Normalize" in progress.text
    baseline.learner(dls, recipe)
    assert len(dls.after_batch.fs.filter(lambda t: isinstance(t, Normalize))) == 1


def test_own_dataloaders_make_a_run(
    images: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dls = ImageDataLoaders.from_folder(images, valid_pct=0.25, seed=0, item_tfms=Resize((40, 64)), bs=8, num_workers=0)
    read_batch, read = DataLoader.one_batch, []
    monkeypatch.setattr(DataLoader, "one_batch", lambda loader: (read.append(loader), read_batch(loader))[1])
    progress = Recorder()
    done = make_baseline(dls, recipe.changed(stages=(HEAD,)), out=tmp_path / "run", progress=progress)
    valid = done.predictions
    assert set(valid["path"]) == {str(path) for path in dls.valid_ds.items} and set(valid["split"]) == {"valid"}
    assert dict(zip(valid["path"], valid["label"], strict=True)) == {p: Path(p).parent.name for p in valid["path"]}
    probabilities, _ = done.learner.get_preds(dl=dls.test_dl(list(valid["path"])))
    plain = [str(dls.vocab[i]) for i in probabilities.argmax(1)]
    assert plain == list(valid["plain_predicted"])
    assert "of your DataLoaders, 40 x 64 px (height x width), batches of 8" in progress.text
    assert done.manifest["image_shape"] == (40, 64) and "40 x 64 px" in done.manifest["reasons"]["image_size"]
    assert "test_efficientnet at 40 x 64 pixels" in (done.folder / "report.html").read_text()
    assert "40 x 64 pixels (height x width)" in (done.folder / "model" / "README.md").read_text()
    assert read.count(dls.valid) == 1
    with pytest.raises(OutputError, match="your DataLoaders"):
        _ = done.model
    with pytest.raises(RecipeError, match="item_tfms cannot be given together with your DataLoaders"):
        make_baseline(dls, recipe, item_tfms=[Invert()])


@pytest.mark.usefixtures("no_page")
def test_a_network_for_one_shape_trains_on_rectangles(images: Path, recipe: Recipe, tmp_path: Path) -> None:
    dls = ImageDataLoaders.from_folder(images, valid_pct=0.25, seed=0, item_tfms=Resize((40, 64)), bs=8, num_workers=0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 20 * 32, 2))
    learn, plan = (
        Learner(dls, network, loss_func=CrossEntropyLossFlat()),
        recipe.changed(stages=(Stage("all", 1, 1e-3),)),
    )
    done = make_baseline(learn, plan, out=tmp_path / "run", progress=baseline.Progress())
    assert len(done.history.epochs) == 1 and len(done.predictions) == 12
    with pytest.raises(TrainingError, match="does not take images of 8 x 3 x 40 x 64"):
        vit = plan.changed(arch="vit_tiny_patch16_224", weights="", pretrained=False)
        make_baseline(dls, vit, out=tmp_path / "vit", progress=baseline.Progress())


@pytest.mark.usefixtures("no_page")
def test_the_model_of_rectangular_batches_predicts_as_its_run(images: Path, recipe: Recipe, tmp_path: Path) -> None:
    transforms = aug_transforms(size=(40, 64))
    plan = recipe.changed(stages=(Stage("all", 1, 1e-3),))
    done = make_baseline(images, plan, out=tmp_path / "run", batch_tfms=transforms, progress=baseline.Progress())
    assert done.learner.dls.valid.one_batch()[0].shape[-2:] == (40, 64)
    columns = [name for name in done.predictions if name.startswith("p_")]
    loaded = baseline.load(done.folder, batch_tfms=aug_transforms(size=(40, 64)))
    actual = loaded.predict(list(done.predictions["path"]), calibrated=False)[columns]
    assert np.allclose(actual, done.predictions[columns], atol=1e-5)


@pytest.mark.usefixtures("no_page")
def test_own_learners_keep_their_parts(images: Path, recipe: Recipe, tmp_path: Path) -> None:
    dls = ImageDataLoaders.from_folder(images, valid_pct=0.25, seed=0, item_tfms=Resize(48), bs=8, num_workers=0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    count, progress = Count(), Recorder()
    learn = Learner(dls, network, loss_func=CrossEntropyLossFlat(), opt_func=SGD, metrics=error_rate, cbs=[count])
    before = weights(learn)
    done = make_baseline(
        learn, recipe.changed(stages=(Stage("all", 2, 1e-3),)), out=tmp_path / "run", progress=progress
    )
    assert done.learner is learn and count.train == 2 * len(dls.train) and not torch.equal(before, weights(learn))
    assert learn.opt_func is SGD and "the Learner's own opt_func is used" in progress.text
    assert "valid_error_rate" in done.history.epochs
    assert (done.folder / "weights.safetensors").exists() and not (done.folder / "model" / "model.json").exists()
    with pytest.raises(RecipeError, match="loss_func cannot be given together with your Learner"):
        make_baseline(learn, recipe, loss_func=CrossEntropyLossFlat())


HEAD_LIKE_FASTAI = Stage("head", 1, 1e-2, batch_norm="train", augment=False), {"freeze": "fastai"}


@pytest.mark.parametrize(
    ("settings", "stage", "changes"),
    [
        ({"wd": 0.9}, Stage("all", 1, 1e-2, batch_norm="train"), {"weight_decay": 0.05}),
        ({"wd": 0.9, "wd_bn_bias": True}, Stage("all", 1, 1e-2, batch_norm="train"), {}),
        ({"moms": (0.5, 0.3, 0.5)}, Stage("all", 1, 1e-2, batch_norm="train"), {}),
        ({"train_bn": False}, *HEAD_LIKE_FASTAI),
        ({"train_bn": True}, *HEAD_LIKE_FASTAI),
    ],
    ids=["wd", "wd_bn_bias", "moms", "train_bn=False", "train_bn=True"],
)
def test_own_learners_train_as_with_fastai(
    images: Path, recipe: Recipe, settings: dict[str, Any], stage: Stage, changes: dict[str, Any]
) -> None:
    dls = ImageDataLoaders.from_folder(
        images, valid_pct=0.25, seed=0, item_tfms=Resize(48, "squish"), bs=12, num_workers=0
    )
    dls.loaders[0] = dls.train.new(shuffle=False)
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network, progress = nn.Sequential(body, nn.Linear(8, 2)), Recorder()
    ours, theirs, plain = (
        Learner(dls, copy.deepcopy(network), splitter=lambda model: [params(part) for part in model], **given)
        for given in (settings, settings, {"train_bn": "train_bn" not in settings or not settings["train_bn"]})
    )
    for learn in (theirs, plain):
        learn.freeze_to(-1 if stage.is_head else 0)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(1, 1e-2)
    train(ours, recipe.changed(stages=(stage,), **changes), progress)
    assert torch.allclose(weights(ours), weights(theirs), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(weights(ours), weights(plain), rtol=1e-4, atol=1e-6)
    said = "the Learner's own wd = 0.9 is used, in place of the recipe's weight_decay"
    assert (said in progress.text) == ("weight_decay" in changes)
    assert all(getattr(ours, name) == value for name, value in settings.items())


@pytest.mark.usefixtures("no_page")
def test_a_vision_learner_trains(images: Path, recipe: Recipe, tmp_path: Path) -> None:
    dls = ImageDataLoaders.from_folder(images, valid_pct=0.25, seed=0, item_tfms=Resize(48), bs=8, num_workers=0)
    learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy)
    done = make_baseline(learn, recipe.changed(stages=(HEAD,)), out=tmp_path / "run", progress=baseline.Progress())
    assert done.recipe.model.arch == "resnet18" and len(done.history.epochs) == 2
    assert set(done.predictions["label"]) <= {"ants", "bees"}


def test_plain_fastai_dataloaders_train(own_loaders: DataLoaders, recipe: Recipe) -> None:
    learn = vision_learner(own_loaders, resnet18, pretrained=False)
    history = train(learn, recipe.changed(stages=(HEAD,)), baseline.Progress())
    assert history.epochs["valid_accuracy"].notna().all() and "valid_loss" in history.epochs


def test_dataloaders_of_plain_data_sets_train(recipe: Recipe) -> None:
    rng = torch.Generator().manual_seed(0)
    items = [(TensorImage(torch.rand(3, 32, 32, generator=rng)), n % 2) for n in range(24)]
    dls = DataLoaders.from_dsets(items[:16], items[16:], bs=8, num_workers=0, device="cpu")
    with pytest.raises(DataError, match="have no vocabulary"):
        baseline.learner(dls, recipe)
    dls.vocab = ["even", "odd"]
    learn = baseline.learner(dls, recipe)
    train(learn, recipe.changed(stages=(HEAD,)), baseline.Progress())
    from baseline.vision.own_loaders import own_table

    predictions = baseline.predict(learn, own_table(dls))
    assert list(predictions["path"]) == [f"valid/{n}" for n in range(8)]
    assert list(predictions["label"]) == ["even", "odd"] * 4


def test_targets_that_are_no_classes_are_refused(images: Path, recipe: Recipe) -> None:
    table = pd.DataFrame({"path": sorted(str(p) for p in images.rglob("*.jpg"))})
    table["age"] = np.linspace(0, 9, len(table))
    from fastai.data.block import DataBlock, RegressionBlock
    from fastai.data.transforms import ColReader
    from fastai.vision.data import ImageBlock

    block = DataBlock(
        (ImageBlock, RegressionBlock), get_x=ColReader("path"), get_y=ColReader("age"), item_tfms=Resize(48)
    )
    with pytest.raises(DataError, match="classes were needed"):
        baseline.learner(block.dataloaders(table, bs=8), recipe)


# Several runs


@pytest.mark.usefixtures("no_page")
def test_each_of_several_runs_gets_copies_of_own_parts(images: Path, recipe: Recipe, tmp_path: Path) -> None:
    class Once(Callback):
        """Notes the state that it starts a fit with."""

        fits: list[int] = []  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def before_fit(self) -> None:
            self.fits.append(self.count)
            self.count += 1

    plan, progress, once = recipe.changed(stages=(Stage("head", 1, "find"),)), Recorder(), Once()
    options: dict[str, Any] = {"cbs": (cb for cb in [once]), "metrics": error_rate, "progress": progress}
    seeds = baseline.run_seeds(2, images, plan, out=tmp_path / "runs", **options)
    assert Once.fits == [0, 1] * 2 and once.count == 0  # a search for a rate, and a stage
    assert "cbs: each seed gets copies" in progress.text
    for run in seeds.runs:
        assert "valid_error_rate" in pd.read_csv(Path(run["folder"]) / "history.csv")
    with pytest.raises(OutputError, match=r"was trained with different settings \(parts of your own\)"):
        baseline.run_seeds(3, images, plan, out=tmp_path / "runs", resume=True, progress=progress)


@pytest.mark.usefixtures("no_page")
def test_own_dataloaders_give_the_same_numbers_for_the_same_seed(
    own_loaders: DataLoaders, recipe: Recipe, tmp_path: Path
) -> None:
    plan, runs = recipe.changed(stages=(Stage("all", 1, 1e-3),)), []
    for name in "ab":
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        learn = Learner(own_loaders, network, loss_func=CrossEntropyLossFlat())
        runs.append(make_baseline(learn, plan, seed=3, out=tmp_path / name, progress=baseline.Progress()))
    assert runs[0].predictions.equals(runs[1].predictions)


def test_what_repeats_runs_refuses_what_it_cannot_repeat(
    own_loaders: DataLoaders, images: Path, recipe: Recipe
) -> None:
    learn = vision_learner(own_loaders, resnet18, pretrained=False)
    with pytest.raises(RecipeError, match="A Learner trains on, so that seeds would not start alike"):
        baseline.run_seeds(2, learn, recipe)
    with pytest.raises(RecipeError, match="cbs cannot be copied for each run"):
        baseline.run_seeds(2, images, recipe, cbs=LockedCallback())
    with pytest.raises(RecipeError, match="A ladder does not take item_tfms and cbs"):
        baseline.run_ladder(images, recipe, item_tfms=Invert(), cbs=Count())
    with pytest.raises(RecipeError, match="A learning curve does not take your DataLoaders"):
        baseline.run_learning_curve(own_loaders, recipe)


# Files


@pytest.mark.usefixtures("no_page")
def test_callbacks_write_beside_the_files_of_the_run(images: Path, recipe: Recipe, tmp_path: Path) -> None:
    done = make_baseline(
        images, recipe.changed(stages=(HEAD,)), out=tmp_path / "run", cbs=[CSVLogger()], progress=baseline.Progress()
    )
    assert done.learner.path == done.folder / "scratch" and (done.folder / "scratch" / "history.csv").exists()
    assert "best" in pd.read_csv(done.folder / "history.csv")


def test_the_learner_of_a_run_can_be_exported(done: Any) -> None:
    done.learner.export("export.pkl")
    exported = done.folder / "scratch" / "export.pkl"
    assert exported.stat().st_size > 1e6
    exported.unlink()


def test_a_report_survives_a_damaged_history(done: Any, tmp_path: Path) -> None:
    from baseline.report.page import write_report

    run = shutil.copytree(done.folder, tmp_path / "run")
    (run / "history.csv").write_text("epoch,train_loss,valid_loss,time\n0,0.7,0.6,00:01\n")
    progress = Recorder()
    page = write_report(run, progress)
    assert page.exists() and "history.csv" in progress.text and "training curves are left out" in progress.text


# Wrong parts


class Small(Transform):
    """Returns images of another size, by chance."""

    order = 30

    def encodes(self, batch: TensorImage):  # type: ignore[no-untyped-def]
        return batch[..., 0, 0]


class Broken(Transform):
    def encodes(self, image: PILImage):  # type: ignore[no-untyped-def]
        raise ZeroDivisionError("division by zero")


class Nothing(Transform):
    order = 9

    def encodes(self, image: TensorImage):  # type: ignore[no-untyped-def]
        return "text"


class Failing(Callback):
    def after_step(self) -> None:
        raise KeyError("no such thing")


def failing_metric(outputs: Any, targets: Any) -> float:
    raise ValueError("only one class")


def vector_metric(outputs: Any, targets: Any) -> Any:
    return torch.ones(3)


def vector_loss(outputs: Any, targets: Any) -> Any:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def wrong_loss(outputs: Any, targets: Any) -> Any:
    return nn.functional.mse_loss(outputs, targets)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"batch_tfms": [Small()]},
            r"the transforms \(Small\) make train batches of 1 x 3 x 16 x 3, float32",
        ),
        ({"item_tfms": [Broken()]}, "First image: the transform Broken failed: ZeroDivisionError: division by zero"),
        ({"item_tfms": [Nothing()]}, r"the transforms \(Nothing\) make"),
        ({"loss_func": vector_loss}, "the loss_func vector_loss returned 4, float32; one number was needed"),
        ({"loss_func": CrossEntropyLossFlat(reduction="none")}, "CrossEntropyLossFlat returned 4, float32; one number"),
        ({"loss_func": lambda outputs, targets: torch.tensor(1.0)}, "returned a number without a gradient"),
        ({"cbs": [MixUp(), CutMix()]}, "MixUp and CutMix cannot mix the same images"),
        ({"loss_func": wrong_loss}, "the loss_func wrong_loss failed: RuntimeError"),
        ({"metrics": [failing_metric]}, "Stage 1: the metric failing_metric failed: ValueError: only one class"),
        ({"metrics": [vector_metric]}, "Stage 1: the metric vector_metric returned"),
        ({"cbs": [Failing()]}, "Stage 1: the callback Failing failed: KeyError"),
    ],
    ids=[
        "shape",
        "error",
        "type",
        "vector loss",
        "losses",
        "no gradient",
        "mixing",
        "wrong loss",
        "metric",
        "vector metric",
        "callback",
    ],
)
def test_a_wrong_part_is_named(settled: tuple, recipe: Recipe, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        trained(settled[1], recipe.changed(stages=(HEAD,)), **parts)


def test_an_error_in_the_loop_is_one_line(settled: tuple, recipe: Recipe) -> None:
    with pytest.raises(TrainingError) as error:
        trained(settled[1], recipe.changed(stages=(HEAD,)), metrics=[vector_metric])
    assert str(error.value).startswith("Stage 1: the metric vector_metric returned") and "\n" not in str(error.value)


def test_item_transforms_of_fastai_keep_their_meaning(settled: tuple, recipe: Recipe) -> None:
    dls = baseline.dataloaders(settled[1], recipe, item_tfms=RandomResizedCrop(48, min_scale=0.3))
    with seed_everything(0):
        first = dls.train.new(shuffle=False).one_batch()[0]
        second = dls.train.new(shuffle=False).one_batch()[0]
    valid = [dls.valid.one_batch()[0] for _ in range(2)]
    assert not torch.equal(first, second) and torch.equal(*valid) and first.shape[-1] == 48


def test_cached_features_train_what_images_train(settled: tuple, recipe: Recipe) -> None:
    """With all images in each batch, order does not matter, and both ways take the same steps."""
    table, images = settled[1], int((settled[1]["split"] == "train").sum())
    stages = (Stage("head", 3, 1e-2, optimizer="sgd", schedule="constant"),)
    plan = recipe.changed(stages=stages, batch_size=images)
    cached, history = trained(table, plan)
    on_images, expected = trained(table, plan, cbs=[Count()])
    assert torch.allclose(weights(cached), weights(on_images), atol=1e-5)
    columns = ["train_loss", "valid_loss", "valid_accuracy"]
    assert np.allclose(history.epochs[columns], expected.epochs[columns], atol=1e-5)


def test_layers_that_an_earlier_stage_trained_are_frozen_in_a_stage_on_images(settled: tuple, recipe: Recipe) -> None:
    plan, states = recipe.changed(stages=(Stage("all", 1, 1e-3), Stage("head", 1, 1e-2)), weight_decay=0.1), []

    class Body(Callback):
        def before_train(self) -> None:
            states.append({name: value.clone() for name, value in self.learn.model[0].state_dict().items()})

        def after_train(self) -> None:
            self.before_train()

    trained(settled[1], plan, cbs=[Body()])
    before, after = states[2:]
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# Parts as fastai's users hand them in


class Turn(Transform):
    """Counts its calls by its amount."""

    calls: list[int] = []  # noqa: RUF012

    def __init__(self, amount: int) -> None:
        super().__init__()
        self.amount = amount

    def encodes(self, image: PILImage):  # type: ignore[no-untyped-def]
        self.calls.append(self.amount)
        return image


def test_all_transforms_of_a_class_run(settled: tuple, recipe: Recipe) -> None:
    Turn.calls.clear()
    baseline.dataloaders(settled[1], recipe, item_tfms=[Turn(1), Turn(2)]).train.one_batch()
    assert Turn.calls.count(1) == Turn.calls.count(2) > 0


@pytest.mark.usefixtures("no_page")
def test_parts_from_an_iterator_are_not_lost(images: Path, recipe: Recipe, tmp_path: Path) -> None:
    count = Count()
    done = make_baseline(
        images, recipe.changed(stages=(HEAD,)), out=tmp_path / "run", progress=baseline.Progress(),
        cbs=(part for part in [count]), metrics=(part for part in [error_rate]),
    )  # fmt: skip
    assert count.train and "valid_error_rate" in done.history.epochs


@pytest.mark.parametrize(
    "parts",
    [{"item_tfms": 3}, {"item_tfms": Resize}, {"batch_tfms": "flip"}, {"loss_func": "focal"},
     {"loss_func": nn.CrossEntropyLoss}, {"metrics": "accuracy"}, {"cbs": 3}, {"cbs": [len]}],
    ids=str,
)  # fmt: skip
def test_what_is_no_such_part_is_refused(settled: tuple, recipe: Recipe, parts: dict[str, Any]) -> None:
    with pytest.raises(
        RecipeError, match=f"{next(iter(parts))}: .* was given(; a .* was needed| without its arguments)"
    ):
        trained(settled[1], recipe.changed(stages=(HEAD,)), **parts)


def test_trackers_sit_out_the_search_for_a_rate_and_their_early_end_is_recorded(
    settled: tuple, recipe: Recipe, tmp_path: Path
) -> None:
    progress, stages = Recorder(), (Stage("head", 5, "find"),)
    parts = [SaveModelCallback(), EarlyStoppingCallback(min_delta=9.0, patience=1)]
    _, history = trained(settled[1], recipe.changed(stages=stages), progress, cbs=parts, path=tmp_path)
    assert len(history.epochs) == 2 and (tmp_path / "models" / "model.pth").exists()
    assert history.stages[0]["cut_short"] == "a callback ended it, with 2 of 5 epochs recorded"
    assert "stage 1: a callback ended it" in progress.text


class Cancel(Callback):
    """Raises an exception at an event of some epochs, of training or validation only where that is said."""

    def __init__(
        self, error: type[BaseException], epochs: tuple[int, ...], event: str = "before_batch", training: Any = None
    ) -> None:
        super().__init__()
        self.error, self.epochs, self.event, self.when = error, epochs, event, training

    def __call__(self, event: str) -> None:
        if event == self.event and self.epoch in self.epochs and self.when in (None, self.learn.training):
            raise self.error()


CANCELLED = [
    ("before_epoch", CancelEpochException, 0, None, [2]),
    ("before_epoch", CancelEpochException, 1, None, [1]),
    ("before_validate", CancelValidException, 0, None, [2]),
    ("before_validate", CancelValidException, 1, None, [1]),
    ("before_batch", CancelBatchException, 0, True, [1, 2]),
    ("after_pred", CancelBatchException, 1, False, [1]),
    ("before_train", CancelTrainException, 0, None, [1, 2]),
    ("after_validate", CancelEpochException, 0, None, [1, 2]),
    ("after_epoch", CancelFitException, 0, None, [1]),
    ("before_train", CancelFitException, 1, None, [1]),
]
"""Event, exception, number of the epoch from 0, whether in training, and the epochs that are recorded."""


@pytest.mark.parametrize("changes", [{"mixup": 0.4}, {"ema": 0.9, "patience": 1}], ids=["mixup", "ema"])
@pytest.mark.parametrize(("event", "error", "epoch", "training", "recorded"), CANCELLED)
def test_what_callbacks_cancel_is_left_out(
    settled: tuple, recipe: Recipe, changes: dict[str, Any], event: str, error: Any, epoch: int, training: Any,
    recorded: list[int],
) -> None:  # fmt: skip
    stage = Stage("head", 2, 1e-2, schedule="plateau")
    progress, cancel = Recorder(), Cancel(error, (epoch,), event, training)
    learn, history = trained(settled[1], recipe.changed(stages=(stage,), **changes), progress, cbs=cancel)
    assert list(history.epochs["epoch"]) == recorded and type(learn.loss_func) is CrossEntropyLossFlat
    assert (f"epoch {epoch + 1}/2: a callback ended it" in progress.text) == (
        epoch + 1 not in recorded and error is not CancelFitException
    )
    best = history.epochs[history.epochs["best"]].iloc[-1]
    assert learn.remove_cb(cancel).validate()[0] == pytest.approx(best["valid_loss"], abs=1e-4)


def test_a_search_for_a_rate_stands_what_callbacks_cancel(settled: tuple, recipe: Recipe) -> None:
    cancel = [Cancel(CancelEpochException, (0,), "before_epoch"), Cancel(CancelBatchException, (1,), training=True)]
    _, history = trained(settled[1], recipe.changed(stages=(Stage("head", 2, "find"),)), cbs=cancel)
    assert list(history.epochs["epoch"]) == [2] and history.epochs["valid_loss"].notna().all()


def test_an_epoch_that_is_validated_in_part_is_not_better_than_a_whole_one(settled: tuple, recipe: Recipe) -> None:
    class LeaveOut(Callback):
        def before_batch(self) -> None:
            if not self.training and self.epoch and self.iter:
                raise CancelValidException()

    progress, plan = Recorder(), recipe.changed(stages=(Stage("head", 2, 1e-2),), batch_size=2)
    _, history = trained(settled[1], plan, progress, cbs=LeaveOut())
    assert "epoch 2/2: callbacks left out 1 of 2 batches of its validation" in progress.text
    assert list(history.epochs["best"]) == [True, False]


def test_a_callback_may_predict_other_images(settled: tuple, recipe: Recipe) -> None:
    plan = recipe.changed(stages=(Stage("head", 2, 1e-2),), ema=0.9)
    _, expected = trained(settled[1], plan, cbs=Count())
    _, history = trained(settled[1], plan, cbs=[Count(), FetchPredsCallback(ds_idx=0)])
    columns = ["train_loss", "valid_loss", "valid_accuracy"]
    assert history.epochs[columns].equals(expected.epochs[columns])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes_a_callback_unchanged(settled: tuple, recipe: Recipe, error: type[BaseException]) -> None:
    with pytest.raises(error) as caught:
        trained(settled[1], recipe, cbs=Cancel(error, (1,), "after_loss"))
    assert caught.type is error and not str(caught.value)


def test_an_exception_in_the_wrong_place_is_one_line(settled: tuple, recipe: Recipe) -> None:
    with pytest.raises(TrainingError, match=r"callback Cancel failed: CancelValidException\. It must run"):
        trained(settled[1], recipe, cbs=Cancel(CancelValidException, (0,), "before_train"))


def test_a_cancelled_epoch_is_not_recorded(settled: tuple, recipe: Recipe) -> None:
    progress, plan = Recorder(), recipe.changed(stages=(Stage("head", 3, 1e-2),))
    _, history = trained(settled[1], plan, progress, cbs=Cancel(CancelEpochException, (1,)))
    assert list(history.epochs["epoch"]) == [1, 3]
    assert "epoch 2/3: a callback ended it before its validation, so it is not recorded" in progress.text


@pytest.mark.parametrize("error", [CancelFitException, CancelEpochException])
def test_a_training_without_an_epoch_is_an_error(settled: tuple, recipe: Recipe, error: type[Exception]) -> None:
    with pytest.raises(TrainingError, match=r"No epoch was validated: callbacks \(Cancel\)"):
        trained(settled[1], recipe.changed(stages=(HEAD,)), cbs=Cancel(error, (0, 1)))


def test_a_callback_that_replaces_the_dataloaders_is_refused(settled: tuple, recipe: Recipe) -> None:
    class Replace(Callback):
        def before_epoch(self) -> None:
            self.learn.dls = DataLoaders(self.dls.train, self.dls.valid)

    with pytest.raises(TrainingError, match=r"Stage 1: a callback replaced learn\.dls"):
        trained(settled[1], recipe.changed(stages=(HEAD,)), cbs=Replace)


def test_errors_in_the_search_for_a_rate_are_named(settled: tuple, recipe: Recipe) -> None:
    class Picky(Callback):
        def before_fit(self) -> None:
            assert not self.n_epoch

    plan = recipe.changed(stages=(Stage("head", 1, "find"),))
    with pytest.raises(TrainingError, match="Stage 1: the callback Picky failed: AssertionError"):
        trained(settled[1], plan, cbs=Picky())


def seven(outputs: Any, targets: Any) -> float:
    return 7.0


def loss(outputs: Any, targets: Any) -> float:
    return 8.0


def test_metrics_of_equal_names_are_all_recorded(settled: tuple, recipe: Recipe) -> None:
    own = AvgMetric(seven)
    own.func = type("accuracy", (), {"__name__": "accuracy", "__call__": staticmethod(seven)})()
    metrics = [F1Score(), F1Score(average="macro"), own, loss]
    _, history = trained(settled[1], recipe.changed(stages=(HEAD,)), metrics=metrics)
    columns = ["valid_f1_score", "valid_f1_score_2", "valid_accuracy_2", "valid_loss_2"]
    assert list(history.epochs)[7:11] == columns
    assert list(history.epochs[columns[2:]].iloc[-1]) == [7.0, 8.0]


def test_the_scale_of_an_own_loss_is_not_divergence(settled: tuple, recipe: Recipe) -> None:
    def scaled(outputs: Any, targets: Any) -> Any:
        return 100 * nn.functional.cross_entropy(outputs, targets)

    plan = recipe.changed(stages=(HEAD,), metric="log_loss")
    _, history = trained(settled[1], plan, loss_func=scaled)
    assert "halved" not in history.stages[0]
    best = history.epochs[history.epochs["best"]].iloc[-1]
    assert best["valid_loss"] == pytest.approx(100 * best["valid_log_loss"], rel=1e-3)


@pytest.mark.usefixtures("no_page")
def test_dataloaders_from_a_table_make_a_run(images: Path, recipe: Recipe, tmp_path: Path) -> None:
    paths = sorted(images.rglob("*.jpg"))
    table = pd.DataFrame({"name": [path.relative_to(images) for path in paths], "label": "ants"})
    table["label"] = [path.parent.name for path in paths]
    dls = ImageDataLoaders.from_df(table, images, seed=0, item_tfms=Resize(48), bs=8, num_workers=0)
    plan = recipe.changed(stages=(HEAD,))
    done = make_baseline(dls, plan, out=tmp_path / "run", progress=baseline.Progress())
    assert all(Path(path).exists() for path in done.predictions["path"])


def test_dataloaders_that_cannot_train_are_refused(images: Path, own_loaders: DataLoaders, recipe: Recipe) -> None:
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import get_image_files, noop, parent_label
    from fastai.vision.data import ImageBlock

    pairs = DataBlock(
        (ImageBlock, ImageBlock, CategoryBlock), get_items=get_image_files, getters=[noop, noop, parent_label], n_inp=2,
        item_tfms=Resize(48),
    )  # fmt: skip
    with pytest.raises(DataError, match="items have 3 parts; an image and its target were needed"):
        make_baseline(pairs.dataloaders(images, bs=8, num_workers=0), recipe)
    with pytest.raises(DataError, match="hold one loader"):
        make_baseline(DataLoaders(own_loaders.train), recipe)
    large = DataLoaders(own_loaders.train.new(bs=500, drop_last=True), own_loaders.valid)
    with pytest.raises(DataError, match="make no batch of 500"):
        make_baseline(large, recipe)


@pytest.mark.usefixtures("no_page")
def test_dataloaders_of_images_in_memory_make_a_run(recipe: Recipe, tmp_path: Path) -> None:
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.vision.data import ImageBlock

    arrays = np.random.default_rng(0).integers(0, 255, (24, 48, 48, 3), dtype=np.uint8)
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_items=lambda _: range(24),
        get_x=lambda n: arrays[n],
        get_y=lambda n: "ab"[n % 2],
    )
    plan = recipe.changed(stages=(HEAD,))
    dls = block.dataloaders(None, bs=8, num_workers=0)
    done = make_baseline(dls, plan, out=tmp_path / "run", progress=baseline.Progress())
    assert list(done.predictions["path"][:2]) == ["valid/0", "valid/1"]


def test_a_learner_without_its_callbacks_is_refused(own_loaders: DataLoaders, recipe: Recipe) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    learn = Learner(own_loaders, network, loss_func=CrossEntropyLossFlat(), default_cbs=False)
    with pytest.raises(TrainingError, match="The Learner lacks TrainEvalCallback and Recorder"):
        train(learn, recipe.changed(stages=(Stage("all", 1, 1e-3),)), baseline.Progress())


def test_pipelines_of_transforms_and_names_of_two_lines_are_taken(settled: tuple, recipe: Recipe) -> None:
    class Lines(AvgMetric):
        name = "two\nlines"

    Turn.calls.clear()
    transforms, progress = Pipeline([Turn(1), Turn(2)]), Recorder()
    plan = recipe.changed(stages=(Stage("head", 1, 1e-2),))
    _, history = trained(settled[1], plan, progress, item_tfms=transforms, metrics=Lines(seven))
    assert Turn.calls.count(1) == Turn.calls.count(2) > 0
    assert "valid_two lines" in history.epochs and not any("\n" in line for line in progress.lines)


def test_what_own_objects_settle_cannot_be_given_beside_them(own_loaders: DataLoaders, recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="image_size and batch_size cannot be given together with your DataLoaders"):
        make_baseline(own_loaders, recipe, image_size=64, batch_size=4)
    learn = vision_learner(own_loaders, resnet18, pretrained=False)
    with pytest.raises(RecipeError, match="arch cannot be given together with your Learner"):
        make_baseline(learn, recipe, arch="resnet34")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
            "does not take images",
        ),
        (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7)),
            "returns 8 x 7, float32; 8 x 2 was needed",
        ),
    ],
    ids=["channels", "classes"],
)
def test_a_network_that_does_not_fit_is_named(
    own_loaders: DataLoaders, recipe: Recipe, network: nn.Module, message: str
) -> None:
    learn = Learner(own_loaders, network, loss_func=CrossEntropyLossFlat())
    with pytest.raises(TrainingError, match=message):
        train(learn, recipe.changed(stages=(Stage("all", 1, 1e-3),)), baseline.Progress())
