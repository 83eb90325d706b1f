"""The array cache: damaged entries, killed runs, full disks, concurrent runs, and the size limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import baseline
from baseline.files import file_identities, fingerprint_of
from baseline.vision.cache import ArrayCache

KEY = {"what": "things", "number": 1}


class RecordingProgress(baseline.Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


def store(cache: ArrayCache, key: dict, count: int = 10, value: int = 7) -> None:
    array = cache.allocate(key, (count, 1000), np.int32)
    assert array is not None
    array[:] = value
    cache.commit(key, array)


def test_entry_is_returned_for_its_key_only(tmp_path: Path) -> None:
    cache = ArrayCache(1, folder=tmp_path / "c")
    assert cache.get(KEY) is None
    store(cache, KEY)
    array = ArrayCache(1, folder=tmp_path / "c").get(KEY)
    assert array is not None and array.shape == (10, 1000) and array.dtype == np.int32 and (array == 7).all()
    assert cache.get({**KEY, "number": 2}) is None


def test_changes_to_an_array_are_not_written(tmp_path: Path) -> None:
    cache = ArrayCache(1, folder=tmp_path)
    store(cache, KEY)
    cache.get(KEY)[:] = 0
    assert (cache.get(KEY) == 7).all()


@pytest.mark.parametrize("damage", ["byte", "short", "facts", "empty"])
def test_damaged_entry_is_removed_and_never_used(tmp_path: Path, damage: str) -> None:
    progress = RecordingProgress()
    cache = ArrayCache(1, progress, tmp_path)
    store(cache, KEY)
    folder = cache.entry_path(KEY)
    data = (folder / "data").read_bytes()
    if damage == "byte":
        (folder / "data").write_bytes(data[:5000] + b"x" + data[5001:])
    elif damage == "short":
        (folder / "data").write_bytes(data[:-1])
    else:
        (folder / "facts.json").write_text("{" if damage == "facts" else "{}")
    assert cache.get(KEY) is None and not folder.exists()
    assert len(progress.lines) == 1 and "damaged" in progress.lines[0]
    store(cache, KEY)
    assert (cache.get(KEY) == 7).all()


@pytest.mark.parametrize("shape", [[-1, 2], [10**400, 1], [2**63, 1]])
def test_an_entry_of_an_impossible_shape_is_damaged(shape: list[int], tmp_path: Path) -> None:
    cache = ArrayCache(1, folder=tmp_path)
    store(cache, KEY)
    facts = cache.entry_path(KEY) / "facts.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"shape": shape}))
    assert cache.get(KEY) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_in_an_entry_is_not_waited_for(tmp_path: Path) -> None:
    cache = ArrayCache(1, folder=tmp_path)
    store(cache, KEY)
    data = cache.entry_path(KEY) / "data"
    data.unlink()
    os.mkfifo(data)
    assert not cache.has(KEY) and cache.get(KEY) is None
    store(cache, KEY)
    assert (cache.get(KEY) == 7).all()


def test_entry_of_a_killed_run_is_ignored_and_replaced(tmp_path: Path) -> None:
    code = (
        "import os, signal, numpy as np; from pathlib import Path; from baseline.vision.cache import ArrayCache\n"
        f"cache, key = ArrayCache(1, folder=Path({str(tmp_path)!r})), {KEY!r}\n"
        "with cache.lock(key):\n"
        "    cache.allocate(key, (10, 1000), np.int32)[:5] = 7\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    cache = ArrayCache(1, folder=tmp_path)
    assert (cache.entry_path(KEY) / "data").exists() and not cache.has(KEY) and cache.get(KEY) is None
    with cache.lock(KEY):
        store(cache, KEY)
    assert (cache.get(KEY) == 7).all()


@pytest.mark.usefixtures("open_files_stay")
def test_an_array_is_stored_while_it_is_mapped(tmp_path: Path) -> None:
    progress = RecordingProgress()
    cache = ArrayCache(1, progress, tmp_path)
    array = cache.allocate(KEY, (10, 1000), np.int32)
    assert array is not None
    with pytest.raises(PermissionError):
        next(tmp_path.glob("things-*")).rename(tmp_path / "other")
    array[:] = 7
    cache.commit(KEY, array)
    assert cache.has(KEY) and (cache.get(KEY) == 7).all() and not progress.lines


def test_the_entry_that_another_run_computes_is_not_removed_to_make_room(tmp_path: Path) -> None:
    running, other = ArrayCache(0.00005, folder=tmp_path), ArrayCache(0.00005, folder=tmp_path)
    with running.lock(KEY):
        array = running.allocate(KEY, (10, 1000), np.int32)
        store(other, {**KEY, "number": 2})
        array[:] = 7
        running.commit(KEY, array)
    assert (running.get(KEY) == 7).all()


def test_least_recently_used_entry_makes_room(tmp_path: Path) -> None:
    cache = ArrayCache(0.00013, folder=tmp_path)  # three entries of 40 kB
    keys = [{"what": "things", "number": number} for number in range(4)]
    for age, key in enumerate(keys[:3]):
        store(cache, key)
        os.utime(cache.entry_path(key), (age, age))
    assert cache.get(keys[0]) is not None, "this marks it as used"
    store(cache, keys[3])
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True]


def test_array_larger_than_the_limit_removes_no_entry(tmp_path: Path) -> None:
    progress = RecordingProgress()
    cache = ArrayCache(0.0001, progress, tmp_path)
    store(cache, KEY)
    assert cache.allocate({"what": "large"}, (10**6,), np.float32) is None
    assert not cache.could_fit(10**6) and cache.could_fit(10**5)
    assert cache.get(KEY) is not None and progress.lines == ["cache: 4.0 MB exceed --cache-gb; nothing more is stored"]


def test_full_disk_is_logged_once_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    progress = RecordingProgress()
    cache = ArrayCache(1, progress, tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert cache.allocate(KEY, (10,), np.int8) is None and cache.allocate(KEY, (10,), np.int8) is None
    assert len(progress.lines) == 1 and "No space left" in progress.lines[0]
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_little_free_space_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baseline.vision.cache.MIN_FREE_BYTES", 10**18)
    assert ArrayCache(1, folder=tmp_path).allocate(KEY, (10,), np.int8) is None


def test_cache_that_cannot_be_created_stores_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    progress = RecordingProgress()
    cache = ArrayCache(1, progress, tmp_path / "file" / "arrays")
    with cache.lock(KEY):
        assert cache.get(KEY) is None and cache.allocate(KEY, (10,), np.int8) is None
    assert len(progress.lines) == 1


def test_cache_of_zero_gb_stores_nothing(tmp_path: Path) -> None:
    cache = ArrayCache(0, folder=tmp_path / "c")
    with cache.lock(KEY):
        assert cache.allocate(KEY, (10,), np.int8) is None
    assert not (tmp_path / "c").exists()


def test_second_run_waits_for_the_first(tmp_path: Path) -> None:
    first, progress, order = ArrayCache(1, folder=tmp_path), RecordingProgress(), []

    def second() -> None:
        cache = ArrayCache(1, progress, tmp_path)
        with cache.lock(KEY):
            order.append("second")
            assert (cache.get(KEY) == 7).all()

    with first.lock(KEY):
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.3)
        store(first, KEY)
        order.append("first")
    other.join(20)
    assert order == ["first", "second"] and "another run" in progress.lines[0]


def test_changed_file_changes_the_fingerprint(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    paths = [str(tmp_path / name) for name in "ab"]
    before = fingerprint_of(file_identities(paths))
    assert before == fingerprint_of(file_identities(paths)) != fingerprint_of(file_identities(paths[::-1]))
    (tmp_path / "a").write_text("c")
    os.utime(tmp_path / "a", ns=(1, 1))
    assert fingerprint_of(file_identities(paths)) != before
