"""Training: frozen layers stay frozen, the search has no side effects, and a worse stage replaces no better weights."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import fastai.optimizer
import numpy as np
import pytest
import torch
from fastai.learner import Learner

import baseline
from baseline import Stage, train
from baseline.errors import RecipeError, TrainingError
from baseline.recipe.schema import OPTIMIZERS
from baseline.runs.timing import SHORT_RUN
from baseline.training import callbacks
from baseline.training.frozen import FrozenOutputs, embeddings
from baseline.training.lr_find import find_lr
from baseline.vision.dataloaders import split_loader
from baseline.vision.rng import seed_everything


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}


def frozen_outputs(learn: Any, recipe: baseline.Recipe, *stages: Stage) -> FrozenOutputs:
    return FrozenOutputs(learn, recipe.changed(stages=stages), baseline.Progress())


@pytest.mark.parametrize("trains", ["head", 3, 6])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_before_and_after_the_cut_equal_the_network(
    learn: Any, settled: tuple, trains: Any, precision: str
) -> None:
    no_augment = {"flip": False, "rotate": 0, "zoom": 1, "lighting": 0, "warp": 0}
    quiet = settled[0].changed(augment=no_augment, frozen_precision=precision)
    frozen = frozen_outputs(learn, quiet, Stage(trains, 1))
    stage_learner = frozen.learner(1)
    outputs = frozen.outputs["valid", frozen.plan.stages[1][0], frozen.plan.full_view]
    assert outputs.dtype == (torch.float32 if trains == "head" else torch.float16)
    loader = split_loader(learn.dls, settled[1], "valid")
    with torch.no_grad():
        expected = torch.cat([learn.model.eval()(images) for images, _ in loader]).as_subclass(torch.Tensor)
        actual = torch.cat([stage_learner.model.eval()(batch) for batch, _ in stage_learner.dls.valid]).as_subclass(
            torch.Tensor
        )
    tolerance = 1e-5 if trains == "head" else 5e-3  # maps are stored as float16, with eleven bits
    tolerance = 5e-2 if precision == "bfloat16" else tolerance  # eight bits, through many layers
    assert torch.allclose(actual, expected, atol=tolerance * float(expected.abs().max()))
    targets = torch.cat([labels for _, labels in loader]).as_subclass(torch.Tensor)
    assert torch.equal(frozen.targets["valid"], targets)


def test_flipped_view_has_outputs_of_flipped_images(learn: Any, settled: tuple) -> None:
    recipe = settled[0].changed(frozen_precision="float32")
    frozen = frozen_outputs(learn, recipe, Stage("head", 1, views=("flip",), augment=False))
    frozen.learner(1)
    train = settled[1].assign(split="valid")[settled[1]["split"] == "train"]
    images = torch.cat([images for images, _ in split_loader(learn.dls, train, "valid")]).as_subclass(torch.Tensor)
    with torch.no_grad():
        body = torch.nn.Sequential(*frozen.plan.layers[: frozen.plan.stages[1][0]]).eval()
        expected = torch.cat([body(images), body(images.flip(-1))])
    assert torch.allclose(frozen.outputs["train", *frozen.plan.stages[1]], expected, atol=1e-4)


def test_one_pass_serves_all_stages_with_the_same_view(learn: Any, settled: tuple) -> None:
    cacheable = settled[0].changed(augment={"flip": True, "rotate": 0, "zoom": 1, "lighting": 0, "warp": 0})
    frozen = frozen_outputs(
        learn, cacheable, Stage("head", 2, augment=False), Stage(3, 1), Stage(4, 2), Stage("all", 1)
    )
    assert [view.kind for _, view in frozen.plan.stages.values()] == [
        "either",
        "either",
        "both",
    ] and 4 not in frozen.plan.stages
    frozen.learner(1)
    assert {(split, cut) for split, cut, _ in frozen.outputs} == {
        (split, frozen.plan.stages[number][0]) for split in ("train", "valid") for number in (1, 2)
    }
    frozen.release(1)
    outputs = dict(frozen.outputs)
    frozen.learner(2)
    assert {key[1] for key in outputs} == {frozen.plan.stages[2][0]} and outputs.keys() == frozen.outputs.keys()
    frozen.release(2)
    assert not frozen.outputs, "stage 3 uses both views and needs another pass"


def test_steps_in_bfloat16_repeat_and_are_recorded(settled: tuple, tmp_path: Path) -> None:
    recorded, weights = [], []
    for changes in ({}, {}, {"frozen_precision": "float32"}, {"freeze": "fastai"}):
        recipe = settled[0].changed(**{"frozen_precision": "bfloat16", "stages": (Stage(2, 1, 1e-4),), **changes})
        with seed_everything(0):
            learn = baseline.learner(baseline.dataloaders(settled[1], recipe, path=tmp_path), recipe, path=tmp_path)
            recorded += [stage.get("pointwise") for stage in train(learn, recipe).stages]
        weights.append(weights_of(learn.model))
    assert recorded == ["bfloat16", "bfloat16", None, None]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()), "the same digits"
    assert any(not torch.equal(value, weights[2][name]) for name, value in weights[0].items())
    assert {value.dtype for value in weights[0].values()} == {torch.float32, torch.int64}


def test_training_is_the_same_with_and_without_cached_outputs(
    learn: Any, settled: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment = {"flip": False, "rotate": 0, "zoom": 1, "lighting": 0, "warp": 0}
    batch_size = int((settled[1]["split"] == "train").sum())  # a single batch, so the order of images is irrelevant
    quiet = settled[0].changed(augment=augment, batch_size=batch_size, frozen_precision="float32")
    losses = []
    for share, gb in (
        (0.25, 1),
        (0.25, 1),
        (0.25, 0),
        (0, 0),
    ):  # written to disk, read from disk, in memory, not cached
        monkeypatch.setattr("baseline.training.frozen.MEMORY_FRACTION", share)
        quiet = quiet.changed(cache_gb=gb)
        with seed_everything(3):
            fresh = baseline.learner(baseline.dataloaders(settled[1], quiet, path=learn.path), quiet)
            history = train(fresh, quiet.changed(stages=(Stage(3, 2, (1e-4, 1e-3)),)))
        losses.append(history.epochs[["train_loss", "valid_loss"]].to_numpy())
        groups = fresh.splitter(fresh.model)
        assert all(p.requires_grad for group in groups for p in group)
    assert np.array_equal(losses[0], losses[1]) and np.array_equal(losses[0], losses[2])
    assert np.allclose(losses[0], losses[3], rtol=5e-3), losses  # the first steps of Adam amplify rounding


def test_second_run_with_other_rates_reads_no_image(learn: Any, settled: tuple, monkeypatch: Any) -> None:
    cacheable = settled[0].changed(augment={"flip": True, "rotate": 0, "zoom": 1, "lighting": 0, "warp": 0})
    frozen = frozen_outputs(learn, cacheable, Stage("head", 1, augment=False), Stage(3, 1))
    assert frozen.cached_stages() == []
    frozen.learner(1)
    assert frozen_outputs(learn, cacheable, Stage("head", 1, augment=False), Stage(3, 1)).cached_stages() == [1, 2]
    monkeypatch.setattr(FrozenOutputs, "compute", None)
    fresh = baseline.learner(learn.dls, cacheable)
    history = train(fresh, cacheable.changed(stages=(Stage("head", 2, 1e-2, augment=False), Stage(3, 1, 1e-4))))
    assert len(history.epochs) == 3


def test_outputs_are_not_stored_for_an_image_that_was_replaced_after_it_was_decoded(
    settled: tuple[baseline.Recipe, Any], tmp_path: Path
) -> None:
    recipe = settled[0].changed(frozen_precision="float32")
    paths = [str(shutil.copy(path, tmp_path / f"{number}.jpg")) for number, path in enumerate(settled[1]["path"])]
    table, (one, other) = settled[1].assign(path=paths), np.flatnonzero(settled[1]["split"] == "train")[[0, -1]]

    learn = baseline.learner(baseline.dataloaders(table, recipe), recipe)
    shutil.copy(paths[other], paths[one])
    features = embeddings(learn, table, recipe)
    difference = np.linalg.norm(features[one] - features[other]) / np.linalg.norm(features[other])
    assert difference > 0.1, "of the images that were decoded"
    learn.dls = baseline.dataloaders(table, recipe)
    features = embeddings(learn, table, recipe)
    assert np.allclose(features[one], features[other], rtol=1e-3, atol=1e-3 * np.abs(features).max())


def test_outputs_of_changed_layers_are_computed_again(learn: Any, settled: tuple) -> None:
    cacheable = settled[0].changed(augment={"flip": False, "rotate": 0, "zoom": 1, "lighting": 0, "warp": 0})
    frozen = frozen_outputs(
        learn, cacheable, Stage("head", 1, augment=False), Stage(3, 1), Stage("head", 1, augment=False)
    )
    assert frozen.plan.is_pristine(1) and frozen.plan.is_pristine(2) and not frozen.plan.is_pristine(3)
    frozen.learner(1)
    before = frozen.outputs["train", *frozen.plan.stages[1]].clone()
    frozen.release(2)
    with torch.no_grad():
        for parameter in learn.splitter(learn.model)[-2]:
            parameter.add_(0.1)
    frozen.learner(3)
    assert not torch.allclose(frozen.outputs["train", *frozen.plan.stages[3]], before)


@pytest.mark.parametrize("trains", ["head", 3, "all"])
def test_a_stage_can_train_on_smaller_images(learn: Any, settled: tuple, trains: Any) -> None:
    cacheable = settled[0].changed(augment={"flip": True, "rotate": 0, "zoom": 1, "lighting": 0, "warp": 0})
    recipe = cacheable.changed(stages=(Stage(trains, 1, 1e-4, image_size=32), Stage(trains, 1, 1e-4)))
    sizes: list[tuple[bool, int]] = []
    first = next(layer for layer in learn.model.modules() if isinstance(layer, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: sizes.append((learn.model.training, inputs[0].shape[-1])))
    history = train(learn, recipe)
    assert {size for _, size in sizes} >= {32, 48}
    if trains == "all":
        assert {size for training, size in sizes if not training} == {48}, "valid images keep their size"
    assert list(history.epochs["stage"]) == [1, 2]


def test_training_ends_at_the_deadline_and_validates_the_epoch(
    learn: Any, settled: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # independent of other load on the machine
    recipe = settled[0].changed(batch_size=2, stages=(Stage("all", 50, 1e-4), Stage("all", 1, 1e-4)))
    start = time.perf_counter()
    history = train(learn, recipe, deadline=start + 3)
    assert time.perf_counter() - start < 15
    assert 1 <= len(history.epochs) < 50 and set(history.epochs["stage"]) == {1}
    assert history.epochs.iloc[-1][["valid_loss", "valid_accuracy"]].notna().all()


class RecordingProgress(baseline.Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("late", [1, 2])
def test_running_out_of_time_before_the_first_step_is_not_divergence(
    learn: Any, settled: tuple, monkeypatch: Any, late: int
) -> None:
    class Busy(RecordingProgress):
        def log(self, line: str) -> None:
            super().log(line)
            if line.startswith(f"stage {late}: training"):
                monkeypatch.setattr(time, "perf_counter", lambda: real() + 1000)

    real, progress = time.perf_counter, Busy()
    stages = (Stage("head", 2, 1e-3, augment=False), Stage("all", 2, 1e-4), Stage("all", 1, 1e-4))
    history = train(learn, settled[0].changed(stages=stages), progress, deadline=real() + 500)
    assert [tuple(row) for row in history.epochs[["stage", "epoch"]].values] == (
        [(1, 1)] if late == 1 else [(1, 1), (1, 2)]
    )
    assert history.epochs[["train_loss", "valid_loss", "valid_accuracy"]].notna().all().all()
    assert history.stages[-1]["cut_short"] == "the time was up" and len(history.stages) == late
    assert not {"halved", "given_up"} & set(history.stages[-1])
    assert [line for line in progress.lines if "time is up" in line] == [
        f"stage {late}: the time is up after {'25%' if late == 1 else '0%'} of its training",
        *(f"stage {number}: skipped, the time is up" for number in range(late + 1, 4)),
    ]


def test_out_of_memory_halves_batches_and_accumulates_gradients(learn: Any, settled: tuple) -> None:
    def small_device(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if learn.model.training and len(inputs[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    leftovers: list[Any] = []

    def failed_batch(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if learn.model.training and len(inputs[0]) == 4 and not leftovers:
            leftovers.extend([learn.pred, learn.loss_grad, *(p.grad for p in learn.model.parameters())])

    learn.model.register_forward_pre_hook(small_device)
    learn.model.register_forward_pre_hook(failed_batch)
    progress = RecordingProgress()
    history = train(learn, settled[0].changed(stages=(Stage("all", 2, 1e-4),)), progress)
    assert leftovers and all(left is None for left in leftovers), "what failed is freed before it is tried again"
    lines = [line for line in progress.lines if "out of memory" in line]
    assert lines == [f"stage 1: out of memory; continuing with batches of {n}, accumulated per step" for n in (8, 4)]
    assert list(history.epochs["epoch"]) == [1, 2]


@pytest.mark.parametrize("fit", [0, 1])
def test_memory_too_small_for_two_images_is_an_error(learn: Any, settled: tuple, fit: int) -> None:
    def small_device(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if learn.model.training and len(inputs[0]) > fit:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB).")

    learn.model.register_forward_pre_hook(small_device)
    with pytest.raises(TrainingError, match="Not enough memory for two images at a time"):
        train(learn, settled[0].changed(stages=(Stage("all", 1, 1e-4),)))


@pytest.mark.parametrize("size", [6, 7])
def test_batch_size_is_halved_down_to_two_images(settled: tuple, tmp_path: Path, size: int) -> None:
    def small_device(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if learn.model.training and len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    recipe, progress = settled[0].changed(stages=(Stage("all", 1, 1e-4),), batch_size=size), RecordingProgress()
    learn = baseline.learner(baseline.dataloaders(settled[1], recipe, path=tmp_path), recipe, path=tmp_path)
    learn.model.register_forward_pre_hook(small_device)
    assert list(train(learn, recipe, progress).epochs["epoch"]) == [1]
    assert [line for line in progress.lines if "batches of 2, accumulated" in line]


def test_parts_of_the_training_loop_are_timed(done: baseline.Baseline) -> None:
    for stage in done.history.stages:
        assert stage["laps"]["forward"] > 0 and stage["laps"]["backward"] > 0 and stage["laps"]["validation"] > 0
        assert sum(stage["laps"].values()) <= stage["seconds"]
    where = done.manifest["time"]
    assert list(where.values()) == sorted(where.values(), reverse=True)
    assert done.manifest["bound"].startswith("most of the time went into ")
    assert ("faster: " in done.manifest["bound"]) <= (sum(where.values()) >= SHORT_RUN)


def test_head_stage_trains_the_head_and_not_the_body(learn: Any, settled: tuple) -> None:
    recipe = settled[0].changed(stages=(Stage("head", 4, 3e-3, augment=False),))
    before = weights_of(learn.model)
    history = train(learn, recipe)
    moved = changed(before, learn.model)
    assert moved and all(name.startswith("1.") for name in moved)
    assert history.epochs["train_loss"].iloc[-1] < history.epochs["train_loss"].iloc[0]


def test_fastai_freeze_updates_batch_norm_statistics(learn: Any, settled: tuple) -> None:
    before = weights_of(learn.model)
    train(learn, settled[0].changed(stages=(Stage("head", 1, 1e-3, augment=False),), freeze="fastai"))
    assert any(name.startswith("0.") and "running_mean" in name for name in changed(before, learn.model))


def test_training_two_groups_freezes_the_others(learn: Any, settled: tuple) -> None:
    groups = learn.splitter(learn.model)
    train(learn, settled[0].changed(stages=(Stage(2, 1, 1e-2),)))
    fresh = baseline.learner(learn.dls, settled[0])
    for number, (now, then) in enumerate(zip(groups, fresh.splitter(fresh.model), strict=True)):
        same = all(torch.equal(a, b) for a, b in zip(now, then, strict=True))
        assert same == (number < len(groups) - 2), number


def test_batch_norm_statistics_are_updated_only_if_the_stage_says_so(learn: Any, settled: tuple) -> None:
    before = weights_of(learn.model)
    train(learn, settled[0].changed(stages=(Stage("all", 1, 1e-4),)))
    assert not [name for name in changed(before, learn.model) if name.startswith("0.") and "running" in name]
    train(learn, settled[0].changed(stages=(Stage("all", 1, 1e-4, batch_norm="train"),)))
    assert [name for name in changed(before, learn.model) if name.startswith("0.") and "running" in name]


def test_recipe_can_use_the_fastai_head(learn: Any, settled: tuple) -> None:
    plain = baseline.learner(learn.dls, settled[0])
    fastai_head = baseline.learner(learn.dls, settled[0].changed(head="fastai"))
    counts = [sum(isinstance(layer, torch.nn.Linear) for layer in made.model[1]) for made in (plain, fastai_head)]
    assert counts == [1, 2]
    with torch.no_grad():
        assert fastai_head.model(torch.zeros(1, 3, 48, 48)).shape == (1, 2)


def test_pair_of_rates_trains_the_last_layers_more(learn: Any, settled: tuple) -> None:
    train(learn, settled[0].changed(stages=(Stage("all", 1, (1e-7, 1e-3)),)))
    assert [h["lr"] for h in (learn.dls and learn.create_opt()) or learn.opt.hypers]  # a complete Learner afterwards
    fresh = baseline.learner(learn.dls, settled[0])
    moves = [
        float(sum((a - b).abs().mean() for a, b in zip(now, then, strict=True)) / len(now))
        for now, then in zip(learn.splitter(learn.model), fresh.splitter(fresh.model), strict=True)
    ]
    assert moves[-2] > 10 * moves[0]


def test_too_many_layer_groups_are_refused(learn: Any, settled: tuple) -> None:
    with pytest.raises(RecipeError, match="trains 10 layer groups, but test_efficientnet has 7"):
        train(learn, settled[0].changed(stages=(Stage(10, 1),)))


def test_lr_search_has_no_side_effects(settled: tuple, tmp_path: Path) -> None:
    recipe = settled[0].changed(arch="test_efficientnet", pretrained=False)
    learn = baseline.learner(baseline.dataloaders(settled[1], recipe, path=tmp_path), recipe, path=tmp_path)
    before, files = weights_of(learn.model), set(tmp_path.rglob("*"))
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state(), learn.dls.train.rng.getstate()
    rate, curve, reason = find_lr(learn)
    assert 1e-6 <= rate <= 0.1 and reason and len(curve) > 20
    assert curve["lr"].is_monotonic_increasing
    assert not changed(before, learn.model) and set(tmp_path.rglob("*")) == files
    assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2]) and learn.dls.train.rng.getstate() == states[3]


def test_lr_search_without_valley_uses_the_default(learn: Any) -> None:
    learn.loss_func = lambda outputs, targets: outputs.sum() * float("nan")
    rate, _, reason = find_lr(learn)
    assert rate == 1e-3 and "no valley" in reason


def test_worse_stage_never_replaces_better_weights(learn: Any, settled: tuple) -> None:
    diverging = Stage("all", 1, 10.0)
    recipe = settled[0].changed(stages=(Stage("head", 6, 3e-3, views=("flip",), augment=False), diverging))
    history = train(learn, recipe)
    kept = history.epochs[history.epochs["best"]].iloc[-1]
    assert kept["stage"] == 1
    predicted = baseline.predict(learn, settled[1], (), splits=("valid",))
    assert (predicted["predicted"] == predicted["label"]).mean() == pytest.approx(kept["valid_accuracy"])
    assert predicted["loss"].mean() == pytest.approx(kept["valid_loss"], abs=1e-4)


def test_loss_falls_with_every_seed(learn: Any, settled: tuple) -> None:
    for seed in range(3):
        with seed_everything(seed):
            fresh = baseline.learner(learn.dls, settled[0])
            history = train(
                fresh, settled[0].changed(stages=(Stage("head", 30, 1e-2, views=("flip",), augment=False),))
            )
        assert history.epochs["train_loss"].iloc[-1] < 0.4, "guessing between two classes has a loss of 0.69"


def test_history_has_a_row_per_epoch_and_an_entry_per_stage(done: baseline.Baseline) -> None:
    assert list(done.history.epochs["stage"]) == [1, 1, 1, 1, 2]
    assert [stage["trains"] for stage in done.history.stages] == ["head", 3]
    assert set(done.history.sweeps["stage"]) == {1}
    assert done.history.epochs[["train_loss", "valid_loss", "valid_accuracy"]].notna().all().all()


def rates(learn: Any, recipe: baseline.Recipe, schedule: str) -> np.ndarray:
    """Return the learning rate at the end of each of eight epochs, as a fraction of the stage's."""
    stage = Stage("head", 8, 1e-2, schedule=schedule, augment=False)
    return train(learn, recipe.changed(stages=(stage,))).epochs["lr"].to_numpy() / 1e-2


