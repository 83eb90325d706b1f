"""What a machine does to a process: threads, clocks, users' rights, full disks, forks and others beside it."""

from __future__ import annotations

import csv
import gc
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from commands import Command, call, piped
from conftest import mounted_disk, two_stage_plan
from starlette.testclient import TestClient
from test_resume import RecordingProgress, interrupted_in

import baseline
from baseline import Recipe, Stage, make_baseline, system, write_predictions
from baseline.data.sources.unpacked import unpack_cached
from baseline.deploy.kaggle.bundle import bundle_model
from baseline.deploy.server.app import create_app
from baseline.errors import BaselineError, DataError, OutputError
from baseline.files import cache_home, make_cache_folder
from baseline.inference.output import PredictOptions
from baseline.report.audit_files import write_audit
from baseline.training.callbacks import ProgressCallback
from baseline.training.loggers import open_loggers
from baseline.vision import weights_download

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture
def two_threads() -> Any:
    """Return a function that makes torch compute with two threads until the test ends."""
    before = torch.get_num_threads()
    yield lambda: torch.set_num_threads(2)
    torch.set_num_threads(before)


def test_garbage_is_not_looked_for_among_what_a_command_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "MANY_MODULES", -1)
    for is_command in (False, True):  # as a library, the garbage of the caller would never be collected
        monkeypatch.setattr(system, "is_command", is_command)
        before = gc.get_freeze_count()
        with system.fast_imports():
            kept = [[]]
        assert (gc.get_freeze_count() > before) is is_command and gc.isenabled() and kept


def thread_notes(progress: RecordingProgress) -> list[str]:
    return [line for line in progress.lines if "1 thread" in line and ("2 threads" in line or "with 2" in line)]


def test_a_run_resumed_with_another_number_of_threads_says_so(
    images: Path, small: Recipe, two_threads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small.changed(stages=(Stage("head", 2, 1e-3, augment=False),))
    with monkeypatch.context() as patch:
        patch.setattr(ProgressCallback, "before_train", interrupted_in(2), raising=False)
        with pytest.raises(KeyboardInterrupt):
            make_baseline(images, plan, out=tmp_path / "run", progress=baseline.Progress())
    two_threads()
    progress = RecordingProgress()
    result = baseline.resume(tmp_path / "run", progress=progress)
    assert len(thread_notes(progress)) == 1
    assert result.manifest["threads"] == json.loads((tmp_path / "run/manifest.json").read_text())["threads"] == 2


def test_predictions_continued_with_another_number_of_threads_say_so(
    tiny: Path, images: Path, two_threads: Any, tmp_path: Path
) -> None:
    model, paths, out = baseline.load(tiny), sorted(images.rglob("*.jpg")), tmp_path / "out.csv"
    write_predictions(model, paths, out, PredictOptions(batch_size=8))
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:20]))
    for start in (lambda: None, two_threads):
        start()
        progress = RecordingProgress()
        write_predictions(model, paths, out, PredictOptions(batch_size=8), resume=True, progress=progress)
        assert len(thread_notes(progress)) == (start is two_threads)


# ---- names with carriage returns ------------------------------------------------------------------------------------

BARE = ["a\rb", "c\r\nd", "\r", 'e"\rf', "g,\rh", "i\nj"]
"""Names that Python 3.11 does not quote, or not alone."""


