"""What goes wrong around a run: others at work in its folder, disks, clocks, damaged caches, odd names and sizes.

`benchmarks/RELIABILITY.md` tells what came of each, and where the faults are tested that have their place elsewhere.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import baseline
from baseline import OutputError, make_baseline
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