def test_learning_rate_follows_the_schedule(learn: Any, settled: tuple) -> None:
    cycle, flat, constant = (rates(learn, settled[0], schedule) for schedule in ("one_cycle", "flat_cos", "constant"))
    assert (np.diff(cycle[:3]) > 0).all() and cycle[2] > 0.9 and (np.diff(cycle[2:]) < 0).all() and cycle[-1] < 0.05
    assert np.allclose(flat[:6], 1) and (np.diff(flat[5:]) < 0).all() and 0.1 < flat[6] < 0.9 and flat[-1] < 0.2
    assert np.array_equal(constant, np.ones(8))


@pytest.mark.parametrize("freeze", ["features", "fastai"])
def test_plateau_schedule_lowers_the_rate_when_the_valid_loss_stalls(
    learn: Any, settled: tuple, freeze: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "MAX_RELATIVE_LOSS", float("inf"))
    stage = Stage("head", 12, 0.3, schedule="plateau", augment=False)  # a rate so high that the loss stalls soon
    epochs = train(learn, settled[0].changed(stages=(stage,), freeze=freeze)).epochs
    losses, expected, rate = epochs["valid_loss"], [], 0.3
    for number in range(len(epochs)):
        expected.append(rate)
        rate /= 10 if number and losses[number] >= losses[:number].min() else 1
    assert np.allclose(epochs["lr"], expected) and len(set(expected)) > 2, epochs
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stage_and_its_lr_search_use_the_named_optimizer(
    learn: Any, settled: tuple, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizers: list[Any] = []
    create = Learner.create_opt
    monkeypatch.setattr(Learner, "create_opt", lambda self: (create(self), optimizers.append(self.opt))[0])
    progress = RecordingProgress()
    recipe = settled[0].changed(stages=(Stage("head", 6, "find", optimizer=name, augment=False),))
    before = weights_of(learn.model)
    history = train(learn, recipe, progress)
    reference = getattr(fastai.optimizer, OPTIMIZERS[name][0])([torch.zeros(1)], lr=1, **OPTIMIZERS[name][1])
    steps = [[getattr(cb, "func", cb).__name__ for cb in opt.cbs] for opt in (reference, *optimizers)]
    assert len(steps) == 3 and steps.count(steps[0]) == 3, "the search, and the training"
    assert all(isinstance(opt, fastai.optimizer.Lookahead) == (name == "ranger") for opt in optimizers)
    assert np.isfinite(history.epochs["train_loss"]).all() and changed(before, learn.model) >= {"1.3.weight"}
    assert history.stages[0]["optimizer"] == name
    assert (f"optimizer {name}" in progress.lines[-7]) == (name != "adam"), progress.lines


def test_each_stage_has_its_own_optimizer(learn: Any, settled: tuple) -> None:
    recipe = settled[0].changed(stages=(Stage("head", 1, 1e-3, optimizer="sgd", augment=False), Stage("all", 1, 1e-4)))
    history = train(learn, recipe)
    assert [stage["optimizer"] for stage in history.stages] == ["sgd", "adam"]
    learn.create_opt()
    assert "adam_step" in [getattr(cb, "func", cb).__name__ for cb in learn.opt.cbs], (
        "the Learner keeps the last stage's optimizer"
    )


def test_seeding_restores_random_states() -> None:
    state = torch.get_rng_state(), random.getstate()
    with seed_everything(5):
        one = torch.rand(1), random.random(), np.random.rand()
    with seed_everything(5):
        two = torch.rand(1), random.random(), np.random.rand()
    assert one == two and torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]


