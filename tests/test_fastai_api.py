"""What fastai offers on a Learner works on ours, beside the result of a plain fastai Learner, and fastai's own way of
training works on our parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.all import (
    BnFreeze,
    ChannelsLast,
    CollectDataCallback,
    CSVLogger,
    CutMix,
    EarlyStoppingCallback,
    FetchPredsCallback,
    GradientAccumulation,
    GradientClip,
    MCDropoutCallback,
    MixUp,
    ParamScheduler,
    ReduceLROnPlateau,
    SaveModelCallback,
    SchedCos,
    ShortEpochCallback,
    TerminateOnNaNCallback,
    TrackerCallback,
    dummy_eval,
    hook_outputs,
    steep,
    valley,
)
from fastai.callback.core import Callback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, Normalize, get_image_files, parent_label
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.learner import Learner, load_learner
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.metrics import Precision, accuracy, error_rate
from fastai.optimizer import RMSProp
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock, ImageDataLoaders
from fastai.vision.learner import vision_learner
from fastcore.basics import noop
from torchvision.models import resnet18

import baseline
from baseline import Recipe


class Loaders(NamedTuple):
    """The same images as our DataLoaders and as those of a DataBlock."""

    ours: DataLoaders
    theirs: DataLoaders
    recipe: Recipe
    paths: list[str]


@pytest.fixture(scope="module")
def loaders(settled: tuple) -> Loaders:
    recipe = settled[0].changed(arch="test_efficientnet", pretrained=False, cache_gb=0)
    table = settled[1][settled[1]["split"] != "test"].reset_index(drop=True)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=ColReader("path"),
        get_y=ColReader("label"),
        splitter=lambda rows: tuple(np.flatnonzero(rows["split"] == name).tolist() for name in ("train", "valid")),
        item_tfms=Resize(48, "squish"),
        batch_tfms=[*aug_transforms(), Normalize.from_stats([0.5] * 3, [0.25] * 3)],
    )
    theirs = block.dataloaders(table, bs=recipe.training.batch_size, num_workers=0)
    paths = list(settled[1].loc[settled[1]["split"] == "test", "path"])
    return Loaders(baseline.dataloaders(settled[1], recipe), theirs, recipe, paths)


@pytest.fixture
def pair(loaders: Loaders, tmp_path: Path) -> Iterator[tuple[Learner, Learner]]:
    """Our Learner, and a plain one of fastai's with a copy of its network."""
    torch.manual_seed(0)
    ours = baseline.learner(loaders.ours, loaders.recipe, path=tmp_path / "ours")
    theirs = Learner(
        loaders.theirs, copy.deepcopy(ours.model), loss_func=ours.loss_func, metrics=accuracy, splitter=ours.splitter,
        path=tmp_path / "theirs",
    )  # fmt: skip
    for learn in (ours, theirs):
        learn.path.mkdir()
    with ours.no_bar(), theirs.no_bar(), ours.no_logging(), theirs.no_logging():
        yield ours, theirs
    plt.close("all")


def fitted(learn: Learner, *cbs: Any, epochs: int = 1) -> Learner:
    learn.fit(epochs, 1e-3, cbs=list(cbs))
    return learn


def reloaded(learn: Learner) -> Any:
    fitted(learn).export("export.pkl")
    return load_learner(learn.path / "export.pkl").predict(path_of(learn))


def path_of(learn: Learner) -> str:
    return str(learn.dls.valid_ds.items["path"].iloc[0])


def interpretation(learn: Learner) -> ClassificationInterpretation:
    return ClassificationInterpretation.from_learner(learn)


def hooked(learn: Learner) -> Any:
    with hook_outputs([learn.model[0], learn.model[1]]) as hooks:
        learn.model.eval()(learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor))
        return [output.shape for output in hooks.stored]


def within(context: Callable[[Learner], Any], call: Callable[[Learner], Any]) -> Callable[[Learner], Any]:
    def run(learn: Learner) -> Any:
        with context(learn):
            return call(learn)

    return run


