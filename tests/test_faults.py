"""What can go wrong around a run: other runs in its folder, disks, clocks, damaged caches, unusual names and sizes.

`benchmarks/RELIABILITY.md` lists the outcome of each, and where other faults are tested.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import mounted_disk
from PIL import Image

import baseline
from baseline import make_baseline
from baseline.data.image import read_image_bytes
from baseline.data.sources.cached_images import fill_once
from baseline.data.sources.datasets import DATASETS, lock_dataset
from baseline.errors import DataError, OutputError
from baseline.files import cache_home
from baseline.runs.folder import create_run_folder, lock_folder, looks_unfinished, new_run_path
from baseline.system import free_memory_bytes
from baseline.vision.cache import ArrayCache

QUIET = baseline.Progress()

HOLDER = """
import sys, time
from pathlib import Path
from baseline.runs.folder import lock_folder
with lock_folder(Path(sys.argv[1])) as folder:
    (folder / "history.csv").touch()
    print("locked", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A folder that another process is writing to, and that process."""
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        yield folder, holder
        holder.kill()


# ---- two runs at once -----------------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[..., object]] = {
    "run": make_baseline,
    "ladder": baseline.run_ladder,
    "curve": baseline.run_learning_curve,
    "clean": baseline.clean,
    "seeds": lambda images, **more: baseline.run_seeds(2, images, **more),
    "folds": lambda images, **more: baseline.run_folds(images, split="kfold:2", **more),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_run_in_a_folder_is_refused_at_once(command: str, locked: tuple, images: Path) -> None:
    folder, _ = locked
    with pytest.raises(OutputError, match=r"Another run is writing to .*run\. Wait for it, or choose another --out"):
        COMMANDS[command](images, out=folder, progress=QUIET)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "history.csv"]


def test_a_killed_run_does_not_block_its_folder(locked: tuple) -> None:
    folder, holder = locked
    holder.send_signal(signal.SIGKILL)
    assert holder.wait(20) == -signal.SIGKILL and (folder / ".lock").exists()
    with create_run_folder(folder, "any"), pytest.raises(OutputError, match="Another run"), lock_folder(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["history.csv"]


def test_a_folder_with_only_the_lock_of_a_killed_run_is_unfinished(tmp_path: Path) -> None:
    folder = tmp_path / "mine-20260101-120000"
    folder.mkdir()
    (folder / ".lock").touch()
    assert looks_unfinished(folder)


def test_a_run_that_finished_while_another_waited_is_not_overwritten(tmp_path: Path) -> None:
    with create_run_folder(tmp_path / "run", "any") as folder:
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(OutputError, match="holds a finished run"), create_run_folder(folder, "any"):
        pass
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]


def test_runs_that_start_at_the_same_moment_get_separate_folders() -> None:
    same = new_run_path(None, "mine")
    with lock_folder(same, named=False) as one, lock_folder(same, named=False) as other:
        assert one != other and one.is_dir() and other.is_dir()
    assert not one.exists() and not other.exists()


def test_runs_continue_on_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    with create_run_folder(tmp_path / "run", "any") as folder:
        (folder / "history.csv").touch()
    assert [path.name for path in folder.iterdir()] == ["history.csv"]


def test_caches_are_filled_on_a_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    for filled in (True, False):
        assert fill_once(tmp_path / "images", lambda folder: folder.mkdir(), print) is filled
    with lock_dataset(DATASETS["cifar10"], baseline.Progress()):
        pass
    cache, key = ArrayCache(1, folder=tmp_path / "arrays"), {"what": "mine"}
    for number in range(2):  # the first is interrupted
        with cache.lock(key):
            array = cache.allocate(key, (3,), np.uint8)
            assert array is not None
            array[:] = number
            if number:
                cache.commit(key, array)
        assert cache.has(key) == cache.entry_path(key).exists() == bool(number)
    stored = cache.get(key)
    assert stored is not None and stored.tolist() == [1, 1, 1] and capsys.readouterr().out == ""


# ---- damaged caches (arrays: test_cache.py; weights: test_weights.py; datasets: test_datasets.py) -------------------


class RecordingProgress(baseline.Progress):
    """Records the progress lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, words: str) -> None:
        self.lines.append(words)


