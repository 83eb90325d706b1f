"""A whole run: what it writes, that it repeats to the last digit, and that nothing is lost or left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import Command, call
from PIL import Image
from safetensors.torch import load_file

import baseline
from baseline import Progress, Recipe, Stage, files, make_baseline
from baseline.errors import DataError, OutputError, RecipeError, WeightsError
from baseline.evaluation.label_errors import suspect_labels
from baseline.runs.folder import run_name
from baseline.vision.model_folder import load_network

QUIET = Progress()


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(f.relative_to(folder)): (f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.rglob("*"))}


@pytest.mark.real_images
def test_the_run_folder_holds_what_it_should_and_no_pickle(done: baseline.Baseline) -> None:
    wrong = bool(done.metrics["test"]["tta"]["wrong"])  # a run without an error has no picture of errors
    doubt = len(suspect_labels(done.predictions)) > 0
    assert sorted(str(f.relative_to(done.folder)) for f in done.folder.rglob("*") if f.is_file()) == [
        "classes.png", "confusion.csv", "confusion.png", *["errors.png"] * wrong, "gradcam.npz",
        "history.csv", "hits.png", "lr_find.csv",
        "lr_find.png", "manifest.json", "model/README.md", "model/golden.safetensors", "model/model.json",
        "model/model.safetensors", "model/reference.safetensors",
        "predictions.csv", "report.html", "sample.png", "split.csv",
        *["suspected_labels.csv", "suspects.png"] * doubt, "time.png", "training.png",
    ]  # fmt: skip
    for picture in ("lr_find.png", "training.png"):
        assert np.asarray(Image.open(done.folder / picture).convert("L")).std() > 5
    assert len(pd.read_csv(done.folder / "history.csv")) == len(done.history.epochs)
    written = pd.read_csv(done.folder / "predictions.csv")
    pd.testing.assert_frame_equal(written, done.predictions, check_dtype=False)


@pytest.mark.real_images
def test_the_manifest_tells_everything_that_was_decided(done: baseline.Baseline) -> None:
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["recipe"]["model"]["arch"] == "tf_efficientnet_lite0" and manifest["reasons"]["arch"]
    assert manifest["recipe"]["training"]["batch_size"] == 16 and manifest["recipe"]["model"]["precision"] == "float32"
    assert manifest["weights"]["sha256"].startswith("57934424")
    assert set(manifest["seconds"]) >= {"data", "weights", "training", "evaluation"}
    assert manifest["data"]["images"] == {"train": 34, "valid": 4, "test": 10}
    assert manifest["metrics"]["test"]["tta"]["accuracy"] == done.metrics["test"]["tta"]["accuracy"]
    assert manifest["versions"]["fastai"] and manifest["device"] and manifest["data"]["sha256"]


@pytest.mark.real_images
def test_the_learner_is_whole_and_ready(done: baseline.Baseline) -> None:
    assert not done.learner.model.training
    assert all(parameter.requires_grad for parameter in done.learner.model.parameters())
    path = done.predictions["path"].iloc[0]
    assert done.learner.predict(path)[0] in ("ants", "bees")
    done.learner.validate()


@pytest.mark.real_images
def test_it_learned_something(done: baseline.Baseline) -> None:
    everything = baseline.predict(done.learner, baseline.image_table(_images_of(done)).assign(split="test"))
    assert (everything["predicted"] == everything["label"]).mean() > 0.85


def _images_of(done: baseline.Baseline) -> str:
    return done.manifest["images"]


@pytest.mark.real_images
@pytest.mark.usefixtures("no_page")
def test_the_same_seed_gives_the_same_digits_and_the_manifest_runs_again(
    done: baseline.Baseline, tmp_path: Path
) -> None:
    torch.rand(3)  # the state outside must not matter
    again = make_baseline(None, done.folder / "manifest.json", out=tmp_path / "again", progress=QUIET)
    pd.testing.assert_frame_equal(again.predictions, done.predictions, check_exact=True)
    assert again.metrics == done.metrics
    other = make_baseline(None, done.folder / "manifest.json", seed=1, out=tmp_path / "other", progress=QUIET)
    assert not other.predictions["loss"].equals(done.predictions["loss"])


@pytest.mark.usefixtures("no_page")
def test_a_run_again_says_that_images_have_come_or_gone(images: Path, tmp_path: Path, small: Recipe) -> None:
    class Said(baseline.Progress):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def log(self, line: str) -> None:
            self.lines.append(line)

    own, run = shutil.copytree(images, tmp_path / "own"), tmp_path / "my run"
    make_baseline(
        own,
        small.changed(stages=(baseline.Stage("head", 1, 1e-3, augment=False),)),
        out=run,
        progress=baseline.Progress(),
    )
    option = f"--split-file '{run / 'split.csv'}'"
    words = f"images or splits differ from {run}; {option} restores those that still exist"
    found = []
    for name, changes in (("same", {}), ("fewer", {}), ("seed", {"seed": 1}), ("given", {"images": own})):
        if name == "fewer":
            (own / "ants" / "00.jpg").unlink()
        said = Said()
        make_baseline(**{"images": None, **changes}, recipe=run / "manifest.json", out=tmp_path / name, progress=said)
        found.append(words in said.lines)
    assert found == [False, True, False, False]


@pytest.mark.real_images
def test_the_saved_network_predicts_the_same_in_a_fresh_process(done: baseline.Baseline) -> None:
    code = (
        "import sys, torch, baseline\n"
        "from baseline.data.image import resize_image, load_image\n"
        "import numpy as np\n"
        "from baseline.vision.model_folder import load_network\n"
        "model, facts = load_network(sys.argv[1])\n"
        "square = resize_image(load_image(sys.argv[2], facts['image_size']), facts['image_size'], facts['resize'])\n"
        "x = torch.tensor(np.asarray(square).transpose(2, 0, 1)[None] / 255, dtype=torch.float32)\n"
        "mean, std = (torch.tensor(facts[k]).view(1, 3, 1, 1) for k in ('mean', 'std'))\n"
        "with torch.no_grad(): print(*model((x - mean) / std).softmax(1)[0].tolist())\n"
    )
    row = done.predictions.iloc[0]
    ended = call(done.folder, row["path"], code=code)
    assert max(map(float, ended.stdout.split())) == pytest.approx(row["plain_confidence"], abs=1e-5), ended.stderr


def test_a_damaged_or_newer_model_folder_is_refused(done: baseline.Baseline, tmp_path: Path) -> None:
    folder = shutil.copytree(done.folder / "model", tmp_path / "model")
    tensors = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(tensors[:-10_000])
    with pytest.raises(WeightsError, match="is damaged"):
        load_network(folder)
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(OutputError, match="has format 99"):
        load_network(folder)
    with pytest.raises(OutputError, match="Pass the folder of a finished run"):
        load_network(tmp_path / "nowhere")
    assert load_file(done.folder / "model" / "model.safetensors")


def test_a_run_is_named_after_its_images(tmp_path: Path) -> None:
    (tmp_path / "v1.2").mkdir()
    for place, name in (
        (tmp_path / "v1.2", "v1.2"), ("shots/my flowers.tar.gz", "my-flowers"), ("train.csv", "train"),
        ("hf:beans", "beans"),
        ("/", "default"), (None, "default"), ("x" * 99, "x" * 40),
    ):  # fmt: skip
        assert run_name(place, "default") == name, place
    assert run_name("shots", "cifar10") == "cifar10"


def test_nothing_is_written_but_the_run_folder_and_the_cache(images: Path, tmp_path: Path, small: Recipe) -> None:
    work, home = tmp_path / "work", Path(os.environ["BASELINE_HOME"])
    work.mkdir()
    os.chdir(work)
    before = listing(images)
    done = make_baseline(images, small.changed(stages=(Stage("head", 1, augment=False),)), progress=QUIET)
    assert done.folder.parent == Path("runs") and done.folder.name.startswith(f"{images.name}-")
    assert listing(images) == before and {f.name for f in home.iterdir()} == {"arrays", "audit-3.sqlite"}
    assert [f.name for f in work.iterdir()] == ["runs"]


@pytest.mark.real_images
@pytest.mark.usefixtures("no_page")
def test_a_dataframe_and_a_folder_give_the_same_numbers(images: Path, tmp_path: Path, small: Recipe) -> None:
    recipe = small.changed(stages=(Stage("head", 1, 1e-3, augment=False),))
    table = baseline.image_table(images)[["path", "label"]]
    one = make_baseline(images, recipe, out=tmp_path / "one", progress=QUIET)
    two = make_baseline(table, recipe, out=tmp_path / "two", progress=QUIET)
    assert one.predictions.equals(two.predictions)
    again = make_baseline(None, two.folder / "manifest.json", out=tmp_path / "three", progress=QUIET)
    assert again.predictions.equals(one.predictions)
    (two.folder / "split.csv").unlink()
    with pytest.raises(RecipeError, match="names no dataset, and no images were given"):
        make_baseline(None, two.folder / "manifest.json", out=tmp_path / "four", progress=QUIET)


@pytest.mark.real_images
@pytest.mark.usefixtures("no_page")
def test_given_splits_are_kept_and_no_test_split_is_said(images: Path, tmp_path: Path, small: Recipe) -> None:
    for part, numbers in (("train", range(16)), ("val", range(16, 24))):
        for name in ("ants", "bees"):
            (tmp_path / "given" / part / name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(images / name / f"{number:02}.jpg", tmp_path / "given" / part / name)
    done = make_baseline(
        tmp_path / "given",
        small.changed(stages=(Stage("head", 1, augment=False),)),
        out=tmp_path / "run",
        progress=QUIET,
    )
    assert set(done.metrics) == {"valid"} and done.metrics["valid"]["images"] == 16


@pytest.mark.usefixtures("no_page")
def test_from_scratch_trains_everything_and_says_so(images: Path, tmp_path: Path, small: Recipe) -> None:
    said: list[str] = []
    show = type("Listening", (Progress,), {"log": lambda self, line: said.append(line)})()
    changes: dict[str, Any] = {"stages": (Stage("head", 1, augment=False), Stage("all", 1))}
    done = make_baseline(images, small, pretrained=False, out=tmp_path / "run", progress=show, **changes)
    assert done.manifest["weights"] == "random" and [s["trains"] for s in done.history.stages] == ["all"]
    assert any("random weights" in line for line in said)


@pytest.mark.usefixtures("no_page")
def test_few_images_shrink_the_batch_in_words(images: Path, tmp_path: Path, small: Recipe) -> None:
    for name in ("ants", "bees"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for number in range(4):
            shutil.copy(images / name / f"{number:02}.jpg", tmp_path / "few" / name)
    said: list[str] = []
    show = type("Listening", (Progress,), {"log": lambda self, line: said.append(line)})()
    recipe = small.changed(batch_size=64, stages=(Stage("head", 2, augment=False), Stage("all", 1, 1e-4)))
    done = make_baseline(tmp_path / "few", recipe, out=tmp_path / "run", progress=show)
    assert done.recipe.training.batch_size == 4
    assert any("4 training images do not fill a batch of 64" in line for line in said)
    assert done.history.epochs["train_loss"].notna().all()


def test_a_finished_run_is_never_overwritten(done: baseline.Baseline, images: Path) -> None:
    before = listing(done.folder)
    with pytest.raises(OutputError, match="holds a finished run"):
        make_baseline(images, out=done.folder, progress=QUIET)
    assert listing(done.folder) == before


def test_a_failed_run_leaves_no_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        make_baseline(tmp_path / "nowhere", out=tmp_path / "run", progress=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        make_baseline(images, out=tmp_path / "file" / "run", progress=QUIET)


def test_a_full_disk_is_said_in_words_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    target = tmp_path / "history.csv"
    monkeypatch.setattr(files.os, "fsync", lambda _: Path("/dev/full").write_bytes(b"x"))
    with pytest.raises(OutputError, match="the disk is full"):
        files.write_atomic(target, "x" * 100_000)
    assert not target.exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_keeps_what_is_finished(images: Path, tmp_path: Path, blow: signal.Signals) -> None:
    recipe = tmp_path / "long.toml"
    recipe.write_text('image_size = 48\n[[stage]]\ntrains = "head"\nepochs = 100000\nlr = 1e-3\n')
    with (tmp_path / "log").open("w") as log:
        running = Command("run", recipe, "--data", images, "--out", tmp_path / "run", stderr=log)
        try:
            for _ in range(1800):
                if "epoch 3/" in (tmp_path / "log").read_text():
                    break
                time.sleep(0.1)
            running.send_signal(blow)
            assert running.wait(60) == 128 + blow
        finally:
            running.send_signal(signal.SIGKILL)
    assert "interrupted: the weights kept from" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert sorted(f.name for f in (tmp_path / "run").iterdir()) == ["history.csv", "model", "unfinished"]
    assert load_network(tmp_path / "run")[1]["classes"] == ["ants", "bees"]