def test_stage_learner_is_a_fastai_learner_with_shared_layers(learn: Any, settled: tuple) -> None:
    stage_learner = frozen_outputs(learn, settled[0], Stage("head", 1, augment=False)).learner(1)
    assert {id(p) for p in stage_learner.model.parameters()} == {id(p) for p in learn.model[1].parameters()}
    stage_learner.fit_one_cycle(1, 1e-3)
    assert stage_learner.recorder.values


def test_embeddings_are_pooled_body_outputs_and_are_cached(
    settled: tuple[baseline.Recipe, Any], learn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, table = settled
    recipe = recipe.changed(frozen_precision="float32")
    table = table.sample(frac=1, random_state=1)  # the order is the table's, whatever the splits
    features, averaged = embeddings(learn, table, recipe), embeddings(learn, table, recipe, ("flip",))
    pooled = torch.nn.Sequential(learn.model[0], *learn.model[1][:2]).eval()
    with torch.no_grad():
        for row in (0, len(table) - 1):
            one = learn.dls.test_dl([table["path"].iloc[row]]).one_batch()[0].as_subclass(torch.Tensor)
            plain, flipped = pooled(one)[0], pooled(one.flip(-1))[0]
            assert torch.allclose(torch.from_numpy(features[row]), plain, atol=1e-4)
            assert torch.allclose(torch.from_numpy(averaged[row]), (plain + flipped) / 2, atol=1e-4)
    monkeypatch.setattr(FrozenOutputs, "compute", None)
    assert np.array_equal(embeddings(learn, table, recipe), features)
    assert np.array_equal(embeddings(learn, table, recipe, ("flip",)), averaged)
