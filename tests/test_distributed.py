"""The processes of one run see every image once, train the same network, and end together."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from commands import COMMAND_WITH_FORKS, WITH_FORKS, WITHOUT_PAGE, Command, call, piped
from conftest import leave_out_pages, two_stage_plan

import baseline
from baseline import Recipe, Stage
from baseline.errors import RecipeError
from baseline.experiments.before_after import compare_fixes
from baseline.parallel.distributed import (
    all_gather,
    all_reduce_mean,
    broadcast_from_rank0,
    launch,
    quiet_stdout,
    rank,
    world_size,
)
from baseline.runs.folder import read_manifest
from baseline.vision.dataloaders import shard_loader
from baseline.vision.rng import seed_everything


def plan(body: dict[str, str], batch_size: int = 8, epochs: int = 2) -> str:
    return two_stage_plan(
        head={"epochs": 4, "lr": 3e-3},
        groups={"trains": 3, "epochs": epochs, "lr": 3e-4, "batch_norm": "train"},
        batch_size=batch_size,
        **body,
    )


@pytest.mark.parametrize("balance", ["none", "sampler"])
@pytest.mark.parametrize("parts", [2, 4])
def test_sharded_loaders_split_each_batch_without_repeating_or_losing_images(
    settled: tuple, parts: int, balance: str, tmp_path: Path
) -> None:
    recipe = settled[0].changed(batch_size=8, class_balance=balance)

    def make_loader() -> Any:
        with seed_everything(0):
            return baseline.dataloaders(settled[1], recipe, path=tmp_path).train

    def batches(loader: Any) -> list[list[int]]:
        with seed_everything(1):
            order = loader.get_idxs()
        return [order[at : at + loader.bs] for at in range(0, len(order) - loader.bs + 1, loader.bs)]

    batches_of_all, shards = batches(make_loader()), [shard_loader(make_loader(), at, parts) for at in range(parts)]
    by_shard = [batches(shard) for shard in shards]
    assert {len(shard) for shard in shards} == {len(batches_of_all)} == {len(part) for part in by_shard}
    for number, batch in enumerate(batches_of_all):
        assert sorted(batch) == sorted(item for part in by_shard for item in part[number])
    if balance == "none":
        items = [item for part in by_shard for batch in part for item in batch]
        assert len(items) == len(set(items)) == len(batches_of_all) * 8
    assert sum(len(images) for images, _ in shards[0]) == len(batches_of_all) * 8 // parts
    with pytest.raises(
        RecipeError, match=r"Batches of 8 cannot be split evenly among 3 processes\. Pass --batch-size 6"
    ):
        shard_loader(make_loader(), 0, 3)
    at_least = (
        r"Batches of 8 cannot be split evenly among {} processes, with at least two images each\. "
        r"{}fewer --processes\."
    )
    for more, words in ((5, "Pass --batch-size 10, or "), (8, "Pass --batch-size 16, or "), (24, "Use ")):
        with pytest.raises(RecipeError, match=at_least.format(more, words)):
            shard_loader(make_loader(), 0, more)


def test_a_single_process_is_rank_0() -> None:
    value = torch.ones(3)
    all_reduce_mean([value])
    assert (world_size(), rank(), broadcast_from_rank0(lambda: 5), all_gather(7), value.sum()) == (1, 0, 5, [7], 3)


RECORDING_SCRIPT = """
import json, os, sys
from baseline.parallel.gradients import SyncGradients
from baseline.vision.dataloaders import BatchLoader
folder, *arguments = sys.argv[1:]
original_get_idxs, original_after_backward = BatchLoader.get_idxs, SyncGradients.after_backward
def get_idxs(self):
    indices = original_get_idxs(self)
    if self.shard:
        with open(f"{folder}/seen-{os.environ['LOCAL_RANK']}.txt", "a") as file:
            file.write(json.dumps(indices) + "\\n")
    return indices
def after_backward(self):
    original_after_backward(self)
    with open(f"{folder}/grads-{os.environ['LOCAL_RANK']}.txt", "a") as file:
        file.write(f"{sum(float(p.grad.double().sum()) for p in self.model.parameters() if p.grad is not None)!r}\\n")