def damage_file(file: Path, damage: str) -> None:
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
        return
    middle = len(content) // 2
    kinds = {"empty": b"", "cut": content[:middle], "replaced": b"something else\n" * 400,
             "bit": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]}  # fmt: skip
    file.write_bytes(kinds[damage])


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "replaced", "folder"])
def test_a_damaged_audit_cache_is_computed_again(damage: str, images: Path) -> None:
    table = baseline.image_table(images)
    first = baseline.audit(table).images
    (base,) = cache_home().glob("audit-*.sqlite")
    damage_file(base, damage)
    progress = RecordingProgress()
    assert baseline.audit(table, progress=progress).images.equals(first)
    assert len(progress.lines) == 1 or (damage in ("bit", "empty") and not progress.lines), progress.lines
    if damage != "folder":
        again = RecordingProgress()
        assert baseline.audit(table, progress=again).images.equals(first) and not again.lines


def test_a_changed_row_of_the_audit_cache_is_noticed(images: Path) -> None:
    table = baseline.image_table(images)
    first = baseline.audit(table).images
    (base,) = cache_home().glob("audit-*.sqlite")
    with closing(sqlite3.connect(base)) as opened, opened:
        opened.execute("UPDATE images SET width = width + 1024, hash = zeroblob(8)")
    assert baseline.audit(table).images.equals(first)


def packed(kind: str, images: Path, folder: Path) -> str:
    """Name a source whose images are written into the cache: an archive, or a table or dataset with images in it."""
    paths = sorted(images.rglob("*.jpg"))[::4]
    labels = [path.parent.name for path in paths]
    if kind == "zip":
        return shutil.make_archive(str(folder / "images"), "zip", images)
    if kind == "parquet":
        table = pd.DataFrame({"image": [path.read_bytes() for path in paths], "label": labels})
        table.to_parquet(folder / "train.parquet")
        return str(folder / "train.parquet")
    if kind == "pixels":
        pixels = [np.asarray(Image.open(path).convert("L").resize((28, 28))).ravel() for path in paths]
        names = [f"pixel{number}" for number in range(784)]
        table = pd.DataFrame(np.stack(pixels), columns=names).assign(label=labels)
        table.to_csv(folder / "train.csv", index=False)
        return str(folder / "train.csv")
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"image": [Image.open(path) for path in paths], "label": labels})
    dataset.save_to_disk(folder / "dataset")
    return f"hf:{folder / 'dataset'}"


def cached_image() -> Path:
    """One of the images that were written into the cache."""
    return next(path for path in cache_home().rglob("*") if path.suffix in (".jpg", ".png"))


DAMAGES = [("zip", damage) for damage in ("cut", "empty", "gone", "file", "nothing")]


@pytest.mark.parametrize(("kind", "damage"), [*DAMAGES, ("parquet", "cut"), ("pixels", "gone"), ("hf", "cut")])
def test_damaged_images_in_the_cache_are_written_again(kind: str, damage: str, images: Path, tmp_path: Path) -> None:
    source = packed(kind, images, tmp_path)
    before = [read_image_bytes(path) for path in baseline.image_table(source)["path"]]
    victim = cached_image()
    folder = cache_home() / Path(*victim.relative_to(cache_home()).parts[:2])
    if damage in ("cut", "empty"):
        damage_file(victim, damage)
    elif damage == "gone":
        victim.unlink()
    elif damage == "file":
        shutil.rmtree(folder)
        folder.touch()
    progress = RecordingProgress()
    table = baseline.image_table(source, progress=progress)
    assert [read_image_bytes(path) for path in table["path"]] == before
    notes = [*progress.lines, *table.attrs["source"]["notes"]]
    assert any("is incomplete or was changed" in line for line in notes) == (damage != "nothing")