class Events(Callback):
    """Remembers each kind of event of a fit."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __call__(self, event: str) -> None:
        self.seen.add(event)


def events(learn: Learner) -> list[str]:
    callback = Events()
    fitted(learn, callback)
    return sorted(callback.seen)


CALLS: dict[str, Callable[[Learner], Any]] = {
    # training
    "fit": lambda learn: learn.fit(1, 1e-3),
    "fit slice": lambda learn: learn.fit(1, slice(1e-5, 1e-3)),
    "fit with wd": lambda learn: learn.fit(1, 1e-3, wd=0.1),
    "fit_one_cycle": lambda learn: learn.fit_one_cycle(1, 1e-3),
    "fit_one_cycle slice": lambda learn: learn.fit_one_cycle(1, slice(1e-5, 1e-3), pct_start=0.5),
    "fit_flat_cos": lambda learn: learn.fit_flat_cos(1, 1e-3),
    "fit_sgdr": lambda learn: learn.fit_sgdr(1, 1, 1e-3),
    "fine_tune": lambda learn: learn.fine_tune(1, 1e-3, freeze_epochs=1),
    "lr_find": lambda learn: learn.lr_find(num_it=4, show_plot=False).valley,
    "lr_find suggestions": lambda learn: sorted(
        learn.lr_find(num_it=20, show_plot=False, suggest_funcs=(steep, valley))._fields
    ),
    "lr_find plot": lambda learn: learn.lr_find(num_it=4).valley,
    "freeze": lambda learn: (learn.freeze(), learn.opt.frozen_idx)[1],
    "freeze_to": lambda learn: (learn.freeze_to(1), learn.opt.frozen_idx)[1],
    "unfreeze": lambda learn: (learn.freeze(), learn.unfreeze(), learn.opt.frozen_idx)[2],
    "create_opt": lambda learn: (learn.create_opt(), len(learn.opt.param_lists))[1],
    "opt hypers": lambda learn: sorted((learn.create_opt(), learn.opt.hypers[0])[1]),
    "opt set_hyper": lambda learn: (learn.create_opt(), learn.opt.set_hyper("lr", 0.5), learn.opt.hypers[0]["lr"])[2],
    "opt state": lambda learn: sorted(fitted(learn).opt.state_dict()),
    "opt_func": lambda learn: (setattr(learn, "opt_func", RMSProp), type(fitted(learn).opt).__name__)[1],
    "another loss": lambda learn: (setattr(learn, "loss_func", LabelSmoothingCrossEntropyFlat()), fitted(learn))[0],
    "more metrics": lambda learn: (
        setattr(learn, "metrics", [error_rate, Precision(average="macro")]), fitted(learn).recorder.metric_names,
    )[1],
    "events": events,
    "training": lambda learn: fitted(learn).training,
    "epochs": lambda learn: (fitted(learn, epochs=2).epoch, learn.n_epoch),
    "final_record": lambda learn: len(fitted(learn).final_record),
    # validation and prediction
    "validate": lambda learn: len(learn.validate()),
    "validate train": lambda learn: len(learn.validate(ds_idx=0)),
    "validate dl": lambda learn: len(learn.validate(dl=learn.dls.valid)),
    "validate after fit": lambda learn: (fitted(learn), len(learn.validate()))[1],
    "get_preds": lambda learn: learn.get_preds(),
    "get_preds train": lambda learn: learn.get_preds(ds_idx=0, reorder=False),
    "get_preds with_input": lambda learn: learn.get_preds(with_input=True),
    "get_preds with_loss": lambda learn: learn.get_preds(with_loss=True),
    "get_preds with_decoded": lambda learn: learn.get_preds(with_decoded=True),
    "get_preds act": lambda learn: learn.get_preds(act=noop),
    "get_preds concat_dim": lambda learn: learn.get_preds(concat_dim=0),
    "get_preds test": lambda learn: learn.get_preds(dl=learn.dls.test_dl([path_of(learn)])),
    "predict path": lambda learn: learn.predict(path_of(learn)),
    "predict image": lambda learn: learn.predict(PILImage.create(path_of(learn))),
    "predict array": lambda learn: learn.predict(np.asarray(PILImage.create(path_of(learn)))),
    "predict with_input": lambda learn: learn.predict(path_of(learn), with_input=True)[1:],
    "tta": lambda learn: learn.tta(n=1),
    "tta max": lambda learn: learn.tta(n=2, use_max=True),
    "tta test": lambda learn: learn.tta(dl=learn.dls.test_dl([path_of(learn)]), n=1)[0],
    "show_results": lambda learn: learn.show_results(max_n=2),
    "show_results train": lambda learn: learn.show_results(ds_idx=0, max_n=2),
    "loss_not_reduced": within(lambda learn: learn.loss_not_reduced(), lambda learn: learn.loss_func is not None),
    # files
    "save": lambda learn: learn.save("weights").name,
    "save and load": lambda learn: (learn.save("weights"), type(learn.load("weights")).__name__)[1],
    "save with_opt": lambda learn: (fitted(learn).save("weights", with_opt=True), learn.load("weights"))[0].name,
    "load device": lambda learn: (learn.save("w"), type(learn.load("w", device="cpu", with_opt=False)).__name__)[1],
    "export": reloaded,
    "path": lambda learn: isinstance(learn.path, Path),
    "model_dir": lambda learn: learn.model_dir,
    # callbacks
    "add_cb": lambda learn: (learn.add_cb(Events()), hasattr(learn, "events"))[1],
    "add_cbs": lambda learn: (learn.add_cbs([Events()]), hasattr(learn, "events"))[1],
    "remove_cb": lambda learn: (learn.add_cb(Events()), learn.remove_cb(Events), hasattr(learn, "events"))[2],
    "remove_cbs": lambda learn: (learn.add_cb(Events()), learn.remove_cbs([Events]), hasattr(learn, "events"))[2],
    "added_cbs": within(lambda learn: learn.added_cbs(Events()), lambda learn: hasattr(learn, "events")),
    "removed_cbs": within(lambda learn: learn.removed_cbs(learn.recorder), lambda learn: hasattr(learn, "recorder")),
    "ordered_cbs": lambda learn: len(learn.ordered_cbs("after_epoch")) > 0,
    "no_bar": within(lambda learn: learn.no_bar(), lambda learn: fitted(learn) is learn),
    "no_logging": within(lambda learn: learn.no_logging(), lambda learn: fitted(learn) is learn),
    "SaveModelCallback": lambda learn: (fitted(learn, SaveModelCallback(fname="best")), learn.load("best"))[0] is learn,
    "EarlyStoppingCallback": lambda learn: fitted(learn, EarlyStoppingCallback(patience=1), epochs=2) is learn,
    "ReduceLROnPlateau": lambda learn: fitted(learn, ReduceLROnPlateau(patience=1), epochs=2) is learn,
    "TrackerCallback": lambda learn: fitted(learn, TrackerCallback(monitor="accuracy")) is learn,
    "CSVLogger": lambda learn: list(pd.read_csv(fitted(learn, CSVLogger("log.csv")).path / "log.csv")),
    "TerminateOnNaN": lambda learn: fitted(learn, TerminateOnNaNCallback()) is learn,
    "GradientAccumulation": lambda learn: fitted(learn, GradientAccumulation(32)) is learn,
    "GradientClip": lambda learn: fitted(learn, GradientClip(0.1)) is learn,
    "MixUp": lambda learn: fitted(learn, MixUp()) is learn,
    "CutMix": lambda learn: fitted(learn, CutMix()) is learn,
    "BnFreeze": lambda learn: fitted(learn, BnFreeze()) is learn,
    "MCDropout": lambda learn: learn.get_preds(cbs=[MCDropoutCallback()]),
    "ShortEpoch": lambda learn: fitted(learn, ShortEpochCallback(0.5)) is learn,
    "ParamScheduler": lambda learn: fitted(learn, ParamScheduler({"lr": SchedCos(1e-3, 1e-4)})) is learn,
    "CollectData": lambda learn: (callback := CollectDataCallback(), fitted(learn, callback), len(callback.data))[2],
    "FetchPreds": lambda learn: fitted(learn, FetchPredsCallback()) is learn,
    "ChannelsLast": lambda learn: fitted(learn, *[ChannelsLast()][hasattr(learn, "channels_last"):]) is learn,
    "to_fp32": lambda learn: type(learn.to_fp32() if hasattr(learn, "mixed_precision") else learn).__name__,
    "to_bf16": lambda learn: type(fitted(learn.to_bf16())).__name__,
    # recorder
    "recorder.values": lambda learn: len(fitted(learn).recorder.values[0]),
    "recorder.losses": lambda learn: len(fitted(learn).recorder.losses),
    "recorder.lrs": lambda learn: len(fitted(learn).recorder.lrs),
    "recorder.metric_names": lambda learn: list(fitted(learn).recorder.metric_names),
    "recorder.plot_loss": lambda learn: type(fitted(learn, epochs=2).recorder.plot_loss()).__name__,
    "recorder.plot_sched": lambda learn: (learn.fit_one_cycle(1, 1e-3), learn.recorder.plot_sched())[1],
    # data
    "dls.vocab": lambda learn: list(learn.dls.vocab),
    "dls.c": lambda learn: learn.dls.c,
    "dls.bs": lambda learn: learn.dls.bs,
    "dls.n_inp": lambda learn: learn.dls.n_inp,
    "dls.one_batch": lambda learn: learn.dls.one_batch(),
    "dls.show_batch": lambda learn: learn.dls.show_batch(max_n=2),
    "dls.valid.show_batch": lambda learn: learn.dls.valid.show_batch(max_n=2),
    "dls.test_dl": lambda learn: learn.dls.test_dl([path_of(learn)]).one_batch(),
    "dls.test_dl labels": lambda learn: learn.dls.test_dl(learn.dls.valid_ds.items, with_labels=True).one_batch(),
    "dls.new_empty": lambda learn: len(learn.dls.new_empty().train_ds),
    "dls.decode_batch": lambda learn: len(learn.dls.decode_batch(learn.dls.one_batch(), max_n=2)),
    "dls.train_ds": lambda learn: learn.dls.train_ds[0][1],
    "dls.loaders": lambda learn: [len(loader.dataset) for loader in learn.dls.loaders],
    "dls.device": lambda learn: (learn.dls.to(torch.device("cpu")), learn.dls.device.type)[1],
    # interpretation and the network
    "confusion_matrix": lambda learn: interpretation(learn).confusion_matrix().shape,
    "plot_confusion_matrix": lambda learn: interpretation(learn).plot_confusion_matrix(),
    "most_confused": lambda learn: type(interpretation(learn).most_confused()).__name__,
    "top_losses": lambda learn: [len(values) for values in interpretation(learn).top_losses(2)],
    "plot_top_losses": lambda learn: interpretation(learn).plot_top_losses(2),
    "classification_report": lambda learn: interpretation(learn).print_classification_report(),
    "Interpretation": lambda learn: Interpretation.from_learner(learn).show_results([0, 1]),
    "summary": lambda learn: type(learn.summary()).__name__,
    "dummy_eval": lambda learn: dummy_eval(learn.model, (48, 48)).shape,
    "hooks": hooked,
    "splitter": lambda learn: len(learn.splitter(learn.model)),
}  # fmt: skip


def shape_of(value: Any) -> Any:
    """Reduce a result to what has to agree: types, shapes, counts and names, but no floating-point values."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return (tuple(value.shape), str(value.dtype))
    if isinstance(value, list | tuple):
        return [shape_of(item) for item in value]
    if isinstance(value, float):
        return "a number"
    return value if isinstance(value, str | int | bool | None) else type(value).__name__


