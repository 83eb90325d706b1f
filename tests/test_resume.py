"""Interrupted runs resume with exactly the results of an uninterrupted run, and training recovers from errors."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import WITHOUT_PAGE, Command, call
from conftest import two_stage_plan
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback

import baseline
from baseline import Progress, Recipe, Stage, files, make_baseline, train
from baseline.cli import app
from baseline.errors import OutputError, RecipeError, TrainingError
from baseline.training import checkpoint
from baseline.training.callbacks import ProgressCallback
from baseline.training.checkpoint import Checkpoints, pack, unpack
from baseline.training.selection import SelectionMetric
from baseline.training.state import History
from baseline.vision.rng import seed_everything

pytestmark = pytest.mark.usefixtures("no_page")

QUIET = Progress()


class RecordingProgress(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)

    def __str__(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a checkpoint at the end of every epoch."""
    monkeypatch.setattr(checkpoint, "MIN_SECONDS_BETWEEN", 0)
    monkeypatch.setattr(checkpoint, "MAX_TIME_FRACTION", 0)


@pytest.fixture
def copies(often: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Copies of the run `whole`, one for each of its checkpoints, like the folder of a run that is killed then."""
    save, folders = Checkpoints.save, []

    def save_and_copy(self: Checkpoints, *args: Any) -> None:
        save(self, *args)
        if self.run.name == "whole":
            folders.append(shutil.copytree(self.folder, tmp_path / f"{len(folders)}" / "unfinished").parent)

    monkeypatch.setattr(Checkpoints, "save", save_and_copy)
    return folders


FLIP_ONLY = {"flip": True, "rotate": 0, "zoom": 1, "lighting": 0, "warp": 0}
EVERY_FIELD = {"rotate": 5.0, "erase": 0.5, "rand_augment": 5, "flip_vertical": True}
PLANS: dict[str, Any] = {
    "averaged": (FLIP_ONLY, (Stage("head", 2), Stage(3, 2, 1e-3)), {"ema": 0.9, "label_smoothing": 0.1}),
    "mixed": (EVERY_FIELD, (Stage(3, 2, 1e-3), Stage("head", 2, 1e-3)), {"mixup": 0.4, "ema": 0.8}),
    "cached features": (FLIP_ONLY, (Stage("head", 2, augment=False), Stage(3, 2, 1e-3), Stage("all", 1, (1e-4, 1e-3)))),
    "images": ({}, (Stage(3, 2, "find", "train", optimizer="sgd"), Stage("head", 1, 1e-3, augment=False))),
    "plateau": ({}, (Stage("head", 3, 3e-3, schedule="plateau", augment=False),
                     Stage(3, 2, 1e-4, optimizer="ranger", schedule="flat_cos"))),
    "instant": ({}, (Stage("probe", 1),)),
    "probe": (FLIP_ONLY, (Stage("probe", 1), Stage(3, 2, 1e-3))),
    "smaller": ({}, (Stage(3, 2, 1e-3, image_size=32, optimizer="lamb", schedule="constant"),
                     Stage("head", 2, 1e-3, augment=False))),
}  # fmt: skip


SLOW_PLANS = ("averaged", "images", "smaller")


@pytest.mark.parametrize(
    "plan", [pytest.param(plan, marks=[pytest.mark.slow] if plan in SLOW_PLANS else []) for plan in PLANS]
)
def test_training_from_every_state_ends_the_same(plan: str, settled: tuple, copies: list[Path], tmp_path: Path) -> None:
    augment, stages, *changes = PLANS[plan]
    recipe = settled[0].changed(
        stages=stages, augment={**vars(settled[0].augment), **augment}, arch="test_efficientnet", pretrained=False,
        **dict(*changes),
    )  # fmt: skip
    expected = run_training(recipe, settled[1], tmp_path / "whole")
    assert len(copies) == sum(stage.epochs for stage in stages) + len(stages)
    for run in copies:
        assert_same(expected, run_training(recipe, settled[1], run))


def test_own_callbacks_see_the_epochs_after_the_resumed_one(settled: tuple, copies: list[Path], tmp_path: Path) -> None:
    recipe = settled[0].changed(stages=(Stage("all", 3, 1e-3),), arch="test_efficientnet", pretrained=False)
    epochs: list[int] = []

    class Epochs(Callback):
        def before_epoch(self) -> None:
            epochs.append(self.epoch)

    def run(folder: Path) -> History:
        epochs.clear()
        with seed_everything(0):
            dls = baseline.dataloaders(settled[1], recipe)
            learn = baseline.learner(
                dls, recipe, path=tmp_path, cbs=[Epochs(), SaveModelCallback(monitor="valid_loss")]
            )
            return train(learn, recipe, checkpoints=Checkpoints(folder))

    expected = run(tmp_path / "whole").epochs["valid_loss"].tolist()
    for folder, seen in zip(copies, ([1, 2], [2], [], []), strict=True):
        assert run(folder).epochs["valid_loss"].tolist() == expected and epochs == seen


def test_the_same_epoch_is_kept_after_resuming(
    settled: tuple, copies: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values, record = {1: [0.5, 0.6], 2: [0.8, 0.9, 0.7, 0.85]}, ProgressCallback._record

    def record_value(callback: ProgressCallback, position: str) -> None:
        vars(callback.selection)["value"] = lambda: values[callback.number][callback.epoch]
        record(callback, position)

    monkeypatch.setattr(ProgressCallback, "_record", record_value)
    monkeypatch.setattr(SelectionMetric, "standard_error", lambda _: 0.1)
    stages = (Stage("head", 2, 1e-3, augment=False), Stage("all", 4, 1e-4))
    recipe = settled[0].changed(stages=stages, arch="test_efficientnet", pretrained=False)
    expected = run_training(recipe, settled[1], tmp_path / "whole")
    assert list(expected[0].epochs["best"]) == [True, True, True, True, False, True]
    for run in copies:
        assert_same(expected, run_training(recipe, settled[1], run))


def run_training(recipe: Recipe, table: pd.DataFrame, run: Path) -> tuple[History, dict[str, torch.Tensor]]:
    with seed_everything(0):
        learn = baseline.learner(baseline.dataloaders(table, recipe, path=run), recipe, path=run)
        return train(learn, recipe, checkpoints=Checkpoints(run)), learn.model.state_dict()


def assert_same(one: Any, two: Any) -> None:
    for first, second in zip(one[0].epochs.items(), two[0].epochs.items(), strict=True):
        if first[0] != "seconds":
            pd.testing.assert_series_equal(first[1], second[1], check_exact=True)
    pd.testing.assert_frame_equal(one[0].sweeps, two[0].sweeps, check_exact=True)
    assert all(torch.equal(value, two[1][name]) for name, value in one[1].items())
    assert all(value.stride() == two[1][name].stride() for name, value in one[1].items())  # it moves the last digit
    for first, second in zip(one[0].stages, two[0].stages, strict=True):
        assert [first[key] for key in ("trains", "lr", "why", "epochs")] == [
            second[key] for key in ("trains", "lr", "why", "epochs")
        ]


def test_a_run_begun_otherwise_is_refused_with_the_differences(
    images: Path, small: Recipe, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    own, run = shutil.copytree(images, tmp_path / "own"), tmp_path / "my run"
    quick = small.changed(stages=(Stage("head", 2, 1e-3, augment=False), Stage(3, 1, 1e-4)))
    with monkeypatch.context() as patch:
        patch.setattr(baseline.training.callbacks.ProgressCallback, "before_train", interrupted_in(3), raising=False)
        progress = RecordingProgress()
        with pytest.raises(KeyboardInterrupt):
            make_baseline(own, quick, out=run, progress=progress)
    assert f"to resume: baseline run '{run}' --resume" in str(progress)
    before = {path: path.read_bytes() for path in (run / "unfinished").iterdir()}
    for message, changes in (
        (r"tta was \['flip'\] and is now \[\]\. Use the same settings", {"tta": ()}),
        (r"stages.1.epochs was 2 and is now 3; stages.2.trains was 3 and is now 'all'",
         {"stages": (Stage("head", 3, 1e-3, augment=False), Stage("all", 1, 1e-4))}),
    ):  # fmt: skip
        with pytest.raises(OutputError, match=message):
            make_baseline(own, quick.changed(**changes), out=run, progress=QUIET)
    with pytest.raises(OutputError, match="seed was 0 and is now 1"):
        make_baseline(own, quick, out=run, progress=QUIET, seed=1)
    first = own / "ants" / "00.jpg"
    stat, content = first.stat(), first.read_bytes()
    first.write_bytes(content)
    with pytest.raises(OutputError, match=r"1 image file was rewritten, such as .*00\.jpg"):
        make_baseline(own, quick, out=run, progress=QUIET)
    first.rename(tmp_path / "away.jpg")
    with pytest.raises(OutputError, match=r"1 image is missing, such as .*00\.jpg"):
        make_baseline(own, quick, out=run, progress=QUIET)
    (tmp_path / "away.jpg").rename(first)
    os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert {path: path.read_bytes() for path in (run / "unfinished").iterdir()} == before
    begun = json.loads((run / "unfinished" / "begun.json").read_text())
    (run / "unfinished" / "begun.json").write_text(json.dumps(begun | {"device": "2 x Tesla T4"}))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["baseline", "run", str(run), "--resume"])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert not ended.value.code
    assert "resuming in stage 2" in (errors := capsys.readouterr().err) and "stage 1: training" not in errors
    assert f"the run was started on 2 x Tesla T4, and this is {begun['device']}: its numbers will differ" in errors
    assert sorted(path.name for path in run.iterdir()).count("unfinished") == 0
    with pytest.raises(OutputError, match="holds a finished run"):
        baseline.resume(run)
    with pytest.raises(OutputError, match="holds no unfinished run"):
        baseline.resume(tmp_path)


def test_settings_that_change_no_result_may_differ_on_resume(
    images: Path, small: Recipe, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run, plan = tmp_path / "run", small.changed(stages=(Stage("head", 3, 1e-3, augment=False),), cache_gb=1)
    with monkeypatch.context() as patch:
        patch.setattr(baseline.training.callbacks.ProgressCallback, "before_train", interrupted_in(2), raising=False)
        with pytest.raises(KeyboardInterrupt):
            make_baseline(images, plan, out=run, progress=QUIET)
    copy = shutil.copytree(run, tmp_path / "copy")
    done = make_baseline(images, plan.changed(loggers="csv", cache_gb=0, workers=1), out=run, progress=QUIET)
    options = ["--resume", "--quiet", "--loggers", "csv", "--cache-gb", "0", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["baseline", "run", str(copy), *options, "--seed", "7"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2 and "seed was 0 and is now 7" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["baseline", "run", str(copy), *options])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert not ended.value.code
    for folder in (run, copy):
        recipe = baseline.runs.folder.read_manifest(folder)["recipe"]["options"]
        assert (recipe["loggers"], recipe["cache_gb"], recipe["workers"]) == (["csv"], 0, 1)
        assert (folder / "log.csv").exists()
    assert (
        baseline.runs.folder.read_predictions(copy).equals(baseline.runs.folder.read_predictions(run))
        and len(done.history.epochs) == 3
    )


def test_run_of_another_version_is_refused(
    images: Path, small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(baseline.training.callbacks.ProgressCallback, "before_train", interrupted_in(1), raising=False)
        with pytest.raises(KeyboardInterrupt):
            make_baseline(images, small, out=tmp_path / "run", progress=QUIET)
    file = tmp_path / "run" / "unfinished" / "begun.json"
    begun = json.loads(file.read_text())
    for recipe in (begun["recipe"], begun["asked"]["recipe"]):
        recipe["cutout"] = 0.2
    file.write_text(json.dumps(begun))
    with pytest.raises(
        OutputError, match=r"run was started by another version of baseline\. Remove it, or choose another"
    ):
        baseline.resume(tmp_path / "run", progress=QUIET)
    with pytest.raises(OutputError, match=r"was started differently: cutout was 0\.2 and is now None"):
        make_baseline(images, small, out=tmp_path / "run", progress=QUIET)


def test_run_is_resumed_and_repeated_from_another_folder(
    images: Path, small: Recipe, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere, quick = (
        tmp_path / "here",
        tmp_path / "away",
        small.changed(stages=(Stage("head", 2, 1e-3, augment=False),)),
    )
    elsewhere.mkdir()
    shutil.copytree(images, home / "images")
    weights = baseline.vision.weights.find_weights(baseline.recipe.auto.EMBEDDED_ARCH).path
    shutil.copy(weights, home / weights.name)
    files = sorted(path for path in images.rglob("*.jpg"))
    rows = [f"{path.name},{path.parent.name},{'valid' if i % 4 else 'train'}" for i, path in enumerate(files)]
    for name in ("ants", "bees"):
        for path in (home / "images" / name).iterdir():
            path.rename(home / "images" / f"{name}-{path.name}")
    rows = [f"{path.parent.name}-{row}" for path, row in zip(files, rows, strict=True)]
    (home / "table.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    shutil.copy(home / "table.csv", home / "split.csv")
    monkeypatch.chdir(home)
    settings = {"image_dir": "images", "split_file": "split.csv", "weights": weights.name,
             "arch": baseline.recipe.auto.EMBEDDED_ARCH}  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(baseline.training.callbacks.ProgressCallback, "before_train", interrupted_in(2), raising=False)
        with pytest.raises(KeyboardInterrupt):
            make_baseline("table.csv", quick, out="run", progress=QUIET, **settings)
    monkeypatch.chdir(elsewhere)
    done = baseline.resume("../here/run", progress=QUIET)
    assert done.recipe.data.image_dir == str(home / "images") and done.recipe.model.weights == str(home / weights.name)
    again = make_baseline(None, home / "run" / "manifest.json", out="again", progress=QUIET)
    assert again.predictions.equals(done.predictions)


def interrupted_in(epoch: int) -> Any:
    """Return a `before_train` that raises KeyboardInterrupt in the given epoch, counted over all stages."""
    epochs = iter(range(1, epoch))

    def before_train(_: Any) -> None:
        if next(epochs, None) is None:
            raise KeyboardInterrupt

    return before_train


def test_budget_includes_the_time_before_an_interruption(
    images: Path, small: Recipe, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    plan = small.changed(
        stages=(Stage("head", 2, 1e-3, augment=False), Stage(3, 2, 1e-4)), budget="5m", augment=FLIP_ONLY
    )
    with monkeypatch.context() as patch:
        patch.setattr(baseline.training.callbacks.ProgressCallback, "before_train", interrupted_in(2), raising=False)
        with pytest.raises(KeyboardInterrupt):
            make_baseline(images, plan, out=run, progress=QUIET)
    begun, state = (json.loads((run / "unfinished" / f"{name}.json").read_text()) for name in ("begun", "state"))
    copy = shutil.copytree(run, tmp_path / "late")
    (copy / "unfinished" / "state.json").write_text(json.dumps(state | {"spent": 299.9}))
    epochs = []
    for folder in (run, copy):
        done = make_baseline(images, plan, out=folder, progress=QUIET)
        manifest = baseline.runs.folder.read_manifest(folder)
        assert (manifest["recipe"], manifest["reasons"]) == (begun["recipe"], begun["reasons"])
        epochs.append(len(done.history.epochs))
    assert epochs[0] > epochs[1] and done.manifest["seconds"]["training"] > 299


def test_resume_without_an_unfinished_run_is_an_error(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "manifest.json").touch()
    for arguments, message in (
        ((images, "--out", "nowhere"), "nowhere contains no unfinished run"), ((images,), "no folder was given"),
        ((tmp_path,), f"{tmp_path} contains no unfinished run"),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["baseline", "run", *map(str, arguments), "--resume"])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert ended.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


def test_table_in_memory_must_be_passed_again(
    images: Path, small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline.training.callbacks.ProgressCallback, "before_train", interrupted_in(1), raising=False)
    with pytest.raises(KeyboardInterrupt):
        make_baseline(baseline.image_table(images), small, out=tmp_path / "run", progress=QUIET)
    with pytest.raises(
        OutputError, match=r"was started with a table in memory\. Call make_baseline with that table and out="
    ):
        baseline.resume(tmp_path / "run")


def test_damaged_state_is_refused_and_half_written_one_is_ignored(settled: tuple, often: None, tmp_path: Path) -> None:
    run_training(settled[0], settled[1], tmp_path)
    checkpoints = Checkpoints(tmp_path)
    (now,) = checkpoints.folder.glob("now-*.safetensors")
    content = now.read_bytes()
    (checkpoints.folder / ".state.json.part").write_text("{")
    assert checkpoints.load() is not None
    for damaged in (content[:-1], content[:5000] + b"\x01" + content[5001:], b""):
        now.write_bytes(damaged)
        with pytest.raises(
            OutputError, match=r"now-.* is damaged\. Remove .*unfinished to start the run from the beginning"
        ):
            Checkpoints(tmp_path).load()
    now.write_bytes(content)
    (checkpoints.folder / "state.json").unlink()
    assert Checkpoints(tmp_path).load() is None


def test_until_a_state_is_whole_the_last_one_is_used(
    settled: tuple, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies are like the folder of a run that was killed when all but the last file of a state was written."""
    write, copies = files.write_atomic, []

    def copy_and_write(path: Path, content: Any) -> None:
        if path.name == "state.json" and path.exists():
            copies.append(shutil.copytree(path.parent, tmp_path / f"{len(copies)}" / "unfinished").parent)
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_atomic", copy_and_write)
    run_training(
        settled[0].changed(stages=(Stage("head", 2, 1e-3, augment=False), Stage(3, 2, 1e-4))),
        settled[1],
        tmp_path / "whole",
    )
    assert len(copies) == 5
    assert all(Checkpoints(run).load() for run in copies)


def test_if_no_state_can_be_written_the_last_one_stays_and_training_continues(
    settled: tuple, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, progress = files.write_atomic, RecordingProgress()

    def write_to_full_disk(path: Path, content: Any) -> None:
        with monkeypatch.context() as patch:
            if "now-" in path.name and list(path.parent.glob("state.json")):
                patch.setattr(files.os, "fsync", lambda _: Path("/dev/full").write_bytes(b"x"))
            write(path, content)

    monkeypatch.setattr(checkpoint, "write_atomic", write_to_full_disk)
    recipe = settled[0].changed(stages=(Stage("head", 3, 1e-3, augment=False),))
    with seed_everything(0):
        learn = baseline.learner(baseline.dataloaders(settled[1], recipe, path=tmp_path), recipe, path=tmp_path)
        history = train(learn, recipe, progress, checkpoints=Checkpoints(tmp_path))
    assert len(history.epochs) == 3
    assert sum("checkpoints cannot be written" in line and "the disk is full" in line for line in progress.lines) == 1
    state, _ = Checkpoints(tmp_path).load()
    assert state["point"]["epoch"] == 1


def test_unpack_reverses_pack() -> None:
    generator = random.Random(3)
    generator.gauss(0, 1)
    value = {
        "a": (1, [2.5, float("inf"), None], {"tensor": "no tensor"}),
        "b": {3: torch.arange(3), "tuple": {}},
        "c": generator.getstate(),
        "d": np.float64(0.1),
        "e": {"tuple": [1]},
    }
    packed, tensors = pack(value)
    unpacked = unpack(json.loads(json.dumps(packed)), tensors)
    assert torch.equal(unpacked["b"].pop(3), value["b"].pop(3)) and unpacked == value
    random.Random().setstate(unpacked["c"])


@pytest.mark.parametrize("room", ["then", "now"])
def test_cached_features_that_had_room_only_before_or_only_on_resume(
    settled: tuple, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    augment = {**vars(settled[0].augment), **FLIP_ONLY}
    recipe = settled[0].changed(stages=(Stage(3, 3, 1e-4),), cache_gb=0, augment=augment)
    with monkeypatch.context() as patch:
        patch.setattr(baseline.training.callbacks.ProgressCallback, "before_train", interrupted_in(3), raising=False)
        patch.setattr(baseline.training.frozen, "MEMORY_FRACTION", 1 / 4 if room == "then" else 0)
        with pytest.raises(KeyboardInterrupt):
            run_training(recipe, settled[1], tmp_path / "run")
    monkeypatch.setattr(baseline.training.frozen, "MEMORY_FRACTION", 1 / 4 if room == "now" else 0)
    if room == "then":
        with pytest.raises(
            OutputError,
            match=r"no longer has room .* or remove .*run/unfinished to start the run from the beginning\.$",
        ):
            run_training(recipe, settled[1], tmp_path / "run")
        monkeypatch.setattr(baseline.training.frozen, "MEMORY_FRACTION", 1 / 4)
    assert run_training(recipe, settled[1], tmp_path / "run")[0].epochs["epoch"].tolist() == [1, 2, 3]


# ---- recovery --------------------------------------------------------------------------------------------------------


class FaultyLoss:
    """A loss that is multiplied by a factor in some training batches, given by their number from 1."""

    def __init__(self, loss: Any, batches: set[int], factor: float) -> None:
        self.loss, self.batches, self.factor, self.seen = loss, batches, factor, 0

    def __call__(self, outputs: torch.Tensor, *targets: torch.Tensor) -> torch.Tensor:
        loss = self.loss(outputs, *targets)
        self.seen += outputs.requires_grad
        return loss * self.factor if outputs.requires_grad and self.seen in self.batches else loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loss, name)


def train_with_faulty_loss(
    settled: tuple, folder: Path, batches: set[int], factor: float, *stages: Stage
) -> tuple[Any, RecordingProgress]:
    recipe, progress = settled[0].changed(stages=stages), RecordingProgress()
    with seed_everything(0):
        learn = baseline.learner(baseline.dataloaders(settled[1], recipe, path=folder), recipe, path=folder)
        learn.loss_func = FaultyLoss(learn.loss_func, batches, factor)
        return train(learn, recipe, progress), progress


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e9])
def test_loss_that_goes_wrong_is_retried_at_half_the_rate(settled: tuple, tmp_path: Path, factor: float) -> None:
    steps = len(settled[1][settled[1]["split"] == "train"]) // settled[0].training.batch_size
    history, progress = train_with_faulty_loss(settled, tmp_path, {2 * steps + 1}, factor, Stage(3, 4, (1e-4, 1e-3)))
    assert history.epochs["epoch"].tolist() == [1, 2, 3, 4]
    assert np.isfinite(history.epochs["train_loss"]).all()
    (stage,) = history.stages
    assert stage["lr"] == (5e-5, 5e-4) and "in epoch 3" in stage["halved"]
    assert "back to epoch 2, at half the learning rate" in str(progress)
    assert history.epochs["lr"].iloc[2] < 0.51 * 1e-3