@pytest.mark.parametrize("kind", ["parquet", "pixels", "hf"])
def test_threads_that_write_the_same_images_into_the_cache_wait(kind: str, images: Path, tmp_path: Path) -> None:
    source = packed(kind, images, tmp_path)
    with ThreadPoolExecutor(3) as pool:
        tables = list(pool.map(baseline.image_table, [source] * 3))
    assert all(table.equals(tables[0]) for table in tables) and cached_image().is_file()


# ---- disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB with 5 MB free."""
    with mounted_disk(tmp_path / "disk", "6m") as disk:
        (disk / "other").write_bytes(bytes(10**6))
        yield disk


@pytest.fixture(scope="session")
def head(small: baseline.Recipe) -> baseline.Recipe:
    """The shortest training, in a number format that does not depend on timing."""
    return small.changed(stages=(baseline.Stage("head", 1, 1e-3, augment=False),), tta=(), frozen_precision="float32")


@pytest.fixture(scope="session")
def undisturbed(images: Path, head: baseline.Recipe, tmp_path_factory: pytest.TempPathFactory) -> baseline.Baseline:
    """A run that nothing disturbed."""
    return make_baseline(images, head, out=tmp_path_factory.mktemp("undisturbed") / "run", progress=QUIET)


def test_a_disk_with_too_little_room_is_refused_before_any_work(small_disk: Path, images: Path) -> None:
    with pytest.raises(OutputError, match=r"has 5 MB free; 200 MB were needed. Make room"):
        make_baseline(images, out=small_disk / "run", progress=QUIET)
    assert not (small_disk / "run").exists()