@pytest.fixture
def odd_names(images: Path, tmp_path: Path) -> Path:
    """A folder of images whose names hold carriage returns."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, source in zip(BARE, sorted(images.rglob("*.jpg")), strict=False):
        shutil.copy(source, folder / f"{name}.jpg")
    return folder


def read_rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_predictions_of_names_with_carriage_returns_are_resumed(tiny: Path, odd_names: Path, tmp_path: Path) -> None:
    model, paths, out = baseline.load(tiny), sorted(map(str, odd_names.iterdir())), tmp_path / "out.csv"
    options = PredictOptions(batch_size=1, top_k=2)
    write_predictions(model, paths, out, options)
    whole = out.read_bytes()
    assert [row[0] for row in read_rows(out)[1:]] == paths == pd.read_csv(out)["path"].tolist()
    for length in range(len(whole) // 3, len(whole), 97):
        out.write_bytes(whole[:length])
        write_predictions(model, paths, out, options, resume=True)
        assert out.read_bytes() == whole, length


def test_a_submission_of_ids_with_carriage_returns_is_read_back(
    done: baseline.Baseline, odd_names: Path, tmp_path: Path
) -> None:
    sample = tmp_path / "sample_submission.csv"
    (odd_names / "\r.jpg").unlink()  # spaces around ids are not read
    ids = sorted(path.stem for path in odd_names.iterdir())
    pd.DataFrame({"id": ids, "label": "ants"}).to_csv(sample, index=False, quoting=csv.QUOTE_ALL)
    made = baseline.submit(done.folder, sample, odd_names, out=tmp_path / "out.csv", progress=baseline.Progress())
    assert [row[0] for row in read_rows(made.path)[1:]] == ids


def test_names_stay_on_the_line_of_an_error(tiny: Path, tmp_path: Path) -> None:
    for name in (*BARE, "\x1b[2J", "a\x85b", "a\u2028b"):
        with pytest.raises(BaselineError) as raised:
            baseline.image_table(tmp_path / f"{name}-absent")
        assert len(str(raised.value).splitlines()) == 1 and "\x1b" not in str(raised.value)


def test_labels_with_carriage_returns_in_parquet_files_are_kept(images: Path, tmp_path: Path) -> None:
    contents = [path.read_bytes() for path in sorted(images.rglob("*.jpg"))[:12]]
    labels = [BARE[0], BARE[4]] * 6
    pd.DataFrame({"image": contents, "label": labels}).to_parquet(tmp_path / "train.parquet")
    assert sorted(set(baseline.image_table(tmp_path / "train.parquet")["label"])) == sorted({BARE[0], BARE[4]})


def test_a_log_of_odd_metrics_is_csv(tmp_path: Path) -> None:
    with open_loggers(("csv",), tmp_path, {}, baseline.Progress()) as logs:
        logs.log_metrics(1, dict.fromkeys(BARE, 0.5))
    assert [row[1] for row in read_rows(tmp_path / "log.csv")[1:]] == BARE


# ---- full disks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk without room, on which files can be created."""
    with mounted_disk(tmp_path / "disk", "64k") as disk:
        with (disk / "other").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        yield disk


