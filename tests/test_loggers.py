"""Loggers: metrics are read back from each library's own files, and a logger that fails does not end the run."""

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
from baseline import Progress, Recipe, make_baseline, run_seeds, train
from baseline.errors import OutputError, RecipeError
from baseline.evaluation.results import flatten_metrics
from baseline.recipe.diff import flatten_plain
from baseline.training.loggers import LoggingProgress, open_loggers

pytestmark = pytest.mark.usefixtures("no_page")

QUIET = Progress()
NAMES = ("valid_accuracy", "valid_loss", "train_loss", "lr", "stage", "seconds")
"""Names of metrics logged in each epoch, as in the columns of the history."""


class RecordingProgress(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def tracked(done: baseline.Baseline, tmp_path_factory: pytest.TempPathFactory) -> baseline.Baseline:
    """Repeat the run `done` from its manifest, with a CSV log."""
    out = tmp_path_factory.mktemp("runs") / "tracked"
    return make_baseline(None, done.folder / "manifest.json", loggers="csv", out=out, progress=QUIET)


def steps_of_epochs(done: baseline.Baseline) -> list[int]:
    """Return the step at which each epoch of a run with a CSV log ended."""
    rows = pd.read_csv(done.folder / "log.csv")
    return [int(step) for step in rows["step"][rows["name"] == "epoch"]]


def test_logging_changes_no_result(tracked: baseline.Baseline, done: baseline.Baseline) -> None:
    pd.testing.assert_frame_equal(tracked.predictions, done.predictions, check_exact=True)


def test_csv_has_every_epoch_and_steps_continue_across_stages(tracked: baseline.Baseline) -> None:
    rows = pd.read_csv(tracked.folder / "log.csv", converters={"value": float})  # pandas 2 alone does not read exactly
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


def test_lr_search_is_not_logged(tracked: baseline.Baseline) -> None:
    assert len(tracked.history.sweeps) > 50
    batches = pd.read_csv(tracked.folder / "log.csv")["step"].max()
    assert batches == 4 * (2 * 34 // 16) + 34 // 16  # both views in the first stage; last batches are dropped


def test_tensorboard_has_one_run_with_recipe_and_result(
    images: Path, small: Recipe, tracked: baseline.Baseline, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_baseline(images, small, loggers=["tensorboard"], out=tmp_path / "run", progress=QUIET)
    assert len(list((run.folder / "tensorboard").rglob("*"))) == 1
    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    assert [event.step for event in events.Scalars("epoch")] == steps_of_epochs(tracked)
    losses = [event.value for event in events.Scalars("valid_loss")]
    assert losses == pytest.approx(run.history.epochs["valid_loss"].tolist(), rel=1e-6)
    end = events.Scalars("test/tta/accuracy")[0]
    assert end.value == pytest.approx(run.metrics["test"]["tta"]["accuracy"]) and end.step == 18
    recipe = events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| seed | 0 |" in recipe and "| stages.1.trains | head |" in recipe
    hparams = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"augment.flip" in hparams and b"test_efficientnet" in hparams
    assert run.recipe.options.loggers == ("tensorboard",) and run.manifest["seconds"]["logs"] >= 0


def test_wandb_without_a_key_logs_offline(
    images: Path, small: Recipe, tracked: baseline.Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # without a .netrc file
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    progress = RecordingProgress()
    run = make_baseline(images, small, loggers="wandb", out=tmp_path / "run", progress=progress)
    assert [
        line for line in progress.lines if "log: wandb: offline, as no API key is set; upload with: wandb sync" in line
    ]
    assert wandb.run is None
    (file,) = (run.folder / "wandb").glob("offline-run-*/*.wandb")
    history, summary, config, name = _read_wandb(file)
    assert [int(row["step"]) for row in history if "epoch" in row] == steps_of_epochs(tracked)
    assert [float(row["valid_loss"]) for row in history if "epoch" in row] == run.history.epochs["valid_loss"].tolist()
    assert summary["test/tta/accuracy"] == run.metrics["test"]["tta"]["accuracy"]
    assert config["seed"] == 0 and config["stages.2.lr"] == "0.0001, 0.001" and name.endswith("/run")


def _leveldb_records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """Yield the records of a LevelDB log, which a .wandb file is from byte 7: chunks with checksum, length and kind."""
    position, record = 7, b""
    while position + 7 <= len(data):
        if block - position % block < 7:  # the end of a block is padding
            position += block - position % block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a complete record, or its last chunk
            yield record
            record = b""


def _read_wandb(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any], str]:
    """Return history, summary, config and name of an offline run."""
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
    """A client of a new MLflow store."""
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return mlflow.MlflowClient()


def test_mlflow_has_the_run(
    images: Path, small: Recipe, tracked: baseline.Baseline, tmp_path: Path, store: Any
) -> None:
    run = make_baseline(images, small, loggers="mlflow", out=tmp_path / "run", progress=QUIET)
    (stored,) = store.search_runs([store.get_experiment_by_name("baseline").experiment_id])
    assert stored.info.status == "FINISHED" and stored.info.run_name.endswith("/run")
    assert stored.data.params["seed"] == "0" and stored.data.params["arch"] == "test_efficientnet"
    assert stored.data.metrics["test/tta/accuracy"] == run.metrics["test"]["tta"]["accuracy"]
    losses = store.get_metric_history(stored.info.run_id, "valid_loss")
    assert [metric.step for metric in losses] == steps_of_epochs(tracked)
    assert [metric.value for metric in losses] == run.history.epochs["valid_loss"].tolist()


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_mlflow_gets_the_status_of_the_run(error: type, status: str, tmp_path: Path, store: Any) -> None:
    with pytest.raises(error), open_loggers(("mlflow",), tmp_path, {"seed": 3}, QUIET) as logs:
        logs.log_metrics(1, {"train_loss": 0.5})
        raise error
    (stored,) = store.search_runs([store.get_experiment_by_name("baseline").experiment_id])
    assert stored.info.status == status and stored.data.metrics == {"train_loss": 0.5}


def test_unreachable_server_is_an_error_at_once(tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    start = time.monotonic()
    with (
        pytest.raises(OutputError, match="The log mlflow cannot be opened"),
        open_loggers(("mlflow",), tmp_path, {}, QUIET),
    ):
        pass
    assert time.monotonic() - start < 60 and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_each_seed_has_a_log_of_its_own(images: Path, small: Recipe, tmp_path: Path) -> None:
    recipe = small.changed(stages=(baseline.Stage("head", 1, 1e-3, augment=False),))
    run_seeds(2, images, recipe, out=tmp_path / "two", loggers="csv", progress=QUIET)
    assert all((tmp_path / "two" / f"seed-{seed}" / "log.csv").stat().st_size > 100 for seed in (0, 1))


def test_full_disk_ends_the_log_and_not_the_training(
    learn: Any, settled: tuple[Recipe, object], tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")

    class FillDisk(RecordingProgress):
        def log(self, line: str) -> None:
            super().log(line)
            if line.startswith("stage 2: training"):
                os.dup2(os.open("/dev/full", os.O_WRONLY), logs.loggers["csv"].file.fileno())  # type: ignore[attr-defined]

    progress = FillDisk()
    with open_loggers(("csv",), tmp_path, {}, progress) as logs:
        assert len(train(learn, settled[0], logs).epochs) == 5
        logs.log_summary({"test/tta/accuracy": 1.0})
    failed = [line for line in progress.lines if "csv failed" in line]
    assert len(failed) == 1 and "csv failed and is not used any more: [Errno 28] No space left" in failed[0]
    assert len(pd.read_csv(tmp_path / "log.csv")) > 20


def test_log_that_cannot_be_opened_is_an_error_before_training(images: Path, small: Recipe, tmp_path: Path) -> None:
    (tmp_path / "run" / "log.csv").mkdir(parents=True)
    progress = RecordingProgress()
    with pytest.raises(OutputError, match=r"The log csv cannot be opened: .*Is a directory.*leave it out of --loggers"):
        make_baseline(images, small, loggers="csv", out=tmp_path / "run", progress=progress)
    assert progress.lines and not any(line.startswith("stage") for line in progress.lines)


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "wandb"])
def test_missing_extra_error_has_the_pip_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeError, match=rf"--loggers {name} needs .*: pip install .*\[{name}\]'"):
        make_baseline(tmp_path / "nowhere", loggers=f"csv,{name}", out=tmp_path / "run", progress=QUIET)
    assert not (tmp_path / "run").exists()


def test_folder_with_the_name_of_a_package_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()  # Weights & Biases creates one in the working directory
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(RecipeError, match="needs the package wandb"):
        make_baseline(tmp_path / "nowhere", loggers="wandb", progress=QUIET)


def test_recipe_takes_loggers_as_a_list_or_with_commas() -> None:
    assert (
        Recipe().changed(loggers="csv, tensorboard,csv").options.loggers
        == Recipe().changed(loggers=["csv", "tensorboard"]).options.loggers
        == ("csv", "tensorboard")
    )
    assert Recipe().changed(loggers="none").options.loggers == Recipe().changed(loggers="").options.loggers == ()
    with pytest.raises(RecipeError, match="loggers is 'wand', needed: a list from csv, mlflow, tensorboard, wandb"):
        Recipe().changed(loggers="wand")
    with pytest.raises(RecipeError, match="loggers is 3, needed"):
        Recipe().changed(loggers=3)  # type: ignore[arg-type]


def test_metric_names_are_flat_and_intervals_have_two_bounds(done: baseline.Baseline) -> None:
    facts = flatten_plain(done.recipe.as_dict())
    assert facts["stages.1.views"] == "flip" and facts["stages.2.trains"] == 3 and facts["augment.rotate"] == 10.0
    assert all(isinstance(value, bool | int | float | str) for value in facts.values())
    assert (
        flatten_metrics(done.metrics)["valid/tta/macro_f1_low"] <= flatten_metrics(done.metrics)["valid/tta/macro_f1"]
    )
    assert LoggingProgress(QUIET).loggers == {}
