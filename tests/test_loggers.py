"""Loggers: what training told is read back from each library's own files; one that fails ends no run."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import baseline
from baseline import OutputError, Recipe, RecipeError, Show, make_baseline, make_seeds, train
from baseline.loggers import Logged, logged, plain, told

pytestmark = pytest.mark.usefixtures("no_page")

QUIET = Show()
NAMES = ("valid_accuracy", "valid_loss", "train_loss", "lr", "stage", "seconds")
"""Of numbers that are told each epoch, as columns of the history have them."""


class Listening(Show):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture(scope="module")
def tracked(done: baseline.Baseline, tmp_path_factory: pytest.TempPathFactory) -> baseline.Baseline:
    """The run that `done` is, as its manifest has it, with a CSV log."""
    out = tmp_path_factory.mktemp("runs") / "tracked"
    return make_baseline(None, done.folder / "manifest.json", log="csv", out=out, show=QUIET)


def steps_of_epochs(done: baseline.Baseline) -> list[int]:
    """The step that each epoch of a run with a CSV log ended at."""
    rows = pd.read_csv(done.folder / "log.csv")
    return [int(step) for step in rows["step"][rows["name"] == "epoch"]]


def test_a_log_changes_no_number(tracked: baseline.Baseline, done: baseline.Baseline) -> None:
    pd.testing.assert_frame_equal(tracked.predictions, done.predictions, check_exact=True)


def test_csv_holds_every_epoch_at_steps_that_go_on_over_stages(tracked: baseline.Baseline) -> None:
    rows = pd.read_csv(tracked.folder / "log.csv")
    assert rows["step"].is_monotonic_increasing and rows["step"].iloc[0] == 1
    steps = steps_of_epochs(tracked)
    assert len(steps) == len(set(steps)) == len(tracked.history.epochs) == 5
    for name in NAMES:
        at_epochs = rows[(rows["name"] == name) & rows["step"].isin(steps)].groupby("step")["value"].last()
        assert at_epochs.tolist() == tracked.history.epochs[name].astype(float).tolist(), name
    assert rows["value"][rows["name"] == "epoch"].tolist() == [1, 2, 3, 4, 5]
    last = rows.set_index("name")["value"]
    assert last["test/tta/accuracy"] == tracked.metrics["test"]["tta"]["accuracy"]
    assert (last["test/tta/accuracy_low"], last["test/tta/accuracy_high"]) == tuple(
        tracked.metrics["test"]["tta"]["interval"]
    )


def test_the_search_for_a_rate_is_not_logged(tracked: baseline.Baseline) -> None:
    assert len(tracked.history.sweeps) > 50
    batches = pd.read_csv(tracked.folder / "log.csv")["step"].max()
    assert batches == 4 * (2 * 34 // 16) + 34 // 16  # both views in the stage of four epochs, last batches dropped


def test_tensorboard_reads_back_one_run_with_the_recipe_and_the_result(
    photos: Path, small: Recipe, tracked: baseline.Baseline, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_baseline(photos, small, log=["tensorboard"], out=tmp_path / "run", show=QUIET)
    assert len(list((run.folder / "tensorboard").rglob("*"))) == 1
    found = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    assert [event.step for event in found.Scalars("epoch")] == steps_of_epochs(tracked)
    told = [event.value for event in found.Scalars("valid_loss")]
    assert told == pytest.approx(run.history.epochs["valid_loss"].tolist(), rel=1e-6)
    end = found.Scalars("test/tta/accuracy")[0]
    assert end.value == pytest.approx(run.metrics["test"]["tta"]["accuracy"]) and end.step == 18
    recipe = found.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| seed | 0 |" in recipe and "| stages.1.trains | head |" in recipe
    hparams = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"augment.flip" in hparams and b"tf_efficientnet_lite0" in hparams
    assert run.recipe.log == ("tensorboard",) and run.manifest["seconds"]["logs"] >= 0


def test_wandb_without_a_key_is_offline_and_reads_back(
    photos: Path, small: Recipe, tracked: baseline.Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # with no .netrc
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    show = Listening()
    run = make_baseline(photos, small, log="wandb", out=tmp_path / "run", show=show)
    assert [line for line in show.said if "log: wandb: offline, as no API key is set; send with: wandb sync" in line]
    assert wandb.run is None
    (file,) = (run.folder / "wandb").glob("offline-run-*/*.wandb")
    history, summary, config, name = _read_wandb(file)
    assert [int(row["step"]) for row in history if "epoch" in row] == steps_of_epochs(tracked)
    assert [float(row["valid_loss"]) for row in history if "epoch" in row] == run.history.epochs["valid_loss"].tolist()
    assert summary["test/tta/accuracy"] == run.metrics["test"]["tta"]["accuracy"]
    assert config["seed"] == 0 and config["stages.2.lr"] == "0.0001, 0.001" and name.endswith("/run")


def _leveldb_records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """Records of a LevelDB log, which a .wandb file is after seven bytes: pieces with checksum, length and kind."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # what is left of a block is filled up
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def _read_wandb(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any], str]:
    """History, summary, config and name of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    history, summary, config, name = [], {}, {}, ""
    for data in _leveldb_records(file.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("history"):
            history.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item})
        for item in record.summary.update:
            summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
        for item in [*record.run.config.update, *record.config.update]:
            config[item.key or item.nested_key[0]] = json.loads(item.value_json)
        name = record.run.display_name or name
    return history, summary, config, name


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an MLflow store of the test's own."""
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return mlflow.MlflowClient()


