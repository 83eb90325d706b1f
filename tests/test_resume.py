"""A run that dies goes on, and ends with the numbers of one that did not; what goes wrong in its loop is helped."""

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
from commands import Command

import baseline
from baseline import (
    OutputError,
    Recipe,
    RecipeError,
    Show,
    Stage,
    TrainingError,
    checkpoints,
    cli,
    make_baseline,
    train,
)
from baseline.chance import seeded
from baseline.checkpoints import Checkpoints, packed, unpacked

pytestmark = pytest.mark.usefixtures("no_page")

QUIET = Show()


class Said(Show):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def __str__(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is written at the end of every epoch."""
    monkeypatch.setattr(checkpoints, "EVERY", 0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)


STILL = {"flip": True, "rotate": 0, "zoom": 1, "lighting": 0, "warp": 0}
PLANS: dict[str, Any] = {
    "kept outputs": (STILL, (Stage("head", 2), Stage(3, 2, 1e-3), Stage("all", 1, (1e-4, 1e-3)))),
    "whole photos": ({}, (Stage(3, 2, "find", "moving", optimizer="sgd"), Stage("head", 1, 1e-3))),
    "plateau": ({}, (Stage("head", 3, 3e-3, schedule="plateau"),
                     Stage(3, 2, 1e-4, optimizer="ranger", schedule="flat_cos"))),
    "smaller": ({}, (Stage(3, 2, 1e-3, image_size=32, optimizer="lamb", schedule="constant"),
                     Stage("head", 2, 1e-3))),
}  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_from_every_state_training_ends_the_same(
    plan: str, settled: tuple, often: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    augment, stages = PLANS[plan]
    recipe = settled[0].changed(
        stages=stages, augment={**vars(settled[0].augment), **augment}, arch="test_efficientnet", scratch=True
    )
    keep, copies = Checkpoints.keep, []

    def kept(self: Checkpoints, *args: Any) -> None:
        keep(self, *args)
        if self.run.name == "whole":  # as a run that is killed now would leave it
            copies.append(shutil.copytree(self.folder, tmp_path / f"{len(copies)}" / "unfinished").parent)

    monkeypatch.setattr(Checkpoints, "keep", kept)
    theirs = trained(recipe, settled[1], tmp_path / "whole")
    assert len(copies) == sum(stage.epochs for stage in stages) + len(stages)
    for run in copies:
        same(theirs, trained(recipe, settled[1], run))


def trained(recipe: Recipe, table: pd.DataFrame, run: Path) -> tuple[baseline.History, dict[str, torch.Tensor]]:
    with seeded(0):
        learn = baseline.learner(baseline.dataloaders(table, recipe, path=run), recipe, path=run)
        return train(learn, recipe, kept=Checkpoints(run)), learn.model.state_dict()


def same(one: Any, two: Any) -> None:
    for first, second in zip(one[0].epochs.items(), two[0].epochs.items(), strict=True):
        if first[0] != "seconds":
            pd.testing.assert_series_equal(first[1], second[1], check_exact=True)
    pd.testing.assert_frame_equal(one[0].sweeps, two[0].sweeps, check_exact=True)
    assert all(torch.equal(value, two[1][name]) for name, value in one[1].items())
    for first, second in zip(one[0].stages, two[0].stages, strict=True):
        assert [first[key] for key in ("trains", "lr", "why", "epochs")] == [
            second[key] for key in ("trains", "lr", "why", "epochs")
        ]


def test_what_was_begun_otherwise_is_refused_with_the_difference(
    photos: Path, small: Recipe, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    own, run = shutil.copytree(photos, tmp_path / "own"), tmp_path / "my run"
    quick = small.changed(stages=(Stage("head", 2, 1e-3), Stage(3, 1, 1e-4)))
    with monkeypatch.context() as patch:
        patch.setattr(baseline.training._Watch, "before_train", interrupted_in(3), raising=False)
        said = Said()
        with pytest.raises(KeyboardInterrupt):
            make_baseline(own, quick, out=run, show=said)
    assert f"to go on: baseline run '{run}' --resume" in str(said)
    before = {path: path.read_bytes() for path in (run / "unfinished").iterdir()}
    for words, changes in (
        (r"tta was \['flip'\] and is \[\]\. Give the same as then", {"tta": ()}),
        (r"stages.1.epochs was 2 and is 3; stages.2.trains was 3 and is 'all'",
         {"stages": (Stage("head", 3, 1e-3), Stage("all", 1, 1e-4))}),
    ):  # fmt: skip
        with pytest.raises(OutputError, match=words):
            make_baseline(own, quick.changed(**changes), out=run, show=QUIET)
    with pytest.raises(OutputError, match="seed was 0 and is 1"):
        make_baseline(own, quick, out=run, show=QUIET, seed=1)
    first = own / "ants" / "00.jpg"
    stat, content = first.stat(), first.read_bytes()
    first.write_bytes(content)
    with pytest.raises(OutputError, match=r"1 were written anew, such as .*00\.jpg"):
        make_baseline(own, quick, out=run, show=QUIET)
    first.rename(tmp_path / "away.jpg")
    with pytest.raises(OutputError, match=r"1 photos have gone, such as .*00\.jpg"):
        make_baseline(own, quick, out=run, show=QUIET)
    (tmp_path / "away.jpg").rename(first)
    os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert {path: path.read_bytes() for path in (run / "unfinished").iterdir()} == before
    begun = json.loads((run / "unfinished" / "begun.json").read_text())
    (run / "unfinished" / "begun.json").write_text(json.dumps(begun | {"device": "2 x Tesla T4"}))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["baseline", "run", str(run), "--resume"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    assert "going on in stage 2" in (errors := capsys.readouterr().err) and "stage 1: training" not in errors
    assert f"it was begun on 2 x Tesla T4, and this is {begun['device']}: its numbers will be others" in errors
    assert sorted(path.name for path in run.iterdir()).count("unfinished") == 0
    with pytest.raises(OutputError, match="holds a finished run"):
        baseline.go_on(run)
    with pytest.raises(OutputError, match="holds no unfinished run"):
        baseline.go_on(tmp_path)


def test_what_changes_no_number_may_be_other_when_a_run_goes_on(
    photos: Path, small: Recipe, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run, plan = tmp_path / "run", small.changed(stages=(Stage("head", 3, 1e-3),), cache_gb=1)
    with monkeypatch.context() as patch:
        patch.setattr(baseline.training._Watch, "before_train", interrupted_in(2), raising=False)
        with pytest.raises(KeyboardInterrupt):
            make_baseline(photos, plan, out=run, show=QUIET)
    copy = shutil.copytree(run, tmp_path / "copy")
    done = make_baseline(photos, plan.changed(log="csv", cache_gb=0, workers=1), out=run, show=QUIET)
    words = ["--resume", "--quiet", "--log", "csv", "--cache-gb", "0", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["baseline", "run", str(copy), *words, "--seed", "7"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "seed was 0 and is 7" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["baseline", "run", str(copy), *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    for each in (run, copy):
        recipe = baseline.save.read_manifest(each)["recipe"]
        assert (recipe["log"], recipe["cache_gb"], recipe["workers"]) == (["csv"], 0, 1)
        assert (each / "log.csv").exists()
    assert (
        baseline.save.read_predictions(copy).equals(baseline.save.read_predictions(run))
        and len(done.history.epochs) == 3
    )


def test_a_run_of_another_version_is_refused_in_words(
    photos: Path, small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(baseline.training._Watch, "before_train", interrupted_in(1), raising=False)
        with pytest.raises(KeyboardInterrupt):
            make_baseline(photos, small, out=tmp_path / "run", show=QUIET)
    file = tmp_path / "run" / "unfinished" / "begun.json"
    begun = json.loads(file.read_text())
    for recipe in (begun["recipe"], begun["asked"]["recipe"]):
        recipe["mixup"] = 0.2
    file.write_text(json.dumps(begun))
    with pytest.raises(OutputError, match=r"run was begun by another version of baseline\. Remove it, or give another"):
        baseline.go_on(tmp_path / "run", show=QUIET)
    with pytest.raises(OutputError, match=r"was begun with something else: mixup was 0\.2 and is None"):
        make_baseline(photos, small, out=tmp_path / "run", show=QUIET)


def test_a_run_goes_on_and_is_made_again_from_another_folder(
    photos: Path, small: Recipe, tiny: Path, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, away, quick = tmp_path / "here", tmp_path / "away", small.changed(stages=(Stage("head", 2, 1e-3),))
    away.mkdir()
    shutil.copytree(photos, here / "photos")
    shutil.copytree(tiny, here / "second")
    weights = baseline.weights.find_weights(baseline.recipe.EMBEDDED_ARCH).path
    shutil.copy(weights, here / weights.name)
    files = sorted(path for path in photos.rglob("*.jpg"))
    rows = [f"{path.name},{path.parent.name},{'valid' if at % 4 else 'train'}" for at, path in enumerate(files)]
    for name in ("ants", "bees"):
        for path in (here / "photos" / name).iterdir():
            path.rename(here / "photos" / f"{name}-{path.name}")
    rows = [f"{path.parent.name}-{row}" for path, row in zip(files, rows, strict=True)]
    (here / "table.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    shutil.copy(here / "table.csv", here / "split.csv")
    monkeypatch.chdir(here)
    given = {"images": "photos", "split_file": "split.csv", "weights": weights.name, "keep_if": "ants",
             "keep_model": "second", "keep_above": 0.01, "arch": baseline.recipe.EMBEDDED_ARCH}  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(baseline.training._Watch, "before_train", interrupted_in(2), raising=False)
        with pytest.raises(KeyboardInterrupt):
            make_baseline("table.csv", quick, out="run", show=QUIET, **given)
    monkeypatch.chdir(away)
    done = baseline.go_on("../here/run", show=QUIET)
    assert done.recipe.images == str(here / "photos") and done.recipe.weights == str(here / weights.name)
    again = make_baseline(None, here / "run" / "manifest.json", out="again", show=QUIET)
    assert again.predictions.equals(done.predictions)


def interrupted_in(epoch: int) -> Any:
    """A callback's `before_train` that is Ctrl-C in the so many-th epoch of all."""
    seen = iter(range(1, epoch))

    def before_train(_: Any) -> None:
        if next(seen, None) is None:
            raise KeyboardInterrupt

    return before_train


def test_a_budget_is_that_of_all_beginnings_together(
    photos: Path, small: Recipe, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    plan = small.changed(stages=(Stage("head", 2, 1e-3), Stage(3, 2, 1e-4)), budget="5m")
    with monkeypatch.context() as patch:
        patch.setattr(baseline.training._Watch, "before_train", interrupted_in(2), raising=False)
        with pytest.raises(KeyboardInterrupt):
            make_baseline(photos, plan, out=run, show=QUIET)
    begun, state = (json.loads((run / "unfinished" / f"{name}.json").read_text()) for name in ("begun", "state"))
    copy = shutil.copytree(run, tmp_path / "late")
    (copy / "unfinished" / "state.json").write_text(json.dumps(state | {"spent": 290}))
    epochs = []
    for each in (run, copy):
        done = make_baseline(photos, plan, out=each, show=QUIET)
        manifest = baseline.save.read_manifest(each)
        assert (manifest["recipe"], manifest["reasons"]) == (begun["recipe"], begun["reasons"])
        epochs.append(len(done.history.epochs))
    assert epochs[0] > epochs[1] and done.manifest["seconds"]["training"] > 290


def test_resume_needs_something_to_go_on_with(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for words, needed in ((("--out", "nowhere"), "nowhere holds none"), ((), "its folder is needed: --out RUN")):
        monkeypatch.setattr(sys, "argv", ["baseline", "run", str(photos), *words, "--resume"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2 and needed in " ".join(capsys.readouterr().err.split())


def test_a_table_in_memory_has_to_be_given_again(
    photos: Path, small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline.training._Watch, "before_train", interrupted_in(1), raising=False)
    with pytest.raises(KeyboardInterrupt):
        make_baseline(baseline.photo_table(photos), small, out=tmp_path / "run", show=QUIET)
    with pytest.raises(OutputError, match=r"begun with a table in memory\. Call make_baseline with it and out="):
        baseline.go_on(tmp_path / "run")


def test_a_damaged_state_is_refused_and_a_half_written_one_is_none(settled: tuple, often: None, tmp_path: Path) -> None:
    trained(settled[0], settled[1], tmp_path)
    kept = Checkpoints(tmp_path)
    (now,) = kept.folder.glob("now-*.safetensors")
    content = now.read_bytes()
    (kept.folder / ".state.json.part").write_text("{")
    assert kept.state() is not None
    for damaged in (content[:-1], content[:5000] + b"\x01" + content[5001:], b""):
        now.write_bytes(damaged)
        with pytest.raises(OutputError, match=r"now-.* is damaged\. Remove .*unfinished, and the run begins anew"):
            Checkpoints(tmp_path).state()
    now.write_bytes(content)
    (kept.folder / "state.json").unlink()
    assert Checkpoints(tmp_path).state() is None


def test_until_a_state_is_whole_the_last_one_is(
    settled: tuple, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run that is killed when all but the last file of a state is written would leave it."""
    put, copies = checkpoints.write, []

    def written(path: Path, content: Any) -> None:
        if path.name == "state.json" and path.exists():
            copies.append(shutil.copytree(path.parent, tmp_path / f"{len(copies)}" / "unfinished").parent)
        put(path, content)

    monkeypatch.setattr(checkpoints, "write", written)
    trained(settled[0].changed(stages=(Stage("head", 2, 1e-3), Stage(3, 2, 1e-4))), settled[1], tmp_path / "whole")
    assert len(copies) == 5
    assert all(Checkpoints(run).state() for run in copies)


def test_where_no_state_can_be_written_the_last_one_stays_and_training_goes_on(
    settled: tuple, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, said = checkpoints.write, Said()

    def full(path: Path, content: Any) -> None:
        if "now-" in path.name and list(path.parent.glob("state.json")):
            (path.parent / f".{path.name}.part").symlink_to("/dev/full")
        write(path, content)

    monkeypatch.setattr(checkpoints, "write", full)
    recipe = settled[0].changed(stages=(Stage("head", 3, 1e-3),))
    with seeded(0):
        learn = baseline.learner(baseline.dataloaders(settled[1], recipe, path=tmp_path), recipe, path=tmp_path)
        history = train(learn, recipe, said, kept=Checkpoints(tmp_path))
    assert len(history.epochs) == 3
    assert sum("cannot be kept" in line and "the disk is full" in line for line in said.lines) == 1
    state, _ = Checkpoints(tmp_path).state()
    assert state["point"]["epoch"] == 1


def test_what_is_kept_comes_back_as_it_was() -> None:
    chance = random.Random(3)
    chance.gauss(0, 1)
    value = {
        "a": (1, [2.5, float("inf"), None], {"tensor": "no tensor"}),
        "b": {3: torch.arange(3), "tuple": {}},
        "c": chance.getstate(),
        "d": np.float64(0.1),
        "e": {"tuple": [1]},
    }
    told, tensors = packed(value)
    back = unpacked(json.loads(json.dumps(told)), tensors)
    assert torch.equal(back["b"].pop(3), value["b"].pop(3)) and back == value
    random.Random().setstate(back["c"])


@pytest.mark.parametrize("room", ["then", "now"])
def test_outputs_of_frozen_layers_that_found_room_only_then_or_only_now(
    settled: tuple, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    still = {**vars(settled[0].augment), **STILL}
    recipe = settled[0].changed(stages=(Stage(3, 3, 1e-4),), cache_gb=0, augment=still)
    with monkeypatch.context() as patch:
        patch.setattr(baseline.training._Watch, "before_train", interrupted_in(3), raising=False)
        patch.setattr(baseline.features, "MEMORY_SHARE", 1 / 4 if room == "then" else 0)
        with pytest.raises(KeyboardInterrupt):
            trained(recipe, settled[1], tmp_path / "run")
    monkeypatch.setattr(baseline.features, "MEMORY_SHARE", 1 / 4 if room == "now" else 0)
    if room == "then":
        with pytest.raises(
            OutputError, match=r"no room now\. .* or remove .*run/unfinished, and the run begins anew\.$"
        ):
            trained(recipe, settled[1], tmp_path / "run")
        monkeypatch.setattr(baseline.features, "MEMORY_SHARE", 1 / 4)
    assert trained(recipe, settled[1], tmp_path / "run")[0].epochs["epoch"].tolist() == [1, 2, 3]


# ---- guards ---------------------------------------------------------------------------------------------------------


class Spoilt:
    """A loss that goes wrong in some training batches, by their number from 1."""

    def __init__(self, loss: Any, batches: set[int], factor: float) -> None:
        self.loss, self.batches, self.factor, self.seen = loss, batches, factor, 0

    def __call__(self, outputs: torch.Tensor, *targets: torch.Tensor) -> torch.Tensor:
        loss = self.loss(outputs, *targets)
        self.seen += outputs.requires_grad
        return loss * self.factor if outputs.requires_grad and self.seen in self.batches else loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loss, name)


def spoilt(settled: tuple, folder: Path, batches: set[int], factor: float, *stages: Stage) -> tuple[Any, Said]:
    recipe, said = settled[0].changed(stages=stages), Said()
    with seeded(0):
        learn = baseline.learner(baseline.dataloaders(settled[1], recipe, path=folder), recipe, path=folder)
        learn.loss_func = Spoilt(learn.loss_func, batches, factor)
        return train(learn, recipe, said), said


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e9])
def test_a_loss_that_goes_wrong_is_gone_back_from_at_half_the_rate(
    settled: tuple, tmp_path: Path, factor: float
) -> None:
    steps = len(settled[1][settled[1]["split"] == "train"]) // settled[0].batch_size
    history, said = spoilt(settled, tmp_path, {2 * steps + 1}, factor, Stage(3, 4, (1e-4, 1e-3)))
    assert history.epochs["epoch"].tolist() == [1, 2, 3, 4]
    assert np.isfinite(history.epochs["train_loss"]).all()
    (stage,) = history.stages
    assert stage["lr"] == (5e-5, 5e-4) and "in epoch 3" in stage["halved"]
    assert "back to epoch 2, at half the rate" in str(said)
    assert history.epochs["lr"].iloc[2] < 0.51 * 1e-3


def test_a_loss_that_goes_wrong_twice_ends_training_with_the_best_so_far(settled: tuple, tmp_path: Path) -> None:
    stages = (Stage("head", 2, 1e-3, batch_norm="moving"), Stage(3, 4, 1e-3), Stage("all", 1, 1e-4))
    history, said = spoilt(settled, tmp_path, set(range(9, 1000)), float("nan"), *stages)
    assert history.epochs["stage"].max() <= 2 and "given_up" in history.stages[-1]
    assert "again; training ends with the best weights so far" in str(said)
    with pytest.raises(TrainingError, match=r"Training diverges in stage 1: the loss is no number in epoch 1, at half"):
        spoilt(settled, tmp_path, set(range(1, 1000)), float("nan"), *stages)


def test_a_stage_that_no_longer_gets_better_ends(settled: tuple, tmp_path: Path) -> None:
    recipe, said = settled[0].changed(stages=(Stage("head", 50, 1e-6), Stage("head", 2, 1e-3)), patience=3), Said()
    with seeded(0):
        learn = baseline.learner(baseline.dataloaders(settled[1], recipe, path=tmp_path), recipe, path=tmp_path)
        learn.loss_func = Spoilt(learn.loss_func, set(), 1)
        history = train(learn, recipe.changed(stages=(Stage("head", 50, 1e-1), Stage("head", 2, 1e-3))), said)
    first = history.epochs[history.epochs["stage"] == 1]
    scores = list(zip(first["valid_accuracy"], -first["valid_loss"], strict=True))
    assert len(first) < 50 and len(first) - 1 - scores.index(max(scores)) == 3
    assert history.stages[0]["cut_short"] == "3 epochs were no better" and history.epochs["stage"].iloc[-1] == 2
    with pytest.raises(RecipeError, match="patience is -1, needed: epochs, a whole number"):
        recipe.changed(patience=-1)


def test_a_reader_that_dies_is_replaced_once_and_then_named(
    settled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, table = settled[0].changed(workers=1, cache_gb=0, stages=(Stage(3, 2, 1e-3),)), settled[1]
    monkeypatch.setattr(baseline.data, "MEMORY_SHARE", 0)
    fit, deaths = baseline.data.fit_photo, tmp_path / "deaths"
    deaths.write_text("")
    pid = os.getpid()

    def deadly(*given: Any) -> Any:
        if os.getpid() != pid and len(deaths.read_text()) < most:
            deaths.write_text(deaths.read_text() + "x")
            os.kill(os.getpid(), signal.SIGKILL)
        return fit(*given)

    most, found = 0, []
    monkeypatch.setattr(baseline.data, "fit_photo", deadly)
    for most in (0, 1):
        said = Said()
        with seeded(0):
            learn = baseline.learner(baseline.dataloaders(table, recipe, path=tmp_path), recipe, path=tmp_path)
            found.append((train(learn, recipe, said), learn.model.state_dict()))
        assert ("it is replaced, once" in str(said)) == (most == 1)
    same(*found)
    most = 9
    with seeded(0), pytest.raises(TrainingError, match=r"Readers of photos die: .*exited unexpectedly.*--workers"):
        learn = baseline.learner(baseline.dataloaders(table, recipe, path=tmp_path), recipe, path=tmp_path)
        train(learn, recipe, QUIET)


# ---- kill -9 --------------------------------------------------------------------------------------------------------


RUN = """
from baseline import checkpoints, cli
checkpoints.EVERY = checkpoints.SHARE = 0
cli.main()
"""


def killed(words: list[Any], run: Path, kills: int, chance: random.Random, longest: float) -> list[str]:
    """Runs the command until it ends, killed so many times at random moments; what it was doing then."""
    moments: list[str] = []
    while True:
        began, running = time.perf_counter(), Command(*words, run, code=RUN)
        if len(moments) == kills:
            _, errors = running.communicate()
            assert running.returncode == 0 and "it was begun on" not in errors, errors
            return moments
        with suppress(subprocess.TimeoutExpired):
            running.wait(chance.uniform(0.1, 1) * longest)
        running.send_signal(signal.SIGKILL)
        errors = running.communicate()[1]
        assert running.returncode in (0, -signal.SIGKILL), errors
        if baseline.save.is_finished(run):  # too late: again
            shutil.rmtree(run)
            continue
        last = errors.strip().splitlines()[-1].strip() if errors.strip() else "starting"
        moments.append(f"{time.perf_counter() - began:.1f} s: {last}")


PLAN = """
data = ""
image_size = 48
[[stage]]
trains = "head"
epochs = 6
lr = 1e-3
[[stage]]
trains = 4
epochs = 6
lr = 3e-4
"""


def numbers(run: Path) -> dict[str, Any]:
    names = ("predictions.csv", "split.csv", "lr_find.csv", "model/model.safetensors")
    found: dict[str, Any] = {name: (run / name).read_bytes() for name in names}
    history = pd.read_csv(run / "history.csv").drop(columns="seconds")
    return found | {"history": history.to_csv(), "metrics": baseline.save.read_manifest(run)["metrics"]}


@pytest.fixture
def undisturbed(photos: Path, tmp_path: Path) -> tuple[list[Any], Path, float]:
    """A run's command, but for its folder, the folder of one that nobody disturbed, and its seconds."""
    (tmp_path / "plan.toml").write_text(PLAN)
    words = ["run", tmp_path / "plan.toml", "--data", photos, "--out"]
    began = time.perf_counter()
    whole = Command(*words, tmp_path / "whole", code=RUN)
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    return words, tmp_path / "whole", time.perf_counter() - began


def ended_alike(run: Path, whole: Path) -> bool:
    names = [sorted(path.name for path in folder.iterdir()) for folder in (run, whole)]
    return numbers(run) == numbers(whole) and names[0] == names[1]


def test_kill_9_three_times(undisturbed: tuple, tmp_path: Path) -> None:
    words, whole, longest = undisturbed
    assert len(killed(words, tmp_path / "run", 3, random.Random(0), longest)) == 3
    assert ended_alike(tmp_path / "run", whole)


@pytest.mark.slow
def test_kill_9_of_twenty_runs(undisturbed: tuple, tmp_path: Path, capsys: Any) -> None:
    words, whole, longest = undisturbed
    chance = random.Random(0)
    for number in range(1, 21):
        (moment,) = killed(words, tmp_path / f"run-{number}", 1, chance, longest)
        assert ended_alike(tmp_path / f"run-{number}", whole)
        with capsys.disabled():
            print(f"\n{number} killed after {moment}", end="", flush=True)