def test_loss_that_goes_wrong_twice_ends_training_with_the_best_weights(settled: tuple, tmp_path: Path) -> None:
    stages = (Stage("head", 2, 1e-3, batch_norm="train", augment=False), Stage(3, 4, 1e-3), Stage("all", 1, 1e-4))
    history, progress = train_with_faulty_loss(settled, tmp_path, set(range(9, 1000)), float("nan"), *stages)
    assert history.epochs["stage"].max() <= 2 and "given_up" in history.stages[-1]
    assert "again; training ends with the weights kept so far" in str(progress)
    with pytest.raises(
        TrainingError, match=r"Training diverges in stage 1: the loss became NaN in epoch 1, also at half"
    ):
        train_with_faulty_loss(settled, tmp_path, set(range(1, 1000)), float("nan"), *stages)


def test_patience_ends_a_stage_that_stops_improving(settled: tuple, tmp_path: Path) -> None:
    recipe, progress = (
        settled[0].changed(
            stages=(Stage("head", 50, 1e-6, augment=False), Stage("head", 2, 1e-3, augment=False)), patience=3
        ),
        RecordingProgress(),
    )
    with seed_everything(0):
        learn = baseline.learner(baseline.dataloaders(settled[1], recipe, path=tmp_path), recipe, path=tmp_path)
        learn.loss_func = FaultyLoss(learn.loss_func, set(), 1)
        history = train(
            learn,
            recipe.changed(stages=(Stage("head", 50, 1e-1, augment=False), Stage("head", 2, 1e-3, augment=False))),
            progress,
        )
    first = history.epochs[history.epochs["stage"] == 1]
    scores = list(zip(first["valid_accuracy"], -first["valid_loss"], strict=True))
    assert len(first) < 50 and len(first) - 1 - scores.index(max(scores)) == 3
    assert history.stages[0]["cut_short"] == "no improvement for 3 epochs" and history.epochs["stage"].iloc[-1] == 2
    with pytest.raises(RecipeError, match="patience is -1, needed: epochs, a whole number"):
        recipe.changed(patience=-1)


