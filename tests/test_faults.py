"""What goes wrong around a run: others at work in its folder, disks, clocks, damaged caches, odd names and sizes.

`benchmarks/RELIABILITY.md` tells what came of each, and where the faults are tested that have their place elsewhere.
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
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import baseline
from baseline import DataError, OutputError, make_baseline
from baseline.datasets import home
from baseline.memory import free_memory
from baseline.photos import file_bytes
from baseline.save import looks_begun, named_folder, occupied, run_folder

QUIET = baseline.Show()

HOLDER = """
import sys, time
from pathlib import Path
from baseline.save import occupied
with occupied(Path(sys.argv[1])) as folder:
    (folder / "history.csv").touch()
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A folder that another process is writing to, and that process."""
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield folder, holder
        holder.kill()


# ---- two at once ----------------------------------------------------------------------------------------------------

WAYS: dict[str, Callable[..., object]] = {
    "run": make_baseline,
    "ladder": baseline.make_ladder,
    "curve": baseline.make_curve,
    "clean": baseline.clean,
    "seeds": lambda photos, **more: baseline.make_seeds(2, photos, **more),
    "folds": lambda photos, **more: baseline.make_folds(photos, split="kfold:2", **more),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_second_run_in_a_folder_is_refused_at_once(way: str, held: tuple, photos: Path) -> None:
    folder, _ = held
    with pytest.raises(OutputError, match=r"Another run is writing to .*run\. Wait for it, or choose another --out"):
        WAYS[way](photos, out=folder, show=QUIET)
    assert sorted(each.name for each in folder.iterdir()) == [".lock", "history.csv"]


def test_a_killed_run_blocks_nobody(held: tuple) -> None:
    folder, holder = held
    holder.send_signal(signal.SIGKILL)
    assert holder.wait(20) == -signal.SIGKILL and (folder / ".lock").exists()
    with run_folder(folder, "any"), pytest.raises(OutputError, match="Another run"), occupied(folder):
        pass
    assert [each.name for each in folder.iterdir()] == ["history.csv"]


def test_a_folder_with_nothing_but_a_killed_run_s_lock_was_begun(tmp_path: Path) -> None:
    folder = tmp_path / "mine-20260101-120000"
    folder.mkdir()
    (folder / ".lock").touch()
    assert looks_begun(folder)


def test_a_run_that_ended_while_the_other_waited_for_its_turn_is_not_overwritten(tmp_path: Path) -> None:
    with run_folder(tmp_path / "run", "any") as folder:
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(OutputError, match="holds a finished run"), run_folder(folder, "any"):
        pass
    assert [each.name for each in folder.iterdir()] == ["manifest.json"]


def test_runs_that_begin_at_one_moment_have_folders_of_their_own() -> None:
    same = named_folder(None, "mine")
    with occupied(same, named=False) as one, occupied(same, named=False) as other:
        assert one != other and one.is_dir() and other.is_dir()
    assert not one.exists() and not other.exists()


def test_where_a_disk_knows_no_locks_runs_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    with run_folder(tmp_path / "run", "any") as folder:
        (folder / "history.csv").touch()
    assert [each.name for each in folder.iterdir()] == ["history.csv"]


# ---- damaged caches (arrays: test_cache.py; weights: test_weights.py; data sets: test_datasets.py) -------------------


class Said(baseline.Show):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, words: str) -> None:
        self.lines.append(words)


def damaged(file: Path, damage: str) -> None:
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
def test_what_was_seen_of_photos_is_seen_anew_when_damaged(damage: str, photos: Path) -> None:
    table = baseline.photo_table(photos)
    first = baseline.audit(table).photos
    (base,) = home().glob("audit-*.sqlite")
    damaged(base, damage)
    said = Said()
    assert baseline.audit(table, show=said).photos.equals(first)
    assert len(said.lines) == 1 or (damage in ("bit", "empty") and not said.lines), said.lines
    if damage != "folder":
        again = Said()
        assert baseline.audit(table, show=again).photos.equals(first) and not again.lines


def test_a_flipped_bit_in_any_row_of_what_was_seen_is_noticed(photos: Path) -> None:
    table = baseline.photo_table(photos)
    first = baseline.audit(table).photos
    (base,) = home().glob("audit-*.sqlite")
    with closing(sqlite3.connect(base)) as opened, opened:
        opened.execute("UPDATE photos SET width = width + 1024, hash = zeroblob(8)")
    assert baseline.audit(table).photos.equals(first)


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "file", "nothing"])
def test_an_unpacked_archive_that_lost_something_is_unpacked_again(damage: str, photos: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos))
    before = [file_bytes(path) for path in baseline.photo_table(archive)["path"]]
    (folder,) = (each for each in (home() / "unpacked").iterdir() if each.is_dir())
    victim = next(folder.rglob("*.jpg"))
    if damage in ("cut", "empty"):
        damaged(victim, damage)
    elif damage == "gone":
        victim.unlink()
    elif damage == "file":
        shutil.rmtree(folder)
        folder.touch()
    said = Said()
    assert [file_bytes(path) for path in baseline.photo_table(archive, show=said)["path"]] == before
    assert any("is not as it was unpacked" in line for line in said.lines) == (damage != "nothing")


# ---- disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB, of which all but 5 are full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount") or "mount"
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no disk can be mounted here")
    (disk / "other").write_bytes(bytes(10**6))
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture(scope="session")
def head(small: baseline.Recipe) -> baseline.Recipe:
    """The shortest training, in a number format that is not chosen by timing."""
    return small.changed(stages=(baseline.Stage("head", 1, 1e-3),), tta=(), frozen_precision="float32")


@pytest.fixture(scope="session")
def roomy(photos: Path, head: baseline.Recipe, tmp_path_factory: pytest.TempPathFactory) -> baseline.Baseline:
    """A run that nothing disturbed."""
    return make_baseline(photos, head, out=tmp_path_factory.mktemp("roomy") / "run", show=QUIET)


def test_a_disk_with_too_little_room_is_refused_before_any_work(small_disk: Path, photos: Path) -> None:
    with pytest.raises(OutputError, match=r"has 5 MB free; 200 MB were needed. Make room"):
        make_baseline(photos, out=small_disk / "run", show=QUIET)
    assert not (small_disk / "run").exists()


def test_a_disk_that_fills_up_in_the_end_is_said_in_words_and_leaves_no_half_file(
    small_disk: Path, photos: Path, head: baseline.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baseline.save.LEAST_FREE_BYTES", 0)
    with pytest.raises(OutputError, match=r"(No space left|disk is full).* Make room"):
        make_baseline(photos, head, out=small_disk / "run", show=QUIET)
    left = [each.name for each in (small_disk / "run").rglob("*") if each.is_file()]
    assert "history.csv" in left and not {"manifest.json", "model.json", "report.html"} & set(left)
    assert not [name for name in left if name.endswith(".part")], "what is whole stays, and nothing else"


def test_caches_on_a_full_disk_cost_time_and_nothing_else(
    small_disk: Path,
    roomy: baseline.Baseline,
    photos: Path,
    head: baseline.Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (small_disk / "more").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    monkeypatch.setenv("BASELINE_HOME", str(small_disk / "home"))
    said = Said()
    full = make_baseline(photos, head, out=tmp_path / "full", show=said)
    assert full.predictions.equals(roomy.predictions)
    assert any("not kept for the next time" in line for line in said.lines), said.lines
    assert any("nothing more is kept there" in line for line in said.lines), said.lines


READ_ONLY = """
import os, sys
import baseline
from baseline import Augment, Stage
recipe = baseline.load_recipe("default").changed(
    image_size=48, augment=Augment(), presets={}, stages=(Stage("head", 1, 1e-3),), tta=())