BatchLoader.get_idxs, SyncGradients.after_backward = get_idxs, after_backward
sys.argv = ["baseline", *arguments]
"""


@pytest.fixture(scope="module")
def pair(images: Path, body: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two processes, the images that each of them saw, and a run of one process."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "plan.toml").write_text(plan(body))
    words = ["run", str(folder / "plan.toml"), "--data", str(images), "--loggers", "csv", "--out"]
    env = {"BASELINE_HOME": str(folder / "home"), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(20000 + os.getpid() % 20000), "OMP_NUM_THREADS": "1"}  # fmt: skip
    running = [
        Command(
            folder, *words, folder / "two", code=RECORDING_SCRIPT + WITHOUT_PAGE,
            env={**env, "RANK": str(index), "LOCAL_RANK": str(index)},
        )
        for index in range(2)
    ]  # fmt: skip
    for process in running:
        process.wait(240)
        assert process.returncode == 0, process.communicate()[1]
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pages(patch)
        baseline.make_baseline(images, str(folder / "plan.toml"), out=folder / "one", progress=baseline.Progress())
    return folder


def test_each_image_is_seen_once_per_epoch_and_gradients_are_averaged(pair: Path) -> None:
    orders = [[json.loads(line) for line in (pair / f"seen-{at}.txt").read_text().splitlines()] for at in range(2)]
    manifest = read_manifest(pair / "two")
    images = manifest["data"]["images"]["train"]
    assert len(orders[0]) == len(orders[1]) == 6
    for first, second in zip(*orders, strict=True):
        assert len({*first, *second}) == len(first) + len(second) == images // 8 * 8
    grads = [(pair / f"grads-{at}.txt").read_text() for at in range(2)]
    assert grads[0] == grads[1] and len(grads[0].splitlines()) == 6 * (images // 8)


def test_two_processes_reach_the_accuracy_of_one_on_the_same_images(pair: Path) -> None:
    one, two = (read_manifest(pair / name) for name in ("one", "two"))
    assert one["data"] == two["data"]
    assert {name: of["images"] for name, of in one["metrics"].items()} == {
        name: of["images"] for name, of in two["metrics"].items()
    }
    low, high = one["metrics"]["test"]["tta"]["interval"]
    assert low <= two["metrics"]["test"]["tta"]["accuracy"] <= high
    rows = [baseline.runs.folder.read_predictions(pair / name) for name in ("one", "two")]
    assert rows[0]["path"].tolist() == rows[1]["path"].tolist()
    steps = {line.split(",")[0] for line in (pair / "two" / "log.csv").read_text().splitlines()[1:]}
    assert len(steps) > 2 and not (pair / "two" / "unfinished").exists()
    assert baseline.load(pair / "two").check() < 1e-5
    assert [manifest["device"].startswith("2 x ") for manifest in (one, two)] == [False, True]


LAUNCH = f"""{WITH_FORKS}
import json
from baseline.parallel.distributed import launch
print(json.dumps(launch(2, sys.argv[1:])))
"""


def test_failing_processes_report_the_error_once_and_end_together(
    images: Path, body: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "plan.toml").write_text(plan(body, batch_size=7))
    ended = call("run", tmp_path / "plan.toml", "--data", images, "--out", tmp_path / "run", code=LAUNCH)
    assert json.loads(ended.stdout)[0] == 2
    errors = [line for line in ended.stderr.splitlines() if line.startswith("baseline: ")]
    assert errors == ["baseline: Batches of 7 cannot be split evenly among 2 processes. Pass --batch-size 6, or "
                      "fewer --processes."]  # fmt: skip


def test_what_a_library_prints_while_processes_connect_is_not_shown(capfd: Any) -> None:
    with quiet_stdout():
        os.write(1, b"[Gloo] Rank 0 is connected to 1 peer ranks.\n")
    os.write(1, b"{}\n")
    assert capfd.readouterr() == ("{}\n", "")


def test_an_error_of_all_processes_is_printed_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, time; time.sleep(1 - int(os.environ.get('RANK', 1)))\n")
    paths = (str(tmp_path), str(Path(baseline.__file__).parents[1]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))  # the first process is the last to say it
    assert launch(2, ["run", str(images), "--batch-size", "many", "--out", str(tmp_path / "run")]) == (2, "")
    assert capfd.readouterr().err.count("batch_size is 'many'") == 1


def test_more_processes_than_images_in_a_split_predict_them_all(
    images: Path, body: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "plan.toml").write_text(plan(body, batch_size=6))
    files = [
        file
        for number in range(9)
        for file in (images / "ants" / f"{number:02}.jpg", images / "bees" / f"{number:02}.jpg")
    ]
    splits = ["train"] * 16 + ["valid", "test"]
    rows = [f"{file},{file.parent.name},{split}" for file, split in zip(files, splits, strict=True)]
    (tmp_path / "images.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    words = ["run", tmp_path / "plan.toml", "--data", tmp_path / "images.csv", "--out", tmp_path / "run"]
    ended = call(*words, code=LAUNCH)
    assert ended.stdout.splitlines()[-1] == '[0, ""]', ended.stderr
    table = baseline.runs.folder.read_predictions(tmp_path / "run")
    assert sorted(table["path"]) == sorted(map(str, files[16:]))


@pytest.mark.parametrize("which", ["worker", "parent"])
def test_killing_one_process_ends_the_others(images: Path, body: dict[str, str], tmp_path: Path, which: str) -> None:
    (tmp_path / "plan.toml").write_text(plan(body, epochs=1000))
    words = ["run", tmp_path / "plan.toml", "--data", images, "--out", tmp_path / "run", "--processes", 2]
    running, stderr = piped(*words, code=COMMAND_WITH_FORKS)
    with stderr:
        end_one_process(running, stderr, which)


def end_one_process(running: Command, lines: IO[str], which: str) -> None:
    for line in lines:
        if "epoch 1/1000" in line:
            break
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    if not children.exists():
        running.send_signal(signal.SIGKILL)
        pytest.skip("no list of children here")
    workers = [*map(int, children.read_text().split())]
    os.kill(workers.pop() if which == "worker" else running.pid, signal.SIGKILL)
    assert running.wait(60)
    if which == "worker":
        errors = lines.read()
        assert running.returncode == signal.SIGKILL and "a process ended with exit code -9" in errors
    for _ in range(100):
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            break
        time.sleep(0.1)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_features_of_single_process_runs_are_refused(
    images: Path, small: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline.make, "world_size", lambda: 2)
    with pytest.raises(RecipeError, match="budget works in a single process only"):
        baseline.make_baseline(images, small.changed(budget="1m", stages=(Stage("head", 1, 1e-3, augment=False),)))
    ended = call("run", images, "--processes", 2, "--seeds", 2)
    assert ended.returncode == 2 and "--processes cannot be combined" in ended.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun does
    for several in (
        partial(baseline.run_seeds, 2),
        partial(baseline.run_folds, split="kfold:2"),
        partial(compare_fixes, ["fixes.csv"]),
    ):
        with pytest.raises(RecipeError, match="cannot be trained in several processes"):
            several(images, small, progress=baseline.Progress())
    assert not list(Path.cwd().iterdir())