def test_reader_that_dies_is_restarted_once(settled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, table = settled[0].changed(workers=1, cache_gb=0, stages=(Stage(3, 2, 1e-3),)), settled[1]
    monkeypatch.setattr(baseline.vision.decoded, "MEMORY_FRACTION", 0)
    resize, deaths = baseline.data.image.resize_image, tmp_path / "deaths"
    deaths.write_text("")
    pid = os.getpid()

    def resize_or_die(*args: Any) -> Any:
        if os.getpid() != pid and len(deaths.read_text()) < max_deaths:
            deaths.write_text(deaths.read_text() + "x")
            os.kill(os.getpid(), signal.SIGKILL)
        return resize(*args)

    max_deaths, results = 0, []
    monkeypatch.setattr(baseline.vision.augment, "resize_image", resize_or_die)
    for max_deaths in (0, 1):
        progress = RecordingProgress()
        with seed_everything(0):
            learn = baseline.learner(baseline.dataloaders(table, recipe, path=tmp_path), recipe, path=tmp_path)
            results.append((train(learn, recipe, progress), learn.model.state_dict()))
        assert ("restarting it once" in str(progress)) == (max_deaths == 1)
    assert_same(*results)
    max_deaths = 9
    with (
        seed_everything(0),
        pytest.raises(TrainingError, match=r"Data-loading workers keep dying: .*exited unexpectedly.*--workers"),
    ):
        learn = baseline.learner(baseline.dataloaders(table, recipe, path=tmp_path), recipe, path=tmp_path)
        train(learn, recipe, QUIET)


# ---- kill -9 --------------------------------------------------------------------------------------------------------


RUN = f"""
from baseline.training import checkpoint
checkpoint.MIN_SECONDS_BETWEEN = checkpoint.MAX_TIME_FRACTION = 0
{WITHOUT_PAGE}
"""


def run_with_kills(
    arguments: list[Any], run: Path, kills: int, generator: random.Random, max_seconds: float
) -> list[str]:
    """Run the command until it ends, killed `kills` times at random moments; return what it was doing at these."""
    moments: list[str] = []
    while True:
        start, process = time.perf_counter(), Command(*arguments, run, code=RUN)
        if len(moments) == kills:
            _, errors = process.communicate()
            assert process.returncode == 0 and "was started on" not in errors, errors
            return moments
        with suppress(subprocess.TimeoutExpired):
            process.wait(generator.uniform(0.1, 1) * max_seconds)
        process.send_signal(signal.SIGKILL)
        errors = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), errors
        if baseline.runs.folder.is_finished(run):  # too late: try again
            shutil.rmtree(run)
            continue
        last = errors.strip().splitlines()[-1].strip() if errors.strip() else "starting"
        moments.append(f"{time.perf_counter() - start:.1f} s: {last}")