@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_what_fastai_gives(pair: tuple[Learner, Learner], name: str) -> None:
    ours, theirs = pair
    expected, actual = shape_of(CALLS[name](theirs)), shape_of(CALLS[name](ours))
    if name.startswith(("predict", "export")):  # the label of an untrained network
        expected, actual = expected[1:], actual[1:]
    assert actual == expected


def test_there_are_at_least_98_calls() -> None:
    assert len(CALLS) >= 98


# fastai's tutorials


def test_our_dataloaders_train_on_their_learner(loaders: Loaders, tmp_path: Path) -> None:
    learn = vision_learner(loaders.ours, resnet18, pretrained=False, metrics=error_rate, path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, cbs=[MixUp(0.4)])
        probabilities, targets = learn.get_preds()
        assert probabilities.shape == (len(targets), 2)
        assert learn.predict(loaders.paths[0])[0] in loaders.ours.vocab
        assert interpretation(learn).confusion_matrix().sum() == len(targets)


def test_the_single_label_tutorial(images: Path, loaders: Loaders, tmp_path: Path) -> None:
    dls = ImageDataLoaders.from_name_func(
        images, get_image_files(images), valid_pct=0.2, seed=42, label_func=lambda name: name[0],
        item_tfms=Resize(48), bs=8, num_workers=0,
    )  # fmt: skip
    learn = baseline.learner(dls, loaders.recipe, metrics=error_rate, path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=4, show_plot=False)
        learn.fine_tune(1, 3e-3)
        learn.predict(get_image_files(images)[0])
        learn.show_results(max_n=2)