def test_mlflow_reads_back(photos: Path, small: Recipe, tracked: baseline.Baseline, tmp_path: Path, store: Any) -> None:
    run = make_baseline(photos, small, log="mlflow", out=tmp_path / "run", show=QUIET)
    (kept,) = store.search_runs([store.get_experiment_by_name("baseline").experiment_id])
    assert kept.info.status == "FINISHED" and kept.info.run_name.endswith("/run")
    assert kept.data.params["seed"] == "0" and kept.data.params["arch"] == "tf_efficientnet_lite0"
    assert kept.data.metrics["test/tta/accuracy"] == run.metrics["test"]["tta"]["accuracy"]
    told = store.get_metric_history(kept.info.run_id, "valid_loss")
    assert [metric.step for metric in told] == steps_of_epochs(tracked)
    assert [metric.value for metric in told] == run.history.epochs["valid_loss"].tolist()


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_mlflow_is_told_how_a_run_ended(error: type, status: str, tmp_path: Path, store: Any) -> None:
    with pytest.raises(error), logged(("mlflow",), tmp_path, {"seed": 3}, QUIET) as logs:
        logs.numbers(1, {"train_loss": 0.5})
        raise error
    (kept,) = store.search_runs([store.get_experiment_by_name("baseline").experiment_id])
    assert kept.info.status == status and kept.data.metrics == {"train_loss": 0.5}


def test_a_server_that_is_not_there_is_an_error_at_once(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(OutputError, match="The log mlflow cannot be opened"), logged(("mlflow",), tmp_path, {}, QUIET):
        pass
    assert time.monotonic() - began < 60 and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_each_seed_is_a_run_of_its_own(photos: Path, small: Recipe, tmp_path: Path) -> None:
    recipe = small.changed(stages=(baseline.Stage("head", 1, 1e-3),))
    make_seeds(2, photos, recipe, out=tmp_path / "two", log="csv", show=QUIET)
    assert all((tmp_path / "two" / f"seed-{seed}" / "log.csv").stat().st_size > 100 for seed in (0, 1))


def test_a_full_disk_ends_the_log_and_not_the_training(
    learn: Any, settled: tuple[Recipe, object], tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")

    class Filling(Listening):
        def say(self, line: str) -> None:
            super().say(line)
            if line.startswith("stage 2: training"):
                os.dup2(os.open("/dev/full", os.O_WRONLY), logs.loggers["csv"].file.fileno())  # type: ignore[attr-defined]

    show = Filling()
    with logged(("csv",), tmp_path, {}, show) as logs:
        assert len(train(learn, settled[0], logs).epochs) == 5
        logs.summary({"test/tta/accuracy": 1.0})
    failed = [line for line in show.said if "has failed" in line]
    assert len(failed) == 1 and "csv has failed and is left out from here on: [Errno 28] No space left" in failed[0]
    assert len(pd.read_csv(tmp_path / "log.csv")) > 20


def test_a_log_that_cannot_be_opened_is_an_error_before_training(photos: Path, small: Recipe, tmp_path: Path) -> None:
    (tmp_path / "run" / "log.csv").mkdir(parents=True)
    show = Listening()
    with pytest.raises(OutputError, match=r"The log csv cannot be opened: .*Is a directory.*leave it out of --log"):
        make_baseline(photos, small, log="csv", out=tmp_path / "run", show=show)
    assert show.said and not any(line.startswith("stage") for line in show.said)


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "wandb"])
def test_a_missing_extra_is_an_error_that_names_the_pip_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeError, match=rf"--log {name} needs .*: pip install 'fastai-baseline\[{name}\]'"):
        make_baseline(tmp_path / "nowhere", log=f"csv,{name}", out=tmp_path / "run", show=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_folder_named_as_a_package_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()  # as Weights & Biases leaves one in the working folder
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(RecipeError, match="needs the package wandb"):
        make_baseline(tmp_path / "nowhere", log="wandb", show=QUIET)


def test_a_recipe_names_loggers_as_a_list_or_with_commas() -> None:
    assert Recipe(log="csv, tensorboard,csv").log == Recipe(log=["csv", "tensorboard"]).log == ("csv", "tensorboard")
    assert Recipe(log="none").log == Recipe(log="").log == ()
    with pytest.raises(RecipeError, match=r"log is \('wand',\), needed: a list from csv, mlflow, tensorboard, wandb"):
        Recipe(log="wand")
    with pytest.raises(RecipeError, match="log is 3, needed"):
        Recipe(log=3)  # type: ignore[arg-type]


def test_names_are_flat_and_intervals_have_two_ends(done: baseline.Baseline) -> None:
    facts = plain(done.recipe.as_dict())
    assert facts["stages.1.views"] == "flip" and facts["stages.2.trains"] == 3 and facts["augment.rotate"] == 10.0
    assert all(isinstance(value, bool | int | float | str) for value in facts.values())
    assert told(done.metrics)["valid/tta/macro_f1_low"] <= told(done.metrics)["valid/tta/macro_f1"]
    assert Logged(QUIET).loggers == {}