Writer = Callable[[Path, Path, Path], object]
WRITERS: dict[str, Writer] = {
    "predict": lambda run, images, out: write_predictions(baseline.load(run), [images / "ants/00.jpg"], out / "a.csv"),
    "predict to parquet": lambda run, images, out: write_predictions(
        baseline.load(run), [images / "ants/00.jpg"], out / "a.parquet", PredictOptions(format="parquet")
    ),
    "log": lambda run, images, out: open_loggers(("csv",), out, {}, baseline.Progress()).__enter__(),
    "audit": lambda run, images, out: write_audit(out / "audit", baseline.audit(baseline.image_table(images))),
    "export": lambda run, images, out: baseline.export(run, "learner", out / "a.pkl"),
    "bundle": lambda run, images, out: bundle_model(run, out / "bundle", baseline.Progress()),
    "clean": lambda run, images, out: baseline.clean(run, out=out / "clean", progress=baseline.Progress()),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_no_empty_and_no_incomplete_file(
    name: str, done: baseline.Baseline, images: Path, full_disk: Path
) -> None:
    with pytest.raises(BaselineError, match=r"cannot be (written|opened)|full|No space") as raised:
        WRITERS[name](done.folder, images, full_disk)
    assert "\n" not in str(raised.value)
    assert [str(path) for path in full_disk.rglob("*") if path.is_file()] == [str(full_disk / "other")]


def test_the_last_bytes_of_downloaded_weights_are_there_when_they_are_hashed(tmp_path: Path) -> None:
    content = bytes(range(100))
    source = tmp_path / f"tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    source.write_bytes(content)
    (tmp_path / "cache").mkdir()
    assert weights_download.fetch(source.as_uri(), tmp_path / "cache", baseline.Progress()).read_bytes() == content
    files = {path.name for path in (tmp_path / "cache").iterdir()}
    assert files == {source.name, f".{source.name}.lock"}


# ---- limits, rights and clocks --------------------------------------------------------------------------------------

LIMITED = """
import resource
from baseline.cli.app import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
main()
"""


def test_files_larger_than_the_system_allows_end_a_run_in_one_line(
    images: Path, body: dict[str, str], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(two_stage_plan({"epochs": 1, "lr": 1e-3}, {"trains": 3, "epochs": 1, "lr": 1e-4}, **body))
    ended = call("run", recipe, "--data", images, "--out", tmp_path / "run", "--quiet", code=LIMITED)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "cannot be written: File too large" in ended.stderr.splitlines()[-1]
    assert [path for path in tmp_path.rglob("*") if path.is_file() and not path.stat().st_size] == []


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_predictions_do_not_depend_on_the_umask(umask: int, tiny: Path, images: Path, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for path in sorted(images.rglob("*.jpg"))[::8]:
                archive.write(path, f"{path.parent.name}/{path.name}")
        for _ in range(2):
            table = baseline.image_table(tmp_path / "images.zip")
            baseline.audit(table)
            write_predictions(baseline.load(tiny), table["path"], tmp_path / "out.csv", overwrite=True)
    finally:
        os.umask(before)
    assert len(read_rows(tmp_path / "out.csv")) == len(table) + 1 == 7
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_cache_that_every_user_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.name != "posix":
        pytest.skip("the system has no such rights")
    for folder in (tmp_path / "mine", tmp_path / "shared"):
        monkeypatch.setenv("BASELINE_HOME", str(folder))
        assert cache_home() == folder and not folder.exists()
        before = os.umask(0)
        make_cache_folder(cache_home() / "weights")
        os.umask(before)
        assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "weights").is_dir()
    folder.chmod(0o777)
    with pytest.raises(OutputError, match=r"shared can be written by every user.*Run chmod o-w"):
        cache_home()


def test_a_cache_that_every_user_can_replace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.name != "posix":
        pytest.skip("the system has no such rights")
    (tmp_path / "open" / "mine").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "open" / "mine")
    for folder in (tmp_path / "open" / "mine" / "cache", tmp_path / "link" / "cache"):
        monkeypatch.setenv("BASELINE_HOME", str(folder))
        for mode in (0o755, 0o1777):
            (tmp_path / "open").chmod(mode)
            assert cache_home() == folder
        (tmp_path / "open").chmod(0o777)
        with pytest.raises(OutputError, match=r"is in .*/open, where every user could replace it\. Run chmod o-w"):
            cache_home()
    (tmp_path / "open").chmod(0o755)


def test_a_home_that_cannot_be_written_is_enough_to_predict(tiny: Path, images: Path, tmp_path: Path) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("the system has no folder that nobody can write to")
    home = {"HOME": "/proc", "XDG_CACHE_HOME": "/proc", "BASELINE_HOME": ""}
    ended = call("predict", tiny, images, "--out", tmp_path / "out.csv", "--quiet", **home)
    assert ended.returncode == 0 and len(read_rows(tmp_path / "out.csv")) == 49, ended.stderr
    pd.DataFrame({"image": [b"x"] * 4, "label": list("aabb")}).to_parquet(tmp_path / "train.parquet")
    ended = call("audit", tmp_path / "train.parquet", "--quiet", **home)
    assert ended.returncode == 2 and "Set BASELINE_HOME to a writable folder" in ended.stderr, ended.stderr


def test_a_clock_that_jumps_is_no_time_limit(tiny: Path, images: Path) -> None:
    if (faketime := shutil.which("faketime")) is None:
        pytest.skip("faketime is not installed")
    command = [faketime, "-f", "+0 x100000", sys.executable, "-m", "baseline", "predict", tiny, images, "--quiet"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and ended.stdout.count("\n") == 49, ended.stderr


# ---- several processes, threads and event loops ---------------------------------------------------------------------


def test_four_processes_unpack_scan_and_predict_with_one_cache(tiny: Path, images: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(images.rglob("*.jpg")):
            archive.write(path, f"{path.parent.name}/{path.name}")
    audits = [Command("audit", tmp_path / "images.zip", "--out", tmp_path / f"{number}") for number in range(2)]
    tables = [tmp_path / f"{number}.csv" for number in range(2)]
    predictions = [Command("predict", tiny, tmp_path / "images.zip", "--out", table) for table in tables]
    for command in [*audits, *predictions]:
        assert command.wait(240) == 0, command.communicate()[1]
    assert sum("data: unpacked " in command.communicate()[1] for command in audits) == 1
    assert len(read_rows(tables[0])) == 49 and tables[0].read_bytes() == tables[1].read_bytes()


def test_a_folder_that_is_just_being_unpacked_is_waited_for(images: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(images.rglob("*.jpg")):
            archive.write(path, f"{path.parent.name}/{path.name}")
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(unpack_cached(tmp_path / "images.zip", baseline.Progress())))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and len(set(results)) == 1
    assert len(list(results[0].rglob("*.jpg"))) == 48


def test_ten_threads_and_two_event_loops_share_one_model(tiny: Path, images: Path) -> None:
    model, paths = baseline.load(tiny), sorted(map(str, images.rglob("*.jpg")))
    expected = model.predict(paths)
    with ThreadPoolExecutor(10) as pool:
        tables = list(pool.map(lambda _: model.predict(paths, batch_size=48), range(10)))
    for table in tables:
        pd.testing.assert_frame_equal(table, expected, atol=1e-6)

    def serve(number: int) -> list[str]:
        with TestClient(create_app(model, tta=True), base_url="http://localhost") as client:
            files = [("image", Path(path).read_bytes()) for path in paths[number::2]]
            return [row["predicted"] for row in client.post("/predict", files=files).json()["predictions"]]

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(serve, range(2)))
    assert answers == [expected["predicted"].tolist()[number::2] for number in range(2)]


FORKED = """
import os, sys, time
import torch, baseline
torch.set_num_threads(2)
model, paths = baseline.load(sys.argv[1]), sys.argv[2:]
expected = model.predict(paths)
child = os.fork()
if not child:
    os._exit(0 if model.predict(paths).equals(expected) else 1)
deadline = time.monotonic() + 60
while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
    time.sleep(0.1)
print(os.waitstatus_to_exitcode(ended[1]) if ended[0] else "hangs")
if not ended[0]:
    os.kill(child, 9)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_model_predicts_after_a_fork(tiny: Path, images: Path) -> None:
    ended = call(tiny, *sorted(images.rglob("*.jpg")), code=FORKED)
    assert ended.stdout == "0\n", ended.stderr


def test_a_server_that_was_killed_starts_again_on_its_port(tiny: Path) -> None:
    port = "0"
    for _ in range(2):
        process, stderr = piped("serve", tiny, "--port", port)
        with stderr:
            lines: list[str] = []
            for line in stderr:
                lines.append(line)
                if match := re.search(r"serving: http://127\.0\.0\.1:(\d+) ", line):
                    break
            assert match, lines
            port = match[1]
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
            process.send_signal(signal.SIGKILL)
            process.wait(30)


# ---- images that change during a run --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["truncate", "remove", "empty", "replace by text"])
def test_images_that_change_during_a_run_end_it_in_one_line(
    how: str, images: Path, small: Recipe, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(images, tmp_path / "own"))
    changes: dict[str, Callable[[Path], object]] = {
        "truncate": lambda path: path.write_bytes(path.read_bytes()[:1500]),
        "remove": Path.unlink,
        "empty": lambda path: path.write_bytes(b""),
        "replace by text": lambda path: path.write_text("text"),
    }

    class ChangeImages(baseline.Progress):
        def log(self, line: str) -> None:
            if line.startswith("images: "):
                for path in own.rglob("*.jpg"):
                    changes[how](path)

    with pytest.raises(
        DataError, match=r"own/(ants|bees)/.*(cannot be decoded: |disappeared).* start again without it"
    ):
        make_baseline(own, small, out=tmp_path / "run", progress=ChangeImages())