def test_the_data_block_tutorial(images: Path, loaders: Loaders, tmp_path: Path) -> None:
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, item_tfms=Resize(64),
        batch_tfms=aug_transforms(size=48),
    )  # fmt: skip
    learn = baseline.learner(block.dataloaders(images, bs=8, num_workers=0), loaders.recipe, path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 3e-3)
        assert interpretation(learn).confusion_matrix().shape == (2, 2)
    history = baseline.train(learn, loaders.recipe.changed(stages=(baseline.Stage("all", 1, 1e-3),)))
    assert len(history.epochs) == 1


def test_the_multi_label_tutorial(images: Path, loaders: Loaders, tmp_path: Path) -> None:
    from fastai.metrics import accuracy_multi

    paths = sorted(str(path) for path in images.rglob("*.jpg"))
    table = pd.DataFrame({"fname": paths, "is_valid": [n % 4 == 0 for n in range(len(paths))]})
    table["labels"] = [" ".join([Path(path).parent.name, *(["odd"] if n % 2 else [])]) for n, path in enumerate(paths)]
    dls = ImageDataLoaders.from_df(
        table, path="/", label_col="labels", label_delim=" ", valid_col="is_valid", item_tfms=Resize(48), bs=8,
        num_workers=0,
    )  # fmt: skip
    recipe = loaders.recipe.changed(task="multilabel")
    learn = baseline.learner(dls, recipe, metrics=accuracy_multi, path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, 3e-2)
        _, flags, probabilities = learn.predict(paths[0])
    assert len(flags) == len(probabilities) == 3
    history = baseline.train(learn, recipe.changed(stages=(baseline.Stage("all", 1, 1e-3),)))
    assert "valid_micro_f1" in history.epochs and "valid_accuracy_multi" in history.epochs


def test_fastai_trains_a_learner_of_a_run_further(done: Any) -> None:
    learn = baseline.load(done.folder).learner
    learn.dls = done.learner.dls
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, 1e-3)
        assert interpretation(learn).confusion_matrix().sum() == len(learn.dls.valid_ds)