def test_a_disk_that_fills_up_is_reported_and_leaves_no_incomplete_file(
    small_disk: Path, images: Path, head: baseline.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baseline.runs.folder.MIN_FREE_BYTES", 0)
    (small_disk / "more").write_bytes(bytes(shutil.disk_usage(small_disk).free - 300_000))
    with pytest.raises(OutputError, match=r"(No space left|disk is full).* Make room"):
        make_baseline(images, head, out=small_disk / "run", progress=QUIET)
    left = [path.name for path in (small_disk / "run").rglob("*") if path.is_file()]
    assert "history.csv" in left and not {"manifest.json", "model.json", "report.html"} & set(left)
    assert not [name for name in left if name.endswith(".part")], "complete files stay, and no others"


def test_caches_on_a_full_disk_only_cost_time(
    small_disk: Path,
    undisturbed: baseline.Baseline,
    images: Path,
    head: baseline.Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (small_disk / "more").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    monkeypatch.setenv("BASELINE_HOME", str(small_disk / "home"))
    progress = RecordingProgress()
    full = make_baseline(images, head, out=tmp_path / "full", progress=progress)
    assert full.predictions.equals(undisturbed.predictions)
    assert any("results of the scan cannot be cached" in line for line in progress.lines), progress.lines
    assert any("nothing more is stored" in line for line in progress.lines), progress.lines


READ_ONLY = """
import os, sys
import baseline
from baseline import Augment, Stage
recipe = baseline.load_recipe("default").changed(
    image_size=48, augment=Augment(), presets={}, stages=(Stage("head", 1, 1e-3, augment=False),), tta=())
done = baseline.make_baseline(sys.argv[1], recipe, out=sys.argv[2], progress=baseline.Progress())
assert done.metrics["test"]["images"], done.metrics
for folder in (".", os.environ["BASELINE_HOME"], os.environ["TMPDIR"], sys.argv[1]):
    try:
        open(os.path.join(folder, "new"), "w")
    except OSError:
        continue
    raise AssertionError(folder)
"""


@pytest.mark.slow
def test_a_run_writes_only_to_its_folder(images: Path, tmp_path: Path) -> None:
    """Everything else is read-only: images, caches, the working, home and temporary folders, and the package itself."""
    places = ["HOME", "BASELINE_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TMPDIR", "here", "images", "out"]
    folders = {name: tmp_path / name for name in places}
    shutil.copytree(images, folders["images"])
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    closed = " && ".join(f"mount -t tmpfs -o ro,mode=555 none {folders[name]}" for name in places[:-2])
    closed += f" && mount --bind {folders['images']} {folders['images']}"
    closed += f" && mount -o remount,bind,ro {folders['images']}"
    if subprocess.run(["unshare", "-m", "sh", "-c", closed], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    command = [sys.executable, "-B", "-c", READ_ONLY, str(folders["images"]), str(folders["out"] / "run")]
    script = f'{closed} && cd {folders["here"]} && exec "$@"'
    environment = {**os.environ, **{name: str(folders[name]) for name in places[:5]}}
    environment["PYTHONPATH"] = str(Path(baseline.__file__).parents[1])
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (folders["out"] / "run" / "report.html").exists()


@pytest.mark.parametrize("when", ["decoded", "outputs", "begun", "read"])
def test_an_image_that_disappears_is_named(
    images: Path, head: baseline.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    own = shutil.copytree(images, tmp_path / "own")
    line = {"decoded": "images: ", "outputs": "going away", "begun": "training and", "read": "stage 1: training"}[when]
    if when == "outputs":
        real = baseline.vision.decoded.decode_images
        monkeypatch.setattr(baseline.vision.decoded, "decode_images", lambda *args: (real(*args), vanishing.log(line)))
    if when == "read":
        monkeypatch.setattr(baseline.vision.decoded, "MEMORY_FRACTION", 0)
        head = head.changed(cache_gb=0, freeze="fastai")

    class VanishingImages(RecordingProgress):
        def log(self, words: str) -> None:
            super().log(words)
            if words.startswith(line):
                shutil.rmtree(own / "ants")

    vanishing = VanishingImages()
    with pytest.raises(DataError, match=r"own/ants/\d\d\.jpg disappeared during the run\. Put it back, or start again"):
        make_baseline(own, head, out=tmp_path / "run", progress=vanishing)
    assert not (own / "ants").exists() and not (tmp_path / "run" / "manifest.json").exists()


# ---- clocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_page")
def test_a_jumping_clock_changes_no_result(
    undisturbed: baseline.Baseline, images: Path, head: baseline.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real, real_ns = iter(range(10**9)), time.time, time.time_ns

    def jump() -> int:  # back and ahead by years, further with every call
        number = next(asked)
        return number * 86400 * (-1) ** number

    monkeypatch.setattr(time, "time", lambda: real() + jump())
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + jump() * 10**9)
    began = time.monotonic()
    done = make_baseline(images, head, progress=QUIET)
    took = time.monotonic() - began
    assert done.predictions.equals(undisturbed.predictions) and next(asked) > 0
    seconds = [*done.manifest["seconds"].values(), *done.manifest["time"].values(), *done.history.epochs["seconds"]]
    assert all(0 <= value <= took for value in seconds), seconds


def test_runs_of_the_same_second_get_different_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("baseline.runs.folder.datetime", Still)
    made = []
    for _ in range(3):
        with create_run_folder(None, "mine") as folder:
            (folder / "history.csv").touch()
        made.append(folder.name)
    assert made == ["mine-20260102-030405", "mine-20260102-030405-2", "mine-20260102-030405-3"]


# ---- few classes, few images, unusual names -------------------------------------------------------------------------


def test_three_images_are_refused_with_a_one_line_error(images: Path, tmp_path: Path) -> None:
    for name, count in (("ants", 2), ("bees", 1)):
        (tmp_path / "three" / name).mkdir(parents=True)
        for file in sorted((images / name).iterdir())[:count]:
            shutil.copy(file, tmp_path / "three" / name)
    with pytest.raises(DataError) as error:
        make_baseline(tmp_path / "three", progress=QUIET)
    assert "\n" not in str(error.value) and "image" in str(error.value), error.value


def test_a_single_class_is_refused_with_a_one_line_error(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "ants", tmp_path / "one" / "ants")
    with pytest.raises(DataError, match="class") as error:
        make_baseline(tmp_path / "one", progress=QUIET)
    assert "\n" not in str(error.value)


NAMES = ["a/b", "🐜 emoji", "n" * 200, "-dash", "..", "Ant", "ant", "<script>alert(1)</script>", "&amp \"'", "=1+1"]


def test_unusual_class_names_are_preserved_in_every_file(images: Path, tmp_path: Path, head: baseline.Recipe) -> None:
    files = sorted(images.rglob("*.jpg"))
    table = pd.DataFrame([{"path": str(file), "label": NAMES[at % len(NAMES)]} for at, file in enumerate(files)])
    for number, name in enumerate(NAMES):  # enough images in each split
        place = tmp_path / f"{number}.jpg"
        Image.open(files[number]).rotate(90, expand=True).save(place)
        table.loc[len(table)] = {"path": str(place), "label": name}
    table.to_csv(tmp_path / "images.csv", index=False)
    done = make_baseline(tmp_path / "images.csv", head, out=tmp_path / "run", progress=QUIET)
    assert set(done.model.classes) == set(NAMES) == set(done.manifest["data"]["classes"])
    assert set(pd.read_csv(tmp_path / "run" / "split.csv", dtype=str, keep_default_na=False)["label"]) == set(NAMES)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    predicted = done.predict(files[:2])
    assert [name for name in predicted.columns if name.startswith("p_")] == [f"p_{name}" for name in done.model.classes]
    outside = [path.name for path in tmp_path.iterdir() if path.suffix != ".jpg"]
    assert sorted(outside) == ["images.csv", "run"], "no name became a path"


# ---- more rows than memory ------------------------------------------------------------------------------------------


def test_a_table_of_ten_million_rows_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large.csv"
    row = b"0000001.jpg,ants\n"
    with file.open("wb") as opened:
        opened.write(b"path,label\n" + row * 10_000)
        opened.truncate(len(row) * 10_000_000)  # a sparse file: only its size is read
    monkeypatch.setattr("baseline.data.sources.read_table.free_memory_bytes", lambda: 8 * 10**9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        DataError, match=r"about 9,99\d,\d{3} rows, which need 11\.4 GB of memory, but only 8\.0 GB are free"
    ):
        baseline.image_table(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kB"


def test_a_row_takes_no_more_memory_than_estimated(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import baseline.data.table
from baseline.data.sources.read_table import ROW_BYTES, TEXT_COPIES, read_table
from baseline.data.sources.place import Columns
from baseline.data.sources.tables import rows_from_table
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
folder, count = Path(sys.argv[1]), int(sys.argv[2])
file = folder / "images.csv"
with file.open("w") as opened:
    opened.write("path,label,patient\\n")
    opened.writelines(f"{number:07}.jpg,class_{number % 10},p{number // 7}\\n" for number in range(count))
baseline.data.sources.tables.os.path.isfile = lambda path: True
before = peak()
rows = rows_from_table(read_table(file, ROW_BYTES), file.name, folder, Columns()).table
assert len(rows) == count
print((peak() - before) / (count * ROW_BYTES + TEXT_COPIES * file.stat().st_size))
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not report the peak memory of a process")
    command = [sys.executable, "-c", code, tmp_path, "100000"]
    share = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (0.4 if int(pd.__version__.split(".")[0]) > 2 else 0.3) < share < 1.1, share  # pandas 2 takes less


@pytest.mark.parametrize(("limit", "free"), [("max", 3_000_000), ("2500000", 1_700_000), ("900000", 100_000)])
def test_free_memory_is_that_of_the_machine_or_the_container(tmp_path: Path, limit: str, free: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 2930 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/some/job\n")
    group = tmp_path / "sys/fs/cgroup/some/job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text("1000000\n")
    (group / "memory.stat").write_text("anon 800000\ninactive_file 200000\n")
    assert free_memory_bytes(tmp_path) == (free if limit != "max" else 2930 * 1024)


def test_free_memory_is_unknown_where_the_system_does_not_report_it(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path) is None