done = baseline.make_baseline(sys.argv[1], recipe, out=sys.argv[2], show=baseline.Show())
assert done.metrics["test"]["photos"], done.metrics
for folder in (".", os.environ["BASELINE_HOME"], os.environ["TMPDIR"], sys.argv[1]):
    try:
        open(os.path.join(folder, "new"), "w")
    except OSError:
        continue
    raise AssertionError(folder)
"""


@pytest.mark.slow
def test_a_run_needs_to_write_nothing_but_its_folder(photos: Path, tmp_path: Path) -> None:
    """All else is read-only: photos, caches, the working, home and temporary folders, and the package itself."""
    places = ["HOME", "BASELINE_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TMPDIR", "here", "photos", "out"]
    folders = {name: tmp_path / name for name in places}
    shutil.copytree(photos, folders["photos"])
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    closed = " && ".join(f"mount -t tmpfs -o ro,mode=555 none {folders[name]}" for name in places[:-2])
    closed += f" && mount --bind {folders['photos']} {folders['photos']}"
    closed += f" && mount -o remount,bind,ro {folders['photos']}"
    if subprocess.run(["unshare", "-m", "sh", "-c", closed], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    command = [sys.executable, "-B", "-c", READ_ONLY, str(folders["photos"]), str(folders["out"] / "run")]
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
def test_a_photo_that_goes_before_anything_is_kept_is_named(
    photos: Path, head: baseline.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    own = shutil.copytree(photos, tmp_path / "own")
    line = {"decoded": "photos: ", "outputs": "going away", "begun": "training and", "read": "stage 1: training"}[when]
    if when == "outputs":
        real = baseline.data._decode
        monkeypatch.setattr(baseline.data, "_decode", lambda *given: (real(*given), going.say(line)))
    if when == "read":
        monkeypatch.setattr(baseline.data, "MEMORY_SHARE", 0)
        head = head.changed(cache_gb=0, freeze="fastai")

    class Going(Said):
        def say(self, words: str) -> None:
            super().say(words)
            if words.startswith(line):
                shutil.rmtree(own / "ants")

    going = Going()
    with pytest.raises(DataError, match=r"own/ants/\d\d\.jpg has gone meanwhile\. Put it back, or begin again"):
        make_baseline(own, head, out=tmp_path / "run", show=going)
    assert not (own / "ants").exists() and not (tmp_path / "run" / "manifest.json").exists()


# ---- clocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_page")
def test_a_clock_that_jumps_changes_no_number(
    roomy: baseline.Baseline, photos: Path, head: baseline.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real, real_ns = iter(range(10**9)), time.time, time.time_ns

    def jump() -> int:  # back and ahead by years, further each time that somebody looks
        number = next(asked)
        return number * 86400 * (-1) ** number

    monkeypatch.setattr(time, "time", lambda: real() + jump())
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + jump() * 10**9)
    began = time.monotonic()
    done = make_baseline(photos, head, show=QUIET)
    took = time.monotonic() - began
    assert done.predictions.equals(roomy.predictions) and next(asked) > 0
    seconds = [*done.manifest["seconds"].values(), *done.manifest["time"].values(), *done.history.epochs["seconds"]]
    assert all(0 <= each <= took for each in seconds), seconds


def test_the_same_moment_again_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("baseline.save.datetime", Still)
    made = []
    for _ in range(3):
        with run_folder(None, "mine") as folder:
            (folder / "history.csv").touch()
        made.append(folder.name)
    assert made == ["mine-20260102-030405", "mine-20260102-030405-2", "mine-20260102-030405-3"]


# ---- few classes, few photos, odd names -----------------------------------------------------------------------------


def test_three_photos_in_all_are_refused_in_one_line(photos: Path, tmp_path: Path) -> None:
    for name, count in (("ants", 2), ("bees", 1)):
        (tmp_path / "three" / name).mkdir(parents=True)
        for file in sorted((photos / name).iterdir())[:count]:
            shutil.copy(file, tmp_path / "three" / name)
    with pytest.raises(DataError) as told:
        make_baseline(tmp_path / "three", show=QUIET)
    assert "\n" not in str(told.value) and "photo" in str(told.value), told.value


def test_a_single_class_is_refused_in_one_line(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "ants", tmp_path / "one" / "ants")
    with pytest.raises(DataError, match="class") as told:
        make_baseline(tmp_path / "one", show=QUIET)
    assert "\n" not in str(told.value)


NAMES = ["a/b", "🐜 emoji", "n" * 200, "-dash", "..", "Ant", "ant", "<script>alert(1)</script>", "&amp \"'", "=1+1"]


def test_odd_class_names_stay_what_they_are_in_every_file(photos: Path, tmp_path: Path, head: baseline.Recipe) -> None:
    files = sorted(photos.rglob("*.jpg"))
    table = pd.DataFrame([{"path": str(file), "label": NAMES[at % len(NAMES)]} for at, file in enumerate(files)])
    for number, name in enumerate(NAMES):  # photos enough in each split
        place = tmp_path / f"{number}.jpg"
        Image.open(files[number]).rotate(90, expand=True).save(place)
        table.loc[len(table)] = {"path": str(place), "label": name}
    table.to_csv(tmp_path / "photos.csv", index=False)
    done = make_baseline(tmp_path / "photos.csv", head, out=tmp_path / "run", show=QUIET)
    assert set(done.model.classes) == set(NAMES) == set(done.manifest["data"]["classes"])
    assert set(pd.read_csv(tmp_path / "run" / "split.csv", dtype=str, keep_default_na=False)["label"]) == set(NAMES)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    told = done.predict(files[:2])
    assert [name for name in told.columns if name.startswith("p_")] == [f"p_{name}" for name in done.model.classes]
    outside = [each.name for each in tmp_path.iterdir() if each.suffix != ".jpg"]
    assert sorted(outside) == ["photos.csv", "run"], "no name became a path"


# ---- more rows than memory ------------------------------------------------------------------------------------------


def test_a_table_of_ten_million_rows_is_refused_before_it_takes_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large.csv"
    row = b"0000001.jpg,ants\n"
    with file.open("wb") as opened:
        opened.write(b"path,label\n" + row * 10_000)
        opened.truncate(len(row) * 10_000_000)  # a file with a hole: the size is what is looked at
    monkeypatch.setattr("baseline.tables.free_memory", lambda: 8 * 10**9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        DataError, match=r"about 9,99\d,\d{3} rows, which take 11\.4 GB of memory, and 8\.0 GB are free"
    ):
        baseline.photo_table(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kB"


def test_a_row_takes_no_more_memory_than_is_counted(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import baseline.sources
from baseline.tables import ROW_BYTES, TEXT_COPIES, Columns, read_table, rows_of
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
folder, count = Path(sys.argv[1]), int(sys.argv[2])
file = folder / "photos.csv"
with file.open("w") as opened:
    opened.write("path,label,patient\\n")
    opened.writelines(f"{number:07}.jpg,class_{number % 10},p{number // 7}\\n" for number in range(count))
baseline.tables.os.path.isfile = lambda path: True
before = peak()
rows = rows_of(read_table(file, ROW_BYTES), file.name, folder, Columns()).table
assert len(rows) == count
print((peak() - before) / (count * ROW_BYTES + TEXT_COPIES * file.stat().st_size))
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell a process's peak")
    command = [sys.executable, "-c", code, tmp_path, "100000"]
    share = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.4 < share < 1.1, share


@pytest.mark.parametrize(("limit", "free"), [("max", 3_000_000), ("2500000", 1_700_000), ("900000", 100_000)])
def test_memory_is_the_machine_s_or_the_container_s(tmp_path: Path, limit: str, free: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 2930 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/some/job\n")
    group = tmp_path / "sys/fs/cgroup/some/job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text("1000000\n")
    (group / "memory.stat").write_text("anon 800000\ninactive_file 200000\n")
    assert free_memory(tmp_path) == (free if limit != "max" else 2930 * 1024)


def test_where_the_system_does_not_tell_its_memory_nothing_is_refused(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