def read_results(run: Path) -> dict[str, Any]:
    names = ("predictions.csv", "split.csv", "lr_find.csv", "model/model.safetensors")
    results: dict[str, Any] = {name: (run / name).read_bytes() for name in names}
    history = pd.read_csv(run / "history.csv").drop(columns="seconds")
    return results | {"history": history.to_csv(), "metrics": baseline.runs.folder.read_manifest(run)["metrics"]}


@pytest.fixture
def uninterrupted(images: Path, body: dict[str, str], tmp_path: Path) -> tuple[list[Any], Path, float]:
    """Arguments of a run without its folder, the folder of an uninterrupted run, and the seconds it took."""
    (tmp_path / "plan.toml").write_text(
        two_stage_plan(head={"epochs": 6, "lr": 1e-3}, groups={"trains": 4, "epochs": 6, "lr": 3e-4}, **body)
    )
    arguments = ["run", tmp_path / "plan.toml", "--data", images, "--out"]
    call("--version")  # the time that a first command waits for imports is not the run's
    start = time.perf_counter()
    process = Command(*arguments, tmp_path / "whole", code=RUN)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return arguments, tmp_path / "whole", time.perf_counter() - start


def have_same_results(run: Path, other: Path) -> bool:
    names = [sorted(path.name for path in folder.iterdir()) for folder in (run, other)]
    return read_results(run) == read_results(other) and names[0] == names[1]


def test_kill_9_three_times(uninterrupted: tuple, tmp_path: Path) -> None:
    arguments, expected, seconds = uninterrupted
    assert len(run_with_kills(arguments, tmp_path / "run", 3, random.Random(0), 0.6 * seconds)) == 3
    assert have_same_results(tmp_path / "run", expected)


@pytest.mark.slow
def test_kill_9_of_twenty_runs(uninterrupted: tuple, tmp_path: Path, capsys: Any) -> None:
    arguments, expected, seconds = uninterrupted
    generator = random.Random(0)
    for number in range(1, 21):
        (moment,) = run_with_kills(arguments, tmp_path / f"run-{number}", 1, generator, seconds)
        assert have_same_results(tmp_path / f"run-{number}", expected)
        with capsys.disabled():
            print(f"\n{number} killed after {moment}", end="", flush=True)
