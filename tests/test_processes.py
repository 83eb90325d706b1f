"""Processes of one run see every photo once, learn the same network, and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command, call

import baseline
from baseline import Recipe, RecipeError, Stage
from baseline.chance import seeded
from baseline.data import shared
from baseline.processes import averaged, begin, count, from_first, gathered, rank
from baseline.save import read_manifest

PLAN = """
image_size = 48
batch_size = 8
[[stage]]
trains = "head"
epochs = 4
lr = 3e-3
[[stage]]
trains = 3
epochs = 2
lr = 3e-4
batch_norm = "moving"
"""


@pytest.mark.parametrize("balance", ["none", "sampler"])
@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_a_loader_are_its_batches_with_no_photo_twice_and_none_lost(
    settled: tuple, parts: int, balance: str, tmp_path: Path
) -> None:
    recipe = settled[0].changed(batch_size=8, balance=balance)

    def loader() -> Any:
        with seeded(0):
            return baseline.dataloaders(settled[1], recipe, path=tmp_path).train

    def batches(each: Any) -> list[list[int]]:
        with seeded(1):
            order = each.get_idxs()
        return [order[at : at + each.bs] for at in range(0, len(order) - each.bs + 1, each.bs)]

    whole, shares = batches(loader()), [shared(loader(), at, parts) for at in range(parts)]
    each = [batches(share) for share in shares]
    assert {len(share) for share in shares} == {len(whole)} == {len(found) for found in each}
    for number, batch in enumerate(whole):
        assert sorted(batch) == sorted(item for found in each for item in found[number])
    if balance == "none":
        seen = [item for found in each for batch in found for item in batch]
        assert len(seen) == len(set(seen)) == len(whole) * 8
    assert sum(len(photos) for photos, _ in shares[0]) == len(whole) * 8 // parts
    with pytest.raises(RecipeError, match=r"Batches of 8 cannot be parted among 3 processes\. Give --batch-size 6"):
        shared(loader(), 0, 3)
    at_least = (
        r"Batches of 8 cannot be parted among {} processes, two photos each at least\. Give {}fewer --processes\."
    )
    for more, words in ((5, "--batch-size 10, or "), (8, "--batch-size 16, or "), (24, "")):
        with pytest.raises(RecipeError, match=at_least.format(more, words)):
            shared(loader(), 0, more)


def test_one_process_is_its_own_first() -> None:
    value = torch.ones(3)
    averaged([value])
    assert (count(), rank(), from_first(lambda: 5), gathered(7), value.sum()) == (1, 0, 5, [7], 3)


COUNTED = """
import json, os, sys
from baseline import cli, data, training
folder, *words = sys.argv[1:]
taken, step = data.SliceDL.get_idxs, training._Together.after_backward
def get_idxs(self):
    found = taken(self)
    if self.share:
        with open(f"{folder}/seen-{os.environ['LOCAL_RANK']}.txt", "a") as file:
            file.write(json.dumps(found) + "\\n")
    return found
def after_backward(self):
    step(self)
    with open(f"{folder}/grads-{os.environ['LOCAL_RANK']}.txt", "a") as file:
        file.write(f"{sum(float(p.grad.double().sum()) for p in self.model.parameters() if p.grad is not None)!r}\\n")
data.SliceDL.get_idxs, training._Together.after_backward = get_idxs, after_backward
sys.argv = ["baseline", *words]
cli.main()
"""


@pytest.fixture(scope="module")
def pair(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two processes, what each was given, and a run of one."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "plan.toml").write_text(PLAN)
    words = ["run", str(folder / "plan.toml"), "--data", str(photos), "--log", "csv", "--out"]
    env = {"BASELINE_HOME": str(folder / "home"), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(20000 + os.getpid() % 20000), "OMP_NUM_THREADS": "1"}  # fmt: skip
    running = [
        Command(folder, *words, folder / "two", code=COUNTED, env={**env, "RANK": str(each), "LOCAL_RANK": str(each)})
        for each in range(2)
    ]
    for each in running:
        each.wait(240)
        assert each.returncode == 0, each.communicate()[1]
    baseline.make_baseline(photos, str(folder / "plan.toml"), out=folder / "one", show=baseline.Show())
    return folder


def test_each_photo_is_seen_once_an_epoch_and_gradients_are_those_of_all(pair: Path) -> None:
    orders = [[json.loads(line) for line in (pair / f"seen-{at}.txt").read_text().splitlines()] for at in range(2)]
    manifest = read_manifest(pair / "two")
    photos = manifest["data"]["photos"]["train"]
    assert len(orders[0]) == len(orders[1]) == 6
    for first, second in zip(*orders, strict=True):
        assert len({*first, *second}) == len(first) + len(second) == photos // 8 * 8
    grads = [(pair / f"grads-{at}.txt").read_text() for at in range(2)]
    assert grads[0] == grads[1] and len(grads[0].splitlines()) == 6 * (photos // 8)


def test_two_processes_reach_what_one_does_on_the_same_photos(pair: Path) -> None:
    one, two = (read_manifest(pair / name) for name in ("one", "two"))
    assert one["data"] == two["data"]
    assert {name: of["photos"] for name, of in one["metrics"].items()} == {
        name: of["photos"] for name, of in two["metrics"].items()
    }
    low, high = one["metrics"]["test"]["tta"]["interval"]
    assert low <= two["metrics"]["test"]["tta"]["accuracy"] <= high
    rows = [baseline.save.read_predictions(pair / name) for name in ("one", "two")]
    assert rows[0]["path"].tolist() == rows[1]["path"].tolist()
    steps = {line.split(",")[0] for line in (pair / "two" / "log.csv").read_text().splitlines()[1:]}
    assert len(steps) > 2 and not (pair / "two" / "unfinished").exists()
    assert baseline.load(pair / "two").check() < 1e-5
    assert [each["device"].startswith("2 x ") for each in (one, two)] == [False, True]


def test_processes_that_fail_say_why_once_and_end_together(photos: Path, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.replace("batch_size = 8", "batch_size = 7"))
    assert begin(2, ["run", str(tmp_path / "plan.toml"), "--data", str(photos), "--out", str(tmp_path / "run")])[0] == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("baseline: ")]
    assert errors == ["baseline: Batches of 7 cannot be parted among 2 processes. Give --batch-size 6, or "
                      "fewer --processes."]  # fmt: skip


def test_what_all_processes_say_is_said_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, time; time.sleep(1 - int(os.environ.get('RANK', 1)))\n")
    paths = (str(tmp_path), str(Path(baseline.__file__).parents[1]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))  # the first process is the last to say it
    assert begin(2, ["run", str(photos), "--batch-size", "many", "--out", str(tmp_path / "run")]) == (2, "")
    assert capfd.readouterr().err.count("batch_size is 'many'") == 1


def test_more_processes_than_photos_of_a_split_predict_them_all(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.replace("batch_size = 8", "batch_size = 6"))
    files = [
        file
        for number in range(9)
        for file in (photos / "ants" / f"{number:02}.jpg", photos / "bees" / f"{number:02}.jpg")
    ]
    splits = ["train"] * 14 + ["valid", "valid", "test", "test"]
    rows = [f"{file},{file.parent.name},{split}" for file, split in zip(files, splits, strict=True)]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    words = ["run", str(tmp_path / "plan.toml"), "--data", str(tmp_path / "photos.csv"), "--out", str(tmp_path / "run")]
    assert begin(3, words) == (0, "")
    table = baseline.save.read_predictions(tmp_path / "run")
    assert sorted(table["path"]) == sorted(map(str, files[14:]))


@pytest.mark.parametrize("which", ["one of them", "who began them"])
def test_one_that_is_killed_ends_the_others(photos: Path, tmp_path: Path, which: str) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.replace("epochs = 2", "epochs = 1000"))
    words = ["run", str(tmp_path / "plan.toml"), "--data", str(photos), "--out", str(tmp_path / "run")]
    running = subprocess.Popen([sys.executable, "-m", "baseline", *words, "--processes", "2"], stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    for line in running.stderr or []:
        if "epoch 1/1000" in line:
            break
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    if not children.exists():
        running.kill()
        pytest.skip("no list of children here")
    workers = [*map(int, children.read_text().split())]
    os.kill(workers.pop() if which == "one of them" else running.pid, signal.SIGKILL)
    _, errors = running.communicate(timeout=60)
    if which == "one of them":
        assert running.returncode == signal.SIGKILL and "a process ended with -9" in errors
    for _ in range(100):
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            break
        time.sleep(0.1)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_what_goes_with_one_process_only_is_refused(
    photos: Path, small: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline.make, "count", lambda: 2)
    with pytest.raises(RecipeError, match="A budget goes with one process"):
        baseline.make_baseline(photos, small.changed(budget="1m", stages=(Stage("head", 1, 1e-3),)))
    ended = call("run", photos, "--processes", 2, "--seeds", 2)
    assert ended.returncode == 2 and "--processes goes with a single run" in ended.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun does
    for several in (
        partial(baseline.make_seeds, 2),
        partial(baseline.make_folds, split="kfold:2"),
        partial(baseline.make_fixed, ["fixes.csv"]),
    ):
        with pytest.raises(RecipeError, match=r"Several processes go with a single run, .*\. Start one process\."):
            several(photos, small, show=baseline.Show())
    assert not list(Path.cwd().iterdir())
